"""Motion: FFmpeg's vmafmotion, displacement by optical flow, and visible change.

The classes reduce a stream of frames to floats; the functions at the end turn slices of those series into clip scores.
All scores are None where a clip has no pair of frames to speak of.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from filters.planes import Plane

Series = NDArray[np.float32]
Blocks = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.float32]]
"""Displacement (rows, columns, 2) of a pair's blocks in small pixels, whether each has texture and whether it changed
(rows, columns), and how far it did by what its displacement, up to one pixel, and its texture ask: about 0.6 as a rule."""

VMAF_KERNEL = np.array([3571, 16004, 26386, 16004, 3571], np.float32) / 65536
"""The 5-tap filter of FFmpeg's libavfilter/vf_vmafmotion.c."""
FIXED_POINT = 128
"""Steps of one level kept in the 16-bit blur, as in the filter: 255 x 128 still fits."""

FLOW_HZ = 12
"""Pairs of frames whose flow is measured, a second: longer steps lift small motion above the flow's own error."""
CAMERA_STEPS = 3
"""Steps of the flow between the two pictures of a camera's pair, a quarter of a second: what depth and slow moves do then
stands three times as far above the flow's error. One pair begins where the other ends."""
FLOW_SHORT_SIDE = 32
"""Lower pictures are made so high: OpenCV's DIS flow would choose its scales by the width alone and read beyond them."""
BLOCK = 4
TEXTURE = 16.0
"""Least |Sobel| sum of a block whose flow is trusted; a flat block has none to speak of."""
NOISE_LEVELS = 0.2
"""A block that changed by less than this, in levels, did not move: coding noise."""
CONSTANCY = 0.1
"""Nor did one that changed by less than this share of its gradient a pixel moved, up to one pixel: where the flow says
that an edge moved, brightness constancy asks for a change of that order."""
OWN_PX = 1.0
"""Motion of a block's own, in pixels a frame at 720 of short side, that doubles its weight."""
FILM_FPS = (24.0, 30.0)
"""Rates at which a frame counts as it is; displacement at other rates is converted to the nearest of them."""
REFERENCE_SHORT_SIDE = 720

CHANGE_S = 0.25
"""Visible change is looked for between frames this far apart: repeated frames and slow motion then count alike."""
CHANGE_LEVELS = 4
STATIC_FRAC = 0.005
"""A pair with fewer visibly changed pixels than this share is static."""
CELLS = 24
"""Rows and columns of the grid on which is kept where a picture changed."""
INSET_PAIRS = 8
"""Least pairs of frames in which an inset shows itself, two seconds: a title that comes up is none."""
INSET_OFTEN = 0.1
"""A cell that changed in this share of the pairs and more may belong to an inset."""
INSET_BUSY = 0.25
"""Mean share of the pairs in which an inset's cells change: a counter's digits do at least once a second, and what passes
through the picture leaves each cell again."""
INSET_FILL = 0.85
"""Share of its bounding box that an inset fills: it is a rectangle, as no subject is."""
INSET_FRAC = 1 / 3
"""Larger insets are what the picture is about."""
REST_FRAC = 0.015
"""Most cells around insets that change in a static pair: about what `STATIC_FRAC` of the pixels touch."""
WHOLE = (0.0, 1.0, 0.0, 1.0)


class LumaMotion:
    """FFmpeg's `vmafmotion`, frame by frame: the mean absolute difference of blurred luma to the frame before.

    Two 16-bit buffers are written in turn: a fresh one for every frame would cost more than the blur (page faults).
    """

    def __init__(self) -> None:
        self.blurred: list[NDArray[np.int16]] = []
        self.index = 0

    def push(self, luma: Plane) -> float:
        """The score of the next full-resolution 8-bit luma plane, in levels; 0 for the first."""
        import cv2

        if not self.blurred:
            self.blurred = [np.empty(luma.shape, np.int16) for _ in range(2)]
        out = self.blurred[self.index % 2]
        cv2.sepFilter2D(luma, cv2.CV_16S, VMAF_KERNEL, VMAF_KERNEL * FIXED_POINT, dst=out)
        self.index += 1
        if self.index == 1:
            return 0.0
        return float(cv2.norm(self.blurred[0], self.blurred[1], cv2.NORM_L1)) / (FIXED_POINT * luma.size)


