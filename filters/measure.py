"""The one decode: a source is read once, and its series, shots, clips, scores and kept frames come of that pass.

`measure` runs in a killable child process; `Measure` is the stage that owns the child.
"""

import bisect
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from curation import child, media, storage
from curation.clips import ClipConfig, Span, spans
from curation.media import MediaLimits, Picture
from curation.stage import Source, Stage
from curation.tables import CLIP_SCORES
from filters import border, edits, motion, shots, transnet
from filters.frames import FramesConfig, Spill, choose, kept_size
from filters.meter import DEFAULT_FPS, Meter, Sampled, look, sampled_series
from filters.planes import factor, small
from filters.shots import ShotConfig

__all__ = ["FramesConfig", "Measure", "MeasureConfig", "Measured", "measure"]


class MeasureConfig(BaseModel):
    """What decides the outcome of `measure`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shots: ShotConfig = ShotConfig()
    clips: ClipConfig = ClipConfig()
    frames: FramesConfig = FramesConfig()
    seed: int = 0

    @property
    def every_s(self) -> float:
        """Spacing of the sampled frames: so dense that the shortest clip has `frames.per_clip`."""
        return max(self.frames.every_s, self.clips.min_s / self.frames.per_clip)


@dataclass
class Measured:
    """What one pass gives: new values for the source's row, and rows of `clips`, `series` and `frames`."""

    row_updates: dict[str, Any]
    clips: list[dict[str, Any]]
    series: dict[str, Any] | None
    frames: list[dict[str, Any]]


def measure(path: str, row: dict[str, Any], config: MeasureConfig, limits: MediaLimits) -> Measured:
    """Decode a source once and measure it. `row` is its row of `sources` with the probe columns filled.

    Raises SourceError where nothing can be decoded.
    """
    import cv2

    cv2.setNumThreads(1)
    if row["kind"] == "image":
        return _measure_image(path, row, config, limits)
    network = transnet.ShotNet() if config.shots.detector == "transnetv2" else None
    with tempfile.TemporaryFile() as spill:
        meter = Meter(row, config.frames, config.every_s, network, spill)
        with media.decode(path, limits) as decoding:
            for frame in decoding:
                meter.push(frame.picture, frame.time_s)
        child.beat()
        return _conclude(meter, row, config, decoding.errors)


def _conclude(meter: Meter, row: dict[str, Any], config: MeasureConfig, decode_errors: int) -> Measured:
    """Shots, clips and their scores, from what the pass has gathered."""
    series = meter.series()
    times = series["time_s"]
    end_s = float(times[-1]) + _last_duration_s(times, row["fps"])
    cuts, gradual = shots.boundaries(series, meter.fps, config.shots)
    updates = {
        "frames": len(times),
        "is_vfr": is_vfr(times),
        "decode_errors": decode_errors,
        "duration_s": row["duration_s"] if row["duration_s"] is not None else end_s,
        "fps": row["fps"] if row["fps"] is not None else len(times) / end_s,
        "cut_frames": cuts,
        "cut_times_s": [float(times[c]) for c in cuts],
        "gradual": gradual,
    }
    usual = border.agree([s.bars for s in meter.sampled], *meter.shape)
    clips, frames = [], []
    for span in spans(times, cuts, gradual, end_s, config.clips, f"{config.seed}:{row['source_id']}"):
        edges = (float(times[span[0]]), float(times[span[1]]) if span[1] < len(times) else end_s)
        clip = _clip(row | updates, span, edges)
        inside = _inside(meter.sampled, span)
        bars = border.agree([s.bars for s in inside], *meter.shape, usual) if inside else usual
        clip |= _motion_scores(series, span, edges, end_s, meter.fps, cuts, gradual, border.picture(bars, *meter.shape))
        clip |= _still_scores(inside, meter.shape, row, bars)
        clips.append(clip)
        chosen = set(choose([s.frame for s in inside], span, config.frames.per_clip))
        frames += [_kept(clip, s, float(times[s.frame]), meter.spill) for s in inside if s.frame in chosen]
    return Measured(updates, clips, {"source_id": row["source_id"], **series}, frames)


def is_vfr(times: NDArray[np.float64]) -> bool:
    """True where more than 1 in 100 frames lasts a tenth (and over 1.5 ms, a container's rounding) off the median."""
    steps = np.diff(times)
    if not len(steps):
        return False
    middle = float(np.median(steps))
    return bool(np.mean(np.abs(steps - middle) > max(0.0015, 0.1 * middle)) > 0.01)


def _last_duration_s(times: NDArray[np.float64], fps: float | None) -> float:
    """How long the last frame stands: as long as the frame in the middle of the order."""
    step = float(np.median(np.diff(times))) if len(times) > 1 else 0.0
    return step if step > 0 else 1 / (fps or DEFAULT_FPS)


