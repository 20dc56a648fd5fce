"""*Select* for tables beyond one machine: `spark-submit jobs/select_spark.py --run URL [--subset NAME ...]`.

The SQL, the draws and the quotas are those of `reelset select`, and so are the rows and the file that they become. The
near-duplicates and concepts are found first, as `reelset select` does it, where clips were not compared yet.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __name__ == "__main__" and Path(sys.path[0]) == Path(__file__).parent:
    del sys.path[0]  # a script's own folder comes first, and its neighbour `inspect` is not Python's

import pyarrow as pa
import pyarrow.parquet as pq

from bucketing import plan
from curation import lock, run_folder, storage
from curation.errors import ConfigError, ReelsetError
from curation.rules import SubsetConfig
from curation.select import decide
from curation.tables import SELECTION
from jobs import pipeline, selecting, spark_tables
from jobs.config import Config
from jobs.events import log

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


class Spark:
    """The engine of a cluster (`curation.select.Engine`). What a step makes lies in `aside` as Parquet.

    Held as views, each step would be planned, and computed, with all the steps before it; on the executors' disks, it would
    go with an executor.
    """

    def __init__(self, spark: "SparkSession", aside: str) -> None:
        self.spark = spark
        self.aside = aside
        self.made = 0

    def make(self, name: str, query: str) -> None:
        frame, self.made = self.spark.sql(query), self.made + 1
        place = spark_tables.url(storage.join(self.aside, f"{self.made:02d}-{name}"))
        frame.write.mode("overwrite").parquet(place)
        self.spark.read.schema(frame.schema).parquet(place).createOrReplaceTempView(name)

    def give(self, name: str, rows: pa.Table) -> None:
        self.spark.createDataFrame(rows).createOrReplaceTempView(name)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.spark.sql(query).collect()]


def on(spark: "SparkSession") -> selecting.Decide:
    """How `selecting.select` decides with this session."""

    def rows(folder: str, config: Config, subset: SubsetConfig, units: Sequence[str], place: str) -> Iterator[pa.RecordBatch]:
        aside = storage.join(folder, "_select_spark", subset.name)
        engine, last = Spark(spark, aside), storage.join(aside, "chosen")
        _relations(spark, folder, units, subset, place)
        try:
            engine.make("selection", decide(engine, subset, config.seed))
            engine.give("taken", plan.taken(plan.next_shards(_shards(spark))))
            chosen = spark.sql(plan.assign_sql(config.seed, config.shards, SELECTION.names))
            chosen.select(*SELECTION.names).write.mode("overwrite").parquet(spark_tables.url(last))
            yield from _batches(last)
        finally:
            storage.remove(aside)

    return rows


def _relations(spark: "SparkSession", folder: str, units: Sequence[str], subset: SubsetConfig, place: str) -> None:
    """The views that `decide` asks for."""

    for name, where, table in (
        ("all_sources", storage.join(folder, "sources"), "sources"),
        ("all_clips", storage.join(folder, "clips"), "clips"),
        ("previous", place, "selection"),
        ("same", storage.join(folder, "duplicates"), "duplicates"),
        ("concepts", storage.join(folder, "concepts"), "concepts"),
    ):
        found = storage.names(where, ".parquet")
        (spark_tables.read(spark, where, table) if found else spark_tables.empty(spark, table)).createOrReplaceTempView(name)
    spark.createDataFrame(pa.table({"unit": pa.array(units, pa.string())})).createOrReplaceTempView("units")
    spark.sql("SELECT * FROM all_sources SEMI JOIN units USING (unit)").createOrReplaceTempView("sources")
    spark.sql("SELECT * FROM all_clips SEMI JOIN sources USING (source_id)").createOrReplaceTempView("clips")

    def fits(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return (selecting.fit(batch, subset.bucket_class) for batch in batches)

    columns = "clip_id string, bucket string, bucket_why string, misfit string"
    spark.sql(selecting.FITTED).mapInArrow(fits, columns).createOrReplaceTempView("fits")


def _shards(spark: "SparkSession") -> pa.Table:
    """The shards that earlier selections planned."""
    names = [row["shard"] for row in spark.sql("SELECT DISTINCT shard FROM previous WHERE shard IS NOT NULL").collect()]
    return pa.table({"shard": pa.array(names, pa.string())})


def _batches(place: str) -> Iterator[pa.RecordBatch]:
    """The rows of Spark's part files, in their order."""
    for name in storage.names(place, ".parquet"):
        with storage.open_read(storage.join(place, name)) as file, pq.ParquetFile(file) as part:
            for batch in part.iter_batches():
                yield from pa.Table.from_batches([batch]).cast(SELECTION).to_batches()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of `spark-submit`."""
    import argparse

    parser = argparse.ArgumentParser(prog="select_spark.py", description=__doc__.partition(":")[0])
    parser.add_argument("--run", required=True, help="the run folder, or its URL")
    parser.add_argument("--subset", action="append", help="one of the run's lists; may be repeated; all without")
    given = parser.parse_args(arguments)
    config, lists = _settings(given.run, given.subset)
    with lock.hold(given.run), log(given.run) as events:
        pipeline.compare(given.run, config, events, storage.join(given.run, "attempts"))
        for subset in lists:
            events.say(selecting.select(given.run, config, subset, on(spark_tables.session())))


def _settings(run: str, names: Sequence[str] | None) -> tuple[Config, list[SubsetConfig]]:
    """The run's own settings, and those of its lists that are named (all of them without names)."""
    page = run_folder.read(run)
    config = selecting.settings({k: v for k, v in page["config"].items() if k != "input"}, None, (), None)
    known = [subset.name for subset in config.subsets]
    if unknown := [name for name in names or () if name not in known]:
        raise ConfigError(f"the run has no list {unknown[0]!r}; it has {', '.join(known)}")
    return config, [subset for subset in config.subsets if not names or subset.name in names]


if __name__ == "__main__":
    try:
        main()
    except ReelsetError as error:
        print(f"reelset: {error}", file=sys.stderr)
        sys.exit(2)