class Change:
    """What differs visibly from the frame `CHANGE_S` earlier: how much, frame by frame, and where, a few times a second."""

    def __init__(self, fps: float) -> None:
        self.lag = change_lag(fps)
        self.held: list[Plane] = []
        self.index = 0
        self.maps: list[bytes] = []
        """A map for each frame whose index is a multiple of `lag`, but the first: the bits of `CELLS` x `CELLS` cells, row
        by row, set where a pixel of the cell changed."""

    def push(self, luma: Plane) -> float:
        """The share of changed pixels of the next small luma plane, 0 to 1; against the first one while fewer have passed."""
        import cv2

        index, self.index = self.index, self.index + 1
        self.held.append(luma)
        if len(self.held) > self.lag + 1:
            self.held.pop(0)
        changed = cv2.threshold(cv2.absdiff(luma, self.held[0]), CHANGE_LEVELS, 255, cv2.THRESH_BINARY)[1]
        if index and index % self.lag == 0:
            cells = cv2.resize(changed, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
            self.maps.append(np.packbits(cells > 0).tobytes())
        return cv2.countNonZero(changed) / luma.size


class Flow:
    """Displacement between frames by DIS optical flow on the small luma plane, a few pairs a second.

    `push` gives (motion_px, global_dx_px, global_dy_px) for the pair that ends at this frame, per frame and at 720
    pixels of short side, or None between pairs. `global_*` is the median displacement of the textured blocks: the
    camera's. `motion_px` is the mean length of their displacement, weighted by one plus the square of what each moves
    on its own, against the camera: a uniform pan counts in full, a subject that moves for more than the still ground.
    """

    def __init__(self, fps: float, width: int, height: int) -> None:
        import cv2

        self.gap = flow_gap(fps)
        self.short = min(width, height)
        self.index = 0
        self.held: deque[Plane] = deque(maxlen=CAMERA_STEPS + 1)
        self.flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        # At its fastest DIS looks at every fourth pixel: a card before a wall, which tells a push from a zoom, is lost.
        self.fine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self.fine.setFinestScale(0)

    def push(self, luma: Plane, scale: int) -> tuple[float, float, float] | None:
        """Add the next small luma plane, of which one pixel is `scale` full pixels."""
        index, self.index = self.index, self.index + 1
        if index % self.gap:
            return None
        self.held.append(_roomy(luma))
        if len(self.held) == 1:
            return None
        pixels = scale * REFERENCE_SHORT_SIDE / self.short / self.gap
        before = self.held[-2]
        flow = self.flow.calc(before, self.held[-1], None)  # type: ignore[call-overload]
        vectors, textured, seen, _ = _block_motion(before, self.held[-1], flow)
        moved = (vectors * seen[..., None])[textured] * pixels
        if len(moved) < 4:
            return 0.0, 0.0, 0.0
        camera = np.partition(moved, len(moved) // 2, axis=0)[len(moved) // 2]
        length = np.hypot(moved[:, 0], moved[:, 1])
        own = np.minimum(np.hypot(*(moved - camera).T), length)  # what stands still in a pan has no motion of its own
        return float(np.average(length, weights=1 + (own / OWN_PX) ** 2)), float(camera[0]), float(camera[1])

    @property
    def span(self) -> int:
        """Frames between the two of a camera's pair."""
        return self.gap * CAMERA_STEPS

    def camera_pair(self) -> Blocks | None:
        """The blocks of the camera's pair that ends at the frame that `push` measured; None where none does."""
        if len(self.held) <= CAMERA_STEPS or (self.index - 1) % self.span:
            return None
        before, after = self.held[0], self.held[-1]
        return _block_motion(before, after, self.fine.calc(before, after, None))  # type: ignore[call-overload]


def _roomy(luma: Plane) -> Plane:
    """The plane with its last row and column repeated, up to `FLOW_SHORT_SIDE` of both."""
    import cv2

    rows, columns = (max(0, FLOW_SHORT_SIDE - side) for side in luma.shape)
    if not rows and not columns:
        return luma
    return cv2.copyMakeBorder(luma, 0, rows, 0, columns, cv2.BORDER_REPLICATE)  # type: ignore[return-value]


def _block_motion(before: Plane, after: Plane, flow: NDArray[np.float32]) -> Blocks:
    """The blocks of a pair; one that did not change as brightness constancy asks has not moved, whatever the flow says."""
    import cv2

    height, width = before.shape[0] // BLOCK * BLOCK, before.shape[1] // BLOCK * BLOCK
    cut, size = (slice(height), slice(width)), (width // BLOCK, height // BLOCK)
    dx, dy = cv2.spatialGradient(before)
    gradient = cv2.add(cv2.convertScaleAbs(dx[cut]), cv2.convertScaleAbs(dy[cut]))
    texture = cv2.resize(gradient, size, interpolation=cv2.INTER_AREA)
    # Wide in type: the mean of a block's absolute differences is a fraction of a level.
    change = cv2.resize(cv2.absdiff(before[cut], after[cut]).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    vectors = np.asarray(cv2.resize(flow[cut], size, interpolation=cv2.INTER_AREA), np.float32)
    # A Sobel sum over both directions is about 8 x sqrt(2) times the slope in levels a pixel.
    asked = texture / (8 * 2**0.5) * np.minimum(np.hypot(vectors[..., 0], vectors[..., 1]), 1)
    seen = (change > NOISE_LEVELS) & (change >= CONSTANCY * asked)
    return vectors, texture > TEXTURE, seen, np.asarray(change / np.maximum(asked, 1e-3), np.float32)


def flow_gap(fps: float) -> int:
    """Frames between the two of a pair whose flow is measured; pairs begin and end at its multiples."""
    return max(1, round(fps / FLOW_HZ))


def change_lag(fps: float) -> int:
    """Frames between the two of a pair in which change is looked for."""
    return max(1, round(CHANGE_S * fps))


def motion_vmaf(series: Series, start: int, end: int) -> float | None:
    """The clip's average as the filter itself gives it for the clip alone: its first frame counts as 0."""
    return float(series[start + 1 : end].sum(dtype=np.float64)) / (end - start) if end - start > 1 else None


def motion_mv(motion_px: Series, start: int, end: int, fps: float) -> float | None:
    """Mean displacement over the pairs of frames inside the clip, at 720 pixels of short side.

    Pixels a frame where the rate is within `FILM_FPS`; a clip of 60 frames a second gives what its 30 would. A tenth of
    the pairs at either end is left out: a codec's key frames, a flash, a jump.
    """
    pairs = np.sort(motion_px[_pair_ends(start, end, flow_gap(fps))])
    if not len(pairs):
        return None
    rest = len(pairs) // 10
    kept = pairs[rest : len(pairs) - rest]
    return float(kept.mean(dtype=np.float64)) * fps / min(max(fps, FILM_FPS[0]), FILM_FPS[1])


def _pair_ends(start: int, end: int, gap: int) -> NDArray[np.int_]:
    first = -(-start // gap) * gap
    return np.arange(first + gap, end, gap)


def motion_static_frac(
    changed: Series, maps: Sequence[bytes], start: int, end: int, lag: int, picture: Sequence[float] = WHOLE
) -> float | None:
    """Share of the clip's pairs of frames, `lag` apart, without visible change; a short clip compares to its first.

    Change inside an inset does not count: a still with a counter or a small film in it is a still. `maps` are those of
    `Change`; `picture` is what bars leave of the frame (top, bottom, left, right, as shares of height and width): between
    bars it is no inset.
    """
    if end - start < 2:
        return None
    share = float(np.mean(changed[start + min(lag, end - start - 1) : end] < STATIC_FRAC))
    inside = maps[-(-start // lag) : (end - 1) // lag]
    if len(inside) < INSET_PAIRS:
        return share
    bits = np.unpackbits(np.frombuffer(b"".join(inside), np.uint8)).astype(bool)
    top, bottom, left, right = (round(edge * CELLS) for edge in picture)
    cells = bits.reshape(len(inside), CELLS, CELLS)[:, top:bottom, left:right]
    insets = _insets(cells)
    if not insets.any():
        return share
    rest = np.mean(cells & ~insets, axis=(1, 2))
    return max(share, float(np.mean(rest < REST_FRAC)))


def _insets(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The cells of rectangles that change all the time while the picture around them stands; none where they are large."""
    import cv2

    busy = cells.mean(axis=0)
    found = np.zeros(busy.shape, bool)
    for x, y, width, height, area in cv2.connectedComponentsWithStats((busy >= INSET_OFTEN).astype(np.uint8))[2][1:]:
        box = slice(y, y + height), slice(x, x + width)
        if area >= INSET_FILL * width * height and busy[box].mean() >= INSET_BUSY:
            found[box] = True
    return found if found.mean() <= INSET_FRAC else np.zeros_like(found)
