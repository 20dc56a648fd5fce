"""Each quality measure answers to its own fault of the picture, and hardly to the others."""

import os
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from filters.planes import Plane, factor, planes
from filters.planes import small as shrink
from filters.quality import Quality, blockiness, quality, sharpness
from tests.filters.synthetic import texture

Yuv = tuple[Plane, Plane, Plane]

VIDEOS = Path(os.environ.get("REELSET_VIDEOS") or Path(__file__).parents[3] / "shared/videos")
SPREAD = {"sharpness": 0.07, "exposure": 0.066, "colorfulness": 32.0, "blockiness": 0.1}
"""Interquartile ranges over 63 labelled videos; that of blockiness is 0 (nearly all are H.264), so a just visible one."""
ALONE = 0.25
"""A column is left alone while its median change is below this share of its spread."""


def of_yuv(picture: Yuv, full_range: bool = True, bars: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Quality:
    y, u, v = picture
    return quality(y, shrink(y, u, v, factor(y.shape[1], y.shape[0])), full_range, bars)


def yuv(rgb: np.ndarray) -> Yuv:
    y, v, u = cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb))
    return y, u, v


def measured(rgb: np.ndarray, bars: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Quality:
    return of_yuv(yuv(rgb), True, bars)


def natural(seed: int, height: int = 360, width: int = 640) -> Yuv:
    """Pictures like photographs: noise whose amplitude falls as one over frequency, and things with edges before it."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    spectra = rng.normal(size=(3, *frequency.shape)) + 1j * rng.normal(size=(3, *frequency.shape))
    fields = np.fft.irfft2(spectra / frequency, s=(height, width))
    out = 120 + np.array([34, 34, 34])[:, None, None] * fields / fields.std(axis=(1, 2), keepdims=True)
    out = np.ascontiguousarray((0.7 * out[:1] + 0.3 * out).transpose(1, 2, 0).astype(np.float32))
    for _ in range(12):
        corners = rng.uniform(0, 1, (4, 2)) * (width, height)
        colour = rng.uniform(50, 200) + rng.uniform(-35, 35, 3)
        cv2.fillConvexPoly(out, cv2.convexHull(corners.astype(np.int32)), colour.tolist(), cv2.LINE_AA)
    out = cv2.GaussianBlur(out, (0, 0), 0.7)  # a lens
    return yuv(np.clip(out, 12, 240).astype(np.uint8))


def real() -> list[Yuv]:
    """A frame of every third of the labelled videos, at most 720 pixels high."""
    out = []
    for path in sorted(VIDEOS.glob("*.mp4"))[::3]:
        if not path.name.startswith(("derived", "mp4parse", "moviepy")):
            with av.open(str(path)) as container:
                frame = next(f for i, f in enumerate(container.decode(video=0)) if i == 12)
            by = max(1, frame.height // 720)
            shape = {"width": frame.width // by // 2 * 2, "height": frame.height // by // 2 * 2}
            out.append(planes(frame.reformat(format="yuv420p", **shape)))
    return out


def each(picture: Yuv, change: Callable[[np.ndarray, int], np.ndarray]) -> Yuv:
    """The planes changed one by one; `change` is told how many luma pixels one of the plane's spans."""
    y, u, v = (
        np.clip(np.rint(change(p.astype(np.float32), picture[0].shape[1] // p.shape[1])), 0, 255).astype(np.uint8)
        for p in picture
    )
    return y, u, v


def blurred(picture: Yuv, deviation: float) -> Yuv:
    """By a deviation in pixels at 480 lines."""
    scale = min(picture[0].shape) / 480
    return each(picture, lambda p, by: cv2.GaussianBlur(p, (0, 0), max(0.3, deviation * scale / by)))


def noisy(picture: Yuv, levels: float) -> Yuv:
    rng = np.random.default_rng(7)
    return each(picture, lambda p, by: p + rng.normal(0, levels / by, p.shape))


def compressed(picture: Yuv, jpeg: float) -> Yuv:
    def coded(plane: np.ndarray, _: int) -> np.ndarray:
        return cv2.imdecode(
            cv2.imencode(".jpg", plane.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, int(jpeg)])[1], cv2.IMREAD_GRAYSCALE
        )

    return each(picture, coded)


def lit(picture: Yuv, gain: float) -> Yuv:
    """More or less light: luma and colour differences scale alike."""
    y, u, v = (p.astype(np.float32) for p in picture)
    out = gain * y, 128 + gain * (u - 128), 128 + gain * (v - 128)
    return tuple(np.clip(np.rint(p), 0, 255).astype(np.uint8) for p in out)  # type: ignore[return-value]


FAULTS: dict[str, tuple[Callable[[Yuv, float], Yuv], tuple[float, ...], str | None, int]] = {
    # fault: how to make it, mild to strong, the column that tells of it and the way it goes
    "blur": (blurred, (0.7, 1, 1.5, 2.5, 4), "sharpness", -1),
    "noise": (noisy, (2, 4, 8, 12, 16), None, 0),
    "compression": (compressed, (60, 40, 25, 15, 8), "blockiness", 1),
    "too little light": (lit, (0.6, 0.45, 0.35, 0.25), "exposure", -1),
    "too much light": (lit, (1.5, 1.9, 2.4, 3), "exposure", -1),
}


def changes(pictures: Sequence[Yuv], fault: str) -> dict[str, np.ndarray]:
    """Of every column, (pictures, strengths): the change from the picture as it was, in spreads."""
    make, strengths, _, _ = FAULTS[fault]
    spreads = list(SPREAD.values())
    before = np.array([astuple(of_yuv(p)) for p in pictures])
    after = np.array([[astuple(of_yuv(make(p, s))) for s in strengths] for p in pictures])
    return dict(zip(SPREAD, np.moveaxis((after - before[:, None]) / spreads, -1, 0), strict=True))


def check(pictures: Sequence[Yuv], fault: str) -> None:
    _, _, own, way = FAULTS[fault]
    found = changes(pictures, fault)
    if own is not None:
        moves = way * np.concatenate([np.zeros((len(pictures), 1)), found[own]], axis=1)
        # Six spreads are blocks that nobody overlooks: from there on the measure may stay.
        assert (np.diff(np.minimum(moves, 6), axis=1) >= -0.1).all(), f"{own} is not monotone under {fault}"
        assert np.median(moves[:, -1]) > 2, f"{own} hardly answers to {fault}"
    others = {n: np.abs(np.median(v, axis=0)).max() for n, v in found.items() if n != own}
    allowed = dict.fromkeys(others, ALONE)
    if fault == "too much light":
        # What is clipped has harder edges and less colour than the scene: that is in the picture.
        allowed |= {"sharpness": 1.0, "colorfulness": 0.5}
    assert all(others[n] < allowed[n] for n in others), f"{fault} moves {others}"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_moves_its_own_column_only(fault: str) -> None:
    check([natural(seed) for seed in range(6)], fault)


@pytest.fixture(scope="module")
def frames() -> list[Yuv]:
    if not VIDEOS.is_dir():
        pytest.skip(f"no labelled videos at {VIDEOS}; set REELSET_VIDEOS")
    # Light from the middle, nothing clipped: from there more and less of it are faults.
    middling = [lit(p, 118 / p[0].mean()) for p in real()]
    return [p for p in middling if of_yuv(p).exposure > 0.99]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_moves_its_own_column_only_in_real_frames(fault: str, frames: list[Yuv]) -> None:
    check(frames, fault)


def test_a_step_is_as_sharp_as_documented() -> None:
    for deviation, expected in ((0, 0.37), (1, 0.30), (2, 0.19), (4, 0.08)):
        # Slanted: at one pixel of four, an upright edge is met at one place only.
        step = 60 + 140 * np.clip(np.arange(640)[None] - 300 - np.arange(480)[:, None] / 10, 0, 1)
        if deviation:
            step = cv2.GaussianBlur(step, (0, 0), deviation)
        assert sharpness(np.rint(step).astype(np.uint8), 480) == pytest.approx(expected, abs=0.025)


def test_sharpness_does_not_grow_with_the_number_of_pixels() -> None:
    y = natural(0, 480, 640)[0]
    larger = cv2.resize(y, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    assert sharpness(larger, 960) == pytest.approx(sharpness(y, 480), rel=0.02)


def test_nothing_to_see_is_not_sharp() -> None:
    rng = np.random.default_rng(0)
    assert sharpness(np.full((480, 640), 90, np.uint8), 480) == 0.0
    assert sharpness((90 + rng.normal(0, 3, (480, 640))).astype(np.uint8), 480) == 0.0


def test_exposure_ends_at_zero_for_black_and_white() -> None:
    for level in (0, 255):
        assert measured(np.full((480, 640, 3), level, np.uint8)).exposure == 0.0


def test_levels_are_those_of_the_range() -> None:
    y, u, v = natural(3)
    limited = (y * (219 / 255) + 16, 128 + (u.astype(float) - 128) * (224 / 255), 128 + (v.astype(float) - 128) * (224 / 255))
    full, told = of_yuv((y, u, v)), of_yuv(tuple(p.astype(np.uint8) for p in limited), full_range=False)  # type: ignore[arg-type]
    assert told.exposure == pytest.approx(full.exposure, abs=0.01)
    assert told.colorfulness == pytest.approx(full.colorfulness, rel=0.04)


def test_colorfulness_is_that_of_hasler_and_suesstrunk() -> None:
    rgb = np.clip(texture(1, 432, 768).astype(np.float32) - 1, 0, 255)
    rgb *= 128 / cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).mean()
    rgb = cv2.GaussianBlur(np.clip(rgb, 0, 255), (0, 0), 12).astype(np.uint8)
    r, g, b = (rgb[..., i].astype(float) for i in range(3))
    rg, yb = r - g, (r + g) / 2 - b
    published = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    assert measured(rgb).colorfulness == pytest.approx(published, rel=0.06)


def test_grey_has_no_colour_and_saturated_has_more() -> None:
    picture = texture(1, 480, 640)
    grey = np.repeat(picture[..., 1:2], 3, axis=2)
    washed = (grey * 0.6 + picture * 0.4).astype(np.uint8)
    assert measured(grey).colorfulness < 2
    assert measured(grey).colorfulness < measured(washed).colorfulness < measured(picture).colorfulness


@pytest.mark.parametrize("offset", [(0, 0, 0, 0), (0, 0, 13, 0), (45, 45, 0, 0), (3, 6, 5, 1)])
def test_blocks_are_found_beside_bars_of_any_width(offset: tuple[int, int, int, int]) -> None:
    y, u, v = natural(2)
    top, bottom, left, right = offset
    y[:top], y[len(y) - bottom :], y[:, :left], y[:, y.shape[1] - right :] = 0, 0, 0, 0
    assert blockiness(y, offset) < 0.1
    assert blockiness(compressed((y, u, v), 15)[0], offset) > 0.5


def test_steps_off_the_grid_are_no_blocks() -> None:
    rng = np.random.default_rng(0)
    for size in (5, 6, 7, 10, 12):
        mosaic = np.kron(rng.integers(60, 180, (480 // size, 640 // size)), np.ones((size, size))).astype(np.uint8)
        assert blockiness(mosaic) < 0.35


def test_bars_do_not_count() -> None:
    picture = texture(1, 480, 640)
    framed = np.full((640, 640, 3), 0, np.uint8)
    framed[80:560] = picture
    bare, barred = measured(picture), measured(framed, (80, 80, 0, 0))
    assert barred.sharpness == pytest.approx(bare.sharpness, abs=0.02)
    assert barred.exposure == pytest.approx(bare.exposure, abs=0.02)
    assert barred.colorfulness == pytest.approx(bare.colorfulness, rel=0.05)


def test_tiny_pictures_are_measured_too() -> None:
    tiny = measured(texture(1, 16, 16))
    assert all(np.isfinite([tiny.sharpness, tiny.exposure, tiny.colorfulness, tiny.blockiness]))
    assert blockiness(np.zeros((4, 4), np.uint8)) == 0.0
