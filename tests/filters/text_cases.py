"""Text of known truth over pictures: overlaid lines by size, script, contrast, style, place and time shown, and signs that
belong to the scene."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from filters.frames import FramesConfig, kept_size

Rgb = NDArray[np.uint8]
SEEN = 0.6
"""The score from which on a clip counts as carrying text: the shipped lists' threshold."""
LINES = {
    "latin": (
        "Breaking news at nine",
        "Watch until the end",
        "@kitchen.stories",
        "CHAPTER TWO",
        "What are you doing?",
        "00:12:48",
    ),
    "cyrillic": ("Последние новости", "Смотрите до конца", "ГЛАВА ВТОРАЯ", "Что ты делаешь?"),
    "greek": ("Τελευταία νέα", "Δείτε μέχρι το τέλος", "ΚΕΦΑΛΑΙΟ ΔΥΟ", "Πού πηγαίνεις;"),
    "chinese": ("今晚九点新闻", "请看到最后", "第二章开始", "你在做什么"),
    "japanese": ("このあとすぐ", "最後までご覧ください", "何をしているの", "第二章のはじまり"),
    "korean": ("오늘 저녁 뉴스", "끝까지 시청하세요", "지금 뭐 하는 거야"),
    "arabic": ("الأخبار الآن", "شاهد حتى النهاية", "ماذا تفعل"),
}
_WESTERN = ("DejaVuSans.ttf", "LiberationSans-Bold.ttf", "LiberationSerif-Regular.ttf", "LiberationSansNarrow-Bold.ttf")
_EASTERN = ("wqy-microhei.ttc", "NotoSansCJK-Regular.ttc")
FONTS = {
    **dict.fromkeys(("latin", "cyrillic", "greek"), _WESTERN),
    **dict.fromkeys(("chinese", "japanese", "korean"), _EASTERN),
    "arabic": ("DejaVuSans.ttf",),
}
CONTRASTS = {"faint": 40, "medium": 80, "strong": 160}
STYLES = ("plain", "outline", "box")
PLACES = {
    "lower third": (0.5, 0.85),
    "top": (0.5, 0.1),
    "corner": (0.0, 0.08),
    "lower corner": (1.0, 0.92),
    "middle": (0.5, 0.5),
}
SHOWN = {"whole clip": 3, "first two thirds": 2, "first third": 1}
"""In how many of a clip's three kept frames the line is."""


@dataclass(frozen=True)
class Line:
    """One overlaid line. `height` is the font's, as a share of the frame's height; contrast is planted in levels."""

    words: str
    height: float = 0.05
    script: str = "latin"
    font: str = ""
    contrast: str = "strong"
    style: str = "outline"
    place: str = "lower third"
    shown: str = "whole clip"


@lru_cache
def fonts(script: str) -> tuple[str, ...]:
    """The fonts of a script that are installed here."""
    return tuple(name for name in FONTS[script] if _installed(name))


def _installed(name: str) -> bool:
    try:
        ImageFont.truetype(name)
    except OSError:
        return False
    return True


def overlay(frames: Sequence[Rgb], line: Line) -> list[Rgb]:
    """The frames of a clip (three, one size) with the line over as many of them as it is shown in."""
    height, width = frames[0].shape[:2]
    size = max(5, round(line.height * height))
    font = ImageFont.truetype(line.font, size) if line.font else ImageFont.load_default(size)
    words = _fitting(line.words, font, 0.92 * width)
    x, y = (share * whole for share, whole in zip(PLACES[line.place], (width, height), strict=True))
    half = font.getlength(words) / 2
    at = (min(max(x, half + 0.03 * width), 0.97 * width - half), y)
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox(at, words, font, anchor="mm")
    ground = float(np.mean([frame[int(top) : int(bottom) + 1, int(left) : int(right) + 1].mean() for frame in frames]))
    letters, edge = _levels(30.0 if line.style == "box" else ground, CONTRASTS[line.contrast])
    shown: list[Rgb] = []
    for frame in frames[: SHOWN[line.shown]]:
        image = Image.fromarray(frame)
        draw = ImageDraw.Draw(image)
        if line.style == "box":
            pad = size / 4
            draw.rectangle((left - pad, top - pad, right + pad, bottom + pad), (30, 30, 30))
        stroke = max(1, round(size / 14)) if line.style == "outline" else 0
        draw.text(at, words, (letters,) * 3, font, anchor="mm", stroke_width=stroke, stroke_fill=(edge,) * 3)
        shown.append(np.asarray(image))
    return [*shown, *frames[len(shown) :]]


