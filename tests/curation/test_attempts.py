"""What kills every worker is given up after a bounded number of deaths, and costs nothing else."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bucketing.cut import EncodeConfig, Made
from curation import attempts, engine, storage
from curation.attempts import NO_SOURCE, TRIES, Attempt
from curation.engine import Chain, EngineConfig, Item, PoolConfig, Step
from curation.errors import SourceError, StageError
from curation.media import MediaLimits
from curation.sources import UNITS
from curation.stage import Source, Stage
from curation.tables import CLIPS, SERIES, SOURCES
from jobs.analyze import AnalyzeUnits, begun
from jobs.produce import CutUnits

ROOT = Path(__file__).parent.parent.parent


class Died(BaseException):
    """Stands for a worker's death: nothing of the attempt is done any more."""


def unit(*names: str) -> list[Source]:
    empty = dict.fromkeys(SOURCES.names) | {"unit": "u", "status": "ok", "kind": "video", "bytes": 1}
    return [Source("u", name, empty | {"source_id": name, "path": name}) for name in names]


def work(mark: Path, deadly: str | None) -> list[Source] | None:
    """One worker's attempt at a unit; None where it died, at the source named or at none."""
    done = []
    try:
        with Attempt(str(mark), "measure u"):
            for source in begun(unit("a", "b", "c")):
                if source.live and source.row["source_id"] == deadly:
                    raise Died
                done.append(source)
            if deadly == NO_SOURCE:
                raise Died
    except Died:
        return None
    return done


def test_a_deadly_source_is_given_up_and_its_neighbours_are_not(tmp_path: Path) -> None:
    mark = tmp_path / "marks" / "0.json"
    tried = [work(mark, "b") for _ in range(TRIES + 1)]
    assert tried == [None] * (TRIES + 1)  # the first death says nothing of which source it was
    done = work(mark, "b")
    assert done is not None
    assert [(s.row["status"], s.row["error_code"]) for s in done] == [("ok", None), ("error", "worker_died"), ("ok", None)]
    assert not mark.exists()


def test_two_deadly_sources_are_both_given_up(tmp_path: Path) -> None:
    mark = tmp_path / "0.json"
    deadly = ["a"] * (TRIES + 1) + ["c"] * TRIES
    assert [work(mark, name) for name in deadly] == [None] * len(deadly)
    done = work(mark, None)
    assert done is not None
    assert [s.row["error_code"] for s in done] == ["worker_died", None, "worker_died"]


def test_deaths_at_no_source_end_the_job_and_blame_none(tmp_path: Path) -> None:
    for _ in range(TRIES + 1):
        assert work(tmp_path / "0.json", NO_SOURCE) is None
    with pytest.raises(StageError, match="stage_failed: 3 workers died at measure u, and at none of its sources"):
        work(tmp_path / "0.json", NO_SOURCE)


def test_nothing_is_noted_outside_an_attempt(tmp_path: Path) -> None:
    attempts.at("a")
    with Attempt(str(tmp_path / "0.json"), "u"):
        before = (tmp_path / "0.json").read_bytes()
        attempts.at("a")
        assert (tmp_path / "0.json").read_bytes() == before  # no worker died here: a source costs no write


class Deadly(Stage):
    """Kills its process at the source whose path says so."""

    name = "deadly"

    def one(self, source: Source) -> None:
        if "deadly" in source.row["path"]:
            os.kill(os.getpid(), signal.SIGKILL)


class DeadlyCut(CutUnits):
    """Kills its process at the film of that name; cuts nothing of the others."""

    def make(self, url: str, source: object, cuts: list[object], folder: str) -> list[Made]:  # type: ignore[override]
        try:
            attempts.at(source["source_id"])  # type: ignore[index]
        except SourceError as error:
            return [Made(cut.key, None, error.code, error.message) for cut in cuts]  # type: ignore[attr-defined]
        if "deadly" in url:
            os.kill(os.getpid(), signal.SIGKILL)
        return [Made(cut.key, None, "encode_failed", "not today") for cut in cuts]  # type: ignore[attr-defined]


class DeadlyEmbed:
    """Kills its process after the unit is analyzed, as a model that takes too much memory does."""

    name = "embed"

    def open(self) -> None: ...
    def close(self) -> None: ...
    def __call__(self, item: Item) -> Item:
        os.kill(os.getpid(), signal.SIGKILL)
        return item


