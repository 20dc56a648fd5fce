"""Concepts: clusters of the clips' vectors, trained once a run on a sample; every clip belongs to one.

Spherical k-means over clips that are no near-duplicates, then clusters whose centroids are nearly the same become one concept,
which keeps the centroids of both: a clip belongs to the concept of its nearest centroid. Clips that come later are assigned
to the same centroids.
"""

import math
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from curation.embedding import EmbeddingConfig
from curation.errors import ConfigError
from curation.layout import Vector
from curation.select import draw
from curation.tables import CONCEPTS
from curation.vectors import Block, Ints

SAMPLE = 64
"""Clips a cluster that centroids are trained on (FAISS asks for 39 or more), drawn by a hash of seed and clip_id."""
ROUNDS = 20
MOST = 16_384
"""Clusters, if their number is not set."""
SAME = {"layout": 0.9, "open_clip": 0.95, "torchscript": 0.95}
"""Centroids' cosine from which on two clusters are one concept, by kind of model. `layout`: planted concepts come out as they
are from 0.75 to 0.9, and in parts at 0.95. The others are ours: vectors of such models lie in a narrower cone."""
CENTROIDS = pa.schema([("cluster", pa.int64()), ("centroid", pa.list_(pa.float32()))])


class ClusterConfig(BaseModel):
    """How concepts are found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    model: str | None = None
    """The embedding whose neighbourhoods are concepts, by name; None: the first of kind open_clip, else the first."""
    number: PositiveInt | None = None
    """Clusters before any become one; None: the square root of the number of clips, at most `MOST`. Never more than clips."""
    same: float | None = Field(None, gt=0, le=1)
    """Clusters whose centroids have at least this cosine are one concept, at first or second hand; None: what is known of the
    model's kind (`SAME`)."""
    people: bool = False
    """Whether clips are compared with sentences about what people do; needs an embedding that reads text."""
    verbs: str | None = None
    """A file of such doings and expressions, one a line ("running"); None: ours."""


def chosen(config: ClusterConfig, embeddings: Iterable[EmbeddingConfig]) -> EmbeddingConfig | None:
    """The embedding that is clustered. Raises ConfigError where the config names one that is not there."""
    by_name = {e.name: e for e in embeddings}
    if not config.enabled or not by_name:
        return None
    if config.model is not None and config.model not in by_name:
        raise ConfigError(f"clusters.model {config.model!r} is none of embeddings: {', '.join(by_name)}")
    first = next((e for e in by_name.values() if e.kind == "open_clip"), next(iter(by_name.values())))
    return by_name[config.model] if config.model is not None else first


class Centroids(NamedTuple):
    """Where concepts lie: unit vectors (k, width), and the concept of each (k,)."""

    vectors: Vector
    cluster: Ints


def number(config: ClusterConfig, count: int) -> int:
    """How many clusters are asked for among so many clips."""
    return min(count, config.number or max(1, min(MOST, math.isqrt(count))))


class Sampler:
    """The vectors of the `size` clips with the lowest draws among all that are added, in order of their draws."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.draws: list[tuple[str, str]] = []
        self.vectors: Vector = np.zeros((0, 0), np.float32)

    def add(self, block: Block, without: pa.Array) -> None:
        """Add a block's clips but for those `without`."""
        rows = np.flatnonzero(pc.invert(pc.is_in(block.ids, value_set=without)).to_numpy(zero_copy_only=False))
        ids = block.ids.take(pa.array(rows)).to_pylist()
        draws = [(draw(self.seed, "clusters", clip_id), clip_id) for clip_id in ids]
        best = sorted(range(len(draws)), key=draws.__getitem__)[: self.size]
        found = block.vectors[rows[best]]
        together = np.concatenate([self.vectors, found]) if len(self.vectors) else found
        every = self.draws + [draws[n] for n in best]
        order = sorted(range(len(every)), key=every.__getitem__)[: self.size]
        self.draws, self.vectors = [every[n] for n in order], together[order]


