"""Blocks of clips' vectors in which neighbours are looked up: what near-duplicates, concepts and search stand on.

A block holds the vectors of some consecutive units, of clips that have one, in the order of their tables. FAISS looks through
all of a small block; in a larger one through the nearest cells of an inverted file, whose centres are vectors of the block
drawn by a hash of the clip's id: nothing is trained. No step ever holds more than two blocks.
"""

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt

from curation import storage
from curation.layout import Vector

if TYPE_CHECKING:
    import faiss

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SHORTEST = 1e-6
"""A shorter vector has no direction."""
SEARCH_PROBES = 128
"""Cells looked through for one vector that may be far from all: more than for near-duplicates, as only one is asked."""
FACTS = pa.schema([("clip_id", pa.string()), ("film", pa.int64()), ("seconds", pa.float64())])
"""What is kept of a block's clips beside the vectors. `film`: a hash of the source, the same for exact copies of one file."""


class IndexConfig(BaseModel):
    """How vectors are laid out to be looked up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    block_clips: PositiveInt = 250_000
    """Clips of a block, to within a unit's. Near-duplicate search holds two blocks: 1.3 GB of `layout`."""
    exhaustive: PositiveInt = 50_000
    """Clips up to which all of a block is looked through."""
    probes: PositiveInt = 16
    """Cells of a larger block that are looked through."""


@dataclass(frozen=True)
class Block:
    """Clips with their vectors. All arrays have one row a clip."""

    ids: pa.Array
    film: Ints
    seconds: Floats
    """0 for images."""
    index: "faiss.Index"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def vectors(self) -> Vector:
        """(n, width), of unit length."""
        found: Vector = self.index.reconstruct_n(0, len(self))
        return found

    def nearest(
        self, vector: Vector, count: int, without: Collection[str] = (), among: pa.Array | None = None
    ) -> list[tuple[float, str]]:
        """(cosine, clip_id) of up to `count` clips that are nearest to a unit vector, of those `among` and not `without`."""
        import faiss

        own: dict[str, Any] = {}
        if among is not None:
            rows = np.flatnonzero(pc.is_in(self.ids, value_set=among).to_numpy(zero_copy_only=False))
            own = {"sel": faiss.IDSelectorBatch(rows)}
        asked: Any = faiss.SearchParameters(**own)
        if isinstance(self.index, faiss.IndexIVF):
            asked = faiss.SearchParametersIVF(nprobe=min(SEARCH_PROBES, self.index.nlist), **own)  # type: ignore[call-arg]
        cosines, found = self.index.search(vector[None], min(count + len(without), len(self)), params=asked)
        pairs = [
            (min(c, 1.0), self.ids[n].as_py()) for c, n in zip(cosines[0].tolist(), found[0].tolist(), strict=True) if n >= 0
        ]
        return [(cosine, clip_id) for cosine, clip_id in pairs if clip_id not in without][:count]


def cells(count: int) -> int:
    """Cells of the inverted file over so many clips (FAISS advises 4 to 16 times the square root).

    One thread, 100 000 clips of 320 numbers, 16 cells searched, copies at 0.91: 4 times finds 0.986 of them at 0.14 ms each, 8
    times 0.983 at 0.09 ms, 16 times 0.986 at 0.08 ms, and takes twice as long to fill.
    """
    return 8 * math.isqrt(count)


def how(count: int, config: IndexConfig) -> str:
    """How a block of so many clips is looked through, for people."""
    if count <= config.exhaustive:
        return "every pair looked at"
    return f"in {config.probes} of {cells(count)} cells a block"


def build(ids: pa.Array, vectors: Vector, config: IndexConfig) -> "faiss.Index":
    """The index over unit vectors (n, width); the same rows make the same bytes."""
    import faiss

    count, width = vectors.shape
    flat = faiss.IndexFlatIP(width)
    if count <= config.exhaustive:
        flat.add(vectors)
        return flat
    drawn = sorted(range(count), key=lambda n: hashlib.md5(ids[n].as_py().encode()).digest())[: cells(count)]
    flat.add(vectors[drawn])
    index = faiss.IndexIVFFlat(flat, width, cells(count), faiss.METRIC_INNER_PRODUCT)  # keeps `flat` alive
    index.is_trained, index.nprobe = True, min(config.probes, cells(count))
    index.add(vectors)
    index.make_direct_map()
    return index


def read(folder: str, units: Sequence[str]) -> tuple[pa.Array, Vector, int]:
    """Ids and unit vectors (n, width) of these units' clips in `embeddings/<model>/`, and how many have none that is usable.

    A vector that is null, zero or not finite is not usable.
    """
    ids: list[pa.Array] = [pa.array([], pa.string())]
    found: list[Vector] = []
    unusable, width = 0, 0
    for unit in units:
        with storage.open_read(storage.join(folder, f"{unit}.parquet")) as file:
            part = pq.read_table(file)
        width = part.schema.field("vector").type.list_size
        known = part.filter(part["vector"].is_valid())
        given = known["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        length = np.sqrt(np.einsum("nd,nd->n", given, given, dtype=np.float64))
        usable = np.isfinite(length) & (length > SHORTEST)
        found.append((given[usable] / length[usable, None]).astype(np.float32))
        ids.append(known["clip_id"].combine_chunks().filter(pa.array(usable)))
        unusable += part.num_rows - int(np.count_nonzero(usable))
    return pa.concat_arrays(ids), np.concatenate(found) if found else np.zeros((0, width), np.float32), unusable


def save(place: str, index: "faiss.Index", facts: pa.Table) -> None:
    """Commit a block as `<place>.faiss` and `<place>.parquet`, which says that it is whole."""
    import faiss

    with storage.committed(f"{place}.faiss") as out:
        faiss.write_index(index, faiss.PyCallbackIOWriter(out.write))  # type: ignore[attr-defined]
    storage.write_table(f"{place}.parquet", facts)


def load(place: str, mapped: bool = False) -> Block:
    """A saved block; `mapped`, of one on this machine, only the pages that are needed are read, and each look is slower."""
    import faiss

    with storage.open_read(f"{place}.parquet") as file:
        facts = pq.read_table(file).combine_chunks()
    if storage.is_remote(place):
        index = faiss.deserialize_index(np.frombuffer(storage.read_bytes(f"{place}.faiss"), np.uint8))
    else:
        index = faiss.read_index(str(storage.local_path(f"{place}.faiss")), faiss.IO_FLAG_MMAP if mapped else 0)
    ids = facts["clip_id"].combine_chunks()
    return Block(ids, facts["film"].to_numpy(), facts["seconds"].to_numpy(), index)
