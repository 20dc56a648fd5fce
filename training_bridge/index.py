"""What a folder of shards holds: one entry a sample, from the shards' own indexes, without opening a tar."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bucketing.shard_format import CAPTION, IMAGE, STORY, VIDEO, read_index

if TYPE_CHECKING:
    from training_bridge.view import View

BLOCK = 512
"""Bytes of a tar's block; two empty ones end it."""


@dataclass(frozen=True, order=True)
class Shape:
    """A sample's pixels: `frames` is 1 for images."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Index:
    """The samples of one dataset in the order of shards and plan.

    `table` has a row a sample: `key`, `shard` (a number into `shards`), and for each member `<member>_offset`,
    `<member>_size` and `<member>_sha256`, null where a sample lacks it; `media` is mp4 or webp. `of_shape` are the rows
    of each shape.
    """

    root: str
    shards: tuple[str, ...]
    table: pa.Table
    of_shape: dict[Shape, NDArray[np.int64]]
    fingerprint: str
    """Of the names and contents of all indexes: the same samples in the same order have the same."""

    def viewed(self, view: "View") -> "Index":
        """The same rows by the shapes that a view makes of them, without those that it cannot show."""
        groups: dict[Shape, list[NDArray[np.int64]]] = {}
        for stored, rows in self.of_shape.items():
            if (shape := view.shape_of(stored)) is not None:
                groups.setdefault(shape, []).append(rows)
        of_shape = {shape: np.sort(np.concatenate(parts)) for shape, parts in sorted(groups.items())}
        seen = hashlib.sha256(f"{self.fingerprint}\0{view}".encode()).hexdigest()
        return replace(self, of_shape=of_shape, fingerprint=seen[:32])


ENCODED = "encoded-"
"""How the folders of sidecars begin, beside the shards they belong to."""

MEMBERS = {"media": (VIDEO, IMAGE), "json": (STORY,), "txt": (CAPTION,)}


def read(root: str, only: Sequence[str] | None = None) -> Index:
    """The index of all shards below a folder or URL, or of `only` these (`<bucket>/shard-000000.tar`).

    Raises ValueError where there is none, one is of another format version, a key occurs twice, or a tar is not as long
    as its index says.
    """
    fs, path = fsspec.core.url_to_fs(root)
    base = path.rstrip("/") + "/"
    found = fs.find(path) if only is None else [base + shard.removesuffix(".tar") + ".parquet" for shard in only]
    names = sorted(name for name in found if _is_index(name.removeprefix(base)))
    if not names:
        raise ValueError(f"{root!r} holds no shard that is finished: no index (.parquet) lies below it")
    digest, parts, shards = hashlib.sha256(), [], []
    for number, name in enumerate(names):
        shard = name.removesuffix(".parquet") + ".tar"
        own = name.removeprefix(base)
        try:
            data = fs.cat_file(name)
            table = read_index(pa.BufferReader(data))
            check_length(table, fs.size(shard))
        except (ValueError, FileNotFoundError, pa.ArrowInvalid) as error:
            raise ValueError(f"{own}: {error}") from error
        digest.update(f"{own}\0".encode() + hashlib.sha256(data).digest())
        shards.append(own.removesuffix(".parquet") + ".tar")
        parts.append(_samples(table, number))
    whole = pa.concat_tables(parts)
    twice = len(whole) - pc.count_distinct(whole["key"]).as_py()
    if twice:
        raise ValueError(f"{root!r}: {twice} keys occur twice; name the folder of one split of one subset")
    return Index(root, tuple(shards), whole, _shapes(whole), digest.hexdigest()[:32])


def _is_index(name: str) -> bool:
    """Of a shard: not of a sidecar, nor of something that is still written."""
    *folders, file = name.split("/")
    return file.endswith(".parquet") and not file.startswith("_") and not any(part.startswith(ENCODED) for part in folders)


def check_length(table: pa.Table, size: int) -> None:
    """Raises ValueError where a tar cannot be the one that an index speaks of."""
    end = max((o + s for o, s in zip(table["offset"].to_pylist(), table["size"].to_pylist(), strict=True)), default=0)
    if size != -(-end // BLOCK) * BLOCK + 2 * BLOCK:
        raise ValueError(f"its tar has {size} bytes, and its last member ends at byte {end}: they do not belong together")


def _samples(table: pa.Table, number: int) -> pa.Table:
    """A row a sample, in the order of their first members."""
    keys, suffix = table["key"], pc.list_element(pc.split_pattern(table["member"], ".", max_splits=1, reverse=True), 1)
    columns: dict[str, Any] = {}
    order = pc.unique(keys.combine_chunks())
    for name, suffixes in MEMBERS.items():
        own = table.filter(pc.is_in(suffix, pa.array(suffixes)))
        place = pc.index_in(order, own["key"].combine_chunks())
        for what in ("offset", "size", "sha256"):
            columns[f"{name}_{what}"] = own[what].combine_chunks().take(place)
        if name == "media":
            if pc.any(pc.is_null(place)).as_py():
                raise ValueError("a sample has neither mp4 nor webp")
            for what in ("frames", "fps", "width", "height"):
                columns[what] = own[what].combine_chunks().take(place)
            columns["image"] = pc.ends_with(own["member"].combine_chunks().take(place), f".{IMAGE}")
    return pa.table({"key": order, "shard": pa.array(np.full(len(order), number, np.int32)), **columns})


def _shapes(table: pa.Table) -> dict[Shape, NDArray[np.int64]]:
    sides = [table[name].to_numpy().astype(np.int64) for name in ("frames", "height", "width")]
    found, which = np.unique(np.stack(sides, axis=1), axis=0, return_inverse=True)
    rows = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which, minlength=len(found)))
    return {Shape(*map(int, shape)): part for shape, part in zip(found, np.split(rows, ends[:-1]), strict=True)}
