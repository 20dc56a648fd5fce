"""A list with some of its rules changed, and the numbers of a rule."""

import pytest

from curation.errors import ConfigError
from curation.rules import SubsetConfig, clip_rule
from jobs.suppose import bounds, changed, parsed, replaced

BASE = SubsetConfig(
    name="base",
    source_rules=("duration_s >= 4", "hdr = false"),
    clip_rules=("border_frac < 0.02", "motion_mv > 0.5", "motion_mv < 7"),
    image_rules=("border_frac < 0.02",),
)


def test_a_rule_takes_the_place_of_those_over_its_columns() -> None:
    new = changed(BASE, ["1 < motion_mv < 9", "border_frac < 0.1"], "new")
    assert new.clip_rules == ("border_frac < 0.1", "1 < motion_mv < 9") and new.image_rules == ("border_frac < 0.1",)
    assert (new.name, new.about, new.source_rules) == (
        "new",
        "base with 1 < motion_mv < 9; border_frac < 0.1",
        BASE.source_rules,
    )


def test_a_bound_from_one_side_leaves_the_other() -> None:
    for text in ("motion_mv > 1.5", "1.5 <= motion_mv"):
        new = changed(BASE, [text], "new")
        assert new.clip_rules == ("border_frac < 0.02", text, "motion_mv < 7") and replaced(BASE, new) == ["motion_mv > 0.5"]
    for text in ("motion_mv < 9", "9 > motion_mv"):
        assert changed(BASE, [text], "new").clip_rules == ("border_frac < 0.02", "motion_mv > 0.5", text)
    for text in ("motion_mv = 3", "motion_mv is not null", "motion_mv < 1 or motion_mv > 5"):
        new = changed(BASE, [text], "new")
        assert new.clip_rules == ("border_frac < 0.02", text) and replaced(BASE, new) == ["motion_mv > 0.5", "motion_mv < 7"]


def test_a_rule_over_other_columns_is_added_where_it_can_be() -> None:
    new = changed(BASE, ["aesthetic > 4", "video_codec = 'h264'", "duration_s >= 6"], "new")
    assert new.clip_rules[-1] == "aesthetic > 4" and new.source_rules == (
        "duration_s >= 6",
        "hdr = false",
        "video_codec = 'h264'",
    )


def test_what_will_not_do_is_said() -> None:
    with pytest.raises(ConfigError, match="unknown column motion_mw; did you mean motion_mv"):
        parsed("motion_mw > 1")
    with pytest.raises(ConfigError, match=r"over sources: .* unknown column video_codex; did you mean video_codec"):
        parsed("video_codex = 'h264'")
    with pytest.raises(ConfigError, match="'Not a name'"):
        changed(BASE, [], "Not a name")


def test_the_numbers_of_a_rule() -> None:
    both = list(bounds(clip_rule("-0.5 < motion_mv <= 7")))
    assert [(b.value, b.measured_sql, b.label) for b in both] == [
        (-0.5, "motion_mv", "threshold < ..."),
        (7.0, "motion_mv", "... <= threshold"),
    ]
    assert (
        both[0].rule_sql(-2.5) == clip_rule("-2.5 < motion_mv <= 7").sql
        and both[1].rule_sql(3.0) == clip_rule("-0.5 < motion_mv <= 3").sql
    )
    (ratio,) = bounds(clip_rule("motion_vmaf / frames > 0.1"))
    assert ratio.measured_sql == "(motion_vmaf / nullif(CAST(frames AS DOUBLE), 0.0E0))"
    assert not list(bounds(clip_rule("motion_mv < 3 or camera = 'pan'"))) and not list(bounds(clip_rule("width > height")))
