"""Small pictures of clips for pages: the middle kept frame as a data URI."""

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import storage
from jobs.inspect import rows

if TYPE_CHECKING:
    import duckdb

THUMBNAIL_PX = 200


def middle_frames(connection: "duckdb.DuckDBPyConnection", run: str, clip_ids: Sequence[str]) -> dict[str, str]:
    """clip_id -> data URI of its middle kept frame, small. Only the files of these clips' units are opened."""
    query = """SELECT unit, array_agg(clip_id ORDER BY clip_id) AS clips FROM clips JOIN sources USING (source_id)
               WHERE clip_id IN (SELECT unnest($1::VARCHAR[])) GROUP BY 1 ORDER BY 1"""
    uris: dict[str, str] = {}
    for row in rows(connection, query, [list(clip_ids)]):
        for clip_id, jpeg in middle_jpegs(run, row["unit"], row["clips"]).items():
            if uri := _thumbnail(jpeg):
                uris[clip_id] = uri
    return uris


def middle_jpegs(run: str, unit: str, clip_ids: Sequence[str]) -> dict[str, bytes]:
    """clip_id -> its middle kept frame as it is kept, of clips of one unit."""
    with storage.open_read(storage.join(run, "frames", f"{unit}.parquet")) as file:
        wanted = pc.field("clip_id").isin(list(clip_ids))
        table = pq.read_table(file, columns=["clip_id", "frame", "jpeg"], filters=wanted).sort_by("frame")
    found = {}
    for clip_id in clip_ids:
        jpegs = table.filter(pc.equal(table["clip_id"], clip_id))["jpeg"]
        if len(jpegs):
            found[clip_id] = jpegs[(len(jpegs) - 1) // 2].as_py()
    return found


def _thumbnail(jpeg: bytes) -> str | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as image:
            image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            out = io.BytesIO()
            image.convert("RGB").save(out, "JPEG", quality=72, optimize=True)
    except OSError:
        return None  # a damaged frame has no picture; the reason keeps its count
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
