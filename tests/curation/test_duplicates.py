"""Near-duplicates among planted vectors: what is found, what is kept of a group, and what is no pair."""

import random

import numpy as np
import pyarrow as pa
import pytest

from curation import duplicates
from curation.duplicates import Clips, DuplicateConfig, Vectors, chosen, groups
from curation.embedding import EmbeddingConfig
from curation.errors import ConfigError
from curation.tables import DUPLICATES

LAYOUT = EmbeddingConfig(name="layout", kind="layout")
WIDTH = 64


def unit(vectors: Vectors) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def near(vector: Vectors, cosine: float, rng: np.random.Generator) -> Vectors:
    """A unit vector at exactly this cosine to one."""
    other = rng.standard_normal(len(vector))
    other -= vector * (other @ vector)
    return unit(cosine * vector + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other))


def clips(vectors: Vectors, seconds: list[float] | None = None, source: list[int] | None = None, before: int = 0) -> Clips:
    """Each of a source of its own and ten seconds, if not said otherwise; the first `before` kept earlier."""
    n = len(vectors)
    return Clips(
        [f"c{i:05d}" for i in range(n)],
        np.ascontiguousarray(vectors),
        np.array(source if source is not None else range(n)),
        np.array(seconds if seconds is not None else [10.0] * n),
        np.array([*range(before), *[-1] * (n - before)]),
    )


@pytest.fixture
def two() -> Vectors:
    rng = np.random.default_rng(0)
    first = unit(rng.standard_normal(WIDTH))
    return np.stack([first, near(first, 0.95, rng)])


def test_a_pair_is_near_of_two_sources_and_of_like_length(two: Vectors) -> None:
    assert groups(clips(two), 0.9, 0.5) == {1: (0, pytest.approx(0.95, abs=1e-6))}
    assert groups(clips(two), 0.96, 0.5) == {}
    assert groups(clips(two, source=[7, 7]), 0.9, 0.5) == {}
    assert groups(clips(two, seconds=[10.0, 4.9]), 0.9, 0.5) == {}
    assert groups(clips(two, seconds=[5.0, 10.0]), 0.9, 0.5) != {}
    assert groups(clips(two, seconds=[0.0, 10.0]), 0.9, 0.5) == {}, "a picture is no excerpt of a film"
    assert groups(clips(two, seconds=[0.0, 0.0]), 0.9, 0.5) != {}


def test_a_chain_is_one_group_and_the_first_is_kept() -> None:
    rng = np.random.default_rng(1)
    chain = [unit(rng.standard_normal(WIDTH))]
    while len(chain) < 5:
        chain.append(near(chain[-1], 0.93, rng))
    found = groups(clips(np.stack(chain)), 0.9, 0.5)
    assert {n: kept for n, (kept, _) in found.items()} == {1: 0, 2: 0, 3: 0, 4: 0}
    assert all(cosine == pytest.approx(0.93, abs=1e-6) for _, cosine in found.values())


def test_what_was_kept_before_stays_kept() -> None:
    rng = np.random.default_rng(2)
    kept, other = unit(rng.standard_normal((2, WIDTH)))
    bridge = unit(kept + other)  # new, and near both
    cosine = float(bridge @ kept)
    found = groups(clips(np.stack([kept, other, bridge, near(bridge, 0.99, rng)]), before=2), cosine - 1e-3, 0.5)
    assert {n: k for n, (k, _) in found.items()} == {2: 0, 3: 0} or {n: k for n, (k, _) in found.items()} == {2: 1, 3: 1}
    assert 0 not in found and 1 not in found


def test_all_may_be_one_and_none_may_be_any() -> None:
    same = np.repeat(unit(np.random.default_rng(3).standard_normal((1, WIDTH))), 50, axis=0)
    assert set(groups(clips(same), 0.99, 0.5)) == set(range(1, 50))
    assert groups(clips(np.zeros((0, WIDTH), np.float32)), 0.9, 0.5) == {}
    bad = np.stack([same[0], np.zeros(WIDTH, np.float32), np.full(WIDTH, np.nan, np.float32)])
    assert duplicates.usable(bad).tolist() == [True, False, False]


