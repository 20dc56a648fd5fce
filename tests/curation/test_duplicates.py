"""Near-duplicates among planted vectors: what is found, what is kept of a group, and what is no pair."""

import numpy as np
import pyarrow as pa
import pytest

from curation import duplicates, vectors
from curation.duplicates import DuplicateConfig, Pairs, chosen, forest, groups, pairs
from curation.embedding import EmbeddingConfig
from curation.errors import ConfigError
from curation.layout import Vector
from curation.vectors import Block, IndexConfig

LAYOUT = EmbeddingConfig(name="layout", kind="layout")
WIDTH = 64
CELLS = IndexConfig(exhaustive=100)


def unit(found: Vector) -> Vector:
    return (found / np.linalg.norm(found, axis=-1, keepdims=True)).astype(np.float32)


def near(vector: Vector, cosine: float, rng: np.random.Generator) -> Vector:
    """A unit vector at exactly this cosine to one."""
    other = rng.standard_normal(len(vector))
    other -= vector * (other @ vector)
    return unit(cosine * vector + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other))


def block(
    found: Vector,
    seconds: list[float] | None = None,
    film: list[int] | None = None,
    start: int = 0,
    config: IndexConfig = CELLS,
) -> Block:
    """Clips `c00000` and on, each of a film of its own and ten seconds, if not said otherwise."""
    numbers = range(start, start + len(found))
    ids = pa.array([f"c{n:05d}" for n in numbers], pa.string())
    whole = np.ascontiguousarray(found, np.float32)
    index = vectors.build(ids, whole, config)
    return Block(ids, np.array(film or numbers, np.int64), np.array(seconds or [10.0] * len(found)), index)


def rows(table: pa.Table) -> set[tuple[str, str]]:
    return {(row["clip_id"], row["other_id"]) for row in table.to_pylist()}


def grouped(*blocks: Block, threshold: float = 0.9, before: list[int] | None = None) -> tuple[list[int], list[float]]:
    """The clip kept of each clip's group, and its largest cosine, from the pairs of each block by each."""
    found = [pairs(a, None if a is b else b, threshold, 0.5) for n, b in enumerate(blocks) for a in blocks[: n + 1]]
    table = pa.concat_tables(found)
    a, b = (np.array([int(i[1:]) for i in table[name].to_pylist()], np.int64) for name in ("clip_id", "other_id"))
    whole = Pairs(np.minimum(a, b), np.maximum(a, b), table["similarity"].to_numpy())
    kept, largest = groups(whole, np.array(before or [-1] * sum(map(len, blocks)), np.int64))
    return kept.tolist(), largest.tolist()


@pytest.fixture
def two() -> Vector:
    rng = np.random.default_rng(0)
    first = unit(rng.standard_normal(WIDTH))
    return np.stack([first, near(first, 0.95, rng)])


@pytest.mark.parametrize("apart", [False, True])
def test_a_pair_is_near_of_two_films_and_of_like_length(two: Vector, apart: bool) -> None:
    def found(threshold: float, seconds: tuple[float, float] = (10.0, 10.0), film: tuple[int, int] = (1, 2)) -> pa.Table:
        if not apart:
            return pairs(block(two, [*seconds], [*film]), None, threshold, 0.5)
        one, other = (block(two[[n]], [seconds[n]], [film[n]], start=n) for n in (0, 1))
        return pairs(one, other, threshold, 0.5)

    assert found(0.9).to_pylist() == [{"clip_id": "c00000", "other_id": "c00001", "similarity": pytest.approx(0.95, abs=1e-6)}]
    assert not found(0.96).num_rows
    assert not found(0.9, film=(7, 7)).num_rows
    assert not found(0.9, seconds=(10.0, 4.9)).num_rows
    assert found(0.9, seconds=(5.0, 10.0)).num_rows
    assert not found(0.9, seconds=(0.0, 10.0)).num_rows, "a picture is no excerpt of a film"
    assert found(0.9, seconds=(0.0, 0.0)).num_rows


def test_a_chain_is_one_group_and_the_first_is_kept() -> None:
    rng = np.random.default_rng(1)
    chain = [unit(rng.standard_normal(WIDTH))]
    while len(chain) < 5:
        chain.append(near(chain[-1], 0.93, rng))
    kept, largest = grouped(block(np.stack(chain)))
    assert kept == [0] * 5
    assert largest == pytest.approx([0.93] * 5, abs=1e-6)


def test_what_was_kept_before_stays_kept() -> None:
    rng = np.random.default_rng(2)
    kept, other = unit(rng.standard_normal((2, WIDTH)))
    bridge = unit(kept + other)  # new, and near both
    cosine = float(min(bridge @ kept, bridge @ other))
    whole = block(np.stack([kept, other, bridge, near(bridge, 0.99, rng)]))
    found, _ = grouped(whole, threshold=cosine - 1e-3, before=[0, 1, -1, -1])
    assert found in ([0, 1, 0, 0], [0, 1, 1, 1])
    worse, _ = grouped(whole, threshold=cosine - 1e-3, before=[-1, -1, -1, 3])
    assert worse == [3, 3, 3, 3], "a new clip is its duplicate, however good"


