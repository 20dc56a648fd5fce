"""Too many sources in error: the job stops as early as nothing can mend it, says why, and goes on when it may."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from curation import storage
from jobs import pipeline
from jobs.budget import Budget
from jobs.config import Config
from jobs.events import logs
from tests.media_samples import make_video, moving
from tests.promised import fingerprints
from tests.small_runs import driver, settings

ROOT = Path(__file__).parent.parent.parent
SOURCES, BAD = 12, 9
VERDICT = re.compile(r"over the error budget: (\d+) of (\d+) sources failed .*; (\d+) sources were not looked at")


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Nine files that are no films, by name before three pictures that are sound."""
    from PIL import Image

    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(BAD):
        (folder / f"{n:02d} bad.mp4").write_bytes(b"no film" + bytes([n]))
    for n in range(BAD, SOURCES):
        Image.new("RGB", (320, 320), (n, 0, 0)).save(folder / f"{n:02d} good.png")
    return folder


def units_of_one(share: float, kind: str = "inline") -> Config:
    return settings(kind, error_budget=share, units={"size": 1})


def test_a_job_stops_as_soon_as_nothing_can_mend_it(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    assert pipeline.run(str(films), run, units_of_one(0.4)) == 3
    done = storage.names(f"{run}/sources", ".parquet")
    assert len(done) == 5, "the fifth error is more than 0.4 of twelve; four may be mended by what comes"
    assert not storage.exists(f"{run}/selection"), "nothing is decided on half a run"
    said = capsys.readouterr().err
    assert "5 of 12 sources failed (41.7%), error_budget is 40.0%; 7 sources were not looked at any more" in said
    assert "raise error_budget and run again to go on" in said
    table = said[said.index("Sources in error") :]
    for words in ("not_media", "100.0%", "00 bad.mp4", "--replay SOURCE_ID"):
        assert words in table
    stamps = {name: Path(run, "sources", name).stat().st_mtime_ns for name in done}
    assert pipeline.run(str(films), run, units_of_one(0.4)) == 3
    assert len(storage.names(f"{run}/sources", ".parquet")) == 5, "known to be over: nothing more is done"
    assert pipeline.run(str(films), run, units_of_one(0.75)) == 0
    assert len(storage.names(f"{run}/sources", ".parquet")) == SOURCES
    assert {name: Path(run, "sources", name).stat().st_mtime_ns for name in done} == stamps
    assert storage.exists(f"{run}/selection")
    whole = str(tmp_path / "never stopped")
    assert pipeline.run(str(films), whole, units_of_one(1)) == 0
    assert fingerprints(run) == fingerprints(whole)


def test_a_bad_folder_that_comes_first_stops_no_job_that_would_end_within(films: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert pipeline.run(str(films), run, units_of_one(BAD / SOURCES)) == 0
    budget = Budget(run, BAD / SOURCES)
    budget.read()
    assert budget.states == {"error": BAD, "ok": SOURCES - BAD} and not budget.over
    assert budget.listed == SOURCES


@pytest.mark.faults
def test_ray_stops_too_and_what_it_says_is_what_stands_in_the_tables(tmp_path: Path) -> None:
    """Eight files that are no films, then sixteen that are, and take time: a third is in error, a tenth may be."""
    (tmp_path / "in").mkdir()
    for n in range(8):  # one in four is another kind of damage; no two are copies
        (tmp_path / "in" / f"a {n}.mp4").write_bytes((b"\x1aE\xdf\xa3 %d" if n % 4 == 0 else b"no film %d") % n)
    film = make_video(tmp_path / "film.mp4", moving(352, 208, seed=1), 140, 28).read_bytes()
    for n in range(16):
        (tmp_path / "in" / f"b {n:02d}.mp4").write_bytes(film + b"\0\0\0\x0cfree" + n.to_bytes(4, "big"))
    run = str(tmp_path / "run")
    command = driver(tmp_path / "in", run, "ray", units={"size": 1}, error_budget=0.1)
    wide = os.environ | {"COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=wide)
    assert done.returncode == 3, done.stderr[-3000:]
    found = VERDICT.search(done.stderr)
    assert found, done.stderr[-3000:]
    errors, listed, left = map(int, found.groups())
    assert listed == 24 and 3 <= errors <= 8 and left >= 12, "it went on after the budget was spent"
    rows = {row["source_id"]: row for row in storage.read_table(f"{run}/sources").to_pylist()}
    assert len(rows) <= listed - left + 4, "sources were looked at after the run had stopped"
    assert not storage.exists(f"{run}/selection")
    (outcome,) = (event for _, log in logs(run) for event in log if event["event"] == "outcome")
    assert outcome["over_budget"] and outcome["error"] == errors == sum(outcome["codes"].values())
    for code, number in outcome["codes"].items():
        line = next(line for line in done.stderr.splitlines() if re.match(rf"\W*{code}\b", line))
        assert re.search(rf"\b{number}\b.*\b{100 * number / (listed - left):.1f}%", line), line
        (example,) = (row for name, row in rows.items() if name in line)
        assert example["error_code"] == code and example["path"] in done.stderr
