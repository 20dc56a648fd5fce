import math
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pydantic import ValidationError

from curation.errors import ConfigError
from curation.grammar import Rule
from curation.rule_tree import literal
from curation.rules import (
    DEAR,
    SubsetConfig,
    check,
    clip_rule,
    pass_sql,
    reason_sql,
    source_rule,
    source_stopped,
    stopped,
)
from curation.tables import CLIPS


def clips(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(CLIPS.names) | {"kind": "video"} | r for r in rows], schema=CLIPS)


def reasons_of(rules: list[Rule], *rows: dict[str, Any]) -> list[str]:
    with duckdb.connect() as connection:
        connection.register("clips", clips(*rows))
        found = connection.execute(f"SELECT {reason_sql(rules, literal('kept'))}, {pass_sql(rules)} FROM clips").fetchall()
    assert all((reason == "kept") == passed for reason, passed in found)
    return [reason for reason, _ in found]


def test_the_first_rule_that_fails_is_the_reason() -> None:
    rules = [clip_rule(t) for t in ("motion_vmaf > 2", "text_score < 0.6 or camera is null", "height > 9")]
    found = reasons_of(
        rules,
        {"motion_vmaf": 3.0, "text_score": 0.1, "height": 10},
        {"motion_vmaf": 1.0, "text_score": 0.9, "height": 1},
        {"motion_vmaf": None, "text_score": 0.9, "height": 1},
        {"motion_vmaf": 3.0, "text_score": None, "height": 1},
        {"motion_vmaf": 3.0, "text_score": 0.1, "height": 1},
    )
    assert found == ["kept", "rule:motion_vmaf > 2", "unmeasured:motion_vmaf", "unmeasured:text_score", "rule:height > 9"]
    assert reasons_of([], {"height": 1}) == ["kept"]


def test_a_rule_that_asks_for_null_decides_about_null_itself() -> None:
    lenient = clip_rule("aesthetic is null or aesthetic >= 4")
    assert lenient.columns == () and lenient.mentioned == ("aesthetic",)
    found = reasons_of([lenient], {"aesthetic": None}, {"aesthetic": 5.0}, {"aesthetic": 3.0})
    assert found == ["kept", "kept", f"rule:{lenient.text}"]
    wary = clip_rule("min(aesthetic, 9) >= 4 or aesthetic is null and height > 5")
    assert reasons_of([wary], {"aesthetic": None, "height": 9}, {"height": 1}) == ["kept", f"rule:{wary.text}"]


def test_a_subset_refuses_wrong_rules_and_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="unknown column codec"):
        SubsetConfig(name="x", source_rules=("codec = 'h264'",))
    with pytest.raises(ValidationError, match="unknown column interlaced"):
        SubsetConfig(name="x", clip_rules=("interlaced = false",))
    with pytest.raises(ValidationError, match="image_rules"):
        SubsetConfig(name="x", image_rules=("height",))
    with pytest.raises(ValidationError, match="clip_rulez"):
        SubsetConfig.model_validate({"name": "x", "clip_rulez": []})
    for share in (0, 1, 0.001, -1, math.nan):
        with pytest.raises(ValidationError, match="landscape_share"):
            SubsetConfig(name="x", landscape_share=share)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "A", "x" * 65, "x\n", "x'", "x y", "-x", "é"])
