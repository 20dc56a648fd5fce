"""How far a run is, live or dead, from its folder alone: `reelset status`.

The event logs say what each finished unit came to, so a run of 100 000 units is shown without opening its tables; a
unit whose event was lost with its driver is read from its table.
"""

import json
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any

from curation import lock, run_folder, storage
from jobs.analyze import done_units
from jobs.budget import Budget
from jobs.events import BEAT_S, logs
from jobs.inspect import connect, facts_table, new_table, rows, texts

if TYPE_CHECKING:
    from rich.console import RenderableType

Event = dict[str, Any]
PART_OF = {"unit": "analyze", "embedded": "embed", "index": "index", "compare": "compare", "assign": "assign"}
PART_OF |= {"cut": "cut", "shard": "pack"}
"""Which part of the path an event counts for."""
SILENT_S = 4 * BEAT_S
"""A driver that gave no sign of life for so long is taken for dead."""


@dataclass
class Part:
    """One part of the path under the last driver that worked on it. Times are seconds since the epoch."""

    name: str
    total: int
    before: int
    """Items that earlier drivers had done."""
    began: float
    last: float
    done: int = 0
    sources: int = 0
    video_s: float = 0.0

    def row(self, now: float | None) -> list[Any]:
        """Its row of the table; `now` is None where nobody works on it."""
        count = self.before + self.done
        took = max((now or self.last) - self.began, 1e-3)
        rate = self.done / took
        speed = f"{self.sources / took:.3g} sources/s, {self.video_s / took:.3g} x real time" if self.sources else ""
        left = span((self.total - count) / rate) if now and rate and count < self.total else ""
        return [
            self.name,
            f"{count} of {self.total}",
            f"{count / self.total:.0%}",
            f"{rate:.3g}/s" if rate else "",
            left,
            speed,
        ]


def status(run: str) -> "RenderableType":
    """State of the last driver, progress and rate of each part, sources by outcome, subsets, and errors by code.

    Raises ConfigError where `run` is no run folder.
    """
    from rich.console import Group
    from rich.text import Text

    config = run_folder.read(run)["config"]
    known = list(logs(run))
    now = time()
    live, state = _state(run, *known[-1], now) if known else (False, "no command has worked on it")
    events = [event for _, log in known for event in log]
    budget = _tally(run, events, config.get("error_budget", 1.0))
    command = next((e["command"] for e in reversed(events) if e.get("event") == "start"), None)
    facts = {"state": state, "command": shlex.join(["reelset", *command]) if command else None}
    facts |= {"units": f"{len(done_units(run))} of {len(storage.names(storage.join(run, 'units'), '.parquet'))} analyzed"}
    facts |= {"sources": _sources(budget, events)}
    shown: list[RenderableType] = [facts_table(run, {k: v for k, v in facts.items() if v is not None})]
    parts = _parts(events)
    if parts:
        working = next(reversed(parts)) if live else None
        table = new_table("part", "done", "", "rate", "left", "", title="Progress")
        for name, part in parts.items():
            table.add_row(*texts(*part.row(now if name == working else None)))
        shown.append(table)
    shown += _subsets(run)
    if budget.codes:
        shown += [budget.table(), Text(budget.hint)]
    return Group(*shown)


def _state(run: str, url: str, events: Sequence[Event], now: float) -> tuple[bool, str]:
    """Whether the driver of this log lives, and what to say of it."""
    last = {event.get("event"): event for event in events}
    ended = last.get("failed") or last.get("end")
    start = last.get("start", {})
    who = f"process {start.get('pid', '?')} on {start.get('host', '?')}"
    if ended:
        when = f"{span(now - _time(ended))} ago"
        if ended["event"] == "failed":
            return False, f"failed {when}: {ended.get('error')}"
        if last.get("outcome", {}).get("over_budget"):
            return False, f"stopped {when}, over the error budget: raise error_budget and run again to go on"
        return False, f"finished {when}"
    heard = _time(events[-1]) if events else 0.0
    if not storage.is_remote(url):
        heard = max(heard, storage.local_path(url).stat().st_mtime)
    silent = span(now - heard)
    if _holds(run, now, heard):
        return True, f"working: {who}, last sign of life {silent} ago"
    return False, f"dead: {who} ended without a word; last sign of life {silent} ago. Run the same command again to go on"


