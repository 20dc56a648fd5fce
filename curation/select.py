"""From measured clips to a selection: errors, rules, fit to a bucket, near-duplicates, concepts, people, aspect mix, split.

Plain SQL that DuckDB and Spark read alike, integer draws and quotas: every engine selects the same rows.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

import pyarrow as pa

from curation import storage
from curation.duplicates import BEST, OF_CLIP, OF_SOURCE
from curation.resample import quotas
from curation.rules import SubsetConfig, clip_rule, literal, reason_sql, source_rule
from curation.tables import CONCEPTS, DUPLICATES, SELECTION

if TYPE_CHECKING:
    import duckdb
    from pyarrow.dataset import Dataset

Rows: TypeAlias = Union[pa.Table, pa.RecordBatchReader, "Dataset"]
"""Rows in memory, or a stream of them, or Parquet files that are read as they are needed."""

MEMORY = "2GB"
"""What DuckDB may hold; beyond it, it spills to the temporary folder."""
BATCH = 1 << 20
"""Rows of a chunk of the result: those of a row group, so that a file's bytes depend on the rows alone."""

NONE_SAME = DUPLICATES.empty_table()
"""No near-duplicates."""
UNCLUSTERED = CONCEPTS.empty_table()
"""No concepts."""
FIT = pa.schema([("clip_id", pa.string()), ("bucket", pa.string()), ("bucket_why", pa.string()), ("misfit", pa.string())])
"""What the shape buckets say of a clip: a bucket, or why none fits (`too_small`, `too_few_frames`)."""

DECIDED = ("clip_id", "source_id", "kind", "family", "bucket", "bucket_why", "people", "side", "reason")
"""What every step of a selection hands to the next."""
LEFT = "kept OR reason = 'resampled_out' OR reason IN ('unselected:people_floor', 'unselected:aspect_mix')"
"""Clips of earlier selections that were left when concepts were counted."""
RATIO = "split_part(split_part(bucket, '-', 2), 'x'"
LANDSCAPE = f"CAST({RATIO}, 1) AS INT) >= CAST({RATIO}, 2) AS INT)"
"""Whether a bucket, named like `v256-16x9-f128`, is at least as wide as high: what training will see of the clip."""


class Engine(Protocol):
    """What runs a selection's SQL. Names of tables are shared by all calls."""

    def make(self, name: str, query: str) -> None:
        """Hold the rows of a query under a name; the query may read the table that had the name before."""

    def give(self, name: str, rows: pa.Table) -> None:
        """Hold a small table under a name."""

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """A small answer."""


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
    of_sources = {"source_id", "kind", "exact_copy_of", *OF_SOURCE}.union(
        *(source_rule(t).mentioned for t in subset.source_rules)
    )
    rules = (*subset.clip_rules, *subset.image_rules, *(subset.people.rules if subset.people else ()))
    of_clips = {"clip_id", "source_id", "kind", "status", "error_code", *OF_CLIP}.union(
        *(clip_rule(t).mentioned for t in rules)
    )
    return sorted(of_sources), sorted(of_clips)


def select(
    sources: Rows,
    clips: Rows,
    subset: SubsetConfig,
    seed: int,
    previous: pa.Table,
    fits: Rows,
    same: pa.Table = NONE_SAME,
    concepts: Rows = UNCLUSTERED,
) -> pa.Table:
    """One row of `tables.SELECTION` a new clip, sorted by clip_id; `shard` and `position` are left null.

    The relations are those of `decide`. The same rows in another order or number of files give the same table.
    """
    with storage.database(MEMORY) as connection:
        connection.execute("SET preserve_insertion_order = false")
        given = {"sources": sources, "clips": clips, "previous": previous, "fits": fits, "same": same, "concepts": concepts}
        for name, rows in given.items():
            connection.register(name, rows)
        chosen = connection.sql(f"{decide(DuckDB(connection), subset, seed)} ORDER BY clip_id").to_arrow_table(BATCH)
    return chosen.cast(SELECTION)


class DuckDB:
    """The engine of one machine."""

    def __init__(self, connection: "duckdb.DuckDBPyConnection") -> None:
        self.connection = connection

    def make(self, name: str, query: str) -> None:
        for statement in (
            f"CREATE TABLE made AS {query}",
            f"DROP TABLE IF EXISTS {name}",
            f"ALTER TABLE made RENAME TO {name}",
        ):
            self.connection.execute(statement)

    def give(self, name: str, rows: pa.Table) -> None:
        self.connection.register(name, rows)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(query).fetchall()


