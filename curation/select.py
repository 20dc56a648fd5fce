"""From measured clips to a selection: errors, rules, fit to a bucket, aspect mix, split. One SQL, integer draws.

Near-duplicates and concept resampling have their place between the rules and the mix; until their tables exist every
clip that passes the rules has weight 1 and no cluster.
"""

import hashlib
from collections.abc import Mapping

from typing import TYPE_CHECKING

import pyarrow as pa

from curation.rules import SubsetConfig, clip_rule, literal, reason_sql, source_rule
from curation.tables import SELECTION

if TYPE_CHECKING:
    import duckdb

FIT = pa.schema([("clip_id", pa.string()), ("bucket", pa.string()), ("bucket_why", pa.string()), ("misfit", pa.string())])
"""What the shape buckets say of a clip: a bucket, or why none fits (`too_small`, `too_few_frames`)."""


LANDSCAPE = "(CAST(split_part(split_part(bucket, '-', 2), 'x', 1) AS INT) >= CAST(split_part(split_part(bucket, '-', 2), 'x', 2) AS INT))"
"""Whether a bucket, named like `v256-16x9-f128`, is at least as wide as high."""


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


def select(
    sources: pa.Table, clips: pa.Table, subset: SubsetConfig, seed: int, previous: pa.Table, fits: pa.Table
) -> pa.Table:
    """One row of `tables.SELECTION` a clip, sorted by clip_id; `shard` and `position` are left null.

    `previous` has the rows of earlier selections of the same subset: they are not decided again, and what they kept
    counts first in the quotas. `fits` is a `FIT` table. The first of these that applies is the reason: `error:<code>`,
    `rule:<text>`, `unmeasured:<column>`, `unselected:too_small|too_few_frames`, `unselected:aspect_mix`, `kept`.
    """
    import duckdb

    with duckdb.connect(config={"threads": 1}) as connection:
        for name, table in {"sources": sources, "clips": clips, "previous": previous, "fits": fits}.items():
            connection.register(name, table)
        connection.execute(f"CREATE TABLE decided AS {_decided_sql(subset, seed)}")
        if subset.landscape_share is not None:
            _mix(connection, subset.landscape_share, seed)
        query = f"""
            SELECT clip_id, source_id, reason = 'kept' AS kept, reason, NULL AS cluster,
                   CASE WHEN reason = 'kept' THEN 1.0 END AS weight,
                   CASE WHEN reason = 'kept' THEN CASE WHEN {draw_sql(seed, "split", "family")}
                        < {literal(threshold(subset.validation_share))} THEN 'validation' ELSE 'train' END END AS split,
                   CASE WHEN reason = 'kept' THEN bucket END AS bucket, bucket_why, NULL AS shard, NULL AS position
            FROM decided ORDER BY clip_id"""
        chosen = connection.sql(query).to_arrow_table()
    return chosen.cast(SELECTION)


def _decided_sql(subset: SubsetConfig, seed: int) -> str:
    """Every new clip with its reason before the mix. A clip's split follows its source, a copy's its original."""
    video = reason_sql([clip_rule(t) for t in subset.clip_rules])
    image = reason_sql([clip_rule(t) for t in subset.image_rules])
    source = reason_sql([source_rule(t) for t in subset.source_rules])
    return f"""
        WITH judged AS (SELECT source_id, coalesce(exact_copy_of, source_id) AS family,
               CASE WHEN exact_copy_of IS NOT NULL THEN concat('rule:exact_copy_of ', exact_copy_of)
                    WHEN kind = 'video' THEN {source} END AS source_reason FROM sources),
             ruled AS (SELECT clip_id, CASE WHEN kind = 'image' THEN {image} ELSE {video} END AS clip_reason FROM clips)
        SELECT c.clip_id, c.source_id, c.kind, j.family, f.bucket, f.bucket_why,
               coalesce(CASE WHEN c.status = 'error' THEN concat('error:', c.error_code) END,
                        j.source_reason, r.clip_reason,
                        CASE WHEN f.bucket IS NULL THEN concat('unselected:', coalesce(f.misfit, 'no_bucket')) END,
                        'kept') AS reason
        FROM clips c JOIN judged j USING (source_id) JOIN ruled r USING (clip_id) LEFT JOIN fits f USING (clip_id)"""


def _mix(connection: "duckdb.DuckDBPyConnection", landscape_share: float, seed: int) -> None:
    """Drop the surplus of landscape or portrait videos, the highest draws first; what earlier runs kept stays."""
    share = int(round(landscape_share * 1000))
    old = dict(
        connection.execute(
            f"SELECT {LANDSCAPE}, count(*) FROM previous WHERE kept AND starts_with(bucket, 'v') GROUP BY 1"
        ).fetchall()
    )
    new = dict(
        connection.execute(
            f"SELECT {LANDSCAPE}, count(*) FROM decided WHERE reason = 'kept' AND kind = 'video' GROUP BY 1"
        ).fetchall()
    )
    total = {side: old.get(side, 0) + new.get(side, 0) for side in (True, False)}
    quota = {True: total[False] * share // (1000 - share), False: total[True] * (1000 - share) // share}
    for side in (True, False):
        room = max(0, min(new.get(side, 0), quota[side] - old.get(side, 0)))
        connection.execute(
            f"""UPDATE decided SET reason = 'unselected:aspect_mix' WHERE clip_id IN (
                SELECT clip_id FROM decided WHERE reason = 'kept' AND kind = 'video' AND {LANDSCAPE} = {side}
                ORDER BY {draw_sql(seed, "aspect_mix", "clip_id")}, clip_id OFFSET {room})"""
        )


def fit_table(fits: Mapping[str, tuple[str | None, str, str | None]]) -> pa.Table:
    """`clip_id -> (bucket, why, misfit)` as a `FIT` table."""
    rows = [{"clip_id": k, "bucket": b, "bucket_why": w, "misfit": m} for k, (b, w, m) in fits.items()]
    return pa.Table.from_pylist(rows, schema=FIT)
