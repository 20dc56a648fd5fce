"""The report page: its figures, that it escapes, that it needs no network, and its size."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from curation.rules import SubsetConfig
from curation.tables import FRAMES, SELECTION
from jobs import report
from jobs.funnel import Amount, steps
from jobs.inspect import connect
from tests.jobs.run_samples import NASTY, SUBSET, make_run, verdict, write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    make_run(place)
    return place


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return Path(report.write_report(str(run))).read_text()


@pytest.fixture(scope="module")
def gathered(run: Path) -> dict[str, Any]:
    with connect(str(run)) as connection:
        return report.gather(connection, str(run))


def plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_nothing_disappears(page: str) -> None:
    shown = plain(page)
    assert "sources: 7 in = 3 ok + 2 rejected + 2 error &ensp; ✓ adds up" in shown
    assert "clips, small: 6 = 2 kept + 3 dropped + 1 error &ensp; ✓ adds up" in shown
    assert "does not add up" not in shown


def test_what_was_not_done_is_said(page: str) -> None:
    assert "No captions" in page
    assert "No embeddings" in page
    assert "No near-duplicate search" in page
    assert "No clusters" in page


def test_names_are_escaped_and_nothing_is_fetched(page: str) -> None:
    assert NASTY not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.mp4" in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)
    assert "url(" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_the_funnel(gathered: dict[str, Any]) -> None:
    video, image = gathered["subsets"][0]["funnels"]
    found = [(r["step"].label, r["step"].dropped.count, r["step"].unknown.count, r["step"].left) for r in video["steps"]]
    assert found == [
        ("clips in error", 1, 0, Amount(4, 26.0)),
        ("duration_s >= 4", 0, 0, Amount(4, 26.0)),
        ("border_frac < 0.02", 1, 0, Amount(3, 22.0)),
        ("0.5 < motion_mv < 7", 1, 0, Amount(2, 18.0)),
        ("text_score < 0.6", 0, 1, Amount(1, 6.0)),
    ]
    assert video["steps"][2]["yield"] == 3 / 4
    assert video["steps"][2]["share"] == pytest.approx(22 / 48)  # of the 48 s of all sources
    assert [r["step"].left.count for r in image["steps"]] == [1]
    assert gathered["subsets"][0]["after"] == [
        ("error:scorer_failed", Amount(1, 8.0)),
        ("unmeasured:text_score", Amount(1, 12.0)),
    ]


def test_every_reason_has_its_step() -> None:
    subset = SubsetConfig.model_validate(SUBSET)
    reasons = [
        "unselected:aspect_mix",
        "duplicate",
        "unselected:new_one",
        "rule:gone < 1",
        "exact_copy",
        "unmeasured:what",
        "kept",
    ]
    found = steps(subset, "video", {reason: Amount(1, 1.0) for reason in reasons})
    assert found[-1].left == Amount(1, 1.0)
    known = ["exact copies of another source", "near-duplicates", "aspect mix"]
    assert [s.label for s in found if s.dropped.count] == [*known, "rule:gone < 1", "unmeasured:what", "unselected:new_one"]


def test_rejected_sources_by_reason(gathered: dict[str, Any]) -> None:
    assert [(w["label"], w["amount"].count) for w in gathered["sources"]["why"]] == [
        ("exact copies of another source", 1),
        ("duration_s >= 4", 1),
    ]
    assert gathered["sources"]["measured"].count == 3


def test_histograms(gathered: dict[str, Any]) -> None:
    scores = {h["name"]: h for h in gathered["scores"]}
    assert set(scores) == {"duration_s", "border_frac", "motion_mv", "text_score"}
    motion = scores["motion_mv"]
    assert (motion["n"], motion["missing"], motion["images"]) == (4, 0, 1)
    assert sum(b["n"] for b in motion["bars"]) == 4
    assert [(d["line"].sign, d["line"].value) for d in motion["lines"]] == [(">", 0.5), ("<", 7.0)]
    assert scores["text_score"]["missing"] == 1
    assert scores["duration_s"]["n"] == 4, "an image has no duration, a clip in error no place in a histogram"
    assert "aesthetic" in gathered["unmeasured"]


@pytest.mark.parametrize(
    ("rule", "column", "lines"),
    [
        ("motion_mv > 0.5", "motion_mv", [(0.5, ">")]),
        ("4 <= duration_s <= 16", "duration_s", [(4.0, "≥"), (16.0, "≤")]),
        ("border_frac = 0", "border_frac", [(0.0, "=")]),
        ("motion_mv < 1e-2 or motion_mv > 3", "motion_mv", [(0.01, "<"), (3.0, ">")]),
        ("min(width, height) >= 256", "height", []),
        ("2 * motion_mv > 3", "motion_mv", []),
        ("motion_mv > 3 * motion_vmaf", "motion_mv", []),
        ("motion_mv < motion_vmaf", "motion_mv", []),
    ],
)
def test_thresholds(rule: str, column: str, lines: list[tuple[float, str]]) -> None:
    subset = SubsetConfig(name="a", clip_rules=(rule,))
    assert [(t.value, t.sign) for t in report.thresholds([subset], column)] == lines


def test_errors_have_meanings_and_examples(gathered: dict[str, Any]) -> None:
    found = {(e["what"], e["code"]): (e["n"], [x["path"] for x in e["examples"]]) for e in gathered["errors"]}
    assert found == {
        ("source", "empty"): (1, ["empty.mp4"]),
        ("source", "timeout"): (1, ["hung.mp4"]),
        ("clip", "scorer_failed"): (1, ["b/two.mp4"]),
    }
    assert all(e["meaning"] for e in gathered["errors"])


def test_example_frames(gathered: dict[str, Any]) -> None:
    groups = {g["label"]: g for g in gathered["pictures"]["subsets"]["small"]}
    assert [p["path"] for p in groups["border_frac < 0.02"]["pictures"]] == [NASTY]
    assert groups["border_frac < 0.02"]["pictures"][0]["uri"].startswith("data:image/jpeg;base64,")
    assert [p["path"] for p in groups["kept"]["pictures"]] == ["still.png"], "the other's middle frame is damaged"


def test_the_page_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_run(tmp_path)
    monkeypatch.setattr(report, "PICTURE_BYTES", 2000)
    with connect(str(tmp_path)) as connection:
        connection.execute(report.DECIDED)
        pictures = report.example_frames(connection, str(tmp_path))
    shown = [p for groups in pictures["subsets"].values() for g in groups for p in g["pictures"]]
    assert sum(len(p["uri"]) for p in shown) <= 2000
    assert len(shown) + pictures["left_out"] == len(made["clips"]) - 1


def test_buckets_and_cost(gathered: dict[str, Any]) -> None:
    image, video = gathered["subsets"][0]["buckets"]
    assert (video["planned"], video["samples"], video["shards"], video["bytes"], video["seconds"]) == (1, 1, 1, 2048, 4.0)
    assert (image["planned"], image["samples"], image["shards"], image["shards_planned"]) == (1, 0, 0, 1)
    assert gathered["costs"][0]["stage"] == "measure"
    assert gathered["costs"][0]["cpu_s_per_hour"] == pytest.approx(3.0 / (48 / 3600))


def test_units_to_come_are_said(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "sources" / "unit-000000.parquet").unlink()
    (tmp_path / "selection" / "small" / "unit-000000--unit-000000.parquet").unlink()
    shown = plain(Path(report.write_report(str(tmp_path))).read_text())
    assert "7 of 7 listed sources are not analyzed yet" in shown
    assert "6 of 6 measured clips are not decided yet" in shown


def test_a_run_with_nothing_in_it(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    make_run(tmp_path / "whole")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "run.json").write_bytes((tmp_path / "whole" / "run.json").read_bytes())
    write(bare / "frames" / "unit-000000.parquet", [], FRAMES)
    assert "sources: 0 in" in plain(Path(report.write_report(str(bare))).read_text())


def test_a_selection_whose_list_is_gone_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "selection" / "small").rename(tmp_path / "selection" / "older")
    shown = plain(Path(report.write_report(str(tmp_path))).read_text())
    assert "clips, older: 6 = 2 kept + 3 dropped + 1 error &ensp; ✓ adds up" in shown
    assert "a list that run.json does not name any more" in shown
    assert "rule:border_frac &lt; 0.02 1 " in shown


def test_a_reason_of_videos_and_images_is_counted_whole(tmp_path: Path) -> None:
    made = make_run(tmp_path)
    chosen = [verdict(c, "unselected:too_small") for c in made["clips"]]
    write(tmp_path / "selection" / "small" / "unit-000000--unit-000000.parquet", chosen, SELECTION)
    with connect(str(tmp_path)) as connection:
        found = report.gather(connection, str(tmp_path))["subsets"][0]
    assert [(r, a.count) for r, a in found["after"]] == [("unselected:too_small", 6)]
    assert found["kept"] == 0 and found["adds_up"]


def test_kept_hours_stand_beside_kept_clips(page: str) -> None:
    assert "2 clips kept, 0.10 min: small" in plain(page)


def test_labels_of_thresholds_do_not_lie_on_each_other() -> None:
    subset = SubsetConfig(
        name="a", clip_rules=("0.2 < motion_mv < 20", "motion_mv > 0.25", "motion_mv > 0.5", "motion_mv < 99")
    )
    drawn = report._drawn(report.thresholds([subset], "motion_mv"), 0.0, 31.0)
    assert [(d["label"], d["row"]) for d in drawn] == [("> 0.2", 0), ("> 0.25", 1), ("> 0.5", None), ("< 20", 0), ("< 99 →", 0)]
    for row in (0, 1):
        spans = [(d["left"], d["left"] + report.CHARACTER_PX * len(d["label"])) for d in drawn if d["row"] == row]
        assert all(0 <= a[0] < a[1] < b[0] < b[1] <= report.CHART_PX for a, b in itertools.pairwise(spans))
