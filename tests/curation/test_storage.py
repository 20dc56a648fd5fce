import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curation import storage
from curation.errors import SourceError, StageError


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
    (tmp_path / "clips" / "_unit-000000.parquet.1").write_bytes(b"half")
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


def test_what_cannot_be_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(str(tmp_path / "cuts" / "a.tar"), b"old")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(OSError, match="Read-only"):
            storage.remove(str(tmp_path / "cuts"))
    storage.remove(str(tmp_path / "cuts"))
    assert not (tmp_path / "cuts").exists()


def test_scratch_folders_go_with_their_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, alive, foreign = (tmp_path / name for name in (f"{storage.SCRATCH}dead", f"{storage.SCRATCH}alive", "other"))
    for folder in (dead, alive, foreign):
        folder.mkdir()
        (folder / "film.mp4").write_bytes(b"x")
    handle = os.open(alive, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    storage.sweep(str(tmp_path / "run"))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([alive.name, foreign.name])
    os.close(handle)
    storage.sweep(str(tmp_path / "run"))
    assert [p.name for p in tmp_path.iterdir()] == [foreign.name]


def test_a_worker_started_again_removes_what_its_forerunner_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"{storage.SCRATCH}dead" / "cut-x").mkdir(parents=True)
    storage.scratch.cache_clear()
    mine = storage.scratch()
    assert list(tmp_path.iterdir()) == [mine]
    storage.scratch.cache_clear()


class Shaky(MemoryFileSystem):
    """A store that fails as often as `troubles` has errors for it."""

    protocol = "shaky"
    store: dict[str, Any] = {}  # noqa: RUF012  as in the class it stands for
    cachable = False
    troubles: list[Exception] = []  # noqa: RUF012

    def _trouble(self) -> None:
        if self.troubles:
            raise self.troubles.pop(0)

    def put_file(self, *args: Any, **kwargs: Any) -> None:
        self._trouble()
        super().put_file(*args, **kwargs)

    def pipe_file(self, *args: Any, **kwargs: Any) -> None:
        super().pipe_file(*args, **kwargs)
        self._trouble()

    def cat_file(self, *args: Any, **kwargs: Any) -> bytes:
        self._trouble()
        return super().cat_file(*args, **kwargs)  # type: ignore[no-any-return]

    def get_file(self, *args: Any, **kwargs: Any) -> None:
        self._trouble()
        super().get_file(*args, **kwargs)


@pytest.fixture
def shaky(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shaky]:
    fs = Shaky()
    monkeypatch.setattr(storage, "_filesystem", lambda _: fs)
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    yield fs
    fs.store.clear()
    fs.troubles.clear()
    storage._silent_since.clear()


def test_a_store_that_is_busy_is_asked_again(shaky: Shaky) -> None:
    busy = [OSError(errno.EBUSY, "SlowDown"), ConnectionResetError(), TimeoutError(), OSError(errno.EREMOTEIO, "500")]
    shaky.troubles += busy
    storage.write_bytes("shaky://b/a", b"123")
    shaky.troubles += busy
    assert storage.read_bytes("shaky://b/a", 1) == b"23"
    shaky.troubles += busy
    with storage.local_copy("shaky://b/a") as path:
        assert path.read_bytes() == b"123"


def test_a_store_that_says_no_is_not_asked_again(shaky: Shaky) -> None:
    shaky.troubles += [PermissionError("AccessDenied"), OSError(errno.EINVAL, "InvalidBucketName")]
    for kind in (PermissionError, OSError, FileNotFoundError):
        with pytest.raises(kind):
            storage.read_bytes("shaky://b/absent")


def test_an_outage_ends_the_work_and_blames_no_source(shaky: Shaky, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(storage.time, "monotonic", lambda: float(next(clock)))
    shaky.troubles += [ConnectionRefusedError() for _ in range(20)]
    with pytest.raises(TimeoutError, match="shaky://b/a: the store did not answer for 60 s"):
        storage.write_bytes("shaky://b/a", b"1")
    before = len(shaky.troubles)
    with pytest.raises(StageError, match="read_failed"), storage.local_copy("shaky://b/film.mp4"):
        pass
    assert len(shaky.troubles) == before - 1  # known to be down: asked once, not for another minute
    assert not shaky.store


def test_a_source_that_is_gone_or_forbidden_is_blamed(shaky: Shaky) -> None:
    with pytest.raises(SourceError, match="missing"), storage.local_copy("shaky://b/absent.mp4"):
        pass
    shaky.troubles.append(PermissionError("AccessDenied"))
    with pytest.raises(SourceError, match="unreadable"), storage.local_copy("shaky://b/absent.mp4"):
        pass
    shaky.troubles.append(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StageError, match="disk"), storage.local_copy("shaky://b/absent.mp4"):
        pass


def test_a_creation_whose_answer_was_lost_is_known_for_ones_own(shaky: Shaky) -> None:
    shaky.troubles.append(ConnectionResetError())
    assert storage.swap("shaky://b/lock", None, b"mine")
    assert not storage.swap("shaky://b/lock", None, b"other")


def test_a_swap_leaves_what_it_does_not_know(shaky: Shaky) -> None:
    assert not storage.swap("shaky://b/lock", b"old", b"new")  # nothing is there
    storage.write_bytes("shaky://b/lock", b"another")
    assert not storage.swap("shaky://b/lock", b"old", b"new")
    assert storage.read_bytes("shaky://b/lock") == b"another"
    assert storage.swap("shaky://b/lock", b"another", b"new")
    assert storage.read_bytes("shaky://b/lock") == b"new"
