"""Technical quality of a sampled frame: sharpness, exposure, colourfulness, blockiness. Bars are cut off first."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from filters.planes import Plane, Small

SHARPNESS_SHORT_SIDE = 480
"""Sharpness is that of the picture at this short side, so that 480p and 4K can be compared."""
SHADOW, HIGHLIGHT = 8, 247
"""Levels (full range) at or beyond which a pixel is clipped."""


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
        colorfulness(y, u, v),
        blockiness(luma, bars),
    )


def sharpness(luma: Plane, short_side: int) -> float:
    """Logarithm of one plus the variance of the Laplacian at 480 pixels of short side; about 3 (soft) to 8 (crisp).

    Larger pictures are shrunk, smaller ones are taken as they are. After Pech-Pacheco et al. 2000.
    """
    import cv2

    by = max(1, round(short_side / SHARPNESS_SHORT_SIDE))
    height, width = luma.shape[0] // by, luma.shape[1] // by
    if by > 1:
        luma = cv2.resize(luma[: height * by, : width * by], (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    _, deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return float(np.log1p(float(deviation[0, 0]) ** 2))


def exposure(y: Plane, full_range: bool) -> float:
    """1 for a well exposed picture, 0 for one that is all black or all white.

    (1 - share of clipped shadows and highlights) x (1 - ((mean - 0.5) / 0.5)^4), over luma stretched to full range.
    """
    levels = y.astype(np.float32)
    if not full_range:
        levels = (levels - 16) * (255 / 219)
    clipped = float(np.mean((levels <= SHADOW) | (levels >= HIGHLIGHT)))
    mean = min(1.0, max(0.0, float(levels.mean()) / 255))
    return (1 - clipped) * (1 - (abs(mean - 0.5) / 0.5) ** 4)


def colorfulness(y: Plane, u: Plane, v: Plane) -> float:
    """Hasler and Suesstrunk 2003, from 0 (grey) over 33 (average) to above 100 (vivid)."""
    import cv2

    rgb = cv2.cvtColor(cv2.merge([y, v, u]), cv2.COLOR_YCrCb2RGB).astype(np.float32)
    red_green = rgb[..., 0] - rgb[..., 1]
    yellow_blue = (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    spread = np.hypot(red_green.std(), yellow_blue.std())
    return float(spread + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))


def blockiness(luma: Plane, bars: tuple[int, int, int, int] = (0, 0, 0, 0)) -> float:
    """How much larger steps are across the 8x8 grid of the stored picture than beside it: 0 none, 1 twice as large.

    The mean step over lines of the grid divided by that over lines three and four pixels away, less one; the mean of
    both directions, never below 0.
    """
    top, bottom, left, right = bars
    height, width = luma.shape
    across = _grid_excess(luma[top : height - bottom], left, width - right)
    down = _grid_excess(luma[:, left : width - right].T, top, height - bottom)
    return max(0.0, (across + down) / 2)


def _grid_excess(luma: Plane, low: int, high: int) -> float:
    """Steps across columns 8, 16, ... of a picture, against those halfway between, between columns `low` and `high`."""
    lines = np.arange(-(-(low + 8) // 8) * 8, high - 8, 8)
    if len(lines) < 4 or luma.shape[0] < 16:
        return 0.0
    rows = luma[:: max(1, luma.shape[0] // 240)]

    def steps(at: NDArray[np.int_]) -> float:
        a, b = rows[:, at - 1].astype(np.int16), rows[:, at].astype(np.int16)
        # A single hard edge of the scene must not speak for the grid: large steps are capped.
        return float(np.minimum(np.abs(a - b), 16).mean())

    beside = (steps(lines + 3) + steps(lines + 4) + steps(lines - 3)) / 3
    return steps(lines) / (beside + 0.25) - 1 if beside + 0.25 > 0 else 0.0
