"""The reader: exact samples and views from disk and store, and what stands in for a bad one."""

import pickle
import shutil
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from tests.media_samples import number_of
from tests.training_bridge.samples import FRAMES, STILL, TALL, WIDE, damage, make_shards, sample_of
from training_bridge import index, reader
from training_bridge.index import Shape
from training_bridge.reader import BadSample, Cache, Reader, Source
from training_bridge.view import View


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("made"), {WIDE: 7, TALL: 2, STILL: 4})


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    """Shards that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "shards"))


def opened(folder: object, view: View | None = None, **settings: int) -> Reader:
    return Reader({"d": Source(index.read(str(folder)), view)}, seed=1, **settings)


def first_number(pixels: np.ndarray) -> int:
    return number_of(pixels[:, 0].transpose(1, 2, 0))


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_every_sample_comes_whole_with_its_text(made: Path, where: str) -> None:
    folder = str(made)
    if where == "memory":
        folder = "memory://reader/shards"
        fsspec.filesystem("memory").put(str(made), "/reader/shards", recursive=True)
    read = pickle.loads(pickle.dumps(opened(folder)))  # as workers get it
    assert read.sources["d"].index.table.num_rows == 13
    for clip in range(13):
        sample = sample_of(read, f"c{clip:03d}")
        example = read.read(sample)
        assert (example.key, example.dataset, example.visit, example.bad) == (sample.key, "d", 0, ())
        assert example.text == (f"text of {sample.key}" if clip % 2 == 0 else "")
        stored, pixels = read.shape(sample), example.arrays["pixels"]
        assert pixels.shape == (3, stored.frames, stored.height, stored.width) and pixels.dtype == np.uint8
        shown = [number_of(frame.transpose(1, 2, 0)) for frame in pixels.transpose(1, 0, 2, 3)]
        assert shown == [clip * FRAMES + n for n in range(stored.frames)]


def test_a_visit_has_its_view_and_always_the_same(made: Path) -> None:
    view = View(4, 16, 24)
    read, again = opened(made, view), opened(made, view)
    assert read.sources["d"].shown.of_shape.keys() == {Shape(4, 16, 24), Shape(1, 16, 24)}
    assert len(read.sources["d"].shown.of_shape[Shape(4, 16, 24)]) == 9, "two stored shapes give one"
    views = []
    for visit in range(20):
        example = read.read(sample_of(read, "c000", visit))
        assert example.arrays["pixels"].shape == (3, 4, 16, 24)
        views.append(example.arrays["pixels"].tobytes())
    assert len(set(views)) > 10
    assert again.read(sample_of(again, "c000", 7)).arrays["pixels"].tobytes() == views[7]
    other = Reader({"d": read.sources["d"]}, seed=2)
    assert other.read(sample_of(other, "c000", 7)).arrays["pixels"].tobytes() != views[7]


def test_a_view_makes_another_index(made: Path) -> None:
    plain = index.read(str(made))
    small, smaller = plain.viewed(View(4, 16, 24)), plain.viewed(View(4, 16, 16))
    assert len({plain.fingerprint, small.fingerprint, smaller.fingerprint}) == 3
    assert plain.viewed(View(4, 16, 24)).fingerprint == small.fingerprint
    assert {shape: len(rows) for shape, rows in plain.viewed(View(8, 64, 48)).of_shape.items()} == {Shape(8, 64, 48): 2}


def test_files_and_cache_are_bounded(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "OPEN_FILES", 2)
    read = opened(made, cache_bytes=20_000)
    for row in (*range(13), *range(13)):
        read.read(sample_of(read, f"c{row:03d}"))
        assert len(read.files[str(made)].opened) <= 2 and read.cache.size <= 20_000
        assert read.cache.size == sum(len(data) for held in read.cache.held.values() for data in held.values())
    assert read.cache.held


def test_the_cache_keeps_what_was_asked_for_last() -> None:
    cache = Cache(10)
    for row in range(3):
        cache.put(("d", row), {"media": b"1234"})
    assert cache.get(("d", 0)) is None and cache.get(("d", 1)) == {"media": b"1234"}
    cache.put(("d", 3), {"media": b"1234"})
    assert cache.get(("d", 1)) and cache.get(("d", 2)) is None and cache.size == 8
    cache.put(("d", 4), {"media": b"much too large"})
    assert cache.get(("d", 4)) is None and cache.size == 0


def test_a_bad_sample_has_always_the_same_substitute(shards: Path) -> None:
    damage(shards, "c001")
    read, again = opened(shards), opened(shards)
    stand_ins = [read.read(sample_of(read, "c001", visit)) for visit in range(30)]
    assert all(read.shape(sample_of(read, e.key)) == WIDE for e in stand_ins), "of the same shape"
    spread = Counter(e.key for e in stand_ins)
    assert "c001" not in spread and len(spread) >= 4, "another one at other visits"
    ((key, why),) = stand_ins[0].bad
    assert key == "c001" and "b-24x48x72/shard-000000.tar holds other bytes at " in why
    assert stand_ins[5].visit == 5
    repeated = [again.read(sample_of(again, "c001", visit)) for visit in range(30)]
    assert [e.key for e in repeated] == [e.key for e in stand_ins]


@pytest.mark.parametrize("fault", ["missing", "truncated", "frames", "no video"])
def test_what_makes_a_sample_bad(shards: Path, fault: str) -> None:
    read = opened(shards)
    held = read.sources["d"].index
    table, sample = held.table, sample_of(read, "c006")
    tar = shards / held.shards[table["shard"][sample.row].as_py()]
    if fault == "missing":
        tar.unlink()
    elif fault == "truncated":
        tar.write_bytes(tar.read_bytes()[: table["media_offset"][sample.row].as_py() + 100])
    else:  # the bytes are those of the index, and the video is not what it says
        name, value = ("frames", 25) if fault == "frames" else ("image", True)
        column = table[name].to_pylist()
        column[sample.row] = value
        at = table.column_names.index(name)
        object.__setattr__(held, "table", table.set_column(at, name, pa.array(column, table.schema.field(name).type)))
        held.of_shape[Shape(25, 48, 72)] = held.of_shape[WIDE]
    why = {
        "missing": "shard-000002.tar is gone",
        "truncated": "holds other bytes",
        "frames": "the video is 24x48x72; the index says 25x48x72",
        "no video": "no picture: UnidentifiedImageError",
    }[fault]
    example = read.read(sample)
    assert example.key != "c006" and example.bad[0][0] == "c006" and why in example.bad[0][1]


def test_bad_substitutes_have_substitutes_until_none_is_left(shards: Path) -> None:
    for key in ("c000", "c001", "c002", "c003", "c004", "c005"):
        damage(shards, key)
    read = opened(shards)
    found = [read.read(sample_of(read, "c001", visit)) for visit in range(12) if visit in seven(read)]
    assert found and {e.key for e in found} == {"c006"}
    assert all(len({key for key, _ in e.bad}) == len(e.bad) for e in found), "none is named twice"
    damage(shards, "c006")
    with pytest.raises(BadSample, match=r"d: a sample and all substitutes that were tried for it are bad: c001: .*c00"):
        opened(shards).read(sample_of(read, "c001"))


def seven(read: Reader) -> list[int]:
    """The visits of c001 for which the one good sample of seven is among the substitutes that are tried."""
    tries = {v: [read._substitute(sample_of(read, "c001", v), a).key for a in range(1, reader.ATTEMPTS)] for v in range(12)}
    return [visit for visit, keys in tries.items() if "c006" in keys]


def test_a_store_that_fails_is_no_bad_sample(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = opened(made)

    def refused(*_: object) -> bytes:
        raise TimeoutError("the store does not answer")

    monkeypatch.setattr("training_bridge.reader.os.pread", refused)
    with pytest.raises(TimeoutError, match="does not answer"):
        read.read(sample_of(read, "c000"))
