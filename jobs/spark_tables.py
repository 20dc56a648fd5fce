"""A run's tables as Spark views, with the names, columns and types that they have in DuckDB."""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from curation import run_folder, storage
from curation.errors import ConfigError
from curation.tables import CAPTIONS, CLUSTERS, CONCEPTS, DUPLICATES
from jobs.inspect import FOLDERS, TABLES

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

SCHEMAS = {**TABLES, "captions": CAPTIONS, "clusters": CLUSTERS, "concepts": CONCEPTS, "duplicates": DUPLICATES}
"""What Spark is told of a table's columns: it opens no file to find out, and a column that a file lacks is null."""


def session(settings: Mapping[str, str] | None = None) -> "SparkSession":
    """The Spark session of this process: the one that `spark-submit` set up, or a local one with these settings."""
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ConfigError("Spark needs PySpark: pip install 'reelset[analytics]', and Java 17") from error
    spark = (
        SparkSession.builder.appName("reelset").config(map={"spark.sql.ansi.enabled": "true", **(settings or {})}).getOrCreate()
    )
    if str(spark.sparkContext.master).startswith("local") and "PYSPARK_PYTHON" not in os.environ:
        spark.sparkContext.pythonExec = sys.executable  # Spark would take whatever `python3` is
    return spark


def views(spark: "SparkSession", run: str, names: Iterable[str] = tuple(SCHEMAS)) -> list[str]:
    """Make a temporary view of each of these tables that the run has, and return their names.

    As in DuckDB, a table that every run has is there without rows before it has files, and `selection` and `produced`
    have a column `subset`. Raises ConfigError where `run` is no run folder.
    """
    run_folder.read(run)
    made = []
    for name in names:
        if _has_files(run, name):
            frame = read(spark, storage.join(run, name), name)
        elif name in TABLES:
            frame = empty(spark, name)
        else:
            continue
        frame.createOrReplaceTempView(name)
        made.append(name)
    return made


def read(spark: "SparkSession", place: str, name: str) -> "DataFrame":
    """All files of a folder that holds the run's table `name`; the folders between that name and a file become columns.

    A folder is listed at once, where a list of files is looked at one by one.
    """
    from pyspark.sql import functions
    from pyspark.sql.pandas.types import from_arrow_schema

    reader = spark.read.schema(from_arrow_schema(SCHEMAS[name])).option("pathGlobFilter", "*.parquet")
    frame = reader.option("recursiveFileLookup", "true").parquet(url(place))
    between = f"{name}/{'([^/]+)/' * len(FOLDERS.get(name, ()))}[^/]+[.]parquet$"
    for group, folder in enumerate(FOLDERS.get(name, ()), 1):
        frame = frame.withColumn(folder, functions.regexp_extract("_metadata.file_path", between, group))
    return frame


def empty(spark: "SparkSession", name: str) -> "DataFrame":
    """The run's table `name` without rows."""
    from pyspark.sql.pandas.types import from_arrow_schema

    schema = pa.schema([*SCHEMAS[name], *(pa.field(f, pa.string()) for f in FOLDERS.get(name, ()))])
    return spark.createDataFrame([], from_arrow_schema(schema))


def _has_files(run: str, name: str) -> bool:
    below = storage.join(run, name)
    folders = [storage.join(below, folder) for folder in storage.names(below)] if name in FOLDERS else [below]
    return any(storage.names(folder, ".parquet") for folder in folders)


def url(place: str) -> str:
    """A folder as Hadoop reads it: a local path has no globs of its own in it."""
    if storage.is_remote(place):
        return place.rstrip("/")
    path = str(storage.local_path(place).absolute())
    if re.search(r"[*?\[\]{}\\]", path):
        raise ConfigError(f"Spark would take signs in {path!r} for a pattern: rename the folder")
    return path
