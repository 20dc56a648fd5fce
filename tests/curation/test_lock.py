"""One driver at a time: on a disk, and on an object store."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest

from curation import lock, storage
from curation.errors import ConfigError, StageError

HOLDER = """
import sys, time
from curation import lock
with lock.hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(run: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    first = holder(tmp_path / "run")
    try:
        with pytest.raises(ConfigError, match=rf"worked on by process {first.pid} on "), lock.hold(str(tmp_path / "run")):
            pass
    finally:
        first.kill()
        first.communicate()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    first = holder(tmp_path)
    first.kill()
    first.communicate()
    with lock.hold(str(tmp_path)):
        assert (tmp_path / ".lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_outlives_no_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broke"), lock.hold(str(tmp_path)):
        raise ValueError("broke")
    with lock.hold(str(tmp_path)):
        pass


def test_many_that_ask_at_once_get_it_one_by_one(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        while True:
            held = lock.FileLock(str(tmp_path))
            try:
                held.acquire()
            except ConfigError:
                time.sleep(0.001)
                continue
            inside += 1
            most = max(most, inside)
            time.sleep(0.002)
            inside -= 1
            held.release()
            return

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.fixture
def bucket() -> str:  # type: ignore[misc]
    yield "memory://lease/run"
    fs = fsspec.filesystem("memory")
    if fs.exists("/lease"):
        fs.rm("/lease", recursive=True)


def test_a_lease_refuses_a_second_driver_and_ends_with_the_first(bucket: str) -> None:
    with lock.hold(bucket):
        with pytest.raises(ConfigError, match="worked on by process"), lock.hold(bucket):
            pass
        assert storage.exists(f"{bucket}/.lock")
    assert not storage.exists(f"{bucket}/.lock")


def test_a_lease_that_ran_out_is_taken_over(bucket: str) -> None:
    storage.write_bytes(
        f"{bucket}/.lock", json.dumps({"host": "gone", "pid": 1, "token": "t", "until": time.time() - 1}).encode()
    )
    with lock.hold(bucket):
        assert json.loads(storage.read_bytes(f"{bucket}/.lock"))["token"] != "t"


def test_a_lease_is_renewed_and_a_lost_one_ends_its_driver(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE_S", 1.5)
    monkeypatch.setattr(lock, "MARGIN_S", 0.2)
    with pytest.raises(StageError, match="lock_lost"), lock.hold(bucket):
        first = json.loads(storage.read_bytes(f"{bucket}/.lock"))["until"]
        deadline = time.monotonic() + 20
        # fsspec's memory file system is no object store here: it shows a file that is being written, empty.
        while lock._owner(storage.read_bytes(f"{bucket}/.lock")).get("until", first) == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        storage.write_bytes(f"{bucket}/.lock", json.dumps({"token": "other", "until": time.time() + 60}).encode())
        time.sleep(20)
    assert json.loads(storage.read_bytes(f"{bucket}/.lock"))["token"] == "other"


def test_a_lease_that_cannot_be_renewed_ends_its_driver_before_another_may_take_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bool:
        raise ConfigError("the credentials ran out")

    monkeypatch.setattr(lock, "LEASE_S", 1.5)
    monkeypatch.setattr(lock, "MARGIN_S", 0.5)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in what a script starts in the background
    try:
        with pytest.raises(StageError, match="lock_lost"), lock.hold(bucket):
            monkeypatch.setattr(storage, "swap", refuse)
            time.sleep(20)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.time() < json.loads(storage.read_bytes(f"{bucket}/.lock"))["until"]
