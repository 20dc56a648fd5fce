"""A source that kills every worker is given up after a bounded number of deaths, and costs nothing else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from curation import engine, storage
from curation.engine import EngineConfig, PoolConfig, Step
from curation.errors import StageError
from curation.sources import UNITS
from curation.stage import Source, Stage
from curation.tables import SOURCES
from jobs.analyze import AnalyzeUnits
from jobs.attempts import TRIES, Attempts


def unit(*names: str) -> list[Source]:
    empty = dict.fromkeys(SOURCES.names) | {"unit": "u", "status": "ok", "kind": "video", "bytes": 1}
    return [Source("u", name, empty | {"source_id": name, "path": name}) for name in names]


def work(run: Path, driver: str, deadly: str | None) -> list[Source] | None:
    """One worker's attempt at the unit; None where it died, at the source named or at "write"."""
    attempts = Attempts(str(run), "u", driver)
    done = []
    for source in attempts.guard(iter(unit("a", "b", "c"))):
        if source.live and source.row["source_id"] == deadly:
            return None
        done.append(source)
    if deadly == "write":
        return None
    attempts.done()
    return done


def test_a_deadly_source_is_given_up_and_its_neighbours_are_not(tmp_path: Path) -> None:
    attempts = [work(tmp_path, "one", "b") for _ in range(TRIES + 1)]
    assert attempts == [None] * (TRIES + 1)  # the first death says nothing of which source it was
    done = work(tmp_path, "one", "b")
    assert done is not None
    assert [(s.row["status"], s.row["error_code"]) for s in done] == [("ok", None), ("error", "worker_died"), ("ok", None)]
    assert storage.names(str(tmp_path / "attempts")) == []


def test_deaths_of_drivers_do_not_count(tmp_path: Path) -> None:
    for driver in range(3 * TRIES):
        for _ in range(TRIES):
            assert work(tmp_path, str(driver), "b") is None
    done = work(tmp_path, "last", None)
    assert done is not None and all(s.row["status"] == "ok" for s in done)


def test_a_unit_that_cannot_be_written_ends_the_job_and_blames_no_source(tmp_path: Path) -> None:
    for _ in range(TRIES + 1):
        assert work(tmp_path, "one", "write") is None
    with pytest.raises(StageError, match="stage_failed: 3 workers died as they wrote"):
        work(tmp_path, "one", "write")


class Deadly(Stage):
    """Kills its process at the source whose path says so."""

    name = "deadly"

    def one(self, source: Source) -> None:
        if "deadly" in source.row["path"]:
            os.kill(os.getpid(), signal.SIGKILL)


def on_ray(run: str) -> None:
    """Two units through a pool, in a process of its own: Ray leaves threads and warnings behind."""
    step = Step(AnalyzeUnits(run, [Deadly()], reads=True, writes=True), PoolConfig(cpus=0.5, max_actors=2))
    results = list(engine.run([{"unit": "u1"}, {"unit": "u2"}], [step], EngineConfig(kind="ray")))
    assert sorted(r["unit"] for r in results) == ["u1", "u2"]


@pytest.mark.faults
def test_ray_goes_on_after_a_source_that_kills_its_actor_every_time(tmp_path: Path) -> None:
    for name, paths in {"u1": ["a", "deadly", "b"], "u2": ["c"]}.items():
        rows = [{"unit": name, "path": p, "url": p, "bytes": 1, "kind": "video"} for p in paths]
        storage.write_table(str(tmp_path / "units" / f"{name}.parquet"), storage.rows_table(rows, UNITS))
    code = "import sys; from tests.jobs.test_attempts import on_ray; on_ray(sys.argv[1])"
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    table = storage.read_table(str(tmp_path / "sources"), SOURCES)
    codes = dict(zip(table["path"].to_pylist(), table["error_code"].to_pylist(), strict=True))
    assert codes == {"a": None, "deadly": "worker_died", "b": None, "c": None}
