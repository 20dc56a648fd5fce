import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from curation import storage
from jobs import events
from jobs.events import Events, log


def test_a_terminal_gets_a_bar_with_rate_and_others_plain_lines(tmp_path: Path) -> None:
    for terminal in (True, False):
        said = io.StringIO()
        shown = Events(str(tmp_path), Console(file=said, force_terminal=terminal, width=120))
        results = [{"unit": n} for n in range(3)]
        assert list(shown.track("analyze", results, total=5, done=2)) == results
        assert ("━" in said.getvalue()) == terminal
        assert ("5/5" if terminal else "analyze: 5 of 5") in said.getvalue()
        assert "/s" in said.getvalue() and "0.00/s" not in said.getvalue()


def test_every_event_is_a_line_of_json_also_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), log(str(tmp_path)) as kept:
        kept.event("unit", unit="unit-000000", ok=1)
        raise RuntimeError("no space")
    (file,) = (tmp_path / "events").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "unit", "failed"]
    assert lines[1]["unit"] == "unit-000000" and lines[2]["error"] == "RuntimeError: no space"
    assert all("time" in line for line in lines)


def test_a_long_log_on_an_object_store_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PIECE", 3)
    run = "memory://logs/run"
    with log(run) as said:
        for n in range(7):
            said.event("unit", unit=n)
            said.beat()
        assert len(said.lines) < 3, "what is written is held no longer"
    assert len(storage.names(f"{run}/events")) >= 3
    ((url, found),) = events.logs(run)
    assert storage.exists(url)
    assert [e["event"] for e in found] == ["start", *["unit"] * 7, "end"]
    assert [e["unit"] for e in found[1:-1]] == list(range(7))
    storage.remove("memory://logs")


def test_a_store_that_fails_hides_no_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise TimeoutError("the store is away")

    with pytest.raises(ValueError, match="the cause"), log("memory://logs/away"):
        monkeypatch.setattr(storage, "write_bytes", away)
        raise ValueError("the cause")
