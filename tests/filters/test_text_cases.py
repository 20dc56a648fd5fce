"""Overlaid lines and signs of the scene, laid over a made-up place that a camera passes over."""

import random

import pytest

from filters.text import Reader, TextConfig, score
from tests.filters.text_cases import CAMERAS, SEEN, STYLES, Line, jpegs, overlay, sign, world

MOVING = [name for name in CAMERAS if name != "tripod"]
"""Where neither camera nor text moves, only typography can tell an overlay from a sign."""


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(TextConfig())


@pytest.mark.parametrize("height", [0.04, 0.06, 0.10])
@pytest.mark.parametrize("style", STYLES)
def test_overlay_of_readable_size_is_found(style: str, height: float, reader: Reader) -> None:
    line = Line("Watch until the end", height, style=style)
    found = score(jpegs(overlay(CAMERAS["pan"].views(world(1)), line)), reader, TextConfig().side_px)
    assert found["text_score"] >= SEEN


@pytest.mark.parametrize("camera", MOVING)
def test_sign_of_the_scene_is_no_overlay(camera: str, reader: Reader) -> None:
    place = sign(world(2), "BAKERY", 0.08, random.Random(1))
    found = score(jpegs(CAMERAS[camera].views(place)), reader, TextConfig().side_px)
    assert found["text_scene_score"] >= SEEN, "the sign itself must be read, or the test could not fail"
    assert found["text_score"] < SEEN
