"""How a clip's surroundings were edited or shaken: false cuts a second, and stills shown one after another.

Pure functions over the kept series; None where there is no pair of frames to speak of.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.clips import Span
from filters.motion import STATIC_FRAC, Series, change_lag, flow_gap
from filters.shots import runs

JITTER_CONTENT = 27.0
"""Threshold of PySceneDetect's ContentDetector."""
JITTER_WINDOW_S = 10.0
SLIDE_WINDOW_S = 30.0
STILL_S = 0.8
EVEN = 0.1
"""Most median deviation of speed and direction from straight lines, over speed, of a mere pan or zoom over a still. Over
photographs it is 0.01 to 0.09; the steadiest of 150 labelled camera shots have 0.12 and 0.13."""
EVEN_PX, EVEN_S, EVEN_PAIRS = 0.3, 1.5, 8
"""Least speed (series `motion_px`), length, and number of pairs of frames with flow."""
LIKE_LONG = 1.5
"""Pans over stills stand for lengths that differ by at most this factor."""


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
    series: Mapping[str, Any],
    cuts: Sequence[int],
    gradual: Sequence[dict[str, Any]],
    span_s: tuple[float, float],
    source_end_s: float,
    fps: float,
) -> float | None:
    """How much the clip's surroundings (30 s) look like stills shown one after another, 0 to 1.

    Share of frames that show a still, times min(1, changes / 2), where a change is a cut or a transition between two
    stills. A still does not move for 0.8 s and more; or it is panned or zoomed over, which moves it evenly for the whole
    of its shot, and then the next one stands about as long.
    """
    time_s = series["time_s"]
    if len(time_s) < 2:
        return None
    low, high = _neighbourhood(*span_s, source_end_s, SLIDE_WINDOW_S)
    a, b = (int(i) for i in np.searchsorted(time_s, [low, high]))
    if b <= a:
        return None
    lag = change_lag(fps)
    joints = sorted([(c, c) for c in cuts] + [(g["start"], g["end"]) for g in gradual])
    shots = zip([0, *(q for _, q in joints)], [*(p for p, _ in joints), len(time_s)], strict=True)
    near = [(start, end) for start, end in shots if a < end and start < b]
    evenly = [_moves_evenly(series, *shot, fps) for shot in near]
    still = _still(series["changed_frac"][a:b], time_s[a:b], lag)
    shown, changes = still.copy(), 0
    for (before, moves), (after, moves_on) in itertools.pairwise(zip(near, evenly, strict=True)):
        stills = (moves or still[before[1] - 1 - a], moves_on or still[min(after[0] + lag, b - 1) - a])
        if all(stills) and (_like_long(before, after) or not (moves or moves_on)):
            changes += 1
            for shot in [s for s, m in ((before, moves), (after, moves_on)) if m]:
                shown[max(shot[0] - a, 0) : shot[1] - a] = True
    return float(shown.mean()) * min(1.0, changes / 2)


def _like_long(one: Span, other: Span) -> bool:
    lengths = sorted(end - start for start, end in (one, other))
    return lengths[1] <= LIKE_LONG * lengths[0]


def _moves_evenly(series: Mapping[str, Any], start: int, end: int, fps: float) -> bool:
    """True where a shot moves as a still under a pan or zoom does: speed and direction are straight lines in time.

    A hand, a subject or parallax bends them.
    """
    gap = flow_gap(fps)
    pairs = np.arange(-(-start // gap) * gap + gap, end, gap)
    if (end - start) / fps < EVEN_S or len(pairs) < EVEN_PAIRS:
        return False
    flow = np.stack([series[name][pairs] for name in ("motion_px", "global_dx_px", "global_dy_px")], axis=1)
    time = np.linspace(-1, 1, len(pairs))
    lines = np.stack([np.ones_like(time), time], axis=1)
    bend = np.median(np.abs(flow - lines @ np.linalg.lstsq(lines, flow, rcond=None)[0]), axis=0)
    speed = float(np.median(flow[:, 0]))
    return speed >= EVEN_PX and max(float(bend[0]), float(np.hypot(bend[1], bend[2]))) <= EVEN * speed


def _still(changed: Series, time_s: NDArray[np.float64], lag: int) -> NDArray[np.bool_]:
    """Frames of still stretches. A frame `lag` after a change still differs from the frame it is compared to."""
    out = np.zeros(len(changed), dtype=bool)
    for start, end in runs(changed < STATIC_FRAC):
        begin = max(0, start - lag)
        if time_s[end - 1] - time_s[begin] >= STILL_S:
            out[begin:end] = True
    return out
