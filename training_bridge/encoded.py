"""Encodings beside the shards: sidecar tars of latents or text encodings, of the same keys in the same order.

`<bucket>/encoded-<hash>/shard-000000.tar` and its index `.parquet` belong to `<bucket>/shard-000000.tar`. The hash is of
the encoder's fingerprint (weights, normalisation, preprocessing), and the index says of which bytes its entries were
made: an entry of another encoder, or of a shard that was made anew, cannot be used. Members are `<key>.<name>.npy`,
float16, without pickles.
"""

import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, BinaryIO, Protocol, runtime_checkable

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bucketing.shard_format import Facts, TarWriter, read_index
from training_bridge.index import ENCODED, Index, check_length

LATENT = "latent"
"""The name of latents; any other is a text encoder's."""

NAME = re.compile("[a-z0-9_]{1,40}")
TAKEN = ("media", "txt", "json", "pixels", "latents")

MADE_BY, MADE_OF = b"reelset_encoder", b"reelset_encoded"
"""In a sidecar's index: the encoder's fingerprint, and a hash of the keys and bytes that were encoded."""

Floats = NDArray[np.float32]


class LatentEncoder(Protocol):
    """Turns pixels into latents. Picklable before `open`."""

    fingerprint: str

    def open(self) -> None:
        """Load weights, in the process that works."""

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """RGB (3, T, H, W) -> latents (C, T, H, W)."""


@runtime_checkable
class TextEncoder(Protocol):
    """Turns texts into encodings of their real tokens. Picklable before `open`."""

    name: str
    fingerprint: str

    def open(self) -> None:
        """Load weights, in the process that works."""

    def encode_text(self, texts: list[str]) -> list[Floats]:
        """Texts -> an array (L, D) each; the empty text too."""


