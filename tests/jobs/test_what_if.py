"""Other rule lists over a measured run; and a run that lives in an object store."""

from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from curation.errors import ConfigError
from jobs import inspect
from jobs.cli import app
from jobs.report import write_report
from jobs.status import status
from jobs.what_if import compared, supposed, what_if
from tests.jobs import analyst_run
from tests.jobs.run_samples import SUBSET, make_run
from tests.small_runs import SETTINGS, small_corpus


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("what-if")
    make_run(place)
    return str(place)


def text(renderable: Any) -> str:
    console = Console(width=240, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def words(shown: str, part: str) -> list[str]:
    """The words of the first line that has `part`."""
    return next(line for line in shown.splitlines() if part in line).split()


def rules(folder: Path, **settings: Any) -> str:
    place = folder / f"{settings['name']}.yaml"
    place.write_text(yaml.safe_dump(settings))
    return str(place)


def test_the_runs_own_rules_change_nothing(run: str, tmp_path: Path) -> None:
    shown = text(what_if(run, rules(tmp_path, **SUBSET)))
    assert words(shown, "border_frac < 0.02")[-5:] == ["1", "0", "3", "0.006", "60.0%"]
    assert words(shown, "text_score < 0.6")[-5:-2] == ["0", "1", "1"]
    outcome = shown.partition("All clips")[2]
    for fate, count in {"kept": "2", "dropped": "2", "unknown": "1", "error": "1"}.items():
        found = words(outcome, f" {fate} ")
        assert (found[1], found[3], found[5]) == (count, count, "+0")


def test_wider_rules(run: str, tmp_path: Path) -> None:
    wider = {**SUBSET, "name": "wider", "source_rules": ["duration_s >= 1"], "clip_rules": ["motion_mv < 20"]}
    shown = text(what_if(run, rules(tmp_path, **wider)))
    assert words(shown.partition("All clips")[2], " kept ")[1] == "5"
    assert "no selection named wider" in shown
    assert "1 sources (0.00 h) that the run stopped before decoding" in shown


def test_a_list_that_is_not_there(run: str) -> None:
    with pytest.raises(ConfigError, match="neither a shipped list"):
        what_if(run, "no_such_list")


def test_a_run_in_an_object_store(tmp_path: Path) -> None:
    make_run(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/bucket/run/", recursive=True)
    memory.pipe("/bucket/secret.csv", b"a\n1\n")
    place = "memory://bucket/run"
    assert inspect.sql(place, "SELECT count(*) AS n FROM clips", csv=True) == "n\n6\n"
    assert "3 ok + 2 rejected + 2 error" in text(status(place))
    assert "6 = 2 kept + 3 dropped + 1 error" in memory.cat(write_report(place)).decode()
    with pytest.raises(ConfigError, match="Permission Error"):
        inspect.sql(place, "SELECT * FROM 'memory://bucket/secret.csv'")


def asked(run: str, *rules: str) -> str:
    new, base = supposed(run, rules, None)
    return text(compared(run, new, base, rules))


def test_another_threshold_gains_and_loses(run: str) -> None:
    rule = "motion_mv > 1.5"  # 2.0 but for the one clip with 9.0, which the list's own rule drops
    page = asked(run, rule)
    assert page.startswith(f"Asked: {rule}, in place of 0.5 < motion_mv < 7.")
    kept = words(page.partition("All clips")[2], " kept ")
    assert (kept[1], kept[3], kept[5]) == ("3", "2", "+1")
    assert words(page.partition("Gained and lost")[2], " kept ")[1::2] == ["1", "0"]
    examples = page.partition("Examples")[2]
    assert words(examples, "gained")[1:] == ["0000000000000002_0000000_0000120", "9"]
    sweep = page.partition(f"Other thresholds of {rule}")[2]
    assert words(sweep, "<- asked") == ["1.5", "<-", "asked", "2", "0.003", "+0"]
    assert words(sweep, "60%") == ["2", "60%", "1", "0.001", "-1"]  # three clips have 2.0, one has 9.0


def test_what_each_rule_alone_takes(run: str) -> None:
    table = asked(run, "0.5 < motion_mv < 7").partition("Without one rule: video clips")[2]
    assert words(table, "border_frac < 0.02")[-4:] == ["1", "0.001", "0", "2"]
    assert words(table, "text_score < 0.6")[-4:] == ["1", "0.003", "1", "2"]
    assert words(table, "duration_s >= 4")[-4:] == ["0", "0.000", "0", "1"]


def test_sources_that_were_never_decoded_are_said(run: str) -> None:
    assert "1 sources (0.00 h) that the run stopped before decoding" in asked(run, "duration_s >= 1")


@pytest.mark.parametrize(
    ("rules", "base", "name", "said"),
    [
        (["motion_mw > 1"], None, None, "did you mean motion_mv"),
        (["motion_mv > 1"], "big", None, "no list 'big'; it has small"),
        (["motion_mv > 1"], None, "small", "has a list 'small' already"),
    ],
)
def test_what_cannot_be_supposed(run: str, rules: list[str], base: str | None, name: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        supposed(run, rules, base, name)


def test_a_run_of_nulls_and_an_empty_one(tmp_path: Path) -> None:
    analyst_run.make_run(tmp_path / "empty", sources=0)
    new, base = supposed(str(tmp_path / "empty"), ["motion_mv > 1"], "plain")
    assert words(text(compared(str(tmp_path / "empty"), new, base, ["motion_mv > 1"])), " kept ")[1] == "0"
    make_run(tmp_path / "nulls")
    page = asked(str(tmp_path / "nulls"), "camera_confidence > 0.5")  # no clip has one
    assert words(page.partition("All clips")[2], " unknown ")[1] == "2"
    assert words(page.partition("Other thresholds of camera_confidence")[2], "<- asked")[3] == "0"


@pytest.mark.parametrize("older", [0, 1])
def test_a_column_that_some_units_lack_is_null_there(tmp_path: Path, older: int) -> None:
    pages = []
    for name in ("null", "lacking"):
        run = tmp_path / name
        make_run(run)
        clips = pq.read_table(run / "clips/unit-000000.parquet")
        parts = [clips.slice(0, 3), clips.slice(3)]
        place = clips.column_names.index("text_score")
        null = pa.nulls(len(parts[older]), pa.float64())
        parts[older] = (
            parts[older].drop(["text_score"]) if name == "lacking" else parts[older].set_column(place, "text_score", null)
        )
        for number, part in enumerate(parts):
            pq.write_table(part, run / f"clips/unit-{number:06d}.parquet")
        pages.append(asked(str(run), "text_score < 0.5"))
    assert pages[0] == pages[1] and int(words(pages[0].partition("All clips")[2], " unknown ")[1]) > 0


def test_a_selection_that_is_written_is_a_list_of_the_run(tmp_path: Path) -> None:
    corpus, place = small_corpus(tmp_path / "in"), tmp_path / "run"
    settings = {**SETTINGS, "engine": {"kind": "inline"}, "embeddings": []}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    runner = CliRunner()
    made = runner.invoke(app, ["run", "-i", str(corpus), "-o", str(place), "-c", str(tmp_path / "config.yaml")])
    assert made.exit_code == 0, made.output
    before = {file: file.stat().st_mtime_ns for file in (place / "shards").rglob("*.tar")}
    given = ["what-if", str(place), "--rule", "motion_static_frac <= 1", "--rule", "motion_mv >= 0", "--write", "still-too"]
    written = runner.invoke(app, given)
    assert written.exit_code == 0 and "select: still-too: 4 of" in written.output, written.output
    assert len(inspect.subsets(str(place))) == 2 and not (place / "shards" / "still-too").exists()
    again = runner.invoke(app, ["select", str(place)])
    assert "select: still-too: nothing new" in again.output and "select: tiny: nothing new" in again.output
    assert runner.invoke(app, ["shard", str(place)]).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in (place / "shards" / "tiny").rglob("*.tar")} == before
    assert list((place / "shards" / "still-too").rglob("*.tar"))
