"""The statistics by DuckDB and by local Spark on about a million clips.

    python -m tests.benchmarks.engines_million [RUN [NAME ...]]

RUN is one of `tests.benchmarks.million`, of which "analyze", the selections and "half" were made. Says the wall and CPU time of
each statistic (or of those named) in each engine, whether they agree (whole numbers to the last digit, others to 1e-9), and
what memory each took.
"""

import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from jobs import spark_tables, stats_spark
from jobs.inspect import connect, rows, subsets
from jobs.stats import prepare, shipped

SETTINGS = {
    "spark.master": "local[2]",
    "spark.driver.memory": "2g",
    "spark.sql.shuffle.partitions": "16",
    "spark.ui.enabled": "false",
    "spark.sql.broadcastTimeout": "3600",
    "spark.sql.files.openCostInBytes": "65536",
}


def close(a: Any, b: Any) -> bool:
    """Whole numbers and texts to the last digit, others to 1e-9."""
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return type(a) is type(b) and a == b


def main(run: str = "build/million/600000-256", *names: str) -> None:
    spark = spark_tables.session(SETTINGS)
    spark.sparkContext.setLogLevel("ERROR")
    with connect(run) as connection:
        connection.execute("SET memory_limit = '2GB'")
        prepare(connection, subsets(run))
        for name, frame in stats_spark.statistics(spark, run, names or ("all",)).items():
            if isinstance(frame, str):
                print(frame)
                continue
            began = time.perf_counter()
            here = rows(connection, shipped()[name].sql)
            between = time.perf_counter(), java_cpu_s(spark)
            there = [row.asDict() for row in frame.collect()]
            ended = time.perf_counter(), java_cpu_s(spark)
            same = len(here) == len(there) and all(
                close(a[column], b[column]) for a, b in zip(here, there, strict=True) for column in a
            )
            said = f"{name:16} {len(here):6} rows  DuckDB {between[0] - began:6.1f} s  "
            said += f"Spark {ended[0] - between[0]:6.1f} s, {ended[1] - between[1]:6.1f} CPU-s  "
            print(said + ("equal" if same else "DIFFERENT"), flush=True)
    java = int(Path(f"/proc/{java_of(spark)}/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    print(f"Python and DuckDB {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, Spark's JVM {java:.2f} GiB")


def java_cpu_s(spark: Any) -> float:
    """CPU seconds of Spark's JVM so far."""
    ticks = Path(f"/proc/{java_of(spark)}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def java_of(spark: Any) -> int:
    """The process id of Spark's JVM."""
    return int(spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid())


if __name__ == "__main__":
    main(*sys.argv[1:])
