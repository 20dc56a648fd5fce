"""Shape buckets: all samples of a bucket have one width, height and frame count. Pure; knows nothing of the rest.

Five aspect ratios x three frame counts for video, five ratios for images (Movie Gen, section on buckets), at a
256-pixel and a 768-pixel class. The sizes of a class have nearly the same number of 16 x 16 tokens. The paper names only
1024x576 and 576x1024; the other ratios are our choice. Its table of lengths and rates:

    clip           sample                                       clip           sample
    from 16 s      256 frames at 16 fps, the centre 16 s        8 to 10.67 s   192 frames at 24 to 18 fps, all of it
    12 to 16 s     256 frames at 21.3 to 16 fps, all of it      4 to 8 s       128 frames at 32 to 16 fps, all of it
    10.67 to 12 s  256 frames at 24 fps, the centre 10.67 s

A sample never has a frame twice, so its rate is at most the clip's own: a row that asks for more goes down to the
clip's rate where the row's length of clip still gives the frames, else the next lower frame count is tried. The least
rate is 16 fps: a clip of fewer frames a second fits no bucket, however long it is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZES: dict[int, dict[str, tuple[int, int]]] = {
    256: {"16x9": (336, 192), "4x3": (288, 224), "1x1": (256, 256), "3x4": (224, 288), "9x16": (192, 336)},
    768: {"16x9": (1024, 576), "4x3": (896, 672), "1x1": (768, 768), "3x4": (672, 896), "9x16": (576, 1024)},
}
"""Class -> ratio -> (width, height)."""

FPS_MIN = 16.0
FPS_MAX = {256: 24.0, 192: 24.0, 128: 32.0}
"""Frame count -> highest rate: 256 frames are 10.67 to 16 s, 192 are 8 to 12 s, 128 are 4 to 8 s."""
FPS_FINEST = 1001
"""Largest denominator of a sample's rate: exact for 24000/1001 and its kin, within one in a million for others."""
FIXED_FPS = (16, 24)
"""Rates of samples for fine-tuning, of 256 frames: 16 s or 10.67 s (Movie Gen, section on fine-tuning data)."""
FIXED_FRAMES = 256
CENTRE_BELOW_S = 12.0
"""Clips under this give their centre at the highest rate for 256 frames; longer ones are shown whole."""
SLACK = 1e-3
"""Durations are sums of rounded time stamps: a rate this share below a limit still meets it."""
BAR_EDGE_PX = 2
"""Compression smears a bar into the picture: this much more is left out beside one."""

Rect = tuple[int, int, int, int]
"""(x, y, width, height) in pixels."""


@dataclass(frozen=True)
class Bucket:
    """One tensor shape. `frames` is 1 for images."""

    bucket_class: int
    ratio: str
    frames: int

    @property
    def name(self) -> str:
        """`v256-16x9-f128`, or `i256-16x9` for images."""
        if self.frames == 1:
            return f"i{self.bucket_class}-{self.ratio}"
        return f"v{self.bucket_class}-{self.ratio}-f{self.frames}"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return SIZES[self.bucket_class][self.ratio]


@dataclass(frozen=True)
class Choice:
    """A clip's bucket and how to get there, or why there is none.

    `crop` is (x, y, width, height) in displayed pixels, all even, inside the bars. `fps` is the rate of the sample and
    `span_s` what it shows of the clip, from the centre; both are 0 for images. `misfit` is `too_small` or
    `too_few_frames` where `bucket` is None.
    """

    bucket: Bucket | None
    why: str
    misfit: str | None = None
    crop: Rect = (0, 0, 0, 0)
    fps: Fraction = Fraction(0)
    span_s: float = 0.0


def all_buckets(bucket_class: int) -> list[Bucket]:
    """Every bucket of a class, images last."""
    return [Bucket(bucket_class, ratio, frames) for frames in (*FPS_MAX, 1) for ratio in SIZES[bucket_class]]