def _fitting(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    while font.getlength(words) > width and len(words) > 3:
        words = words[:-1].rstrip()
    return words


def _levels(ground: float, contrast: int) -> tuple[int, int]:
    """Grey levels of letters and of their outline: `contrast` away from the ground, towards the side with more room."""
    away = contrast if ground < 128 else -contrast
    return int(np.clip(ground + away, 0, 255)), int(np.clip(ground - away, 0, 255))


def world(seed: int, width: int = 1280, height: int = 720) -> Rgb:
    """A made-up place: colours at all sizes, soft and hard edges, grain; nothing like letters."""
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), 120.0, np.float32)
    for octave in range(2, 8):
        cells = 2**octave, 2**octave * width // height
        detail = rng.normal(0, 90 / octave, (*cells, 1)) + rng.normal(0, 15 / octave, (*cells, 3))
        picture += cv2.resize(detail.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(14):
        centre, axes = rng.uniform((0, 0), (width, height)), rng.uniform(0.04, 0.14, 2) * width
        cv2.ellipse(
            picture, (centre.tolist(), axes.tolist(), rng.uniform(0, 180)), rng.uniform(20, 220, 3).tolist(), -1, cv2.LINE_AA
        )
    return np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Camera:
    """What a camera does between two kept frames: shares of the picture's width, degrees, and growth."""

    right: float = 0.0
    down: float = 0.0
    turn_deg: float = 0.0
    grow: float = 1.0

    def views(self, picture: Rgb, count: int = 3) -> list[Rgb]:
        """`count` frames of three quarters of the picture's sides, symmetric about its middle in time."""
        height, width = picture.shape[:2]
        out_w, out_h = width * 3 // 4, height * 3 // 4
        frames = []
        for step in np.arange(count) - (count - 1) / 2:
            middle = (width / 2 + self.right * step * width, height / 2 + self.down * step * width)
            matrix = cv2.getRotationMatrix2D(middle, self.turn_deg * step, self.grow**step)
            matrix[:, 2] += (out_w / 2 - middle[0], out_h / 2 - middle[1])
            view = cv2.warpAffine(picture, matrix, (out_w, out_h), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
            frames.append(np.asarray(view, np.uint8))
        return frames


CAMERAS = {
    "pan": Camera(right=0.06),
    "slow pan": Camera(right=0.012),
    "tilt": Camera(down=0.05),
    "zoom": Camera(grow=1.15),
    "handheld": Camera(right=0.006, down=-0.004, turn_deg=0.8),
    "tripod": Camera(),
}


def sign(picture: Rgb, words: str, height: float, rng: random.Random, font: str = "") -> Rgb:
    """The picture with a painted board near its middle, seen at an angle: text of the scene."""
    size = max(6, round(height * picture.shape[0]))
    face = ImageFont.truetype(font, size) if font else ImageFont.load_default(size)
    wide, high = round(face.getlength(words)) + size, round(1.6 * size)
    board = Image.new("RGB", (wide, high), rng.choice(["#8a2f2b", "#2d5a3c", "#d9c9a0", "#35507a"]))
    ink = "#2a2522" if board.getpixel((0, 0)) == (217, 201, 160) else "#e6e0cf"
    ImageDraw.Draw(board).text((wide / 2, high / 2), words, ink, face, anchor="mm")
    left = rng.uniform(0.25, 0.4) * picture.shape[1]
    top = rng.uniform(0.25, 0.6) * picture.shape[0]
    lean, shorten = rng.uniform(-0.08, 0.08) * wide, rng.uniform(0.75, 1.0)
    right = min(left + wide * rng.uniform(0.8, 1.0), 0.78 * picture.shape[1])
    middle = top + lean + high / 2
    corners = [(left, top), (right, middle - high * shorten / 2), (right, middle + high * shorten / 2), (left, top + high)]
    bounds = np.array([(0, 0), (wide, 0), (wide, high), (0, high)], np.float32)
    warp = cv2.getPerspectiveTransform(bounds, np.array(corners, np.float32))
    size_wh = (picture.shape[1], picture.shape[0])
    laid = cv2.warpPerspective(np.asarray(board), warp, size_wh, flags=cv2.INTER_AREA)
    mask = cv2.warpPerspective(np.full((high, wide, 1), 255, np.uint8), warp, size_wh, flags=cv2.INTER_LINEAR)[..., None]
    share = mask.astype(np.float32) / 255
    return (laid * share + picture * (1 - share)).astype(np.uint8)


def jpegs(frames: Iterable[Rgb]) -> list[bytes]:
    """The frames as the job keeps them."""
    config = FramesConfig()
    return [_jpeg(frame, config) for frame in frames]


def _jpeg(frame: Rgb, config: FramesConfig) -> bytes:
    size = kept_size(frame.shape[1], frame.shape[0], config.long_side)
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, config.quality])[1].tobytes()
