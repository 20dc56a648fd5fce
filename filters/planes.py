"""Small pictures of a decoded frame: its Y, U and V planes shrunk by a power of two, without a colour conversion.

Every per-frame measure but the luma motion looks at these, so a frame is shrunk once.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import av

Plane = NDArray[np.uint8]

SHORT_SIDE_PX = 54
"""The short side of a small picture is at least this (where the source is) and less than twice this.

Below it OpenCV's DIS flow changes to finer scales of its own accord and takes five times as long."""

EIGHT_BIT_YUV = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"})


@dataclass(frozen=True)
class Small:
    """Shrunk planes of one frame, all of one shape (h, w), uint8; `scale` full luma pixels make one small pixel."""

    y: Plane
    u: Plane
    v: Plane
    scale: int

    @cached_property
    def ycrcb(self) -> Plane:
        """The planes side by side in OpenCV's order (h, w, 3): Y, V, U."""
        import cv2

        merged: Plane = cv2.merge([self.y, self.v, self.u])  # type: ignore[assignment]
        return merged

    def bgr(self) -> Plane:
        """The picture as 8-bit BGR (h, w, 3), as OpenCV and PySceneDetect expect it."""
        import cv2

        picture: Plane = cv2.cvtColor(self.ycrcb, cv2.COLOR_YCrCb2BGR)  # type: ignore[assignment]
        return picture


def factor(width: int, height: int) -> int:
    """The power of two that brings the short side below 2 x `SHORT_SIDE_PX`."""
    found = 1
    while min(width, height) // (found * 2) >= SHORT_SIDE_PX:
        found *= 2
    return found


def shrink(plane: Plane, by: int) -> Plane:
    """Mean over `by` x `by` blocks, `by` a power of two; a rest at the right and lower edge is left out.

    Halving again and again is three times faster in OpenCV than one step by 4 or 8.
    """
    import cv2

    while by > 1 and min(plane.shape) >= 2:
        height, width = plane.shape[0] // 2, plane.shape[1] // 2
        plane = cv2.resize(plane[: height * 2, : width * 2], (width, height), interpolation=cv2.INTER_AREA)  # type: ignore[assignment]
        by //= 2
    return plane


def planes(frame: "av.VideoFrame") -> tuple[Plane, Plane, Plane]:
    """The full Y, U and V planes of a frame as 8-bit arrays; no copy where it is 8-bit planar YUV already."""
    if frame.format.name not in EIGHT_BIT_YUV:
        frame = frame.reformat(format="yuv420p")
    y, u, v = (_plane(p) for p in frame.planes[:3])
    return y, u, v


def small(y: Plane, u: Plane, v: Plane, by: int) -> Small:
    """The planes of a frame shrunk by `by`."""
    luma = np.ascontiguousarray(shrink(y, by))  # optical flow asks for it
    return Small(luma, _chroma(u, y, by, luma), _chroma(v, y, by, luma), by)


def _plane(plane: Any) -> Plane:
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _chroma(plane: Plane, luma: Plane, by: int, like: Plane) -> Plane:
    """A chroma plane at the size of the small luma `like`, whatever the subsampling."""
    import cv2

    across, down = round(luma.shape[1] / plane.shape[1]), round(luma.shape[0] / plane.shape[0])
    if across == down and by >= across:
        out = shrink(plane, by // across)
        if out.shape[0] >= like.shape[0] and out.shape[1] >= like.shape[1]:
            return out[: like.shape[0], : like.shape[1]]
    else:
        out = shrink(plane, max(1, by // max(across, down)))
    resized: Plane = cv2.resize(out, (like.shape[1], like.shape[0]), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return resized
