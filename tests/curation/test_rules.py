import math
import random

import duckdb
import pyarrow as pa
import pytest
from pydantic import ValidationError

from curation.errors import ConfigError
from curation.rules import (
    SubsetConfig,
    check,
    clip_rule,
    parse,
    reason_sql,
    source_rule,
    source_stopped,
    stopped,
)
from curation.tables import CLIPS

COLUMNS = ("a", "b", "c", "name", "flag")


def ask(text: str, **row: object) -> object:
    """A rule's value on one row, by DuckDB."""
    table = pa.Table.from_pylist([{"a": None, "b": None, "c": None, "name": None, "flag": None, **row}])
    with duckdb.connect() as connection:
        connection.register("given", table)
        found = connection.execute(f"SELECT {parse(text, COLUMNS).sql} FROM given").fetchall()
    return found[0][0]


@pytest.mark.parametrize(
    "text,sql",
    [
        ("motion_vmaf > 2.0", "(motion_vmaf > 2.0)"),
        ("0.5 < motion_mv < 7", "(0.5 < motion_mv AND motion_mv < 7)"),
        ("min(width, height) >= 768", "(least(width, height) >= 768)"),
        ("width == 5 or not height != 2", "((width = 5) OR (NOT (height <> 2)))"),
        ("width / height < 2", "((width / nullif(height, 0)) < 2)"),
        ("camera in ('pan_left', 'it''s')", "(camera IN ('pan_left', 'it''s'))"),
        ("aesthetic is not null", "(aesthetic IS NOT NULL)"),
    ],
)
def test_one_canonical_sql(text: str, sql: str) -> None:
    assert clip_rule(text).sql == sql


@pytest.mark.parametrize(
    "text,row,value",
    [
        ("1 < a <= b < 9", {"a": 2, "b": 5}, True),
        ("1 < a <= b < 9", {"a": 6, "b": 5}, False),
        ("a + b * c = 7", {"a": 1, "b": 2, "c": 3}, True),
        ("(a + b) * c = 9", {"a": 1, "b": 2, "c": 3}, True),
        ("-a < -1", {"a": 2}, True),
        ("a - b - c = 0", {"a": 6, "b": 3, "c": 3}, True),
        ("a > 1 or b > 1 and c > 1", {"a": 2, "b": 0, "c": 0}, True),
        ("not a > 1 and b > 1", {"a": 0, "b": 2}, True),
        ("max(a, b, c) = 3 and abs(a - c) = 2", {"a": 1, "b": 2, "c": 3}, True),
        ("name not in ('x', 'y')", {"name": "z"}, True),
        ("flag = true", {"flag": True}, True),
        ("a / b > 1", {"a": 1.0, "b": 0.0}, None),
    ],
)
def test_what_a_rule_means(text: str, row: dict[str, object], value: object) -> None:
    assert ask(text, **row) == value


def test_random_arithmetic_agrees_with_python() -> None:
    rng = random.Random(1)

    def expression(depth: int) -> str:
        if depth == 0:
            return rng.choice(["a", "b", "c", str(rng.randint(0, 9)), "1.5"])
        kind = rng.choice(["+", "-", "*", "min", "max", "abs", "(-"])
        left, right = expression(depth - 1), expression(depth - 1)
        return {"min": f"min({left}, {right})", "max": f"max({left}, {right})", "abs": f"abs({left})", "(-": f"(-{left})"}.get(
            kind, f"({left} {kind} {right})"
        )

    for _ in range(60):
        text = expression(3)
        row = {"a": 2.0, "b": -3.0, "c": 0.25}
        wanted = eval(text, {"min": min, "max": max, "abs": abs}, dict(row))
        found = ask(f"({text}) > {wanted - 1e-6:.9f} and ({text}) < {wanted + 1e-6:.9f}".replace("> -", "> 0-").replace("< -", "< 0-"), **row)
        assert found is True and math.isfinite(wanted), text


@pytest.mark.parametrize(
    "text,message",
    [
        ("motion_vmf > 2", "unknown column motion_vmf; did you mean motion_vmaf"),
        ("motion_vmaf >", "expected a value, found 'the end'"),
        ("motion_vmaf > 2 3", "did not expect '3'"),
        ("width > 1; DROP TABLE clips", "cannot read ';'"),
        ("path = 'x\\'", "a backslash is not allowed"),
        ("path = 'open", "cannot read"),
        ('"width" > 1', "cannot read"),
        ("width > (select 1)", "unknown column select"),
        ("min(width) > 1", "abs takes one value"),
        ("", "expected a value"),
    ],
)
def test_a_wrong_rule_is_refused_where_it_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)rule .*\n.*\^") as caught:
        clip_rule(text)
    assert message in str(caught.value)


