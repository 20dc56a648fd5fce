"""Pixels as arrays: a decoded frame's luma or its upright RGB, and image files."""

import contextlib
import re
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from curation.errors import SourceError

if TYPE_CHECKING:
    import av
    import PIL.Image

Picture = NDArray[np.uint8]

BT601, BT709 = 5, 1
MATRICES = {1: BT709, 4: 4, 5: BT601, 6: BT601, 7: 7, 9: 9, 10: 9}
"""ITU-T H.273 matrix coefficients to those libswscale has (10, constant luminance, is read as 9)."""

PLAIN_LUMA = frozenset(
    {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "yuv411p", "yuv410p", "yuv440p"}
    | {"nv12", "nv21", "gray"}
)
DEEP_LUMA = re.compile(r"(yuv\d{3}p|yuva\d{3}p|gray)(9|10|12|14|16)le")

EXIF_TURNS = {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}
"""EXIF orientations to degrees clockwise; 2, 4, 5 and 7 are mirrored besides."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises SourceError too_large where a picture has more than `max_pixels` pixels."""
    if width * height > max_pixels:
        raise SourceError("too_large", f"{width} x {height} pixels, limits.max_pixels is {max_pixels}")


def luma(frame: "av.VideoFrame") -> Picture:
    """The luma plane (height, width) uint8 in the stored orientation and range.

    Without a copy where it is 8-bit planar YUV or grey; more bits lose their lowest; RGB becomes limited-range luma.
    """
    name = frame.format.name
    deep = DEEP_LUMA.fullmatch(name)
    if deep is None and name not in PLAIN_LUMA:
        frame = frame.reformat(format="yuv420p")
    plane: Any = frame.planes[0]
    if deep is None:
        return np.frombuffer(plane, np.uint8).reshape(frame.height, -1)[:, : frame.width]
    samples = np.frombuffer(plane, np.uint16).reshape(frame.height, -1)[:, : frame.width]
    return (samples >> (int(deep[2]) - 8)).astype(np.uint8)


def rgb(frame: "av.VideoFrame", width: int, height: int, rotation: int) -> Picture:
    """The picture upright as 8-bit RGB (height, width, 3), `width` x `height` after turning by `rotation` degrees clockwise.

    The frame's own colour matrix and range are used; where it names none that is known, BT.709 from 720 lines on and
    BT.601 below. HDR is not tone-mapped: every shipped rule list stops it.
    """
    from av.video.reformatter import Interpolation

    stored = (height, width) if rotation % 180 else (width, height)
    converted = frame.reformat(
        width=stored[0],
        height=stored[1],
        format="rgb24",
        src_colorspace=MATRICES.get(frame.colorspace, BT709 if frame.height >= 720 else BT601),
        interpolation=Interpolation.AREA,
        threads=1,
    )
    return upright(np.asarray(converted.to_ndarray(), np.uint8), rotation)


def upright(picture: Picture, rotation: int) -> Picture:
    """Turn a stored picture by `rotation` degrees clockwise (a multiple of 90)."""
    return np.ascontiguousarray(np.rot90(picture, k=-(rotation // 90) % 4)) if rotation % 360 else picture


def is_image(head: bytes) -> bool:
    """Whether a file that begins with `head` is a JPEG, PNG or WebP image."""
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def probe_image(path: str, max_pixels: int) -> dict[str, Any]:
    """The probe columns of `tables.SOURCES` for an image file."""
    with _opened_image(path, max_pixels) as image, _image_errors("decode_failed"):
        rotation = EXIF_TURNS.get(image.getexif().get(0x0112, 1), 0)
        width, height = (image.height, image.width) if rotation % 180 else (image.width, image.height)
        name = str(image.format).lower()
        deep = image.mode.startswith("I")
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


def read_image(path: str, max_pixels: int) -> Picture:
    """An image file as RGB uint8 (height, width, 3), upright by its EXIF orientation.

    Transparency is laid over white: cut-out product pictures, the usual case, are made for white pages.
    """
    from PIL import Image, ImageOps

    with _opened_image(path, max_pixels) as image, _image_errors("decode_failed"):
        shown = ImageOps.exif_transpose(image)
        if shown.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255
            shown = Image.fromarray((np.asarray(shown) >> 8).astype(np.uint8))
        if shown.mode in ("RGBA", "LA", "PA") or "transparency" in shown.info:
            shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown.convert("RGBA"))
        return np.array(shown.convert("RGB"))


@contextlib.contextmanager
def _image_errors(code: str) -> Iterator[None]:
    """Pillow's many exceptions as SourceErrors; `code` is for those that mean damage."""
    from PIL import Image

    try:
        yield
    except Image.DecompressionBombError as error:
        raise SourceError("too_large", str(error)) from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise SourceError(code, f"image: {error}") from error


@contextlib.contextmanager
def _opened_image(path: str, max_pixels: int) -> Iterator["PIL.Image.Image"]:
    from PIL import Image

    # Pillow warns of large images and damaged EXIF; sizes are checked here, and such EXIF is as good as none.
    with warnings.catch_warnings(action="ignore"), contextlib.ExitStack() as stack:
        with _image_errors("bad_header"):
            image = stack.enter_context(Image.open(Path(path), formats=("JPEG", "PNG", "WEBP")))
        check_size(image.width, image.height, max_pixels)
        yield image
