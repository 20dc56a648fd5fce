"""Small runs, as tests of the whole path make them: corpora, a config that needs no OCR, and the command of a driver.

python -m tests.small_runs INPUT RUN ENGINE SETTINGS      a run with that config, in a process that can be killed
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from jobs.config import Config, resolve
from tests.media_samples import make_video, moving, texture

SUBSET: dict[str, Any] = {
    "name": "tiny",
    "bucket_class": 256,
    "source_rules": ["duration_s >= 4"],
    "clip_rules": ["motion_static_frac < 0.9", "motion_mv > 0.1"],
    "image_rules": ["min(width, height) >= 256"],
    "validation_share": 0,
}
SETTINGS: dict[str, Any] = {
    "text": {"enabled": False},
    "subsets": [SUBSET],
    "units": {"size": 2},
    "shards": {"samples": 2},
    "encode": {"preset": "ultrafast"},
}


def settings(engine: str = "inline", **more: object) -> Config:
    """A config for the small corpora."""
    return resolve({**SETTINGS, "engine": {"kind": engine}, **more})


def small_corpus(folder: Path) -> Path:
    """Two moving films, a still one, a short one, an image, a broken file, a copy, and a manifest with a caption."""
    folder.mkdir(exist_ok=True)
    make_video(folder / "a moving ü.mp4", moving(352, 208, seed=1), 140, 28, sound=True)
    make_video(folder / "b moving.mkv", moving(352, 288, seed=2), 140, 28)
    _others(folder, "c still.mp4", "d short.mp4", "e image.png", "f broken.mp4")
    shutil.copy(folder / "b moving.mkv", folder / "g copy.mkv")
    rows = ["path,caption,licence", "a moving ü.mp4,A texture drifts to the left.,CC0", "f broken.mp4,,"]
    rows += ["b moving.mkv,,CC0", "c still.mp4,,", "d short.mp4,,", "e image.png,A still texture.,", "g copy.mkv,,"]
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder


def long_corpus(folder: Path) -> Path:
    """Sixteen sources: ten moving films and a copy, a still one, a short one, an image, and two that are no films."""
    folder.mkdir(exist_ok=True)
    for n in range(10):
        make_video(folder / f"{n:02d} moving.mp4", moving(352, 208, seed=n), 140 + n, 28)
    _others(folder, "90 still.mp4", "91 short.mp4", "92 image.png", "04 broken.mp4")
    (folder / "93 cut short.mp4").write_bytes((folder / "01 moving.mp4").read_bytes()[:2000])
    shutil.copy(folder / "00 moving.mp4", folder / "94 copy.mp4")
    return folder


def _others(folder: Path, still: str, short: str, image: str, broken: str) -> None:
    """One source for each way not to become an ordinary clip."""
    from PIL import Image

    make_video(folder / still, lambda n: texture(352, 208, 3), 140, 28)
    make_video(folder / short, moving(352, 208, seed=91), 50, 28)
    Image.fromarray(texture(400, 300, 5)).save(folder / image)
    (folder / broken).write_bytes(b"not a film at all")


def driver(location: str | Path, run: str | Path, engine: str = "inline", **more: object) -> list[str]:
    """The command of a run in a process of its own; `more` settings must be JSON."""
    return [sys.executable, "-m", "tests.small_runs", str(location), str(run), engine, json.dumps(more)]


if __name__ == "__main__":
    from jobs import pipeline

    sys.exit(pipeline.run(sys.argv[1], sys.argv[2], settings(sys.argv[3], **json.loads(sys.argv[4]))))
