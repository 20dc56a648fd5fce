"""Shape buckets: all samples of a bucket have one width, height and frame count. Pure; knows nothing of the rest.

Five aspect ratios x three frame counts for video, five ratios for images (Movie Gen, section on buckets), at a
256-pixel and a 768-pixel class. The sizes of a class have nearly the same number of 16 x 16 tokens. The paper names only
1024x576 and 576x1024; the other ratios are our choice.
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

    `crop` is (x, y, width, height) in displayed pixels, inside the bars. `fps` is the rate of the sample and `span_s` what
    it shows of the clip, from the centre. `misfit` is `too_small` or `too_few_frames` where `bucket` is None.
    """

    bucket: Bucket | None
    why: str
    misfit: str | None = None
    crop: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    fps: Fraction = Fraction(0)
    span_s: float = 0.0


def all_buckets(bucket_class: int) -> list[Bucket]:
    """Every bucket of a class, images last."""
    return [Bucket(bucket_class, ratio, frames) for frames in (*FPS_MAX, 1) for ratio in SIZES[bucket_class]]


def named(name: str) -> Bucket:
    """The bucket with that name."""
    shape, ratio, *frames = name.split("-")
    return Bucket(int(shape[1:]), ratio, int(frames[0][1:]) if frames else 1)


def choose(clip: Mapping[str, Any], bucket_class: int) -> Choice:
    """The bucket of a clip, from its row of `clips`: a pure function, explained in `why`.

    The nearest ratio of the picture without its bars; the longest frame count whose frames the clip has at a rate of its
    range. A clip that is too long gives its centre; no frame is repeated and no picture enlarged.
    """
    ratio, crop = _crop(clip, bucket_class)
    width, height = SIZES[bucket_class][ratio]
    if crop[2] < width or crop[3] < height:
        why = f"{ratio} inside the bars is {crop[2]:.0f}x{crop[3]:.0f}, {width}x{height} is wanted"
        return Choice(None, why, "too_small")
    if clip["kind"] == "image":
        return Choice(Bucket(bucket_class, ratio, 1), f"nearest ratio {ratio}", None, crop)
    frames, duration_s = int(clip["frames"]), float(clip["duration_s"] or 0.0)
    for count, highest in FPS_MAX.items():
        if frames >= count and duration_s > 0 and count / duration_s <= highest:
            fps = max(Fraction(round(count / duration_s * 100), 100), Fraction(int(FPS_MIN)))
            span_s = min(duration_s, float(count / fps))
            why = f"nearest ratio {ratio}; {count} of {frames} frames at {float(fps):g} fps over {span_s:.2f} of {duration_s:.2f} s"
            return Choice(Bucket(bucket_class, ratio, count), why, None, crop, fps, span_s)
    return Choice(None, f"{frames} frames in {duration_s:.2f} s: 128 at 16 to 32 fps are the least", "too_few_frames")


def _crop(clip: Mapping[str, Any], bucket_class: int) -> tuple[str, tuple[float, float, float, float]]:
    """The nearest ratio, and the largest centred rectangle of it inside the bars."""
    left, right, top, bottom = (float(clip.get(f"border_{side}_px") or 0) for side in ("left", "right", "top", "bottom"))
    width, height = clip["width"] - left - right, clip["height"] - top - bottom
    if width <= 0 or height <= 0:
        return "1x1", (left, top, 0.0, 0.0)
    sizes = SIZES[bucket_class]
    ratio = min(sizes, key=lambda r: abs(math.log(width / height * sizes[r][1] / sizes[r][0])))
    wanted = sizes[ratio][0] / sizes[ratio][1]
    wide, high = min(width, height * wanted), min(height, width / wanted)
    return ratio, (left + (width - wide) / 2, top + (height - high) / 2, wide, high)


def frame_indices(time_s: NDArray[np.float64], end_s: float, choice: Choice) -> NDArray[np.int64]:
    """Which of a clip's frames make the sample: strictly increasing indices, one a target time, none twice.

    `time_s` are the clip's own frame times, `end_s` its end. The target times stand evenly over the centre `span_s`; each
    takes the frame on show then. Raises ValueError where the clip has fewer frames than the bucket.
    """
    assert choice.bucket is not None
    count, have = choice.bucket.frames, len(time_s)
    if have < count:
        raise ValueError(f"{have} frames, {count} are wanted")
    start = time_s[0] + max(0.0, end_s - time_s[0] - choice.span_s) / 2
    targets = start + (np.arange(count) + 0.5) * (choice.span_s / count)
    shown = np.clip(np.searchsorted(time_s, targets, side="right") - 1, 0, have - 1)
    steps = np.arange(count)
    rising = np.maximum.accumulate(shown - steps) + steps
    return np.minimum(rising, have - count + steps)
