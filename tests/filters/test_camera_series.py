"""The camera in numbers: planted motions come out of the flow as displayed, whatever is stored, moves or frames the picture."""

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from curation.tables import CAMERA_PAIRS
from filters.camera_series import CameraSeries, reduce
from filters.motion import Flow

FPS = 12.0


def _ground() -> NDArray[np.uint8]:
    """A texture (400, 600) with detail at three sizes, the finest of some pixels."""
    rng = np.random.default_rng(5)
    out = np.zeros((400, 600), np.float32)
    for cells, weight in ((6, 1.0), (16, 0.8), (60, 0.6)):
        grid = rng.uniform(-1, 1, (cells, cells * 3 // 2)).astype(np.float32)
        out += weight * cv2.resize(grid, (600, 400), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 70 * out, 16, 240).astype(np.uint8)


GREY = _ground()


def film(count: int, across: float = 0.0, down: float = 0.0, grow: float = 1.0, roll: float = 0.0) -> list[NDArray[np.uint8]]:
    """Pictures (72, 128) whose content moves so many pixels a frame, grows and turns (degrees, clockwise) about the middle."""
    out = []
    for i in range(count):
        matrix = cv2.getRotationMatrix2D((300, 200), -roll * i, grow**i)
        matrix[:, 2] += (64 - 300 + across * i, 36 - 200 + down * i)
        out.append(cv2.warpAffine(GREY, matrix, (128, 72), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT))
    return out


def columns(pictures: list[NDArray[np.uint8]], rotation: int = 0, aspect: float = 1.0) -> dict[str, Any]:
    height, width = pictures[0].shape
    flow, series = Flow(FPS, width, height), CameraSeries(width, height, 1, rotation, aspect)
    for i, picture in enumerate(pictures):
        flow.push(np.ascontiguousarray(picture), 1)
        if (blocks := flow.camera_pair()) is not None:
            series.push(i, flow.span / FPS, blocks)
    return series.finish()


def middle(found: dict[str, Any], name: str) -> float:
    return float(np.median(found[name]))


def test_shift_growth_and_roll_are_found_in_short_sides_a_second() -> None:
    found = columns(film(20, across=-1.5, down=0.75))
    assert middle(found, "camera_u") == pytest.approx(-1.5 * FPS / 72, rel=0.05)
    assert middle(found, "camera_v") == pytest.approx(0.75 * FPS / 72, rel=0.05)
    grown = columns(film(20, grow=1.01))
    assert middle(grown, "camera_u_x") == pytest.approx(np.log(1.01) * FPS, rel=0.15)
    assert middle(grown, "camera_v_y") == pytest.approx(np.log(1.01) * FPS, rel=0.15)
    turned = columns(film(20, roll=0.5))
    assert middle(turned, "camera_v_x") == pytest.approx(np.radians(0.5) * FPS, rel=0.15)
    assert middle(turned, "camera_u_y") == pytest.approx(-np.radians(0.5) * FPS, rel=0.15)
    assert list(found["camera_frame"]) == list(range(3, 20, 3))
    assert set(found) == {"camera_frame", *CAMERA_PAIRS}


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_source_is_measured_as_displayed(rotation: int) -> None:
    upright = film(16, across=-1.2, down=0.4, grow=1.006)
    stored = [np.rot90(p, k=rotation // 90) for p in upright]
    plain, turned = columns(upright), columns(stored, rotation)
    for name in ("camera_u", "camera_v", "camera_u_x", "camera_v_y", "camera_u_y"):
        assert middle(turned, name) == pytest.approx(middle(plain, name), abs=0.035), name


def test_pixels_that_are_not_square_count_as_wide_as_they_are() -> None:
    found = columns(film(16, across=-1.2), aspect=4 / 3)
    assert middle(found, "camera_u") == pytest.approx(-1.2 * 4 / 3 * FPS / 72, rel=0.05)


def test_bars_and_a_subject_do_not_hold_the_camera() -> None:
    pictures = [p.copy() for p in film(16, across=-1.5)]
    patch = cv2.resize(np.random.default_rng(3).integers(0, 255, (8, 8)).astype(np.uint8), (24, 24))
    for picture in pictures:
        picture[24:48, 50:74] = patch
    found = columns(pictures)
    assert middle(found, "camera_u") == pytest.approx(-1.5 * FPS / 72, rel=0.5)
    assert 0.03 < middle(found, "camera_still_frac") < 0.3
    barred = [p.copy() for p in film(16, across=-1.5)]
    for picture in barred:
        picture[:10] = picture[-10:] = 16
    framed = columns(barred)
    assert middle(framed, "camera_u") == pytest.approx(-1.5 * FPS / 72, rel=0.5)
    assert middle(framed, "camera_still_frac") < 0.05


def test_without_texture_or_change_all_is_zero_and_finite() -> None:
    flat = columns([np.full((72, 128), 90, np.uint8)] * 6)
    still = columns(film(1) * 6)
    for found in (flat, still):
        assert all(np.isfinite(found[name]).all() for name in CAMERA_PAIRS)
        assert not any(found[f"camera_{name}"].any() for name in ("u", "v", "u_x", "v_y"))
    assert not flat["camera_trusted_frac"].any()
    assert middle(still, "camera_still_frac") == middle(still, "camera_inlier_frac") == 1


def test_no_pairs_make_empty_columns() -> None:
    found = CameraSeries(128, 72, 1, 0, 1.0).finish()
    assert all(len(values) == 0 for values in found.values())


def test_a_pair_is_reduced_alike_alone_and_in_company() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(-0.5, 0.5, (60, 2))
    flow = 0.3 + 0.1 * xy + rng.normal(0, 0.01, (3, 60, 2))
    trusted = rng.random((3, 60)) < 0.8
    error = np.full(3, 0.01)
    together = reduce(xy, flow, trusted, trusted, error)
    alone = np.concatenate([reduce(xy, flow[i : i + 1], trusted[i : i + 1], trusted[i : i + 1], error[:1]) for i in range(3)])
    assert np.allclose(together, alone, atol=1e-9)
