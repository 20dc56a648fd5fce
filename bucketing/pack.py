"""*Pack*: a shard from byte ranges of the units' cuts, by plan. One idempotent task; the index, last, is its commit."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bucketing.cut import Made
from bucketing.shard_format import FORMAT_VERSION, INDEX, TarWriter
from curation import storage
from curation.tables import PRODUCED

CUTS = pa.schema(
    [
        *INDEX,
        ("extension", pa.string()),
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]
)
"""The index of a unit's cuts, `cuts/<unit>.parquet` beside `cuts/<unit>.tar`."""


def write_cuts(run: str, unit: str, made: Iterator[tuple[Made, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Commit a unit's cuts: the tar as they come, then its index. Each comes with its `frames, fps, width, height`."""
    rows: list[dict[str, Any]] = []
    with storage.committed(storage.join(run, "cuts", f"{unit}.tar")) as out:
        tar = TarWriter(out)
        for cut, facts in made:
            if cut.file is None:
                error = {"error_code": cut.error_code, "error_message": cut.error_message}
                rows.append({"key": cut.key, "status": "error", **error})
                continue
            extension = cut.file.rsplit(".", 1)[-1]
            row = tar.add(cut.key, extension, Path(cut.file).read_bytes(), **facts)
            rows.append({**row, "extension": extension, "status": "ok"})
        tar.close()
    storage.write_table(storage.join(run, "cuts", f"{unit}.parquet"), storage.rows_table(rows, CUTS))
    return rows


def pack_shard(
    run: str,
    subset: str,
    shard: str,
    samples: Sequence[Mapping[str, Any]],
    describe: Callable[[str, str], tuple[dict[str, Any], str | None]],
) -> dict[str, Any]:
    """Write one shard, its rows of `produced/`, and last its index. `shard` is `<split>/<bucket>/shard-000000`.

    `samples` come in the order of the plan, each with `clip_id`, `unit` and `key`, its name among the unit's cuts.
    `describe(unit, clip_id)` gives what is known of a clip and its caption. A planned sample whose cut failed is left
    out of the shard and said in `produced/` with its code.
    """
    cuts = {unit: _cuts(run, unit) for unit in sorted({s["unit"] for s in samples})}
    produced = []
    place = storage.join(run, "shards", subset, shard)
    with storage.committed(f"{place}.tar") as out:
        tar = TarWriter(out)
        for sample in samples:
            cut = cuts[sample["unit"]].get(sample["key"])
            produced.append(_add(tar, run, sample, cut, describe) | {"shard": shard, "bucket": shard.split("/")[1]})
        tar.close()
    name = shard.replace("/", "--")
    table = storage.rows_table(produced, PRODUCED)
    storage.write_table(storage.join(run, "produced", subset, f"{name}.parquet"), table)
    storage.write_table(f"{place}.parquet", tar.index())
    written = [row for row in produced if row["status"] == "ok"]
    return {"subset": subset, "shard": shard, "samples": len(written), "failed": len(produced) - len(written)}


def _cuts(run: str, unit: str) -> dict[str, dict[str, Any]]:
    with storage.open_read(storage.join(run, "cuts", f"{unit}.parquet")) as file:
        return {row["key"]: row for row in pq.read_table(file).to_pylist()}


def _add(
    tar: TarWriter,
    run: str,
    sample: Mapping[str, Any],
    cut: Mapping[str, Any] | None,
    describe: Callable[[str, str], tuple[dict[str, Any], str | None]],
) -> dict[str, Any]:
    """Append one sample; its row of `produced`."""
    key, unit = sample["clip_id"], sample["unit"]
    if cut is None or cut["status"] != "ok":
        code, message = (cut["error_code"], cut["error_message"]) if cut else ("frames_missing", "the unit has no such cut")
        return {"clip_id": key, "status": "error", "error_code": code, "error_message": message}
    data = storage.read_bytes(storage.join(run, "cuts", f"{unit}.tar"), cut["offset"], cut["size"])
    facts = {k: cut[k] for k in ("frames", "fps", "width", "height")}
    known, caption = describe(unit, key)
    row = tar.add(key, cut["extension"], data, **facts)
    story = {"format_version": FORMAT_VERSION, **known, "sample": {**facts, "sha256": cut["sha256"], "audio": "dropped"}}
    tar.add(key, "json", json.dumps(story, sort_keys=True, ensure_ascii=False).encode(), **facts)
    if caption:
        tar.add(key, "txt", caption.encode(), **facts)
    return {
        "clip_id": key,
        "status": "ok",
        "fps": cut["fps"],
        "frames": cut["frames"],
        "offset": row["offset"],
        "bytes": row["size"],
        "sha256": cut["sha256"],
    }
