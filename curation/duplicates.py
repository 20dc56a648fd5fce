"""Near-duplicates: clips of different sources whose embeddings are nearly one, and what is kept of each group.

Two clips are a pair where the cosine of their vectors reaches the model's threshold, the shorter is at least `min_ratio` of
the longer, and they are of two sources: the clips of one source show one place from one camera often enough, and are no
copies. Pairs make groups (connected components, single linkage); of each one clip is kept, the best by `BEST`.

Candidates come from FAISS: exhaustively up to `EXHAUSTIVE` clips, beyond by an inverted file, whose cells are vectors drawn by
hash: nothing is trained, so that the same clips give the same cells on any machine. Cosines that decide are computed again,
one pair at a time in double precision: a sum's order differs between machines.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from curation.embedding import EmbeddingConfig
from curation.errors import ConfigError

if TYPE_CHECKING:
    import faiss

Vectors = NDArray[np.float32]

THRESHOLDS = {"layout": 0.9, "torchscript": 0.99}
"""Least cosine by kind of model. 0.99: Movie Gen's, for SSCD. 0.9: labelled copies (re-encoded, resized, letterboxed, marked,
mirrored, shortened) have 0.916 or more, other films 0.61 or less."""
EXHAUSTIVE = 50_000
"""Clips up to which every pair is looked at."""
PROBES = 16
"""Cells of the inverted file that a clip is looked for in."""
QUERIES = 4096
SLACK = 1e-4
"""FAISS is asked for so much less than the threshold: its sums are single precision."""
BEST = "width * height DESC, quality_sharpness DESC NULLS LAST, source_bytes DESC NULLS LAST, clip_id"
"""The order in which one of a group is kept: resolution, quality, bytes, id. SQL, valid in DuckDB and Spark."""


class DuplicateConfig(BaseModel):
    """How near-duplicates are found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    model: str | None = None
    """The embedding that tells copies, by name; None: the first of kind torchscript, else the first of kind layout."""
    threshold: float | None = Field(None, gt=0, le=1)
    """Least cosine of a pair; None: what is known of the model's kind (`THRESHOLDS`)."""
    min_ratio: float = Field(0.5, ge=0, le=1)
    """Least share that the shorter clip is of the longer one, by duration. Images have none and make pairs among themselves."""


def chosen(config: DuplicateConfig, embeddings: Sequence[EmbeddingConfig]) -> tuple[EmbeddingConfig, float] | None:
    """The embedding and the threshold that tell copies; None where the search is off or no embedding would do.

    Raises ConfigError where the config names an embedding that is not there, or one whose kind has no known threshold.
    """
    if not config.enabled:
        return None
    by_name = {e.name: e for e in embeddings}
    if config.model is not None and config.model not in by_name:
        raise ConfigError(f"duplicates.model {config.model!r} is none of embeddings: {', '.join(by_name) or 'there are none'}")
    fit = [e for kind in ("torchscript", "layout") for e in embeddings if e.kind == kind]
    model = by_name[config.model] if config.model is not None else next(iter(fit), None)
    if model is None:
        return None
    threshold = config.threshold if config.threshold is not None else THRESHOLDS.get(model.kind)
    if threshold is None:
        raise ConfigError(f"duplicates.threshold: nothing is known of {model.kind} ({model.name!r}); set it")
    return model, threshold


@dataclass(frozen=True)
class Clips:
    """The clips that are compared, in order of `BEST`: what was decided before first, in any order.

    `vectors` (n, width) of unit length; `source` (n,) numbers of sources; `seconds` (n,), 0 for images; `before` (n,) the
    number of the clip that is kept of a clip's group as decided earlier (its own, where it is kept), -1 for a new clip.
    """

    ids: Sequence[str]
    vectors: Vectors
    source: NDArray[np.int64]
    seconds: NDArray[np.float64]
    before: NDArray[np.int64]

    @property
    def how(self) -> str:
        """How their pairs are looked for."""
        count = len(self.ids)
        return "every pair looked at" if count <= EXHAUSTIVE else f"in {PROBES} of {cells(count)} cells"


