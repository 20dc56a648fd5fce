"""The shipped statistics on a Spark cluster: `spark-submit jobs/stats_spark.py --run URL --out URL [--name NAME ...]`.

Each becomes Parquet below `--out`/<name>; the figures are those of `reelset stats`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__" and Path(sys.path[0]) == Path(__file__).parent:
    del sys.path[0]  # a script's own folder comes first, and its neighbour `inspect` is not Python's

from curation.errors import ConfigError
from jobs import spark_tables
from jobs.inspect import subsets
from jobs.stats import chosen, lacks, relations

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def statistics(spark: "SparkSession", run: str, names: Sequence[str] = ("all",)) -> "dict[str, DataFrame | str]":
    """These statistics of a run by name, none of them computed yet; a text where the run lacks a table for one.

    Raises ConfigError for an unknown name or where `run` is no run folder.
    """
    wanted = chosen(names)
    there = spark_tables.views(spark, run)
    for name in ("clips", "sources"):
        spark.catalog.cacheTable(name)  # each statistic, and each rule list in `verdicts`, would open every file again
    for name, sql in relations(subsets(run)).items():
        spark.sql(sql).createOrReplaceTempView(name)
    found: dict[str, DataFrame | str] = {}
    for one in wanted:
        lacking = [table for table in one.needs if table not in there]
        found[one.name] = lacks(one, lacking) if lacking else spark.sql(one.sql)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of `spark-submit`."""
    import argparse

    parser = argparse.ArgumentParser(prog="stats_spark.py", description=__doc__.partition(":")[0])
    parser.add_argument("--run", required=True, help="the run folder, or its URL")
    parser.add_argument("--out", required=True, help="a folder or URL for the results")
    parser.add_argument("--name", action="append", help="a statistic; may be repeated; all without")
    given = parser.parse_args(arguments)
    for name, found in statistics(spark_tables.session(), given.run, given.name or ["all"]).items():
        if isinstance(found, str):
            print(found)
        else:
            found.coalesce(1).write.mode("overwrite").parquet(f"{given.out.rstrip('/')}/{name}")
            print(f"{name}: {given.out.rstrip('/')}/{name}")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        print(f"reelset: {error}", file=sys.stderr)
        sys.exit(2)
