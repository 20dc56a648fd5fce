"""What a command costs: wall time, CPU time and peak memory of it and of everything it starts."""

import ctypes
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

LOOK_S = 0.5
LINGER_S = 30.0
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Spent:
    """Cost of one command and its descendants; `peak_mb` is the largest sum of their resident sizes seen at once."""

    wall_s: float
    cpu_s: float
    peak_mb: float

    def __sub__(self, start_up: "Spent") -> "Spent":
        """What lies beyond a start-up; the memory is not lessened."""
        return Spent(self.wall_s - start_up.wall_s, self.cpu_s - start_up.cpu_s, self.peak_mb)


@dataclass
class _Tree:
    """The processes below this one, as they come and go; a process's last `LOOK_S` may be missed."""

    cpu_s: dict[tuple[int, float], float] = field(default_factory=dict)
    peak_mb: float = 0.0

    def look(self) -> int:
        """Take down what the processes have used; returns how many live."""
        resident = living = 0
        for process in psutil.Process().children(recursive=True):
            try:
                with process.oneshot():
                    times, size = process.cpu_times(), process.memory_info().rss
                    self.cpu_s[process.pid, process.create_time()] = times.user + times.system
                    living += process.status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                continue
            resident += size
        self.peak_mb = max(self.peak_mb, resident / 2**20)
        return living


def ffmpeg(*arguments: str | Path) -> None:
    """Run ffmpeg on one thread."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-threads", "1", "-filter_threads", "1"]
    subprocess.run([*command, *map(str, arguments)], check=True)


def commands_cpu_s() -> float:
    """CPU seconds of the commands that this process has run to their end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def spend(command: Sequence[str], cores: Collection[int] | None = None) -> Spent:
    """Run a command, held to some of the cores, and say what it cost. Raises RuntimeError where it fails.

    Processes that outlive the one that started them (Ray's do) are adopted, and counted until they end.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    ours = os.sched_getaffinity(0)
    tree, began = _Tree(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        os.sched_setaffinity(0, cores or ours)
        try:
            process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        finally:
            os.sched_setaffinity(0, ours)
        while process.poll() is None:
            tree.look()
            time.sleep(LOOK_S)
        wall_s = time.perf_counter() - began
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said.read()}")
    while tree.look() and time.perf_counter() - began - wall_s < LINGER_S:
        time.sleep(LOOK_S)
    _bury()
    return Spent(wall_s, sum(tree.cpu_s.values()), tree.peak_mb)


def _bury() -> None:
    """Collect the adopted processes that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
