"""The error budget: when a run stops, what it says then, what it leaves, and how it goes on."""

import json
import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from curation import storage
from jobs.events import logs
from tests.media_samples import make_video, moving
from tests.promised import fingerprints
from tests.small_runs import driver

ROOT = Path(__file__).parent.parent.parent
FILMS, BROKEN = 16, 8
LISTED = FILMS + BROKEN
ACTORS = 4
"""Of half a CPU at least on two: units that may still be committed while the driver stops."""
VERDICT = re.compile(
    r"over the error budget: (\d+) of (\d+) sources failed \(([\d.]+)%\), error_budget is ([\d.]+)%(?:; (\d+) sources were not)?"
)

Go = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight files that are no films, and then sixteen that are: a third is in error, and all of it comes first."""
    folder = tmp_path_factory.mktemp("budget") / "in"
    folder.mkdir()
    for n in range(BROKEN):  # three of four are no media; no two are copies
        (folder / f"a {n}.mp4").write_bytes((b"\x1aE\xdf\xa3 %d" if n % 4 == 3 else b"no film %d") % n)
    film = make_video(folder.parent / "film.mp4", moving(352, 208, seed=1), 140, 28).read_bytes()
    for n in range(FILMS):
        (folder / f"b {n:02d}.mp4").write_bytes(film + b"\0\0\0\x0cfree" + n.to_bytes(4, "big"))
    return folder


@pytest.fixture
def go(corpus: Path, tmp_path: Path) -> Go:
    """A run over them with a budget, a unit a source."""

    def go(engine: str, budget: float, run: str = "run") -> "subprocess.CompletedProcess[str]":
        wide = os.environ | {"COLUMNS": "200"}
        command = driver(corpus, tmp_path / run, engine, units={"size": 1}, error_budget=budget)
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, env=wide)

    return go


def outcomes(run: Path) -> Counter[str]:
    return Counter(storage.read_table(str(run / "sources"), columns=["status"])["status"].to_pylist())


@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_a_run_that_cannot_end_within_its_budget_stops_and_says_why(go: Go, tmp_path: Path, engine: str) -> None:
    """A tenth of 24 sources is two: the third in error ends the run, long before its last source."""
    done, run = go(engine, 0.1), tmp_path / "run"
    assert done.returncode == 3, done.stderr
    found = VERDICT.search(done.stderr)
    assert found, done.stderr
    errors, listed, left = int(found[1]), int(found[2]), int(found[5] or 0)
    assert listed == LISTED and found[4] == "10.0" and found[3] == f"{100 * errors / LISTED:.1f}"
    seen = listed - left
    if engine == "inline":
        assert (errors, left) == (3, LISTED - 3)
    else:
        assert 3 <= errors <= BROKEN and left >= LISTED / 2, "it went on after the budget was spent"
    assert outcomes(run).total() <= seen + ACTORS, "sources were looked at after the run had stopped"
    assert f"sources: {seen} = " in done.stderr
    assert not (run / "selection").exists() and not (run / "shards").exists()

    events = [event for _, log in logs(str(run)) for event in log]
    (outcome,) = (event for event in events if event["event"] == "outcome")
    assert outcome["over_budget"] and outcome["error"] == errors == sum(outcome["codes"].values())
    assert sum(event["event"] == "unit" for event in events) <= seen

    # The table: each code with its count, its share of what was seen, and one source of it that is there.
    rows = {row["source_id"]: row for row in storage.read_table(str(run / "sources")).to_pylist()}
    assert "Sources in error" in done.stderr
    for code, number in outcome["codes"].items():
        line = next(line for line in done.stderr.splitlines() if re.match(rf"\W*{code}\b", line))
        assert re.search(rf"\b{number}\b.*\b{100 * number / seen:.1f}%", line), line
        (example,) = (row for name, row in rows.items() if name in line)
        assert example["error_code"] == code and example["path"] in done.stderr
    assert f"reelset inspect {run} --replay SOURCE_ID" in done.stderr


def test_what_was_stopped_stays_stopped_until_the_budget_is_raised(go: Go, tmp_path: Path) -> None:
    """Run again it does no work and says the same; with a larger budget it goes on, to the bytes of a run never stopped."""
    run = tmp_path / "run"
    assert go("inline", 0.1).returncode == 3
    before = fingerprints(str(run))
    again = go("inline", 0.1)
    assert again.returncode == 3 and VERDICT.search(again.stderr) and "Sources in error" in again.stderr
    assert fingerprints(str(run)) == before
    assert sum(event["event"] == "unit" for _, log in logs(str(run)) for event in log) == 3

    at_it = go("inline", BROKEN / LISTED)
    assert at_it.returncode == 0, at_it.stderr
    assert "error budget" not in at_it.stderr, "as many as the budget allows are not too many"
    assert outcomes(run) == {"ok": FILMS, "error": BROKEN}
    assert before.items() <= fingerprints(str(run)).items()
    assert go("inline", 1.0, "never stopped").returncode == 0
    assert fingerprints(str(run)) == fingerprints(str(tmp_path / "never stopped"))

    over = go("inline", BROKEN / LISTED - 0.001)
    assert over.returncode == 3
    found = VERDICT.search(over.stderr)
    assert found and (int(found[1]), found[5]) == (BROKEN, None), "nothing was left out, and nothing of the kind is said"
    assert json.loads((run / "run.json").read_text())["config"]["error_budget"] < BROKEN / LISTED
