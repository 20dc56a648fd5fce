"""The funnel: how many clips and seconds each rule of a list takes away, from a tally of reasons."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from curation.rules import SubsetConfig, clip_rule, source_rule

GROUP = """CASE WHEN reason LIKE 'duplicate:%' THEN 'duplicate'
     WHEN reason LIKE 'rule:exact_copy_of %' OR reason LIKE 'exact_copy:%' THEN 'exact_copy'
     ELSE reason END"""
"""SQL, valid in DuckDB and in Spark, that takes from a `reason` the id of the one clip or source it names: so reasons can be
counted."""

AFTER = {
    "unselected:too_small": "no shape bucket: too small",
    "unselected:too_few_frames": "no shape bucket: too few frames",
    "duplicate": "near-duplicates",
    "resampled_out": "concept resampling",
    "unselected:people_floor": "people floor",
    "unselected:aspect_mix": "aspect mix",
    "unselected:not_reviewed": "not reviewed yet",
    "unselected:rejected": "rejected by people",
    "unselected:conflict": "people disagree",
    "unselected:span_too_short": "picked span too short",
}


@dataclass(frozen=True)
class Amount:
    """A number of clips (or sources) and how long they are together."""

    count: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(self.count + other.count, self.seconds + other.seconds)

    def __sub__(self, other: "Amount") -> "Amount":
        return Amount(self.count - other.count, max(0.0, self.seconds - other.seconds))


@dataclass(frozen=True)
class Step:
    """One row of the funnel: what a rule dropped, what it could not decide (a null column), and what is left after it."""

    label: str
    about: str
    """`errors`, `copies`, `source rule`, `clip rule`, `image rule` or `after the rules`."""
    dropped: Amount
    unknown: Amount
    left: Amount


def steps(subset: SubsetConfig, kind: str, tally: Mapping[str, Amount]) -> list[Step]:
    """The steps for the clips of one `kind` (video or image), from grouped reasons (`GROUP`) to amounts.

    `kept` is what is left at the end. Every reason of the tally is in exactly one step, known to the list or not.
    """
    left = sum(tally.values(), Amount())
    rest = {k: v for k, v in tally.items() if k != "kept"}
    rows: list[Step] = []

    def take(label: str, about: str, dropped: Iterable[str], unknown: Iterable[str] = ()) -> None:
        nonlocal left
        gone = sum((rest.pop(reason, Amount()) for reason in dropped), Amount())
        unclear = sum((rest.pop(reason, Amount()) for reason in unknown), Amount())
        left = left - gone - unclear
        rows.append(Step(label, about, gone, unclear, left))

    if errors := [r for r in rest if r.startswith("error:")]:
        take("clips in error", "errors", errors)
    if "exact_copy" in rest:
        take("exact copies of another source", "copies", ["exact_copy"])
    for label, about, columns in _rules(subset, kind):
        take(label, about, [f"rule:{label}"], [f"unmeasured:{c}" for c in columns])
    for reason in sorted(rest, key=lambda r: (r not in AFTER, list(AFTER).index(r) if r in AFTER else 0, r)):
        take(AFTER.get(reason, reason), "after the rules", [reason])
    return rows


def _rules(subset: SubsetConfig, kind: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """(text, about, columns it needs) of the rules that a clip of `kind` meets, in order."""
    if kind == "image":
        return [(r.text, "image rule", r.columns) for r in map(clip_rule, subset.image_rules)]
    first = [(r.text, "source rule", r.columns) for r in map(source_rule, subset.source_rules)]
    return first + [(r.text, "clip rule", r.columns) for r in map(clip_rule, subset.clip_rules)]
