"""The camera in numbers: each pair of frames' block vectors reduced to a robust motion of the picture and what departs from it.

No second flow: `motion.Flow` measures the blocks, this fits them. Coordinates and lengths are in short sides of the
picture as displayed, from its middle, x to the right and y down; motion is in short sides a second. Content moves
against the camera: a camera that turns right has a negative `u`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.tables import CAMERA_PAIRS
from filters.motion import BLOCK, Blocks

Array = NDArray[np.float64]

TOGETHER = 32
"""Pairs reduced at once: numpy's calls then cost less than its sums."""
ROUNDS = 12
"""Rounds of iteratively reweighted least squares; the first third weighs by absolute values, which heeds outliers little."""
FLOW_ERROR_PX = 0.1
"""What DIS errs by on good texture, in small pixels: residuals below it say nothing."""
NEAR_FRAC = 0.1
"""A block goes with the camera's motion where it is off by less than this share of it (and three times the flow's error)."""
EXPLAINED = 0.35
"""A displacement of which the change of brightness explains less than this share is shortened in proportion: mere noise."""
ZONES = 3
"""Rows and columns of zones whose mean departure is kept: a subject in the middle, near ground below."""


class CameraSeries:
    """Columns `CAMERA_PAIRS` of `tables.SERIES`, pair by pair, as displayed. It holds some floats a pair.

    `scale` stored pixels make a small one; `rotation` is in degrees clockwise, `pixel_aspect` a stored pixel's width by
    its height.
    """

    def __init__(self, width: int, height: int, scale: int, rotation: int, pixel_aspect: float) -> None:
        self.size = width, height
        self.scale = scale
        quarter = round(rotation / 90) % 4
        cos, sin = (1, 0, -1, 0)[quarter], (0, 1, 0, -1)[quarter]
        self.unit = min(width * pixel_aspect, height)
        # Stored pixels (x right, y down) to displayed short sides.
        self.turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag([pixel_aspect, 1.0]) / self.unit
        self.waiting: list[tuple[float, Blocks]] = []
        self.frames: list[int] = []
        self.rows: list[Array] = []

    def push(self, frame: int, seconds: float, blocks: Blocks) -> None:
        """Add the pair that ends at `frame` and lasts `seconds`."""
        self.frames.append(frame)
        self.waiting.append((max(seconds, 1e-3), blocks))
        if len(self.waiting) == TOGETHER:
            self._reduce()

    def _reduce(self) -> None:
        if not self.waiting:
            return
        seconds = np.array([s for s, _ in self.waiting])
        vectors = np.stack([b[0] for _, b in self.waiting])
        textured = np.stack([b[1] for _, b in self.waiting])
        seen = np.stack([b[2] for _, b in self.waiting])
        explained = np.stack([b[3] for _, b in self.waiting])
        self.waiting.clear()
        pairs, rows, columns = textured.shape
        trusted = textured & ~_edges(textured)
        middle = np.indices((rows, columns)).reshape(2, -1)[::-1] * BLOCK + (BLOCK - 1) / 2
        stored = (middle + 0.5) * self.scale - np.array(self.size)[:, None] / 2
        xy = (self.turn @ stored).T
        vectors = vectors * np.minimum(explained / EXPLAINED, 1)[..., None]
        flow = vectors.reshape(pairs, -1, 2).astype(np.float64) * self.scale @ self.turn.T / seconds[:, None, None]
        error = FLOW_ERROR_PX * self.scale / self.unit / seconds
        self.rows.append(reduce(xy, flow, trusted.reshape(pairs, -1), seen.reshape(pairs, -1), error))

    def finish(self) -> dict[str, Any]:
        """The columns, one value a pair."""
        self._reduce()
        table = np.concatenate(self.rows) if self.rows else np.zeros((0, len(CAMERA_PAIRS)))
        columns: dict[str, Any] = {"camera_frame": np.array(self.frames, np.int32)}
        return columns | {name: table[:, i].astype(np.float32) for i, name in enumerate(CAMERA_PAIRS)}


