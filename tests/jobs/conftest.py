"""A corpus of six small sources and a config that needs no OCR, for tests of the whole path."""

import shutil
from pathlib import Path

import pytest

from jobs.config import Config, resolve
from tests.media_samples import make_video, moving, texture

SUBSET = {
    "name": "tiny",
    "bucket_class": 256,
    "source_rules": ["duration_s >= 4"],
    "clip_rules": ["motion_static_frac < 0.9", "motion_mv > 0.1"],
    "image_rules": ["min(width, height) >= 256"],
    "validation_share": 0,
}


def settings(engine: str = "inline", **more: object) -> Config:
    """A config for the small corpus."""
    tree: dict[str, object] = {
        "text": {"enabled": False},
        "subsets": [SUBSET],
        "units": {"size": 2},
        "shards": {"samples": 2},
        "encode": {"preset": "ultrafast"},
        "engine": {"kind": engine},
    }
    return resolve({**tree, **more})


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two moving films, a still one, a short one, an image, a broken file, and a manifest with a caption."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("corpus")
    make_video(folder / "a moving ü.mp4", moving(352, 208, seed=1), 140, 28, sound=True)
    make_video(folder / "b moving.mkv", moving(352, 288, seed=2), 140, 28)
    make_video(folder / "c still.mp4", lambda n: texture(352, 208, 3), 140, 28)
    make_video(folder / "d short.mp4", moving(352, 208, seed=4), 50, 28)
    Image.fromarray(texture(400, 300, 5)).save(folder / "e image.png")
    (folder / "f broken.mp4").write_bytes(b"not a film at all")
    shutil.copy(folder / "b moving.mkv", folder / "g copy.mkv")
    rows = ["path,caption,licence", "a moving ü.mp4,A texture drifts to the left.,CC0", "f broken.mp4,,"]
    rows += ["b moving.mkv,,CC0", "c still.mp4,,", "d short.mp4,,", "e image.png,A still texture.,", "g copy.mkv,,"]
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    return folder
