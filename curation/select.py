"""From measured clips to a selection: errors, rules, fit to a bucket, aspect mix, split. Plain SQL, integer draws.

Near-duplicates and concept resampling have their place between the rules and the mix; until their tables exist every
clip that passes the rules has weight 1 and no cluster.
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias, Union

import pyarrow as pa

from curation import storage
from curation.rules import SubsetConfig, clip_rule, literal, reason_sql, source_rule
from curation.tables import SELECTION

if TYPE_CHECKING:
    import duckdb
    from pyarrow.dataset import Dataset

Rows: TypeAlias = Union[pa.Table, pa.RecordBatchReader, "Dataset"]
"""Rows in memory, or a stream of them, or Parquet files that are read as they are needed."""

MEMORY = "2GB"
"""What DuckDB may hold; beyond it, it spills to the temporary folder."""
BATCH = 1 << 20
"""Rows of a chunk of the result: those of a row group, so that a file's bytes depend on the rows alone."""

FIT = pa.schema([("clip_id", pa.string()), ("bucket", pa.string()), ("bucket_why", pa.string()), ("misfit", pa.string())])
"""What the shape buckets say of a clip: a bucket, or why none fits (`too_small`, `too_few_frames`)."""

RATIO = "string_split(split_part(bucket, '-', 2), 'x')"
LANDSCAPE = f"CAST({RATIO}[1] AS INT) >= CAST({RATIO}[2] AS INT)"
"""Whether a bucket, named like `v256-16x9-f128`, is at least as wide as high: what training will see of the clip."""


def draw_sql(seed: int, purpose: str, column: str) -> str:
    """A 32-bit integer draw for a row, the same in every engine: the first 8 hexadecimal digits of an md5.

    `purpose` keeps draws for different decisions apart.
    """
    return f"substr(md5(concat({literal(f'{seed}/{purpose}/')}, {column})), 1, 8)"


def threshold(share: float) -> str:
    """The draw below which `share` of all rows fall, as 8 hexadecimal digits (they sort as the integers do)."""
    return f"{min(int(share * 2**32), 2**32 - 1):08x}"


def draw(seed: int, purpose: str, value: str) -> str:
    """The same draw in Python."""
    return hashlib.md5(f"{seed}/{purpose}/{value}".encode(), usedforsecurity=False).hexdigest()[:8]


def fit_table(fits: Mapping[str, tuple[str | None, str, str | None]]) -> pa.Table:
    """`clip_id -> (bucket, why, misfit)` as a `FIT` table."""
    rows = [{"clip_id": k, "bucket": b, "bucket_why": w, "misfit": m} for k, (b, w, m) in fits.items()]
    return pa.Table.from_pylist(rows, schema=FIT)


def columns(subset: SubsetConfig) -> tuple[list[str], list[str]]:
    """The columns of `sources` and of `clips` that `select` asks for."""
    of_sources = {"source_id", "kind", "exact_copy_of"}.union(*(source_rule(t).mentioned for t in subset.source_rules))
    rules = (*subset.clip_rules, *subset.image_rules)
    of_clips = {"clip_id", "source_id", "kind", "status", "error_code"}.union(*(clip_rule(t).mentioned for t in rules))
    return sorted(of_sources), sorted(of_clips)