def usable(vectors: Vectors) -> NDArray[np.bool_]:
    """Which rows are directions: finite, and not zero. The others are nobody's duplicate."""
    norms = np.linalg.norm(vectors, axis=1)
    good: NDArray[np.bool_] = np.isfinite(norms) & (norms > 0.5)
    return good


def groups(clips: Clips, threshold: float, min_ratio: float) -> dict[int, tuple[int, float]]:
    """New clip -> the clip that is kept of its group, and the largest cosine to any clip of it.

    A clip that was decided before stays what it was: a new one that is near it is its duplicate, however good.
    """
    new = clips.before < 0
    best: dict[int, float] = {}
    parent = np.arange(len(clips.ids))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = n = parent[parent[n]]
        return n

    old: dict[int, tuple[float, int]] = {}
    for a, b, cosine in pairs(clips, threshold, min_ratio):
        for one, other in ((a, b), (b, a)):
            if not new[one]:
                continue
            best[one] = max(best.get(one, -1.0), cosine)
            if not new[other]:
                old[one] = max(old.get(one, (-1.0, -1)), (cosine, -int(clips.before[other])))
        if new[a] and new[b]:
            low, high = sorted((root(a), root(b)))
            parent[high] = low  # the lower number is the better clip
    kept_before: dict[int, tuple[float, int]] = {}
    for clip, found in old.items():
        kept_before[root(clip)] = max(kept_before.get(root(clip), (-1.0, -1)), found)
    result = {}
    for clip, cosine in best.items():
        top = root(clip)
        kept = -kept_before[top][1] if top in kept_before else top
        if kept != clip:
            result[clip] = (kept, cosine)
    return result


def pairs(clips: Clips, threshold: float, min_ratio: float) -> Iterable[tuple[int, int, float]]:
    """(a, b, cosine) of every pair with a new clip in it, a < b, each once."""
    index = _index(clips)
    new = np.flatnonzero(clips.before < 0)
    for start in range(0, len(new), QUERIES):
        asked = new[start : start + QUERIES]
        limits, _, found = index.range_search(clips.vectors[asked], threshold - SLACK)
        starts = limits.astype(np.int64)
        a = np.repeat(asked, starts[1:] - starts[:-1])
        b = found.astype(np.int64)
        once = (a < b) | ((a > b) & (clips.before[b] >= 0))  # the other of two new clips asks too
        a, b = a[once], b[once]
        apart = clips.source[a] != clips.source[b]
        shorter, longer = np.minimum(clips.seconds[a], clips.seconds[b]), np.maximum(clips.seconds[a], clips.seconds[b])
        apart &= shorter >= min_ratio * longer
        a, b = a[apart], b[apart]
        cosine = np.einsum("nd,nd->n", clips.vectors[a].astype(np.float64), clips.vectors[b].astype(np.float64))
        near = cosine >= threshold
        yield from zip(a[near].tolist(), b[near].tolist(), np.minimum(cosine[near], 1.0).tolist(), strict=True)


def _index(clips: Clips) -> "faiss.Index":
    import faiss

    count, width = clips.vectors.shape
    flat = faiss.IndexFlatIP(width)
    if count <= EXHAUSTIVE:
        flat.add(clips.vectors)
        return flat
    drawn = sorted(range(count), key=lambda n: hashlib.md5(clips.ids[n].encode()).digest())[: cells(count)]
    flat.add(clips.vectors[drawn])
    index = faiss.IndexIVFFlat(flat, width, cells(count), faiss.METRIC_INNER_PRODUCT)  # keeps `flat` alive
    index.is_trained, index.nprobe = True, PROBES
    index.add(clips.vectors)
    return index


def cells(count: int) -> int:
    """Cells of the inverted file over so many clips (FAISS's own advice: 4 times the square root)."""
    return 4 * math.isqrt(count)


def table(clips: Clips, found: dict[int, tuple[int, float]], model: str, schema: pa.Schema) -> pa.Table:
    """Rows of `duplicates/`, sorted by clip."""
    rows: list[dict[str, Any]] = [
        {"clip_id": clips.ids[n], "duplicate_of": clips.ids[kept], "similarity": cosine, "model": model}
        for n, (kept, cosine) in found.items()
    ]
    return pa.Table.from_pylist(sorted(rows, key=lambda row: row["clip_id"]), schema=schema)
