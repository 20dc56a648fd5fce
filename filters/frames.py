"""The kept frames: candidates wait as JPEGs in a temporary file until the clips are known; a few a clip are kept."""

from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from curation.clips import Span


class FramesConfig(BaseModel):
    """The sampled frames: what bars and quality are measured on, and what is kept as JPEG for text, reports, review."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every_s: float = Field(default=0.5, gt=0)
    """Least spacing of the samples; `clips.min_s` / `per_clip` where that is longer."""
    per_clip: int = Field(default=3, ge=2, le=4)
    """Frames kept for each clip, as far as it has as many samples."""
    long_side: int = Field(default=640, ge=64, le=4096)
    """Long side of a kept frame in pixels; smaller sources keep their size."""
    quality: int = Field(default=90, ge=1, le=100)
    """JPEG quality."""


def kept_size(width: int, height: int, long_side: int) -> tuple[int, int]:
    """Width and height of a kept frame of a source displayed at `width` x `height`."""
    shrink = min(1.0, long_side / max(width, height))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


class Spill:
    """JPEGs in a temporary file, told apart by where they begin and how long they are."""

    def __init__(self, file: BinaryIO, quality: int) -> None:
        self.file = file
        self.quality = quality
        self.end = 0

    def add(self, rgb: NDArray[np.uint8]) -> tuple[int, int]:
        """Encode and append a picture (H, W, 3); returns (offset, size)."""
        import cv2

        done, jpeg = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        assert done, "a picture that OpenCV cannot encode"
        place = (self.end, len(jpeg))
        self.file.write(jpeg.tobytes())
        self.end += len(jpeg)
        return place

    def read(self, offset: int, size: int) -> bytes:
        """The bytes of one JPEG."""
        self.file.seek(offset)
        return self.file.read(size)


def choose(candidates: Sequence[int], span: Span, count: int) -> list[int]:
    """At most `count` of the sampled frames inside a clip, spread evenly; the one nearest its middle is among them."""
    start, end = span
    inside = [c for c in candidates if start <= c < end]
    if len(inside) <= count:
        return inside
    middle = min(inside, key=lambda c: abs(c + 0.5 - (start + end) / 2))
    targets = [start + (end - start) * (i + 0.5) / count for i in range(count)]
    targets.remove(min(targets, key=lambda t: abs(t - middle)))
    chosen = {middle}
    for target in targets:
        chosen.add(min((c for c in inside if c not in chosen), key=lambda c: abs(c + 0.5 - target)))
    return sorted(chosen)
