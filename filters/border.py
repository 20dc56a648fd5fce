"""Bars around the picture: letterbox, pillarbox, grey, white or coloured bars, and blurred copies of the picture.

As in Movie Gen (appendix on pre-training data): a first-order derivative finds lines where most of a row or column
steps at once; a scan line from the edge inwards locates the border. A single frame may be dark where the border is, or
have a straight edge of its own, so `agree` decides over all sampled frames of a clip.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

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
    rows = np.ascontiguousarray(luma[:, :: max(1, luma.shape[1] // LINES)])
    columns = np.ascontiguousarray(luma[:: max(1, luma.shape[0] // LINES)].T)
    sides = [_scan(rows), _scan(rows[::-1]), _scan(columns), _scan(columns[::-1])]
    solid = Bars(*(s[0] for s in sides))
    blurred = Bars()
    if not any(s[0] >= 2 and s[1] >= LINE for s in sides):
        blurred = Bars(*_blurred(rows), *_blurred(columns))
    return Sample(solid, (sides[0][1], sides[1][1], sides[2][1], sides[3][1]), blurred)


def _scan(lines: Plane) -> tuple[int, float]:
    """Scan lines from the edge inwards: how many are of the edge's colour, and the share of pixels that step there."""
    colour = int(np.median(lines[:2]))
    end = len(lines)
    for start in range(0, len(lines), SCAN_LINES):
        off = _distance(lines[start : start + SCAN_LINES], colour) > SOLID_LEVELS
        busy = np.count_nonzero(off, axis=1) > lines.shape[1] // 50
        if busy.any():
            end = start + int(np.argmax(busy))
            break
    if end == len(lines):
        return end, 0.0
    at = min(end + 2, len(lines) - 1)
    inner = _distance(lines[at : at + 1], colour)
    return end, float(np.mean(inner > STEP_LEVELS))


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
    detail = _distance(lines[:, 1:], lines[:, :-1]).mean(axis=1)
    margin = 4
    outside = np.concatenate([detail[: low - margin], detail[len(lines) - high + margin :]])
    inside = detail[low + margin : len(lines) - high - margin]
    return bool(len(outside) and len(inside) and inside.mean() >= 1.0 and outside.mean() <= SOFT * inside.mean())


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
    if any(found):
        return found
    return Bars(*_blurred_pair(samples, 0), *_blurred_pair(samples, 2))


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
