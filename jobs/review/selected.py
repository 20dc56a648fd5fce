"""What people decided, in the selection of a subset that they pick, and in what is cut and told of its samples."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bucketing import buckets, plan
from captioning import answers
from captioning.config import CaptionConfig
from captioning.text import training_text
from curation import review, storage
from curation.errors import ConfigError
from curation.review import REASONS, ReviewConfig, Row
from curation.tables import REVIEWS, SELECTION
from jobs.config import Config

FILE = "reviewed.parquet"
"""The one file of such a selection: it is replaced whole, so that a plan is never of two minds."""
VERDICTS = pa.schema([("clip_id", pa.string()), ("verdict", pa.string()), ("said", pa.string()), ("why", pa.string())])
PINNED_SHOWN = 10
TOLD = ("judgement", "who", "start_frame", "end_frame", "start_s", "end_s", "camera", "shots")
"""What a sample's `.json` says of its review, beside the caption."""


def digest(run: str, subset: str) -> str:
    """Of all that was exported of a subset's reviews; empty where there is nothing."""
    place = review.place(run, subset)
    return hashlib.sha256(storage.read_bytes(place)).hexdigest() if storage.exists(place) else ""


def earlier(table: pa.Table) -> pa.Table:
    """An earlier selection as later candidates must see it: what was a candidate counts in all quotas as kept."""
    if "reason" not in table.column_names:
        return table
    chosen = pc.or_(table["kept"], pc.is_in(table["reason"], value_set=pa.array(REASONS)))
    reason = pc.if_else(chosen, review.KEPT, table["reason"])
    names = table.column_names
    return table.set_column(names.index("kept"), "kept", chosen).set_column(names.index("reason"), "reason", reason)


def decide(run: str, config: Config, subset_name: str, bucket_class: int, rule: ReviewConfig, table: pa.Table) -> pa.Table:
    """A selection of candidates with what people decided of them: kept are those accepted, with a place in a shard.

    Once a shard exists, what has a place keeps it. Raises ConfigError where people have since taken one of those back, or
    mended it otherwise.
    """
    histories = review.by_clip(review.read(run, subset_name))
    found = {clip_id: review.verdict(rows, rule) for clip_id, rows in histories.items()}
    verdicts = _verdicts(run, table, {k: v for k, v in found.items() if v.reason != review.NOT_REVIEWED}, bucket_class)
    made = bool(storage.names(storage.join(run, "produced", subset_name)))
    with storage.database() as connection:
        connection.register("given", table)
        connection.register("verdicts", verdicts)
        connection.execute(f"CREATE TABLE decided AS {DECIDED.format(pinned='shard IS NOT NULL' if made else 'FALSE')}")
        moved = connection.execute("SELECT clip_id FROM decided WHERE moved ORDER BY 1").fetchall()
        if moved:
            raise ConfigError(_moved(subset_name, [clip_id for (clip_id,) in moved]))
        decided = connection.sql("SELECT * EXCLUDE (moved) FROM decided ORDER BY clip_id").to_arrow_table().cast(SELECTION)
    placed = decided.filter(decided["shard"].is_valid())
    new = decided.filter(pc.and_(decided["kept"], decided["shard"].is_null()))
    rest = decided.filter(pc.invert(decided["kept"]))
    assigned = plan.assign(new, config.seed, config.shards, plan.next_shards(placed))
    return pa.concat_tables([placed, assigned, rest]).sort_by("clip_id").combine_chunks()