def train(sample: Vector, count: int, same: float, seed: int) -> Centroids:
    """Concepts of the sampled vectors (n, width) by 1 <= `count` <= n clusters; numbered in the order of their centroids."""
    import faiss

    means = faiss.Kmeans(
        sample.shape[1],
        count,
        niter=ROUNDS,
        seed=seed & 0x7FFFFFFF,
        spherical=True,
        min_points_per_centroid=1,
        max_points_per_centroid=len(sample),
    )
    means.train(sample)
    found = np.asarray(means.centroids, np.float32)
    found = found[np.linalg.norm(found, axis=1) > 0.5]  # FAISS may leave one at the origin
    return Centroids(found, _merged(found, same))


def _merged(found: Vector, same: float) -> Ints:
    """(k,) concepts: connected components of the centroids whose cosines reach `same`."""
    import faiss
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    flat = faiss.IndexFlatIP(found.shape[1])
    flat.add(found)
    limits, _, near = flat.range_search(found, same)
    graph = csr_matrix((np.ones(len(near)), near, limits.astype(np.int64)), (len(found), len(found)))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def assign(block: Block, centroids: Centroids, people: Vector | None = None) -> pa.Table:
    """Rows of `CONCEPTS`, sorted by clip. `people` (n, width) are the vectors of the `sentences`."""
    import faiss

    flat = faiss.IndexFlatIP(centroids.vectors.shape[1])
    flat.add(centroids.vectors)
    own = block.vectors
    nearest = flat.search(own, 1)[1][:, 0]
    # FAISS's own sums differ in their last bits with the number of threads
    similarity = np.minimum(np.einsum("nd,nd->n", own, centroids.vectors[nearest], dtype=np.float64), 1.0).astype(np.float32)
    columns = [block.ids, pa.array(centroids.cluster[nearest]), pa.array(similarity)]
    columns.append(pa.nulls(len(block), pa.float32()) if people is None else pa.array(_nearest(own, people)))
    return pa.table(columns, schema=CONCEPTS).sort_by("clip_id")


def _nearest(own: Vector, people: Vector) -> Vector:
    """(n,) largest cosines, summed in double precision for the same reason."""
    found = [(own[n : n + 8192].astype(np.float64) @ people.T.astype(np.float64)).max(axis=1) for n in range(0, len(own), 8192)]
    return np.concatenate([np.zeros(0), *found]).astype(np.float32)


CLUSTERED = """
    SELECT cluster, count(*) AS size, 1 / sqrt(count(*)) AS weight,
           sum(CAST(round(similarity * 1e6) AS BIGINT)) / count(*) / 1e6 AS tightness,
           arg_min(clip_id, row(-similarity, clip_id), 6) AS exemplars
    FROM concepts ANTI JOIN duplicates USING (clip_id) GROUP BY cluster ORDER BY cluster"""
"""The table `clusters/` from all concepts of the run: integers are summed, so that no order of rows shows in a mean."""


def sentences(config: ClusterConfig) -> list[str]:
    """What clips with people are compared with. Raises ConfigError where the file cannot be read or is empty."""
    try:
        own = Path(config.verbs).read_text() if config.verbs is not None else (files("curation") / "verbs.txt").read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"clusters.verbs {config.verbs!r}: {error}") from error
    verbs = [line.strip() for line in own.splitlines() if line.strip()]
    if not verbs:
        raise ConfigError(f"clusters.verbs {config.verbs!r}: no verb in it")
    return [f"a video of a person {verb}" for verb in verbs]


def centroids_table(centroids: Centroids) -> pa.Table:
    """Rows of `CENTROIDS`."""
    return pa.table([pa.array(centroids.cluster), pa.array(list(centroids.vectors), CENTROIDS.field(1).type)], schema=CENTROIDS)


def centroids_of(table: pa.Table) -> Centroids:
    """What `centroids_table` wrote."""
    vectors = np.array(table["centroid"].to_pylist(), np.float32)
    return Centroids(vectors.reshape(table.num_rows, -1), table["cluster"].to_numpy())
