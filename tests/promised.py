"""What a run promises to make again with the same bytes, however it was interrupted and wherever it ran."""

import hashlib
import io

import pyarrow.parquet as pq

from curation import storage

TABLES = (
    *("units", "sources", "clips", "series", "frames", "embeddings", "index", "duplicates", "concepts", "clusters"),
    *("selection", "produced", "shards"),
)


def fingerprints(run: str) -> dict[str, str]:
    """Name -> SHA-256 of every file of `TABLES`.

    Of `units/` the rows without the column that says where each file is: a corpus may be moved.
    """
    urls = [url for table in TABLES for url in storage.walk(storage.join(run, table))]
    files = {url.removeprefix(run): storage.read_bytes(url) for url in urls}
    for name in files:
        if name.startswith("/units/"):
            files[name] = str(pq.read_table(io.BytesIO(files[name])).drop_columns(["url"]).to_pylist()).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
