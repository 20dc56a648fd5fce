"""Two runs compared, whose differences are known."""

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curation.errors import ConfigError
from jobs import diff
from jobs.cli import app
from tests.jobs import analyst_run
from tests.jobs.run_samples import make_run, row_of, shown


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """A run, and one with another rule, all motion doubled, a clip less, and its kept clip dropped."""
    first, second = tmp_path / "first", tmp_path / "second"
    for run in (first, second):
        make_run(run)
    page = json.loads((second / "run.json").read_text())
    page["versions"]["av"] = "1.0"
    page["config"]["subsets"][0]["clip_rules"][0] = "border_frac < 0.01"
    (second / "run.json").write_text(json.dumps(page))
    clips = pq.read_table(second / "clips" / "unit-000000.parquet").slice(0, 5)
    place = clips.schema.get_field_index("motion_mv")
    clips = clips.set_column(place, "motion_mv", pc.multiply(clips["motion_mv"], 2.0))
    place = clips.schema.get_field_index("camera")
    clips = clips.set_column(place, "camera", pa.array(["arc", "arc", None, None, None], clips.schema.field(place).type))
    pq.write_table(clips, second / "clips" / "unit-000000.parquet")
    file = next((second / "selection" / "small").glob("*.parquet"))
    rows = pq.read_table(file).to_pylist()
    rows[0] |= {"kept": False, "reason": "rule:text_score < 0.6"}
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(file)), file)
    return first, second


def test_settings_verdicts_and_scores(runs: tuple[Path, Path], tmp_path: Path) -> None:
    found = diff.compare(str(runs[0]), str(runs[1]))
    assert [key for key, _, _ in found.settings] == ["subsets.small.clip_rules", "versions.av"]
    assert found.counts == {"shared": 5, "first": 6, "second": 5}
    (change,) = diff.changed(found.verdicts)
    assert (change["before"], change["after"], change["clips"], change["seconds"]) == ("kept", "rule:text_score < 0.6", 1, 6.0)
    (drift,) = [row for row in found.drift if row["changed"]]
    assert (drift["name"], drift["changed"], drift["largest"]) == ("motion_mv", 5, 9.0)
    assert (drift["mean_before"], drift["mean_after"]) == (3.4, 6.8) and sum(drift["before"]) == sum(drift["after"]) == 5
    page = shown(diff.listed(found))
    assert "0000000000000001_0000000_0000180" in row_of(page, "small", "kept")
    assert found.cameras == [{"before": None, "after": "arc", "clips": 2}]
    assert row_of(page, "(none)", "arc").split()[-1] == "2"
    assert "3.4 -> 6.8" in row_of(page, "motion_mv", " -> ")


def test_the_page_has_a_picture_and_escapes(runs: tuple[Path, Path], tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["diff", str(runs[0]), str(runs[1]), "--page", str(tmp_path / "diff.html")])
    assert made.exit_code == 0, made.output
    page = (tmp_path / "diff.html").read_text()
    assert page.count('<svg class="drift"') == 1 and "border_frac &lt; 0.01" in page and "border_frac < 0.01" not in page


def test_a_run_is_equal_to_itself_wherever_it_is(runs: tuple[Path, Path]) -> None:
    fsspec.filesystem("memory").put(f"{runs[0]}/", "/diff/run/", recursive=True)
    page = shown(diff.listed(diff.compare(str(runs[0]), "memory://diff/run")))
    assert all(said in page for said in ("No setting differs", "No clip changed verdict", "No score of a shared clip differs"))


def test_runs_that_share_no_clip(runs: tuple[Path, Path], tmp_path: Path) -> None:
    analyst_run.make_run(tmp_path / "empty", sources=0)
    with pytest.raises(ConfigError, match=r"share no clip \(6 clips in .*, 0 in"):
        diff.compare(str(runs[0]), str(tmp_path / "empty"))