def _clip(row: dict[str, Any], span: Span, edges: tuple[float, float]) -> dict[str, Any]:
    """The columns of a clip that are no score; scores are null until measured."""
    return {
        "clip_id": f"{row['source_id']}_{span[0]:07d}_{span[1]:07d}",
        "source_id": row["source_id"],
        "path": row["path"],
        "kind": row["kind"],
        "start_s": edges[0],
        "end_s": edges[1],
        "start_frame": span[0],
        "end_frame": span[1],
        "duration_s": edges[1] - edges[0],
        "frames": span[1] - span[0],
        "fps": row["fps"],
        "width": row["width"],
        "height": row["height"],
        "status": "ok",
        "error_code": None,
        "error_message": None,
        **dict.fromkeys(CLIP_SCORES),
        "camera": None,
        "camera_code": None,
    }


def _motion_scores(
    series: dict[str, Any],
    span: Span,
    edges: tuple[float, float],
    end_s: float,
    fps: float,
    cuts: Sequence[int],
    gradual: Sequence[dict[str, Any]],
    picture: Sequence[float],
) -> dict[str, float | None]:
    times = series["time_s"]
    return {
        "motion_vmaf": motion.motion_vmaf(series["motion_vmaf"], *span),
        "motion_mv": motion.motion_mv(series["motion_px"], *span, fps),
        "motion_static_frac": motion.motion_static_frac(
            series["changed_frac"], series["change_map"], *span, motion.change_lag(fps), picture
        ),
        "jitter_shots_per_s": edits.jitter_shots_per_s(series["cut_score"], times, *edges, end_s),
        "slideshow_score": edits.slideshow_score(series, cuts, gradual, edges, end_s, fps),
    }


def _inside(sampled: Sequence[Sampled], span: Span) -> list[Sampled]:
    """The samples inside a clip; for a clip too short to have any, none."""
    first, last = (bisect.bisect_left(sampled, frame, key=lambda s: s.frame) for frame in span)
    return list(sampled[first:last])


def _still_scores(
    sampled: Sequence[Sampled], shape: tuple[int, int], row: dict[str, Any], stored: border.Bars
) -> dict[str, float | None]:
    """Bars of the stored frame in displayed pixels, and the medians of the samples' quality."""
    if not sampled:
        return {}
    height, width = row["height"], row["width"]
    bars = border.displayed(stored, *shape, height, width, row["rotation"] or 0)
    scores: dict[str, float | None] = {f"border_{side}_px": float(w) for side, w in zip(bars._fields, bars, strict=True)}
    scores["border_frac"] = border.border_frac(bars, height, width)
    for name in ("sharpness", "exposure", "colorfulness", "blockiness"):
        scores[f"quality_{name}"] = float(np.median([getattr(s.quality, name) for s in sampled]))
    return scores


def _kept(clip: dict[str, Any], sample: Sampled, time_s: float, spill: Spill) -> dict[str, Any]:
    return {
        "clip_id": clip["clip_id"],
        "source_id": clip["source_id"],
        "frame": sample.frame,
        "time_s": time_s,
        "jpeg": spill.read(*sample.jpeg),
    }


def _measure_image(path: str, row: dict[str, Any], config: MeasureConfig, limits: MediaLimits) -> Measured:
    """An image is one clip of one frame: bars and quality are measured, motion is null."""
    import cv2

    rgb = media.open_image(path, limits)
    y, v, u = (p.astype(np.uint8, copy=False) for p in cv2.split(cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)))
    shape = (rgb.shape[0], rgb.shape[1])
    bars, quality = look({"full_range": True}, y, small(y, u, v, factor(shape[1], shape[0])))
    size = kept_size(shape[1], shape[0], config.frames.long_side)
    with tempfile.TemporaryFile() as file:
        spill = Spill(file, config.frames.quality)
        sample = Sampled(0, bars, quality, spill.add(_resized(rgb, size)))
        clip = _clip(row | {"fps": None}, (0, 1), (0.0, 0.0))
        upright = row | {"height": shape[0], "width": shape[1], "rotation": 0}
        clip |= _still_scores([sample], shape, upright, border.agree([bars], *shape))
        frames = [_kept(clip, sample, 0.0, spill)]
    series = {"source_id": row["source_id"], "time_s": np.zeros(1), **sampled_series([sample])}
    return Measured({"frames": 1, "is_vfr": False, "decode_errors": 0}, [clip], series, frames)


def _resized(rgb: Picture, size: tuple[int, int]) -> Picture:
    import cv2

    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


class Measure(Stage):
    """Decodes each source once, in a child process that a bad file may kill, and measures it."""

    name = "measure"

    def __init__(self, limits: MediaLimits, config: MeasureConfig) -> None:
        if config.shots.detector == "transnetv2":
            transnet.require()
        self.limits = limits
        self.config = config
        self.child: child.Child | None = None

    def open(self) -> None:
        self.child = child.shared(self.limits)

    def close(self) -> None:
        if self.child is not None:
            self.child.close()

    def one(self, source: Source) -> None:
        """Fill the source's clips, series and frames. Raises SourceError where it cannot be decoded."""
        assert self.child is not None, "open() comes first"
        cost = source.costs[self.name]
        with storage.local_copy(source.url) as path, cost.of(self.child):
            found = self.child.call(measure, str(path), source.row, self.config, self.limits)
        source.row |= found.row_updates
        source.clips, source.series, source.frames = found.clips, found.series, found.frames
        cost.bytes += source.row["bytes"] or 0