CANDIDATE = f"reason IN ({', '.join(map(repr, (review.KEPT, *REASONS)))})"
DECIDED = f"""
    WITH known AS (SELECT *, {{pinned}} AS pinned, {CANDIDATE} AS candidate
                   FROM given LEFT JOIN verdicts USING (clip_id)),
         judged AS (SELECT *, CASE WHEN candidate THEN coalesce(verdict, '{review.NOT_REVIEWED}') ELSE reason END AS now
                    FROM known)
    SELECT * EXCLUDE (pinned, candidate, verdict, said, why, now)
             REPLACE (now = '{review.KEPT}' AS kept, now AS reason,
                      CASE WHEN now = '{review.KEPT}' THEN said END AS judgement,
                      CASE WHEN now = '{review.KEPT}' THEN why ELSE bucket_why END AS bucket_why,
                      CASE WHEN pinned THEN shard END AS shard, CASE WHEN pinned THEN position END AS position),
           pinned AND judgement IS DISTINCT FROM CASE WHEN now = '{review.KEPT}' THEN said END AS moved
    FROM judged"""


def _moved(subset: str, clips: Sequence[str]) -> str:
    more = f" and {len(clips) - PINNED_SHOWN} more" if len(clips) > PINNED_SHOWN else ""
    return (
        f"{len(clips)} clips that have their place in shards of {subset!r} were taken back or mended otherwise since: "
        f"{', '.join(clips[:PINNED_SHOWN])}{more}. Remove shards/{subset} and produced/{subset} to have them made anew"
    )


def _verdicts(run: str, table: pa.Table, found: Mapping[str, review.Verdict], bucket_class: int) -> pa.Table:
    """Rows of VERDICTS: each candidate's fate; an accepted span too short for a sample is not kept."""
    candidates = table.filter(pc.is_in(table["clip_id"], value_set=pa.array(list(found), pa.string())))
    shapes = _shapes(run, [c for c in candidates["clip_id"].to_pylist() if found[c].judgement is not None])
    rows = []
    for clip_id in candidates["clip_id"].to_pylist():
        fate, judgement = found[clip_id].reason, found[clip_id].judgement
        if judgement is None:
            rows.append({"clip_id": clip_id, "verdict": fate})
            continue
        choice = buckets.choose(review.mend(shapes[clip_id], judgement), bucket_class, fixed=True)
        fate = fate if choice.bucket else review.TOO_SHORT
        rows.append({"clip_id": clip_id, "verdict": fate, "said": judgement["judgement"], "why": choice.why})
    return storage.rows_table(rows, VERDICTS)


def _shapes(run: str, clip_ids: Sequence[str]) -> dict[str, Row]:
    """clip_id -> its row of `clips` with its source's shape."""
    from jobs.inspect import connect, rows

    if not clip_ids:
        return {}
    query = """SELECT c.*, s.pixel_aspect, s.rotation FROM clips c JOIN sources s USING (source_id)
               WHERE clip_id IN (SELECT unnest($1::VARCHAR[]))"""
    with connect(run, ("clips", "sources")) as connection:
        return {row["clip_id"]: row for row in rows(connection, query, [list(clip_ids)])}


def judgements(run: str, names: Sequence[str]) -> dict[str, Row]:
    """Judgement -> its row, of these judgements in any subset's exported history. They never change."""
    found: dict[str, Row] = {}
    for name in storage.names(storage.join(run, "review"), ".parquet") if names else ():
        with storage.open_read(storage.join(run, "review", name)) as file:
            rows = pq.read_table(file, schema=REVIEWS, filters=pc.field("judgement").isin(list(names))).to_pylist()
        found |= {row["judgement"]: row for row in rows}
    lacking = [name for name in names if name not in found]
    if lacking:
        raise ConfigError(
            f"review/ lacks {len(lacking)} judgements that the selection names: {', '.join(lacking[:PINNED_SHOWN])}"
        )
    return found


def told(judgement: Row) -> dict[str, Any]:
    """What a sample's `.json` says of the person's decision."""
    own = {name: judgement[name] for name in TOLD}
    return {"review": own, "caption": {name: judgement[name] for name in ("caption", *answers.FIELDS)}}


def text(judgement: Row, fps: float | None, config: CaptionConfig) -> str:
    """The training text of a sample: the person's caption, camera and shot labels."""
    said = {"camera": judgement["camera"], "camera_confidence": 1.0}
    return training_text(judgement["caption"], said, fps, config, judgement["shots"] or ())
