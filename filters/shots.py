"""Shot boundaries: hard cuts and gradual transitions, decided from per-frame series that are kept.

While decoding, `Pictures` and `content_score` reduce every frame to a few floats; `find_cuts` and `find_gradual` are
pure functions over those series, so another threshold or detector needs no second decode.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from filters import wipes
from filters.planes import Plane, Small

Series = NDArray[np.float32]

PICTURE_W = 16
"""A thumbnail is at least this wide."""
CUT_PAIRS = ((1, 1), (1, 2), (1, 4), (1, 6), (2, 0), (3, 0), (5, 0), (7, 0))
"""(frames before, frames after) a candidate between which the picture must differ: the pictures before and after a flash
of up to six frames are one of these pairs at its first frame, and at the first one after it."""
SAME_LEVELS = 6.0
"""Mean difference, in 8-bit levels over Y, U and V, below which two pictures count as alike in proportion."""
BLEND_S = (0.25, 0.5, 1.0)
"""Half widths of the window in which a dissolve is sought."""
BLEND_LEVELS = 6.0
"""Least mean difference, in luma levels, of the ends of a dissolve."""
BLEND_UNLIKE = 0.3
"""Least `1 - correlation` of the ends of a dissolve: a change of exposure is none."""
SAG, SAG_SLACK = 0.82, 1.5
"""Below this share of the contrast before and after it, a frame may be this much farther from the mean of its ends."""
FLAT_STD = 4.0
"""Standard deviation of luma below which a frame is a flat field (black, white or grey), the core of a fade."""
RAMP_STD = 14.0
"""Least standard deviation that a fade leads to."""
FADE_S = 5.0
"""The longest fade to or from a flat field."""
LIMITS = {"pictures": 3.5, "adaptive": 3.0, "content": 27.0, "transnetv2": 0.5}
STEP_WINDOW_S = 1 / 6
"""Neighbours of a step: animation drawn six times a second still has one real step on each side."""
STEP_FLOOR = 0.15
"""A neighbour counts for at least this many levels: rounding."""


class ShotConfig(BaseModel):
    """How shot boundaries are found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    detector: Literal["pictures", "adaptive", "content", "transnetv2"] = "pictures"
    """`pictures` compares thumbnails; `adaptive` and `content` are PySceneDetect's; `transnetv2` is the network (needs the
    extra `shots`)."""
    threshold: float | None = Field(default=None, gt=0)
    """The detector's own: ratio to the neighbours 3.5 (pictures) or 3.0 (adaptive), content value 27 (content),
    probability 0.5 (transnetv2)."""
    min_step: float = Field(default=1.0, ge=0)
    """`pictures` only: least change of a cut (series `picture_step`), in levels."""
    min_content: float = Field(default=15.0, ge=0)
    """`adaptive` only: least content value of a cut."""
    min_picture_change: float = Field(default=0.2, ge=0, le=1)
    """A cut must leave pictures that differ by this much (series `picture_change`): flashes and exposure steps do not.
    0 switches the check off."""
    min_shot_s: float = Field(default=0.0, ge=0)
    """A cut nearer than this to the one before it is dropped."""
    blend_residual: float = Field(default=0.22, ge=0, le=1)
    """A dissolve's middle differs from the mean of its ends by less than this share of their difference. 0: none."""
    wipe_roughness: float = Field(default=0.35, ge=0, le=1)
    """The moments at which the points of a picture change lie in a smoother order than this under a wipe. 0: none."""

    @property
    def limit(self) -> float:
        """The threshold in force."""
        return self.threshold or LIMITS[self.detector]


def hsv(picture: Small) -> Plane:
    """The small picture as OpenCV's 8-bit HSV, what `content_score` compares."""
    import cv2

    out: Plane = cv2.cvtColor(picture.bgr(), cv2.COLOR_BGR2HSV)  # type: ignore[assignment]
    return out


def content_score(before: Plane, after: Plane) -> float:
    """PySceneDetect's `content_val` of two HSV pictures: the mean absolute difference over hue, saturation and value.

    The same number as `ContentDetector` gives with its default weights, in one call instead of twelve.
    """
    import cv2

    return float(cv2.norm(before, after, cv2.NORM_L1)) / before.size


