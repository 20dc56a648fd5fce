import csv
import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from curation import storage
from curation.errors import ConfigError
from curation.tables import SOURCES
from jobs import inspect
from tests.jobs.made_run import CLIP_ROWS, EVIL, SOURCE_ROWS, make_run

FIRST = CLIP_ROWS[0]["clip_id"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_run(tmp_path_factory.mktemp("runs") / "a run")


def shown(what: RenderableType) -> str:
    """What a terminal of 200 columns shows."""
    console = Console(width=200, file=io.StringIO(), force_terminal=False)
    console.print(what)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def row_of(page: str, *words: str) -> str:
    """The one line of a page that has all these words."""
    found = [line for line in page.splitlines() if all(word in line for word in words)]
    assert len(found) == 1, (words, page)
    return found[0]


def test_a_clips_story_has_its_measures_verdicts_and_place(run: str) -> None:
    page = shown(inspect.story(run, FIRST))
    assert "0 to 10 s, frames 0 to 300" in page and "640 x 360" in page
    assert row_of(page, "kept frames").split()[-1] == "3"
    assert row_of(page, "aesthetic").split()[-1] == "unmeasured"
    for rule in ("duration_s >= 4", "0.5 < motion_mv < 7", "min(width, height) >= 256", "text_score < 0.6"):
        assert "pass" in row_of(page, rule)
    assert "motion_mv 1" in row_of(page, "0.5 < motion_mv < 7")
    place = row_of(page, "shard-000000")
    assert "calm" in place and "kept" in place and "byte 512, 4096 bytes" in place


@pytest.mark.parametrize(
    "place,rule,verdict",
    [(1, "0.5 < motion_mv < 7", "fail"), (2, "text_score < 0.6", "unmeasured"), (3, "text_score < 0.6", "fail")],
)
def test_each_rule_has_its_verdict_whatever_came_before_it(run: str, place: int, rule: str, verdict: str) -> None:
    page = shown(inspect.story(run, CLIP_ROWS[place]["clip_id"]))
    assert verdict in row_of(page, rule, "calm")
    assert "pass" in row_of(page, "min(width, height) >= 256")


def test_an_image_meets_image_rules_only(run: str) -> None:
    page = shown(inspect.story(run, CLIP_ROWS[6]["clip_id"]))
    assert "pass" in row_of(page, "width >= 100") and "motion_mv <" not in page
    assert "planned, not written yet" in row_of(page, "shard-000000")


def test_a_clip_in_error_says_why(run: str) -> None:
    page = shown(inspect.story(run, CLIP_ROWS[4]["clip_id"]))
    assert "scorer_failed" in page and "its columns are null" in page and "no text" in page


@pytest.mark.parametrize("id", ["bb00000000000000", "films/bb.mp4"])
def test_a_sources_story_has_its_cuts_and_clips(run: str, id: str) -> None:
    page = shown(inspect.story(run, id))
    assert row_of(page, "hard cut ").split()[-2:] == ["300", "10"]
    assert "700 to 720" in row_of(page, "dissolve")
    assert "calm: rule:text_score < 0.6" in row_of(page, CLIP_ROWS[3]["clip_id"])
    assert "calm: error:scorer_failed" in row_of(page, CLIP_ROWS[4]["clip_id"])


def test_a_source_that_was_stopped_says_by_what(run: str) -> None:
    assert "fail" in row_of(shown(inspect.story(run, "dd00000000000000")), "duration_s >= 4", "calm")
    assert "the content is no known video or image container" in shown(inspect.story(run, "ff00000000000000"))


def test_a_samples_key_is_an_id_too(run: str) -> None:
    assert f"clip {FIRST}" in shown(inspect.story(run, f"{FIRST}-256"))


@pytest.mark.parametrize(
    "id,close", [("bb0000000000", "bb00000000000000"), ("films/bc.mp4", "films/bb.mp4"), (FIRST[:-1], FIRST)]
)
def test_an_unknown_id_names_the_closest(run: str, id: str, close: str) -> None:
    with pytest.raises(ConfigError, match=f"no clip or source '{id}'") as refused:
        inspect.story(run, id)
    assert close in str(refused.value)


def test_a_file_name_is_neither_markup_nor_a_terminal_command(run: str) -> None:
    pages = [
        inspect.story(run, FIRST),
        inspect.sql(run, "SELECT path FROM sources"),
        inspect.sql(run, f'SELECT 1 AS "{EVIL}"'.replace("'\".", "'.")),
    ]
    for page in map(shown, pages):
        assert "[red]" in page and "\\x1b" in page and "\x1b" not in page


def test_status_counts_what_is_on_disk(run: str) -> None:
    events = Path(run) / "events"
    events.mkdir(exist_ok=True)
    (events / "driver-20260101T000000-1.jsonl").write_text('{"time": "noon", "event": "unit"}\n{"time": "no')
    page = shown(inspect.status(run))
    assert row_of(page, "units").endswith("1 of 1 analyzed") or "1 of 1 analyzed" in row_of(page, "units")
    assert "6 of 6 = 3 ok + 2 rejected + 1 error" in page
    assert row_of(page, "calm").split() == ["calm", "7", "2", "1", "of", "1", "0"]
    assert "the content is no known" in row_of(page, "not_media")
    assert "unit at noon" in row_of(page, "last event")


def test_status_of_a_run_that_has_only_begun(run: str, tmp_path: Path) -> None:
    young = tmp_path / "young"
    for part in ("run.json", "units/unit-000000.parquet"):
        storage.write_bytes(str(young / part), (Path(run) / part).read_bytes())
    page = shown(inspect.status(str(young)))
    assert "0 of 1 analyzed" in page and "0 of 6 = 0 ok + 0 rejected + 0 error" in page
    assert "none" in row_of(page, "last event")


def test_sql_answers_with_a_table(run: str) -> None:
    page = shown(inspect.sql(run, "SELECT reason, count(*) AS n FROM selection WHERE subset = 'calm' GROUP BY 1"))
    assert row_of(page, "kept").split() == ["kept", "2"]
    assert "null" in shown(inspect.sql(run, "SELECT error_code FROM sources WHERE status = 'ok'"))
    assert "bytes>" in shown(inspect.sql(run, "SELECT jpeg FROM frames LIMIT 1"))


def test_sql_answers_with_csv(run: str) -> None:
    answer = inspect.sql(run, "SELECT path, error_code FROM sources ORDER BY path", csv=True)
    assert isinstance(answer, str)
    rows = list(csv.reader(io.StringIO(answer)))
    assert rows[0] == ["path", "error_code"] and len(rows) == 1 + len(SOURCE_ROWS)
    assert [EVIL, ""] in rows and ["films/ff.mp4", "not_media"] in rows


def test_a_long_table_says_that_it_is_cut(run: str) -> None:
    assert "the first 1000 rows; --csv prints all" in shown(inspect.sql(run, "SELECT * FROM range(1001)"))
    assert "first" not in shown(inspect.sql(run, "SELECT * FROM range(1000)"))
    whole = inspect.sql(run, "SELECT * FROM range(30000)", csv=True)
    assert isinstance(whole, str) and len(whole.splitlines()) == 30001


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_parquet('{run}/../secret/*.parquet')",
        "SELECT * FROM glob('/etc/*')",
        "SELECT * FROM '{outside}'",
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
    outside = Path(run).parent / "secret" / "s.parquet"
    storage.write_table(str(outside), SOURCES.empty_table())
    before = sorted(Path(run).rglob("*"))
    with pytest.raises(ConfigError, match=r"^sql"):
        inspect.sql(run, query.format(run=run, outside=outside))
    assert sorted(Path(run).rglob("*")) == before


def test_tables_without_files_are_empty_or_absent(run: str, tmp_path: Path) -> None:
    young = tmp_path / "young"
    storage.write_bytes(str(young / "run.json"), (Path(run) / "run.json").read_bytes())
    for name in inspect.TABLES:
        assert inspect.sql(str(young), f"SELECT count(*) FROM {name}", csv=True) == "count_star()\n0\n"
    with pytest.raises(ConfigError, match="captions"):
        inspect.sql(str(young), "SELECT * FROM captions")


def test_a_folder_may_be_named_like_a_pattern(tmp_path: Path) -> None:
    run = make_run(tmp_path / "it's [a] run*?")
    assert inspect.sql(run, "SELECT count(*) AS n FROM sources", csv=True) == "n\n6\n"
    make_run(tmp_path / "it's a run**")
    assert inspect.sql(run, "SELECT count(*) AS n FROM sources", csv=True) == "n\n6\n"


def test_columns_of_a_manifest_and_of_later_scorers_are_there(run: str, tmp_path: Path) -> None:
    later = make_run(tmp_path / "run")
    table = storage.read_table(storage.join(later, "sources"))
    storage.write_table(
        storage.join(later, "sources", "unit-000001.parquet"), table.append_column("licence", [["CC0"] * table.num_rows])
    )
    assert (
        inspect.sql(later, "SELECT licence, count(*) AS n FROM sources GROUP BY 1 ORDER BY 1", csv=True)
        == "licence,n\nCC0,6\n,6\n"
    )


def test_no_run_folder_is_said(tmp_path: Path) -> None:
    for ask in (inspect.status, lambda run: inspect.sql(run, "SELECT 1"), lambda run: inspect.story(run, "x")):
        with pytest.raises(ConfigError, match="is no run folder"):
            ask(str(tmp_path))
