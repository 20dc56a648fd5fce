"""Concepts of planted vectors: how many, whose, and that nothing but the vectors and the seed decides."""

import numpy as np
import pyarrow as pa
import pytest

from curation import clusters
from curation.clusters import ClusterConfig, Sampler, assign, centroids_of, centroids_table, chosen, number, train
from curation.embedding import EmbeddingConfig
from curation.errors import ConfigError
from curation.layout import Vector
from curation.vectors import Ints
from tests.curation.test_duplicates import WIDTH, block, unit

NOBODY = pa.array([], pa.string())
LAYOUT = EmbeddingConfig(name="layout", kind="layout")
CLIP = EmbeddingConfig(name="clip", kind="open_clip", model="ViT-B-32", weights="x")


def skewed(count: int = 2000, concepts: int = 8, seed: int = 0) -> tuple[Vector, Ints]:
    """Unit vectors (count, WIDTH) about `concepts` centres whose sizes fall as 1 / n, and the centre of each."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, concepts + 1)
    of = rng.choice(concepts, count, p=share / share.sum())
    centres = unit(rng.standard_normal((concepts, WIDTH)))
    return unit(0.8 * centres[of] + 0.5 * unit(rng.standard_normal((count, WIDTH)))), of


def test_more_clusters_than_concepts_become_the_concepts() -> None:
    found, of = skewed()
    centroids = train(found, 24, 0.9, seed=0)
    assert len(set(centroids.cluster.tolist())) == 8
    table = assign(block(found), centroids)
    numbers = dict(zip(table["clip_id"].to_pylist(), table["cluster"].to_pylist(), strict=True))
    together = {(int(of[int(i[1:])]), c) for i, c in numbers.items()}
    assert len(together) == 8, "each concept is one cluster, and each cluster one concept"
    assert 0.7 < float(np.mean(table["similarity"].to_numpy())) < 1


def test_nothing_but_the_vectors_and_the_seed_decides() -> None:
    import faiss

    found, _ = skewed()
    made = []
    for threads, cuts in ((1, [2000]), (2, [100, 900, 2000])):
        faiss.omp_set_num_threads(threads)
        sampler = Sampler(1000, seed=3)
        for start, end in zip([0, *cuts], cuts, strict=False):
            sampler.add(block(found[start:end], start=start), NOBODY)
        centroids = train(sampler.vectors, 12, 0.9, seed=3)
        made.append((sampler.vectors, centroids, assign(block(found), centroids)))
    assert np.array_equal(made[0][0], made[1][0])
    assert np.array_equal(made[0][1].vectors, made[1][1].vectors)
    assert made[0][2].equals(made[1][2])
    back = centroids_of(centroids_table(made[0][1]))
    assert np.array_equal(back.vectors, made[0][1].vectors) and np.array_equal(back.cluster, made[0][1].cluster)


def test_a_sample_is_of_what_is_no_duplicate_and_has_no_more_than_there_is() -> None:
    found, _ = skewed(40)
    sampler = Sampler(1000, seed=0)
    sampler.add(block(found), pa.array(["c00000", "c00007"]))
    assert len(sampler.vectors) == 38
    nobody = Sampler(10, seed=0)
    nobody.add(block(found[:2]), pa.array(["c00000", "c00001"]))
    assert len(nobody.vectors) == 0


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_clips_than_clusters(count: int) -> None:
    found, _ = skewed(count)
    assert number(ClusterConfig(number=50), count) == count
    centroids = train(found, count, 0.999, seed=0)
    assert assign(block(found), centroids).num_rows == count


def test_one_giant_concept() -> None:
    same = np.repeat(skewed(1)[0], 500, axis=0)
    centroids = train(same, 20, 0.95, seed=0)
    assert set(centroids.cluster.tolist()) == {0}
    assert assign(block(same), centroids).num_rows == 500


def test_how_many_clusters() -> None:
    default = ClusterConfig()
    assert [number(default, n) for n in (0, 1, 3, 10_000, 10**12)] == [0, 1, 1, 100, clusters.MOST]
    assert number(ClusterConfig(number=7), 10_000) == 7


def test_which_embedding_has_concepts() -> None:
    assert chosen(ClusterConfig(), (LAYOUT, CLIP)) == CLIP
    assert chosen(ClusterConfig(), (LAYOUT,)) == LAYOUT
    assert chosen(ClusterConfig(enabled=False), (LAYOUT,)) is None
    assert chosen(ClusterConfig(), ()) is None
    with pytest.raises(ConfigError, match=r"clusters\.model 'clip' is none of embeddings: layout"):
        chosen(ClusterConfig(model="clip"), (LAYOUT,))
