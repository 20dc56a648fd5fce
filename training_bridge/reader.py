"""From a sample of the plan to its pixels and text: one range read, checked, decoded; a bad sample has a substitute."""

import contextlib
import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import fsspec
import numpy as np
from numpy.typing import NDArray

from training_bridge.draws import generator
from training_bridge.encoded import LATENT, Encoded, loads
from training_bridge.index import Index, Shape
from training_bridge.media import MediaError, decode_image, decode_video
from training_bridge.plan import Sample
from training_bridge.view import View, Window

OPEN_FILES = 64
"""Local tars that a process keeps open."""

ATTEMPTS = 8
"""Substitutes that are tried for one bad sample; all bad is a fault of the data, not of samples."""

PIXELS, LATENTS = "pixels", "latents"
"""Arrays that all samples of a shape have in one shape; any other is a text's encoding, as long as the text."""


class BadSample(ValueError):
    """A sample whose bytes are missing, or not those that the index speaks of."""


@dataclass(frozen=True)
class Source:
    """A dataset: a folder of shards, what is shown of its samples, and what is read of them instead of pixels and text."""

    index: Index
    view: View | None = None
    encoded: tuple[Encoded, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for a view of latents: they are of whole samples."""
        if self.view is not None and any(part.name == LATENT for part in self.encoded):
            raise ValueError(f"{self.index.root!r}: a view shows pixels; encoded latents are of whole samples")

    @cached_property
    def shown(self) -> Index:
        """What to plan with: the index by the shapes that come out. Its fingerprint is of the encodings, too."""
        shown = self.index if self.view is None else self.index.viewed(self.view)
        if not self.encoded:
            return shown
        seen = hashlib.sha256(f"{shown.fingerprint}\0{self.encoded}".encode()).hexdigest()
        return replace(shown, fingerprint=seen[:32])


@dataclass(frozen=True)
class Example:
    """One sample as it is trained on.

    `arrays` has `pixels`, uint8 RGB of full range (3, T, H, W), or `latents`, float32 (C, T, H, W), and under their
    encoders' names the text's encodings, float32 (L, D).
    """

    dataset: str
    key: str
    visit: int
    arrays: dict[str, NDArray[Any]]
    text: str
    window: Window | None = None
    """What of it is shown; None where latents are read."""
    bad: tuple[tuple[str, str], ...] = ()
    """Keys that this one stands in for, each with what is wrong with it."""


class Reader:
    """Reads samples. Picklable; every process opens its own files."""

    def __init__(self, sources: Mapping[str, Source], seed: int, *, cache_bytes: int = 2**28) -> None:
        """Up to `cache_bytes` of the members last read are kept, in each process.

        Raises ValueError where encodings are not those of the shards.
        """
        self.sources, self.seed = dict(sources), seed
        self.joined = {name: [part.join(source.index) for part in source.encoded] for name, source in self.sources.items()}
        self.cache = Cache(cache_bytes)
        self.files: dict[str, Files] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": Cache(self.cache.most), "files": {}}

    def read(self, sample: Sample, into: NDArray[np.uint8] | None = None) -> Example:
        """A sample, or its substitute: always the same one, of the same dataset and shape. Pixels go `into` this, if given.

        Raises BadSample where the substitutes are bad too; OSError where a store does not answer (no sample is at fault).
        """
        bad: list[tuple[str, str]] = []
        for attempt in range(ATTEMPTS):
            stand_in = self._substitute(sample, attempt) if attempt else sample
            if any(stand_in.key == key for key, _ in bad):
                continue
            try:
                return replace(self.exactly(stand_in, sample, into), bad=tuple(bad))
            except BadSample as error:
                bad.append((stand_in.key, str(error)))
        said = "; ".join(f"{key}: {why}" for key, why in bad)
        raise BadSample(f"{sample.dataset}: a sample and all substitutes that were tried for it are bad: {said}")

    def shape(self, sample: Sample) -> Shape:
        """The stored shape of a sample."""
        table = self.sources[sample.dataset].index.table
        return Shape(*(int(table[side][sample.row].as_py()) for side in ("frames", "height", "width")))

    def decodes(self, dataset: str) -> bool:
        """Whether a dataset's samples are pixels: not where latents are read."""
        return all(part.name != LATENT for part in self.joined[dataset])

    def _substitute(self, sample: Sample, attempt: int) -> Sample:
        source, stored = self.sources[sample.dataset], self.shape(sample)
        shown = stored if source.view is None else source.view.shape_of(stored)
        assert shown is not None, f"{sample} has no view"
        rows = source.shown.of_shape[shown]
        pick = generator(self.seed, sample.identity, sample.visit, f"substitute {attempt}").integers(len(rows))
        row = int(rows[pick])
        return Sample(sample.dataset, row, source.index.table["key"][row].as_py(), sample.visit)

    def exactly(self, sample: Sample, planned: Sample | None = None, into: NDArray[np.uint8] | None = None) -> Example:
        """This sample and no other, with the view that is drawn for the planned one. Raises BadSample."""
        members = self._members(sample)
        arrays: dict[str, NDArray[Any]] = {}
        for part in self.joined[sample.dataset]:
            if not members[part.name]:
                raise BadSample(f"it could not be read when its {part.name} was to be encoded")
            arrays[part.name] = loads(members[part.name])
        if self.decodes(sample.dataset):
            window = self._window(sample, planned or sample)
            arrays[PIXELS] = self._pixels(sample, window, members["media"], into)
        else:
            window, arrays[LATENTS] = None, arrays.pop(LATENT)
        return Example(sample.dataset, sample.key, sample.visit, arrays, members.get("txt", b"").decode(), window)

    def text(self, sample: Sample) -> str:
        """Only a sample's text; "" where it has none. Raises BadSample."""
        return self._own(sample, ("txt",)).get("txt", b"").decode()

    def _window(self, sample: Sample, planned: Sample) -> Window:
        view, stored = self.sources[sample.dataset].view, self.shape(sample)
        if view is None:
            return Window.whole(stored)
        return view.draw(stored, generator(self.seed, planned.identity, planned.visit, "view"))

    def _pixels(self, sample: Sample, window: Window, data: bytes, into: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        source, stored = self.sources[sample.dataset], self.shape(sample)
        decode = decode_image if source.index.table["image"][sample.row].as_py() else decode_video
        try:
            return decode(data, stored, window, into)
        except MediaError as error:
            raise BadSample(str(error)) from error

    def _members(self, sample: Sample) -> dict[str, bytes]:
        """The bytes of a sample's members and encodings, those that are needed and there."""
        which, joined = (sample.dataset, sample.row), self.joined[sample.dataset]
        if (held := self.cache.get(which)) is None:
            held = self._own(sample, ("media", "txt") if self.decodes(sample.dataset) else ("txt",))
            for part in joined:
                shard, place = part.place(sample.row)
                held |= self._files(part.root).members(shard, {part.name: place})
            self.cache.put(which, held)
        return held

    def _own(self, sample: Sample, names: Sequence[str]) -> dict[str, bytes]:
        """Those of a sample's members that it has."""
        index, places = self.sources[sample.dataset].index, {}
        for name in names:
            place = tuple(index.table[f"{name}_{what}"][sample.row].as_py() for what in ("offset", "size", "sha256"))
            if place[0] is not None:
                places[name] = place
        return self._files(index.root).members(index.shards[index.table["shard"][sample.row].as_py()], places)

    def _files(self, root: str) -> "Files":
        if root not in self.files:
            self.files[root] = Files(root)
        return self.files[root]


class Cache:
    """The members last read, up to a number of bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0
        self.held: OrderedDict[tuple[str, int], dict[str, bytes]] = OrderedDict()

    def get(self, which: tuple[str, int]) -> dict[str, bytes] | None:
        """What is held of a sample, which is thereby the last one to go."""
        if (found := self.held.get(which)) is not None:
            self.held.move_to_end(which)
        return found

    def put(self, which: tuple[str, int], members: dict[str, bytes]) -> None:
        """Hold a sample's members, and let go of those not asked for the longest."""
        self.held[which] = members
        self.size += _size(members)
        while self.size > self.most:
            self.size -= _size(self.held.popitem(last=False)[1])


def _size(members: Mapping[str, bytes]) -> int:
    return sum(map(len, members.values()))


@dataclass
class Files:
    """The tars below a folder or URL, opened by this process as they are needed."""

    root: str
    opened: OrderedDict[str, int] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self.fs, self.path = fsspec.core.url_to_fs(self.root)
        self.local = "file" in (self.fs.protocol if isinstance(self.fs.protocol, tuple) else (self.fs.protocol,))

    def members(self, shard: str, places: Mapping[str, tuple[int, int, str]]) -> dict[str, bytes]:
        """Members by name, each at (offset, size, sha256), with one read from the first to the last.

        Raises BadSample where the file is gone or too short, or a member has other bytes.
        """
        if not places:
            return {}
        first, end = min(o for o, _, _ in places.values()), max(o + s for o, s, _ in places.values())
        try:
            data = memoryview(self._range(shard, first, end - first))
        except FileNotFoundError as error:
            raise BadSample(f"{shard} is gone") from error
        found = {}
        for name, (offset, size, sha256) in places.items():
            found[name] = bytes(data[offset - first : offset - first + size])
            if hashlib.sha256(found[name]).hexdigest() != sha256:
                raise BadSample(f"{shard} holds other bytes at {offset} than its index says")
        return found

    def _range(self, shard: str, offset: int, size: int) -> bytes:
        path = f"{self.path.rstrip('/')}/{shard}"
        if not self.local:
            return bytes(self.fs.cat_file(path, offset, offset + size))
        if (file := self.opened.get(shard)) is None:
            file = self.opened[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self.opened) > OPEN_FILES:
                os.close(self.opened.popitem(last=False)[1])
        self.opened.move_to_end(shard)
        return os.pread(file, size, offset)

    def __del__(self) -> None:
        for file in self.opened.values():
            with contextlib.suppress(OSError):
                os.close(file)
