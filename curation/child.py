"""A killable child process that does the dangerous work of an actor: opening and decoding what strangers made.

The child answers one call at a time. One that makes no progress, takes too long, takes too much memory or dies costs
that call only; the next call starts a fresh child. One that was killed from outside says nothing of what it worked on:
its call is made once more. A child never outlives its parent.
"""

import contextlib
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from curation.errors import ConfigError, ReelsetError, SourceError, StageError
from curation.media import MediaLimits
from curation.storage import FULL

P = ParamSpec("P")
T = TypeVar("T")
POLL_S = 0.25
BEAT_EVERY_S = 0.5
START_S = 120.0
RAISED: dict[str, type[ReelsetError]] = {"error": SourceError, "stage": StageError, "config": ConfigError}
FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM)
"""How a child ends that the kernel's out-of-memory killer or a person killed; no decoder ends itself so."""


@dataclass(frozen=True)
class Usage:
    """What a call cost the child: CPU seconds of all its threads, and its largest resident size in MB."""

    cpu_s: float
    peak_mb: float


class Child:
    """Runs module-level functions in a child process, under the limits of time and memory of `MediaLimits`."""

    def __init__(self, limits: MediaLimits) -> None:
        self.limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._calls = 0
        self.usage = Usage(0.0, 0.0)
        """What the last call cost. Of a child that was killed only its memory is known."""

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(*args)` in the child. What it cost, also where it fails, is then in `usage`.

        Raises the function's own SourceError, StageError or ConfigError, or SourceError timeout, memory or crashed; any
        other exception of the function becomes SourceError internal. Raises StageError where this machine is at fault: no
        child can be started, or there is no space for temporary data.
        """
        with contextlib.suppress(_KilledError):
            return self._call(function, *args, **kwargs)
        return self._call(function, *args, **kwargs)

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        self.usage = Usage(0.0, 0.0)
        answered = False
        try:
            process, pipe = self._running()
            self._calls += 1
            try:
                pipe.send((self._calls, function, args, kwargs))
                number, kind, value, self.usage = self._answer(process, pipe)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise _death(process) from None
            answered = number == self._calls
        finally:
            if not answered:  # also where the caller is interrupted: a late answer must not meet the next call
                self.close()
        if not answered:
            raise SourceError("crashed", "the decoding process answered another call")
        if kind in RAISED:
            raise RAISED[kind](*value)
        return value  # type: ignore[no-any-return]

    def close(self) -> None:
        """Stop the child."""
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is not None:
            process.kill()
            process.wait()

    def _running(self) -> tuple[subprocess.Popen[bytes], Connection]:
        if self._process is None or self._pipe is None or self._process.poll() is not None:
            self.close()
            ours, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "curation.child", str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
                )
            self._pipe = Connection(ours.detach())
            self._wait_until_ready(self._process, self._pipe)
        return self._process, self._pipe

    def _wait_until_ready(self, process: subprocess.Popen[bytes], pipe: Connection) -> None:
        """Let the interpreter start: on a busy machine that takes longer than a short `stall_s`."""
        try:
            if not pipe.poll(START_S) or pipe.recv() != ("ready",):
                raise StageError("stage_failed", f"the decoding process did not start within {START_S:g} s")
        except (EOFError, ConnectionResetError):
            death = _death(process)
            if isinstance(death, _KilledError):
                raise death from None
            raise StageError("stage_failed", f"as it started, {death.message}") from None

    def _answer(self, process: subprocess.Popen[bytes], pipe: Connection) -> tuple[int, str, Any, Usage]:
        began = heard = time.monotonic()
        while True:
            if pipe.poll(POLL_S):
                message = pipe.recv()
                if message[0] != "beat":
                    return message  # type: ignore[no-any-return]
                heard = time.monotonic()
            resident = _resident_mb(process.pid)
            self.usage = Usage(0.0, max(self.usage.peak_mb, resident))
            if resident > self.limits.memory_mb:
                raise SourceError("memory", f"more than {self.limits.memory_mb:g} MB (limits.memory_mb)")
            now = time.monotonic()
            if now - heard > self.limits.stall_s:
                raise SourceError("timeout", f"no progress for {self.limits.stall_s:g} s (limits.stall_s)")
            if now - began > self.limits.source_s:
                raise SourceError("timeout", f"more than {self.limits.source_s:g} s (limits.source_s)")


@lru_cache(maxsize=1)
def shared(limits: MediaLimits) -> Child:
    """This process's one child, shared by the stages of an actor."""
    return Child(limits)


def beat() -> None:
    """Tell the parent that work goes on. Costs next to nothing, and is silent outside a child."""
    _beats.beat()


class _Beats:
    def __init__(self) -> None:
        self.pipe: Connection | None = None
        self.last = 0.0

    def beat(self) -> None:
        now = time.monotonic()
        if self.pipe is not None and now - self.last > BEAT_EVERY_S:
            self.last = now
            self.pipe.send(("beat",))


_beats = _Beats()


class _KilledError(SourceError):
    """The child was killed from outside."""


def _death(process: subprocess.Popen[bytes]) -> SourceError:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    code = process.returncode
    if code is None or code >= 0:
        return SourceError("crashed", f"the decoding process died: exit status {code}")
    names = {s.value: s.name for s in signal.Signals}
    kind = _KilledError if code in FROM_OUTSIDE else SourceError
    return kind("crashed", f"the decoding process died: {names.get(-code, f'signal {-code}')}")


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 2**20


def _die_with(parent: int) -> None:
    """End this process when its parent is gone, however the parent ended.

    The kernel's own signal (PR_SET_PDEATHSIG) is no use: it comes when the parent's *thread* ends.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(descriptor: int, parent: int) -> None:
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process in its own way
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe = _beats.pipe = Connection(descriptor)
    pipe.send(("ready",))
    while True:
        try:
            number, function, args, kwargs = pipe.recv()
        except EOFError:
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        before = resource.getrusage(resource.RUSAGE_SELF)
        try:
            kind, value = "value", function(*args, **kwargs)
        except SourceError as error:
            kind, value = "error", (error.code, error.message)
        except StageError as error:
            kind, value = "stage", (error.code, error.message)
        except ConfigError as error:
            kind, value = "config", (str(error),)
        except MemoryError:
            kind, value = "error", ("memory", "no memory left")
        except OSError as error:
            full = error.errno in FULL
            kind, value = "stage" if full else "error", ("disk" if full else "internal", f"{type(error).__name__}: {error}")
        except Exception as error:
            kind, value = "error", ("internal", f"{type(error).__name__}: {error}")
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        usage = Usage(cpu, _peak_mb())
        try:
            pipe.send((number, kind, value, usage))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            pipe.send((number, "error", ("internal", f"the result cannot be sent: {error}"), usage))


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


if __name__ == "__main__":
    # Under `-m` this file is `__main__`: serve from the importable module, so that `beat` and the pipe are one.
    from curation import child

    child._serve(int(sys.argv[1]), int(sys.argv[2]))
