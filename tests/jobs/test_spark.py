"""Spark gives what one machine gives: the statistics, the selections, and the tables as they are."""

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curation.errors import ConfigError
from curation.rules import SubsetConfig
from jobs import pipeline, select_spark, selecting, spark_tables, stats_spark
from jobs.inspect import connect, rows, subsets
from jobs.stats import prepare, shipped
from tests.jobs import analyst_run
from tests.jobs.run_samples import make_run
from tests.small_runs import settings, small_corpus

ROOT = Path(__file__).parent.parent.parent
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:pyspark", "ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.timeout(900),  # a minute on a machine of its own
]


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    small = {"master": "local[1]", "driver.memory": "1g", "ui.enabled": "false", "default.parallelism": "1"}
    small |= {"sql.shuffle.partitions": "1", "sql.adaptive.enabled": "false"}
    small |= {"sql.codegen.wholeStage": "false", "sql.codegen.factoryMode": "NO_CODEGEN"}  # all the time would go to compiling
    small |= {"driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}
    session = spark_tables.session({f"spark.{name}": value for name, value in small.items()})
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = analyst_run.make_run(tmp_path_factory.mktemp("drawn run"))
    analyst_run.select(place)
    return place


def close(a: Any, b: Any) -> bool:
    """Whole numbers and texts to the last digit, others to 1e-9."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return type(a) is type(b) and a == b


def test_both_engines_give_the_same_statistics(spark: Any, drawn: Path) -> None:
    with connect(str(drawn)) as connection:
        prepare(connection, subsets(str(drawn)))
        for name, frame in stats_spark.statistics(spark, str(drawn)).items():
            here = rows(connection, shipped()[name].sql)
            there = [row.asDict() for row in frame.collect()]
            assert len(here) == len(there) > 0, name
            for ours, theirs in zip(here, there, strict=True):
                assert list(ours) == list(theirs)
                assert all(close(ours[column], theirs[column]) for column in ours), (name, ours, theirs)


def test_the_job_writes_what_it_can_and_says_what_it_cannot(
    spark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "run")
    given = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--name", "captions", "--name", "buckets"]
    stats_spark.main(given)
    said = capsys.readouterr().out
    assert "captions: this run has no table captions" in said and f"buckets: {tmp_path}/out/buckets" in said
    assert [row["planned"] for row in spark.read.parquet(f"{tmp_path}/out/buckets").orderBy("bucket").collect()] == [1, 1]


def test_spark_selects_the_same_rows(spark: Any, tmp_path: Path) -> None:
    there, here = (analyst_run.make_run(tmp_path / name, units=2) for name in ("there", "here"))
    lists = {subset.name: subset for subset in analyst_run.config().subsets}
    for name in ("plain", "mixed", "all"):
        assert select(there, lists[name], spark) == select(here, lists[name])
    reasons = {row["reason"].partition(":")[0] for name in lists for row in selection(here, name)}
    assert reasons == {"kept", "error", "rule", "unmeasured", "unselected", "duplicate", "resampled_out"}
    for run in (there, here):  # the other units come later, and find what was kept before
        analyst_run.make_run(run)
    assert select(there, lists["mixed"], spark) == select(here, lists["mixed"])
    for name in lists:
        assert selection(there, name) == selection(here, name)
        assert [file.read_bytes() for file in files(there, name)] == [file.read_bytes() for file in files(here, name)]
    assert not list((there / "_select_spark").glob("*"))


def select(run: Path, subset: SubsetConfig, spark: Any = None) -> str:
    return selecting.select(str(run), analyst_run.config(), subset, select_spark.on(spark) if spark else None)


def files(run: Path, subset: str) -> list[Path]:
    return sorted((run / "selection" / subset).iterdir())


def selection(run: Path, subset: str) -> list[dict[str, Any]]:
    return [row for file in files(run, subset) for row in pq.read_table(file).to_pylist()]


def test_an_unknown_list_is_refused(drawn: Path) -> None:
    with pytest.raises(ConfigError, match="no list 'plane'; it has plain, mixed, all"):
        select_spark.main(["--run", str(drawn), "--subset", "plane"])


@pytest.mark.slow
def test_spark_submit_runs_both_jobs_from_any_folder(drawn: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert pipeline.run(str(small_corpus(tmp_path / "in")), str(run), settings()) == 0
    here = {file.relative_to(run): file.read_bytes() for file in (run / "selection").rglob("*.parquet")}
    shutil.rmtree(run / "selection")
    assert "select: tiny: " in submit(tmp_path, "select_spark.py", "--run", "run")
    assert {file.relative_to(run): file.read_bytes() for file in (run / "selection").rglob("*.parquet")} == here
    assert "funnel: out/funnel" in submit(tmp_path, "stats_spark.py", "--run", str(drawn), "--out", "out", "--name", "funnel")
    with connect(str(drawn)) as connection:
        prepare(connection, subsets(str(drawn)))
        wanted = rows(connection, shipped()["funnel"].sql)
    found = pq.read_table(tmp_path / "out/funnel").to_pylist()
    assert len(found) == len(wanted) > 0
    assert all(close(a[column], b[column]) for a, b in zip(wanted, found, strict=True) for column in a)


def submit(folder: Path, script: str, *options: str) -> str:
    """What a job says that `spark-submit` runs, as the documentation has it, in a folder."""
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    quick = ["--master", "local[1]", "--driver-memory", "1g", "--conf", "spark.sql.shuffle.partitions=1"]
    command = [str(binaries / "spark-submit"), *quick, str(ROOT / "jobs" / script), *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]  # Spark sends what the job says there, its errors too
    return done.stdout


def test_spark_opens_the_tables_as_they_are(spark: Any, tmp_path: Path) -> None:
    make_run(tmp_path)
    for table in ("sources", "clips", "series", "frames", "selection/small"):
        there = [row.asDict(recursive=True) for row in spark.read.parquet(f"{tmp_path}/{table}").collect()]
        assert there == pq.read_table(tmp_path / table).to_pylist()
