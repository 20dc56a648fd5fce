"""A run to review: real films whose frames say their numbers, and tables as *analyze*, *embed* and *select* leave them."""

import io
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curation import embedding, run_folder, storage
from curation.review import Row
from curation.sources import UNITS
from curation.tables import CLIPS, FRAMES, SERIES, SOURCES
from jobs import pipeline
from jobs.config import resolve
from tests.media_samples import Picture, make_video, numbered, texture

FPS, CLIP_FRAMES, STEP = 25, 300, 40
"""Twelve seconds a clip: a sample of 256 frames at 24 fps shows its centre. Clips of a film overlap, to keep films short."""
WIDTH, HEIGHT = 352, 200
CONCEPTS = ("waves", "dust", "lamps")
HOSTILE = "<script>document.title='taken'</script>"
SUBSET: dict[str, Any] = {
    "name": "picked",
    "bucket_class": 256,
    "clip_rules": ["motion_mv > 0.5"],
    "validation_share": 0,
    "review": {"judgements": 1},
}


def film(number: int) -> Callable[[int], Picture]:
    """Frame n of a film: a drifting texture, with a band across the middle that says n."""
    wide, band = _texture(number), numbered(WIDTH, 40)

    def picture(n: int) -> Picture:
        shown = np.ascontiguousarray(np.roll(wide, -2 * n, axis=1)[:, :WIDTH])
        shown[80:120] = band(n)
        return shown

    return picture


@cache
def _texture(number: int) -> Picture:
    return texture(2 * WIDTH, HEIGHT, number, 40)


def make_run(folder: Path, films: int = 3, per_film: int = 4, judgements: int = 1, **more: Any) -> Path:
    """A run with `films` x `per_film` candidates of the subset `picked`, and as many clips that a rule drops."""
    run = folder / "run"
    config = resolve(
        {
            "engine": {"kind": "inline"},
            "subsets": [SUBSET | {"review": {"judgements": judgements}}],
            "text": {"enabled": False},
            "shards": {"samples": 4},
            "encode": {"preset": "ultrafast"},
            "duplicates": {"enabled": False},
            "clusters": {"number": len(CONCEPTS)},
            **more,
        }
    )
    run_folder.write(str(run), {"input": str(folder), **config.model_dump(mode="json")}, config.decides())
    for number in range(films):
        path = folder / (f"{HOSTILE.replace('/', '∕')} {number}.mp4" if number == 1 else f"film {number}.mp4")
        make_video(path, film(number), (per_film - 1) * STEP + CLIP_FRAMES, FPS, options={"g": "50"})
        tables(run, number, path, per_film)
    assert pipeline.again(str(run), None, [], None, ("select",)) == 0
    return run


def tables(run: Path, number: int, path: Path, per_film: int) -> None:
    """What is measured of one film, a unit of its own."""
    unit, source_id, frames = f"unit-{number:06d}", f"{number:016x}", (per_film - 1) * STEP + CLIP_FRAMES
    shape = {"width": WIDTH, "height": HEIGHT, "fps": float(FPS), "kind": "video", "status": "ok", "path": path.name}
    source = shape | {"unit": unit, "source_id": source_id, "frames": frames, "duration_s": frames / FPS, "bytes": 1}
    source |= {
        "rotation": 0,
        "pixel_aspect": 1.0,
        "caption": f"Film {number}, {HOSTILE if number == 1 else 'as it was found'}.",
    }
    clips: list[Row] = []
    for n in range(per_film):
        start, end = n * STEP, n * STEP + CLIP_FRAMES
        clip = shape | {"source_id": source_id, "start_frame": start, "end_frame": end, "frames": CLIP_FRAMES}
        clip |= {
            "start_s": start / FPS,
            "end_s": end / FPS,
            "duration_s": CLIP_FRAMES / FPS,
            "motion_mv": 1.0 + n + number / 10,
        }
        clip |= {
            "clip_id": f"{source_id}_{start:07d}_{end:07d}",
            "aesthetic": 5.0 + n / 4 if n else None,
            "camera": "pan_right",
        }
        clips.append(clip | {"camera_confidence": 0.9, "border_frac": 0.0})
    dropped = [c | {"clip_id": f"{c['clip_id']}x", "motion_mv": 0.1} for c in clips]
    extra = pa.schema([*SOURCES, ("caption", pa.string())])
    storage.write_table(str(run / f"sources/{unit}.parquet"), storage.rows_table([source], extra))
    storage.write_table(str(run / f"clips/{unit}.parquet"), storage.rows_table([*clips, *dropped], CLIPS))
    listed = {k: source.get(k) for k in UNITS.names} | {"url": storage.escape(str(path))}
    storage.write_table(str(run / f"units/{unit}.parquet"), storage.rows_table([listed], UNITS))
    series = {"source_id": source_id, "time_s": [n / FPS for n in range(frames)]}
    storage.write_table(str(run / f"series/{unit}.parquet"), storage.rows_table([series], SERIES))
    jpegs = [{"clip_id": c["clip_id"], "source_id": source_id, "frame": c["start_frame"] + 150} for c in clips]
    jpegs = [row | {"time_s": 0.0, "jpeg": _jpeg(film(number)(row["frame"]))} for row in jpegs]
    storage.write_table(str(run / f"frames/{unit}.parquet"), storage.rows_table(jpegs, FRAMES))
    rng = np.random.default_rng(number)
    vectors = [(np.eye(8)[(number + n) % len(CONCEPTS)] + rng.normal(0, 0.05, 8)).tolist() for n in range(per_film)]
    ids = [clip["clip_id"] for clip in (*clips, *dropped)]
    embedded = pa.table([pa.array(ids), pa.array([*vectors, *vectors], pa.list_(pa.float32(), 8))], ["clip_id", "vector"])
    storage.write_table(str(run / f"embeddings/layout/{unit}.parquet"), embedded.cast(embedding.schema(8)))


def _jpeg(picture: Picture) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG")
    return out.getvalue()