def decide(engine: Engine, subset: SubsetConfig, seed: int) -> str:
    """Decide on every new clip; returns the query for the rows of `tables.SELECTION`, but for shards and judgements: null.

    The engine has these relations. `sources` and `clips` have `columns(subset)`. `previous` has the rows of earlier
    selections of the same subset: they are not decided again nor given back, and what they kept counts first in the quotas.
    `fits` has the columns of `FIT`, `same` the `clip_id` and `duplicate_of` of the run's near-duplicates: of a group the best
    clip that is left is kept, or the one that was kept before. `concepts` has the rows of `tables.CONCEPTS` of all clips
    that have one; a clip that has none is a concept of its own. The first of these that applies is the reason:
    `error:<code>`, `rule:<text>`, `unmeasured:<column>`, `unselected:too_small|too_few_frames`, `duplicate:<clip_id>`,
    `resampled_out`, `unselected:people_floor`, `unselected:aspect_mix`, `kept`.
    """
    engine.make("decided", _decided_sql(subset))
    _check_whole(engine)
    if engine.ask("SELECT 1 FROM same LIMIT 1"):
        _deduplicate(engine)
        _join_families(engine)
    _weigh(engine, subset.people.least_similarity if subset.people else None)
    if subset.resample is not None:
        _resample(engine, subset, seed)
    if subset.people is not None:
        _people_floor(engine, subset.people.share, seed)
    if subset.landscape_share is not None:
        _mix(engine, subset.landscape_share, seed)
    drawn = f"{draw_sql(seed, 'split', 'family')} < {literal(threshold(subset.validation_share))}"
    split = f"coalesce(side, CASE WHEN {drawn} THEN 'validation' ELSE 'train' END)"
    return f"""
        SELECT clip_id, source_id, reason = 'kept' AS kept, reason, cluster, weight, people,
               CASE WHEN reason = 'kept' THEN {split} END AS split, CASE WHEN reason = 'kept' THEN bucket END AS bucket,
               bucket_why, CAST(NULL AS STRING) AS shard, CAST(NULL AS BIGINT) AS position,
               CAST(NULL AS STRING) AS judgement
        FROM decided"""


def _decided_sql(subset: SubsetConfig) -> str:
    """Every new clip with its reason before the mix. A clip's split follows its source's family: a copy's original."""
    video = reason_sql([clip_rule(t) for t in subset.clip_rules])
    image = reason_sql([clip_rule(t) for t in subset.image_rules])
    source = reason_sql([source_rule(t) for t in subset.source_rules])
    of_people = [clip_rule(text).sql for text in subset.people.rules] if subset.people else []
    people = f"coalesce({of_people[0]}, false)" if of_people else "CAST(NULL AS BOOLEAN)"
    return f"""
        WITH judged AS (
            SELECT source_id, coalesce(exact_copy_of, source_id) AS family, {", ".join(OF_SOURCE)},
                   CASE WHEN exact_copy_of IS NOT NULL THEN concat('rule:exact_copy_of ', exact_copy_of)
                        WHEN kind = 'video' THEN {source} END AS source_reason
            FROM sources)
        SELECT clip_id, source_id, kind, family, bucket, bucket_why, {", ".join((*OF_CLIP, *OF_SOURCE))},
               {people} AS people, CAST(NULL AS STRING) AS side,
               CASE WHEN status = 'error' THEN concat('error:', coalesce(error_code, 'internal'))
                    ELSE coalesce(source_reason, CASE WHEN kind = 'image' THEN {image} ELSE {video} END,
                                  CASE WHEN bucket IS NULL THEN concat('unselected:', coalesce(misfit, 'no_bucket')) END,
                                  'kept') END AS reason
        FROM clips ANTI JOIN previous USING (clip_id) LEFT JOIN judged USING (source_id) LEFT JOIN fits USING (clip_id)"""


def _check_whole(engine: Engine) -> None:
    """Every new clip is decided exactly once, with its source at hand."""
    decided, distinct, known = engine.ask("SELECT count(*), count(DISTINCT clip_id), count(family) FROM decided")[0]
    assert decided == distinct == known, (
        f"{decided} decisions on {distinct} clips, {known} of them with a source: a source is missing or an id is not unique"
    )


def _but(*columns: str, **changed: str) -> str:
    """A list of columns of `decided d`, some of them as an expression says."""
    named = dict.fromkeys((*DECIDED, *columns, *changed))
    return ", ".join(f"{changed[name]} AS {name}" if name in changed else f"d.{name}" for name in named)


