"""*Encode*: latents or text encodings of finished shards, made once, as sidecar tars beside them."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from curation import lock, storage
from curation.engine import EngineConfig, Item, PoolConfig, Step
from curation.engine import run as run_engine
from curation.errors import ConfigError, StageError
from jobs.events import log
from training_bridge import encoded, index
from training_bridge.encoded import LATENT, Encoded, LatentEncoder, TextEncoder
from training_bridge.plan import Sample
from training_bridge.reader import PIXELS, BadSample, Reader, Source

if TYPE_CHECKING:
    from training_bridge.dit.text import EncoderConfig

TEXTS = 32
"""Texts that an encoder is given at once."""

Encoder = LatentEncoder | TextEncoder


def encode(run: str, encoder: Encoder, engine: EngineConfig, pool: PoolConfig, subsets: Sequence[str] = ()) -> int:
    """Encode the shards of a run, or of some of its subsets, that this encoder has not encoded. Returns how many.

    Raises ConfigError where there are no shards, StageError where a shard could not be encoded.
    """
    with lock.hold(run):
        storage.sweep(run)
        items, whole = missing(run, encoder, subsets)
        with log(run) as events:
            results = run_engine(items, [Step(EncodeShards(encoder), pool)], engine, storage.join(run, "attempts"))
            for result in events.track(f"encode {kind(encoder).name}", results, total=whole, done=whole - len(items)):
                events.event("encoded", **result)
            return len(items)


def encode_latents(run: str, tae: str, engine: EngineConfig, pool: PoolConfig, subsets: Sequence[str] = ()) -> str:
    """Encode with the autoencoder of a file; returns what to tell the user. Raises ConfigError where it is none."""
    from training_bridge.tae.encoder import TaeEncoder

    try:
        encoder = TaeEncoder(str(storage.local_path(tae).absolute()))
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    count = encode(run, encoder, engine, pool, subsets)
    return (
        f"{count} shards encoded in folders {kind(encoder).folder}; data.train.NAME.encoded: {{latent: {encoder.fingerprint}}}"
    )


def encode_texts(run: str, file: Path, engine: EngineConfig, pool: PoolConfig, subsets: Sequence[str] = ()) -> list[str]:
    """Encode with the frozen text encoders of a YAML file, a list or a training run's settings; returns what to tell the user.

    Raises ConfigError where the file names none, or one cannot be loaded.
    """
    said = []
    for config in _text_encoders(file):
        try:
            encoder = FrozenText(config, engine)
        except (ValueError, OSError, ImportError) as error:
            raise ConfigError(f"text encoder {config.name!r}: {error}") from error
        count = encode(run, encoder, engine, pool, subsets)
        said.append(f"{count} shards encoded in folders {kind(encoder).folder}; {config.name}: {encoder.fingerprint}")
    return said


def _text_encoders(file: Path) -> "list[EncoderConfig]":
    from training_bridge.dit.text import EncoderConfig
    from training_bridge.settings import checked

    try:
        tree = yaml.safe_load(file.read_text())
        for name in ("common", "dit", "text"):
            tree = tree.get(name, tree) if isinstance(tree, dict) else tree
        found = [e for e in checked(list[EncoderConfig], tree) if e.kind != "bytes"]
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--text {str(file)!r}: {error}") from error
    if not found:
        raise ConfigError(f"--text {str(file)!r} names no frozen text encoder")
    return found


class FrozenText:
    """A frozen text encoder as the job wants it. What tells its fingerprint also encodes, where the engine is this process;
    actors load their own."""

    def __init__(self, config: "EncoderConfig", engine: EngineConfig) -> None:
        from training_bridge.dit.text import load

        self.config, self.name = config, config.name
        here = engine.kind == "inline"
        loaded = load(config, _device() if here else "cpu")
        self.fingerprint = loaded.fingerprint
        self.encoder = loaded if here else None

    def open(self) -> None:
        from training_bridge.dit.text import load

        self.encoder = self.encoder or load(self.config, _device())

    def encode_text(self, texts: list[str]) -> list[encoded.Floats]:
        assert self.encoder is not None, "open comes first"
        return [array.astype("float32") for array in self.encoder.encode_text(texts)]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def kind(encoder: Encoder) -> Encoded:
    """What the encodings of an encoder are called, and whose they are."""
    return Encoded(encoder.name if isinstance(encoder, TextEncoder) else LATENT, encoder.fingerprint)


def missing(run: str, encoder: Encoder, subsets: Sequence[str] = ()) -> tuple[list[Item], int]:
    """The shards that lack their sidecar, and how many shards there are. A sidecar is there when its index is."""
    base = storage.join(run, "shards")
    finished = {url.removeprefix(f"{base}/") for url in storage.walk(base, ".parquet")}
    shards = sorted(name for name in finished if "/" + index.ENCODED not in name)
    if subsets:
        shards = [name for name in shards if name.split("/")[0] in subsets]
    if not shards:
        raise ConfigError(f"{run!r} has no finished shard{' of ' + ', '.join(subsets) if subsets else ''}: make some first")
    own = kind(encoder)
    lacking = []
    for name in shards:
        subset, split, shard = name.removesuffix(".parquet").split("/", 2)
        if f"{subset}/{split}/{own.place(shard)}.parquet" not in finished:
            lacking.append({"folder": storage.join(base, subset, split), "shard": f"{shard}.tar"})
    return lacking, len(shards)


class EncodeShards:
    """Encodes a shard, reading it and writing its sidecar; the sidecar's index is the commit."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.name = f"encode:{kind(encoder).name}"

    def open(self) -> None:
        self.encoder.open()

    def close(self) -> None:
        """Nothing is open between two shards."""

    def __call__(self, item: Item) -> Item:
        began, own, folder = time.perf_counter(), kind(self.encoder), item["folder"]
        place = storage.join(folder, own.place(item["shard"]))
        shard = index.read(folder, [item["shard"]])
        if not storage.exists(f"{place}.parquet"):
            try:
                with storage.committed(f"{place}.tar") as out:
                    table = encoded.write(out, own, shard, 0, self._arrays(shard))
            except ValueError as error:  # a text that is gone, or an encoding that float16 cannot hold
                raise StageError("stage_failed", f"{folder}/{item['shard']}: {error}") from error
            if isinstance(self.encoder, TextEncoder):
                (empty,) = self.encoder.encode_text([""])
                storage.write_bytes(storage.join(folder, own.empty_place(item["shard"])), encoded.dumps(empty))
            storage.write_table(f"{place}.parquet", table)
            bad = [row["key"] for row in table.to_pylist() if not row["size"]]
            item = {**item, **({"bad": bad} if bad else {})}
        return {**item, "samples": len(shard.table), "wall_s": round(time.perf_counter() - began, 3)}

    def _arrays(self, shard: index.Index) -> Iterator[encoded.Floats | None]:
        """The encodings of a shard's samples, in its order; None for pictures that cannot be read."""
        reader = Reader({"": Source(shard)}, seed=0, cache_bytes=0)
        samples = [Sample("", row, key, 0) for row, key in enumerate(shard.table["key"].to_pylist())]
        if isinstance(self.encoder, TextEncoder):
            for first in range(0, len(samples), TEXTS):
                yield from self.encoder.encode_text([reader.text(sample) for sample in samples[first : first + TEXTS]])
        else:
            for sample in samples:
                try:
                    pixels = reader.exactly(sample).arrays[PIXELS]
                except BadSample:
                    yield None
                else:
                    yield self.encoder.encode(pixels)
