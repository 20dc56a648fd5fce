"""Faces on a clip's kept frames: how many, and how sure the detector is of the surest one.

Two detectors, told apart by one setting, behind one call: a picture in, boxes with scores out.

    yunet   OpenCV's FaceDetectorYN (Wu et al. 2023); the model of OpenCV Zoo comes along, in `models/`, under MIT
    scrfd   an SCRFD model in ONNX form (Guo et al. 2021) by path; stronger on small and turned faces, and dearer
"""

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from curation.errors import ClipError, ConfigError
from curation.stage import Source, Stage
from filters.text import Picture, note, pictures, wanted_clips

Boxes = npt.NDArray[np.float64]
"""(N, 5): left, top, right, bottom in pixels of the picture, and the score, 0 to 1."""
Detector = Callable[[Picture], Boxes]
"""Finds the faces of one BGR picture (H, W, 3)."""

COLUMNS = ("face_count_max", "people_score")

SHIPPED = Path(__file__).parent / "models" / "face_detection_yunet_2023mar.onnx"
FAINT = 0.3
"""Detections with a lower score are never looked at: `people_score` is 0 there."""
OVERLAP = 0.4
"""Of two boxes that share more than this (intersection over union) the surer stays; SCRFD's own value."""
STRIDES = (8, 16, 32)
"""Pixels between the anchors of SCRFD's three grids."""


class FacesConfig(BaseModel):
    """Settings of the face scorer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    """False leaves both face columns null."""
    detector: Literal["yunet", "scrfd"] = "yunet"
    """The kind of model `weights` is."""
    weights: Path | None = None
    """An ONNX file; none takes the YuNet model that comes along. scrfd needs one."""
    side_px: int = Field(320, ge=64, le=2048)
    """Long side of the picture that is searched. Smaller frames are enlarged to it, at most to twice their size."""
    min_score: float = Field(0.75, ge=FAINT, le=1.0)
    """Detection score from which on a face counts. Scores of another model have another scale."""
    min_size_frac: float = Field(0.03, ge=0.0, le=1.0)
    """Shorter side of the least box, as a share of the frame's shorter side."""
    threads: int = Field(1, ge=1, le=64)
    """Threads of the detector. OpenCV's count is one for the whole process."""

    RESOURCES: ClassVar[frozenset[str]] = frozenset({"threads"})
    """Settings that say where the work runs, not what comes out."""


def check(config: FacesConfig) -> None:
    """Raise ConfigError where the package or the file that the settings ask for is not there. Loads no model."""
    if not config.enabled:
        return
    if config.detector == "scrfd":
        if config.weights is None:
            raise ConfigError("faces.weights: faces.detector scrfd needs the path of an SCRFD model in ONNX form")
        if find_spec("onnxruntime") is None:
            raise ConfigError("faces.detector: scrfd needs a package: pip install onnxruntime")
    path = config.weights or SHIPPED
    if not path.is_file():
        raise ConfigError(f"faces.weights: no file {str(path)!r}")


def load(config: FacesConfig) -> Detector:
    """The detector that the settings name, tried once. Raises ConfigError where its file is no such model."""
    import cv2

    cv2.setNumThreads(config.threads)
    path = config.weights or SHIPPED
    try:
        detector: Detector = YuNet(path) if config.detector == "yunet" else Scrfd(path, config.threads)
        detector(np.zeros((config.side_px, config.side_px, 3), np.uint8))
    except _failures(config) as error:
        raise ConfigError(f"faces.weights: {str(path)!r} is no {config.detector} model: {error}") from error
    return detector


def _failures(config: FacesConfig) -> tuple[type[Exception], ...]:
    """What a detector raises: onnxruntime's errors have no common base of their own, and `decode` has ValueError."""
    import cv2

    if config.detector == "yunet":
        return (cv2.error,)
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return (cv2.error, ValueError, *(getattr(errors, name) for name in names))


class YuNet:
    """YuNet through OpenCV, which decodes its outputs and drops overlaps."""

    def __init__(self, path: Path) -> None:
        import cv2

        said = cv2.utils.logging.getLogLevel()
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # OpenCV 5 warns of its own default target
        try:
            self._detector = cv2.FaceDetectorYN.create(str(path), "", (320, 320), FAINT, OVERLAP)
        finally:
            cv2.utils.logging.setLogLevel(said)

    def __call__(self, picture: Picture) -> Boxes:
        """Faces of one BGR picture."""
        self._detector.setInputSize((picture.shape[1], picture.shape[0]))
        found: Any = self._detector.detect(picture)[1]
        if found is None:
            return np.zeros((0, 5))
        rows = np.asarray(found, np.float64)  # left, top, width, height, five landmarks, score
        return np.column_stack([rows[:, :2], rows[:, :2] + rows[:, 2:4], rows[:, 14]])