def on_ray(kind: str, run: str) -> None:
    """Units through a pool, in a process of its own: Ray leaves threads and warnings behind."""
    pool, marks, config = PoolConfig(cpus=0.5, max_actors=2), storage.join(run, "attempts"), EngineConfig(kind="ray")
    analyze = AnalyzeUnits(run, [Deadly()], reads=True, writes=True)
    if kind == "cut":
        items = [{"unit": "u1", "clips": [("c0", 256), ("c1", 256)]}]
        results = list(engine.run(items, [Step(DeadlyCut(run, EncodeConfig(), MediaLimits()), pool)], config, marks))
        assert results == [{"unit": "u1", "cut": 0, "failed": 2}], results
        return
    worker = Chain((analyze, DeadlyEmbed())) if kind == "embed" else analyze
    results = list(engine.run([{"unit": "u1"}, {"unit": "u2"}], [Step(worker, pool)], config, marks))
    assert sorted(r["unit"] for r in results) == ["u1", "u2"]


def ray_job(kind: str, run: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from tests.curation.test_attempts import on_ray; on_ray(*sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", code, kind, str(run)], cwd=ROOT, capture_output=True, text=True, timeout=120)


def write_units(run: Path, units: dict[str, list[str]]) -> None:
    for name, paths in units.items():
        rows = [{"unit": name, "path": p, "url": p, "bytes": 1, "kind": "video"} for p in paths]
        storage.write_table(str(run / "units" / f"{name}.parquet"), storage.rows_table(rows, UNITS))


@pytest.mark.faults
def test_a_source_that_kills_its_actor_every_time_is_given_up_by_analyze(tmp_path: Path) -> None:
    write_units(tmp_path, {"u1": ["a", "deadly", "b"], "u2": ["c"]})
    done = ray_job("analyze", tmp_path)
    assert done.returncode == 0, done.stderr
    table = storage.read_table(str(tmp_path / "sources"), SOURCES)
    codes = dict(zip(table["path"].to_pylist(), table["error_code"].to_pylist(), strict=True))
    assert codes == {"a": None, "deadly": "worker_died", "b": None, "c": None}
    assert not (tmp_path / "attempts").exists()


@pytest.mark.faults
def test_a_model_that_kills_its_actor_every_time_ends_the_job_and_keeps_what_was_analyzed(tmp_path: Path) -> None:
    write_units(tmp_path, {"u1": ["a"], "u2": ["b"]})
    done = ray_job("embed", tmp_path)
    assert done.returncode != 0
    assert "3 workers died at deadly+embed u" in done.stderr, done.stderr[-2000:]
    table = storage.read_table(str(tmp_path / "sources"), SOURCES)
    assert table["error_code"].to_pylist() == [None] * table.num_rows != []


@pytest.mark.faults
def test_a_source_that_kills_its_actor_every_time_is_given_up_by_cut(tmp_path: Path) -> None:
    write_units(tmp_path, {"u1": ["a", "deadly"]})
    names = ["a", "deadly"]
    source = {"unit": "u1", "kind": "video", "status": "ok", "width": 640, "height": 360, "rotation": 0, "pixel_aspect": 1.0}
    clip = {"status": "ok", "start_frame": 0, "end_frame": 288, "start_s": 0.0, "end_s": 12.0, "duration_s": 12.0}
    clip |= {"frames": 288, "fps": 24.0, "width": 640, "height": 360, "kind": "video"}
    clip |= {f"border_{side}_px": 0 for side in ("left", "right", "top", "bottom")}
    tables = {
        "sources": ([source | {"source_id": n, "path": n} for n in names], SOURCES),
        "clips": ([clip | {"clip_id": f"c{i}", "source_id": n} for i, n in enumerate(names)], CLIPS),
        "series": ([{"source_id": n, "time_s": [i / 24 for i in range(289)]} for n in names], SERIES),
    }
    for name, (rows, schema) in tables.items():
        storage.write_table(str(tmp_path / name / "u1.parquet"), storage.rows_table(rows, schema))
    done = ray_job("cut", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = storage.read_table(str(tmp_path / "cuts")).to_pylist()
    assert {row["key"]: row["error_code"] for row in rows} == {"c0-256": "encode_failed", "c1-256": "worker_died"}
