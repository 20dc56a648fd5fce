"""Bars around the picture: letterbox, pillarbox, grey, white or coloured bars, and blurred copies of the picture.

As in Movie Gen (appendix on pre-training data): a first-order derivative finds lines where most of a row or column
steps at once; a scan line from the edge inwards locates the border. A single frame may be dark where the border is, or
have a straight edge of its own, so `agree` decides over all sampled frames of a clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from filters.planes import Plane

LINES = 100
"""Pixels looked at across a row or column, at least: more say nothing new."""
SCAN_LINES = 32
SOLID_LEVELS = 12
"""A row is solid while at most 1 in 50 of its pixels is further than this from the colour of the edge."""
STEP_LEVELS = 10
"""A step in luma that counts as part of a border line."""
LINE = 0.4
"""Least share of a line's pixels that step for the line to be a border."""
LONE_LINE = 0.75
"""The same for a bar without a partner on the other side."""
LONE_FRAC = 0.03
"""Least width of such a bar, as a share of the side."""
SLOPE_LINES = 16
"""So far inside a border the picture is as far from the bar's colour as beside it; a vignette is farther."""
MOSTLY = 0.75
"""Least share of a bar's area that is of its colour, where there is writing in it."""
SOFT = 0.35
"""Blurred pillars have at most this share of the detail of the picture between them."""
LARGEST = 0.45
"""Largest bar, as a share of the side."""


class Bars(NamedTuple):
    """Widths of bars in pixels."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


@dataclass(frozen=True)
class Sample:
    """What one frame says: where the solid edge ends on each side, and how much of the line there steps (0 to 1).

    `solid` is as large as the frame's side where the frame is one flat field: then it says nothing. `blurred` holds
    bars of blurred picture, all 0 where none were seen.
    """

    solid: Bars
    line: tuple[float, float, float, float]
    blurred: Bars


def look(luma: Plane) -> Sample:
    """Examine one full-resolution luma plane (stored orientation)."""
    height, width = luma.shape
    left, right = _opposite(_across(luma.T, 0, height))
    # Beside pillars no row has a step: rows are looked at between them, and columns then between the bars above and below.
    top, bottom = _opposite(_across(luma, _clear(left), width - _clear(right)))
    if _clear(top) or _clear(bottom):
        left, right = _opposite(_across(luma.T, _clear(top), height - _clear(bottom)))
    sides = (top, bottom, left, right)
    blurred = Bars()
    if not (_clear(top) and _clear(bottom)) and not (_clear(left) and _clear(right)):
        blurred = Bars(*_blurred(_across(luma, 0, width)), *_blurred(_across(luma.T, 0, height)))
    return Sample(Bars(*(s.width for s in sides)), (top.line, bottom.line, left.line, right.line), blurred)


class _Edge(NamedTuple):
    """A side's solid edge: its colour, how many lines are of it, and the share of pixels that step there."""

    colour: int
    width: int
    line: float


def _clear(edge: _Edge) -> int:
    """The width of a bar with a border to be seen, else 0."""
    return edge.width if edge.width >= 2 and edge.line >= LINE else 0


