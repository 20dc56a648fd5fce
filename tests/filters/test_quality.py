"""Quality measures move the right way on pictures made worse on purpose, and not with size or bars."""

import cv2
import numpy as np
import pytest

from filters.planes import factor
from filters.planes import small as shrink
from filters.quality import Quality, blockiness, quality, sharpness
from tests.filters.synthetic import texture


def measured(rgb: np.ndarray, bars: tuple[int, int, int, int] = (0, 0, 0, 0), full_range: bool = True) -> Quality:
    y, v, u = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb))
    return quality(y, shrink(y, u, v, factor(y.shape[1], y.shape[0])), full_range, bars)


def detailed(height: int = 480, width: int = 640) -> np.ndarray:
    rng = np.random.default_rng(0)
    fine = rng.uniform(-40, 40, (height // 3, width // 3, 3)).astype(np.float32)
    return np.clip(texture(1, height, width) + cv2.resize(fine, (width, height)), 0, 255).astype(np.uint8)


def test_blur_costs_sharpness() -> None:
    sharp = detailed()
    values = [measured(cv2.GaussianBlur(sharp, (0, 0), s) if s else sharp).sharpness for s in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[3] + 3


def test_sharpness_does_not_grow_with_the_number_of_pixels() -> None:
    y = detailed()[..., 1]
    larger = cv2.resize(y, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    assert sharpness(larger, 960) == pytest.approx(sharpness(y, 480), rel=0.02)


@pytest.mark.parametrize(("gain", "offset"), [(0.1, 0), (3.0, 60)])
def test_bad_exposure_is_lower(gain: float, offset: float) -> None:
    good = detailed()
    bad = np.clip(good * gain + offset, 0, 255).astype(np.uint8)
    assert measured(good).exposure > 0.9
    assert measured(bad).exposure < 0.75


def test_exposure_ends_at_zero_for_black_and_white() -> None:
    for level in (0, 255):
        assert measured(np.full((480, 640, 3), level, np.uint8)).exposure == 0.0


def test_grey_has_no_colour_and_saturated_has_more() -> None:
    picture = detailed()
    grey = np.repeat(picture[..., 1:2], 3, axis=2)
    washed = (grey * 0.6 + picture * 0.4).astype(np.uint8)
    assert measured(grey).colorfulness < 2
    assert measured(grey).colorfulness < measured(washed).colorfulness < measured(picture).colorfulness


def test_strong_jpeg_compression_is_blocky() -> None:
    picture = detailed()
    _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 6])
    coarse = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    assert measured(picture).blockiness < 0.1
    assert measured(coarse).blockiness > 0.3


def test_bars_do_not_count() -> None:
    picture = detailed(480, 640)
    framed = np.full((640, 640, 3), 0, np.uint8)
    framed[80:560] = picture
    bare, barred = measured(picture), measured(framed, (80, 80, 0, 0))
    assert barred.sharpness == pytest.approx(bare.sharpness, abs=0.1)
    assert barred.exposure == pytest.approx(bare.exposure, abs=0.02)
    assert barred.colorfulness == pytest.approx(bare.colorfulness, rel=0.05)


def test_tiny_pictures_are_measured_too() -> None:
    tiny = measured(texture(1, 16, 16))
    assert all(np.isfinite([tiny.sharpness, tiny.exposure, tiny.colorfulness, tiny.blockiness]))
    assert blockiness(np.zeros((4, 4), np.uint8)) == 0.0
