"""*Cut*: one sequential decode of a source makes every planned sample of it, with the same bytes on any machine."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from bucketing.buckets import Bucket, Choice, frame_indices
from curation.errors import ClipError
from curation.media import MediaLimits, decode, open_image

if TYPE_CHECKING:
    import av

Plane = NDArray[np.uint8]
LIMITED_RANGE = 1


class EncodeConfig(BaseModel):
    """How samples are encoded. Sound is not kept: every sample says so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crf: int = Field(18, ge=0, le=51)
    """x264 quality; 18 is visually close to the source."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = "fast"
    keyint: PositiveInt = 32
    """Most frames between keyframes: a trainer that wants 16 frames decodes at most 48."""
    webp_quality: int = Field(92, ge=1, le=100)


@dataclass(frozen=True)
class Cut:
    """One wanted sample: the clip's frames in its source, their times, and the bucket's choice."""

    key: str
    start_frame: int
    end_frame: int
    time_s: NDArray[np.float64]
    end_s: float
    choice: Choice


@dataclass(frozen=True)
class Turn:
    """How a stored frame becomes the displayed one: its displayed size, and the clockwise rotation that shows it upright."""

    width: int
    height: int
    rotation: int


@dataclass(frozen=True)
class Made:
    """What became of a cut: a file, or an error."""

    key: str
    file: str | None
    error_code: str | None = None
    error_message: str | None = None


def cut_video(
    path: str, cuts: Sequence[Cut], turn: Turn, encode: EncodeConfig, limits: MediaLimits, folder: str
) -> list[Made]:
    """Make the samples of one video as files in `folder`, in one pass up to the last frame that is wanted.

    Samples of one source may overlap. An encoder is opened at a sample's first frame and closed at its last one, so
    memory is bounded by the samples that overlap. Raises SourceError where the source cannot be decoded.
    """
    wanted: dict[int, list[_Encoder]] = defaultdict(list)
    encoders = [_Encoder(cut, encode, str(Path(folder) / f"{n:06d}.mp4")) for n, cut in enumerate(cuts)]
    for encoder in encoders:
        for index in encoder.indices:
            wanted[int(index)].append(encoder)
    last = max(wanted, default=-1)
    with decode(path, limits) as frames:
        for frame in frames:
            if frame.index in wanted:
                planes = _planes(frame.picture, turn)
                for encoder in wanted[frame.index]:
                    encoder.add(planes, turn)
            if frame.index >= last:
                break
    return [encoder.finish() for encoder in encoders]


def cut_image(path: str, cuts: Sequence[Cut], encode: EncodeConfig, limits: MediaLimits, folder: str) -> list[Made]:
    """Make the samples of one image as WebP files in `folder`."""
    import cv2
    from PIL import Image

    picture = open_image(path, limits)
    made = []
    for n, cut in enumerate(cuts):
        assert cut.choice.bucket is not None
        x, y, wide, high = (round(v) for v in cut.choice.crop)
        shown = cv2.resize(picture[y : y + high, x : x + wide], cut.choice.bucket.size, interpolation=cv2.INTER_AREA)
        file = str(Path(folder) / f"{n:06d}.webp")
        try:
            Image.fromarray(shown).save(file, "WEBP", quality=encode.webp_quality, method=4)
            made.append(Made(cut.key, file))
        except OSError as error:
            made.append(Made(cut.key, None, "encode_failed", str(error)))
    return made


class _Encoder:
    """One sample on its way into one file."""

    def __init__(self, cut: Cut, encode: EncodeConfig, file: str) -> None:
        assert cut.choice.bucket is not None
        self.cut = cut
        self.bucket: Bucket = cut.choice.bucket
        self.encode = encode
        self.file = file
        self.indices = cut.start_frame + frame_indices(cut.time_s, cut.end_s, cut.choice)
        self.done = 0
        self.error: ClipError | None = None
        self.container: av.container.OutputContainer | None = None

    def add(self, planes: tuple[Plane, Plane, Plane], turn: Turn) -> None:
        """Encode the next frame, from the displayed planes of the source's frame."""
        import av

        if self.error is not None:
            return
        try:
            if self.container is None:
                self._open()
            frame = av.VideoFrame.from_ndarray(_fit(planes, turn, self.cut.choice), format="yuv420p")
            frame.pts, frame.time_base = self.done, 1 / self.cut.choice.fps
            self._mux(frame)
            self.done += 1
            if self.done == len(self.indices):
                self._close()
        except (av.error.FFmpegError, OSError) as error:
            self.error = ClipError("encode_failed", f"{type(error).__name__}: {error}")

    def finish(self) -> Made:
        """What came of it, once the source is at its end."""
        if self.error is None and self.done < len(self.indices):
            self.error = ClipError("frames_missing", f"{self.done} of {len(self.indices)} frames came out of the source")
        if self.error is not None:
            return Made(self.cut.key, None, self.error.code, self.error.message)
        return Made(self.cut.key, self.file)

    def _open(self) -> None:
        import av

        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        self.container = av.open(self.file, "w", format="mp4", options=options)
        self.stream = self.container.add_stream("libx264", rate=self.cut.choice.fps)
        code = self.stream.codec_context
        code.width, code.height = self.bucket.size
        code.pix_fmt, code.time_base = "yuv420p", 1 / self.cut.choice.fps
        code.thread_count = 1
        code.flags |= av.codec.context.Flags.bitexact.value
        code.color_range = LIMITED_RANGE
        # One thread and no CPU-dependent choice: thread count and SIMD level otherwise change the bytes.
        fixed = f"threads=1:lookahead-threads=1:cpu-independent=1:open-gop=0:keyint={self.encode.keyint}"
        code.options = {"crf": str(self.encode.crf), "preset": self.encode.preset, "x264-params": fixed}

    def _mux(self, frame: "av.VideoFrame | None") -> None:
        assert self.container is not None
        for packet in self.stream.encode(frame):
            self.container.mux(packet)

    def _close(self) -> None:
        assert self.container is not None
        self._mux(None)
        self.container.close()


