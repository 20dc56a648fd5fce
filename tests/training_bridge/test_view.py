"""Views: what fits, and draws that reach every place and no further."""

import numpy as np
import pytest

from training_bridge.draws import generator
from training_bridge.index import Shape
from training_bridge.view import View, Window

STORED = Shape(128, 192, 336)


def drawn(view: View, stored: Shape = STORED, count: int = 400) -> list[Window]:
    return [view.draw(stored, generator(0, "clip", visit, "view")) for visit in range(count)]


def test_nothing_is_repeated_or_enlarged() -> None:
    view = View(16, 64, 96)
    assert view.shape_of(STORED) == Shape(16, 64, 96) and view.shape_of(Shape(16, 64, 96)) == Shape(16, 64, 96)
    assert view.shape_of(Shape(1, 192, 336)) == Shape(1, 64, 96), "an image has one frame"
    small = (Shape(15, 192, 336), Shape(128, 62, 336), Shape(128, 192, 94))
    assert [view.shape_of(stored) for stored in small] == [None] * 3
    for wrong in ((0, 64, 64), (16, 63, 64), (16, 64, 0)):
        with pytest.raises(ValueError, match="at least one frame and even sides"):
            View(*wrong)


@pytest.mark.parametrize("scale", ["random", "fit", "native"])
def test_windows_are_inside_and_reach_every_edge(scale: str) -> None:
    windows = drawn(View(16, 64, 64, scale))  # type: ignore[arg-type]
    for w in windows:
        assert 0 <= w.start <= 128 - 16 and 0 <= w.x <= 336 - w.across and 0 <= w.y <= 192 - w.down
        assert not (w.x % 2 or w.y % 2 or w.across % 2 or w.down % 2)
        assert abs(w.across - w.down) <= 2, "the view's ratio"
    sides = np.array([w.down for w in windows])
    assert (sides.min(), sides.max()) == {"fit": (192, 192), "native": (64, 64)}.get(scale, (sides.min(), sides.max()))
    if scale == "random":
        assert sides.min() <= 66 and sides.max() >= 188 and 100 < np.median(sides) < 122, "log-uniform between the two"
    starts = np.array([w.start for w in windows])
    assert starts.min() <= 2 and starts.max() >= 110 and 50 < starts.mean() < 62
    free = [(w.x / (336 - w.across), w.y / (192 - w.down) if w.down < 192 else 0) for w in windows]
    assert min(x for x, _ in free) < 0.02 and max(x for x, _ in free) > 0.98


def test_a_sample_of_the_views_own_size_is_shown_whole() -> None:
    assert set(drawn(View(128, 192, 336), count=5)) == {Window.whole(STORED)}
    assert drawn(View(16, 64, 64), Shape(1, 64, 64), count=1) == [Window(0, 1, 0, 0, 64, 64, 64, 64)]