def test_the_first_rule_that_fails_is_the_reason() -> None:
    rules = [clip_rule(t) for t in ("motion_vmaf > 2", "text_score < 0.6 or aesthetic is null", "height > 9")]
    rows = [
        {"motion_vmaf": 3.0, "text_score": 0.1, "height": 10},
        {"motion_vmaf": 1.0, "text_score": 0.9, "height": 1},
        {"motion_vmaf": None, "text_score": 0.9, "height": 1},
        {"motion_vmaf": 3.0, "text_score": None, "height": 1},
        {"motion_vmaf": 3.0, "text_score": 0.1, "height": 1},
    ]
    table = pa.Table.from_pylist([dict.fromkeys(CLIPS.names) | r for r in rows], schema=CLIPS)
    with duckdb.connect() as connection:
        connection.register("clips", table)
        reason = reason_sql(rules, "'kept'")
        query = f"SELECT {reason} FROM clips"
        found = [r[0] for r in connection.execute(query).fetchall()]
    assert found == ["kept", "rule:motion_vmaf > 2", "unmeasured:motion_vmaf", "unmeasured:text_score", "rule:height > 9"]


def test_a_subset_refuses_wrong_rules_and_unknown_keys() -> None:
    with pytest.raises(ValidationError, match="unknown column codec"):
        SubsetConfig(name="x", source_rules=("codec = 'h264'",))
    with pytest.raises(ValidationError, match="unknown column interlaced"):
        SubsetConfig(name="x", clip_rules=("interlaced = false",))
    with pytest.raises(ValidationError):
        SubsetConfig.model_validate({"name": "x", "clip_rulez": []})
    with pytest.raises(ValidationError):
        SubsetConfig(name="../x")


def test_a_rule_on_a_scorer_that_is_off_is_refused_with_what_to_set() -> None:
    subset = SubsetConfig(name="x", clip_rules=("aesthetic >= 4",))
    with pytest.raises(ConfigError, match=r"aesthetic >= 4.*aesthetic\.head"):
        check(subset, {"aesthetic": "aesthetic.head"})
    check(subset, {})


def test_sources_that_no_subset_can_use_are_stopped_before_decoding() -> None:
    short = SubsetConfig(name="short", source_rules=("duration_s <= 10",))
    long = SubsetConfig(name="long", source_rules=("duration_s >= 20",))
    assert source_stopped({"kind": "video", "duration_s": 15.0}, [short, long]) == "rule:duration_s <= 10"
    assert source_stopped({"kind": "video", "duration_s": 5.0}, [short, long]) is None
    assert source_stopped({"kind": "video", "duration_s": None}, [short]) == "unmeasured:duration_s"
    assert source_stopped({"kind": "image", "duration_s": 0.0}, [long]) is None


def test_dear_scorers_skip_what_every_subsets_cheap_rules_stop() -> None:
    calm = SubsetConfig(name="calm", clip_rules=("motion_mv < 1", "text_score < 0.6"))
    wild = SubsetConfig(name="wild", clip_rules=("motion_mv > 5",))
    rows = [{"clip_id": str(v), "kind": "video", "motion_mv": v} for v in (0.5, 3.0, 9.0)]
    table = pa.Table.from_pylist([dict.fromkeys(CLIPS.names) | r for r in rows], schema=CLIPS)
    assert stopped(table, [calm, wild]) == {"3.0"}
    assert stopped(table, [calm]) == {"3.0", "9.0"}


def test_every_shipped_list_is_sound() -> None:
    from jobs.config import rule_list, shipped_lists

    assert shipped_lists() == ["everyday", "finetune", "high_res", "high_res_plus", "low_res"]
    for name in shipped_lists():
        subset = rule_list(name)
        assert subset.name == name
        assert {"interlaced = false", "hdr = false"} <= set(subset.source_rules)
        dear = [bool(set(clip_rule(t).columns) & {"text_score", "aesthetic"}) for t in subset.clip_rules]
        assert dear == sorted(dear), f"{name}: cheap rules come first"
    assert source_rule("4 <= duration_s <= 120").text in rule_list("high_res_plus").source_rules
