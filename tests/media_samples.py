"""Small media whose truth is known because it is made here."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
BITS = 12


def texture(width: int, height: int, seed: int = 0, cell: int = 8) -> Picture:
    """A coloured texture (height, width, 3) with detail at `cell` pixels."""
    import cv2

    rng = np.random.default_rng(seed)
    small = rng.integers(30, 220, (height // cell + 2, width // cell + 2, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)  # type: ignore[return-value]


def moving(width: int, height: int, seed: int = 0, step: int = 3) -> Callable[[int], Picture]:
    """Frame `n` of a texture that moves `step` pixels a frame to the left."""
    wide = texture(width * 2, height, seed)
    return lambda n: np.ascontiguousarray(np.roll(wide, -n * step, axis=1)[:, :width])


def numbered(width: int, height: int) -> Callable[[int], Picture]:
    """Frame `n` says its own number: twelve white or black columns, low bit first, over the whole height."""

    def picture(n: int) -> Picture:
        bits = np.array([255 * ((n >> b) & 1) for b in range(BITS)], dtype=np.uint8)
        row = bits[np.arange(width) * BITS // width]
        return np.repeat(np.tile(row, (height, 1))[:, :, None], 3, axis=2)

    return picture


def number_of(picture: NDArray[np.uint8]) -> int:
    """The number a `numbered` frame says, from its luma or RGB, whatever its size."""
    grey = picture if picture.ndim == 2 else picture.mean(axis=2)
    middle = grey[grey.shape[0] // 2]
    centres = ((np.arange(BITS) + 0.5) * len(middle) / BITS).astype(int)
    return int(sum(1 << b for b, value in enumerate(middle[centres]) if value > 127))


def make_video(
    path: Path,
    picture: Callable[[int], Picture],
    frames: int,
    fps: float = 25.0,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    times: list[float] | None = None,
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
    transfer: int | None = None,
    sound: bool = False,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Encode `frames` pictures; `times` (seconds) makes the rate variable."""
    import av

    height, width = picture(0).shape[:2]
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.thread_count = 1
        stream.options = {"preset": "ultrafast", "crf": "12"} if codec == "libx264" else {}
        stream.options = {**stream.options, **(options or {})}
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if transfer is not None:
            stream.codec_context.color_trc = transfer
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound:
            voice = container.add_stream("aac", rate=16000, layout="mono")
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(n), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[n] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16000
            container.mux(voice.encode(silence))
            container.mux(voice.encode(None))
    return path


def make_sound(path: Path) -> Path:
    """A file with a sound stream only."""
    import av

    with av.open(str(path), "w") as container:
        voice = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(voice.encode(silence))
        container.mux(voice.encode(None))
    return path


def make_sound_with_cover(path: Path) -> Path:
    """A sound file with a cover picture, which libav shows as a video stream."""
    import av

    with av.open(str(path), "w") as container:
        voice = container.add_stream("aac", rate=16000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        picture = av.VideoFrame.from_ndarray(texture(64, 64), format="rgb24")
        container.mux(cover.encode(picture))
        container.mux(cover.encode(None))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(voice.encode(silence))
        container.mux(voice.encode(None))
    return path


def start_later(path: Path, ticks: int) -> Path:
    """Move the beginning of an MP4's edit list by `ticks` of its track's clock: the frames before it are not shown."""
    data = bytearray(path.read_bytes())
    at = data.index(b"elst") + 16
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], "big") + ticks).to_bytes(4, "big")
    path.write_bytes(data)
    return path


def rotate(path: Path, degrees: int) -> Path:
    """Say in an MP4's track header that its picture must be turned `degrees` (90, 180, 270) clockwise to be upright."""
    one = 0x10000
    a, b, c, d = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    for at, value in zip((0, 4, 12, 16), (a, b, c, d), strict=True):
        data[start + at : start + at + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path
