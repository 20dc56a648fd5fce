"""Small folders of shards whose every frame says which clip and frame it is."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from bucketing.shard_format import Facts, TarWriter, story
from tests.media_samples import make_video, numbered
from training_bridge import encoded, index
from training_bridge.encoded import Encoded
from training_bridge.index import Shape
from training_bridge.plan import Sample
from training_bridge.reader import Reader, Source

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
    for place in folder.rglob("*.parquet"):
        for row in pq.read_table(place).to_pylist():
            if row["member"] == f"{key}.{member}":
                tar = place.with_suffix(".tar")
                data = bytearray(tar.read_bytes())
                data[row["offset"] + row["size"] // 2] ^= 255
                tar.write_bytes(bytes(data))
                return
    raise KeyError(key)


def draw_noise(seed: int, sample: Sample, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """What a trainer draws: some noise, a time, and whether the text is dropped."""
    from training_bridge.draws import generator

    rng = generator(seed, sample.identity, sample.visit, "noise")
    noise = rng.standard_normal(shapes["pixels"][1:2], dtype=np.float32)
    return {"noise": noise, "time": np.float32(rng.uniform()), "drop": np.bool_(rng.uniform() < 0.1)}


class TinyLatents:
    """8 x 8 x 8 means of each colour, as a latent encoder."""

    fingerprint = "tiny latents, weights 1"

    def open(self) -> None:
        self.ready = True

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        assert self.ready
        _, frames, height, width = pixels.shape
        blocks = pixels[:, : -(-frames // 8) * 8].reshape(3, -(-frames // 8), -1, height // 8, 8, width // 8, 8)
        return (blocks.mean(axis=(2, 4, 6)) / 127.5 - 1).astype(np.float32)


class TinyTexts:
    """A row a letter, as a text encoder; the empty text has its end token."""

    name = "letters"
    fingerprint = "tiny texts, weights 1"

    def open(self) -> None:
        self.ready = True

    def encode_text(self, texts: list[str]) -> list[np.ndarray]:
        assert self.ready
        return [np.array([[ord(letter), n] for n, letter in enumerate(text + "\0")], np.float32) for text in texts]


def encode_shards(folder: Path, encoder: TinyLatents | TinyTexts) -> Encoded:
    """Every shard's sidecar, as the job writes it."""
    encoder.open()
    shards = index.read(str(folder))
    reader = Reader({"d": Source(shards)}, 0)
    kind = Encoded("latent" if isinstance(encoder, TinyLatents) else encoder.name, encoder.fingerprint)
    for number, shard in enumerate(shards.shards):
        samples = [sample_of(reader, key) for key in encoded.rows_of(shards, number)["key"].to_pylist()]
        if isinstance(encoder, TinyLatents):
            arrays = [encoder.encode(reader.read(sample).arrays["pixels"]) for sample in samples]
        else:
            arrays = encoder.encode_text([reader.text(sample) for sample in samples])
            empty = folder / kind.empty_place(shard)
            empty.parent.mkdir(exist_ok=True)
            empty.write_bytes(encoded.dumps(encoder.encode_text([""])[0]))
        place = folder / kind.place(shard)
        place.parent.mkdir(exist_ok=True)
        with place.with_suffix(".tar").open("wb") as out:
            table = encoded.write(out, kind, shards, number, arrays)
        pq.write_table(table, place.with_suffix(".parquet"))
    return kind
