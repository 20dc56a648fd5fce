import os
from pathlib import Path

import pyarrow as pa
import pytest

from curation import storage


@pytest.mark.parametrize("raw", [b"plain.mp4", b"caf\xc3\xa9.mp4", b"bad\xff\xfe.mp4", b"back\\slash\\xff.mp4", b"a\nb.mp4"])
def test_escaping_a_name_is_reversible_and_valid_utf8(raw: bytes) -> None:
    name = os.fsdecode(raw)
    escaped = storage.escape(name)
    escaped.encode("utf-8")
    assert storage.unescape(escaped) == name


def test_two_names_never_escape_to_one() -> None:
    assert storage.escape(os.fsdecode(b"\xff")) != storage.escape("\\xff")


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    place = str(tmp_path / "t" / "a.bin")
    storage.write_bytes(place, b"old")
    with pytest.raises(RuntimeError), storage.committed(place) as out:
        out.write(b"half")
        raise RuntimeError
    assert storage.read_bytes(place) == b"old"
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["a.bin"]


def test_unfinished_files_are_not_listed_and_are_swept(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "_unit-000000.parquet.999999999").write_bytes(b"half")
    (tmp_path / "clips" / "unit-000001.parquet").write_bytes(b"whole")
    assert storage.names(str(tmp_path / "clips")) == ["unit-000001.parquet"]
    assert [Path(p).name for p in storage.walk(str(tmp_path))] == ["unit-000001.parquet"]
    storage.sweep(str(tmp_path))
    assert [p.name for p in (tmp_path / "clips").iterdir()] == ["unit-000001.parquet"]


def test_tables_round_trip_in_name_order_with_equal_bytes(tmp_path: Path) -> None:
    for name, values in (("b", [2, 3]), ("a", [1])):
        storage.write_table(str(tmp_path / f"{name}.parquet"), pa.table({"x": values}))
    assert storage.read_table(str(tmp_path))["x"].to_pylist() == [1, 2, 3]
    storage.write_table(str(tmp_path / "_c" / "a.parquet"), pa.table({"x": [1]}))
    assert (tmp_path / "_c" / "a.parquet").read_bytes() == (tmp_path / "a.parquet").read_bytes()


def test_a_memory_url_behaves_like_a_folder() -> None:
    storage.write_bytes("memory://bucket/run/x/a.bin", b"12345")
    assert storage.names("memory://bucket/run/x") == ["a.bin"]
    assert storage.read_bytes("memory://bucket/run/x/a.bin", 1, 3) == b"234"
    assert storage.walk("memory://bucket/run", ".bin") == ["memory://bucket/run/x/a.bin"]
    with storage.local_copy("memory://bucket/run/x/a.bin") as path:
        assert path.read_bytes() == b"12345"
    storage.remove("memory://bucket/run")
    assert not storage.exists("memory://bucket/run/x/a.bin")
