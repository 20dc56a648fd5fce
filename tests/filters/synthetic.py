"""Moving pictures whose truth is known because they are made of numbers."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from filters.planes import Small

Rgb = NDArray[np.uint8]


def texture(seed: int, height: int = 120, width: int = 208) -> Rgb:
    """A colourful picture with detail at several sizes; another `seed` gives quite another one."""
    rng = np.random.default_rng(seed)
    out = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((3, 1.0), (8, 0.7), (30, 0.4)):
        grid = rng.uniform(-1, 1, (cells, cells * width // height, 3)).astype(np.float32)
        out += weight * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 70 * out, 16, 240).astype(np.uint8)


def small(picture: Rgb) -> Small:
    """A picture as the detectors see it."""
    y, v, u = cv2.split(cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb))
    return Small(y, u, v, 1)


def pan(picture: Rgb, frames: int, step: float) -> list[Rgb]:
    """A window of 5/8 of the width that moves `step` pixels a frame to the right, sub-pixel steps included."""
    height, width = picture.shape[:2]
    out_width = width * 5 // 8 // 2 * 2
    moves = [np.array([[1, 0, -i * step], [0, 1, 0]], np.float32) for i in range(frames)]
    return [cv2.warpAffine(picture, m, (out_width, height), flags=cv2.INTER_CUBIC) for m in moves]


def write(path: Path, pictures: Sequence[Rgb], fps: float = 24, times_s: Sequence[float] | None = None, crf: int = 12) -> Path:
    """An H.264 file of the pictures, at a constant rate or at the given times."""
    height, width = pictures[0].shape[:2]
    base = Fraction(1, 90000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(crf), "preset": "ultrafast"}
        stream.codec_context.time_base = base
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.time_base = base
            frame.pts = round((times_s[i] if times_s is not None else i / fps) * 90000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
