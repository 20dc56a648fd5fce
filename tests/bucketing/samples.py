"""Sources whose every frame says its number and which way is up, and what a planner would make of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bucketing.buckets import choose
from bucketing.cut import Cut, Turn
from curation.media import MediaLimits, Picture, decode, probe
from tests.media_samples import number_of, numbered

LIMITS = MediaLimits()
CORNERS = {
    "upper left": (200, 40, 40),
    "upper right": (40, 180, 40),
    "lower left": (40, 40, 200),
    "lower right": (200, 200, 40),
}


def marked(width: int, height: int) -> Callable[[int], Picture]:
    """Frame `n`: a colour in each corner, and the number `n` in the middle third of both sides."""
    back = np.empty((height, width, 3), np.uint8)
    for corner, colour in CORNERS.items():
        rows = slice(0, height // 2) if "upper" in corner else slice(height // 2, height)
        back[rows, slice(0, width // 2) if "left" in corner else slice(width // 2, width)] = colour
    label = numbered(width // 3, height // 3)

    def picture(n: int) -> Picture:
        shown = back.copy()
        shown[height // 3 : height // 3 * 2, width // 3 : width // 3 * 2] = label(n)
        return shown

    return picture


def barred(inner: Callable[[int], Picture], top: int, bottom: int, left: int, right: int) -> Callable[[int], Picture]:
    """The same pictures between white bars."""
    return lambda n: np.pad(inner(n), ((top, bottom), (left, right), (0, 0)), constant_values=255)


def number(picture: Picture) -> int:
    """The number that a `marked` picture says, cropped about its centre by a little."""
    height, width = picture.shape[:2]
    return number_of(picture[height // 3 : height // 3 * 2, width // 3 : width // 3 * 2])


def planned(path: Path, bucket_class: int = 256, start: int = 0, end: int | None = None, **clip: Any) -> tuple[Cut, Turn]:
    """The cut of frames [start, end) of a file; `clip` overrides columns of the clip's row."""
    row = probe(str(path), LIMITS)
    with decode(str(path), LIMITS) as frames:
        times = np.array([f.time_s for f in frames])
    edges = np.append(times, 2 * times[-1] - times[-2])
    end = len(times) if end is None else end
    known = {k: row[k] for k in ("kind", "width", "height", "rotation", "pixel_aspect")}
    choice = choose({**known, "frames": end - start, "duration_s": edges[end] - edges[start], **clip}, bucket_class)
    assert choice.bucket is not None, choice.why
    cut = Cut(f"{path.stem}_{start}_{end}-{bucket_class}", start, end, times[start:end], float(edges[end]), choice)
    return cut, Turn(row["width"], row["height"], row["rotation"])


def pictures(path: Path) -> list[Picture]:
    """All frames of a sample as RGB."""
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
