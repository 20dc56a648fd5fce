import hashlib
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from bucketing.buckets import all_buckets
from curation.resample import PeopleConfig, ResampleConfig, expected
from curation.rules import SubsetConfig
from curation.select import LANDSCAPE, NONE_SAME, UNCLUSTERED, draw, fit_table, select, threshold
from curation.tables import CLIPS, CONCEPTS, SELECTION, SOURCES

Row = dict[str, Any]
Corpus = tuple[list[Row], list[Row], dict[str, tuple[str | None, str, str | None]]]
WIDE, SQUARE, HIGH, PHOTO = "v256-16x9-f128", "v256-1x1-f256", "v256-9x16-f128", "i256-9x16"
NONE_BEFORE = SELECTION.empty_table()


def sources(*rows: Row) -> pa.Table:
    base = dict.fromkeys(SOURCES.names) | {"kind": "video", "status": "ok", "duration_s": 10.0}
    return pa.Table.from_pylist([base | r for r in rows], schema=SOURCES)


def clips(*rows: Row) -> pa.Table:
    base = dict.fromkeys(CLIPS.names) | {"kind": "video", "status": "ok", "motion_mv": 2.0}
    return pa.Table.from_pylist([base | r for r in rows], schema=CLIPS)


def corpus(count: int, bucket: str, prefix: str) -> Corpus:
    """One clip a source, all of one bucket."""
    ids = [f"{prefix}{n:04d}" for n in range(count)]
    kind = "image" if bucket.startswith("i") else "video"
    videos = [{"source_id": i, "kind": kind} for i in ids]
    return videos, [{"clip_id": i, "source_id": i, "kind": kind} for i in ids], dict.fromkeys(ids, (bucket, "fits", None))


def chosen(
    subset: SubsetConfig,
    *corpora: Corpus,
    seed: int = 0,
    previous: pa.Table = NONE_BEFORE,
    same: pa.Table = NONE_SAME,
    concepts: pa.Table = UNCLUSTERED,
) -> pa.Table:
    videos = [row for s, _, _ in corpora for row in s]
    spans = [row for _, c, _ in corpora for row in c]
    fits = {k: v for _, _, f in corpora for k, v in f.items()}
    return select(sources(*videos), clips(*spans), subset, seed, previous, fit_table(fits), same, concepts)


