"""Media that strangers made: open it safely, say what it is, and decode it frame by frame.

A file is opened through a Python file object: its name never reaches libav, no protocol may be used by a demuxer,
and only self-contained container formats are allowed, so that opening one file can read no other file and no address.
"""

import contextlib
import errno
import itertools
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt

from curation.errors import SourceError
from curation.picture import Picture, check_size, is_image, luma, probe_image, read_image, rgb, upright

if TYPE_CHECKING:
    import av
    import av.container
    import av.video.stream

    VideoPacket = av.Packet[av.video.stream.VideoStream]

__all__ = [
    "Decoding",
    "Frame",
    "MediaLimits",
    "Picture",
    "check_bytes",
    "decode",
    "decode_at",
    "luma",
    "open_image",
    "probe",
    "rgb",
    "upright",
]

SELF_CONTAINED = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,m4v,flv,asf,ogg,mxf,yuv4mpegpipe,ivf,dv,rm,"
    "h264,hevc,av1,obu,gif,nut,swf,wtv,vc1,h263,amr,wav,mp3,aac,flac"
)
"""libav demuxers that never open another file. Playlists, concat lists, manifests and image sequences are not among them."""

REFERRING = (b"#EXTM3U", b"ffconcat", b"<MPD", b"<SmoothStreamingMedia", b"[playlist]", b"#EXT-X-")
"""Beginnings of files that speak of other files."""

SIGNATURES = (
    b"\x1aE\xdf\xa3",
    b"RIFF",
    b"FLV",
    b"OggS",
    b"\x30\x26\xb2\x75",
    b"\x00\x00\x01\xba",
    b"DKIF",
    b"YUV4MPEG2",
)
FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
"""How known video files begin, and the names that the first box of an MP4 or QuickTime file has."""

STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"avif")
"""Brands of HEIC and AVIF photos. libav would read one tile or a thumbnail of them as a video of one frame."""

TRANSFER_PQ, TRANSFER_HLG = 16, 18
"""ITU-T H.273 transfer characteristics of HDR10 and HLG."""

FULL_RANGE = 2

TIMING_PACKETS = 300
"""Packets that `probe` looks at to tell a variable rate."""

PROBE_FRAMES = 2
MANY_ERRORS = 10_000
"""Packets in a row that may fail to decode before a stream is given up."""

READ_ATTEMPTS = 100
"""Attempts in a row to read on behind damage of the container."""

WIDEST_PIXEL = 16.0
"""A pixel aspect beyond this, or below its inverse, is damage: no format has it."""

BEFORE_S = 1.0
"""How far before a frame is sought: some containers seek by the times of decoding, which run ahead of those of display."""

JUMP_S = 600.0
"""Frames that claim to be further apart, or over a second back, lie across a break of the clock (joined recordings)."""


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
    """Decoder threads. One is the cheapest in CPU time; a cluster has enough sources to fill its cores. More than one
    loses a few frames of a damaged file, so its results differ."""


def probe(path: str, limits: MediaLimits) -> dict[str, Any]:
    """The probe columns of `tables.SOURCES` for one file, from its header and first frames.

    `width` and `height` are as displayed: rotation and pixel aspect applied. Raises SourceError empty, missing, unreadable,
    not_media, unsupported_format, no_video_stream, no_decoder, bad_header, zero_frames, too_large or too_long.
    """
    head = _check_file(path, limits)
    return probe_image(path, limits.max_pixels) if is_image(head) else _probe_video(path, head, limits)


def check_bytes(size: int, limits: MediaLimits) -> None:
    """Raises SourceError too_large where a file of `size` bytes is above `limits.max_bytes`."""
    if size > limits.max_bytes:
        raise SourceError("too_large", f"{size} bytes, limits.max_bytes is {limits.max_bytes}")


@dataclass(frozen=True)
class Frame:
    """One decoded frame: its 0-based index in display order, its time from the first frame, and the picture."""

    index: int
    time_s: float
    picture: "av.VideoFrame"


@dataclass
class Decoding:
    """The frames of a source, in display order.

    `errors` counts the damaged packets passed over so far, and the frames that the decoder gave in spite of damage.
    """

    frames: Iterator[Frame] = field(default_factory=lambda: iter(()))
    errors: int = 0
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Frame]:
        return self.frames

    def note(self, error: Exception) -> None:
        """Count a failure; the first three are kept in words."""
        self.errors += 1
        if len(self.notes) < 3:
            self.notes.append(_words(error))


