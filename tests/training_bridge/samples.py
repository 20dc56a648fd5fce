"""Small folders of shards whose every frame says which clip and frame it is."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from bucketing.shard_format import Facts, TarWriter, story
from tests.media_samples import make_video, numbered
from training_bridge.index import Shape
from training_bridge.plan import Sample
from training_bridge.reader import Reader

WIDE, TALL, STILL = Shape(24, 48, 72), Shape(24, 72, 48), Shape(1, 48, 72)
FRAMES = 32
"""Numbers set aside for each clip."""
KEYINT = 8


def make_shards(folder: Path, counts: Mapping[Shape, int], per_shard: int = 3) -> Path:
    """A bucket a shape; clip `c` has the key `c007`, shows `c * FRAMES` + its frame, and every second one has a text."""
    clip = 0
    for shape, count in counts.items():
        bucket = folder / f"b-{shape}"
        bucket.mkdir(parents=True, exist_ok=True)
        for number, first in enumerate(range(0, count, per_shard)):
            size = min(per_shard, count - first)
            write_shard(bucket / f"shard-{number:06d}", shape, range(clip + first, clip + first + size))
        clip += count
    return folder


def write_shard(place: Path, shape: Shape, clips: range) -> None:
    """One shard and its index."""
    fps = None if shape.frames == 1 else 24.0
    facts = Facts(shape.frames, fps, shape.width, shape.height)
    with place.with_suffix(".tar").open("wb") as file:
        tar = TarWriter(file)
        for clip in clips:
            key = f"c{clip:03d}"
            tar.add(key, "webp" if fps is None else "mp4", media(shape, clip, place.parent), facts)
            tar.add(key, "json", story({}, vars(facts)), facts)
            if clip % 2 == 0:
                tar.add(key, "txt", f"text of {key}".encode(), facts)
        tar.close()
    pq.write_table(tar.index(), place.with_suffix(".parquet"))


def media(shape: Shape, clip: int, folder: Path) -> bytes:
    """A clip's file."""
    picture = numbered(shape.width, shape.height)
    if shape.frames == 1:
        out = io.BytesIO()
        Image.fromarray(picture(clip * FRAMES)).save(out, "WEBP", lossless=True)
        return out.getvalue()
    path = folder / "_made.mp4"
    options = {"x264-params": f"keyint={KEYINT}:min-keyint={KEYINT}:scenecut=0:bframes=3"}
    make_video(path, lambda n: picture(clip * FRAMES + n), shape.frames, fps=24, options=options)
    data = path.read_bytes()
    path.unlink()
    return data


def sample_of(reader: Reader, key: str, visit: int = 0, dataset: str = "d") -> Sample:
    """A sample as the plan would name it."""
    row = reader.sources[dataset].index.table["key"].to_pylist().index(key)
    return Sample(dataset, row, key, visit)


def damage(folder: Path, key: str, member: str = "mp4") -> None:
    """Turn around a byte in the middle of a member."""
    for index in folder.rglob("*.parquet"):
        for row in pq.read_table(index).to_pylist():
            if row["member"] == f"{key}.{member}":
                tar = index.with_suffix(".tar")
                data = bytearray(tar.read_bytes())
                data[row["offset"] + row["size"] // 2] ^= 255
                tar.write_bytes(bytes(data))
                return
    raise KeyError(key)


def draw_noise(seed: int, sample: Sample, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """What a trainer draws: some noise, a time, and whether the text is dropped."""
    from training_bridge.draws import generator
    from training_bridge.reader import identity

    rng = generator(seed, identity(sample), sample.visit, "noise")
    noise = rng.standard_normal(shapes["pixels"][1:2], dtype=np.float32)
    return {"noise": noise, "time": np.float32(rng.uniform()), "drop": np.bool_(rng.uniform() < 0.1)}
