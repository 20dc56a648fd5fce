import random
from itertools import combinations
from typing import Any

import pyarrow as pa

from curation.rules import SubsetConfig
from curation.select import fit_table, select
from curation.tables import CLIPS, SELECTION, SOURCES
from curation.what_if import Loss, WhatIf, what_if

Row = dict[str, Any]
SUBSET = SubsetConfig(
    name="x",
    source_rules=("duration_s >= 4",),
    clip_rules=("motion_mv > 1", "border_frac = 0", "text_score < 0.6"),
    image_rules=("height > 9",),
)


def tables(videos: list[Row], spans: list[Row]) -> tuple[pa.Table, pa.Table]:
    source = dict.fromkeys(SOURCES.names) | {"kind": "video", "status": "ok", "duration_s": 10.0}
    good = {"motion_mv": 2.0, "border_frac": 0.0, "text_score": 0.1, "duration_s": 8.0}
    clip = dict.fromkeys(CLIPS.names) | {"kind": "video", "status": "ok"} | good
    return (
        pa.Table.from_pylist([source | r for r in videos], schema=SOURCES),
        pa.Table.from_pylist([clip | r for r in spans], schema=CLIPS),
    )


def loss(found: WhatIf, rule: str) -> tuple[int, int, int]:
    of = next(x for x in found.losses if x.rule == rule)
    return of.fails, of.only, of.unknown


def test_every_clip_has_one_fate_and_every_rule_its_account() -> None:
    videos = [
        {"source_id": "s"},
        {"source_id": "short", "duration_s": 2.0},
        {"source_id": "copy", "exact_copy_of": "s"},
        {"source_id": "image", "kind": "image", "duration_s": 0.0},
    ]
    spans: list[Row] = [
        {"source_id": "s"},
        {"source_id": "s", "motion_mv": 0.0},
        {"source_id": "s", "motion_mv": 0.0, "border_frac": 0.2},
        {"source_id": "s", "motion_mv": 0.0, "text_score": None},
        {"source_id": "s", "text_score": None},
        {"source_id": "s", "text_score": None, "error_code": "scorer_failed"},
        {"source_id": "s", "text_score": 0.9, "motion_mv": None},
        {"source_id": "short"},
        {"source_id": "short", "text_score": 0.9},
        {"source_id": "copy", "motion_mv": 0.0},
        {"source_id": "s", "status": "error", "motion_mv": 0.0},
        {"source_id": "copy", "status": "error"},
        {"source_id": "image", "kind": "image", "motion_mv": None, "height": 10, "duration_s": 0.0},
        {"source_id": "image", "kind": "image", "motion_mv": None, "height": 9, "duration_s": 0.0},
    ]
    found = what_if(*tables(videos, [{"clip_id": f"{n:02d}", **row} for n, row in enumerate(spans)]), SUBSET)
    assert (found.clips, found.errors, found.copies) == (14, 2, 1)
    assert (found.kept, found.dropped, found.unknown) == (2, 8, 1)
    assert (found.kept_s, found.dropped_s, found.unknown_s) == (8.0, 56.0, 8.0)
    assert loss(found, "duration_s >= 4") == (2, 1, 0)
    assert loss(found, "motion_mv > 1") == (3, 1, 1)
    assert loss(found, "border_frac = 0") == (1, 0, 0)
    assert loss(found, "text_score < 0.6") == (3, 1, 2)
    assert found.losses[4] == Loss("height > 9", "image rule", 1, 1, 0)
    assert found.both == {(0, 3): 1, (1, 2): 1}


def test_no_clips_and_no_rules() -> None:
    nothing = what_if(*tables([], []), SUBSET)
    assert (nothing.clips, nothing.kept, nothing.kept_s, nothing.both) == (0, 0, 0.0, {})
    free = what_if(*tables([{"source_id": "s"}], [{"clip_id": "c", "source_id": "s"}]), SubsetConfig(name="all"))
    assert (free.kept, free.dropped, free.unknown, free.losses) == (1, 0, 0, ())


def test_it_agrees_with_the_selection_and_with_leaving_a_rule_out() -> None:
    rng = random.Random(2)
    videos = [{"source_id": f"s{n}", "duration_s": rng.choice([2.0, 10.0])} for n in range(40)]
    spans = [
        {
            "clip_id": f"c{n:03d}",
            "source_id": f"s{n % 40}",
            "motion_mv": rng.choice([0.5, 2.0]),
            "border_frac": rng.choice([0.0, 0.0, 0.3]),
            "text_score": rng.choice([0.1, 0.7]),
        }
        for n in range(200)
    ]
    given = tables(videos, spans)
    fits = fit_table({r["clip_id"]: ("v256-16x9-f128", "", None) for r in spans})

    def kept(subset: SubsetConfig) -> int:
        return sum(select(*given, subset, 0, SELECTION.empty_table(), fits)["kept"].to_pylist())

    found = what_if(*given, SUBSET)
    assert found.kept == kept(SUBSET) and found.unknown == found.errors == found.copies == 0
    for left_out in SUBSET.clip_rules:
        rest = tuple(r for r in SUBSET.clip_rules if r != left_out)
        loosened = SUBSET.model_copy(update={"clip_rules": rest})
        assert kept(loosened) - found.kept == loss(found, left_out)[1]
    slow, framed = (r["motion_mv"] <= 1 for r in spans), (r["border_frac"] > 0 for r in spans)
    assert found.both[1, 2] == sum(a and b for a, b in zip(slow, framed, strict=True))
    assert set(found.both) <= set(combinations(range(5), 2))