@dataclass(frozen=True)
class Encoded:
    """Encodings to read: `name` is `latent` or the text encoder's, `fingerprint` the encoder's."""

    name: str
    fingerprint: str

    def __post_init__(self) -> None:
        """Raises ValueError for a name that is no plain word, or that something else of a sample has."""
        if not NAME.fullmatch(self.name) or self.name in TAKEN:
            raise ValueError(f"{self.name!r} names no encodings: small letters, digits and _, none of {', '.join(TAKEN)}")

    @property
    def folder(self) -> str:
        """Its folder's name, the same beside all shards."""
        return ENCODED + hashlib.sha256(self.fingerprint.encode()).hexdigest()[:16]

    def place(self, shard: str) -> str:
        """Where the encodings of a shard (`<bucket>/shard-000000.tar`) stand, without the extension."""
        bucket, _, name = shard.removesuffix(".tar").rpartition("/")
        return "/".join(part for part in (bucket, self.folder, name) if part)

    def made_of(self, index: Index, shard: int) -> str:
        """A hash of a shard's keys and the bytes that are encoded: its media, or its texts."""
        own = rows_of(index, shard)
        hashes = own["media_sha256" if self.name == LATENT else "txt_sha256"].to_pylist()
        lines = (f"{key}\t{sha256 or ''}" for key, sha256 in zip(own["key"].to_pylist(), hashes, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def join(self, index: Index) -> "Joined":
        """The entries of all samples. Raises ValueError where one is missing, in another order, or of something else."""
        places = [self.place(shard) for shard in index.shards]
        table = pa.concat_tables([self._part(index, number, place) for number, place in enumerate(places)])
        return Joined(index.root, self.name, tuple(f"{place}.tar" for place in places), table)

    def _part(self, index: Index, number: int, place: str) -> pa.Table:
        fs, root = fsspec.core.url_to_fs(index.root)
        try:
            table = read_index(pa.BufferReader(fs.cat_file(f"{root.rstrip('/')}/{place}.parquet")))
            check_length(table, fs.size(f"{root.rstrip('/')}/{place}.tar"))
        except FileNotFoundError as error:
            said = f"{index.shards[number]} has no {self.name} of encoder {self.fingerprint!r}"
            raise ValueError(f"{said}: {place}.parquet, or its tar, is not there") from error
        except (ValueError, pa.ArrowInvalid) as error:
            raise ValueError(f"{place}.parquet: {error}") from error
        made_by, made_of = ((table.schema.metadata or {}).get(name, b"").decode() for name in (MADE_BY, MADE_OF))
        if made_by != self.fingerprint:
            raise ValueError(f"{place}.parquet is of encoder {made_by!r}, not of {self.fingerprint!r}")
        wanted = [f"{key}.{self.name}.npy" for key in rows_of(index, number)["key"].to_pylist()]
        for at, (found, want) in enumerate(zip_longest(table["member"].to_pylist(), wanted)):
            if found != want:
                raise ValueError(f"{place}.parquet: entry {at} is {found}; the shard has {want} there")
        if made_of != self.made_of(index, number):
            raise ValueError(f"{place}.parquet is of another {index.shards[number]}, of the same keys: encode it anew")
        shard = pa.array(np.full(len(table), number, np.int32))
        return table.select(["offset", "size", "sha256"]).append_column("shard", shard)

    def empty(self, index: Index) -> Floats:
        """The empty caption's encoding (L, D). Raises FileNotFoundError where nothing was encoded."""
        fs, root = fsspec.core.url_to_fs(index.root)
        return loads(fs.cat_file(f"{root.rstrip('/')}/{self.empty_place(index.shards[0])}"))

    def empty_place(self, shard: str) -> str:
        """Where the empty caption's encoding stands, beside those of a shard."""
        return f"{self.place(shard).rpartition('/')[0]}/empty.{self.name}.npy"


@dataclass(frozen=True)
class Joined:
    """The entries of one dataset's samples, by their rows."""

    root: str
    name: str
    shards: tuple[str, ...]
    table: pa.Table

    def place(self, row: int) -> tuple[str, tuple[int, int, str]]:
        """(tar, (offset, size, sha256)) of a sample's entry."""
        shard, *rest = (self.table[name][row].as_py() for name in ("shard", "offset", "size", "sha256"))
        return self.shards[shard], (rest[0], rest[1], rest[2])


def only(root: str, name: str) -> str:
    """The fingerprint of the encoder whose encodings of that name lie beside the shards of a folder or URL.

    Raises ValueError where there is none, or more than one.
    """
    fs, path = fsspec.core.url_to_fs(root)
    found: set[str] = set()
    for place in fs.find(path):
        folder, _, file = place.rpartition("/")
        if folder.rpartition("/")[2].startswith(ENCODED) and file.endswith(".parquet") and not file.startswith("_"):
            table = read_index(pa.BufferReader(fs.cat_file(place)))
            if table["member"][0].as_py().endswith(f".{name}.npy"):
                found.add((table.schema.metadata or {}).get(MADE_BY, b"").decode())
    if len(found) != 1:
        said = f"encoders {', '.join(sorted(found))}: name one" if found else "no encoder: `reelset encode` makes them"
        raise ValueError(f"{root!r} has {name} encodings of {said}")
    return found.pop()


def rows_of(index: Index, shard: int) -> pa.Table:
    """The rows of one shard: they stand side by side."""
    first, end = np.searchsorted(index.table["shard"].to_numpy(), [shard, shard + 1])
    return index.table.slice(first, end - first)


def write(out: BinaryIO, encoded: Encoded, index: Index, shard: int, arrays: Iterable[Floats | None]) -> pa.Table:
    """Write the tar of a shard's encodings, one a sample in the shard's order; returns its index, to be written last.

    None is a sample that cannot be read: its entry is empty, and whoever trains takes a substitute.
    """
    tar = TarWriter(out)
    for row, array in zip(rows_of(index, shard).to_pylist(), arrays, strict=True):
        facts: dict[str, Any] = {name: row[name] for name in ("frames", "fps", "width", "height")}
        tar.add(row["key"], f"{encoded.name}.npy", b"" if array is None else dumps(array), Facts(**facts))
    tar.close()
    table = tar.index()
    made = {MADE_BY: encoded.fingerprint.encode(), MADE_OF: encoded.made_of(index, shard).encode()}
    return table.replace_schema_metadata({**table.schema.metadata, **made})


def dumps(array: Floats) -> bytes:
    """An `.npy` of float16. Raises ValueError where a number is not finite there."""
    with np.errstate(over="ignore"):
        small = array.astype(np.float16)
    if not np.isfinite(small).all():
        raise ValueError(f"an encoding has numbers that float16 cannot hold: {np.nanmin(array):g} ... {np.nanmax(array):g}")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(small), allow_pickle=False)
    return buffer.getvalue()


def loads(data: bytes) -> Floats:
    """The float32 array of an `.npy`. Raises ValueError for a pickle."""
    array: Floats = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False).astype(np.float32)
    return array