def named(name: str) -> Bucket:
    """The bucket with that name. Raises ValueError where there is none."""
    for bucket_class in SIZES:
        for bucket in all_buckets(bucket_class):
            if bucket.name == name:
                return bucket
    raise ValueError(f"no bucket has the name {name!r}")


def choose(clip: Mapping[str, Any], bucket_class: int, fixed: bool = False) -> Choice:
    """The bucket of a clip, from its row of `clips`: a pure function, explained in `why`.

    The nearest ratio of the picture without its bars; the longest frame count whose frames the clip has at a rate of its
    range. A clip that is too long gives its centre; no frame is repeated and no picture enlarged. `pixel_aspect` and
    `rotation` are the source's, where the mapping has them: stored pixels that are stretched for display do not count
    twice. `fixed` asks for 256 frames at one of FIXED_FPS.
    """
    ratio, crop = _crop(clip, bucket_class)
    stored = _stored(clip, crop)
    size = SIZES[bucket_class][ratio]
    shape = f"{ratio} is the nearest ratio, {crop[2]}x{crop[3]} inside the bars"
    if min(crop[2], stored[0]) < size[0] or min(crop[3], stored[1]) < size[1]:
        seen = "" if stored == crop[2:] else f" ({stored[0]}x{stored[1]} stored)"
        return Choice(None, f"{shape}{seen}, {size[0]}x{size[1]} is the least", "too_small")
    if clip["kind"] == "image":
        return Choice(Bucket(bucket_class, ratio, 1), shape, None, crop)
    frames, duration_s = int(clip["frames"] or 0), float(clip["duration_s"] or 0.0)
    for count in FPS_MAX if not fixed else (FIXED_FRAMES,):
        fps = fixed_fps(frames, duration_s) if fixed else sample_fps(count, frames, duration_s)
        if fps is not None:
            span_s = min(duration_s, float(count / fps))
            why = f"{shape}; {count} of {frames} frames at {float(fps):.5g} fps show {span_s:.2f} of {duration_s:.2f} s"
            return Choice(Bucket(bucket_class, ratio, count), why, None, crop, fps, span_s)
    return Choice(None, _too_few(frames, duration_s, fixed), "too_few_frames")


def sample_fps(count: int, frames: int, duration_s: float) -> Fraction | None:
    """The rate at which a clip of `frames` frames in `duration_s` gives `count` frames, or None where it cannot."""
    if frames < count or duration_s <= 0:
        return None
    own, whole = frames / duration_s, count / duration_s  # the clip's rate; the rate that shows all of it
    if own < FPS_MIN * (1 - SLACK) or whole > FPS_MAX[count] * (1 + SLACK):
        return None
    fps = max(whole, FPS_MIN)
    if count == max(FPS_MAX) and duration_s < CENTRE_BELOW_S:
        fps = max(fps, min(FPS_MAX[count], own))
    return Fraction(min(fps, FPS_MAX[count])).limit_denominator(FPS_FINEST)


def fixed_fps(frames: int, duration_s: float) -> Fraction | None:
    """The lowest of FIXED_FPS, which shows the most, at which a clip gives 256 frames; None where none does.

    A clip that ends within its last frame of the sample's end has all the frames that the sample shows.
    """
    if frames < FIXED_FRAMES or duration_s <= 0:
        return None
    own = frames / duration_s
    for rate in FIXED_FPS:
        if own >= rate * (1 - SLACK) and duration_s >= FIXED_FRAMES / rate - 1 / own - SLACK:
            return Fraction(min(rate, own)).limit_denominator(FPS_FINEST)
    return None


def _too_few(frames: int, duration_s: float, fixed: bool) -> str:
    """Why a clip gives no frame count."""
    own = f" ({frames / duration_s:.4g} fps)" if duration_s > 0 else ""
    least = "256 frames at 24 fps or, from 16 s on, at 16 fps" if fixed else "128 frames at 16 to 32 fps"
    return f"{frames} frames in {duration_s:.2f} s{own}: {least} are the least"


