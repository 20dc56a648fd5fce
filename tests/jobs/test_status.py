"""How far a run is, from its folder alone: live, dead, finished, failed, stopped."""

import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from curation import lock, run_folder, storage
from curation.errors import ConfigError
from jobs.events import log
from jobs.status import span, status
from tests.jobs.run_samples import make_run, row_of, shown

NOBODY = 2**22 + 1
"""No process has this number: it is above the largest that Linux gives out."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = tmp_path_factory.mktemp("runs") / "a run"
    make_run(run)
    return str(run)


def only_begun(of: str, at: Path) -> str:
    """The run as it is before its first unit is done."""
    for part in ("run.json", "units/unit-000000.parquet"):
        storage.write_bytes(str(at / part), (Path(of) / part).read_bytes())
    return str(at)


def write_log(run: str, *events: dict[str, Any], ago_s: float = 0.0) -> None:
    """A driver's log with these events, a second between two, the last so long ago."""
    at = datetime.now(UTC) - timedelta(seconds=ago_s + len(events) - 1)
    lines = [json.dumps({"time": (at + timedelta(seconds=i)).isoformat(), **e}) for i, e in enumerate(events)]
    file = Path(run) / "events" / "driver-9.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join([*lines, '{"time": "20']))
    os.utime(file, (datetime.now().timestamp() - ago_s,) * 2)


def test_what_is_on_disk_is_counted_without_any_event(run: str) -> None:
    page = shown(status(run))
    assert "1 of 1 analyzed" in row_of(page, "units  ")
    assert "7 = 3 ok + 2 rejected + 2 error" in row_of(page, "sources   7")
    assert row_of(page, "small").split() == ["small", "6", "2", "1", "of", "2", "0"]
    assert "the file has zero bytes" in row_of(page, " empty ")
    assert "--replay SOURCE_ID" in page


def test_a_live_run_shows_its_rate_and_the_time_left(run: str, tmp_path: Path) -> None:
    at = only_begun(run, tmp_path / "live run")
    with lock.hold(at), log(at) as events:
        events.event("input", sources=7)
        events.event("part", part="analyze", total=4, done=1)
        unit = {"unit": "unit-000001", "ok": 2, "rejected": 0, "error": 0, "video_s": 20.0, "in_error": []}
        events.event("unit", **unit)
        page = shown(status(at))
    assert f"working: process {os.getpid()} on {socket.gethostname()}" in row_of(page, "state")
    assert {"2", "of", "4", "50%"} <= set(row_of(page, "analyze", "sources/s").split())
    assert "0 of 7 = 0 ok" in row_of(page, "sources ", "of 7"), "what counts is committed, not said"
    assert "finished 0 s ago" in row_of(shown(status(at)), "state")


def test_a_dead_run_says_what_to_do(run: str, tmp_path: Path) -> None:
    at = only_begun(run, tmp_path)
    start = {"event": "start", "command": ["run", "--input", "a b"], "pid": NOBODY, "host": socket.gethostname()}
    write_log(at, start, {"event": "part", "part": "analyze", "total": 4, "done": 0}, ago_s=7300)
    storage.write_bytes(storage.join(at, lock.NAME), json.dumps({"pid": NOBODY, "host": socket.gethostname()}).encode())
    page = shown(status(at))
    assert "dead: process" in page and "last sign of life 2 h 1 min ago" in page and "same command again" in page
    assert "reelset run --input 'a b'" in row_of(page, "command   ")
    assert row_of(page, "analyze", "0 of 4")


def test_a_lease_is_believed_until_it_ends(run: str, tmp_path: Path) -> None:
    at = only_begun(run, tmp_path)
    write_log(at, {"event": "start", "command": [], "pid": 1, "host": "elsewhere"}, ago_s=7300)
    for until, word in ((2e10, "working"), (1e9, "dead")):
        storage.write_bytes(storage.join(at, lock.NAME), json.dumps({"pid": 1, "host": "elsewhere", "until": until}).encode())
        assert word in row_of(shown(status(at)), "state")


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ([{"event": "failed", "error": "OSError: no space"}], "failed 0 s ago: OSError: no space"),
        ([{"event": "outcome", "over_budget": True}, {"event": "end"}], "over the error budget"),
        ([{"event": "outcome", "over_budget": False}, {"event": "end"}], "finished 0 s ago"),
    ],
)
def test_how_a_run_ended(run: str, tmp_path: Path, ends: list[dict[str, Any]], says: str) -> None:
    at = only_begun(run, tmp_path)
    write_log(at, {"event": "start", "command": []}, *ends)
    assert says in row_of(shown(status(at)), "state")


def test_a_units_event_stands_for_its_table(run: str, tmp_path: Path) -> None:
    at = only_begun(run, tmp_path)
    storage.write_bytes(storage.join(at, "sources", "unit-000000.parquet"), b"never opened")
    bad = {"source_id": "5", "path": "x.mp4", "error_code": "empty"}
    write_log(at, {"event": "unit", "unit": "unit-000000", "ok": 6, "rejected": 0, "error": 1, "in_error": [bad]})
    page = shown(status(at))
    assert "7 = 6 ok + 0 rejected + 1 error" in page
    assert "14.3%" in row_of(page, "empty")


def test_a_budget_is_shown_where_there_is_one(run: str, tmp_path: Path) -> None:
    at = only_begun(run, tmp_path)
    page = run_folder.read(at)
    run_folder.write(at, page["config"] | {"error_budget": 0.05}, page["decides"])
    assert "error_budget 5.0%" in row_of(shown(status(at)), "sources", "ok")


def test_no_run_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run folder"):
        status(str(tmp_path))


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "0 s"), (61, "1 min 1 s"), (7300, "2 h 1 min"), (200_000, "2 d 7 h")])
def test_spans(seconds: float, said: str) -> None:
    assert span(seconds) == said
