"""Media that strangers made: open it safely, say what it is, and decode it frame by frame.

A file is opened through a Python file object: its name never reaches libav, no protocol may be used by a demuxer,
and only self-contained container formats are allowed, so that opening one file can read no other file and no address.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from curation.errors import SourceError

if TYPE_CHECKING:
    import av
    import av.container
    import av.video.stream

Picture = NDArray[np.uint8]

SELF_CONTAINED = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,flv,asf,ogg,mxf,yuv4mpegpipe,ivf,dv,rm,"
    "h264,hevc,av1,obu,gif,nut,swf,wtv,vc1,h263,amr,wav,mp3,aac,flac"
)
"""libav demuxers that never open another file. Playlists, concat lists, manifests and image sequences are not among them."""

REFERRING = (b"#EXTM3U", b"ffconcat", b"<MPD", b"<SmoothStreamingMedia", b"[playlist]", b"#EXT-X-")
"""Beginnings of files that speak of other files."""

TRANSFER_PQ, TRANSFER_HLG = 16, 18
"""ITU-T H.273 transfer characteristics of HDR10 and HLG."""

FULL_RANGE = 2
TIMING_PACKETS = 300
"""Packets that `probe` looks at to tell a variable rate."""

PROBE_FRAMES = 3
MANY_ERRORS = 10_000


class MediaLimits(BaseModel):
    """Bounds on what one source may ask for. Above them it becomes an error row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: PositiveInt = 64 * 2**30
    max_pixels: PositiveInt = 8192 * 4352
    """Width x height of a frame or an image."""
    max_duration_s: PositiveFloat = 4 * 3600.0
    max_frames: PositiveInt = 2_000_000
    stall_s: PositiveFloat = 60.0
    """Longest time without a decoded frame before the child process is killed."""
    source_s: PositiveFloat = 7200.0
    """Longest time for one source in one stage."""
    memory_mb: PositiveFloat = 3000.0
    """Largest resident size of the child process."""
    threads: PositiveInt = 1
    """Decoder threads. One is the cheapest in CPU time; a cluster has enough sources to fill its cores."""


def probe(path: str, limits: MediaLimits) -> dict[str, Any]:
    """The probe columns of `tables.SOURCES` for one file, from its header and first frames.

    `width` and `height` are as displayed: rotation and pixel aspect applied. Raises SourceError empty, missing, unreadable,
    not_media, unsupported_format, no_video_stream, no_decoder, bad_header, zero_frames, too_large or too_long.
    """
    head = _check_file(path, limits)
    return _probe_image(path, limits) if _is_image(head) else _probe_video(path, limits)


@dataclass(frozen=True)
class Frame:
    """One decoded frame: its 0-based index in display order, its time from the first frame, and the picture."""

    index: int
    time_s: float
    picture: "av.VideoFrame"


@dataclass
class Decoding:
    """The frames of a source, in display order; `errors` counts the damaged packets that were passed over."""

    frames: Iterator[Frame]
    errors: int = 0
    _notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Frame]:
        return self.frames


@contextlib.contextmanager
def decode(path: str, limits: MediaLimits) -> Iterator[Decoding]:
    """Decode video stream 0 of a file. Damaged packets are counted and passed over.

    Iterating raises SourceError too_long beyond `max_frames`, too_large where a frame is, zero_frames where none comes
    out of an undamaged file, decode_failed where none comes out of a damaged one.
    """
    _check_file(path, limits)
    with _open(path) as container:
        decoding = Decoding(iter(()))
        decoding.frames = _frames(container, _video(container), limits, decoding)
        yield decoding


def luma(frame: "av.VideoFrame") -> Picture:
    """The luma plane (height, width) uint8 as stored, without a copy where it is 8-bit planar YUV or grey."""
    if frame.format.name in PLAIN_LUMA:
        plane = frame.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        return rows[: frame.height, : frame.width]
    return luma(frame.reformat(format="yuv420p"))


