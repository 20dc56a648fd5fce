"""Camera motion of a clip, one of sixteen classes, from the kept series of the one decode: no pixel is looked at again.

The series give for each pair of frames a robust motion of the whole picture, what departs from it and where
(`filters/camera_series.py`). `features` turns a clip's part into a fixed set of numbers; a small network, trained on made
places whose truth is known (`jobs/train_camera.py`), turns these into a class and a calibrated confidence. docs/camera.md
says how well.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from curation.stage import Source, Stage
from curation.tables import CAMERA_PAIRS

Array = NDArray[np.float64]

CLASSES = (
    "zoom_in",
    "zoom_out",
    "push_in",
    "pull_out",
    "pan_left",
    "pan_right",
    "truck_left",
    "truck_right",
    "tilt_up",
    "tilt_down",
    "pedestal_up",
    "pedestal_down",
    "arc",
    "tracking",
    "static",
    "handheld",
)
"""Movie Gen's sixteen. Sides are the camera's: in `pan_right` it turns right, and the picture's content moves left."""
COLUMNS = ("camera", "camera_confidence", "camera_code")
SHIPPED = Path(__file__).parent / "camera.npz"

LEAST_PAIRS = 3
"""Fewer pairs of frames, three quarters of a second, show no course of motion."""
LEAST_TRUSTED = 0.02
"""A pair with a smaller share of textured blocks says nothing; a clip in which half of them are such has no texture."""
SLOW = 0.01
"""Speeds, in short sides a second, are compressed as asinh(v / SLOW): linear below, logarithmic above."""
BANDS_HZ = (0.0, 0.4, 1.0, 2.0, 3.5, 100.0)
"""Edges of the bands of the jitter spectrum."""


