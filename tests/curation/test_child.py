import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from curation import child
from curation.errors import ConfigError, SourceError, StageError
from curation.media import MediaLimits

QUICK = MediaLimits(stall_s=2.0, source_s=5.0, memory_mb=400)
PATIENT = MediaLimits(stall_s=120.0, source_s=120.0, memory_mb=400)  # no clock of a busy machine can strike first


def double(x: int) -> int:
    return 2 * x


def refuse() -> None:
    raise SourceError("not_media", "no film")


def blunder() -> None:
    raise ZeroDivisionError("oops")


def hang() -> None:
    time.sleep(60)


def work_for(seconds: float) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
        child.beat()
    return "done"


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def swell() -> None:
    held = [b"x" * 50_000_000 for _ in range(16)]
    time.sleep(200)
    del held


def no_pickle() -> object:
    return lambda: None


def say_late(seconds: float) -> str:
    time.sleep(seconds)
    return "late"


def interrupt_itself() -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "alive"


def out_of_memory() -> None:
    raise MemoryError


def die_by(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(5)


def die_on_the_first_try(mark: str, number: int) -> str:
    if not Path(mark).exists():
        Path(mark).touch()
        die_by(number)
    return "alive"


def write_to_a_full_disk() -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        file.write(b"x")


def burn_and_refuse() -> None:
    burn()
    refuse()


def burn() -> None:
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass


@pytest.fixture
def worker() -> "child.Child":  # type: ignore[misc]
    made = child.Child(QUICK)
    yield made
    made.close()


def unfit(kind: str) -> None:
    raise StageError("read_failed", "the store is away") if kind == "store" else ConfigError("no weights")


def test_what_is_not_the_sources_fault_stays_so(worker: child.Child) -> None:
    with pytest.raises(StageError, match="read_failed: the store is away"):
        worker.call(unfit, "store")
    with pytest.raises(ConfigError, match="no weights"):
        worker.call(unfit, "config")


def test_results_and_errors_come_back(worker: child.Child) -> None:
    assert worker.call(double, 21) == 42
    with pytest.raises(SourceError, match="not_media: no film"):
        worker.call(refuse)
    with pytest.raises(SourceError, match="internal: ZeroDivisionError: oops"):
        worker.call(blunder)
    assert worker.call(double, 4) == 8


def test_the_cost_is_the_childs_own(worker: child.Child) -> None:
    worker.call(burn)
    usage = worker.usage
    assert 0.25 < usage.cpu_s < 1.0
    assert usage.peak_mb > 5
    with pytest.raises(SourceError, match="not_media"):
        worker.call(burn_and_refuse)
    assert 0.25 < worker.usage.cpu_s < 1.0 and worker.usage.peak_mb > 5


@pytest.mark.parametrize(
    "what,code,limits", [(hang, "timeout", QUICK), (crash, "crashed", PATIENT), (swell, "memory", PATIENT)]
)
def test_what_kills_the_child_costs_that_call_only(what: object, code: str, limits: MediaLimits) -> None:
    with contextlib.closing(child.Child(limits)) as worker:
        with pytest.raises(SourceError) as caught:
            worker.call(what)  # type: ignore[arg-type]
        assert caught.value.code == code
        assert (worker.usage.peak_mb > 400) == (code == "memory")
        assert worker.call(double, 5) == 10


def test_an_interrupted_call_leaves_no_late_answer(worker: child.Child) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    worker.call(double, 1)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.4)
        with pytest.raises(KeyboardInterrupt):
            worker.call(say_late, 2.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert worker.call(double, 21) == 42


def test_what_ends_a_call_is_told_apart(worker: child.Child) -> None:
    with pytest.raises(SourceError, match="internal: the result cannot be sent"):
        worker.call(no_pickle)
    with pytest.raises(SourceError, match="memory: no memory left"):
        worker.call(out_of_memory)
    assert worker.call(interrupt_itself) == "alive"  # Ctrl-C reaches the whole process group
    with pytest.raises(SourceError, match="crashed: the decoding process died: SIGABRT"):
        worker.call(die_by, signal.SIGABRT)
    with pytest.raises(SourceError, match=f"crashed: the decoding process died: signal {signal.SIGRTMIN + 3}"):
        worker.call(die_by, signal.SIGRTMIN + 3)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_death_from_outside_is_not_the_sources(worker: child.Child, tmp_path: Path, number: int) -> None:
    assert worker.call(die_on_the_first_try, str(tmp_path / "mark"), number) == "alive"
    with pytest.raises(SourceError, match=f"crashed: the decoding process died: {signal.Signals(number).name}"):
        worker.call(die_by, number)


def test_a_crash_is_not_tried_again(worker: child.Child, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="crashed: the decoding process died: SIGSEGV"):
        worker.call(die_on_the_first_try, str(tmp_path / "mark"), signal.SIGSEGV)


def test_a_child_killed_between_calls_or_while_it_starts_costs_nothing(
    worker: child.Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.call(double, 1)
    assert worker._process is not None
    worker._process.kill()
    assert worker.call(double, 2) == 4
    worker.close()
    start = subprocess.Popen

    def killed_at_once(*args: Any, **kwargs: Any) -> "subprocess.Popen[bytes]":
        monkeypatch.undo()
        begun = start(*args, **kwargs)
        begun.kill()
        return begun

    monkeypatch.setattr(subprocess, "Popen", killed_at_once)
    assert worker.call(double, 3) == 6


def test_a_child_that_cannot_start_or_has_no_space_blames_no_source(
    worker: child.Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StageError, match=r"disk: OSError: .*No space left"):
        worker.call(write_to_a_full_disk)
    worker.close()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StageError, match="stage_failed: as it started, the decoding process died: exit status 1"):
        worker.call(double, 1)


def test_progress_keeps_it_alive_up_to_the_whole_limit(worker: child.Child) -> None:
    assert worker.call(work_for, 3.0) == "done"
    with pytest.raises(SourceError, match=r"limits\.source_s"):
        worker.call(work_for, 30.0)


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import time; from curation.child import Child; from curation.media import MediaLimits;"
        "from tests.curation.test_child import double;"
        "c = Child(MediaLimits()); c.call(double, 1); print(c._process.pid, flush=True); time.sleep(60)"
    )
    root = Path(__file__).parent.parent.parent
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()
