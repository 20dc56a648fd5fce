"""A small run folder whose every figure is known: three sources, four clips of them, one image, one subset."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console, RenderableType

from curation import run_folder
from curation.sources import UNITS
from curation.tables import CLIPS, COSTS, FRAMES, PRODUCED, SELECTION, SERIES, SOURCES

NASTY = "<script>alert(1)</script>.mp4"
SUBSET = {
    "name": "small",
    "about": "a & b",
    "source_rules": ["duration_s >= 4"],
    "clip_rules": ["border_frac < 0.02", "0.5 < motion_mv < 7", "text_score < 0.6"],
    "image_rules": ["border_frac < 0.02"],
}
SHARD = "train/v256-16x9-f128/shard-000000"


def shown(what: RenderableType) -> str:
    """What a terminal of 200 columns shows."""
    file = io.StringIO()
    Console(width=200, file=file).print(what)
    return file.getvalue()


def row_of(page: str, *words: str) -> str:
    """The one line of a page that has all these words."""
    found = [line for line in page.splitlines() if all(word in line for word in words)]
    assert len(found) == 1, (words, page)
    return found[0]


def jpeg(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (640, 360)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "JPEG")
    return out.getvalue()


def write(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    filled = [{name: row.get(name) for name in schema.names} for row in rows]
    assert all(set(row) <= set(schema.names) for row in rows)
    pq.write_table(pa.Table.from_pylist(filled, schema=schema), path)


def source(number: int, path: str, **more: Any) -> dict[str, Any]:
    row = {"unit": "unit-000000", "source_id": f"{number:016x}", "path": path, "bytes": 10, "kind": "video", "status": "ok"}
    probed = {"container": "mov", "video_codec": "h264", "duration_s": 10.0, "fps": 30.0, "width": 640, "height": 360}
    return {**row, **({} if more.get("status") == "error" else probed), **more}


def clip(of: dict[str, Any], start_s: float, end_s: float, **more: Any) -> dict[str, Any]:
    start, end = round(start_s * 30), max(1, round(end_s * 30))
    row = {k: of[k] for k in ("source_id", "path", "kind", "fps", "width", "height")}
    row |= {"clip_id": f"{of['source_id']}_{start:07d}_{end:07d}", "start_s": start_s, "end_s": end_s}
    row |= {"start_frame": start, "end_frame": end, "duration_s": end_s - start_s, "frames": end - start, "status": "ok"}
    return {**row, "border_frac": 0.0, "motion_mv": 2.0, "text_score": 0.0, **more}


def verdict(of: dict[str, Any], reason: str, **more: Any) -> dict[str, Any]:
    return {"clip_id": of["clip_id"], "source_id": of["source_id"], "kept": reason == "kept", "reason": reason, **more}


def make_run(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Write the run and return its sources and clips.

    Sources: 7 in = 3 ok (one an image) + 2 rejected + 2 error. Clips: 6 = 2 kept + 3 dropped + 1 error.
    """
    config = {"input": "/data/<raw>", "subsets": [SUBSET], "score_all": False}
    run_folder.write(str(run), {**config, "seed": 7}, {"analyze": {}, "select": {}, "produce": {}})
    sources = [
        source(
            1, NASTY, duration_s=24.0, cut_frames=[180], cut_times_s=[6.0], gradual=[{"start": 300, "end": 310, "kind": "fade"}]
        ),
        source(2, "b/two.mp4", duration_s=12.0),
        source(3, "short.mp4", duration_s=2.0, status="rejected", reason="rule:duration_s >= 4"),
        source(4, "copy.mp4", status="rejected", reason=f"exact_copy:{1:016x}", exact_copy_of=f"{1:016x}"),
        source(5, "empty.mp4", status="error", error_code="empty", error_message="0 bytes"),
        source(6, "hung.mp4", status="error", error_code="timeout", error_message="\x1b[31mno progress"),
        source(7, "still.png", kind="image", video_codec="png", container="png", duration_s=0.0, fps=None),
    ]
    one, two, still = sources[0], sources[1], sources[6]
    clips = [
        clip(one, 0.0, 6.0),
        clip(one, 6.0, 10.0, border_frac=0.1),
        clip(one, 12.0, 24.0, text_score=None),
        clip(two, 0.0, 4.0, motion_mv=9.0),
        clip(two, 4.0, 12.0, status="error", error_code="scorer_failed", error_message="boom"),
        clip(still, 0.0, 0.0, motion_mv=None),
    ]
    place = {"split": "train", "bucket": "v256-16x9-f128", "shard": SHARD, "position": 0}
    reasons = [
        "kept",
        "rule:border_frac < 0.02",
        "unmeasured:text_score",
        "rule:0.5 < motion_mv < 7",
        "error:scorer_failed",
        "kept",
    ]
    decided = [verdict(c, r, **(place if i == 0 else {})) for i, (c, r) in enumerate(zip(clips, reasons, strict=True))]
    decided[5] |= {"split": "train", "bucket": "i256-16x9", "shard": "train/i256-16x9/shard-000000", "position": 0}
    shown = [
        {"clip_id": c["clip_id"], "source_id": c["source_id"], "frame": f, "jpeg": jpeg()} for c in clips for f in (0, 1, 2)
    ]
    shown[1]["jpeg"] = b"no jpeg"
    written = {"clip_id": clips[0]["clip_id"], "status": "ok", "bucket": "v256-16x9-f128", "fps": 32.0, "frames": 128}
    written |= {"shard": SHARD, "offset": 512, "bytes": 2048}
    cost = {"unit": "unit-000000", "rows": 7, "wall_s": 4.0, "bytes": 70, "peak_mb": 150.0}
    unit = "unit-000000.parquet"
    listed = [{k: s.get(k) for k in UNITS.names} for s in sources]
    write(run / "units" / unit, listed, UNITS)
    write(run / "sources" / unit, sources, SOURCES)
    write(run / "clips" / unit, clips, CLIPS)
    write(run / "series" / unit, [{"source_id": s["source_id"]} for s in (one, two)], SERIES)
    write(run / "frames" / unit, shown, FRAMES)
    write(run / "costs" / unit, [{**cost, "stage": "measure", "cpu_s": 3.0}, {**cost, "stage": "probe", "cpu_s": 1.0}], COSTS)
    write(run / "selection" / "small" / "unit-000000--unit-000000.parquet", decided, SELECTION)
    write(run / "produced" / "small" / f"{SHARD.replace('/', '--')}.parquet", [written], PRODUCED)
    (run / "events").mkdir()
    events = [json.dumps({"time": "2026-01-01T00:00:00+00:00", "event": "unit"}), '{"time": "2026']
    (run / "events" / "driver-1.jsonl").write_text("\n".join(events))
    return {"sources": sources, "clips": clips}
