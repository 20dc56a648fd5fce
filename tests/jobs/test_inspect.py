"""Questions to a run folder: stories, progress, and SQL that stays inside the run."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from curation import storage
from curation.errors import ConfigError
from curation.tables import SOURCES
from jobs import inspect
from tests.jobs.run_samples import NASTY, make_run, row_of, shown

FIRST = "0000000000000001_0000000_0000180"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, Any]]]:
    run = tmp_path_factory.mktemp("runs") / "a run"
    return str(run), make_run(run)["clips"]


@pytest.fixture(scope="module")
def run(made: tuple[str, list[dict[str, Any]]]) -> str:
    return made[0]


def test_a_clips_story_has_its_measures_verdicts_and_place(run: str) -> None:
    page = shown(inspect.story(run, FIRST))
    assert "0 to 6 s, frames 0 to 180" in page and "640 x 360" in page
    assert row_of(page, "kept frames").split()[-1] == "3"
    assert row_of(page, "aesthetic").split()[-1] == "unmeasured"
    for rule in ("duration_s >= 4", "border_frac < 0.02", "0.5 < motion_mv < 7", "text_score < 0.6"):
        assert "pass" in row_of(page, rule)
    assert "motion_mv 2" in row_of(page, "0.5 < motion_mv < 7")
    place = row_of(page, "shard-000000")
    assert "small" in place and "kept" in place and "byte 512, 2048 bytes" in place


@pytest.mark.parametrize(
    ("place", "rule", "verdict"),
    [(1, "border_frac < 0.02", "fail"), (2, "text_score < 0.6", "unmeasured"), (3, "0.5 < motion_mv < 7", "fail")],
)
def test_each_rule_has_its_verdict(made: tuple[str, list[dict[str, Any]]], place: int, rule: str, verdict: str) -> None:
    run, clips = made
    page = shown(inspect.story(run, clips[place]["clip_id"]))
    for text in ("border_frac < 0.02", "0.5 < motion_mv < 7", "text_score < 0.6"):
        assert f" {text} " in page
        expected = verdict if text == rule else "pass"
        assert expected in row_of(page, f" {text} ", " small ")


def test_an_image_meets_image_rules_only(made: tuple[str, list[dict[str, Any]]]) -> None:
    run, clips = made
    page = shown(inspect.story(run, clips[5]["clip_id"]))
    assert "pass" in row_of(page, "border_frac < 0.02") and "motion_mv <" not in page
    assert "planned, not written yet" in row_of(page, "shard-000000")


def test_a_clip_in_error_says_why(made: tuple[str, list[dict[str, Any]]]) -> None:
    run, clips = made
    page = shown(inspect.story(run, clips[4]["clip_id"]))
    assert "scorer_failed" in page and "its columns are null" in page and "boom" in page


@pytest.mark.parametrize("id", ["0000000000000001", NASTY])
def test_a_sources_story_has_its_cuts_and_clips(run: str, id: str) -> None:
    page = shown(inspect.story(run, id))
    assert row_of(page, "hard cut ").split()[-2:] == ["180", "6"]
    assert "300 to 310" in row_of(page, "fade")
    assert "small: kept" in row_of(page, FIRST)
    assert "small: unmeasured:text_score" in row_of(page, "0000000000000001_0000360_0000720")


def test_a_source_that_was_stopped_says_by_what(run: str) -> None:
    assert "fail" in row_of(shown(inspect.story(run, "short.mp4")), "duration_s >= 4", "small")
    assert "zero bytes" in shown(inspect.story(run, "empty.mp4"))


def test_a_samples_key_is_an_id_too(run: str) -> None:
    assert f"clip {FIRST}" in shown(inspect.story(run, f"{FIRST}-256"))


@pytest.mark.parametrize(
    ("id", "close"), [("00000000000001", "0000000000000001"), ("b/too.mp4", "b/two.mp4"), (FIRST[:-1], FIRST)]
)
def test_an_unknown_id_names_the_closest(run: str, id: str, close: str) -> None:
    with pytest.raises(ConfigError, match=f"no clip or source '{id}'") as refused:
        inspect.story(run, id)
    assert close in str(refused.value)


def test_text_of_others_is_neither_markup_nor_a_terminal_command(run: str) -> None:
    asked = "SELECT '[red]' || chr(27) || '[2J' AS \"[blue]\""
    answer = shown(inspect.sql(run, asked))
    assert "[red]\\x1b[2J" in answer and "[blue]" in answer
    story = shown(inspect.story(run, "hung.mp4"))
    assert "\\x1b[31mno progress" in story
    assert "\x1b" not in answer + story


def test_sql_answers_with_a_table(run: str) -> None:
    page = shown(inspect.sql(run, "SELECT reason, count(*) AS n FROM selection WHERE subset = 'small' GROUP BY 1"))
    assert row_of(page, "kept").split() == ["kept", "2"]
    assert "null" in shown(inspect.sql(run, "SELECT error_code FROM sources WHERE status = 'ok'"))
    assert "bytes>" in shown(inspect.sql(run, "SELECT jpeg FROM frames LIMIT 1"))


def test_sql_answers_with_csv(run: str) -> None:
    answer = inspect.sql(run, "SELECT path, error_code FROM sources ORDER BY path", csv=True)
    assert isinstance(answer, str)
    rows = list(csv.reader(io.StringIO(answer)))
    assert rows[0] == ["path", "error_code"] and len(rows) == 1 + 7
    assert [NASTY, ""] in rows and ["empty.mp4", "empty"] in rows


def test_a_long_table_says_that_it_is_cut(run: str) -> None:
    cut = " ".join(shown(inspect.sql(run, "SELECT * FROM range(1001)")).split())
    assert "999 the first 1000 rows; --csv prints all" in cut
    assert "first" not in shown(inspect.sql(run, "SELECT * FROM range(1000)"))
    whole = inspect.sql(run, "SELECT * FROM range(30000)", csv=True)
    assert isinstance(whole, str) and len(whole.splitlines()) == 30001


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_parquet('{run}/../secret/*.parquet')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM '{secret}'",
        "COPY (SELECT 1) TO '{run}/x.csv'",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW sources",
        "ATTACH '{run}/x.db'",
        "INSTALL httpfs",
        "SET enable_external_access = true",
        "SELECT 1; DROP VIEW sources",
        "SELEC 1",
        "SELECT nosuch FROM sources",
        "",
    ],
)
def test_sql_reads_the_run_and_nothing_else(run: str, query: str) -> None:
    secret = Path(run).parent / "secret" / "s.parquet"
    storage.write_table(str(secret), SOURCES.empty_table())
    before = sorted(Path(run).rglob("*"))
    with pytest.raises(ConfigError, match=r"^sql"):
        inspect.sql(run, query.format(run=run, secret=secret))
    assert sorted(Path(run).rglob("*")) == before


def test_tables_without_files_are_empty_or_absent(run: str, tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "run.json"), (Path(run) / "run.json").read_bytes())
    for name in inspect.TABLES:
        assert inspect.sql(str(tmp_path), f"SELECT count(*) AS n FROM {name}", csv=True) == "n\n0\n"
    with pytest.raises(ConfigError, match="captions"):
        inspect.sql(str(tmp_path), "SELECT * FROM captions")


def test_a_folder_may_be_named_like_a_pattern(tmp_path: Path) -> None:
    for name in ("it's [a] run*?", "it's a run**"):
        make_run(tmp_path / name)
        assert inspect.sql(str(tmp_path / name), "SELECT count(*) AS n FROM sources", csv=True) == "n\n7\n"


def test_a_manifests_columns_are_there(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    folder = str(tmp_path / "run" / "sources")
    table = storage.read_table(folder)
    storage.write_table(storage.join(folder, "unit-000001.parquet"), table.append_column("licence", [["CC0"] * table.num_rows]))
    answer = inspect.sql(str(tmp_path / "run"), "SELECT licence, count(*) AS n FROM sources GROUP BY 1 ORDER BY 1", csv=True)
    assert answer == "licence,n\nCC0,7\n,7\n"


def test_no_run_folder_is_said(tmp_path: Path) -> None:
    for ask in (lambda run: inspect.sql(run, "SELECT 1"), lambda run: inspect.story(run, "x")):
        with pytest.raises(ConfigError, match="is no run folder"):
            ask(str(tmp_path))
