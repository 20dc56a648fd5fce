"""Bytes to pixels and back, with one colour matrix and range: BT.709, limited in files, full in RGB.

PyAV: decord took as long for whole clips and windows (docs/loader.md), though it converts by the faster, coarser path,
and takes no matrix from us. Every conversion is bit-exact: the same pixels on every machine.
"""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
from numpy.typing import NDArray

from training_bridge.index import Shape
from training_bridge.view import Window

Pixels = NDArray[np.uint8]

BT709, LIMITED_RANGE = 1, 1
"""ITU-T H.273 matrix, primaries and transfer; libav's number of the limited range."""

EXACT = "flags=bilinear+accurate_rnd+bitexact"
"""A triangle as wide as the shrinking asks for: no aliasing and no halo. The faster paths are off by up to 3 of 255."""

FPS_FINEST = 1001


class MediaError(ValueError):
    """These bytes are not the sample that they should be."""


def decode_video(data: bytes, stored: Shape, window: Window | None = None, into: Pixels | None = None) -> Pixels:
    """The frames of a sample's `.mp4` as RGB (3, T, H, W): all of it, or a window; `into` memory that is there, if given.

    A window is decoded from the keyframe before it up to its end. Raises MediaError where the video is broken, or not of
    the stored shape.
    """
    window = window or Window.whole(stored)
    try:
        with av.open(io.BytesIO(data), "r") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            found = Shape(stream.frames, stream.height, stream.width)
            if found != stored or not stream.average_rate or stream.time_base is None:
                raise MediaError(f"the video is {found}; the index says {stored}")
            ticks = 1 / (stream.average_rate * stream.time_base)
            if window.start:
                container.seek(int(window.start * ticks), stream=stream)
            return _pixels(_between(container.decode(stream), ticks, window), window, "yuv420p", into)
    except (av.error.FFmpegError, IndexError) as error:
        raise MediaError(f"no video: {type(error).__name__}: {error}") from error


def decode_image(data: bytes, stored: Shape, window: Window | None = None, into: Pixels | None = None) -> Pixels:
    """A sample's picture as RGB (3, 1, H, W), as `decode_video` does it."""
    from PIL import Image

    window = window or Window.whole(stored)
    try:
        with Image.open(io.BytesIO(data)) as image:
            picture = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError(f"no picture: {type(error).__name__}: {error}") from error
    if (found := Shape(1, *picture.shape[:2])) != stored:
        raise MediaError(f"the picture is {found}; the index says {stored}")
    return _pixels(iter([av.VideoFrame.from_ndarray(picture, format="rgb24")]), window, "rgb24", into)


def write_video(path: str | Path, frames: Pixels, fps: float) -> None:
    """Write RGB frames (T, H, W, 3) as an `.mp4` in the colours of the shards: H.264, yuv420p, BT.709 limited range.

    Raises ValueError where there is no frame, or a side is odd.
    """
    count, height, width, _ = frames.shape
    if not count or height % 2 or width % 2:
        raise ValueError(f"an mp4 has at least one frame and even sides, not {count}x{height}x{width}")
    rate = Fraction(fps).limit_denominator(FPS_FINEST)
    graph = _graph((width, height), "rgb24", f"scale={EXACT}:out_color_matrix=bt709:out_range=tv,format=yuv420p")
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16", "x264-params": "threads=1"})
        code = stream.codec_context
        code.width, code.height, code.pix_fmt, code.time_base, code.thread_count = width, height, "yuv420p", 1 / rate, 1
        code.color_range = LIMITED_RANGE
        code.colorspace = code.color_primaries = code.color_trc = BT709
        for number, pixels in enumerate(frames):
            picture = _through(graph, av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"))
            picture.pts, picture.time_base = number, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def _between(pictures: Iterator[av.VideoFrame], ticks: Fraction, window: Window) -> Iterator[av.VideoFrame]:
    """The pictures of a window out of those that begin before it. Raises MediaError where one is missing."""
    wanted, end = window.start, window.start + window.frames
    for picture in pictures:
        if picture.pts is None or (number := round(picture.pts / ticks)) > wanted:
            break
        if number == wanted:
            yield picture
            wanted += 1
            if wanted == end:
                return
    raise MediaError(f"frame {wanted} is missing")


def _pixels(pictures: Iterator[av.VideoFrame], window: Window, stored_as: str, into: Pixels | None) -> Pixels:
    """The window's rectangle of each picture, as RGB (3, T, H, W)."""
    pixels = np.empty((3, window.frames, window.height, window.width), np.uint8) if into is None else into
    graph = None
    for number, picture in enumerate(pictures):
        if graph is None:
            crop = f"crop={window.across}:{window.down}:{window.x}:{window.y}:exact=1"
            own = "" if stored_as == "rgb24" else ":in_color_matrix=bt709:in_range=tv:out_range=pc"
            chain = f"{crop},scale={window.width}:{window.height}:{EXACT}{own},format=gbrp"
            graph = _graph((picture.width, picture.height), stored_as, chain)
        if picture.format.name != stored_as:
            raise MediaError(f"the video is {picture.format.name}, not {stored_as}")
        for place, plane in zip((1, 2, 0), _through(graph, picture).planes, strict=True):
            lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
            pixels[place, number] = lines[:, : window.width]
    return pixels


def _graph(size: tuple[int, int], stored_as: str, chain: str) -> av.filter.Graph:
    """A configured row of filters, `name=arguments,...`, for pictures of this size (width, height) and format."""
    graph = av.filter.Graph()
    graph.threads = 1
    whole = f"buffer=video_size={size[0]}x{size[1]}:pix_fmt={stored_as}:time_base=1/1000,{chain},buffersink"
    nodes = [graph.add(name, arguments) for name, _, arguments in (part.partition("=") for part in whole.split(","))]
    graph.link_nodes(*nodes)
    graph.configure()
    return graph


def _through(graph: av.filter.Graph, picture: av.VideoFrame) -> av.VideoFrame:
    picture.pts = picture.pts or 0
    graph.push(picture)
    shown = graph.pull()
    assert isinstance(shown, av.VideoFrame)
    return shown
