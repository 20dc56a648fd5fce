"""What a run says while it works: a progress bar on a terminal, plain lines elsewhere, and `events/*.jsonl` for later."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from curation import storage
from jobs import metrics

PLAIN_EVERY_S = 10.0
BEAT_S = 15.0
"""Seconds between two signs of life of a driver: its log's time on a disk, the log put again on an object store."""
PIECE = 2000
"""Lines of a piece of a log on an object store: half a megabyte or so."""


class Events:
    """Tells people on standard error, and keeps every event as a line of `events/<process>.jsonl`.

    An object store cannot append: there the last piece of the log is put again every `BEAT_S` seconds in which something
    happened, and the next one is begun when it has `PIECE` lines.
    """

    def __init__(self, run: str, console: Console | None = None) -> None:
        self.run = run
        self.console = console or Console(stderr=True, highlight=False)
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.name = storage.join(run, "events", f"driver-{started}-{os.getpid()}")
        self.pieces = 0
        self.lines: list[str] = []
        """Those of the last piece on an object store; on a disk those that are not written yet."""
        self.new = False
        self.writing = threading.Lock()

    @property
    def url(self) -> str:
        """Where the log, or the last piece of it, stands."""
        return f"{self.name}{f'.{self.pieces:06d}' if self.pieces else ''}.jsonl"

    def event(self, kind: str, **facts: Any) -> None:
        """Record one event."""
        with self.writing:
            self.lines.append(json.dumps({"time": datetime.now(UTC).isoformat(), "event": kind, **facts}) + "\n")
            self.new = True
        if not storage.is_remote(self.url):
            self.flush()

    def flush(self) -> None:
        """Bring the log to the run folder."""
        with self.writing:
            if storage.is_remote(self.url):
                storage.write_bytes(self.url, "".join(self.lines).encode())
                if len(self.lines) >= PIECE:
                    self.pieces += 1
                    self.lines = []
            else:
                path = storage.local_path(self.url)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a") as file:
                    file.writelines(self.lines)
                self.lines = []
            self.new = False

    def beat(self) -> None:
        """Show that this process lives. A disk or store that refuses is asked again at the next beat."""
        with contextlib.suppress(OSError):
            if not storage.is_remote(self.url):
                os.utime(storage.local_path(self.url))
            elif self.new:
                self.flush()

    def say(self, text: str) -> None:
        """One line for people."""
        self.console.print(text, markup=False, soft_wrap=True)

    def show(self, table: Table) -> None:
        """A table for people."""
        self.console.print(table)

    def track(self, what: str, results: Iterable[dict[str, Any]], total: int, done: int = 0) -> Iterator[dict[str, Any]]:
        """Pass results on while showing how far `what` is, at what rate, and how long it will still take."""
        if total == done:
            return
        self.event("part", part=what, total=total, done=done)
        show = self._bar if self.console.is_terminal else self._lines
        for now_done, result in enumerate(show(what, results, total, done), done + 1):
            metrics.finished_one(self.run, what, total - now_done)
            yield result

    def _bar(self, what: str, results: Iterable[dict[str, Any]], total: int, done: int) -> Iterator[dict[str, Any]]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=False) as bar:
            task = bar.add_task(what, total=total, completed=done, rate="")
            for result in results:
                bar.update(task, advance=1)
                state = bar.tasks[0]
                bar.update(task, rate=f"{(state.completed - done) / max(state.elapsed or 0, 1e-3):.2f}/s")
                yield result

    def _lines(self, what: str, results: Iterable[dict[str, Any]], total: int, done: int) -> Iterator[dict[str, Any]]:
        start = last = time.monotonic()
        now_done = done
        for result in results:
            now_done += 1
            now = time.monotonic()
            if now - last >= PLAIN_EVERY_S or now_done == total:
                rate = (now_done - done) / max(now - start, 1e-9)
                left = (total - now_done) / rate
                self.say(f"{what}: {now_done} of {total}, {rate:.2f}/s, {left:.0f} s left")
                last = now
            yield result


@contextlib.contextmanager
def log(run: str) -> Iterator[Events]:
    """The events of one command on one run folder, with a sign of life every `BEAT_S` seconds."""
    events = Events(run)
    events.event("start", command=sys.argv[1:], pid=os.getpid(), host=socket.gethostname())
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(events, ended), daemon=True)
    beating.start()
    try:
        yield events
        events.event("end")
        events.flush()
    except BaseException as error:
        with contextlib.suppress(OSError):  # the disk or store that failed may be the one that this goes to
            events.event("failed", error=f"{type(error).__name__}: {error}"[:2000])
            events.flush()
        raise
    finally:
        ended.set()
        beating.join()


def _beat(events: Events, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        events.beat()


def logs(run: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The logs of a run, oldest first, each as the URL of its last piece and its events.

    A line that a kill cut short is passed over.
    """
    folder = storage.join(run, "events")
    for _, pieces in groupby(storage.names(folder, ".jsonl"), key=lambda name: name.split(".")[0]):
        events = []
        for url in (storage.join(folder, name) for name in sorted(pieces, key=len)):
            for line in storage.read_bytes(url).splitlines():
                with contextlib.suppress(ValueError):
                    events.append(json.loads(line))
        yield url, events