class CameraConfig(BaseModel):
    """Settings of the camera classifier."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    """False leaves `camera` and `camera_confidence` null."""
    least_s: float = Field(0.7, gt=0)
    """Shorter clips are not labelled."""

    RESOURCES: ClassVar[frozenset[str]] = frozenset()
    """Settings that say where the work runs, not what comes out."""


class Unlabelled(Exception):
    """A clip that gets no label; the text is its `camera_code`."""


def motion_of(series: Mapping[str, Any], start: int, end: int, least_s: float) -> tuple[Array, Array]:
    """The telling pairs (P, K) of `CAMERA_PAIRS` inside frames [start, end), and their end times (P,) in seconds.

    Raises Unlabelled not_measured (a series of before the columns were), too_short or no_texture.
    """
    ends = series.get("camera_frame")
    if ends is None:
        raise Unlabelled("not_measured")
    ends = np.asarray(ends, np.int64)
    gap = int(ends[0]) if len(ends) else 1  # the first pair begins at frame 0
    inside = slice(*np.searchsorted(ends, (start + gap, end)))
    times = np.asarray(series["time_s"], np.float64)
    at = times[ends[inside]]
    if len(at) < LEAST_PAIRS or times[end - 1] - times[start] < least_s:
        raise Unlabelled("too_short")
    pairs = np.column_stack([np.asarray(series[name][inside], np.float64) for name in CAMERA_PAIRS])
    telling = pairs[:, 0] >= LEAST_TRUSTED
    if telling.sum() < max(LEAST_PAIRS, len(pairs) / 2):
        raise Unlabelled("no_texture")
    return pairs[telling], at[telling]


def features(pairs: Array, at: Array) -> Array:
    """Numbers (F,) of a clip's pairs (P, K) and their times (P,).

    Of each motion (shift, expansion, roll, shears, the six quadratic terms, the middle's own): the mean, the median, three
    means in time order, slow and fast deviation, its part of the whole. Of each zone its departure from the fit. What goes
    with the shift and with the expansion from pair to pair, as perspective and depth do. Then the shares and residuals, and
    the spectrum of the shift.
    """
    c = dict(zip(CAMERA_PAIRS, pairs.T, strict=True))
    u, v = c["camera_u"], c["camera_v"]
    grow, roll = (c["camera_u_x"] + c["camera_v_y"]) / 2, (c["camera_v_x"] - c["camera_u_y"]) / 2
    shears = (c["camera_u_x"] - c["camera_v_y"]) / 2, (c["camera_u_y"] + c["camera_v_x"]) / 2
    curved = [c[f"camera_{axis}_{term}"] for axis in "uv" for term in ("xx", "xy", "yy")]
    zones = np.stack([c[f"camera_zone_{axis}_{row}{column}"] for axis in "uv" for row in range(3) for column in range(3)])
    motion = np.stack([u, v, grow, roll, *shears, *curved, u + zones[4], v + zones[13]])
    middle = np.median(motion, axis=1)
    parts = np.stack([part.mean(axis=1) for part in np.array_split(motion, 3, axis=1)], axis=1)
    fast = np.diff(motion, axis=1).std(axis=1) / 2**0.5
    out = [_soft(x).ravel() for x in (motion.mean(axis=1), middle, parts, parts.std(axis=1), fast, motion.std(axis=1))]
    size = np.sqrt(middle[0] ** 2 + middle[1] ** 2 + (0.4 * middle[2]) ** 2 + (0.4 * middle[3]) ** 2) + SLOW / 2
    away = np.median(zones, axis=1)
    out += [_soft(away), np.clip(np.concatenate([middle, away]) / size, -6, 6)]
    for guide in (u, v, grow):
        slope = np.concatenate([motion, zones]) @ guide / (guide @ guide + len(guide) * SLOW**2)
        out.append(np.clip(slope, -6, 6))
    speed = np.sqrt(u**2 + v**2 + (0.4 * grow) ** 2) + SLOW
    shares = [c[f"camera_{name}_frac"] for name in ("trusted", "changed", "inlier", "still")]
    rests = [c[f"camera_{name}"] for name in ("rest_along", "rest_across", "ahead")]
    many = np.stack([*shares, *(_soft(r) for r in rests), *(np.clip(r / speed, -4, 4) for r in rests)])
    out += [many.mean(axis=1), *np.quantile(many, (0.1, 0.5, 0.9), axis=1)]
    direct = np.abs(motion[:4].sum(axis=1)) / (np.abs(motion[:4]).sum(axis=1) + len(at) * SLOW / 10)
    turns = (np.sign(motion[:4, 1:]) != np.sign(motion[:4, :-1])).mean(axis=1)
    step = float(np.median(np.diff(at)))
    power = np.abs(np.fft.rfft(motion[:4] - motion[:4].mean(axis=1, keepdims=True), axis=1)) ** 2 / len(at) ** 2
    band = np.digitize(np.fft.rfftfreq(len(at), step), BANDS_HZ) - 1
    bands = np.stack([np.sqrt(power[:, band == i].sum(axis=1)) for i in range(len(BANDS_HZ) - 1)])
    out += [direct, turns, _soft(bands).ravel(), np.log([len(at) * step, step])]
    return np.concatenate(out)


def _soft(speed: Array) -> Array:
    return np.asarray(np.arcsinh(speed / SLOW))


class Classifier:
    """A few small networks of two hidden layers whose answers are averaged, and a temperature that calibrates them."""

    def __init__(self, parameters: Mapping[str, NDArray[Any]]) -> None:
        """`w0` (M, F, H) and `b0` (M, H) to `w2` and `b2` of M networks, `shift` and `scale` (F,), `temperature` (1,)."""
        wide = {name: value.astype(np.float64) for name, value in parameters.items()}
        self.shift, self.scale, self.temperature = wide["shift"], wide["scale"], float(wide["temperature"][0])
        self.layers = [(wide[f"w{i}"], wide[f"b{i}"]) for i in range(3)]

    @classmethod
    def read(cls, path: Path) -> "Classifier":
        """The classifier of a file that `jobs/train_camera.py` made."""
        with np.load(path) as file:
            return cls(dict(file))

    def __call__(self, numbers: Array) -> Array:
        """Probabilities (N, 16) of rows of features (N, F)."""
        hidden = np.clip((numbers - self.shift) / self.scale, -5, 5)[None]  # one network a row: (M, N, F)
        for i, (weight, bias) in enumerate(self.layers):
            hidden = hidden @ weight + bias[:, None, :]
            if i < len(self.layers) - 1:
                hidden = np.maximum(hidden, 0)
        score = hidden.mean(axis=0) / self.temperature
        odds = np.exp(score - score.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))


@cache
def shipped() -> Classifier:
    """The classifier that comes along."""
    return Classifier.read(SHIPPED)


def label(series: Mapping[str, Any], start: int, end: int, classifier: Classifier, least_s: float) -> tuple[str, float]:
    """The class of the clip of frames [start, end) and its probability. Raises Unlabelled as `motion_of`."""
    odds = classifier(features(*motion_of(series, start, end, least_s))[None])[0]
    best = int(odds.argmax())
    return CLASSES[best], float(odds[best])


class Camera(Stage):
    """Writes `camera` and `camera_confidence` of a source's video clips, or null and why in `camera_code`."""

    name = "camera"

    def __init__(self, config: CameraConfig) -> None:
        self.config = config
        self.classifier: Classifier | None = None

    def open(self) -> None:
        """Read the parameters."""
        self.classifier = shipped()

    def close(self) -> None:
        """Drop them."""
        self.classifier = None

    def one(self, source: Source) -> None:
        """Label each video clip from the source's series."""
        assert self.classifier is not None, "open() comes first"
        for clip in source.clips:
            if clip["status"] != "ok" or clip["kind"] != "video":
                continue
            try:
                named, sure = label(
                    source.series or {}, clip["start_frame"], clip["end_frame"], self.classifier, self.config.least_s
                )
                clip |= {"camera": named, "camera_confidence": sure, "camera_code": None}
            except Unlabelled as why:
                clip |= {"camera": None, "camera_confidence": None, "camera_code": str(why)}
