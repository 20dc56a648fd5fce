"""A run folder of drawn rows for statistics and selections: every table, every way to be lost, and many nulls."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation import run_folder
from curation.sources import UNITS
from curation.tables import CAPTIONS, CLIP_SCORES, CLIPS, CLUSTERS, CONCEPTS, COSTS, DUPLICATES, PRODUCED, SOURCES
from jobs import selecting
from jobs.config import Config, resolve
from tests.jobs.run_samples import write

Row = dict[str, Any]
UNIT_SIZE = 40
SHAPES = ((1280, 720), (1920, 1080), (720, 1280), (640, 480), (320, 200), (4096, 2160))
LISTS: list[Row] = [
    {
        "name": "plain",
        "source_rules": ["duration_s >= 4", "video_codec in ('h264', 'vp9')", "hdr = false"],
        "clip_rules": ["border_frac < 0.9", "0.5 < motion_mv < 7", "text_score < 0.9"],
        "image_rules": ["min(width, height) >= 256", "border_frac < 0.9"],
        "validation_share": 0.2,
    },
    {
        "name": "mixed",
        "source_rules": ["min(width, height) >= 480"],
        "clip_rules": ["motion_vmaf / (motion_mv + 1) > 0.1", "aesthetic is null or aesthetic > 3"],
        "resample": {"share": 0.7},
        "people": {"share": 0.4},
        "landscape_share": 0.6,
    },
    {"name": "all", "resample": {"count": 60}},
]


def config() -> Config:
    """The settings of the run."""
    more = {"shards": {"samples": 8}, "units": {"size": UNIT_SIZE}, "engine": {"kind": "inline"}, "seed": 5}
    return resolve({**more, "subsets": LISTS, "text": {"enabled": False}})


def make_run(run: Path, sources: int = 160, units: int | None = None, seed: int = 1) -> Path:
    """Write the measured tables of a run (of its first units only, where that is said), without selections."""
    draw = random.Random(seed)
    run_folder.write(str(run), {"input": "/data", **config().model_dump(mode="json")}, config().decides())
    everything: list[Row] = []
    for first in range(0, sources, UNIT_SIZE):
        unit = f"unit-{first // UNIT_SIZE:06d}"
        rows = [_source(draw, unit, n) for n in range(first, min(sources, first + UNIT_SIZE))]
        clips = [clip for row in rows if row["status"] == "ok" for clip in _clips(draw, row)]
        everything += clips
        if units is not None and first // UNIT_SIZE >= units:
            continue
        write(run / "units" / f"{unit}.parquet", [{k: r.get(k) for k in UNITS.names} for r in rows], UNITS)
        write(run / "sources" / f"{unit}.parquet", rows, SOURCES)
        write(run / "clips" / f"{unit}.parquet", clips, CLIPS)
        write(run / "captions" / f"{unit}.parquet", [_caption(draw, c) for c in clips if draw.random() < 0.6], CAPTIONS)
        stages = [{"unit": unit, "stage": s, "rows": len(rows), "cpu_s": draw.random() * 9} for s in ("probe", "measure")]
        write(run / "costs" / f"{unit}.parquet", [{**s, "wall_s": draw.random(), "peak_mb": 100.5} for s in stages], COSTS)
    _compared(run, draw, everything)
    return run


def select(run: Path) -> None:
    """Select with each list, and pretend that some of the planned samples were written."""
    for subset in config().subsets:
        selecting.select(str(run), config(), subset)
        folder = run / "selection" / subset.name
        chosen = pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))])
        planned = chosen.filter(chosen["kept"]).to_pylist()[::2]
        rows = [{k: r[k] for k in ("clip_id", "bucket", "shard")} | _written(n) for n, r in enumerate(planned)]
        write(run / "produced" / subset.name / "some.parquet", rows, PRODUCED)


def _written(number: int) -> Row:
    if number % 7 == 0:
        return {"status": "error", "error_code": "encode_failed", "error_message": "drawn"}
    return {"status": "ok", "fps": 24.0, "frames": 128, "offset": 512, "bytes": 1000 + number, "sha256": "0" * 64}


def _source(draw: random.Random, unit: str, number: int) -> Row:
    row: Row = {"unit": unit, "source_id": f"{number:016x}", "path": f"f/{number}'s ü.mp4", "bytes": draw.randrange(1, 10**9)}
    row |= {"kind": "image" if draw.random() < 0.15 else "video", "status": "ok"}
    if draw.random() < 0.05:
        return row | {"status": "error", "error_code": "decode_failed", "error_message": "drawn"}
    width, height = draw.choice(SHAPES)
    row |= {"width": width, "height": height, "rotation": 0, "pixel_aspect": 1.0, "hdr": draw.random() < 0.05}
    row |= {"container": draw.choice(("mp4", "mkv", None)), "video_codec": draw.choice(("h264", "hevc", "vp9", None))}
    if row["kind"] == "video":
        row |= {"duration_s": draw.uniform(1, 40), "fps": 30.0}
    if number > 20 and draw.random() < 0.05:
        row |= {"exact_copy_of": f"{number - 20:016x}"}
    return row


def _clips(draw: random.Random, source: Row) -> list[Row]:
    rows = []
    for n in range(draw.choice((1, 2, 3))):
        seconds = draw.choice((4.0, 6.0, 8.0 + draw.random())) if source["kind"] == "video" else 0.0
        frames = max(1, int(seconds * 30))
        row = {k: source.get(k) for k in ("source_id", "path", "kind", "width", "height", "fps")}
        row |= {"clip_id": f"{source['source_id']}_{n:07d}_{n + frames:07d}", "start_frame": n, "end_frame": n + frames}
        row |= {"start_s": 0.0, "end_s": seconds, "duration_s": seconds, "frames": frames, "status": "ok"}
        if draw.random() < 0.05:
            rows.append(row | {"status": "error", "error_code": "scorer_failed", "error_message": "drawn"})
            continue
        scores = {name: draw.random() if draw.random() < 0.95 else None for name in CLIP_SCORES}
        scores |= {"motion_mv": draw.lognormvariate(0.5, 1), "border_top_px": 0.0, "border_bottom_px": 0.0}
        scores |= {"border_left_px": 0.0, "border_right_px": 0.0, "aesthetic": draw.choice((None, draw.uniform(2, 7)))}
        scores |= {
            "face_count_max": float(draw.randrange(3)),
            "people_score": None,
            "camera": draw.choice(("static", "pan", None)),
            "quality_sharpness": draw.choice((0.1, 0.2)),
        }
        rows.append(row | scores)
    return rows


def _caption(draw: random.Random, clip: Row) -> Row:
    row = {"clip_id": clip["clip_id"], "source_id": clip["source_id"], "model": draw.choice(("one", "two")), "requests": 1}
    row |= {"latency_s": draw.random(), "input_tokens": 100, "output_tokens": draw.randrange(9, 90)}
    if draw.random() < 0.2:
        return row | {"status": "error", "error_code": "caption_invalid", "error_message": "drawn"}
    return row | {"status": "ok", "caption": " ".join(["wörd"] * draw.randrange(5, 60))}


def _compared(run: Path, draw: random.Random, clips: list[Row]) -> None:
    """Near-duplicates and concepts: a quarter of the clips of the odd sources resemble a clip before them."""
    good = [clip for clip in clips if clip["status"] == "ok"]
    same, used = [], set[str]()
    for n, clip in enumerate(good[5:], 5):
        best = good[n - 5]["clip_id"]
        if draw.random() < 0.15 and best not in used and clip["clip_id"] not in used:
            same.append({"clip_id": clip["clip_id"], "duplicate_of": best, "similarity": 0.95, "model": "layout"})
            used |= {clip["clip_id"], best}
    concepts = [
        {"clip_id": c["clip_id"], "cluster": min(draw.randrange(8), draw.randrange(8)), "similarity": draw.random()}
        for c in good
        if draw.random() < 0.9
    ]
    write(run / "duplicates" / "duplicates.parquet", same, DUPLICATES)
    write(run / "concepts" / "concepts.parquet", concepts, CONCEPTS)
    sizes = {c: sum(row["cluster"] == c for row in concepts) for c in range(8)}
    rows = [{"cluster": c, "size": n, "weight": n**-0.5 if n else None, "tightness": 0.8} for c, n in sizes.items()]
    write(run / "clusters" / "clusters.parquet", rows, CLUSTERS)
