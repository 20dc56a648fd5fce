"""Bars of known width in every colour, and pictures that only look as if they had some."""

import cv2
import numpy as np
import pytest

from filters.border import Bars, agree, border_frac, displayed, look
from tests.filters.synthetic import texture


def scene(seed: int, height: int = 360, width: int = 640) -> np.ndarray:
    return np.ascontiguousarray(texture(seed, height, width)[..., 1])


def framed(picture: np.ndarray, bars: Bars, level: int, noise: float = 1.0) -> np.ndarray:
    out = picture.astype(np.float32)
    rng = np.random.default_rng(0)
    inside = np.zeros(picture.shape, bool)
    inside[bars.top : picture.shape[0] - bars.bottom, bars.left : picture.shape[1] - bars.right] = True
    out[~inside] = level
    return np.clip(out + noise * rng.standard_normal(out.shape), 0, 255).astype(np.uint8)


def found(frames: list[np.ndarray], usual: Bars | None = None) -> Bars:
    return agree([look(f) for f in frames], *frames[0].shape, usual)


def near(a: Bars, b: Bars, by: int = 2) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= by


@pytest.mark.parametrize("level", [16, 60, 128, 235])
@pytest.mark.parametrize(
    "bars", [Bars(top=45, bottom=45), Bars(left=120, right=120), Bars(20, 20, 60, 60), Bars(left=8, right=8)]
)
def test_bars_of_any_colour_are_measured(bars: Bars, level: int) -> None:
    assert near(found([framed(scene(s), bars, level) for s in range(4)]), bars)


def test_no_bars_in_ordinary_pictures() -> None:
    assert found([scene(s) for s in range(6)]) == Bars()


def test_a_dark_scene_has_no_bars() -> None:
    rng = np.random.default_rng(1)
    night = np.clip(17 + rng.standard_normal((360, 640)), 0, 255).astype(np.float32)
    lamp = cv2.GaussianBlur(np.pad(np.full((60, 60), 200, np.float32), ((150, 150), (300, 280))), (0, 0), 12)
    frames = [np.clip(night + np.roll(lamp, 20 * i, axis=1), 0, 255).astype(np.uint8) for i in range(6)]
    assert found(frames) == Bars()


def test_flat_frames_say_nothing() -> None:
    black = np.full((360, 640), 16, np.uint8)
    assert found([black] * 3) == Bars()
    bars = Bars(top=45, bottom=45)
    assert near(found([black, framed(scene(1), bars, 16), black]), bars)


def test_a_horizon_is_no_bar() -> None:
    frames = []
    for seed in range(4):
        picture = scene(seed)
        picture[:150] = 200
        frames.append(picture)
    assert found(frames).bottom == 0
    slanted = cv2.warpAffine(frames[0], cv2.getRotationMatrix2D((320, 180), 4, 1.2), (640, 360))
    assert found([slanted] * 4) == Bars()


def test_writing_in_a_bar_does_not_hide_it() -> None:
    bars = Bars(top=50, bottom=50)
    frames = [framed(scene(s), bars, 16) for s in range(8)]
    for frame in frames[:2]:
        cv2.putText(frame, "and then they met again", (120, 345), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 235, 2)
    assert near(found(frames), bars)


def test_writing_in_one_bar_of_most_frames_does_not_hide_it() -> None:
    bars = Bars(top=50, bottom=50)
    frames = [framed(scene(s), bars, 16) for s in range(6)]
    for frame in frames[1:]:
        cv2.putText(frame, "and then they met again", (150, 340), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 235, 2)
    assert near(found(frames), bars)


@pytest.mark.parametrize("bars", [Bars(30, 60), Bars(left=40, right=90), Bars(100, 100, 170, 170)])
def test_bars_of_two_widths_and_a_small_picture(bars: Bars) -> None:
    assert near(found([framed(scene(s), bars, 16) for s in range(4)]), bars)


def test_a_vignette_is_no_bar() -> None:
    fall = np.clip(np.minimum(np.arange(640), 639 - np.arange(640)) / 80, 0, 1)
    frames = [np.clip(scene(s) * fall, 0, 255).astype(np.uint8) for s in range(6)]
    assert found(frames) == Bars()


def test_blurred_copies_beside_the_picture_are_bars() -> None:
    frames = []
    for seed in range(4):
        sharp = scene(seed, 360, 200)
        frame = cv2.GaussianBlur(cv2.resize(sharp, (640, 360)), (0, 0), 25)
        rng = np.random.default_rng(seed)
        detail = np.clip(sharp + 12 * rng.standard_normal(sharp.shape), 0, 255).astype(np.uint8)
        frame[:, 220:420] = detail
        frames.append(frame)
    assert near(found(frames), Bars(left=220, right=220), 3)


def test_a_dark_clip_has_the_bars_of_its_source() -> None:
    usual = Bars(top=45, bottom=45)
    title = np.full((360, 640), 16, np.uint8)
    cv2.putText(title, "the end", (240, 190), cv2.FONT_HERSHEY_SIMPLEX, 1.0, 235, 2)
    assert found([title] * 3) == Bars()
    assert found([title] * 3, usual) == usual
    assert found([scene(s) for s in range(3)], usual) == Bars()


def test_sides_and_sizes_follow_the_display() -> None:
    stored = Bars(top=10, bottom=20, left=30, right=40)
    assert displayed(stored, 360, 640, 360, 640, 0) == stored
    assert displayed(stored, 360, 640, 640, 360, 90) == Bars(top=30, bottom=40, left=20, right=10)
    assert displayed(stored, 360, 640, 360, 640, 180) == Bars(top=20, bottom=10, left=40, right=30)
    assert displayed(stored, 360, 640, 640, 360, 270) == Bars(top=40, bottom=30, left=10, right=20)
    assert displayed(stored, 480, 720, 480, 960, 0) == Bars(top=10, bottom=20, left=40, right=53)


def test_the_turn_is_that_of_the_picture() -> None:
    bars = Bars(top=40, bottom=40, left=0, right=0)
    frames = [framed(scene(s), bars, 16) for s in range(3)]
    turned = [np.ascontiguousarray(np.rot90(f, k=-1)) for f in frames]
    assert near(displayed(found(frames), 360, 640, 640, 360, 90), found(turned))


def test_share_of_the_area() -> None:
    assert border_frac(Bars(), 360, 640) == 0.0
    assert border_frac(Bars(top=90, bottom=90), 360, 640) == pytest.approx(0.5)