def _deduplicate(engine: Engine) -> None:
    """Drop all but one of each group of near-duplicates that is left by the rules."""
    engine.make(
        "members", "SELECT clip_id, duplicate_of AS of_group FROM same UNION SELECT duplicate_of, duplicate_of FROM same"
    )
    engine.make(
        "beaten",
        f"""WITH own AS (SELECT of_group, clip_id, row_number() OVER (PARTITION BY of_group ORDER BY {BEST}) AS place
                         FROM members JOIN decided USING (clip_id) WHERE reason = 'kept'),
                 former AS (SELECT of_group, min(clip_id) AS clip_id FROM members JOIN previous USING (clip_id) WHERE kept
                            GROUP BY of_group),
                 winners AS (SELECT own.of_group, coalesce(former.clip_id, own.clip_id) AS winner
                             FROM own LEFT JOIN former ON former.of_group = own.of_group WHERE place = 1)
            SELECT clip_id, min(winner) AS winner FROM members JOIN winners USING (of_group)
            WHERE winner <> clip_id GROUP BY clip_id""",
    )
    reason = "CASE WHEN d.reason = 'kept' AND winner IS NOT NULL THEN concat('duplicate:', winner) ELSE d.reason END"
    engine.make("decided", f"SELECT {_but(reason=reason)} FROM decided d LEFT JOIN beaten b ON b.clip_id = d.clip_id")


def _join_families(engine: Engine) -> None:
    """Sources that have near-duplicates of each other's clips are one family: no film may stand on both sides of the split.

    A family goes by its smallest id, and to the side where clips of it stand since earlier runs (train, where on both).
    """
    links = engine.ask(
        """WITH known AS (SELECT clip_id, family FROM decided UNION ALL SELECT clip_id, source_id FROM previous)
           SELECT DISTINCT least(a.family, b.family), greatest(a.family, b.family) FROM same
           JOIN known a ON a.clip_id = same.clip_id JOIN known b ON b.clip_id = same.duplicate_of
           WHERE a.family <> b.family ORDER BY 1, 2"""
    )
    head: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := head.get(name, name)) != name:
            head[name] = head.get(above, above)  # the way is shorter the next time
            name = above
        return name

    for a, b in links:
        first, then = sorted((root(a), root(b)))
        head[then] = first
    moved = {name: root(name) for pair in links for name in pair}
    engine.give("families", pa.table({"family": pa.array(moved, pa.string()), "joined": pa.array(moved.values(), pa.string())}))
    engine.make(
        "sides",
        """SELECT joined, min(split) AS side FROM previous JOIN families ON families.family = previous.source_id
           WHERE kept GROUP BY joined""",
    )
    columns = _but(family="coalesce(f.joined, d.family)", side="s.side")
    engine.make(
        "decided",
        f"""SELECT {columns} FROM decided d LEFT JOIN families f ON f.family = d.family
            LEFT JOIN sides s ON s.joined = f.joined""",
    )


def _weigh(engine: Engine, people_from: float | None) -> None:
    """Give each clip its concept, and those that are left 1 / sqrt(clips of the concept that are left, earlier ones too)."""
    similar = f"coalesce(CAST(people_similarity AS DOUBLE) >= {people_from}, false)"
    people = "d.people" if people_from is None else similar
    engine.make("left_before", f"SELECT cluster, people, kept FROM previous WHERE {LEFT}")
    engine.make("own", "SELECT clip_id, reason, cluster, people_similarity FROM decided JOIN concepts USING (clip_id)")
    weight = "CASE WHEN d.reason = 'kept' THEN 1 / sqrt(coalesce(n, 1)) END"
    columns = _but(people=people, cluster="o.cluster", weight=weight)
    engine.make(
        "decided",
        f"""WITH whole AS (SELECT cluster, count(*) AS n FROM (SELECT cluster FROM left_before UNION ALL
                               SELECT cluster FROM own WHERE reason = 'kept') AS every
                           WHERE cluster IS NOT NULL GROUP BY cluster)
            SELECT {columns} FROM decided d LEFT JOIN own o ON o.clip_id = d.clip_id
            LEFT JOIN whole w ON w.cluster = o.cluster""",
    )


def _drop_surplus(engine: Engine, reason: str, ranked: str) -> None:
    """Drop the clips that a query of `clip_id, place, room` places behind the room there is."""
    changed = f"CASE WHEN r.place > r.room THEN {literal(reason)} ELSE d.reason END"
    columns = _but("cluster", "weight", reason=changed)
    engine.make("decided", f"SELECT {columns} FROM decided d LEFT JOIN ({ranked}) r ON r.clip_id = d.clip_id")


