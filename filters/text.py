"""Text on the picture: PP-OCR finds and reads it on a clip's kept frames; overlaid and scene text are scored apart.

The scorers work on the 2 to 4 kept JPEGs of a clip, so no second decode. Frames that show the same picture are looked
at once; recognition runs only where detection fired, for all frames of a clip together.
"""

import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from curation.errors import ClipError, ConfigError
from curation.stage import Source, Stage
from filters.overlay import Box, Overlays

Picture = npt.NDArray[np.uint8]

COLUMNS = ("text_score", "text_scene_score", "text_area_frac")

LARGEST_BOX_FRAC = 0.4
"""A box over a larger share of the frame is no text: detectors at times frame a smooth picture as a whole."""
READABLE = 0.5
"""Detection times recognition score from which on a box counts for `text_area_frac`."""
SAME_LEVELS = 4
"""Two frames show the same picture when no 8x8 pixel block's mean differs by more levels (of 255)."""


class TextConfig(BaseModel):
    """Settings of the text scorer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = True
    """False leaves the three text columns null."""
    side_px: int = Field(640, ge=160, le=2048)
    """Long side of the picture that is searched. Smaller frames are enlarged to it, at most to twice their size."""
    min_detection: float = Field(0.5, ge=0.1, le=0.95)
    """Detection score, 0 to 1, from which on a box is read at all."""
    max_boxes: int = Field(24, ge=1, le=200)
    """Most boxes read in one frame, best detections first."""
    detection_model: Path | None = None
    """A PP-OCR detection model in ONNX form; none takes the one inside the rapidocr package."""
    recognition_model: Path | None = None
    """A PP-OCR recognition model in ONNX form with its characters inside; none takes the one inside the package."""
    threads: int = Field(1, ge=1, le=64)
    """Threads of one onnxruntime session."""
    gpus: float = Field(0.0, ge=0.0, le=1.0)
    """Share of a GPU for each actor; 0 runs on the CPU. Needs onnxruntime-gpu."""

    RESOURCES: ClassVar[frozenset[str]] = frozenset({"threads", "gpus"})
    """Settings that say where the work runs, not what comes out."""


def check(config: TextConfig) -> None:
    """Raise ConfigError where the packages, models or GPU that the settings ask for are not there. Loads no model."""
    if not config.enabled:
        return
    if any(find_spec(package) is None for package in ("rapidocr", "onnxruntime")):
        raise ConfigError("text.enabled: reading text needs packages: pip install rapidocr onnxruntime")
    _models(config)
    if config.gpus > 0:
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise ConfigError("text.gpus: this onnxruntime has no CUDA provider: pip install onnxruntime-gpu, or set 0")


def _package() -> Path:
    """The folder of the rapidocr package."""
    spec = find_spec("rapidocr")
    assert spec is not None and spec.submodule_search_locations, "check() comes first"
    return Path(spec.submodule_search_locations[0])


def _models(config: TextConfig) -> tuple[Path, Path]:
    """Paths of the detection and the recognition model. Naming them keeps rapidocr from ever downloading one."""
    folder = _package() / "models"
    paths = []
    for setting, pattern in (("detection_model", "*_det_*.onnx"), ("recognition_model", "*_rec_*.onnx")):
        given: Path | None = getattr(config, setting)
        path = given or next(iter(sorted(folder.glob(pattern))), None)
        if path is None or not path.is_file():
            place = str(given) if given else f"{folder}/{pattern}"
            raise ConfigError(f"text.{setting}: no file {place}: name one, or pip install --force-reinstall rapidocr")
        paths.append(path)
    return paths[0], paths[1]


class Reader:
    """PP-OCR's detector and recogniser, as two sessions."""

    def __init__(self, config: TextConfig) -> None:
        from rapidocr.ch_ppocr_det import TextDetector
        from rapidocr.ch_ppocr_rec import TextRecognizer
        from rapidocr.utils.log import logger
        from rapidocr.utils.parse_parameters import ParseParams

        logger.setLevel(logging.WARNING)
        detection, recognition = _models(config)
        settings = ParseParams.load(_package() / "config.yaml")
        engine = settings.EngineConfig.onnxruntime
        engine.intra_op_num_threads, engine.inter_op_num_threads = config.threads, 1
        engine.use_cuda = config.gpus > 0
        settings.Det.update(engine_cfg=engine, model_path=str(detection), box_thresh=config.min_detection)
        settings.Det.update(limit_type="max", limit_side_len=config.side_px)
        settings.Rec.update(engine_cfg=engine, model_path=str(recognition), font_path=None)
        self._config = config
        self._detector = TextDetector(settings.Det)
        self._recogniser = TextRecognizer(settings.Rec)

    def read(self, frames: list[Picture]) -> list[Box]:
        """Detected and recognised text of a clip's frames (H, W, 3; BGR), with coordinates in their pixels."""
        from rapidocr.ch_ppocr_rec import TextRecInput
        from rapidocr.utils.process_img import get_rotate_crop_image

        found = [box for index, frame in enumerate(frames) for box in self._detect(index, frame)]
        if not found:
            return []
        crops = [get_rotate_crop_image(frames[box.frame], box.corners) for box in found]
        words = self._recogniser(TextRecInput(img=crops))
        assert words.txts is not None, "one result a crop"
        return [
            Box(box.frame, box.corners, box.detection, float(score), text)
            for box, text, score in zip(found, words.txts, words.scores, strict=True)
        ]

    def _detect(self, index: int, frame: Picture) -> list[Box]:
        found = self._detector(frame)
        if found.boxes is None or found.scores is None:
            return []
        boxes = [
            Box(index, np.asarray(corners, np.float32), float(score))
            for corners, score in zip(found.boxes, found.scores, strict=True)
        ]
        boxes = [box for box in boxes if box.area_frac(frame.shape) < LARGEST_BOX_FRAC]
        return sorted(boxes, key=lambda box: -box.detection)[: self._config.max_boxes]


