"""What a run says while it works: a progress bar on a terminal, plain lines elsewhere, and `events/*.jsonl` for later."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from curation import storage

PLAIN_EVERY_S = 10.0


class Events:
    """Tells people on standard error, and keeps every event as a line of `events/<process>.jsonl`.

    An object store cannot append: there the whole log is put again at the end of each part of the path.
    """

    def __init__(self, run: str, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        self.url = storage.join(run, "events", f"driver-{started}-{os.getpid()}.jsonl")
        self.lines: list[str] = []
        self.written = 0

    def event(self, kind: str, **facts: Any) -> None:
        """Record one event."""
        self.lines.append(json.dumps({"time": datetime.now(UTC).isoformat(), "event": kind, **facts}))
        if not storage.is_remote(self.url):
            self.flush()

    def flush(self) -> None:
        """Bring the log to the run folder."""
        if storage.is_remote(self.url):
            storage.write_bytes(self.url, "".join(f"{line}\n" for line in self.lines).encode())
            return
        path = storage.local_path(self.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.writelines(f"{line}\n" for line in self.lines[self.written :])
        self.written = len(self.lines)

    def say(self, text: str) -> None:
        """One line for people."""
        self.console.print(text, markup=False, soft_wrap=True)

    def track(self, what: str, results: Iterable[dict[str, Any]], total: int, done: int = 0) -> Iterator[dict[str, Any]]:
        """Pass results on while showing how far `what` is, at what rate, and how long it will still take."""
        if total == done:
            return
        show = self._bar if self.console.is_terminal else self._lines
        yield from show(what, results, total, done)

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
    """The events of one command on one run folder."""
    events = Events(run)
    events.event("start", command=sys.argv[1:], pid=os.getpid())
    try:
        yield events
        events.event("end")
    except BaseException as error:
        events.event("failed", error=f"{type(error).__name__}: {error}"[:2000])
        raise
    finally:
        events.flush()