def _resample(engine: Engine, subset: SubsetConfig, seed: int) -> None:
    """Keep the quota of each concept, the lowest draws first; what was kept before counts first.

    Clips with people and those without are apart: people are no smaller a share of what is kept than they were, nor than
    the floor.
    """
    found = engine.ask(
        """WITH every AS (SELECT coalesce(people, false) AS has, cluster, kept AS before FROM left_before UNION ALL
                          SELECT coalesce(people, false), cluster, false FROM decided WHERE reason = 'kept')
           SELECT has, cluster, count(*) AS n, count(*) FILTER (WHERE before) AS kept_before FROM every
           GROUP BY has, cluster ORDER BY has, cluster NULLS LAST"""
    )
    engine.give("room", _room(found, subset, seed))
    _drop_surplus(
        engine,
        "resampled_out",
        f"""SELECT clip_id, room, row_number() OVER (PARTITION BY has, c.cluster
                                                     ORDER BY {draw_sql(seed, "resample", "clip_id")}, clip_id) AS place
            FROM (SELECT clip_id, coalesce(people, false) AS has, cluster FROM decided WHERE reason = 'kept') c
            JOIN room ON room.people = c.has AND room.cluster IS NOT DISTINCT FROM c.cluster""",
    )


def _room(found: Sequence[tuple[Any, ...]], subset: SubsetConfig, seed: int) -> pa.Table:
    """How many more clips of each concept, with people and without, may be kept; `found` says how many there are and were."""
    assert subset.resample is not None, "a subset that is resampled"
    sizes: dict[int, int] = {}
    for _, cluster, n, _ in found:
        sizes[cluster] = sizes.get(cluster, 0) + n
    whole, people = sum(n for _, _, n, _ in found), sum(n for has, _, n, _ in found if has)
    target = subset.resample.target(whole)
    with_people = -(-target * people // whole) if whole else 0  # rounded up
    if subset.people is not None:
        with_people = min(people, max(with_people, -(-target * round(subset.people.share * 1000) // 1000)))
    with_people = max(with_people, sum(before for has, _, _, before in found if has))
    room: dict[str, list[object]] = {"people": [], "cluster": [], "room": []}
    for has, wanted in ((True, with_people), (False, max(0, target - with_people))):
        rows = [(cluster, n, before) for has_people, cluster, n, before in found if has_people == has]
        groups = [(n, sizes[cluster] if cluster is not None else 1) for cluster, n, _ in rows]
        order = sorted(range(len(rows)), key=lambda g: draw(seed, f"round/{has}", str(rows[g][0])))
        offset = int(draw(seed, "offset", str(has)), 16) / 2**32
        given = quotas(groups, wanted, order, offset, [before for _, _, before in rows])
        for (cluster, _, before), quota in zip(rows, given, strict=True):
            for name, value in (("people", has), ("cluster", cluster), ("room", quota - before)):
                room[name].append(value)
    types = {"people": pa.bool_(), "cluster": pa.int64(), "room": pa.int64()}
    return pa.table({name: pa.array(values, types[name]) for name, values in room.items()})


def _people_floor(engine: Engine, share: float, seed: int) -> None:
    """Drop clips without people until those with people are their share, the highest draws first."""
    count = "SELECT has, count(*) FROM (SELECT coalesce(people, false) AS has FROM"
    old = dict(engine.ask(f"{count} previous WHERE kept) AS every GROUP BY has"))
    new = dict(engine.ask(f"{count} decided WHERE reason = 'kept') AS every GROUP BY has"))
    of_1000 = round(share * 1000)
    most = (old.get(True, 0) + new.get(True, 0)) * (1000 - of_1000) // of_1000
    _drop_surplus(
        engine,
        "unselected:people_floor",
        f"""SELECT clip_id, {max(0, most - old.get(False, 0))} AS room,
                   row_number() OVER (ORDER BY {draw_sql(seed, "people_floor", "clip_id")}, clip_id) AS place
            FROM decided WHERE reason = 'kept' AND NOT people""",
    )


def _mix(engine: Engine, landscape_share: float, seed: int) -> None:
    """Drop the surplus of landscape or portrait videos, the highest draws first; what earlier runs kept stays."""
    of_1000 = round(landscape_share * 1000)
    count = f"SELECT wide, count(*) FROM (SELECT {LANDSCAPE} AS wide FROM"
    old = dict(engine.ask(f"{count} previous WHERE kept AND bucket LIKE 'v%') AS every GROUP BY wide"))
    new = dict(engine.ask(f"{count} decided WHERE reason = 'kept' AND kind = 'video') AS every GROUP BY wide"))
    wide, high = (old.get(side, 0) + new.get(side, 0) for side in (True, False))
    quota = {True: high * of_1000 // (1000 - of_1000), False: wide * (1000 - of_1000) // of_1000}
    room = {side: max(0, quota[side] - old.get(side, 0)) for side in quota}
    _drop_surplus(
        engine,
        "unselected:aspect_mix",
        f"""SELECT clip_id, CASE WHEN wide THEN {room[True]} ELSE {room[False]} END AS room,
                   row_number() OVER (PARTITION BY wide ORDER BY {draw_sql(seed, "aspect_mix", "clip_id")}, clip_id) AS place
            FROM (SELECT clip_id, {LANDSCAPE} AS wide FROM decided WHERE reason = 'kept' AND kind = 'video') c""",
    )