@contextlib.contextmanager
def decode(path: str, limits: MediaLimits) -> Iterator[Decoding]:
    """Decode the first video stream of a file. Damaged packets are counted and passed over.

    Raises what `probe` raises on opening. Iterating raises SourceError too_long beyond `max_frames`, too_large where a
    frame is, zero_frames where none comes out of an undamaged file, decode_failed where none comes out of a damaged one,
    read_failed where the storage fails.
    """
    head = _check_file(path, limits)
    with _open(path, head, limits) as container:
        stream = _video(container)
        decoding = Decoding()
        decoding.frames = _frames(stream, _packets(container, stream, decoding), limits, decoding)
        yield decoding


@contextlib.contextmanager
def decode_at(path: str, limits: MediaLimits, times_s: Sequence[float]) -> Iterator[Iterator["av.VideoFrame"]]:
    """Decode the frames that stand at these times (`Frame.time_s`), beginning at a keyframe not far before the first.

    They end early at one that is not surely what `decode` gives there: the container cannot seek, its clock breaks, there is
    damage. Then only decoding from the beginning tells. Raises what `decode` raises on opening, too_large and read_failed.
    """
    with _open(path, _check_file(path, limits), limits) as container:
        yield _pictures_at(container, _video(container), limits, times_s)


def open_image(path: str, limits: MediaLimits) -> Picture:
    """An image file as RGB uint8 (height, width, 3), upright by its EXIF orientation, transparency laid over white.

    Raises SourceError missing, unreadable, empty, not_media, bad_header, too_large or decode_failed.
    """
    if not is_image(_check_file(path, limits)):
        raise SourceError("not_media", "no JPEG, PNG or WebP image")
    return read_image(path, limits.max_pixels)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"


def _check_file(path: str, limits: MediaLimits) -> bytes:
    """The first bytes of a regular, non-empty, readable file of bearable size that stands for itself."""
    try:
        info = Path(path).stat()
        if not stat.S_ISREG(info.st_mode):
            raise SourceError("unreadable", "not a regular file")
        if info.st_size == 0:
            raise SourceError("empty", "the file has zero bytes")
        check_bytes(info.st_size, limits)
        with Path(path).open("rb") as file:
            head = file.read(512)
    except (FileNotFoundError, ValueError) as error:  # ValueError: a zero byte in the name
        raise SourceError("missing", "no such file") from error
    except OSError as error:
        raise SourceError("unreadable", str(error.strerror)) from error
    if head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(REFERRING) or b"<MPD" in head:
        raise SourceError("unsupported_format", "a playlist or manifest refers to other files")
    if head[4:8] == b"ftyp" and head[8:12] in STILL_BRANDS:
        raise SourceError("unsupported_format", "a HEIC or AVIF photo; JPEG, PNG and WebP are read")
    return head


@contextlib.contextmanager
def _open(path: str, head: bytes, limits: MediaLimits) -> Iterator["av.container.InputContainer"]:
    import av

    with Path(path).open("rb", buffering=0) as file:
        try:
            container = av.open(
                file,
                mode="r",
                metadata_errors="replace",
                buffer_size=1 << 18,
                options={"max_pixels": str(limits.max_pixels)},  # opening may already decode
                container_options={"protocol_whitelist": "", "format_whitelist": SELF_CONTAINED},
            )
        except (av.error.FFmpegError, OSError) as error:
            raise _opening_error(head, error) if _damage(error) else SourceError("read_failed", _words(error)) from error
        with container:
            yield container


def _damage(error: Exception) -> bool:
    """Whether what is in the file made reading fail, not the storage: libav says so, or was sent to before its beginning."""
    import av

    return isinstance(error, av.error.FFmpegError) or (isinstance(error, OSError) and error.errno == errno.EINVAL)


def _opening_error(head: bytes, error: Exception) -> SourceError:
    """Tell a foreign file from a damaged one: a known beginning with a header that cannot be read is damaged."""
    import av

    if head[4:8] in FIRST_BOXES or head.startswith(SIGNATURES):
        return SourceError("bad_header", _words(error))
    if isinstance(error, av.error.ArgumentError) and b"\0" in head:  # recognised, and not on the list
        return SourceError("unsupported_format", "no container of the list of self-contained video formats")
    return SourceError("not_media", _words(error))