def _holds(run: str, now: float, heard: float) -> bool:
    """Whether somebody works on the run: its lock's owner lives, as far as this machine can see."""
    try:
        owner = json.loads(storage.read_bytes(storage.join(run, lock.NAME)))
    except (FileNotFoundError, ValueError):
        return False
    if "until" in owner:  # a lease on an object store
        return bool(now < owner["until"])
    if owner.get("host") == socket.gethostname() and not Path(f"/proc/{owner.get('pid')}").exists():
        return False
    return now - heard < SILENT_S


def _tally(run: str, events: Sequence[Event], share: float) -> Budget:
    """The sources of all analyzed units by outcome and code."""
    said = {event["unit"]: event for event in events if event.get("event") == "unit" and "in_error" in event}
    budget = Budget(run, share)
    done = done_units(run)
    for unit in done:
        if unit in said:
            budget.spend(said[unit])
    budget.read([unit for unit in done if unit not in said])
    return budget


def _sources(budget: Budget, events: Sequence[Event]) -> str:
    listed = next((event["sources"] for event in reversed(events) if event.get("event") == "input"), None)
    counts = " + ".join(f"{budget.states[state]} {state}" for state in ("ok", "rejected", "error"))
    share = budget.states["error"] / max(budget.seen, 1)
    allowed = f" ({share:.1%} in error, error_budget {budget.share:.1%})" if budget.share < 1 else ""
    return f"{budget.seen}{f' of {listed}' if listed else ''} = {counts}{allowed}"


def _parts(events: Sequence[Event]) -> dict[str, Part]:
    """The parts of the path as the last driver that began each one left them, in the order in which they began."""
    found: dict[str, Part] = {}
    for event in events:
        kind, when = event.get("event"), _time(event)
        if kind == "part":
            found.pop(event["part"], None)
            found[event["part"]] = Part(event["part"], event["total"], event["done"], when, when)
        elif (part := found.get(PART_OF.get(str(kind), ""))) is not None:
            part.done += 1
            part.last = when
            part.sources += sum(event.get(state, 0) for state in ("ok", "rejected", "error"))
            part.video_s += event.get("video_s", 0.0)
    return found


def _time(event: Event) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


PROGRESS = """
    WITH s AS (SELECT subset, count(*) AS clips, count(*) FILTER (kept) AS kept, count(DISTINCT shard) AS planned
               FROM selection GROUP BY 1),
         p AS (SELECT subset, count(DISTINCT shard) AS done, count(*) FILTER (status <> 'ok') AS failed
               FROM produced GROUP BY 1)
    SELECT s.*, coalesce(p.done, 0) AS done, coalesce(p.failed, 0) AS failed
    FROM s LEFT JOIN p USING (subset) ORDER BY s.subset"""
"""Clips, kept, and shards planned and written, a row a subset."""


def _subsets(run: str) -> "list[RenderableType]":
    with connect(run, ("selection", "produced")) as connection:
        progress = rows(connection, PROGRESS)
    table = new_table("subset", "clips", "kept", "shards written", "samples failed", title="Subsets")
    for row in progress:
        table.add_row(*texts(row["subset"], row["clips"], row["kept"], f"{row['done']} of {row['planned']}", row["failed"]))
    return [table] if progress else []


def span(seconds: float) -> str:
    """A length of time as people say it."""
    whole = max(0, round(seconds))
    for size, unit, smaller, rest in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {rest}"
    return f"{whole} s"
