"""The weightless descriptor: what a copy may suffer, and what another picture looks like."""

import cv2
import numpy as np
import pytest

from curation.layout import WIDTH, describe
from curation.picture import Picture
from tests.media_samples import texture


def likeness(a: Picture, b: Picture) -> float:
    first, second = describe(a), describe(b)
    assert first is not None and second is not None
    return float(first @ second)


def scene(seed: int) -> Picture:
    return texture(320, 180, seed, cell=24)


def test_it_is_a_unit_vector_and_the_same_each_time() -> None:
    vector = describe(scene(1))
    assert vector is not None and vector.shape == (WIDTH,) and vector.dtype == np.float32
    assert float(np.linalg.norm(vector)) == pytest.approx(1, abs=1e-6)
    assert np.array_equal(vector, describe(scene(1).copy()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name,copy",
    [
        ("mirrored", lambda p: p[:, ::-1].copy()),
        ("half the size", lambda p: cv2.resize(p, (160, 90), interpolation=cv2.INTER_AREA)),
        ("another shape", lambda p: cv2.resize(p, (240, 240), interpolation=cv2.INTER_AREA)),
        ("darker", lambda p: (p * 0.6).astype(np.uint8)),
        ("less contrast", lambda p: (p * 0.5 + 60).astype(np.uint8)),
        ("coarse JPEG", lambda p: cv2.imdecode(cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 10])[1], cv2.IMREAD_COLOR)),
        ("a mark in a corner", lambda p: cv2.putText(p.copy(), "WATER", (10, 20), 0, 0.6, (255, 255, 255), 2)),
    ],
)
def test_a_copy_is_alike(name: str, copy: object) -> None:
    assert min(likeness(scene(n), copy(scene(n))) for n in range(12)) > 0.9, name  # type: ignore[operator]


def test_another_picture_is_not() -> None:
    alike = [likeness(scene(a), scene(b)) for a in range(12) for b in range(a)]
    assert max(alike) < 0.75


@pytest.mark.parametrize("level", [0, 128, 255])
def test_one_colour_has_no_layout(level: int) -> None:
    assert describe(np.full((90, 160, 3), level, np.uint8)) is None


@pytest.mark.parametrize("height,width", [(1, 1), (1, 500), (500, 1), (63, 65)])
def test_any_size_will_do(height: int, width: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    vector = describe(noise)
    assert vector is None or (vector.shape == (WIDTH,) and np.isfinite(vector).all())
