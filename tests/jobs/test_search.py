"""Search over a small measured run: by likeness, by text with a tiny model of the test's own, and what cannot be searched."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from curation import run_folder, storage
from curation.errors import ConfigError
from curation.tables import FRAMES, SELECTION
from jobs import search as job
from jobs.cli import app
from jobs.config import Config
from jobs.search import page, search
from tests.jobs.test_content import compare, measured, planted, settings
from tests.media_samples import texture


@pytest.fixture(params=[1000, 20])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Sixty clips in one block and in three."""
    config = settings(index={"block_clips": request.param})
    return compared(tmp_path / "a run", config)


def compared(folder: Path, config: Config) -> Path:
    measured(folder, planted(60)[0])
    run_folder.write(str(folder), {"input": "in", **config.model_dump(mode="json")}, config.decides())
    compare(folder, config)
    return folder


def by_hand(like: list[int], count: int) -> list[tuple[str, float]]:
    """Every cosine, sorted."""
    found = planted(60)[0].astype(np.float64)
    wanted = found[like].mean(axis=0)
    cosines = found @ (wanted / np.linalg.norm(wanted))
    best = [n for n in np.argsort(-cosines, kind="stable") if n not in like][:count]
    return [(f"c{n:05d}", pytest.approx(cosines[n], abs=1e-5)) for n in best]


@pytest.mark.parametrize("like", [[7], [7, 30, 41]])
def test_the_nearest_clips_come_first_and_the_seeds_not_at_all(run: Path, like: list[int]) -> None:
    found = search(str(run), None, [f"c{n:05d}" for n in like], 10)
    assert [(row["clip_id"], row["similarity"]) for row in found] == by_hand(like, 10)
    assert set(found[0]) == {"clip_id", "similarity", "path", "start_s", "end_s"}
    assert len(search(str(run), None, ["c00007"], 1000)) == 59


def test_only_what_a_subset_keeps(run: Path) -> None:
    rows = [{"clip_id": f"c{n:05d}", "kept": n % 10 == 0} for n in range(60)]
    storage.write_table(str(run / "selection/x/unit-000000--unit-000005.parquet"), storage.rows_table(rows, SELECTION))
    found = search(str(run), None, ["c00007"], 10, subset="x")
    assert {row["clip_id"] for row in found} == {f"c{n:05d}" for n in range(0, 60, 10)}
    assert [row["similarity"] for row in found] == sorted((row["similarity"] for row in found), reverse=True)
    with pytest.raises(ConfigError, match="no subset 'y' of this run keeps a clip"):
        search(str(run), None, ["c00007"], 10, subset="y")


def test_what_cannot_be_searched_is_said(run: Path, tmp_path: Path) -> None:
    for given in ({"text": None, "like": []}, {"text": "a cat", "like": ["c00001"]}):
        with pytest.raises(ConfigError, match="one of both"):
            search(str(run), count=3, **given)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"needs an embedding of kind open_clip; this run has layout \(layout\)"):
        search(str(run), "a cat", [], 3)
    with pytest.raises(ConfigError, match="'nobody' is no clip of this run"):
        search(str(run), None, ["nobody"], 3)
    with pytest.raises(ConfigError, match="--model 'clip' is none of this run's embeddings: layout"):
        search(str(run), None, ["c00001"], 3, model="clip")
    with pytest.raises(ConfigError, match="is no run folder"):
        search(str(tmp_path), None, ["c00001"], 3)
    config = settings()
    bare = measured(tmp_path / "bare", [[1.0, 0.0], None])
    run_folder.write(str(bare), config.model_dump(mode="json"), config.decides())
    with pytest.raises(ConfigError, match="has no index of layout: run `reelset select` on it first"):
        search(str(bare), None, ["c00000"], 3)
    with pytest.raises(ConfigError, match="'c00001' has no vector of layout"):
        search(str(bare), None, ["c00001"], 3)


def test_clips_without_a_direction_are_no_seeds(tmp_path: Path) -> None:
    config = settings()
    nan = float("nan")
    folder = measured(tmp_path, [[1.0, 0.0], [0.0, 0.0], [nan, 1.0], [-1.0, 0.0], [0.0, 2.0]])
    run_folder.write(str(folder), config.model_dump(mode="json"), config.decides())
    compare(folder, config)
    for clip_id in ("c00001", "c00002"):
        with pytest.raises(ConfigError, match=f"'{clip_id}' has no vector of layout"):
            search(str(folder), None, [clip_id], 3)
    with pytest.raises(ConfigError, match="opposites of one another"):
        search(str(folder), None, ["c00000", "c00003"], 3)
    assert [row["clip_id"] for row in search(str(folder), None, ["c00004"], 3)] == ["c00000", "c00003"]


class Reads:
    """A model that reads texts: each is a clip's number, its vector that clip's."""

    def text(self, texts: list[str]) -> Any:
        return planted(60)[0][[int(text) for text in texts]]


def test_a_text_is_looked_for_by_a_model_that_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(embeddings=[{"name": "layout", "kind": "open_clip", "model": "m", "weights": "w"}])
    run = compared(tmp_path, config)
    monkeypatch.setattr(job.embedding, "OpenClip", Reads)
    monkeypatch.setattr(job.embedding, "load", lambda model, setting: Reads())
    found = search(str(run), "7", [], 5)
    assert found[0]["clip_id"] == "c00007" and found[0]["similarity"] == pytest.approx(1.0, abs=1e-5)


def test_the_page_has_frames_and_escapes_names(run: Path, tmp_path: Path) -> None:
    jpegs = [cv2.imencode(".jpg", texture(64, 48, n))[1].tobytes() for n in range(10)]
    rows = [{"clip_id": f"c{n:05d}", "source_id": f"sc{n:05d}", "frame": 1, "jpeg": j} for n, j in enumerate(jpegs)]
    for n in range(6):
        storage.write_table(str(run / f"frames/unit-{n:06d}.parquet"), storage.rows_table(rows if n == 0 else [], FRAMES))
    found = search(str(run), None, ["c00007"], 59)
    found[0]["path"] = "<script>alert(1)</script>"
    page(str(run), found, "a <b>title</b>", tmp_path / "found.html")
    html = (tmp_path / "found.html").read_text()
    assert html.count("<figure>") == 59 and html.count("data:image/jpeg;base64,") == 9
    assert html.count("No frame was kept") == 50
    assert "<script" not in html and "<b>title" not in html and "&lt;script&gt;" in html


def test_the_verb_prints_a_table_or_csv_and_writes_a_page(run: Path, tmp_path: Path) -> None:
    for n in range(6):
        storage.write_table(str(run / f"frames/unit-{n:06d}.parquet"), FRAMES.empty_table())
    runner = CliRunner()
    shown = runner.invoke(app, ["search", str(run), "--like", "c00007", "--count", "3"])
    assert shown.exit_code == 0 and by_hand([7], 1)[0][0] in shown.stdout
    place = tmp_path / "page.html"
    rows = runner.invoke(app, ["search", str(run), "--like", "c00007", "-k", "3", "--csv", "--page", str(place)]).stdout
    lines = rows.strip().splitlines()
    assert lines[0] == "clip_id,similarity,path,start_s,end_s" and len(lines) >= 4 and place.is_file()