PLAIN_LUMA = frozenset("yuv420p yuvj420p yuv422p yuvj422p yuv444p yuvj444p yuv411p yuv410p yuv440p nv12 nv21 gray".split())


def rgb(frame: "av.VideoFrame", width: int, height: int, rotation: int) -> Picture:
    """The picture upright as 8-bit RGB (height, width, 3), `width` x `height` after turning by `rotation` degrees clockwise.

    The frame's own colour matrix and range are used; where it names none, BT.709 from 720 lines on and BT.601 below.
    HDR is not tone-mapped: every shipped rule list stops it.
    """
    import av.video.reformatter as reformatter

    stored = (height, width) if rotation % 180 else (width, height)
    unnamed = frame.colorspace in (2, 0) and not frame.format.name.startswith(("rgb", "bgr", "gbr"))
    matrix = reformatter.Colorspace.ITU709 if frame.height >= 720 else reformatter.Colorspace.ITU601
    turned = frame.reformat(
        width=stored[0],
        height=stored[1],
        format="rgb24",
        src_colorspace=matrix if unnamed else None,
        interpolation=reformatter.Interpolation.AREA,
    ).to_ndarray()
    return upright(turned, rotation)


def upright(picture: Picture, rotation: int) -> Picture:
    """Turn a stored picture by `rotation` degrees clockwise (a multiple of 90)."""
    return np.ascontiguousarray(np.rot90(picture, k=-(rotation // 90) % 4)) if rotation % 360 else picture


def open_image(path: str, limits: MediaLimits) -> Picture:
    """An image file as RGB uint8 (height, width, 3), upright by its EXIF orientation.

    Transparency is laid over white: cut-out product pictures, the usual case, are made for white pages.
    """
    from PIL import Image, ImageOps

    _check_file(path, limits)
    with _opened_image(path, limits) as image:
        try:
            shown = ImageOps.exif_transpose(image)
            if shown.mode in ("RGBA", "LA", "PA") or "transparency" in shown.info:
                shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown.convert("RGBA"))
            return np.asarray(shown.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise SourceError("decode_failed", f"image: {error}") from error


def _check_file(path: str, limits: MediaLimits) -> bytes:
    """The first bytes of a regular, non-empty, readable file of bearable size."""
    try:
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            raise SourceError("unreadable", "not a regular file")
        if info.st_size == 0:
            raise SourceError("empty", "the file has zero bytes")
        if info.st_size > limits.max_bytes:
            raise SourceError("too_large", f"{info.st_size} bytes, limits.max_bytes is {limits.max_bytes}")
        with Path(path).open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise SourceError("missing", "no such file") from error
    except OSError as error:
        raise SourceError("unreadable", str(error.strerror)) from error
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(REFERRING) or b"<MPD" in head:
        raise SourceError("unsupported_format", "a playlist or manifest refers to other files")
    return head


def _is_image(head: bytes) -> bool:
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


@contextlib.contextmanager
def _opened_image(path: str, limits: MediaLimits) -> Iterator[Any]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(Path(path), formats=("JPEG", "PNG", "WEBP")) as image:
            if image.width * image.height > limits.max_pixels:
                raise SourceError("too_large", f"{image.width} x {image.height} pixels, limits.max_pixels is {limits.max_pixels}")
            yield image
    except UnidentifiedImageError as error:
        raise SourceError("not_media", "no JPEG, PNG or WebP image") from error
    except Image.DecompressionBombError as error:
        raise SourceError("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise SourceError("bad_header", f"image: {error}") from error


EXIF_TURNS = {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}


def _probe_image(path: str, limits: MediaLimits) -> dict[str, Any]:
    with _opened_image(path, limits) as image:
        rotation = EXIF_TURNS.get(image.getexif().get(0x0112, 1), 0)
        width, height = (image.height, image.width) if rotation % 180 else (image.width, image.height)
        name = str(image.format).lower()
        deep = image.mode.startswith("I;16") or image.mode in ("I", "F")
    return {
        "kind": "image",
        "container": name,
        "video_codec": name,
        "audio_codec": None,
        "duration_s": 0.0,
        "fps": None,
        "is_vfr": False,
        "frames_declared": 1,
        "width": width,
        "height": height,
        "rotation": rotation,
        "pixel_aspect": 1.0,
        "interlaced": False,
        "bit_depth": 16 if deep else 8,
        "hdr": False,
        "full_range": True,
    }


@contextlib.contextmanager
def _open(path: str) -> Iterator["av.container.InputContainer"]:
    import av

    with Path(path).open("rb", buffering=0) as file:
        try:
            container = av.open(
                file,
                mode="r",
                metadata_errors="replace",
                buffer_size=1 << 18,
                container_options={"protocol_whitelist": "", "format_whitelist": SELF_CONTAINED},
            )
        except av.error.FFmpegError as error:
            raise _opening_error(path, error) from error
        with container:
            yield container


def _opening_error(path: str, error: Exception) -> SourceError:
    """Tell a foreign file from a damaged one: a known signature with a header that cannot be read is damaged."""
    with Path(path).open("rb") as file:
        head = file.read(64)
    known = (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
        or head.startswith((b"\x1aE\xdf\xa3", b"RIFF", b"FLV", b"OggS", b"\x30\x26\xb2\x75", b"\x00\x00\x01\xba", b"DKIF"))
    )
    if "whitelist" in str(error):
        return SourceError("unsupported_format", str(error))
    return SourceError("bad_header" if known else "not_media", f"{type(error).__name__}: {error}".replace(path, ""))


def _video(container: "av.container.InputContainer") -> "av.video.stream.VideoStream":
    """The first video stream that is no cover picture. Raises SourceError no_video_stream or no_decoder."""
    import av

    ATTACHED = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & ATTACHED]
    if not streams:
        kinds = sorted({s.type for s in container.streams})
        raise SourceError("no_video_stream", f"streams: {', '.join(kinds) or 'none'}")
    stream = streams[0]
    if stream.codec_context is None:
        raise SourceError("no_decoder", "no decoder for the video codec")
    return stream


def _probe_video(path: str, limits: MediaLimits) -> dict[str, Any]:
    with _open(path) as container:
        stream = _video(container)
        code = stream.codec_context
        _check_size(code.width, code.height, limits)
        duration = _duration(container, stream)
        if duration is not None and duration > limits.max_duration_s:
            raise SourceError("too_long", f"{duration:.0f} s, limits.max_duration_s is {limits.max_duration_s:g}")
        fps = _rate(stream)
        if stream.frames > limits.max_frames:
            raise SourceError("too_long", f"{stream.frames} frames, limits.max_frames is {limits.max_frames}")
        found = {
            "kind": "video",
            "container": container.format.name.split(",")[0],
            "video_codec": code.name,
            "audio_codec": container.streams.audio[0].codec_context.name if _has_audio(container) else None,
            "duration_s": duration,
            "fps": fps,
            "frames_declared": stream.frames or None,
        }
        aspect = stream.sample_aspect_ratio or code.sample_aspect_ratio
    with decode(path, limits) as decoding:
        first = [f.picture for f, _ in zip(decoding, range(PROBE_FRAMES), strict=False)]
    found |= _looks(first, float(aspect) if aspect else 1.0)
    found["is_vfr"] = _irregular(path)
    return found


def _has_audio(container: "av.container.InputContainer") -> bool:
    return bool(container.streams.audio) and container.streams.audio[0].codec_context is not None


def _looks(frames: list["av.VideoFrame"], aspect: float) -> dict[str, Any]:
    """What only decoded frames tell: orientation, field order, depth, transfer and range."""
    frame = frames[0]
    rotation = round(-frame.rotation / 90) * 90 % 360  # a header may claim any angle
    width = max(1, round(frame.width * aspect))
    size = (frame.height, width) if rotation % 180 else (width, frame.height)
    return {
        "width": size[0],
        "height": size[1],
        "rotation": rotation,
        "pixel_aspect": aspect,
        "interlaced": any(f.interlaced_frame for f in frames),
        "bit_depth": max(c.bits for c in frame.format.components),
        "hdr": frame.color_trc in (TRANSFER_PQ, TRANSFER_HLG),
        "full_range": frame.color_range == FULL_RANGE or frame.format.name.startswith(("yuvj", "rgb", "bgr", "gbr", "pal")),
    }


def _check_size(width: int, height: int, limits: MediaLimits) -> None:
    if width * height > limits.max_pixels:
        raise SourceError("too_large", f"{width} x {height} pixels, limits.max_pixels is {limits.max_pixels}")


def _duration(container: "av.container.InputContainer", stream: "av.video.stream.VideoStream") -> float | None:
    if stream.duration is not None and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration is not None else None


def _rate(stream: "av.video.stream.VideoStream") -> float | None:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= 1000:
            return float(rate)
    return None


def _irregular(path: str) -> bool:
    """Whether the first packets' times are unevenly spaced: the largest gap is over 1.5 times the median."""
    import av

    times: list[int] = []
    with _open(path) as container, contextlib.suppress(av.error.FFmpegError):
        stream = _video(container)
        for packet in container.demux(stream):
            if packet.pts is not None:
                times.append(packet.pts)
            if len(times) >= TIMING_PACKETS:
                break
    ordered = np.sort(np.array(times, dtype=np.int64))
    # Packets come in decoding order: where the look ends early, the last times have holes that later packets fill.
    gaps = np.diff(ordered[:-16] if len(times) == TIMING_PACKETS else ordered)
    return bool(gaps.size > 2 and gaps.max() > 1.5 * max(1.0, float(np.median(gaps))))


def _frames(
    container: "av.container.InputContainer", stream: "av.video.stream.VideoStream", limits: MediaLimits, decoding: Decoding
) -> Iterator[Frame]:
    from curation.child import beat

    code = stream.codec_context
    code.thread_count = limits.threads
    code.thread_type = "FRAME" if limits.threads > 1 else "NONE"
    code.options = {"max_pixels": str(limits.max_pixels)}
    clock = _Clock(stream.time_base, _rate(stream))
    index = 0
    for picture in _pictures(container, stream, decoding):
        if index % 32 == 0:
            beat()
        if index >= limits.max_frames:
            raise SourceError("too_long", f"more than {limits.max_frames} frames (limits.max_frames)")
        if index == 0:
            _check_size(picture.width, picture.height, limits)
        time_s = clock.tell(picture.pts)
        if time_s > limits.max_duration_s:
            raise SourceError("too_long", f"{time_s:.0f} s, limits.max_duration_s is {limits.max_duration_s:g}")
        yield Frame(index, time_s, picture)
        index += 1
    if index == 0:
        damaged = "; ".join(decoding._notes[:3])
        raise SourceError("decode_failed" if damaged else "zero_frames", damaged or "decoding ended without a frame")


def _pictures(
    container: "av.container.InputContainer", stream: "av.video.stream.VideoStream", decoding: Decoding
) -> Iterator["av.VideoFrame"]:
    """Frames as the decoder gives them; an error costs its packet, and too many in a row end the stream."""
    import av

    packets = container.demux(stream)
    failed = 0
    while failed < MANY_ERRORS:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            pictures = packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            decoding.errors += 1
            failed += 1
            decoding._notes.append(f"{type(error).__name__}: {error}") if len(decoding._notes) < 3 else None
            continue
        failed = 0
        yield from pictures  # type: ignore[misc]


class _Clock:
    """Times from the first frame, in seconds, never running backwards; a frame without a time follows at the frame rate."""

    def __init__(self, base: Fraction | None, fps: float | None) -> None:
        self.base = float(base) if base else None
        self.step = 1.0 / fps if fps else 0.04
        self.first: float | None = None
        self.last = -self.step

    def tell(self, pts: int | None) -> float:
        now = self.last + self.step
        if pts is not None and self.base is not None:
            told = pts * self.base
            self.first = told if self.first is None else self.first
            now = told - self.first if told - self.first > self.last else now
        self.last = now
        return now