def test_a_name_is_a_plain_folder_name(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        SubsetConfig(name=name)


def test_a_rule_on_a_scorer_that_is_off_is_refused_with_what_to_set() -> None:
    off = {"aesthetic": "set aesthetic.head"}
    for lists in ({"clip_rules": ("aesthetic >= 4",)}, {"image_rules": ("height > 1 and aesthetic >= 4",)}):
        with pytest.raises(ConfigError, match=r"subset 'x'.*aesthetic >= 4.*set aesthetic\.head"):
            check(SubsetConfig(name="x", **lists), off)
        check(SubsetConfig(name="x", **lists), {})
    check(SubsetConfig(name="x", clip_rules=("aesthetic is null or aesthetic >= 4",)), off)


def test_every_shipped_list_is_sound() -> None:
    from jobs.config import rule_list, shipped_lists

    assert shipped_lists() == ["everyday", "finetune", "high_res", "high_res_plus", "low_res"]
    for name in shipped_lists():
        subset = rule_list(name)
        assert subset.name == name and subset.about
        assert {"interlaced = false", "hdr = false"} <= set(subset.source_rules)
        for rules in (subset.clip_rules, subset.image_rules):
            dear = [bool(set(clip_rule(t).mentioned) & DEAR) for t in rules]
            assert dear == sorted(dear), f"{name}: cheap rules come first"
    papers = rule_list("high_res_plus")
    assert {"4 <= duration_s <= 120", "min(width, height) >= 768"} <= set(papers.source_rules)
    published = {
        "motion_vmaf > 2.0",
        "0.5 < motion_mv < 7",
        "jitter_shots_per_s < 0.85",
        "text_score < 0.6",
        "aesthetic >= 4.0",
    }
    assert published <= set(papers.clip_rules) and papers.landscape_share == 0.8
    check(rule_list("everyday"), {"aesthetic": "needs weights"})
    for name in ("low_res", "high_res", "high_res_plus", "finetune"):
        with pytest.raises(ConfigError, match="needs weights"):
            check(rule_list(name), {"aesthetic": "needs weights"})


def test_sources_that_no_subset_can_use_are_stopped_before_decoding() -> None:
    short = SubsetConfig(name="short", source_rules=("duration_s <= 10",))
    long = SubsetConfig(name="long", source_rules=("duration_s >= 20",))
    assert source_stopped({"kind": "video", "duration_s": 15.0}, [short, long]) == "rule:duration_s <= 10"
    assert source_stopped({"kind": "video", "duration_s": 5.0}, [short, long]) is None
    assert source_stopped({"kind": "video", "duration_s": None}, [short]) == "unmeasured:duration_s"
    assert source_stopped({"kind": "image", "duration_s": 0.0}, [long]) is None
    assert source_stopped({"kind": "video", "duration_s": 5.0}, [long, SubsetConfig(name="any")]) is None


def test_what_only_a_decode_can_tell_stops_no_source_before_it() -> None:
    late = SubsetConfig(name="late", source_rules=("duration_s > 1", "decode_errors = 0", "width > 9000"))
    assert source_stopped({"kind": "video", "duration_s": 5.0, "width": 10}, [late]) is None
    assert source_stopped({"kind": "video", "duration_s": 0.5, "width": 10}, [late]) == "rule:duration_s > 1"


def test_dear_scorers_skip_what_every_subsets_cheap_rules_stop() -> None:
    calm = SubsetConfig(name="calm", clip_rules=("motion_mv < 1", "text_score < 0.6"))
    wild = SubsetConfig(name="wild", clip_rules=("motion_mv > 5",))
    table = clips(*({"clip_id": str(v), "motion_mv": v} for v in (0.5, 3.0, 9.0)), {"clip_id": "null"})
    assert stopped(table, [calm, wild]) == {"3.0", "null"}
    assert stopped(table, [calm]) == {"3.0", "9.0", "null"}
    assert stopped(table.slice(0, 0), [calm]) == set()
    assert stopped(table, [calm, SubsetConfig(name="all")]) == set()


def test_the_gate_leaves_a_clips_reason_as_it_would_be() -> None:
    odd = SubsetConfig(name="odd", clip_rules=("text_score < 0.6", "motion_mv < 1"))
    asked = SubsetConfig(name="asked", clip_rules=("text_score is not null", "motion_mv < 1"))
    table = clips({"clip_id": "x", "motion_mv": 3.0})
    assert stopped(table, [odd]) == set(), "text is asked first: it has to be measured"
    assert stopped(table, [asked]) == set(), "that text is not measured yet is no reason to leave it so"


def test_the_gate_knows_which_subsets_the_source_is_lost_to() -> None:
    calm = SubsetConfig(name="calm", source_rules=("duration_s > 100",), clip_rules=("motion_mv < 1",))
    wild = SubsetConfig(name="wild", clip_rules=("motion_mv > 5",))
    table = clips({"clip_id": "slow", "motion_mv": 0.5}, {"clip_id": "fast", "motion_mv": 9.0})
    source = {"kind": "video", "duration_s": 10.0}
    assert stopped(table, [calm, wild], source) == {"slow"}
    assert stopped(table, [calm], source) == {"slow", "fast"}
    assert stopped(table, [calm, wild], {"kind": "video", "duration_s": 200.0}) == set()


def test_images_have_gates_of_their_own() -> None:
    subset = SubsetConfig(
        name="x", source_rules=("duration_s > 4",), clip_rules=("motion_mv > 1",), image_rules=("height > 9",)
    )
    table = clips({"clip_id": "big", "kind": "image", "height": 10}, {"clip_id": "small", "kind": "image", "height": 9})
    assert stopped(table, [subset]) == stopped(table, [subset], {"kind": "image"}) == {"small"}


def test_shipped_source_rules_are_asked_before_the_decode() -> None:
    from jobs.config import rule_list, shipped_lists

    good = {"kind": "video", "duration_s": 20.0, "width": 1920, "height": 1080, "interlaced": False, "hdr": False}
    for name in shipped_lists():
        subset = rule_list(name)
        assert source_stopped(good, [subset]) is None
        assert source_stopped(good | {"interlaced": True}, [subset]) == "rule:interlaced = false"
        assert source_stopped(good | {"hdr": True}, [subset]) == "rule:hdr = false"
        assert source_rule("hdr = false").columns == ("hdr",)
