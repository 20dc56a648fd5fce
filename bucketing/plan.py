"""The plan: which kept clip goes to which shard, in which order. A pure function of the selection and the seed."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, PositiveInt


class ShardConfig(BaseModel):
    """How many samples a shard has; the last one of each bucket may have fewer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: PositiveInt = 512
    keep_cuts: bool = False
    """Keep `cuts/` once the shards are packed. They can be made again, with the same bytes."""


def next_shards(previous: pa.Table) -> dict[str, int]:
    """`<split>/<bucket>` -> number of the first shard that no earlier selection uses. Old shards are never filled up."""
    taken: dict[str, int] = {}
    for shard in pc.unique(previous["shard"].drop_null()).to_pylist():
        group, number = shard.rsplit("/shard-", 1)
        taken[group] = max(taken.get(group, 0), int(number) + 1)
    return taken


def assign_sql(seed: int, config: ShardConfig, columns: Sequence[str]) -> str:
    """The query of `assign`, valid in DuckDB and in Spark, over `selection` and `taken` (columns `grp` and `start`)."""
    others = ", ".join(f"s.{name}" for name in columns if name not in ("shard", "position"))
    return f"""
        WITH ranked AS (SELECT clip_id, split || '/' || bucket AS grp, row_number() OVER (
                PARTITION BY split, bucket ORDER BY md5(concat('{seed:d}/order/', clip_id)), clip_id) - 1 AS place
            FROM selection WHERE kept)
        SELECT {others},
               r.grp || printf('/shard-%06d', coalesce(t.start, 0)
                                              + CAST(floor(r.place / {config.samples:d}) AS BIGINT)) AS shard,
               r.place % {config.samples:d} AS position
        FROM selection s LEFT JOIN ranked r ON r.clip_id = s.clip_id LEFT JOIN taken t ON t.grp = r.grp ORDER BY s.clip_id"""


def taken(first: Mapping[str, int]) -> pa.Table:
    """What `next_shards` says, as a table for `assign_sql`."""
    return pa.table({"grp": pa.array(list(first), pa.string()), "start": pa.array(list(first.values()), pa.int64())})


def assign(selection: pa.Table, seed: int, config: ShardConfig, first: Mapping[str, int]) -> pa.Table:
    """Fill `shard` (`<split>/<bucket>/shard-000000`) and `position` of the kept rows, sorted by clip_id.

    Within a split and bucket clips are ordered by a 128-bit hash of seed and clip id, so that a shard mixes sources, and
    the order of the rows given does not matter. `first` is what `next_shards` says. One SQL: millions of rows are seconds.
    """
    import duckdb

    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("selection", selection)
        connection.register("taken", taken(first))
        assigned = connection.sql(assign_sql(seed, config, selection.schema.names)).to_arrow_table()
    return assigned.select(selection.schema.names).cast(selection.schema)