def select(sources: Rows, clips: Rows, subset: SubsetConfig, seed: int, previous: pa.Table, fits: Rows) -> pa.Table:
    """One row of `tables.SELECTION` a new clip, sorted by clip_id; `shard` and `position` are left null.

    `previous` has the rows of earlier selections of the same subset: they are not decided again nor given back, and
    what they kept counts first in the quotas. `fits` has the columns of `FIT`. The first of these that applies is
    the reason: `error:<code>`, `rule:<text>`, `unmeasured:<column>`,
    `unselected:too_small|too_few_frames`, `unselected:aspect_mix`, `kept`. The same rows in another order or number of
    files give the same table.
    """
    with storage.database(MEMORY) as connection:
        connection.execute("SET preserve_insertion_order = false")
        for name, rows in {"sources": sources, "clips": clips, "previous": previous, "fits": fits}.items():
            connection.register(name, rows)
        connection.execute(f"CREATE TABLE decided AS {_decided_sql(subset)}")
        _check_whole(connection)
        if subset.landscape_share is not None:
            _mix(connection, subset.landscape_share, seed)
        split = f"CASE WHEN {draw_sql(seed, 'split', 'family')} < {literal(threshold(subset.validation_share))}"
        query = f"""
            SELECT clip_id, source_id, reason = 'kept' AS kept, reason, NULL AS cluster,
                   CASE WHEN kept THEN 1.0 END AS weight,
                   CASE WHEN kept THEN {split} THEN 'validation' ELSE 'train' END END AS split,
                   CASE WHEN kept THEN bucket END AS bucket, bucket_why, NULL AS shard, NULL AS position
            FROM decided ORDER BY clip_id"""
        chosen = connection.sql(query).to_arrow_table(BATCH)
    return chosen.cast(SELECTION)


def _decided_sql(subset: SubsetConfig) -> str:
    """Every new clip with its reason before the mix. A clip's split follows its source's family: a copy's original."""
    video = reason_sql([clip_rule(t) for t in subset.clip_rules])
    image = reason_sql([clip_rule(t) for t in subset.image_rules])
    source = reason_sql([source_rule(t) for t in subset.source_rules])
    return f"""
        WITH judged AS (
            SELECT source_id, coalesce(exact_copy_of, source_id) AS family,
                   CASE WHEN exact_copy_of IS NOT NULL THEN concat('rule:exact_copy_of ', exact_copy_of)
                        WHEN kind = 'video' THEN {source} END AS source_reason
            FROM sources)
        SELECT clip_id, source_id, kind, family, bucket, bucket_why,
               CASE WHEN status = 'error' THEN concat('error:', coalesce(error_code, 'internal'))
                    ELSE coalesce(source_reason, CASE WHEN kind = 'image' THEN {image} ELSE {video} END,
                                  CASE WHEN bucket IS NULL THEN concat('unselected:', coalesce(misfit, 'no_bucket')) END,
                                  'kept') END AS reason
        FROM clips ANTI JOIN previous USING (clip_id) LEFT JOIN judged USING (source_id) LEFT JOIN fits USING (clip_id)"""


def _check_whole(connection: "duckdb.DuckDBPyConnection") -> None:
    """Every new clip is decided exactly once, with its source at hand."""
    query = "SELECT count(*), count(DISTINCT clip_id), count(family) FROM decided"
    decided, distinct, known = connection.execute(query).fetchall()[0]
    assert decided == distinct == known, (
        f"{decided} decisions on {distinct} clips, {known} of them with a source: a source is missing or an id is not unique"
    )


def _mix(connection: "duckdb.DuckDBPyConnection", landscape_share: float, seed: int) -> None:
    """Drop the surplus of landscape or portrait videos, the highest draws first; what earlier runs kept stays."""
    of_1000 = round(landscape_share * 1000)
    count = f"SELECT {LANDSCAPE}, count(*) FROM"
    old = dict(connection.execute(f"{count} previous WHERE kept AND starts_with(bucket, 'v') GROUP BY 1").fetchall())
    new = dict(connection.execute(f"{count} decided WHERE reason = 'kept' AND kind = 'video' GROUP BY 1").fetchall())
    wide, high = (old.get(side, 0) + new.get(side, 0) for side in (True, False))
    quota = {True: high * of_1000 // (1000 - of_1000), False: wide * (1000 - of_1000) // of_1000}
    for side in (True, False):
        room = max(0, quota[side] - old.get(side, 0))
        connection.execute(
            f"""UPDATE decided SET reason = 'unselected:aspect_mix' WHERE clip_id IN (
                SELECT clip_id FROM decided WHERE reason = 'kept' AND kind = 'video' AND ({LANDSCAPE}) = {side}
                ORDER BY {draw_sql(seed, "aspect_mix", "clip_id")}, clip_id OFFSET {room})"""
        )