def _video(container: "av.container.InputContainer") -> "av.video.stream.VideoStream":
    """The first video stream that is no cover picture. Raises SourceError no_video_stream or no_decoder."""
    import av

    ATTACHED = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & ATTACHED]
    if not streams:
        kinds = sorted({"cover picture" if s.disposition & ATTACHED else s.type for s in container.streams})
        raise SourceError("no_video_stream", f"streams: {', '.join(kinds) or 'none'}")
    stream = streams[0]
    if stream.codec_context is None:
        raise SourceError("no_decoder", "no decoder for the video codec")
    return stream


def _probe_video(path: str, head: bytes, limits: MediaLimits) -> dict[str, Any]:
    with _open(path, head, limits) as container:
        stream = _video(container)
        code = stream.codec_context
        check_size(code.width, code.height, limits.max_pixels)
        duration = _duration(container, stream)
        if duration is not None and duration > limits.max_duration_s:
            raise SourceError("too_long", f"{duration:.0f} s, limits.max_duration_s is {limits.max_duration_s:g}")
        if stream.frames > limits.max_frames:
            raise SourceError("too_long", f"{stream.frames} frames, limits.max_frames is {limits.max_frames}")
        decoding = Decoding()
        times: list[int] = []
        packets = _timed(_packets(container, stream, decoding), times)
        first = [f.picture for f in itertools.islice(_frames(stream, packets, limits, decoding), PROBE_FRAMES)]
        for _ in itertools.islice(packets, max(0, TIMING_PACKETS - len(times))):
            pass
        found = {
            "kind": "video",
            "container": container.format.name.split(",")[0],
            "video_codec": code.name,
            "audio_codec": container.streams.audio[0].codec_context.name if _has_audio(container) else None,
            "duration_s": duration,
            "fps": _rate(stream),
            "frames_declared": stream.frames or None,
            "is_vfr": _irregular(times),
        }
        looks = _looks(first, _pixel_aspect(stream))
    check_size(looks["width"], looks["height"], limits.max_pixels)
    return found | looks


def _timed(packets: Iterable["VideoPacket"], times: list[int]) -> Iterator["VideoPacket"]:
    """The same packets; their times are added to `times`."""
    for packet in packets:
        if packet.pts is not None:
            times.append(packet.pts)
        yield packet


def _pixel_aspect(stream: "av.video.stream.VideoStream") -> float:
    aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1)
    if not 1 / WIDEST_PIXEL <= aspect <= WIDEST_PIXEL:
        raise SourceError("bad_header", f"pixel aspect {aspect:g}")
    return aspect


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
        # RGB is measured through limited-range YUV
        "full_range": not frame.format.is_rgb and (frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")),
    }


def _duration(container: "av.container.InputContainer", stream: "av.video.stream.VideoStream") -> float | None:
    if stream.duration is not None and stream.time_base:
        told = float(stream.duration * stream.time_base)
    else:
        told = container.duration / 1_000_000 if container.duration is not None else -1.0
    return told if told >= 0 else None


def _rate(stream: "av.video.stream.VideoStream") -> float | None:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= 1000:
            return float(rate)
    return None


def _irregular(times: list[int]) -> bool:
    """Whether packet times are unevenly spaced: the largest gap is over 1.5 times the median."""
    ordered = np.sort(np.array(times, dtype=np.int64))
    # Packets come in decoding order: where the look ends early, the last times have holes that later packets fill.
    gaps = np.diff(ordered[:-16] if len(times) >= TIMING_PACKETS else ordered)
    return bool(gaps.size > 2 and gaps.max() > 1.5 * max(1.0, float(np.median(gaps))))


def _pictures_at(
    container: "av.container.InputContainer",
    stream: "av.video.stream.VideoStream",
    limits: MediaLimits,
    times_s: Sequence[float],
) -> Iterator["av.VideoFrame"]:
    import av

    from curation.child import beat

    _set_up(stream, limits)
    decoding = Decoding()
    first = next(_pictures(_packets(container, stream, decoding), decoding), None)
    if first is None or first.pts is None or not stream.time_base:
        return
    base, zero = float(stream.time_base), first.pts * float(stream.time_base)

    def after_s(pts: int, time_s: float) -> float:
        """Seconds from `time_s` on, 0 where only rounding lies between."""
        return round(pts * base - zero - time_s, 6)

    try:
        container.seek(first.pts + round((times_s[0] - BEFORE_S) / stream.time_base), stream=stream)
    except (av.error.FFmpegError, OSError) as error:
        if not _damage(error):
            raise SourceError("read_failed", _words(error)) from error
        return
    packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, _packets(container, stream, decoding))
    key = next(packets, None)
    if key is None or key.pts is None or after_s(key.pts, times_s[0]) > 0:
        return  # a frame that is shown before this keyframe may lean on what lies before it
    pictures = _pictures(itertools.chain([key], packets), decoding)
    wanted = itertools.dropwhile(lambda p: p.pts is not None and after_s(p.pts, times_s[0]) < 0, pictures)
    for time_s, picture in zip(times_s, wanted, strict=False):
        if decoding.errors or picture.pts is None or after_s(picture.pts, time_s):
            return
        beat()
        check_size(picture.width, picture.height, limits.max_pixels)
        yield picture


