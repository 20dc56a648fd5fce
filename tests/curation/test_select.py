from collections import Counter

import pyarrow as pa

from curation.rules import SubsetConfig
from curation.select import draw, fit_table, select, threshold
from curation.tables import CLIPS, SELECTION, SOURCES

WIDE, HIGH = "v256-16x9-f128", "v256-9x16-f128"


def sources(*rows: dict[str, object]) -> pa.Table:
    base = dict.fromkeys(SOURCES.names) | {"kind": "video", "status": "ok", "duration_s": 10.0}
    return pa.Table.from_pylist([base | r for r in rows], schema=SOURCES)


def clips(*rows: dict[str, object]) -> pa.Table:
    base = dict.fromkeys(CLIPS.names) | {"kind": "video", "status": "ok", "motion_mv": 2.0}
    return pa.Table.from_pylist([base | r for r in rows], schema=CLIPS)


def corpus(count: int, bucket: str, prefix: str) -> tuple[list[dict[str, object]], list[dict[str, object]], dict[str, object]]:
    ids = [f"{prefix}{n:04d}" for n in range(count)]
    fits = {i: (bucket, "fits", None) for i in ids}
    return [{"source_id": i} for i in ids], [{"clip_id": i, "source_id": i} for i in ids], fits


NONE_BEFORE = SELECTION.empty_table()


def reasons(table: pa.Table) -> dict[str, str]:
    return dict(zip(table["clip_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def test_each_reason_in_its_order() -> None:
    subset = SubsetConfig(name="x", source_rules=("duration_s >= 4",), clip_rules=("motion_mv > 1",), image_rules=("width >= 9",))
    found = select(
        sources(
            {"source_id": "s"},
            {"source_id": "short", "duration_s": 1.0},
            {"source_id": "copy", "exact_copy_of": "s"},
            {"source_id": "image", "kind": "image", "duration_s": 0.0},
        ),
        clips(
            {"clip_id": "kept", "source_id": "s"},
            {"clip_id": "broken", "source_id": "short", "status": "error", "error_code": "crashed"},
            {"clip_id": "of_short", "source_id": "short", "motion_mv": 0.0},
            {"clip_id": "slow", "source_id": "s", "motion_mv": 0.5},
            {"clip_id": "unknown", "source_id": "s", "motion_mv": None},
            {"clip_id": "of_copy", "source_id": "copy"},
            {"clip_id": "small", "source_id": "s"},
            {"clip_id": "picture", "source_id": "image", "kind": "image", "motion_mv": None, "width": 10},
            {"clip_id": "tiny", "source_id": "image", "kind": "image", "motion_mv": None, "width": 8},
        ),
        subset,
        0,
        NONE_BEFORE,
        fit_table(
            {k: (WIDE, "fits", None) for k in ("kept", "slow", "unknown", "of_short", "of_copy")}
            | {"small": (None, "10x10", "too_small"), "picture": ("i256-1x1", "", None), "tiny": ("i256-1x1", "", None)}
        ),
    )
    assert reasons(found) == {
        "kept": "kept",
        "broken": "error:crashed",
        "of_short": "rule:duration_s >= 4",
        "slow": "rule:motion_mv > 1",
        "unknown": "unmeasured:motion_mv",
        "of_copy": "rule:exact_copy_of s",
        "small": "unselected:too_small",
        "picture": "kept",
        "tiny": "rule:width >= 9",
    }
    kept = {r["clip_id"]: r for r in found.to_pylist() if r["kept"]}
    assert set(kept) == {"kept", "picture"}
    assert kept["kept"]["bucket"] == WIDE and kept["kept"]["weight"] == 1.0 and kept["kept"]["split"] == "train"
    assert found["clip_id"].to_pylist() == sorted(found["clip_id"].to_pylist())


def test_the_mix_drops_the_surplus_side_to_an_exact_quota() -> None:
    s1, c1, f1 = corpus(90, WIDE, "w")
    s2, c2, f2 = corpus(20, HIGH, "h")
    subset = SubsetConfig(name="x", landscape_share=0.6)
    found = select(sources(*s1, *s2), clips(*c1, *c2), subset, 0, NONE_BEFORE, fit_table({**f1, **f2}))
    count = Counter((r["clip_id"][0], r["reason"]) for r in found.to_pylist())
    assert count == {("w", "kept"): 30, ("w", "unselected:aspect_mix"): 60, ("h", "kept"): 20}
    again = select(sources(*s2, *s1), clips(*c2, *reversed(c1)), subset, 0, NONE_BEFORE, fit_table({**f2, **f1}))
    assert again.equals(found)
    other = select(sources(*s1, *s2), clips(*c1, *c2), subset, 1, NONE_BEFORE, fit_table({**f1, **f2}))
    assert reasons(other) != reasons(found)


def test_later_sources_find_the_earlier_ones_counted_and_unchanged() -> None:
    s1, c1, f1 = corpus(40, WIDE, "w")
    s2, c2, f2 = corpus(20, HIGH, "h")
    subset = SubsetConfig(name="x", landscape_share=0.6)
    first = select(sources(*s1, *s2), clips(*c1, *c2), subset, 0, NONE_BEFORE, fit_table({**f1, **f2}))
    assert sum(r["kept"] for r in first.to_pylist()) == 50
    s3, c3, f3 = corpus(10, WIDE, "x")
    s4, c4, f4 = corpus(4, HIGH, "y")
    later = select(sources(*s3, *s4), clips(*c3, *c4), subset, 0, first, fit_table({**f3, **f4}))
    count = Counter((r["clip_id"][0], r["reason"]) for r in later.to_pylist())
    assert count == {("x", "kept"): 6, ("x", "unselected:aspect_mix"): 4, ("y", "kept"): 4}


def test_the_split_is_by_source_and_a_copy_follows_its_original() -> None:
    s, c, f = corpus(2000, WIDE, "s")
    twice = [{**row, "clip_id": f"{row['clip_id']}b"} for row in c]
    fits = fit_table({**f, **{row["clip_id"]: (WIDE, "fits", None) for row in twice}})
    found = select(sources(*s), clips(*c, *twice), SubsetConfig(name="x", validation_share=0.1), 7, NONE_BEFORE, fits)
    split = {r["clip_id"]: r["split"] for r in found.to_pylist()}
    assert all(split[f"s{n:04d}"] == split[f"s{n:04d}b"] for n in range(2000))
    share = sum(v == "validation" for v in split.values()) / len(split)
    assert 0.07 < share < 0.13
    for n in range(50):
        expected = "validation" if draw(7, "split", f"s{n:04d}") < threshold(0.1) else "train"
        assert split[f"s{n:04d}"] == expected
