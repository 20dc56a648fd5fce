"""Too many sources in error: the job stops as early as nothing can mend it, says why, and goes on when it may."""

import subprocess
import sys
from pathlib import Path

import pytest

from curation import storage
from jobs import pipeline
from jobs.budget import Budget
from jobs.config import Config
from tests.jobs.conftest import settings

ROOT = Path(__file__).parent.parent.parent
SOURCES, BAD = 12, 9


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


def test_a_bad_folder_that_comes_first_stops_no_job_that_would_end_within(films: Path, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert pipeline.run(str(films), run, units_of_one(BAD / SOURCES)) == 0
    budget = Budget(run, BAD / SOURCES)
    budget.read()
    assert budget.states == {"error": BAD, "ok": SOURCES - BAD} and not budget.over
    assert budget.listed == SOURCES


@pytest.mark.faults
def test_ray_stops_too(films: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from jobs import pipeline; from tests.jobs.test_budget import units_of_one;"
        "sys.exit(pipeline.run(sys.argv[1], sys.argv[2], units_of_one(0.1, 'ray')))"
    )
    command = [sys.executable, "-c", code, str(films), str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 3, done.stderr[-3000:]
    assert "over the error budget" in done.stderr and "not_media" in done.stderr
    assert not storage.exists(str(tmp_path / "run" / "selection"))