def _set_up(stream: "av.video.stream.VideoStream", limits: MediaLimits) -> None:
    code = stream.codec_context
    code.thread_count = limits.threads
    code.thread_type = "FRAME" if limits.threads > 1 else "NONE"
    code.options = {"max_pixels": str(limits.max_pixels)}


def _frames(
    stream: "av.video.stream.VideoStream", packets: Iterable["VideoPacket"], limits: MediaLimits, decoding: Decoding
) -> Iterator[Frame]:
    """The frames of `packets` with index and time, held against the limits."""
    from curation.child import beat

    _set_up(stream, limits)
    clock = _Clock(stream.time_base, _rate(stream))
    index = -1
    for index, picture in enumerate(_pictures(packets, decoding)):
        beat()
        if index >= limits.max_frames:
            raise SourceError("too_long", f"more than {limits.max_frames} frames (limits.max_frames)")
        check_size(picture.width, picture.height, limits.max_pixels)
        time_s = clock.tell(picture.pts)
        if time_s > limits.max_duration_s:
            raise SourceError("too_long", f"{time_s:.0f} s, limits.max_duration_s is {limits.max_duration_s:g}")
        yield Frame(index, time_s, picture)
    if index < 0:
        damaged = "; ".join(decoding.notes)
        raise SourceError("decode_failed" if damaged else "zero_frames", damaged or "decoding ended without a frame")


def _packets(
    container: "av.container.InputContainer", stream: "av.video.stream.VideoStream", decoding: Decoding
) -> Iterator["VideoPacket"]:
    """The stream's packets and at last an empty one; reading goes on behind damage while it brings anything."""
    import av

    failed = 0
    packets = container.demux(stream)
    while failed < READ_ATTEMPTS:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            if not _damage(error):
                raise SourceError("read_failed", _words(error)) from error
            decoding.note(error)
            failed += 1
            packets = container.demux(stream)
            continue
        except IndexError:  # PyAV met a packet of a stream that the file began later: begun again, it passes over it
            failed += 1
            packets = container.demux(stream)
            continue
        if packet is None:
            return
        failed = 0
        yield packet
    last: VideoPacket = av.Packet()  # type: ignore[assignment]
    last.stream = stream
    yield last  # an empty packet: the decoder gives what it still holds


def _pictures(packets: Iterable["VideoPacket"], decoding: Decoding) -> Iterator["av.VideoFrame"]:
    """Frames as the decoder gives them; an error costs its packet, and too many in a row end the stream."""
    import av

    failed = 0
    for packet in packets:
        try:
            pictures = packet.decode()
        except av.error.EOFError:
            return
        except av.error.FFmpegError as error:
            decoding.note(error)
            failed += 1
            if failed >= MANY_ERRORS:
                return
            continue
        failed = 0
        for picture in pictures:
            decoding.errors += picture.is_corrupt
            yield picture


class _Clock:
    """Times from the first frame, in seconds, never running backwards.

    A frame without a time follows at the frame rate; one slightly out of order has the time of the frame before it;
    where the clock itself breaks, it goes on at the frame rate from there.
    """

    def __init__(self, base: Fraction | None, fps: float | None) -> None:
        self.base = float(base) if base else 0.0
        self.step = 1.0 / fps if fps else 0.04
        self.origin: float | None = None
        self.last = -self.step

    def tell(self, pts: int | None) -> float:
        follows = self.last + self.step
        if pts is None or not self.base:
            self.last = follows
            return follows
        told = pts * self.base
        if self.origin is None or not -1.0 <= told - self.origin - self.last <= JUMP_S:
            self.origin = told - follows
        self.last = max(self.last, told - self.origin, 0.0)
        return self.last