class Pictures:
    """Takes small pictures one by one and measures thumbnails of them, in blocks.

    Only a window of thumbnails is held, whatever the length of the film.
    """

    def __init__(self, fps: float, block: int = 256) -> None:
        self.fps = fps
        self.lags = sorted({max(2, round(s * fps)) for s in BLEND_S})
        self.margin = max(*self.lags, *(max(pair) for pair in CUT_PAIRS), wipes.reach(fps))
        self.block = block
        self.held: list[NDArray[np.uint8]] = []
        self.first = 0
        """Frames let go of: the index of the first one held."""
        self.done = 0
        """Of those held, how many are measured."""
        self.found: dict[str, list[Series]] = {"picture_step": [], "picture_change": [], "blend_residual": []}
        self.fronts: list[tuple[int, int, float]] = []

    def push(self, picture: Small) -> None:
        """Add the next frame."""
        self.held.append(_thumbnail(picture.ycrcb))
        if len(self.held) - self.done >= self.block + self.margin:
            self._flush(self.block)

    def finish(self) -> dict[str, Series]:
        """`picture_step`, `picture_change`, `blend_residual` and `wipe_roughness` of all frames pushed."""
        if self.held:
            self._flush(len(self.held) - self.done)
        empty = [np.zeros(0, np.float32)]
        out = {name: np.concatenate(values or empty) for name, values in self.found.items()}
        roughness = np.ones(self.first + self.done, np.float32)
        for start, end, value in wipes.smoothest(self.fronts):
            roughness[start:end] = np.minimum(roughness[start:end], value)
        return out | {"wipe_roughness": roughness}

    def _flush(self, count: int) -> None:
        """Measure `count` more frames, then let go of the pictures that no later frame looks back at."""
        window = np.stack(self.held).astype(np.float32)
        frames = np.arange(self.done, self.done + count)
        self.found["picture_step"].append(picture_step(window, frames))
        self.found["picture_change"].append(picture_change(window, frames))
        self.found["blend_residual"].append(blend_residual(window, frames, self.lags))
        middles = frames[(frames + self.first) % max(1, round(wipes.EVERY_S * self.fps)) == 0]
        self.fronts += [(self.first + a, self.first + b, v) for a, b, v in wipes.fronts(window, middles, self.fps)]
        drop = max(0, self.done + count - self.margin)
        self.held = self.held[drop:]
        self.first += drop
        self.done += count - drop