class ReadText(Stage):
    """Writes `text_score`, `text_scene_score` and `text_area_frac` of a source's clips.

    `wanted` names the clips of a source to score; the others keep null. A clip whose frames cannot be read keeps null,
    with the error code `scorer_failed`.
    """

    name = "text"

    def __init__(self, config: TextConfig, wanted: Callable[[Source], set[str]] | None = None) -> None:
        self.config = config
        self.wanted = wanted
        self.gpus = config.gpus
        self.reader: Reader | None = None

    def open(self) -> None:
        """Load both models. Raises ConfigError as `check` does."""
        check(self.config)
        self.reader = Reader(self.config)

    def close(self) -> None:
        """Drop the models."""
        self.reader = None

    def one(self, source: Source) -> None:
        """Score each wanted clip on its own."""
        assert self.reader is not None, "open() comes first"
        for clip, jpegs in wanted_clips(source, self.wanted):
            try:
                clip |= score(jpegs, self.reader, self.config.side_px)
            except ClipError as error:
                note(clip, self.name, error)


def wanted_clips(source: Source, wanted: Callable[[Source], set[str]] | None) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """The clips to score, each with its kept JPEGs in order of time."""
    chosen = None if wanted is None else wanted(source)
    frames: dict[str, list[dict[str, Any]]] = {}
    for frame in sorted(source.frames, key=lambda frame: int(frame["frame"])):
        frames.setdefault(frame["clip_id"], []).append(frame)
    for clip in source.clips:
        if clip["status"] == "ok" and (chosen is None or clip["clip_id"] in chosen):
            yield clip, [frame["jpeg"] for frame in frames.get(clip["clip_id"], [])]


def note(clip: dict[str, Any], scorer: str, error: ClipError) -> None:
    """Say in a clip's row that a scorer failed on it; its other scores stand, and it stays usable by other rules."""
    said = [clip["error_message"]] if clip["error_message"] else []
    clip |= {
        "error_code": clip["error_code"] or error.code,
        "error_message": "; ".join([*said, f"{scorer}: {error.message}"])[:2000],
    }


def score(jpegs: list[bytes], reader: Reader, side_px: int) -> dict[str, float]:
    """The three text columns of one clip from its kept frames.

    Scores are the largest detection x recognition score, 0 to 1, of overlaid and of scene text; 0.0 where none was
    found. The area is that of readable overlaid boxes as a share of the frame, in the frame that has most of it.
    Raises ClipError where the frames cannot be decoded or a model fails.
    """
    import cv2
    from rapidocr.inference_engine.onnxruntime.main import ONNXRuntimeError

    if not jpegs:
        raise ClipError("scorer_failed", "the clip has no kept frame")
    try:
        frames = distinct(pictures(jpegs, side_px))
        boxes = reader.read(frames)
        gray = [np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), np.uint8) for frame in frames]
        overlays = Overlays(gray, boxes)
        overlaid = {id(box) for box in boxes if overlays.is_overlaid(box)}
    except (cv2.error, ONNXRuntimeError) as error:
        raise ClipError("scorer_failed", f"{type(error).__name__}: {error}") from error
    area_frac = [0.0] * len(frames)
    for box in boxes:
        if id(box) in overlaid and box.score >= READABLE:
            area_frac[box.frame] += box.area_frac(frames[box.frame].shape)
    return {
        "text_score": max((box.score for box in boxes if id(box) in overlaid), default=0.0),
        "text_scene_score": max((box.score for box in boxes if id(box) not in overlaid), default=0.0),
        "text_area_frac": min(1.0, max(area_frac)),
    }


def pictures(jpegs: list[bytes], side_px: int) -> list[Picture]:
    """Decode JPEGs to BGR pictures of one size: long side `side_px`, but at most twice the first one's own size."""
    import cv2

    found: list[Picture] = []
    for jpeg in jpegs:
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        if picture is None:
            raise ClipError("scorer_failed", "a kept frame is no readable JPEG")
        if not found:
            scale = min(2.0, side_px / max(picture.shape))
            size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        way = cv2.INTER_AREA if size[0] < picture.shape[1] else cv2.INTER_CUBIC
        found.append(np.asarray(cv2.resize(picture, size, interpolation=way), np.uint8))
    return found


def distinct(frames: list[Picture]) -> list[Picture]:
    """The frames without those that show the same picture as the one kept before: what was read there still holds."""
    import cv2

    kept: list[Picture] = []
    seen: npt.NDArray[np.int16] | None = None
    for frame in frames:
        size = (max(1, frame.shape[1] // 8), max(1, frame.shape[0] // 8))
        blocks = np.asarray(cv2.resize(frame, size, interpolation=cv2.INTER_AREA), np.int16)
        if seen is None or np.abs(blocks - seen).max() > SAME_LEVELS:
            kept.append(frame)
            seen = blocks
    return kept
