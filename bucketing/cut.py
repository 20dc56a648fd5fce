"""*Cut*: one sequential decode of a source makes every planned sample of it, with the same bytes on any machine."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from bucketing.buckets import Bucket, Choice, Rect, frame_indices, target_times
from bucketing.shard_format import IMAGE, VIDEO
from curation.errors import ClipError, ConfigError
from curation.media import FULL_RANGE, TRANSFER_HLG, TRANSFER_PQ, MediaLimits, decode, open_image
from curation.storage import FULL

if TYPE_CHECKING:
    import av
    import av.container
    import av.filter
    import av.video.stream

BT709, LIMITED_RANGE = 1, 1
"""ITU-T H.273 matrix, primaries and transfer; libav's number of the limited range."""

MOST_OFF_S = 0.1
"""A sample whose frames stand further than this from the times they should show is refused: its motion would be false."""

MATRICES = {0: None, 1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
"""ITU-T H.273 matrix coefficients by libswscale's names; 0 is RGB."""

TURNS = {0: "", 90: ",transpose=clock", 180: ",hflip,vflip", 270: ",transpose=cclock"}


class EncodeConfig(BaseModel):
    """How samples are encoded. Sound is not kept: every sample says so."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    crf: int = Field(18, ge=0, le=51)
    """x264 quality; 18 is visually close to the source."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = "fast"
    keyint: PositiveInt = 32
    """Frames from keyframe to keyframe: a trainer that wants 16 frames decodes at most 48."""
    resize: Literal["area", "lanczos"] = "lanczos"
    """`area` averages pixels: a little softer, never a halo."""
    webp_quality: int = Field(92, ge=1, le=100)


@dataclass(frozen=True)
class Cut:
    """One wanted sample: the clip's frames in its source, their times, and the bucket's choice. `key` names it."""

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
class Shown:
    """What a sample shows of its source: the first and last frame, the rectangle in displayed pixels, and by how much a
    frame's time is off at most (half a frame of the source is natural)."""

    first_frame: int
    last_frame: int
    crop: Rect
    off_s: float


@dataclass(frozen=True)
class Made:
    """What became of a cut: a file and what it shows, or an error."""

    key: str
    file: str | None
    error_code: str | None = None
    error_message: str | None = None
    shown: Shown | None = None


def check() -> None:
    """Raises ConfigError where this machine's PyAV has no x264, or its Pillow no WebP."""
    import av.codec
    from PIL import features

    if "libx264" not in av.codec.codecs_available:
        raise ConfigError("cutting needs a PyAV with libx264: install the wheel from PyPI (pip install av)")
    if not features.check("webp"):
        raise ConfigError("cutting images needs a Pillow with WebP: install the wheel from PyPI (pip install pillow)")


def cut_video(path: str, cuts: Sequence[Cut], turn: Turn, encode: EncodeConfig, limits: MediaLimits, folder: str) -> list[Made]:
    """Make the samples of one video as files in `folder`, in one pass up to the last frame that is wanted.

    Samples of one source may overlap. An encoder is opened at a sample's first frame and closed at its last one, so
    memory is bounded by the samples that overlap. A sample that cannot be made is ClipError's encode_failed or
    frames_missing in its `Made`. Raises SourceError where the source cannot be decoded.
    """
    encoders = [_Encoder(cut, turn, encode, str(Path(folder) / f"{n:06d}.{VIDEO}")) for n, cut in enumerate(cuts)]
    wanted: dict[int, list[_Encoder]] = defaultdict(list)
    for encoder in encoders:
        for index in encoder.indices.tolist():
            wanted[index].append(encoder)
    last = max(wanted, default=-1)
    try:
        with decode(path, limits) as frames:
            for frame in frames:
                if frame.index > last:
                    break
                for encoder in wanted.get(frame.index, ()):
                    encoder.add(frame.picture)
        return [encoder.made() for encoder in encoders]
    finally:
        for encoder in encoders:
            encoder.close()


def cut_image(path: str, cuts: Sequence[Cut], encode: EncodeConfig, limits: MediaLimits, folder: str) -> list[Made]:
    """Make the samples of one image as WebP files in `folder`. Raises SourceError where the image cannot be read."""
    from PIL import Image

    picture = Image.fromarray(open_image(path, limits))
    # Pillow resizes in integers: the same pixels on every machine.
    kernel = {"area": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}[encode.resize]
    made = []
    for n, cut in enumerate(cuts):
        assert cut.choice.bucket is not None
        x, y, width, height = cut.choice.crop
        file = str(Path(folder) / f"{n:06d}.{IMAGE}")
        try:
            small = picture.resize(cut.choice.bucket.size, kernel, box=(x, y, x + width, y + height))
            small.save(file, "WEBP", quality=encode.webp_quality, method=4)
            made.append(Made(cut.key, file, shown=Shown(0, 0, cut.choice.crop, 0.0)))
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            made.append(Made(cut.key, None, "encode_failed", str(error)))
    return made


class _Encoder:
    """One sample on its way into one file."""

    def __init__(self, cut: Cut, turn: Turn, encode: EncodeConfig, file: str) -> None:
        assert cut.choice.bucket is not None
        self.cut = cut
        self.bucket: Bucket = cut.choice.bucket
        self.shaper = _Shaper(cut.choice.crop, turn, self.bucket.size, encode.resize)
        self.encode = encode
        self.file = file
        self.done = 0
        self.error: ClipError | None = None
        self.container: av.container.OutputContainer | None = None
        self.indices = np.empty(0, np.int64)
        self.off_s = 0.0
        try:
            self.indices, self.off_s = _planned(cut)
        except ClipError as error:
            self.error = error

    def add(self, picture: "av.VideoFrame") -> None:
        """Encode the next frame; after an error the sample takes no more."""
        import av

        if self.error is not None:
            return
        try:
            if self.container is None:
                self._open()
            frame = self.shaper.shape(picture)
            frame.pts, frame.time_base = self.done, 1 / self.cut.choice.fps
            self._mux(frame)
            self.done += 1
            if self.done == len(self.indices):
                self._mux(None)
                self.close()
        except ClipError as error:
            self.error = error
        except (av.error.FFmpegError, OSError) as error:
            if error.errno in FULL:  # the sample is not at fault
                raise
            self.error = ClipError("encode_failed", f"{type(error).__name__}: {error}")

    def made(self) -> Made:
        """What came of it, once the source is at its end."""
        if self.error is None and self.done < len(self.indices):
            self.error = ClipError("frames_missing", f"{self.done} of {len(self.indices)} frames came out of the source")
        if self.error is not None:
            return Made(self.cut.key, None, self.error.code, self.error.message)
        shown = Shown(int(self.indices[0]), int(self.indices[-1]), self.cut.choice.crop, self.off_s)
        return Made(self.cut.key, self.file, shown=shown)

    def close(self) -> None:
        """Finish the file, if it is open."""
        container, self.container = self.container, None
        if container is not None:
            container.close()

    def _open(self) -> None:
        import av

        options = {"movflags": "+faststart", "fflags": "+bitexact"}
        self.container = av.open(self.file, "w", format="mp4", options=options)
        self.stream: av.video.stream.VideoStream = self.container.add_stream("libx264", rate=self.cut.choice.fps)
        code = self.stream.codec_context
        code.width, code.height = self.bucket.size
        code.pix_fmt, code.time_base = "yuv420p", 1 / self.cut.choice.fps
        code.thread_count = 1
        code.flags |= av.codec.context.Flags.bitexact.value
        code.color_range = LIMITED_RANGE
        code.colorspace = code.color_primaries = code.color_trc = BT709
        # One thread and no CPU-dependent choice: thread count and SIMD level otherwise change the bytes. A clip is a
        # single shot, so keyframes stand at even distances.
        fixed = "threads=1:lookahead-threads=1:cpu-independent=1:open-gop=0:scenecut=0"
        params = f"{fixed}:keyint={self.encode.keyint}:min-keyint={self.encode.keyint}"
        code.options = {"crf": str(self.encode.crf), "preset": self.encode.preset, "x264-params": params}

    def _mux(self, frame: "av.VideoFrame | None") -> None:
        assert self.container is not None
        for packet in self.stream.encode(frame):
            self.container.mux(packet)


def _planned(cut: Cut) -> tuple[NDArray[np.int64], float]:
    """The source frames of a sample, and by how much the worst of them is off its time. Raises ClipError frames_missing."""
    try:
        own = frame_indices(cut.time_s, cut.end_s, cut.choice)
    except ValueError as error:
        raise ClipError("frames_missing", str(error)) from error
    off_s = round(float(np.abs(cut.time_s[own] - target_times(cut.time_s, cut.end_s, cut.choice)).max()), 6)
    if off_s > MOST_OFF_S:
        raise ClipError("frames_missing", f"the source has a hole: a frame would stand {off_s:.2f} s from its time")
    return cut.start_frame + own, off_s


class _Shaper:
    """Crops, shrinks and turns the pictures of one sample, and gives them BT.709 colours of limited range."""

    def __init__(self, crop: Rect, turn: Turn, size: tuple[int, int], resize: str) -> None:
        self.crop = crop
        self.turn = turn
        self.size = size
        self.resize = resize
        self.looks: tuple[object, ...] | None = None
        self.graph: av.filter.Graph | None = None

    def shape(self, picture: "av.VideoFrame") -> "av.VideoFrame":
        """The sample's picture, without anything that came along with the source's. Raises ClipError encode_failed."""
        import av

        looks = (picture.width, picture.height, picture.format.name, int(picture.colorspace), int(picture.color_range))
        if self.graph is None or looks != self.looks:
            self.graph, self.looks = self._graph(picture), looks
        picture.pts = picture.pts or 0
        self.graph.push(picture)
        shaped = self.graph.pull()
        assert isinstance(shaped, av.VideoFrame)
        return av.VideoFrame.from_ndarray(shaped.to_ndarray(), format="yuv420p")

    def _graph(self, picture: "av.VideoFrame") -> "av.filter.Graph":

        _refuse(picture)
        turned = self.turn.rotation % 180 != 0
        width, height = reversed(self.size) if turned else self.size
        x, y, wide, high = stored_rect(self.crop, self.turn, (picture.width, picture.height))
        if wide < width or high < height:
            raise ClipError("encode_failed", f"{wide}x{high} stored pixels would be enlarged to {width}x{height}")
        # bitexact and accurate_rnd: the same pixels with every SIMD level.
        flags = f"flags={self.resize}+accurate_rnd+bitexact+full_chroma_int"
        chain = (
            f"buffer=video_size={picture.width}x{picture.height}:pix_fmt={picture.format.name}:time_base=1/1000,"
            f"crop={wide}:{high}:{x}:{y}:exact=1,scale={width}:{height}:{flags}{_colours(picture, flags)},"
            f"format=yuv420p{TURNS[self.turn.rotation % 360]},buffersink"
        )
        return _linked(chain)


def _linked(chain: str) -> "av.filter.Graph":
    """A configured graph of filters in a row: `name=arguments,name=arguments,...`."""
    import av.filter

    graph = av.filter.Graph()
    nodes = [graph.add(name, arguments) for name, _, arguments in (part.partition("=") for part in chain.split(","))]
    graph.link_nodes(*nodes)
    graph.configure()
    return graph


def _refuse(picture: "av.VideoFrame") -> None:
    """Samples are SDR and progressive. Raises ClipError encode_failed for what would have to be converted."""
    if picture.color_trc in (TRANSFER_PQ, TRANSFER_HLG):
        raise ClipError("encode_failed", "HDR is not tone-mapped: stop it by a source rule on `hdr`")
    if picture.interlaced_frame:
        raise ClipError("encode_failed", "interlaced pictures are not converted: stop them by a source rule on `interlaced`")


def _colours(picture: "av.VideoFrame", flags: str) -> str:
    """What a scale filter with `flags` still lacks to come from the picture's matrix and range to limited BT.709.

    Where a picture names no matrix: BT.709 from 720 lines on, BT.601 below, as players do. Another matrix is changed
    after shrinking, with full chroma: at the source's size it would cost four times the shrinking.
    """
    to = "out_color_matrix=bt709:out_range=tv"
    if picture.format.name.startswith(("rgb", "bgr", "gbr", "pal", "argb", "abgr", "0rgb")):
        return f":{to}"
    matrix = MATRICES.get(int(picture.colorspace)) or ("bt709" if picture.height >= 720 else "bt601")
    full = picture.color_range == FULL_RANGE or picture.format.name.startswith("yuvj")
    own = f"in_color_matrix={matrix}:in_range={'pc' if full else 'tv'}"
    if matrix == "bt709" and not full:
        return f":{own}:{to}"
    kept = own.replace("in_", "out_")
    return f":{own}:{kept},format=yuv444p,scale={flags}:{own}:{to}"


def stored_rect(crop: Rect, turn: Turn, stored: tuple[int, int]) -> Rect:
    """A rectangle of displayed pixels in a stored frame of size `stored`: turned back, unstretched, at even places."""
    x, y, wide, high = crop
    width, height = turn.width, turn.height
    rotation = turn.rotation % 360
    if rotation == 90:
        x, y, wide, high, width, height = y, width - x - wide, high, wide, height, width
    elif rotation == 180:
        x, y = width - x - wide, height - y - high
    elif rotation == 270:
        x, y, wide, high, width, height = height - y - high, x, high, wide, height, width
    across, down = stored[0] / width, stored[1] / height
    return _even(x * across), _even(y * down), _even(wide * across), _even(high * down)


def _even(value: float) -> int:
    """The largest even number that is not above `value`: chroma is shared by pairs of pixels."""
    return 2 * int(value / 2 + 1e-6)
