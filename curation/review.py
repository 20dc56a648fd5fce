"""Reviews: what people said of clips, in rows that are never changed, and the one verdict that follows from them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation import storage
from curation.tables import REVIEWS

Row = dict[str, Any]

SHOTS = ("wide_angle", "close_up", "aerial", "low_angle", "over_the_shoulder", "first_person_view")
"""The six labels that Movie Gen's annotators add to the sixteen of camera motion."""

KEPT = "kept"
NOT_REVIEWED, REJECTED, CONFLICT = "unselected:not_reviewed", "unselected:rejected", "unselected:conflict"
TOO_SHORT = "unselected:span_too_short"
REASONS = (NOT_REVIEWED, REJECTED, CONFLICT, TOO_SHORT)
"""Reasons in a reviewed subset of the clips that every other decision left: they are the candidates, with those kept."""


class ReviewConfig(BaseModel):
    """How people decide about what the rules of a subset leave."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    judgements: Literal[1, 2] = 1
    """People who must judge a clip. Two must agree, each without seeing what the other said."""
    least_overlap: float = Field(0.5, ge=0, le=1)
    """Least share of two people's accepted spans that both have; below it they are in conflict."""


@dataclass(frozen=True)
class Verdict:
    """Where a clip stands."""

    reason: str
    """`kept` or one of REASONS."""
    judgement: Row | None = None
    """Whose span and caption hold, where it is kept: the last one's."""
    standing: Sequence[Row] = ()
    """The judgements that count, one a person, oldest first."""


def standing(history: Iterable[Row]) -> list[Row]:
    """Of one clip's history, in its order: each person's last judgement that was not undone, oldest first."""
    rows = list(history)
    undone = {row["undoes"] for row in rows if row["action"] == "undo"}
    last: dict[str, Row] = {}
    for row in rows:
        if row["action"] in ("accept", "reject") and row["judgement"] not in undone:
            last.pop(row["who"], None)
            last[row["who"]] = row
    return list(last.values())


def verdict(history: Iterable[Row], config: ReviewConfig) -> Verdict:
    """What follows from one clip's history. A judgement that `settles` a conflict decides alone, the last of several."""
    own = standing(history)
    settled = [row for row in own if row["settles"]]
    if not settled and len(own) < config.judgements:
        return Verdict(NOT_REVIEWED, None, own)
    if not settled and not _agree(own, config.least_overlap):
        return Verdict(CONFLICT, None, own)
    last = (settled or own)[-1]
    return Verdict(KEPT, last, own) if last["action"] == "accept" else Verdict(REJECTED, None, own)


def _agree(own: Sequence[Row], least_overlap: float) -> bool:
    if len({row["action"] for row in own}) > 1:
        return False
    return own[0]["action"] == "reject" or all(overlap(own[-1], row) >= least_overlap for row in own[:-1])


def overlap(a: Row, b: Row) -> float:
    """The share of two spans' frames that both have: intersection over union. 1 for images."""
    if a["end_frame"] is None or b["end_frame"] is None:
        return 1.0
    both = min(a["end_frame"], b["end_frame"]) - max(a["start_frame"], b["start_frame"])
    either = max(a["end_frame"], b["end_frame"]) - min(a["start_frame"], b["start_frame"])
    return max(0, both) / either if either > 0 else 1.0


def by_clip(history: Iterable[Row]) -> dict[str, list[Row]]:
    """Histories of single clips, each in the order of time."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(history, key=lambda row: row["seq"]):
        found[row["clip_id"]].append(row)
    return found


def place(run: str, subset: str) -> str:
    """Where a subset's history is, once it is exported."""
    return storage.join(run, "review", f"{subset}.parquet")


def read(run: str, subset: str) -> list[Row]:
    """The exported history of a subset; none where nobody has reviewed."""
    import pyarrow.parquet as pq

    if not storage.exists(place(run, subset)):
        return []
    with storage.open_read(place(run, subset)) as file:
        return pq.read_table(file, schema=REVIEWS).to_pylist()  # type: ignore[no-any-return]


def mended_id(clip_id: str, judgement: str) -> str:
    """The name of what a judgement makes of a clip: another span of it, told apart from the clip as it was found."""
    return f"{clip_id}-{judgement}"


def mend(clip: Mapping[str, Any], judgement: Mapping[str, Any]) -> Row:
    """A clip's row with the span of a judgement. Its scores stay those of the whole clip."""
    row = {**clip, "clip_id": mended_id(clip["clip_id"], judgement["judgement"])}
    if clip["kind"] == "image":
        return row
    span = {name: judgement[name] for name in ("start_frame", "end_frame", "start_s", "end_s")}
    return row | span | {"frames": span["end_frame"] - span["start_frame"], "duration_s": span["end_s"] - span["start_s"]}
