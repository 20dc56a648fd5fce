"""All per-frame measures of one source, fed frame by frame: what it holds grows by a few floats a frame."""

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from curation import media
from filters import border, motion, shots
from filters.camera_series import CameraSeries
from filters.frames import FramesConfig, Spill, kept_size
from filters.planes import Plane, Small, factor, planes, small
from filters.quality import Quality, quality
from filters.transnet import ShotNet

if TYPE_CHECKING:
    import av

DEFAULT_FPS = 25.0
FLOW = ("motion_px", "global_dx_px", "global_dy_px")
PER_FRAME = ("cut_score", "luma_mean", "luma_std", "motion_vmaf", "changed_frac", *FLOW)
WAITING = 32
"""Small pictures measured together: code and tables of a measure stay in the cache, which a decoded frame flushes."""


@dataclass
class Sampled:
    """One sampled frame's measures, and where its JPEG lies in the spill file."""

    frame: int
    bars: border.Sample
    quality: Quality
    jpeg: tuple[int, int]


def look(row: dict[str, Any], y: Plane, reduced: Small) -> tuple[border.Sample, Quality]:
    """Bars and quality of one frame of a source."""
    bars = border.look(y)
    return bars, quality(y, reduced, bool(row["full_range"]), border.of_one(bars))


def kept_picture(row: dict[str, Any], frame: "av.VideoFrame", long_side: int) -> NDArray[np.uint8]:
    """The frame as it is kept: upright, square pixels, SDR, at most `long_side`."""
    width, height = kept_size(row["width"], row["height"], long_side)
    return media.rgb(frame, width, height, row["rotation"] or 0)


@dataclass
class Meter:
    """Measures the frames of a source in display order. `row` has its probe columns; `spill` takes the JPEGs."""

    row: dict[str, Any]
    frames: FramesConfig
    every_s: float
    network: ShotNet | None
    spill_file: BinaryIO
    times: "array[float]" = field(default_factory=lambda: array("d"))
    sampled: list[Sampled] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)
    """Height and width of the stored frames, of the first one where they change on the way."""

    def __post_init__(self) -> None:
        self.fps = min(240.0, max(1.0, self.row["fps"] or DEFAULT_FPS))
        self.columns = {name: array("d") for name in PER_FRAME}
        self.spill = Spill(self.spill_file, self.frames.quality)
        self.hsv: Plane | None = None
        self.by = 1
        self.luma = motion.LumaMotion()
        self.change = motion.Change(self.fps)
        self.flow = motion.Flow(self.fps, 1, 1)
        self.camera = self._camera(1, 1)
        self.pictures = shots.Pictures(self.fps)
        self.waiting: list[Small] = []

    def _camera(self, width: int, height: int) -> CameraSeries:
        return CameraSeries(width, height, self.by, self.row["rotation"] or 0, self.row["pixel_aspect"] or 1.0)

    def push(self, frame: "av.VideoFrame", time_s: float) -> None:
        """Measure the next frame."""
        if not self.times:
            self.shape, self.by = (frame.height, frame.width), factor(frame.width, frame.height)
            self.flow = motion.Flow(self.fps, frame.width, frame.height)
            self.camera = self._camera(frame.width, frame.height)
        elif (frame.height, frame.width) != self.shape:
            frame = frame.reformat(width=self.shape[1], height=self.shape[0])
        y, u, v = planes(frame)
        reduced = small(y, u, v, self.by)
        self.columns["motion_vmaf"].append(self.luma.push(y))
        if not self.sampled or time_s >= self.times[self.sampled[-1].frame] + self.every_s - 1e-3:
            jpeg = self.spill.add(kept_picture(self.row, frame, self.frames.long_side))
            self.sampled.append(Sampled(len(self.times), *look(self.row, y, reduced), jpeg))
        self.times.append(time_s)
        self.waiting.append(reduced)
        if len(self.waiting) == WAITING:
            self._measure_waiting()

    def _measure_waiting(self) -> None:
        """Measure the small pictures that wait, one measure after the other."""
        import cv2

        columns, waiting = self.columns, self.waiting
        for reduced in waiting:
            before, self.hsv = self.hsv, shots.hsv(reduced)
            columns["cut_score"].append(0.0 if before is None else shots.content_score(before, self.hsv))
        for reduced in waiting:
            mean, deviation = cv2.meanStdDev(reduced.y)
            columns["luma_mean"].append(float(mean[0, 0]))
            columns["luma_std"].append(float(deviation[0, 0]))
        columns["changed_frac"].extend(self.change.push(reduced.y) for reduced in waiting)
        first = len(self.times) - len(waiting)
        for index, reduced in enumerate(waiting, start=first):
            moved = self.flow.push(reduced.y, reduced.scale)
            if index == 0:
                moved = (0.0, 0.0, 0.0)
            elif moved is not None and (blocks := self.flow.camera_pair()) is not None:
                self.camera.push(index, self.times[index] - self.times[index - self.flow.span], blocks)
            if moved is not None:
                # One value for all frames of the pair: they moved that much each.
                for name, value in zip(FLOW, moved, strict=True):
                    columns[name].extend([value] * (index + 1 - len(columns[name])))
        for reduced in waiting:
            self.pictures.push(reduced)
        if self.network is not None:
            for reduced in waiting:
                self.network.push(reduced)
        waiting.clear()

    def series(self) -> dict[str, Any]:
        """Columns of `tables.SERIES` but `source_id`, as arrays; `shot_probability` is None without the network."""
        self._measure_waiting()
        count = len(self.times)
        out: dict[str, Any] = {"time_s": np.array(self.times)}
        for name, values in self.columns.items():
            # The frames after the last pair of flow moved like those of the pair.
            out[name] = np.pad(np.array(values, np.float32), (0, count - len(values)), mode="edge")
        out["change_map"] = self.change.maps
        out |= self.camera.finish()
        out |= self.pictures.finish()
        out["shot_probability"] = self.network.finish() if self.network is not None else None
        return out | sampled_series(self.sampled)


def sampled_series(sampled: list[Sampled]) -> dict[str, Any]:
    """The columns of `tables.SERIES` that speak of sampled frames."""
    bars = np.array([border.of_one(s.bars) for s in sampled], np.int32).reshape(-1, 4)
    out: dict[str, Any] = {"sample_frame": np.array([s.frame for s in sampled], np.int32)}
    out |= {f"border_{side}": bars[:, i] for i, side in enumerate(border.Bars._fields)}
    for name in ("sharpness", "exposure", "colorfulness", "blockiness"):
        out[name] = np.array([getattr(s.quality, name) for s in sampled], np.float32)
    return out
