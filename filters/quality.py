"""Technical quality of a sampled frame: sharpness, exposure, colourfulness, blockiness. Bars are cut off first.

Each column answers to one fault of the picture and hardly to the others: sharpness is a ratio, so neither light nor
contrast moves it, and is taken after smoothing, so noise does not; colourfulness is that of the picture at a middling
exposure; blockiness compares steps on the coding grid with steps beside it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filters.planes import Plane, Small

SHARPNESS_SHORT_SIDE = 480
"""Sharpness is that of the picture at about this short side, so that 480p and 4K can be compared."""
SMOOTH = np.array([1, 4, 6, 4, 1], np.float32) / 16
EDGE_LEVELS = 1.5
"""Least gradient that counts as an edge, in levels a pixel of the halved picture: less is rounding and coding noise."""
SHADOW, HIGHLIGHT = 8, 247
"""Levels (full range) at or beyond which a pixel is clipped."""
MIDDLE = 128.0
"""Mean level (full range) that colourfulness is brought to, by at most `LARGEST_GAIN`: beyond, 8-bit chroma is noise."""
LARGEST_GAIN = 4.0
LINES = 240
"""Rows and columns that blockiness looks at, at least, where there are as many."""
LARGEST_STEP = 16


@dataclass(frozen=True)
class Quality:
    """Measures of one frame; see the functions of this module for units."""

    sharpness: float
    exposure: float
    colorfulness: float
    blockiness: float


def quality(luma: Plane, small: Small, full_range: bool, bars: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Quality:
    """Measure one frame: full-size `luma`, its `small` planes, `bars` (top, bottom, left, right) in luma pixels."""
    top, bottom, left, right = bars
    height, width = luma.shape
    inner = luma[top : height - bottom, left : width - right]
    cut = tuple(-(-side // small.scale) for side in bars)
    rows, columns = slice(cut[0], small.y.shape[0] - cut[1]), slice(cut[2], small.y.shape[1] - cut[3])
    y, u, v = small.y[rows, columns], small.u[rows, columns], small.v[rows, columns]
    if min(inner.shape) < 16 or min(y.shape) < 2:
        inner, y, u, v = luma, small.y, small.u, small.v
    return Quality(
        sharpness(inner, min(height, width)),
        exposure(y, full_range),
        colorfulness(y, u, v, full_range),
        blockiness(luma, bars),
    )


def sharpness(luma: Plane, short_side: int) -> float:
    """How much steeper the edges are than in a blurred copy: 0 soft (or no edge at all), about 0.4 crisp, 0.6 fine texture.

    sum(|h|^2 g.h) / sum(|h|^4) - 1, where g and h are the gradients of the picture smoothed by about 1 and 2.2 pixels
    (deviation) at about 480 pixels of short side; larger pictures are shrunk by a whole factor, smaller ones taken as
    they are. A lone straight edge blurred by 0, 1, 2, 4 pixels gives 0.37, 0.30, 0.19, 0.08. That edges tell their blur
    by what a second blur does to them is after Crete et al. 2007 and Zhuo and Sim 2011.
    """
    import cv2

    by = max(1, round(short_side / SHARPNESS_SHORT_SIDE))
    height, width = luma.shape[0] // by, luma.shape[1] // by
    if by > 1:
        luma = cv2.resize(luma[: height * by, : width * by], (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    fine = cv2.pyrDown(luma)
    (fine_x, fine_y), (x, y) = _gradient(fine), _gradient(cv2.sepFilter2D(fine, cv2.CV_32F, SMOOTH, SMOOTH))
    squared = x * x + y * y
    weight = np.where(squared > EDGE_LEVELS**2, squared, np.float32(0))
    total = float(np.vdot(weight, squared))
    return max(0.0, float(np.vdot(weight, fine_x * x + fine_y * y)) / total - 1) if total else 0.0


def _gradient(picture: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Slopes to the right and down, in levels a pixel, at one pixel of four: a smooth picture has no more to tell."""
    middle = slice(1, -1, 2)
    right = picture[middle, 2::2].astype(np.float32) - picture[middle, :-2:2]
    down = picture[2::2, middle].astype(np.float32) - picture[:-2:2, middle]
    return right / 2, down / 2


def exposure(y: Plane, full_range: bool) -> float:
    """1 for a well exposed picture, 0 for one that is all black or all white.

    (1 - share of clipped shadows and highlights) x (1 - ((mean - 0.5) / 0.5)^4), over luma stretched to full range.
    """
    levels = _stretched(y, full_range)
    clipped = float(np.mean((levels <= SHADOW) | (levels >= HIGHLIGHT)))
    mean = min(1.0, max(0.0, float(levels.mean()) / 255))
    return (1 - clipped) * (1 - (abs(mean - 0.5) / 0.5) ** 4)


def _stretched(y: Plane, full_range: bool) -> NDArray[np.float32]:
    levels = y.astype(np.float32)
    return levels if full_range else (levels - 16) * np.float32(255 / 219)


def colorfulness(y: Plane, u: Plane, v: Plane, full_range: bool) -> float:
    """Hasler and Suesstrunk 2003 at a mean level of 128: 0 (grey) over 33 (average) to above 100 (vivid).

    hypot(std(rg), std(yb)) + 0.3 hypot(mean(rg), mean(yb)), with rg = R - G, yb = (R + G) / 2 - B, times 128 over the
    mean luma: light scales colour differences like luma, and exposure has a column of its own.
    """
    scale = 1.0 if full_range else 255 / 224
    blue, red = (scale * (p.astype(np.float32) - 128) for p in (u, v))
    # R - G and (R + G) / 2 - B of BT.601, in which luma cancels out.
    red_green, yellow_blue = 2.116 * red + 0.344 * blue, 0.344 * red - 1.944 * blue
    spread = np.hypot(red_green.std(), yellow_blue.std()) + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean())
    gain = MIDDLE / max(MIDDLE / LARGEST_GAIN, float(_stretched(y, full_range).mean()))
    return float(spread * gain)


def blockiness(luma: Plane, bars: tuple[int, int, int, int] = (0, 0, 0, 0)) -> float:
    """How much larger steps are across the 8x8 grid of the stored picture than beside it: 0 none, 1 twice as large.

    The mean step over lines of the grid divided by the largest of those over lines two to six pixels further, less one;
    the mean of both directions, never below 0: a pattern of another period is no grid. At least `LINES` rows and columns
    are looked at.
    """
    top, bottom, left, right = bars
    height, width = luma.shape
    rows = luma[top : height - bottom : max(1, height // LINES), left : width - right]
    columns = luma[top : height - bottom, left : width - right : max(1, width // LINES)].T
    return max(0.0, (_grid_excess(rows, left) + _grid_excess(columns, top)) / 2)


def _grid_excess(lines: Plane, offset: int) -> float:
    """Steps along the lines at every eighth pixel, against those two to six further; pixel 0 is at `offset`."""
    import cv2

    if lines.shape[0] < 16 or lines.shape[1] < 48:
        return 0.0
    lines = np.ascontiguousarray(lines)
    # A single hard edge of the scene must not speak for the grid: large steps are capped.
    steps = np.minimum(cv2.absdiff(lines[:, 1:], lines[:, :-1]), LARGEST_STEP).mean(axis=0)
    phase = (np.arange(len(steps)) + offset + 1) % 8
    steps, phase = steps[8:-8], phase[8:-8]
    beside = max(steps[phase == further].mean() for further in range(2, 7))
    return float(steps[phase == 0].mean() / (beside + 0.25) - 1)