def _thumbnail(picture: Plane) -> Plane:
    import cv2

    by = max(1, min(picture.shape[1] // PICTURE_W, picture.shape[0] // (PICTURE_W // 2)))
    height, width = picture.shape[0] // by, picture.shape[1] // by
    out: Plane = cv2.resize(picture[: height * by, : width * by], (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
    return out


def picture_step(pictures: NDArray[np.float32], frames: NDArray[np.int_]) -> Series:
    """How much the picture changed since the frame before, in levels: the square of the mean square root of the
    differences of all points and planes. 0 for the first picture.

    A mean would let a part that changes much stand for the whole; grain is averaged away in a thumbnail.
    """
    difference = np.abs(pictures[frames] - pictures[np.maximum(frames - 1, 0)])
    out: Series = np.sqrt(difference, out=difference).mean(axis=(1, 2, 3)) ** 2
    return out


def picture_change(pictures: NDArray[np.float32], frames: NDArray[np.int_]) -> Series:
    """How different the pictures just before and after each of `frames` are, 0 (alike) to 1; exposure is left out.

    `pictures` is (N, h, w, 3) in levels, luma first. The least over `CUT_PAIRS` of one minus the correlation, scaled
    down where the pictures are alike in plain levels too (noise on a flat field has no correlation).
    """
    least = np.ones(len(frames), np.float32)
    last = len(pictures) - 1
    shapes, norms = _shapes(pictures)
    for before, after in CUT_PAIRS:
        a, b = np.maximum(frames - before, 0), np.minimum(frames + after, last)
        levels = np.abs(pictures[a] - pictures[b]).mean(axis=(1, 2, 3))
        least = np.minimum(least, _unlike(shapes, norms, a, b) * np.minimum(levels / SAME_LEVELS, 1))
    return np.maximum(least, 0)


def blend_residual(pictures: NDArray[np.float32], frames: NDArray[np.int_], lags: Sequence[int]) -> Series:
    """How far each of `frames` is from the mean of the pictures some frames before and after: 0 blend, 0.5 hard cut.

    ||m - (a+b)/2|| / ||a - b|| in mean absolute luma levels, each picture's mean removed (a change of exposure is a ramp
    too), the least over `lags`; 1 where the ends are alike.
    """
    shapes, norms = _shapes(pictures)
    luma = np.ascontiguousarray(shapes[:, ::3])
    least = np.ones(len(frames), np.float32)
    last = len(luma) - 1
    for lag in lags:
        inside = (frames >= lag) & (frames <= last - lag)
        if not inside.any():
            continue
        at = frames[inside]
        a, m, b = luma[at - lag], luma[at], luma[at + lag]
        ends = np.abs(a - b).mean(axis=1)
        middle = np.abs(m - (a + b) / 2).mean(axis=1)
        blend = (ends > BLEND_LEVELS) & (_unlike(shapes, norms, at - lag, at + lag) > BLEND_UNLIKE)
        value = np.where(blend, middle / np.maximum(ends, BLEND_LEVELS), 1.0)
        least[inside] = np.minimum(least[inside], value.astype(np.float32))
    return least


def _shapes(pictures: NDArray[np.float32]) -> tuple[NDArray[np.float32], Series]:
    """Pictures (N, h x w x 3) with each plane's mean removed, and their norms."""
    centred = (pictures - pictures.mean(axis=(1, 2), keepdims=True)).reshape(len(pictures), -1)
    return centred, np.sqrt(np.einsum("np,np->n", centred, centred) + centred.shape[1])


def _unlike(shapes: NDArray[np.float32], norms: Series, a: NDArray[np.int_], b: NDArray[np.int_]) -> Series:
    """One minus the correlation of pictures `a` and `b`."""
    out: Series = 1 - np.einsum("np,np->n", shapes[a], shapes[b]) / (norms[a] * norms[b])
    return out


def boundaries(series: Mapping[str, Any], fps: float, config: ShotConfig) -> tuple[list[int], list[dict[str, Any]]]:
    """Hard cuts (first frames of new shots) and gradual transitions of a source, from its kept series.

    `series` has `cut_score`, `picture_step`, `picture_change`, `blend_residual`, `wipe_roughness`, `luma_std`, and for
    the detector `transnetv2` `shot_probability`. A cut inside a transition is part of it.
    """
    cuts = find_cuts(series, fps, config)
    gradual = find_gradual(series, cuts, fps, config)
    return [c for c in cuts if not any(g["start"] < c < g["end"] for g in gradual)], gradual


def find_cuts(series: Mapping[str, Any], fps: float, config: ShotConfig) -> list[int]:
    """First frames of new shots."""
    if config.detector == "transnetv2":
        found = _peaks(series["shot_probability"], config.limit)
    else:
        hit = _candidates(series, fps, config)
        if config.min_picture_change:
            hit &= series["picture_change"] >= config.min_picture_change
        found = np.flatnonzero(hit).tolist()
    shortest = max(1, round(config.min_shot_s * fps))
    kept: list[int] = []
    for frame in found:
        if frame > 0 and (not kept or frame - kept[-1] >= shortest):
            kept.append(frame)
    return kept


def _candidates(series: Mapping[str, Any], fps: float, config: ShotConfig) -> NDArray[np.bool_]:
    """Frames at which a detector that compares neighbours fires."""
    out: NDArray[np.bool_]
    if config.detector == "pictures":
        step = series["picture_step"]
        out = (step_ratio(step, fps) >= config.limit) & (step >= config.min_step)
    elif config.detector == "adaptive":
        score = series["cut_score"]
        out = (adaptive_ratio(score) >= config.limit) & (score >= config.min_content)
    else:
        out = series["cut_score"] >= config.limit
    return out


def step_ratio(step: Series, fps: float) -> Series:
    """A frame's `picture_step` over the second largest within a sixth of a second around it.

    The second largest: one cut or flash nearby hides no other. Not the mean: repeated frames (24 a second stored as 60,
    animation) have steps of 0 between, and motion would stand out from them.
    """
    if len(step) < 3:
        return np.zeros_like(step)
    reach = max(2, round(STEP_WINDOW_S * fps))
    # Frame 0 has no step. Beyond the ends the series is mirrored, so that motion cut off by an end has neighbours.
    padded = np.pad(step[1:], reach, mode="reflect")
    around = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    second = np.partition(np.delete(around, reach, axis=1), -2, axis=1)[:, -2]
    return np.concatenate([[0.0], step[1:] / np.maximum(second, STEP_FLOOR)]).astype(np.float32)


def adaptive_ratio(cut_score: Series, window: int = 2) -> Series:
    """PySceneDetect's `adaptive_ratio`: a frame's content value over the mean of `window` neighbours on each side.

    255 where the neighbours are all zero. At the ends of the series the neighbours that exist are used (PySceneDetect
    decides nothing there).
    """
    score = cut_score.astype(np.float64)
    total, count = np.zeros_like(score), np.zeros_like(score)
    for shift in range(1, window + 1):
        total[shift:] += score[:-shift]
        count[shift:] += np.arange(len(score) - shift) > 0  # frame 0 has no pair
        total[:-shift] += score[shift:]
        count[:-shift] += 1
    mean = total / np.maximum(count, 1)
    ratio = np.where(mean > 1e-5, score / np.maximum(mean, 1e-5), np.where(score > 0, 255.0, 0.0))
    return np.minimum(ratio, 255.0).astype(np.float32)


def _peaks(probability: Series, limit: float) -> list[int]:
    """The frame after the strongest one of each run above `limit`: the network marks a shot's last frames."""
    return [int(a + np.argmax(probability[a:b])) + 1 for a, b in runs(probability > limit)]


def runs(mask: NDArray[np.bool_], gap: int = 0) -> list[tuple[int, int]]:
    """Half-open spans where `mask` holds; spans at most `gap` frames apart are joined."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    spans: list[tuple[int, int]] = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if spans and start - spans[-1][1] <= gap:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans


def find_gradual(series: Mapping[str, Any], cuts: Sequence[int], fps: float, config: ShotConfig) -> list[dict[str, Any]]:
    """Fades, dissolves and wipes as {start, end, kind}, half-open, in order, apart; no dissolve crosses a hard cut."""
    std = series["luma_std"]
    found = _fades(std, fps) + _dissolves(series["blend_residual"], std, cuts, fps, config.blend_residual)
    found += [(a, b, "wipe") for a, b in runs(series["wipe_roughness"] < config.wipe_roughness)]
    merged: list[dict[str, Any]] = []
    for start, end, kind in sorted(found):
        if merged and start <= merged[-1]["end"]:
            merged[-1]["end"] = max(end, merged[-1]["end"])
            merged[-1]["kind"] = max(kind, merged[-1]["kind"], key=("dissolve", "wipe", "fade").index)
        else:
            merged.append({"start": start, "end": end, "kind": kind})
    return merged


def _dissolves(residual: Series, std: Series, cuts: Sequence[int], fps: float, limit: float) -> list[tuple[int, int, str]]:
    """Frames that are nearly the mean of their ends; less nearly will do where contrast sags as a blend's must."""
    found = []
    sags = contrast_sag(std, fps) < SAG
    residual = np.where(sags, residual / SAG_SLACK, residual)
    for start, end in runs(residual < limit, gap=2):
        if end - start < max(4, round(0.15 * fps)) or residual[start:end].min() > 0.8 * limit:
            continue
        # The ends of a dissolve are not near the mean of what is around them: they are added.
        grow = min((end - start + 1) // 2, round(0.2 * fps))
        low = max([c for c in cuts if c <= start], default=0)
        high = min([c for c in cuts if c >= end], default=len(residual))
        found.append((max(low, start - grow), min(high, end + grow), "dissolve"))
    return found


def contrast_sag(std: Series, fps: float) -> Series:
    """Contrast of each frame over the lesser of the most contrast within 0.75 s before and after it: about 0.7 halfway
    through a dissolve of two unlike pictures (their variances add in quarters), about 1 elsewhere."""
    reach = max(2, round(0.75 * fps))
    padded = np.pad(std, reach, mode="edge")
    most = np.lib.stride_tricks.sliding_window_view(padded, reach + 1).max(axis=1)
    least = np.minimum(most[: len(std)], most[reach : reach + len(std)])
    out: Series = (std / np.maximum(least, 1e-6)).astype(np.float32)
    return out


def _fades(std: Series, fps: float) -> list[tuple[int, int, str]]:
    """Flat fields with a steady ramp of contrast before or after them."""
    found = []
    for start, end in runs(std < FLAT_STD, gap=1):
        before = _ramp(std[:start][::-1], fps)
        after = _ramp(std[end:], fps)
        if before or after:
            found.append((start - before, end + after, "fade"))
    return found


def _ramp(outward: Series, fps: float) -> int:
    """Frames for which contrast keeps rising away from a flat field; 0 where it jumps at once (a hard cut) or stays."""
    length, last = 0, min(len(outward), round(FADE_S * fps)) - 1
    while length < last and outward[length + 1] > outward[max(0, length - 1)] * 1.02:
        length += 1
    # The picture goes on changing after a fade: what only adds the last few per cent is no part of it.
    length = int(np.argmax(outward[: length + 1] >= 0.92 * outward[length])) if length > 0 else 0
    if length < max(2, round(0.1 * fps)) or outward[length] < RAMP_STD:
        return 0
    steps = np.diff(outward[: length + 1], prepend=0)
    return 0 if steps.max() > 0.7 * outward[length] else length + 1