def reasons(table: pa.Table) -> dict[str, str]:
    return dict(zip(table["clip_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


def tally(table: pa.Table) -> dict[tuple[str, str], int]:
    """(first letter of the id, reason) -> clips."""
    return Counter((i[0], r) for i, r in reasons(table).items())


def test_each_reason_in_its_order() -> None:
    rules = {"source_rules": ("duration_s >= 4",), "clip_rules": ("motion_mv > 1",), "image_rules": ("width >= 9",)}
    found = select(
        sources(
            {"source_id": "s"},
            {"source_id": "short", "duration_s": 1.0},
            {"source_id": "long?", "duration_s": None},
            {"source_id": "copy", "exact_copy_of": "s"},
            {"source_id": "image", "kind": "image", "duration_s": 0.0},
        ),
        clips(
            {"clip_id": "kept", "source_id": "s"},
            {"clip_id": "broken", "source_id": "short", "status": "error", "error_code": "crashed"},
            {"clip_id": "broken?", "source_id": "s", "status": "error"},
            {"clip_id": "of_short", "source_id": "short", "motion_mv": 0.0},
            {"clip_id": "of_long?", "source_id": "long?", "motion_mv": 0.0},
            {"clip_id": "slow", "source_id": "s", "motion_mv": 0.5},
            {"clip_id": "unknown", "source_id": "s", "motion_mv": None},
            {"clip_id": "of_copy", "source_id": "copy"},
            {"clip_id": "small", "source_id": "s"},
            {"clip_id": "slow_and_small", "source_id": "s", "motion_mv": 0.5},
            {"clip_id": "unasked", "source_id": "s"},
            {"clip_id": "picture", "source_id": "image", "kind": "image", "motion_mv": None, "width": 10},
            {"clip_id": "tiny", "source_id": "image", "kind": "image", "motion_mv": None, "width": 8},
        ),
        SubsetConfig(name="x", **rules),
        0,
        NONE_BEFORE,
        fit_table(
            dict.fromkeys(("kept", "slow", "unknown", "of_short", "of_copy"), (WIDE, "fits", None))
            | dict.fromkeys(("small", "slow_and_small"), (None, "10x10", "too_small"))
            | {"picture": (PHOTO, "", None), "tiny": (PHOTO, "", None)}
        ),
    )
    assert reasons(found) == {
        "kept": "kept",
        "broken": "error:crashed",
        "broken?": "error:internal",
        "of_short": "rule:duration_s >= 4",
        "of_long?": "unmeasured:duration_s",
        "slow": "rule:motion_mv > 1",
        "unknown": "unmeasured:motion_mv",
        "of_copy": "rule:exact_copy_of s",
        "small": "unselected:too_small",
        "slow_and_small": "rule:motion_mv > 1",
        "unasked": "unselected:no_bucket",
        "picture": "kept",
        "tiny": "rule:width >= 9",
    }
    rows = {r["clip_id"]: r for r in found.to_pylist()}
    assert {i for i, r in rows.items() if r["kept"]} == {"kept", "picture"}
    assert (rows["kept"]["bucket"], rows["kept"]["weight"], rows["kept"]["split"]) == (WIDE, 1.0, "train")
    assert (rows["slow"]["bucket"], rows["slow"]["weight"], rows["slow"]["split"]) == (None, None, None)
    assert rows["small"]["bucket_why"] == "10x10" and rows["slow"]["bucket_why"] == "fits"
    assert all(r["shard"] is None and r["position"] is None and r["cluster"] is None for r in rows.values())
    assert found.schema.equals(SELECTION) and found["clip_id"].to_pylist() == sorted(rows)


def test_quotes_in_rules_and_paths_change_nothing_else() -> None:
    subset = SubsetConfig(name="x", clip_rules=("path != 'it''s; DROP TABLE clips --'",))
    found = select(
        sources({"source_id": "s"}),
        clips(
            *({"clip_id": i, "source_id": "s", "path": p} for i, p in {"a": "it's; DROP TABLE clips --", "b": "' OR 1"}.items())
        ),
        subset,
        0,
        NONE_BEFORE,
        fit_table({"a": (WIDE, "it's", None), "b": (WIDE, "'", None)}),
    )
    assert reasons(found) == {"a": f"rule:{subset.clip_rules[0]}", "b": "kept"}


def test_nothing_to_select_is_an_empty_selection() -> None:
    found = select(sources(), clips(), SubsetConfig(name="x", landscape_share=0.6), 0, NONE_BEFORE, fit_table({}))
    assert found.num_rows == 0 and found.schema.equals(SELECTION)


def test_a_clip_without_a_source_is_our_mistake_and_is_not_lost_silently() -> None:
    with pytest.raises(AssertionError, match="a source is missing"):
        select(sources(), clips({"clip_id": "c", "source_id": "s"}), SubsetConfig(name="x"), 0, NONE_BEFORE, fit_table({}))


def test_the_mix_drops_the_surplus_side_to_an_exact_quota() -> None:
    wide, high = corpus(90, WIDE, "w"), corpus(20, HIGH, "h")
    subset = SubsetConfig(name="x", landscape_share=0.6)
    found = chosen(subset, wide, high)
    assert tally(found) == {("w", "kept"): 30, ("w", "unselected:aspect_mix"): 60, ("h", "kept"): 20}
    assert tally(chosen(subset, corpus(30, WIDE, "w"), corpus(90, HIGH, "h"))) == {
        ("w", "kept"): 30,
        ("h", "kept"): 20,
        ("h", "unselected:aspect_mix"): 70,
    }
    kept = {i for i, r in reasons(found).items() if r == "kept" and i[0] == "w"}
    by_draw = sorted((r["clip_id"] for r in wide[1]), key=lambda i: (draw(0, "aspect_mix", i), i))
    assert kept == set(by_draw[:30]), "the lowest draws stay"
    assert reasons(chosen(subset, wide, high, seed=1)) != reasons(found)
    assert tally(chosen(subset, wide)) == {("w", "unselected:aspect_mix"): 90}
    assert tally(chosen(SubsetConfig(name="x"), wide)) == {("w", "kept"): 90}


def test_squares_count_as_landscape_and_images_do_not_count() -> None:
    subset = SubsetConfig(name="x", landscape_share=0.5)
    found = chosen(subset, corpus(8, SQUARE, "q"), corpus(4, HIGH, "h"), corpus(9, PHOTO, "p"))
    assert tally(found) == {("q", "kept"): 4, ("q", "unselected:aspect_mix"): 4, ("h", "kept"): 4, ("p", "kept"): 9}
    later = chosen(subset, corpus(2, HIGH, "l"), previous=chosen(SubsetConfig(name="x"), corpus(9, PHOTO, "p")))
    assert tally(later) == {("l", "unselected:aspect_mix"): 2}, "earlier images do not count either"


def test_the_orientation_of_every_bucket_is_read_from_its_name() -> None:
    import duckdb

    for bucket in (*all_buckets(256), *all_buckets(768)):
        found = duckdb.execute(f"SELECT {LANDSCAPE} FROM (SELECT $1 AS bucket)", [bucket.name]).fetchall()[0][0]
        assert found == (bucket.size[0] >= bucket.size[1])


@pytest.mark.parametrize("share", [0.6, 0.8, 0.5, 0.333, 0.01, 0.99])
def test_the_kept_share_is_met_to_within_one_clip(share: float) -> None:
    rng = random.Random(share)
    for _ in range(4):
        wide, high = rng.randint(0, 60), rng.randint(0, 60)
        found = chosen(SubsetConfig(name="x", landscape_share=share), corpus(wide, WIDE, "w"), corpus(high, HIGH, "h"))
        kept = tally(found)
        w, h = kept.get(("w", "kept"), 0), kept.get(("h", "kept"), 0)
        assert w in (wide, int(h * round(share * 1000) // (1000 - round(share * 1000))))
        assert h in (high, int(w * (1000 - round(share * 1000)) // round(share * 1000)))
        assert w == wide or h == high, "only one side has a surplus"


def test_later_sources_find_the_earlier_ones_counted_and_unchanged() -> None:
    wide, high = corpus(40, WIDE, "w"), corpus(20, HIGH, "h")
    subset = SubsetConfig(name="x", landscape_share=0.6)
    first = chosen(subset, wide, high)
    assert tally(first) == {("w", "kept"): 30, ("w", "unselected:aspect_mix"): 10, ("h", "kept"): 20}
    later = chosen(subset, corpus(10, WIDE, "x"), corpus(4, HIGH, "y"), previous=first)
    assert tally(later) == {("x", "kept"): 6, ("x", "unselected:aspect_mix"): 4, ("y", "kept"): 4}
    again = chosen(subset, wide, high, corpus(10, WIDE, "x"), corpus(4, HIGH, "y"), previous=first)
    assert again.equals(later), "earlier clips are neither decided again nor given back"
    too_many = chosen(SubsetConfig(name="x"), wide)
    full = chosen(subset, corpus(5, WIDE, "x"), corpus(5, HIGH, "y"), previous=too_many)
    assert tally(full) == {("x", "unselected:aspect_mix"): 5, ("y", "kept"): 5}


def test_order_files_and_memory_make_no_difference(tmp_path: Path) -> None:
    rng = random.Random(3)
    corpora = [corpus(300, WIDE, "w"), corpus(100, HIGH, "h"), corpus(50, PHOTO, "p")]
    for row in corpora[0][1]:
        row["motion_mv"] = rng.choice([0.5, 2.0, None])
    subset = SubsetConfig(name="x", clip_rules=("motion_mv > 1",), landscape_share=0.6, validation_share=0.2)
    whole = chosen(subset, *corpora, seed=5)
    videos = [r for s, _, _ in corpora for r in s]
    spans = [r for _, c, _ in corpora for r in c]
    fits = fit_table({k: v for _, _, f in corpora for k, v in f.items()})
    rng.shuffle(videos)
    rng.shuffle(spans)
    for n in range(4):
        pq.write_table(clips(*spans[n::4]), tmp_path / f"{n}.parquet")
    from_files = select(sources(*videos), ds.dataset(tmp_path), subset, 5, NONE_BEFORE, fits)
    assert from_files.equals(whole)


def test_a_selection_once_made_is_made_again() -> None:
    """The draws are a promise to runs that were selected before: these bytes must not change."""
    subset = SubsetConfig(name="x", landscape_share=0.6, validation_share=0.3)
    found = chosen(subset, corpus(50, WIDE, "w"), corpus(20, HIGH, "h"), seed=11)
    lines = "\n".join(f"{r['clip_id']} {r['reason']} {r['split']}" for r in found.to_pylist())
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == "9823d3716874c2c5"


def test_the_split_is_by_source_and_a_copy_follows_its_original() -> None:
    videos, spans, fits = corpus(2000, WIDE, "s")
    twice = [{**row, "clip_id": f"{row['clip_id']}b"} for row in spans]
    both = {**fits, **{row["clip_id"]: (WIDE, "fits", None) for row in twice}}
    found = chosen(SubsetConfig(name="x", validation_share=0.1), (videos, [*spans, *twice], both), seed=7)
    split = {r["clip_id"]: r["split"] for r in found.to_pylist()}
    assert all(split[f"s{n:04d}"] == split[f"s{n:04d}b"] for n in range(2000))
    share = sum(v == "validation" for v in split.values()) / len(split)
    assert 0.07 < share < 0.13
    for n in range(50):
        expected = "validation" if draw(7, "split", f"s{n:04d}") < threshold(0.1) else "train"
        assert split[f"s{n:04d}"] == expected


def test_more_validation_takes_none_of_it_back() -> None:
    whole = corpus(300, WIDE, "s")
    seen: set[str] = set()
    for share in (0.0, 0.05, 0.2, 0.9):
        found = chosen(SubsetConfig(name="x", validation_share=share), whole).to_pylist()
        held = {r["clip_id"] for r in found if r["split"] == "validation"}
        assert seen <= held and (share > 0 or not held)
        seen = held


def duplicates(**groups: str) -> pa.Table:
    """`kept="b c"`: b and c are duplicates of `kept`."""
    rows = [(clip, kept) for kept, clips in groups.items() for clip in clips.split()]
    return pa.table({"clip_id": [a for a, _ in rows], "duplicate_of": [b for _, b in rows]})


def test_of_near_duplicates_the_best_that_the_rules_leave_is_kept() -> None:
    videos, spans, fits = corpus(6, WIDE, "d")
    for row, width, sharpness in zip(spans, (640, 1280, 1280, 1920, 640, 640), (0.9, 0.2, 0.3, 0.1, 0.5, 0.5), strict=True):
        row |= {"width": width, "height": 360, "quality_sharpness": sharpness}
    spans[3]["motion_mv"] = 0.1  # the best of all fails a rule
    same = duplicates(d0003="d0000 d0001 d0002", d0004="d0005")
    found = chosen(SubsetConfig(name="x", clip_rules=("motion_mv > 1",)), (videos, spans, fits), same=same)
    assert reasons(found) == {
        "d0000": "duplicate:d0002",
        "d0001": "duplicate:d0002",
        "d0002": "kept",
        "d0003": "rule:motion_mv > 1",
        "d0004": "kept",
        "d0005": "duplicate:d0004",
    }


def test_a_duplicate_of_what_was_kept_before_is_one_however_good() -> None:
    subset = SubsetConfig(name="x")
    first = chosen(subset, corpus(3, WIDE, "a"))
    videos, spans, fits = corpus(3, WIDE, "b")
    for row in spans:
        row |= {"width": 3840, "height": 2160, "quality_sharpness": 1.0}
    found = chosen(subset, (videos, spans, fits), previous=first, same=duplicates(a0001="b0000 b0002"))
    assert reasons(found) == {"b0000": "duplicate:a0001", "b0001": "kept", "b0002": "duplicate:a0001"}


def test_films_with_near_duplicates_are_on_one_side_of_the_split() -> None:
    videos, spans, fits = corpus(400, WIDE, "s")
    more = [{**row, "clip_id": f"{row['clip_id']}b"} for row in spans]
    both = {**fits, **{row["clip_id"]: (WIDE, "fits", None) for row in more}}
    same = duplicates(
        **{f"s{n:04d}": f"s{n + 1:04d}" for n in range(0, 400, 4)},
        **{f"s{n + 1:04d}b": f"s{n + 2:04d}b" for n in range(0, 400, 4)},
    )
    found = chosen(SubsetConfig(name="x", validation_share=0.3), (videos, [*spans, *more], both), seed=3, same=same)
    split = {r["clip_id"]: r["split"] for r in found.to_pylist() if r["kept"]}
    for n in range(0, 400, 4):
        sides = {split[c] for k in range(3) for c in (f"s{n + k:04d}", f"s{n + k:04d}b") if c in split}
        assert len(sides) == 1
    assert 0.15 < sum(v == "validation" for v in split.values()) / len(split) < 0.45


HALF = ResampleConfig(share=0.5)


def in_concepts(*sizes: int, start: int = 0, people: int = 0) -> tuple[Corpus, pa.Table]:
    """Clips `c0000` and on, whose concepts have these sizes; of each concept one in `people` shows people."""
    clusters = [cluster for cluster, size in enumerate(sizes) for _ in range(size)]
    videos, spans, fits = corpus(start + len(clusters), WIDE, "c")
    for n, row in enumerate(spans):
        row["face_count_max"] = float(bool(people) and n % people == 0)
    ids = [row["clip_id"] for row in spans[start:]]
    new: Corpus = (videos[start:], spans[start:], {i: fits[i] for i in ids})
    rows = [{"clip_id": i, "cluster": c, "people_similarity": 0.3 if c else 0.2} for i, c in zip(ids, clusters, strict=True)]
    return new, pa.Table.from_pylist(rows, schema=CONCEPTS)


def kept_of(found: pa.Table) -> Counter[int]:
    return Counter(row["cluster"] for row in found.to_pylist() if row["kept"])


def test_concepts_are_kept_by_the_square_root_of_their_sizes() -> None:
    sizes = (900, 400, 100, 25, 4)
    whole, concepts = in_concepts(*sizes)
    found = chosen(SubsetConfig(name="x", resample=ResampleConfig(count=280)), whole, concepts=concepts)
    kept = kept_of(found)
    assert sum(kept.values()) == 280
    assert all(abs(kept[c] - e) < 1 for c, e in enumerate(expected([(n, n) for n in sizes], 280)))
    weights = {row["cluster"]: row["weight"] for row in found.to_pylist()}
    assert weights == pytest.approx({c: n**-0.5 for c, n in enumerate(sizes)})
    assert Counter(reasons(found).values()) == {"kept": 280, "resampled_out": sum(sizes) - 280}


def test_no_resampling_keeps_all_and_says_the_weights() -> None:
    whole, concepts = in_concepts(16, 4)
    found = chosen(SubsetConfig(name="x"), whole, concepts=concepts.slice(0, 18))
    assert Counter((r["cluster"], r["weight"]) for r in found.to_pylist()) == {
        (0, 0.25): 16,
        (1, 1 / 2**0.5): 2,
        (None, 1.0): 2,
    }
    assert set(reasons(found).values()) == {"kept"}


def test_what_has_no_concept_is_one_of_its_own() -> None:
    whole, concepts = in_concepts(100, 10)
    found = chosen(SubsetConfig(name="x", resample=HALF), whole, concepts=concepts.slice(0, 100))
    assert kept_of(found) == {0: 45, None: 10}


def test_other_seeds_keep_other_clips_and_other_orders_the_same() -> None:
    whole, concepts = in_concepts(300, 40, 7, people=3)
    subset = SubsetConfig(name="x", resample=HALF, people=PeopleConfig(share=0.5))
    first = chosen(subset, whole, concepts=concepts, seed=1)
    turned = (whole[0][::-1], whole[1][::-1], whole[2])
    assert chosen(subset, turned, concepts=concepts.sort_by([("clip_id", "descending")]), seed=1).equals(first)
    assert not chosen(subset, whole, concepts=concepts, seed=2).equals(first)
    one_more = chosen(SubsetConfig(name="x", resample=ResampleConfig(share=0.6)), whole, concepts=concepts, seed=1)
    fewer = chosen(SubsetConfig(name="x", resample=HALF), whole, concepts=concepts, seed=1)
    held = [{i for i, r in reasons(t).items() if r == "kept"} for t in (fewer, one_more)]
    assert len(held[0] - held[1]) <= 3, "a larger target gives back no more than the rounding of three quotas"


def test_later_clips_find_the_earlier_ones_counted() -> None:
    subset = SubsetConfig(name="x", resample=ResampleConfig(count=60))
    one, concepts_one = in_concepts(90, 10)
    first = chosen(subset, one, concepts=concepts_one)
    two, concepts_two = in_concepts(90, 110, start=100)
    later = chosen(subset, two, previous=first, concepts=concepts_two)
    assert sum(kept_of(first).values()) == 60
    assert sum(kept_of(later).values()) == 0, "there is room for no more, whatever the concepts' shares are now"
    assert {r["weight"] for r in later.to_pylist()} == {1 / 180**0.5, 1 / 120**0.5}
    half = SubsetConfig(name="x", resample=HALF)
    runs = [chosen(half, one, concepts=concepts_one)]
    runs.append(chosen(half, two, previous=runs[0], concepts=concepts_two))
    assert [sum(kept_of(run).values()) for run in runs] == [50, 100]
    assert kept_of(runs[1])[1] > kept_of(runs[1])[0], "the first concept had most of its share"


def test_a_family_stays_on_its_side_over_three_runs() -> None:
    subset = SubsetConfig(name="x", validation_share=0.5)
    sides = []
    for seed in range(20):
        first = chosen(subset, corpus(1, WIDE, "b"), corpus(1, WIDE, "c"), seed=seed, same=duplicates(c0000="b0000"))
        second = chosen(subset, corpus(1, WIDE, "a"), seed=seed, previous=first, same=duplicates(c0000="b0000", b0000="a0000"))
        both = pa.concat_tables([first, second])
        more, rows, fits = corpus(1, WIDE, "d")
        more.append({"source_id": "d1"})
        rows.append({"clip_id": "d1", "source_id": "d0000"})  # another clip of the film that has a near-duplicate
        third = chosen(
            subset,
            (more, rows, {**fits, "d1": (WIDE, "fits", None)}),
            seed=seed,
            previous=both,
            same=duplicates(c0000="b0000 d0000", b0000="a0000"),
        )
        kept = [r["split"] for r in pa.concat_tables([both, third]).to_pylist() if r["kept"]]
        assert len(kept) == 2 and len(set(kept)) == 1
        sides += kept
    assert set(sides) == {"train", "validation"}


def test_people_are_no_smaller_a_share_than_they_were() -> None:
    whole, concepts = in_concepts(900, 100, people=5)
    for count in (100, 333, 900):
        found = chosen(
            SubsetConfig(name="x", resample=ResampleConfig(count=count), people=PeopleConfig(share=0.05)),
            whole,
            concepts=concepts,
        ).to_pylist()
        kept = [row for row in found if row["kept"]]
        assert len(kept) == count
        assert sum(row["people"] for row in kept) == -(-count * 200 // 1000)


def test_the_people_floor_is_met_or_those_without_go() -> None:
    whole, concepts = in_concepts(400, 100, people=5)
    subset = SubsetConfig(name="x", resample=HALF, people=PeopleConfig(share=0.4))
    enough = [row for row in chosen(subset, whole, concepts=concepts).to_pylist() if row["kept"]]
    assert len(enough) == 250 and sum(row["people"] for row in enough) == 100
    few = chosen(SubsetConfig(name="x", people=PeopleConfig(share=0.6)), whole, concepts=concepts)
    assert Counter(reasons(few).values()) == {"kept": 166, "unselected:people_floor": 334}
    assert sum(row["people"] for row in few.to_pylist() if row["kept"]) == 100
    nobody, _ = in_concepts(50)
    none = chosen(SubsetConfig(name="x", people=PeopleConfig(share=0.6)), nobody)
    assert set(reasons(none).values()) == {"unselected:people_floor"}


def test_people_may_be_told_by_what_sentences_say() -> None:
    whole, concepts = in_concepts(60, 20)
    subset = SubsetConfig(name="x", people=PeopleConfig(share=0.5, least_similarity=0.25))
    found = chosen(subset, whole, concepts=concepts.slice(0, 75)).to_pylist()
    assert {(r["cluster"], r["people"]) for r in found} == {(0, False), (1, True), (None, False)}
    assert Counter(r["people"] for r in found if r["kept"]) == {True: 15, False: 15}
    assert {r["reason"] for r in found if r["people"]} == {"kept"}


def test_an_empty_selection_can_be_resampled() -> None:
    subset = SubsetConfig(name="x", resample=HALF, people=PeopleConfig(share=0.6), clip_rules=("motion_mv > 99",))
    whole, concepts = in_concepts(5, 3)
    assert set(reasons(chosen(subset, whole, concepts=concepts)).values()) == {"rule:motion_mv > 99"}
    assert chosen(subset, ([], [], {}), concepts=concepts.slice(0, 0)).num_rows == 0
