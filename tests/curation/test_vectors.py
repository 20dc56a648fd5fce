"""Blocks of vectors: what is read, what is left out, and that a saved block is the same one."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from curation import embedding, storage, vectors
from curation.vectors import IndexConfig

SMALL = IndexConfig(exhaustive=10, probes=3)


def write(folder: Path, unit: str, found: list[list[float] | None], width: int) -> None:
    ids = pa.array([f"{unit}-{n}" for n in range(len(found))])
    table = pa.table([ids, pa.array(found, pa.list_(pa.float32(), width))], schema=embedding.schema(width))
    storage.write_table(str(folder / f"{unit}.parquet"), table)


def test_what_has_no_direction_is_left_out_and_counted(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    write(tmp_path, "a", [[3.0, 4.0], None, [0.0, 0.0], [nan, 1.0], [inf, 0.0]], 2)
    write(tmp_path, "b", [], 2)
    write(tmp_path, "c", [None, [0.0, -1e3]], 2)
    ids, found, unusable = vectors.read(str(tmp_path), ["a", "b", "c"])
    assert ids.to_pylist() == ["a-0", "c-1"]
    assert found.tolist() == [pytest.approx([0.6, 0.8]), [0.0, -1.0]]
    assert unusable == 5
    assert vectors.read(str(tmp_path), ["b"])[1].shape == (0, 2)


@pytest.mark.parametrize("count", [0, 7, 400])
def test_a_saved_block_is_the_same(tmp_path: Path, count: int) -> None:
    found = np.random.default_rng(0).standard_normal((count, 16)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    ids = pa.array([f"c{n}" for n in range(count)], pa.string())
    facts = pa.table([ids, pa.array(range(count), pa.int64()), pa.array([1.0] * count)], schema=vectors.FACTS)
    places = [str(tmp_path / name) for name in ("one", "other")]
    for place in places:
        vectors.save(place, vectors.build(ids, found, SMALL), facts)
    assert Path(f"{places[0]}.faiss").read_bytes() == Path(f"{places[1]}.faiss").read_bytes()
    block = vectors.load(places[0])
    assert len(block) == count and block.ids.to_pylist() == ids.to_pylist()
    assert np.array_equal(block.vectors, found)
    if count:
        cosine, nearest = block.index.search(found, 1)
        assert nearest[:, 0].tolist() == list(range(count)) and cosine.min() > 0.999
