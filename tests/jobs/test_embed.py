"""Embedding as a part of the path: with the analysis, later from the kept frames, and never under a wrong name."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curation import storage
from curation.embedding import EmbeddingConfig
from curation.errors import ConfigError
from jobs import pipeline
from tests.small_runs import settings

LAYOUT = {"name": "layout", "kind": "layout"}


def vectors(run: Path, name: str = "layout") -> dict[str, object]:
    rows = storage.read_table(str(run / "embeddings" / name)).to_pylist()
    assert len({row["clip_id"] for row in rows}) == len(rows)
    return {row["clip_id"]: row["vector"] for row in rows}


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed") / "run"
    assert pipeline.run(str(corpus), str(folder), settings(), parts=("analyze",)) == 0
    return folder


def test_every_clip_that_may_be_taken_has_a_vector(run: Path) -> None:
    clips = {row["clip_id"]: row for row in storage.read_table(str(run / "clips")).to_pylist()}
    found = vectors(run)
    assert {name for name in found if found[name] is not None} == set(found)
    stopped = {name for name, row in clips.items() if (row["motion_static_frac"] or 0) >= 0.9}
    assert stopped and set(found) == set(clips) - stopped
    assert storage.names(str(run / "embeddings" / "layout")) == storage.names(str(run / "sources"))


def test_it_says_what_it_cost(run: Path) -> None:
    costs = [row for row in storage.read_table(str(run / "costs")).to_pylist() if row["stage"] == "embed:layout"]
    assert len({row["unit"] for row in costs}) == len(costs) == len(storage.names(str(run / "sources")))
    assert sum(row["rows"] for row in costs) == len(vectors(run)) and sum(row["cpu_s"] for row in costs) > 0


def test_score_all_embeds_all(corpus: Path, tmp_path: Path) -> None:
    pipeline.run(str(corpus), str(tmp_path / "run"), settings(score_all=True), parts=("analyze",))
    clips = storage.read_table(str(tmp_path / "run" / "clips"), columns=["clip_id"])["clip_id"].to_pylist()
    assert set(vectors(tmp_path / "run")) == set(clips)


def test_what_is_missing_is_made_from_the_kept_frames(run: Path, corpus: Path, tmp_path: Path) -> None:
    """A table that is gone comes back with the same bytes, and a model added later needs no video."""
    copy, without = tmp_path / "run", tmp_path / "corpus"
    shutil.copytree(run, copy)
    before = {p.name: p.read_bytes() for p in (copy / "embeddings" / "layout").iterdir()}
    gone = sorted(before)[0]
    (copy / "embeddings" / "layout" / gone).unlink()
    shutil.copytree(corpus, without)
    more = settings(embeddings=[LAYOUT, {"name": "again", "kind": "layout", "batch_size": 1}])
    stamps = {p: p.stat().st_mtime_ns for p in (copy / "sources").iterdir()}
    for video in without.glob("*.mp4"):
        size = video.stat().st_size
        with video.open("wb") as file:
            file.truncate(size)
    assert pipeline.run(str(without), str(copy), more, parts=("analyze",)) == 0
    assert {p.name: p.read_bytes() for p in (copy / "embeddings" / "layout").iterdir()} == before
    assert vectors(copy, "again") == vectors(copy, "layout")
    assert stamps == {p: p.stat().st_mtime_ns for p in (copy / "sources").iterdir()}


def test_another_model_under_the_same_name_is_refused(run: Path, corpus: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"x")
    other = settings(embeddings=[{"name": "layout", "kind": "torchscript", "weights": str(weights)}])
    before = (run / "run.json").read_bytes()
    with pytest.raises(
        ConfigError, match=r"embeddings/layout was made with other settings:\n  kind: 'layout' -> 'torchscript'"
    ):
        pipeline.run(str(corpus), str(run), other, parts=("analyze",))
    assert (run / "run.json").read_bytes() == before


def test_where_it_runs_is_no_other_setting(run: Path) -> None:
    (first,) = storage.names(str(run / "embeddings" / "layout"))[:1]
    made_by = pq.read_schema(run / "embeddings" / "layout" / first).metadata
    assert b"batch_size" not in made_by[b"reelset_embedding"]
    assert EmbeddingConfig(**LAYOUT, threads=4).decides() == EmbeddingConfig(**LAYOUT).decides()


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two models have one name: layout"):
        settings(embeddings=[LAYOUT, LAYOUT])


def test_none_will_do(corpus: Path, tmp_path: Path) -> None:
    assert pipeline.run(str(corpus), str(tmp_path / "run"), settings(embeddings=[]), parts=("analyze",)) == 0
    assert not (tmp_path / "run" / "embeddings").exists()