def test_all_may_be_copies_of_one_in_few_rows() -> None:
    same = np.repeat(unit(np.random.default_rng(3).standard_normal((1, WIDTH))), 3000, axis=0)
    found = pairs(block(same, config=IndexConfig()), None, 0.99, 0.5)
    assert found.num_rows == 2999
    kept, largest = grouped(block(same[:50]), block(same[:70], start=50))
    assert kept == [0] * 120 and min(largest) == pytest.approx(1.0, abs=1e-6)


def test_nothing_has_no_pairs() -> None:
    assert pairs(block(np.zeros((0, WIDTH), np.float32)), None, 0.9, 0.5).num_rows == 0
    assert groups(Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)), np.zeros(0, np.int64))[0].tolist() == []


def test_the_forest_keeps_the_groups_of_every_threshold() -> None:
    rng = np.random.default_rng(6)
    a, b = np.triu_indices(60, 1)
    cosine = np.round(rng.uniform(0.9, 1.0, len(a)), 2)  # many are equal
    some = rng.random(len(a)) < 0.06
    every = Pairs(a[some], b[some], cosine[some])
    twice = Pairs(*(np.concatenate([column, column[::-1]]) for column in every))
    kept = forest(twice, 60)
    assert len(kept.a) < 60
    new = np.full(60, -1, np.int64)
    for threshold in (0.9, 0.93, 0.96, 0.99):
        few, all_of_them = (Pairs(*(c[p.cosine >= threshold] for c in p)) for p in (kept, every))
        for ours, theirs in zip(groups(few, new), groups(all_of_them, new), strict=True):
            assert ours.tolist() == theirs.tolist()


def test_pairs_of_many_blocks_are_thinned_to_what_holds_groups_together() -> None:
    found, _ = planted(600, 0.5, seed=8)
    parts = [block(found[n : n + 100], start=n) for n in range(0, 600, 100)]
    tables = [pairs(a, None if a is b else b, 0.9, 0.5) for n, b in enumerate(parts) for a in parts[: n + 1]]
    whole = pa.concat_tables(tables)
    few = duplicates.thinned(whole)
    assert few.num_rows < whole.num_rows and few.equals(pairs(block(found), None, 0.9, 0.5))


def planted(count: int, share: float, seed: int) -> tuple[Vector, dict[int, int]]:
    """Unit vectors around skewed concepts, a share of them copies of an earlier one; copy -> its original."""
    rng = np.random.default_rng(seed)
    concepts = unit(rng.standard_normal((40, WIDTH)))
    drawn = concepts[(rng.pareto(1.2, count) * 3).astype(int) % 40]
    found = unit(0.75 * drawn + 0.66 * unit(rng.standard_normal((count, WIDTH))))  # of one concept: 0.56 alike
    copies = {}
    for n in sorted(rng.choice(np.arange(1, count), int(share * count), replace=False)):
        original = int(rng.integers(n))
        found[n] = near(found[original], float(rng.uniform(0.93, 1.0)), rng)
        copies[int(n)] = original
    return found, copies


@pytest.mark.parametrize(("blocks", "exhaustive"), [(1, 5000), (1, 100), (4, 5000), (4, 100)])
def test_planted_groups_are_found_and_no_others(blocks: int, exhaustive: int) -> None:
    found, copies = planted(2000, 0.3, seed=4)
    heads = {n: n for n in range(len(found))}
    for n, original in copies.items():
        heads[n] = heads[original]
    size = len(found) // blocks
    config = IndexConfig(exhaustive=exhaustive)
    parts = [block(found[n : n + size], start=n, config=config) for n in range(0, len(found), size)]
    kept = {n: k for n, k in enumerate(grouped(*parts)[0]) if k != n}
    right = sum(heads[n] == heads[k] for n, k in kept.items())
    assert right >= 0.98 * len(kept), "precision"
    assert right >= 0.95 * len(copies), "recall"


def test_the_number_of_threads_and_of_questions_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import faiss

    found, _ = planted(1500, 0.3, seed=5)
    made = []
    for threads, queries in ((1, (1024, 1024)), (2, (97, 97))):
        monkeypatch.setattr(duplicates, "QUERIES", queries)
        faiss.omp_set_num_threads(threads)
        made.append(pairs(block(found), None, 0.9, 0.5))
    assert made[0].equals(made[1]) and made[0].num_rows > 300


def test_which_embedding_tells_copies() -> None:
    clip = EmbeddingConfig(name="clip", kind="open_clip", model="ViT-B-32", weights="x")
    copy = EmbeddingConfig(name="sscd", kind="torchscript", weights="sscd.pt")
    assert chosen(DuplicateConfig(), (clip, LAYOUT)) == (LAYOUT, 0.91)
    assert chosen(DuplicateConfig(), (LAYOUT, copy)) == (copy, 0.99)
    assert chosen(DuplicateConfig(threshold=0.8), (LAYOUT,)) == (LAYOUT, 0.8)
    assert chosen(DuplicateConfig(enabled=False), (LAYOUT,)) is None
    assert chosen(DuplicateConfig(), (clip,)) is None
    with pytest.raises(ConfigError, match=r"duplicates\.model 'sscd' is none of embeddings: layout"):
        chosen(DuplicateConfig(model="sscd"), (LAYOUT,))
    with pytest.raises(ConfigError, match=r"duplicates\.threshold: nothing is known of open_clip"):
        chosen(DuplicateConfig(model="clip"), (clip,))
