"""Near-duplicates: clips of different sources whose embeddings are nearly one, and what is kept of each group.

Two clips are a pair where the cosine of their vectors reaches the model's threshold, the shorter is at least `min_ratio` of
the longer, and they are of two sources: the clips of one source show one place from one camera often enough, and are no
copies. Pairs make groups (connected components, single linkage); of each one clip is kept, the best by `BEST`.

Of all pairs only a spanning forest is written, the nearest pairs first: a group of n copies has n - 1 rows instead of n² / 2,
the groups at any higher threshold stand in the same rows, and each clip's nearest pair is one of them.

Candidates come from FAISS (`curation.vectors`); cosines that decide are computed again, one pair at a time in double
precision: a sum's order differs between machines.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from curation.embedding import EmbeddingConfig
from curation.errors import ConfigError
from curation.vectors import Block, Floats, Ints

THRESHOLDS = {"layout": 0.91, "torchscript": 0.99}
"""Least cosine by kind of model. 0.99: Movie Gen's, for SSCD. 0.91: labelled copies (re-encoded, resized, letterboxed, marked,
mirrored, shortened) have 0.916 or more, other films 0.61 or less; two drawn films of one scenery had up to 0.905."""
SLACK = 1e-4
"""FAISS is asked for so much less than the threshold: its sums are single precision."""
QUERIES = (16, 1024)
"""Fewest and most clips that are looked for at once."""
ANSWERS = 2_000_000
"""Neighbours held at once. Where everything is a copy of everything a clip has as many as a block has clips."""
OF_SOURCE, OF_CLIP = (
    ("bytes", "decode_errors"),
    ("width", "height", "border_left_px", "border_right_px", "border_top_px", "border_bottom_px", "quality_sharpness"),
)
BEST = """coalesce(decode_errors, 0) > 0,
    (width - coalesce(border_left_px, 0) - coalesce(border_right_px, 0))
    * (height - coalesce(border_top_px, 0) - coalesce(border_bottom_px, 0)) DESC,
    quality_sharpness DESC NULLS LAST, bytes DESC NULLS LAST, clip_id"""
"""The order in which one of a group is kept: whole files first, then resolution (without bars), quality, bytes of the source,
id. SQL over the columns of `OF_SOURCE` and `OF_CLIP`, valid in DuckDB and Spark."""
PAIRS = pa.schema([("clip_id", pa.string()), ("other_id", pa.string()), ("similarity", pa.float64())])


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


class Pairs(NamedTuple):
    """Pairs of clips by number, a < b, and their cosines; one row a pair."""

    a: Ints
    b: Ints
    cosine: Floats


def pairs(one: Block, other: Block | None, threshold: float, min_ratio: float) -> pa.Table:
    """The spanning forest of the pairs between two blocks, or within one where `other` is None: rows of `PAIRS`, sorted."""
    asked = one if other is None else other
    before = 0 if other is None else len(one)
    film, seconds = (
        getattr(one, name) if other is None else np.concatenate([getattr(one, name), getattr(other, name)])
        for name in ("film", "seconds")
    )
    inside, queries = one.vectors, asked.vectors
    nearest = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    start, step = 0, QUERIES[0]
    while start < len(asked):
        limits, _, found = one.index.range_search(queries[start : start + step], threshold - SLACK)
        a = found.astype(np.int64)
        b = np.repeat(
            np.arange(start, start + len(limits) - 1) + before, limits[1:].astype(np.int64) - limits[:-1].astype(np.int64)
        )
        shorter, longer = np.minimum(seconds[a], seconds[b]), np.maximum(seconds[a], seconds[b])
        apart = (film[a] != film[b]) & (shorter >= min_ratio * longer)
        a, b = a[apart], b[apart]
        cosine = np.minimum(np.einsum("nd,nd->n", inside[a], queries[b - before], dtype=np.float64), 1.0)
        near = cosine >= threshold
        if near.any():
            more = (np.minimum(a, b)[near], np.maximum(a, b)[near], cosine[near])
            nearest = forest(Pairs(*map(np.concatenate, zip(nearest, more, strict=True))), len(film))
        start += step
        step = int(np.clip(step * ANSWERS / max(1, len(found)), *QUERIES))
    ids = one.ids if other is None else pa.concat_arrays([one.ids, other.ids])
    table = pa.table([ids.take(pa.array(nearest.a)), ids.take(pa.array(nearest.b)), pa.array(nearest.cosine)], schema=PAIRS)
    return table.sort_by([("clip_id", "ascending"), ("other_id", "ascending")])


def forest(found: Pairs, count: int) -> Pairs:
    """The pairs that hold the groups of `count` clips together at any threshold: a maximum spanning forest.

    A pair may be given twice, as two clips may find each other.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import minimum_spanning_tree

    _, once = np.unique(found.a * count + found.b, return_index=True)
    a, b, cosine = (column[once] for column in found)
    order = np.argsort(-cosine, kind="stable")
    place = np.empty(len(order))
    place[order] = np.arange(1, len(order) + 1)  # places are unique, so the forest is, whatever the order of equal cosines
    tree = minimum_spanning_tree(coo_matrix((place, (a, b)), (count, count)).tocsr())
    kept = order[tree.data.astype(np.int64) - 1]
    return Pairs(a[kept], b[kept], cosine[kept])


def thinned(table: pa.Table) -> pa.Table:
    """Rows of `PAIRS` of any blocks, down to the forest of them all, sorted."""
    ids = pa.chunked_array([*table["clip_id"].chunks, *table["other_id"].chunks], pa.string()).unique()
    a, b = (pc.index_in(table[name], ids).to_numpy() for name in ("clip_id", "other_id"))
    found = forest(Pairs(a.astype(np.int64), b.astype(np.int64), table["similarity"].to_numpy()), len(ids))
    kept = pa.table([ids.take(pa.array(found.a)), ids.take(pa.array(found.b)), pa.array(found.cosine)], schema=PAIRS)
    return kept.sort_by([("clip_id", "ascending"), ("other_id", "ascending")])


def groups(found: Pairs, before: Ints) -> tuple[Ints, Floats]:
    """For each clip which one is kept of its group, and the largest cosine to any clip of the group.

    Clips are numbered in order of `BEST`. `before` (n,) has -1 for a new clip, else the number of the clip that was kept of
    its group when it was decided (its own, where it is kept): that stays so. A new clip that is near a decided one is its
    duplicate, however good; a clip without a pair is its own group, at -1.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count, new = len(before), before < 0
    largest = np.full(count, -1.0)
    for end in (found.a, found.b):
        np.maximum.at(largest, end, found.cosine)
    among = new[found.a] & new[found.b]
    graph = coo_matrix((np.ones(among.sum()), (found.a[among], found.b[among])), (count, count))
    many, group = connected_components(graph, directed=False)
    kept = np.full(many, count)
    np.minimum.at(kept, group, np.arange(count))
    mixed = np.flatnonzero(new[found.a] != new[found.b])
    fresh = np.where(new[found.a], found.a, found.b)[mixed]
    old = before[np.where(new[found.a], found.b, found.a)[mixed]]
    order = np.lexsort((old, -found.cosine[mixed], group[fresh]))
    heads, first = np.unique(group[fresh][order], return_index=True)
    kept[heads] = old[order][first]
    return np.where(new, kept[group], before), largest
