"""Wipes: a front passes over the picture, and each point changes once, at the moment the front reaches it.

Motion changes a point again and again, a cut changes all points at once, a dissolve changes them slowly; and where a
front is only something that passes before the camera, the picture of before comes back.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

WINDOW_S = 1.0
"""A wipe is sought in windows of this length; a longer one is found by its middle."""
EVERY_S = 0.125
"""Windows are this far apart."""
STEP_S = 1 / 12
"""A step is the change of a point over this time."""
BEYOND_S = (0.25, 0.375, 0.5, 0.625, 0.75)
"""How far before and after a front the picture of its other side is looked for."""
RETURN = 0.6
"""A picture has come back where `1 - correlation` is below this share of what it was right across the front."""

LEVELS = 5.0
"""Least mean difference of the ends of a window."""
REACHED, REACHED_LEVELS = 0.8, 3.0
"""Least share of points that differ visibly between the ends, and what is visible."""
UNLIKE = 0.3
"""Least `1 - correlation` of the ends."""
STEP_SHARE = 0.38
"""A point's one step is at least this share of all its changes in the window. Moving shots under wipes of 0.4 to 1.2 s
have 0.4 and more, camera motion alone 0.2 to 0.4."""
AT_ONCE = 0.25
"""At most this share of the picture changes in one instant, or it is a cut."""
LEAST_S = 0.05
"""Least deviation of the moments of change."""


def reach(fps: float) -> int:
    """Frames before and after a window's middle that `fronts` looks at."""
    return _half(fps) + 3 * _gap(fps) + round(max(BEYOND_S) * fps)


def fronts(pictures: Floats, middles: NDArray[np.int_], fps: float) -> list[tuple[int, int, float]]:
    """Fronts in windows around `middles`, as (first frame, frame after the last, roughness), half-open.

    `pictures` is (N, h, w, 3) in levels. Roughness is the mean difference between the moments of change of neighbouring
    points, over that of points drawn at random (1.15 times their deviation, for an even spread): near 0 for a front, near
    1 for motion. Only windows that pass all other tests are returned.
    """
    thin, gap, last = max(1, round(fps / 24)), _gap(fps), len(pictures) - 1
    offsets = np.arange(-_half(fps), _half(fps) + 1, thin)
    index = np.clip(middles[:, None] + offsets, 0, last)
    apart = np.abs(pictures[index[:, 0]] - pictures[index[:, -1]]).mean(axis=3)
    open_ = (apart.mean(axis=(1, 2)) > LEVELS) & (np.mean(apart > REACHED_LEVELS, axis=(1, 2)) > REACHED)
    open_ &= _unlike(pictures[index[:, 0]], pictures[index[:, -1]]) > UNLIKE
    if not open_.any():
        return []
    index, apart = index[open_], apart[open_]
    inside = index[:, : len(offsets) - max(1, gap // thin)]
    steps = np.abs(pictures[np.minimum(inside + gap, last)] - pictures[inside]).mean(axis=4)
    most, when = steps.max(axis=1), steps.argmax(axis=1)
    once = (apart * most).sum(axis=(1, 2)) / np.maximum((apart * steps.sum(axis=1)).sum(axis=(1, 2)) * thin / gap, 1e-3)
    moments = np.stack([(apart * (when == k)).sum(axis=(1, 2)) for k in range(inside.shape[1])], axis=1)
    moments /= moments.sum(axis=1, keepdims=True)
    roughness, deviation = _roughness(apart, when)
    found = (once > STEP_SHARE) & (moments.max(axis=1) < AT_ONCE) & (deviation * thin > max(1.0, LEAST_S * fps))
    out = []
    for i in np.flatnonzero(found):
        # The outer tenths are drawn out from the rest: there, a moving thing is as likely as the front.
        early, late = (int(inside[i, np.searchsorted(np.cumsum(moments[i]), share)]) for share in (0.1, 0.9))
        start, end = max(0, early - (late - early) // 8), min(last, late + (late - early) // 8 + gap)
        if not _comes_back(pictures, start, end, fps):
            out.append((start, end, float(roughness[i])))
    return out


def smoothest(found: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    """Of fronts that overlap, which are one seen from several windows, the least rough."""
    kept: list[tuple[int, int, float]] = []
    for start, end, roughness in sorted(found, key=lambda f: (f[2], f[0])):
        if all(end <= a or start >= b for a, b, _ in kept):
            kept.append((start, end, roughness))
    return kept


def _half(fps: float) -> int:
    return max(4, round(WINDOW_S * fps / 2))


def _gap(fps: float) -> int:
    return max(1, round(STEP_S * fps))


def _roughness(weight: Floats, when: NDArray[np.int_]) -> tuple[Floats, Floats]:
    """Roughness of each window's moments of change, and their deviation, in samples."""
    time = when.astype(np.float32)
    total = weight.sum(axis=(1, 2), keepdims=True)
    mean = (weight * time).sum(axis=(1, 2), keepdims=True) / total
    deviation = np.sqrt((weight * (time - mean) ** 2).sum(axis=(1, 2)) / total[:, 0, 0])
    differ, both = np.zeros(len(time), np.float32), np.zeros(len(time), np.float32)
    for axis in (1, 2):
        ahead = np.take(weight, range(1, weight.shape[axis]), axis)
        pair = np.minimum(ahead, np.take(weight, range(weight.shape[axis] - 1), axis))
        differ += (pair * np.abs(np.diff(time, axis=axis))).sum(axis=(1, 2))
        both += pair.sum(axis=(1, 2))
    return differ / np.maximum(both, 1e-3) / np.maximum(1.15 * deviation, 0.5), deviation


def _comes_back(pictures: Floats, start: int, end: int, fps: float) -> bool:
    """True where the picture of before the front is seen again soon after it, or that of after it was seen before."""
    further = np.array([0, *(round(s * fps) for s in BEYOND_S)])
    before = np.maximum(start - _gap(fps) - further, 0)
    after = np.minimum(end + further, len(pictures) - 1)
    unlike = (
        _unlike(pictures[before[:1].repeat(len(after))], pictures[after]),
        _unlike(pictures[before], pictures[after[:1].repeat(len(before))]),
    )
    return any(u[1:].min() < RETURN * u[0] for u in unlike)


def _unlike(a: Floats, b: Floats) -> Floats:
    """One minus the correlation of pictures (N, h, w, 3), each plane's mean removed."""
    a, b = ((p - p.mean(axis=(1, 2), keepdims=True)).reshape(len(p), -1) for p in (a, b))
    norms = [np.sqrt(np.einsum("np,np->n", p, p) + p.shape[1]) for p in (a, b)]
    out: Floats = 1 - np.einsum("np,np->n", a, b) / (norms[0] * norms[1])
    return out