def planted(count: int, share: float, seed: int) -> tuple[Vectors, dict[int, int]]:
    """Unit vectors around skewed concepts, a share of them copies of an earlier one; copy -> its original."""
    rng = np.random.default_rng(seed)
    concepts = unit(rng.standard_normal((40, WIDTH)))
    drawn = concepts[(rng.pareto(1.2, count) * 3).astype(int) % 40]
    vectors = unit(0.75 * drawn + 0.66 * unit(rng.standard_normal((count, WIDTH))))  # of one concept: 0.56 alike
    copies = {}
    for n in sorted(rng.choice(np.arange(1, count), int(share * count), replace=False)):
        original = int(rng.integers(n))
        vectors[n] = near(vectors[original], float(rng.uniform(0.93, 1.0)), rng)
        copies[int(n)] = original
    return vectors, copies


@pytest.mark.parametrize("exhaustive", [True, False])
def test_planted_groups_are_found_and_no_others(exhaustive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, copies = planted(2000, 0.3, seed=4)
    if not exhaustive:
        monkeypatch.setattr(duplicates, "EXHAUSTIVE", 100)
    heads = {n: n for n in range(len(vectors))}
    for n, original in copies.items():
        heads[n] = heads[original]
    found = {n: kept for n, (kept, _) in groups(clips(vectors), 0.9, 0.5).items()}
    right = sum(heads[n] == heads[kept] for n, kept in found.items())
    assert right >= 0.98 * len(found), "precision"
    assert right >= 0.95 * len(copies), "recall"


def test_the_order_of_files_and_the_number_of_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    vectors, _ = planted(1500, 0.3, seed=5)
    monkeypatch.setattr(duplicates, "EXHAUSTIVE", 100)
    made = []
    for threads, queries in ((1, 4096), (2, 97)):
        monkeypatch.setattr(duplicates, "QUERIES", queries)
        faiss.omp_set_num_threads(threads)
        all_of_it = clips(vectors)
        made.append(duplicates.table(all_of_it, groups(all_of_it, 0.9, 0.5), "layout", DUPLICATES))
    assert made[0].equals(made[1]) and made[0].num_rows > 300
    assert made[0]["clip_id"].to_pylist() == sorted(made[0]["clip_id"].to_pylist())


def test_which_embedding_tells_copies() -> None:
    clip = EmbeddingConfig(name="clip", kind="open_clip", model="ViT-B-32", weights="x")
    copy = EmbeddingConfig(name="sscd", kind="torchscript", weights="sscd.pt")
    assert chosen(DuplicateConfig(), (clip, LAYOUT)) == (LAYOUT, 0.9)
    assert chosen(DuplicateConfig(), (LAYOUT, copy)) == (copy, 0.99)
    assert chosen(DuplicateConfig(threshold=0.8), (LAYOUT,)) == (LAYOUT, 0.8)
    assert chosen(DuplicateConfig(enabled=False), (LAYOUT,)) is None
    assert chosen(DuplicateConfig(), (clip,)) is None
    with pytest.raises(ConfigError, match=r"duplicates\.model 'sscd' is none of embeddings: layout"):
        chosen(DuplicateConfig(model="sscd"), (LAYOUT,))
    with pytest.raises(ConfigError, match=r"duplicates\.threshold: nothing is known of open_clip"):
        chosen(DuplicateConfig(model="clip"), (clip,))


def test_the_table_has_its_schema() -> None:
    rng = random.Random(0)
    vectors, _ = planted(60, 0.5, seed=rng.randrange(100))
    made = duplicates.table(clips(vectors), groups(clips(vectors), 0.9, 0.5), "layout", DUPLICATES)
    assert made.schema.equals(DUPLICATES) and made.num_rows
    assert not set(made["duplicate_of"].to_pylist()) & set(made["clip_id"].to_pylist()), "what is kept has no row"
    assert isinstance(made, pa.Table)