def _edges(textured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where texture (P, rows, columns) begins behind flat rows or columns at an edge: a bar's border, which never moves."""
    out = np.zeros_like(textured)
    for axis in (1, 2):
        filled: NDArray[np.bool_] = np.any(textured, axis=3 - axis)
        along = np.arange(filled.shape[1])
        first, last = filled.argmax(axis=1), filled.shape[1] - 1 - filled[:, ::-1].argmax(axis=1)
        begins = (along == first[:, None]) & (first[:, None] > 0)
        ends = (along == last[:, None]) & (last[:, None] < filled.shape[1] - 1)
        line = begins | ends
        out |= np.expand_dims(line, 3 - axis)
    return out


def reduce(xy: Array, flow: Array, trusted: NDArray[np.bool_], seen: NDArray[np.bool_], error: Array) -> Array:
    """The numbers of `CAMERA_PAIRS` (P, K), float64, for pairs of block vectors.

    `xy` (N, 2) are the blocks' places, `flow` (P, N, 2) their motion, `trusted` and `seen` (P, N) whether a block has
    texture and whether it changed, `error` (P,) the flow's own error as a speed.
    """
    x, y = xy.T
    linear = np.column_stack([np.ones_like(x), x, y])
    quadratic = np.column_stack([linear, x * x, x * y, y * y])
    count = np.maximum(trusted.sum(axis=1), 1)
    floor = error[:, None]
    weight = trusted.astype(np.float64)
    for turn in range(ROUNDS):
        fitted = _fit(linear, flow, weight)
        off = np.hypot(*np.moveaxis(flow - linear @ fitted, 2, 0))
        if turn < ROUNDS // 3:
            weight = trusted / np.maximum(off, floor)
        else:
            spread = 1.4826 * _median(off, trusted, count)[:, None] + floor
            weight = trusted / (1 + (off / spread) ** 2) ** 2
    curved = _fit(quadratic, flow, weight)
    model = linear @ fitted
    speed = np.hypot(model[..., 0], model[..., 1])
    rest = flow - model
    off = np.hypot(rest[..., 0], rest[..., 1])
    inlier = trusted & (off < 3 * floor + NEAR_FRAC * speed)
    heading = model / (speed + floor)[..., None]
    along = np.sum(rest * heading, axis=2)
    across = rest[..., 1] * heading[..., 0] - rest[..., 0] * heading[..., 1]
    length = np.hypot(flow[..., 0], flow[..., 1])
    third = [np.clip((c - c.min()) / (np.ptp(c) + 1e-9) * ZONES, 0, ZONES - 1).astype(int) for c in (x, y)]
    zone = (third[1] * ZONES + third[0])[:, None] == np.arange(ZONES**2)
    blocks = np.maximum(trusted @ zone.astype(np.float64), 1)
    zones = [(rest[..., axis] * trusted) @ zone / blocks for axis in range(2)]

    def share(which: NDArray[np.bool_]) -> Array:
        return mean(which.astype(np.float64))

    def mean(values: Array) -> Array:
        return np.asarray((values * trusted).sum(axis=1) / count)

    return np.column_stack(
        [
            trusted.mean(axis=1),
            share(seen),
            *(fitted[:, i, j] for j in range(2) for i in range(3)),
            *(curved[:, i, j] for j in range(2) for i in range(3, 6)),
            share(inlier),
            mean(np.abs(along)),
            mean(np.abs(across)),
            mean(along),
            share(length < 2 * floor),
            *(values[:, i] for values in zones for i in range(ZONES**2)),
        ]
    )


def _fit(design: Array, flow: Array, weight: Array) -> Array:
    """Weighted least squares of (P, N, 2) on a design (N, K), held to zero by a hair where blocks are few: (P, K, 2)."""
    size = design.shape[1]
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    weight = weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-12)
    normal = (weight @ products).reshape(-1, size, size) + 1e-5 * np.eye(size)
    return np.asarray(np.linalg.solve(normal, design.T @ (weight[..., None] * flow)))


def _median(values: Array, trusted: NDArray[np.bool_], count: NDArray[np.int_]) -> Array:
    """The median of each row's trusted values (P, N): (P,), 0 where there is none."""
    ordered = np.sort(np.where(trusted, values, np.inf), axis=1)
    middle = ordered[np.arange(len(values)), count // 2]
    return np.asarray(np.where(np.isfinite(middle), middle, 0.0))
