"""The planted corpus is what it says: concepts apart, films of one concept apart enough, copies found, one clip a film."""

from collections import Counter
from pathlib import Path

import numpy as np

from curation import layout, storage
from curation.layout import Vector
from jobs import pipeline
from tests.planted import KINDS, Planted, frames, plant, truth
from tests.small_runs import SUBSET, settings

ANY = {**SUBSET, "source_rules": ["duration_s > 0"], "clip_rules": ["duration_s > 0"]}


def vector(film: Planted) -> Vector:
    found = [layout.describe(picture) for picture in frames(film, 0)[::48]]
    mean: Vector = np.sum([v for v in found if v is not None], axis=0)
    return mean / np.float32(np.linalg.norm(mean))


def test_the_truth_is_consistent() -> None:
    films = {film.path: film for film in truth(2000, 0)}
    copies = [film for film in films.values() if film.copy_of]
    assert len(films) == 2000 and len(copies) == 300 and set(Counter(film.how for film in copies)) == set(KINDS)
    for film in copies:
        original = films[film.copy_of or ""]
        assert original.copy_of is None and original.how is None and original.concept == film.concept
    assert set(Counter(film.copy_of for film in copies).values()) == {1, 2, 3, 4}
    sizes = [n for _, n in Counter(film.concept for film in films.values()).most_common()]
    assert len(sizes) == 20 and 350 < sizes[0] < 550 and 8 <= sizes[-1] < 20
    assert truth(2000, 0) == list(films.values()) != truth(2000, 1)


def test_neighbours_are_of_one_concept_and_no_near_duplicates() -> None:
    films = [film for film in truth(80, 0) if film.copy_of is None]
    vectors = np.stack([vector(film) for film in films])
    concepts = np.array([film.concept for film in films])
    cosines, pairs = vectors @ vectors.T, np.triu_indices(len(films), 1)
    same = (concepts[:, None] == concepts)[pairs]
    within, between = cosines[pairs][same], cosines[pairs][~same]
    assert within.max() < 0.86 and np.median(within) > 0.55
    assert np.quantile(between, 0.9) < 0.5 and np.median(between) < np.quantile(within, 0.05)


def test_every_film_is_one_clip_and_every_copy_is_near(tmp_path: Path) -> None:
    films = {film.path: film for film in plant(tmp_path / "films", 40, workers=1)}
    config = settings(clips={"min_s": 0.5}, subsets=[ANY], units={"size": 40})
    assert pipeline.run(str(tmp_path / "films"), str(tmp_path / "run"), config, parts=("analyze",)) == 0
    clips = storage.read_table(str(tmp_path / "run" / "clips")).to_pylist()
    assert Counter(clip["path"] for clip in clips) == Counter(list(films))
    found = {row["clip_id"]: row["vector"] for row in storage.read_table(str(tmp_path / "run/embeddings/layout")).to_pylist()}
    vectors = {clip["path"]: np.array(found[clip["clip_id"]]) for clip in clips}
    for film in films.values():
        if film.copy_of is not None:
            assert vectors[film.path] @ vectors[film.copy_of] >= 0.9, film
