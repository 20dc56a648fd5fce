"""One source measured again beside what the run says of it."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from curation import storage
from curation.errors import ConfigError
from jobs import cli, pipeline
from jobs.replay import Recut, replay
from tests.jobs.run_samples import row_of, shown
from tests.media_samples import make_video, moving
from tests.small_runs import settings


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A run over a film and a broken file, and its sources by path."""
    folder = tmp_path_factory.mktemp("replay")
    (folder / "in").mkdir()
    make_video(folder / "in" / "a film.mp4", moving(352, 208, seed=1), 140, 28)
    (folder / "in" / "broken.mp4").write_bytes(b"not a film at all")
    assert pipeline.run(str(folder / "in"), str(folder / "run"), settings(), parts=("analyze",)) == 0
    rows = pq.read_table(folder / "run" / "sources" / "unit-000000.parquet").to_pylist()
    return folder / "run", {row["path"]: row for row in rows}


@pytest.mark.parametrize("path", ["a film.mp4", "broken.mp4"])
def test_the_same_comes_out_again(made: tuple[Path, dict[str, dict[str, Any]]], path: str) -> None:
    run, sources = made
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    again = replay(str(run), sources[path]["source_id"])
    assert again.equal and again.fresh["sources"][0]["path"] == path
    assert bool(again.fresh["clips"]) == (sources[path]["status"] == "ok")
    page = shown(again.page())
    assert "replay: the same outcome" in page and "differs" not in page
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}, "the run is only read"


def test_another_outcome_is_shown_value_by_value(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    run, sources = made
    file = run / "clips" / "unit-000000.parquet"
    kept = file.read_bytes()
    table = pq.read_table(file)
    place = table.column_names.index("motion_mv")
    pq.write_table(table.set_column(place, table.schema.field(place), [[99.5] * table.num_rows]), file)
    try:
        again = replay(str(run), "a film.mp4")
    finally:
        file.write_bytes(kept)
    assert not again.equal
    assert "99.5" in row_of(shown(again.page()), "motion_mv", "differs")
    assert sources["a film.mp4"]["source_id"] in shown(again.page())


def test_a_source_that_is_gone(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    run, _ = made
    film, away = run.parent / "in" / "a film.mp4", run.parent / "away.mp4"
    film.rename(away)
    try:
        said = CliRunner().invoke(cli.app, ["inspect", str(run), "--replay", "a film.mp4"], env={"COLUMNS": "200"})
    finally:
        away.rename(film)
    assert said.exit_code == 1
    assert "missing" in row_of(said.output, "error_code", "differs")


def test_an_unknown_source_is_said(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    with pytest.raises(ConfigError, match="no analyzed source 'nobody'"):
        replay(str(made[0]), "nobody")


def test_a_clip_is_cut_again(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    film = make_video(tmp_path / "in" / "film.mp4", moving(352, 208, seed=1), 140, 28)
    run = tmp_path / "run"
    assert pipeline.run(str(tmp_path / "in"), str(run), settings()) == 0
    (sample,) = storage.read_table(str(run / "produced" / "tiny")).to_pylist()
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    again = replay(str(run), sample["clip_id"])
    assert again.equal and isinstance(again, Recut) and again.fresh[0]["sha256"] == sample["sha256"]
    assert "replay: the same outcome" in shown(again.page())
    film.rename(tmp_path / "away.mp4")
    again = replay(str(run), sample["clip_id"])
    assert not again.equal
    page = shown(again.page())
    assert "decode_failed" in page or "missing" in page
    assert "ANOTHER OUTCOME" in page
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}, "the run is only read"


def test_a_clip_without_a_sample_cannot_be_cut_again(made: tuple[Path, dict[str, dict[str, Any]]]) -> None:
    run, _ = made
    clip = pq.read_table(run / "clips" / "unit-000000.parquet")["clip_id"][0].as_py()
    with pytest.raises(ConfigError, match="no sample of clip"):
        replay(str(run), clip)
