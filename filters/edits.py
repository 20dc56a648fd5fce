"""How a clip's surroundings were edited or shaken: false cuts a second, and stills shown one after another.

Pure functions over the kept series; None where there is no pair of frames to speak of.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from filters.motion import STATIC_FRAC, Series
from filters.shots import runs

JITTER_CONTENT = 27.0
"""Threshold of PySceneDetect's ContentDetector."""
JITTER_WINDOW_S = 10.0
SLIDE_WINDOW_S = 30.0
STILL_S = 0.8


def _neighbourhood(start_s: float, end_s: float, source_end_s: float, window_s: float) -> tuple[float, float]:
    """The clip, widened evenly to `window_s` as far as the source goes."""
    missing = max(0.0, window_s - (end_s - start_s))
    low = max(0.0, min(start_s - missing / 2, source_end_s - max(window_s, end_s - start_s)))
    return low, min(source_end_s, max(end_s + missing / 2, low + window_s))


def jitter_shots_per_s(
    cut_score: Series, time_s: NDArray[np.float64], start_s: float, end_s: float, source_end_s: float
) -> float | None:
    """Triggers of the plain content detector, without a minimum length, over the clip and its neighbourhood, a second.

    The neighbourhood is at least 10 s, or the whole source where that is shorter.
    """
    low, high = _neighbourhood(start_s, end_s, source_end_s, JITTER_WINDOW_S)
    if high <= low or len(cut_score) < 2:
        return None
    a, b = np.searchsorted(time_s, [low, high])
    return float(np.count_nonzero(cut_score[a:b] >= JITTER_CONTENT)) / (high - low)


def slideshow_score(
    changed: Series,
    cuts: Sequence[int],
    gradual: Sequence[dict[str, Any]],
    time_s: NDArray[np.float64],
    span_s: tuple[float, float],
    source_end_s: float,
    lag: int,
) -> float | None:
    """How much the clip's surroundings (30 s) look like stills shown one after another, 0 to 1.

    Share of frames that stand in still stretches of at least 0.8 s, times min(1, changes / 2), where a change is a cut
    or a transition with a still stretch right before and right after it.
    """
    if len(changed) < 2:
        return None
    low, high = _neighbourhood(*span_s, source_end_s, SLIDE_WINDOW_S)
    a, b = (int(i) for i in np.searchsorted(time_s, [low, high]))
    if b <= a:
        return None
    still = _still(changed[a:b], time_s[a:b], lag)
    joints = [(c, c) for c in cuts] + [(g["start"], g["end"]) for g in gradual]
    inside = [(p - a, q - a) for p, q in joints if a < p and q < b]
    changes = sum(bool(still[p - 1] and still[min(q + lag, len(still) - 1)]) for p, q in inside)
    return float(still.mean()) * min(1.0, changes / 2)


def _still(changed: Series, time_s: NDArray[np.float64], lag: int) -> NDArray[np.bool_]:
    """Frames of still stretches. A frame `lag` after a change still differs from the frame it is compared to."""
    out = np.zeros(len(changed), dtype=bool)
    for start, end in runs(changed < STATIC_FRAC):
        begin = max(0, start - lag)
        if time_s[end - 1] - time_s[begin] >= STILL_S:
            out[begin:end] = True
    return out