def _crop(clip: Mapping[str, Any], bucket_class: int) -> tuple[str, Rect]:
    """The nearest ratio, and the largest centred rectangle of it inside the bars, in even displayed pixels."""
    x0, x1 = _inside(clip, "left", "right", int(clip["width"]))
    y0, y1 = _inside(clip, "top", "bottom", int(clip["height"]))
    width, height = x1 - x0, y1 - y0
    if width <= 0 or height <= 0:
        return "1x1", (x0, y0, 0, 0)
    sizes = SIZES[bucket_class]
    ratio = min(sizes, key=lambda r: abs(math.log(width / height * sizes[r][1] / sizes[r][0])))
    across, down = sizes[ratio]
    wide, high = _even(min(width, height * across / down)), _even(min(height, width * down / across))
    return ratio, (x0 + _even((width - wide) / 2), y0 + _even((height - high) / 2), wide, high)


def _inside(clip: Mapping[str, Any], before: str, after: str, length: int) -> tuple[int, int]:
    """Where the picture begins and ends between two bars, rounded inwards to even pixels."""
    first, last = (float(clip.get(f"border_{side}_px") or 0.0) for side in (before, after))
    first, last = (bar + BAR_EDGE_PX if bar > 0 else 0.0 for bar in (first, last))
    return -_even(-first), _even(length - last)


def _even(value: float) -> int:
    """The largest even whole number that is not above `value` (a speck of float error aside)."""
    return 2 * math.floor(value / 2 + 1e-9)


def _stored(clip: Mapping[str, Any], crop: Rect) -> tuple[int, int]:
    """How many stored pixels a displayed rectangle has, across and down: display stretches a stored row by `pixel_aspect`."""
    aspect = float(clip.get("pixel_aspect") or 1.0)
    if int(clip.get("rotation") or 0) % 180:
        return crop[2], _even(crop[3] / aspect)
    return _even(crop[2] / aspect), crop[3]


def frame_indices(time_s: NDArray[np.float64], end_s: float, choice: Choice) -> NDArray[np.int64]:
    """Which of a clip's frames make the sample: strictly increasing indices, one a target time, none twice.

    `time_s` are the clip's own frame times, `end_s` its end. The target times begin at a frame, as many before the
    clip's centre as after it, and follow at the sample's rate; each takes the nearest frame. Where two would take the
    same one, the frames around are shifted as little as can be, to both sides alike. Raises ValueError where the clip
    has fewer frames than the bucket.
    """
    assert choice.bucket is not None
    count, have = choice.bucket.frames, len(time_s)
    if have < count:
        raise ValueError(f"{have} frames, {count} are wanted")
    steps = np.arange(count)
    wanted = nearest(time_s, target_times(time_s, end_s, choice)) - steps
    # The closest non-decreasing sequence: half way between the ceiling of what came before and the floor of what follows.
    before, after = np.maximum.accumulate(wanted), np.minimum.accumulate(wanted[::-1])[::-1]
    indices: NDArray[np.int64] = np.clip((before + after) // 2, 0, have - count) + steps
    return indices


def target_times(time_s: NDArray[np.float64], end_s: float, choice: Choice) -> NDArray[np.float64]:
    """The times that a sample should show."""
    assert choice.bucket is not None
    if choice.bucket.frames == 1:
        return time_s[:1]
    margin = max(0.0, end_s - float(time_s[0]) - choice.span_s) / 2
    # From a frame's own time: targets half way between two frames would fall to either by a speck of rounding.
    first = nearest(time_s, np.array([time_s[0] + margin]))[0]
    times: NDArray[np.float64] = time_s[first] + np.arange(choice.bucket.frames) / float(choice.fps)
    return times


def nearest(time_s: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the nearest of the sorted `time_s` for each target, the earlier one at equal distance."""
    after = np.clip(np.searchsorted(time_s, targets), 1, max(1, len(time_s) - 1))
    if len(time_s) == 1:
        return np.zeros(len(targets), dtype=np.int64)
    earlier = targets - time_s[after - 1] <= time_s[after] - targets + 1e-6
    return after - earlier