def _planes(frame: "av.VideoFrame", turn: Turn) -> tuple[Plane, Plane, Plane]:
    """A frame's planes as 8-bit limited-range 4:2:0, turned upright."""
    from av.video.reformatter import ColorRange

    if frame.format.name != "yuv420p" or frame.color_range == ColorRange.JPEG:
        full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        frame = frame.reformat(
            format="yuv420p", src_color_range=ColorRange.JPEG if full else None, dst_color_range=ColorRange.MPEG
        )
    found = []
    for plane in frame.planes[:3]:
        stored = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]
        found.append(np.rot90(stored, k=-(turn.rotation // 90) % 4) if turn.rotation else stored)
    return found[0], found[1], found[2]


def _fit(planes: tuple[Plane, Plane, Plane], turn: Turn, choice: Choice) -> Plane:
    """Crop and shrink displayed planes to the bucket: I420 as one array (height * 3/2, width)."""
    import cv2

    assert choice.bucket is not None
    width, height = choice.bucket.size
    parts = []
    for plane, size in zip(planes, ((width, height), (width // 2, height // 2), (width // 2, height // 2)), strict=True):
        sx, sy = plane.shape[1] / turn.width, plane.shape[0] / turn.height
        x, y, wide, high = choice.crop
        x0, y0 = max(0, round(x * sx)), max(0, round(y * sy))
        x1, y1 = min(plane.shape[1], round((x + wide) * sx)), min(plane.shape[0], round((y + high) * sy))
        shrunk = cv2.resize(np.ascontiguousarray(plane[y0:y1, x0:x1]), size, interpolation=cv2.INTER_AREA)
        parts.append(shrunk.reshape(-1, width))
    return np.vstack(parts)

