"""Spark gives what one machine gives: the statistics, the selections, and the tables as they are."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import spark_tables, stats_spark
from jobs.inspect import connect, rows, subsets
from jobs.stats import prepare, shipped
from tests.jobs import analyst_run
from tests.jobs.run_samples import make_run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:pyspark", "ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    small = {"ui.enabled": "false", "sql.shuffle.partitions": "1", "driver.memory": "1g", "default.parallelism": "1"}
    small |= {"sql.codegen.wholeStage": "false", "sql.codegen.factoryMode": "NO_CODEGEN", "sql.adaptive.enabled": "false"}
    small |= {"driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}  # all the time would go to compiling
    builder = SparkSession.builder.master("local[1]")
    for name, value in small.items():
        builder = builder.config(f"spark.{name}", value)
    builder.getOrCreate()
    session = spark_tables.session()
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


def test_the_job_writes_what_it_can_and_says_what_it_cannot(spark: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run")
    given = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--name", "captions", "--name", "buckets"]
    stats_spark.main(given)
    said = capsys.readouterr().out
    assert "captions: this run has no table captions" in said and f"buckets: {tmp_path}/out/buckets" in said
    assert [row["planned"] for row in spark.read.parquet(f"{tmp_path}/out/buckets").orderBy("bucket").collect()] == [1, 1]