class Scrfd:
    """SCRFD through onnxruntime. A model without a fixed size takes a picture at its own."""

    def __init__(self, path: Path, threads: int) -> None:
        """Raises ValueError where the inputs or outputs are not those of a model of three strides."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or len(outputs) not in (6, 9):
            raise ValueError(f"{len(inputs)} inputs and {len(outputs)} outputs, not 1 picture and 6 or 9")
        self._input = inputs[0].name
        self._fixed = inputs[0].shape[2:]

    def __call__(self, picture: Picture) -> Boxes:
        """Faces of one BGR picture, which stands in the upper left of the model's, black around it."""
        import cv2

        height, width = (
            given if isinstance(given, int) else math.ceil(side / STRIDES[-1]) * STRIDES[-1]
            for given, side in zip(self._fixed, picture.shape[:2], strict=True)
        )
        scale = min(1.0, height / picture.shape[0], width / picture.shape[1])
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        canvas = np.zeros((height, width, 3), np.uint8)
        canvas[: size[1], : size[0]] = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        x_1CHW = cv2.dnn.blobFromImage(canvas, 1 / 128, mean=(127.5, 127.5, 127.5), swapRB=True)
        boxes = decode(self._session.run(None, {self._input: x_1CHW}), (height, width))
        boxes[:, :4] /= scale
        return boxes


def decode(outputs: Sequence[npt.NDArray[Any]], size: tuple[int, int]) -> Boxes:
    """Faces from SCRFD's outputs on a picture of `size` (height, width).

    The outputs are the scores (N, 1) of strides 8, 16 and 32, then the boxes (N, 4), which are the distances from an
    anchor to the left, top, right and bottom in strides; landmarks may follow. Anchors stand at multiples of the
    stride, row by row, one or more at each place. Raises ValueError where the counts do not fit.
    """
    import cv2

    found = [np.zeros((0, 5))]
    for stride, scores, sides in zip(STRIDES, outputs[:3], outputs[3:6], strict=True):
        rows, columns = (math.ceil(side / stride) for side in size)
        score, sides_px = scores.reshape(-1).astype(np.float64), sides.reshape(-1, 4) * float(stride)
        each, rest = divmod(len(score), rows * columns)
        if not each or rest or len(sides_px) != len(score):
            raise ValueError(f"{len(score)} scores and {len(sides_px)} boxes for {rows} x {columns} places")
        y, x = np.divmod(np.arange(len(score)) // each, columns)
        anchors = np.column_stack([x, y]) * stride
        boxes = np.column_stack([anchors - sides_px[:, :2], anchors + sides_px[:, 2:], score])
        found.append(boxes[score >= FAINT])
    boxes = np.concatenate(found)
    corners_and_sizes = np.column_stack([boxes[:, :2], boxes[:, 2:4] - boxes[:, :2]])
    kept = cv2.dnn.NMSBoxes(corners_and_sizes.tolist(), boxes[:, 4].tolist(), FAINT, OVERLAP)
    return boxes[np.asarray(kept, np.int64).reshape(-1)]


class Faces(Stage):
    """Writes `face_count_max` and `people_score` of a source's clips.

    `wanted` names the clips of a source to score; the others keep null. A clip without a readable frame, or on which
    the detector fails, keeps null, with the error code `scorer_failed`.
    """

    name = "faces"

    def __init__(self, config: FacesConfig, wanted: Callable[[Source], set[str]] | None = None) -> None:
        self.config = config
        self.wanted = wanted
        self.detector: Detector | None = None

    def open(self) -> None:
        """Load the model. Raises ConfigError as `check` and `load` do."""
        check(self.config)
        self.detector = load(self.config)

    def close(self) -> None:
        """Drop the model."""
        self.detector = None

    def one(self, source: Source) -> None:
        """Score each wanted clip on its own."""
        assert self.detector is not None, "open() comes first"
        for clip, jpegs in wanted_clips(source, self.wanted):
            try:
                clip |= score(jpegs, self.detector, self.config)
            except ClipError as error:
                note(clip, self.name, error)


def score(jpegs: Sequence[bytes], detector: Detector, config: FacesConfig) -> dict[str, float]:
    """The two face columns of one clip from its kept frames.

    The count is the largest of any frame, of boxes from `min_score` on; the score is the largest of all boxes, those
    below `min_score` too, and 0.0 where there is none. A frame that cannot be decoded counts for nothing. Raises
    ClipError where none can, or the detector fails.
    """
    import cv2

    if not jpegs:
        raise ClipError("scorer_failed", "the clip has no kept frame")
    found = []
    for jpeg in jpegs:
        try:
            (picture,) = pictures([jpeg], config.side_px)
        except (ClipError, cv2.error):  # OpenCV's own error is of an empty one
            continue
        try:
            boxes = detector(picture)
        except _failures(config) as error:
            raise ClipError("scorer_failed", f"{type(error).__name__}: {error}") from error
        sides_px = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        found.append(boxes[sides_px >= config.min_size_frac * min(picture.shape[:2]), 4])
    if not found:
        raise ClipError("scorer_failed", "no kept frame is a readable JPEG")
    return {
        "face_count_max": float(max(np.count_nonzero(scores >= config.min_score) for scores in found)),
        "people_score": float(np.clip(max(scores.max(initial=0.0) for scores in found), 0.0, 1.0)),
    }