def _across(luma: Plane, low: int, high: int) -> Plane:
    """Every row, about `LINES` of its pixels between `low` and `high`; of all where hardly any are between."""
    if high - low < luma.shape[1] // 10:
        low, high = 0, luma.shape[1]
    return np.ascontiguousarray(luma[:, low : high : max(1, (high - low) // LINES)])


def _opposite(lines: Plane) -> tuple[_Edge, _Edge]:
    """The first and the last lines' edges. Writing in one of two bars does not hide it: its partner says where it ends."""
    near, far = _scan(lines), _scan(lines[::-1])
    return _partner(lines, near, far), _partner(lines[::-1], far, near)


def _partner(lines: Plane, edge: _Edge, other: _Edge) -> _Edge:
    """The edge, or where the picture ends in the other one's distance and most pixels before are of its colour, that bar."""
    width = _clear(other)
    if not width or _clear(edge) or edge.width >= width - 2 or width >= len(lines) // 2:
        return edge
    same = _distance(lines[:width], other.colour) <= SOLID_LEVELS
    line = _line(lines, width, other.colour)
    return _Edge(other.colour, width, line) if same.mean() >= MOSTLY and line >= LINE else edge


def _scan(lines: Plane) -> _Edge:
    """Scan lines from the edge inwards as far as they are of the edge's colour."""
    colour = int(np.median(lines[:2]))
    end = len(lines)
    for start in range(0, len(lines), SCAN_LINES):
        off = _distance(lines[start : start + SCAN_LINES], colour) > SOLID_LEVELS
        busy = np.count_nonzero(off, axis=1) > lines.shape[1] // 50
        if busy.any():
            end = start + int(np.argmax(busy))
            break
    return _Edge(colour, end, _line(lines, end, colour))


def _line(lines: Plane, end: int, colour: int) -> float:
    """Share of pixels that step where a bar ends: at once, and not by a slope that goes on."""
    if end == len(lines):
        return 0.0
    at = [min(end + further, len(lines) - 1) for further in (2, SLOPE_LINES)]
    step, later = _distance(lines[at], colour).astype(np.int16)
    return float(np.mean((step > STEP_LEVELS) & (later <= 2 * step)))


def _distance(a: Plane, b: Plane | int) -> Plane:
    """Absolute difference of 8-bit pictures, or of a picture and a level."""
    import cv2

    other = np.full_like(a, b) if isinstance(b, int) else b
    return cv2.absdiff(a, other).astype(np.uint8, copy=False)


def _blurred(lines: Plane) -> tuple[int, int]:
    """Widths of two bars of blurred picture: a pair of straight lines about the middle, much less detail outside."""
    count = len(lines)
    step = np.count_nonzero(_distance(lines[1:], lines[:-1]) > STEP_LEVELS, axis=1) / lines.shape[1]
    largest = int(count * LARGEST)
    near, far = step[:largest], step[::-1][:largest]
    # The two may be off by a pixel or two: take the best of the neighbours.
    far = np.maximum.reduce([np.roll(far, s) for s in (-2, -1, 0, 1, 2)])
    pair = np.minimum(near, far)
    pair[: max(3, count // 30)] = 0
    best = int(np.argmax(pair)) if len(pair) else 0
    if not best or pair[best] < LINE:
        return 0, 0
    start = max(0, best - 2)
    low, high = best + 1, start + int(np.argmax(step[::-1][start : best + 3])) + 1
    return (low, high) if _softer_outside(lines, low, high) else (0, 0)


def _softer_outside(lines: Plane, low: int, high: int) -> bool:
    """Whether there is much less detail in the first `low` and the last `high` lines than between them."""
    detail = _roughness(lines)
    margin = 4
    outside = np.concatenate([detail[: low - margin], detail[len(lines) - high + margin :]])
    inside = detail[low + margin : len(lines) - high - margin]
    return bool(len(outside) and len(inside) and inside.mean() >= 1.0 and outside.mean() <= SOFT * inside.mean())


def _roughness(lines: Plane) -> NDArray[np.float32]:
    """Mean second difference along each line: even steep slopes have none, so that it tells what is out of focus."""
    wide = lines.astype(np.int16)
    out: NDArray[np.float32] = np.abs(wide[:, 2:] - 2 * wide[:, 1:-1] + wide[:, :-2]).mean(axis=1, dtype=np.float32)
    return out


def of_one(sample: Sample) -> Bars:
    """The bars that one frame alone shows, in stored pixels."""
    clear = [w if w >= 2 and line >= LINE else 0 for w, line in zip(sample.solid, sample.line, strict=True)]
    return Bars(*clear) if any(clear) else sample.blurred


def agree(samples: Sequence[Sample], height: int, width: int, usual: Bars | None = None) -> Bars:
    """The bars that the frames of a clip agree on, in stored pixels; none where no frame shows a border.

    `usual` is what the whole source agrees on: a clip too dark to show the border has it there too, unless a frame has
    picture in the place.
    """
    found = Bars(*_pair(samples, 0, height), *_pair(samples, 2, width))
    if usual is not None:
        known = [_usual(samples, i, found[i], usual[i]) for i in range(4)]
        found = Bars(*known)
    blurred = Bars(*_blurred_pair(samples, 0), *_blurred_pair(samples, 2))
    # Of two blurred pillars one may be even enough to pass for solid.
    lone = any(bool(found[i]) != bool(found[i + 1]) and blurred[i] for i in (0, 2))
    return found if any(found) and not lone else blurred


def _usual(samples: Sequence[Sample], side: int, found: int, usual: int) -> int:
    """A side's bar as in the whole source, where the clip itself shows no border and no picture in its place."""
    if found or not usual or any(s.blurred[side] for s in samples):
        return found
    return usual if min(s.solid[side] for s in samples) >= usual - 2 else 0


def _pair(samples: Sequence[Sample], first: int, size: int) -> tuple[int, int]:
    """Two opposite solid bars; one alone must be clearer and larger, for straight edges at one side are common."""
    (near, near_line), (far, far_line) = (_side(samples, side, size) for side in (first, first + 1))
    if near and not far and (near_line < LONE_LINE or near < LONE_FRAC * size):
        near = 0
    if far and not near and (far_line < LONE_LINE or far < LONE_FRAC * size):
        far = 0
    return near, far


def _side(samples: Sequence[Sample], side: int, size: int) -> tuple[int, float]:
    """Width of one side's solid bar and the strongest line seen there; (0, 0) without one.

    A dark picture makes the solid edge seem wider, never narrower; writing in the bar makes it narrower in some frames.
    """
    telling = [s for s in samples if s.solid[side] < size]
    clear = [s.solid[side] for s in telling if s.line[side] >= LINE and 2 <= s.solid[side] <= size * LARGEST]
    if not clear:
        return 0, 0.0
    width = max(sorted(set(clear)), key=lambda w: sum(abs(w - c) <= 1 for c in clear))
    narrower = sum(s.solid[side] < width - 2 for s in telling)
    support = sum(abs(c - width) <= 2 for c in clear)
    if narrower > 0.3 * len(telling) or support < max(1, 0.2 * len(telling)):
        return 0, 0.0
    return width, float(np.median([s.line[side] for s in telling if abs(s.solid[side] - width) <= 2]))


def _blurred_pair(samples: Sequence[Sample], first: int) -> tuple[int, int]:
    pairs = [(s.blurred[first], s.blurred[first + 1]) for s in samples]
    shown = [p for p in pairs if p[0]]
    if not shown:
        return 0, 0
    best = max(sorted(set(shown)), key=lambda p: sum(abs(p[0] - q[0]) <= 2 for q in shown))
    support = sum(abs(best[0] - q[0]) <= 2 for q in shown)
    return best if support >= max(1, 0.6 * len(pairs)) else (0, 0)


def displayed(bars: Bars, height: int, width: int, shown_height: int, shown_width: int, rotation: int) -> Bars:
    """Stored pixels to displayed ones: turned by `rotation` (degrees clockwise that make the picture upright), scaled.

    `height`, `width` are those of the stored frame, `shown_*` of the displayed one (turned, pixel aspect applied).
    """
    sides = [bars.top, bars.right, bars.bottom, bars.left]
    quarter = round(rotation / 90) % 4
    turned = sides[-quarter:] + sides[:-quarter] if quarter else sides
    if quarter % 2:
        height, width = width, height
    down, across = shown_height / height, shown_width / width
    top, right, bottom, left = turned
    return Bars(round(top * down), round(bottom * down), round(left * across), round(right * across))


def border_frac(bars: Bars, height: int, width: int) -> float:
    """Share of the picture's area that is bars."""
    return 1 - (height - bars.top - bars.bottom) * (width - bars.left - bars.right) / (height * width)


def picture(bars: Bars, height: int, width: int) -> tuple[float, float, float, float]:
    """What bars leave of a frame: top, bottom, left and right edge, as shares of its height and width."""
    return bars.top / height, 1 - bars.bottom / height, bars.left / width, 1 - bars.right / width
