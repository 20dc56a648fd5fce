"""Overlaid text or text of the scene: told by how a piece of text and the picture around it behave between frames.

Overlaid text (captions, logos, counters, titles) stays in its place while the picture changes, or comes and goes while
the picture stays. Text of the scene moves with the scene. Where nothing moves at all, typography decides: overlays are
level, evenly filled, and stand where editors put them. Pure functions over the sampled frames of one clip.
"""

from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property

import numpy as np
import numpy.typing as npt

Gray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

CHANGED_LEVELS = 14
"""A pixel of the softened picture has changed when it differs by more levels (of 255); JPEG noise stays below."""
TEXTURED_LEVELS = 12
"""Only pixels with this much local contrast can show that a picture moved; plain sky looks still under any camera."""
MIN_TEXTURED = 24
"""Fewer textured pixels than this say nothing."""
MOVED_FRAC = 0.35
"""Share of changed textured pixels from which on a picture counts as moved."""
STILL_FRAC = 0.10
"""Share below which it counts as unmoved."""
WITHIN_FRAC = 0.15
"""Share of changed pixels under a box from which on its words came, went or changed."""
STAYS, STAYS_PX = 0.65, 1
"""Text has kept its place when it correlates this well with the same place, give or take a pixel each way."""
MOVED = 0.80
"""Text has moved when it correlates this well with another place."""
DRAWN_LEVELS, DRAWN_SPREAD = 20, 10
"""Letters or their ground are drawn, not filmed, when they are this near to black or white and vary this little."""
CUES_NEEDED = 3
"""Of the four typography cues, how many make text in a motionless picture an overlay."""


@dataclass(frozen=True, eq=False)
class Box:
    """One piece of text in one sampled frame.

    `corners` (4, 2) in pixels: top left, top right, bottom right, bottom left.
    """

    frame: int
    corners: npt.NDArray[np.float32]
    detection: float
    recognition: float = 0.0
    text: str = ""

    @property
    def score(self) -> float:
        """Detection times recognition score, 0 to 1."""
        return self.detection * self.recognition

    @cached_property
    def rect(self) -> tuple[int, int, int, int]:
        """Upright bounds: left, top, right, bottom; right and bottom excluded."""
        left, top = self.corners.min(axis=0)
        right, bottom = self.corners.max(axis=0)
        return int(left), int(top), int(right) + 1, int(bottom) + 1

    @property
    def height(self) -> int:
        """Height of the upright bounds in pixels."""
        return self.rect[3] - self.rect[1]

    @property
    def tilt_deg(self) -> float:
        """Angle of the top side against the nearest axis, 0 to 45 degrees."""
        side = self.corners[1] - self.corners[0]
        angle = abs(float(np.degrees(np.arctan2(side[1], side[0])))) % 90.0
        return min(angle, 90.0 - angle)

    def area_frac(self, shape: tuple[int, ...]) -> float:
        """Area of the four-sided box as a share of the frame."""
        x, y = self.corners[:, 0], self.corners[:, 1]
        area = 0.5 * abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))
        return area / (shape[0] * shape[1])


class Overlays:
    """The sampled frames of one clip (grey, one size) with their text, ready to tell overlaid from scene text."""

    def __init__(self, frames: list[Gray], boxes: list[Box]) -> None:
        import cv2

        self._boxes = boxes
        self._frames = frames
        self._soft = [np.asarray(cv2.GaussianBlur(frame, (3, 3), 0), np.uint8) for frame in frames]
        self._textured = [_textured(frame) for frame in self._soft]
        self._covered = [_cover(boxes, index, frame.shape) for index, frame in enumerate(frames)]

    def is_overlaid(self, box: Box) -> bool:
        """True where the other frames say so of a box; where they say nothing, typography decides."""
        others = [other for other in range(len(self._frames)) if other != box.frame]
        balance = sum(self._vote(box, other) for other in others)
        if balance:
            return balance > 0
        cues = self._cues(box)
        if others and all((self._changed_around(box, other)[1] or 0.0) <= STILL_FRAC for other in others):
            return cues >= CUES_NEEDED and _drawn(self._frames[box.frame], box)  # a still photo has signs in it too
        return cues >= CUES_NEEDED

    def _vote(self, box: Box, other: int) -> int:
        """What frame `other` says of a box: +1 overlaid, -1 of the scene, 0 nothing."""
        moved = self._moved_px(box, other)
        near, whole = self._changed_around(box, other)
        around = whole if near is None else near
        if moved is None:  # it came, went or changed its words: drawn, if the picture around it stood still
            return 1 if around is not None and around <= STILL_FRAC and self._changed_within(box, other) else 0
        if moved == 0:  # drawn, if the picture around it changed
            return 1 if around is not None and around >= MOVED_FRAC else 0
        return -1 if near is not None and near > STILL_FRAC else 0  # on plain ground it may be rolling credits

    def _moved_px(self, box: Box, other: int) -> float | None:
        """How far, in pixels, the text has moved in frame `other`: 0 in its place, None where it is not found again."""
        import cv2

        left, top, right, bottom = box.rect
        piece = self._soft[box.frame][top:bottom, left:right]
        reach = max(32, self._frames[0].shape[1] // 10)
        x0, y0 = max(0, left - reach), max(0, top - reach)
        field = self._soft[other][y0 : bottom + reach, x0 : right + reach]
        likeness = cv2.matchTemplate(field, piece, cv2.TM_CCOEFF_NORMED)
        x, y = left - x0, top - y0
        if likeness[max(0, y - STAYS_PX) : y + STAYS_PX + 1, max(0, x - STAYS_PX) : x + STAYS_PX + 1].max() >= STAYS:
            return 0.0
        _, best, _, (at_x, at_y) = cv2.minMaxLoc(likeness)
        return float(np.hypot(at_x - x, at_y - y)) if best >= MOVED else self._words_moved_px(box, other)

    def _words_moved_px(self, box: Box, other: int) -> float | None:
        """The same by the words read, for text that grew, turned or was lit otherwise. Boxes are found to 2 pixels."""
        if len(box.text) < 3:
            return None
        centre = box.corners.mean(axis=0)
        moves = [
            float(np.hypot(*(that.corners.mean(axis=0) - centre)))
            for that in self._boxes
            if that.frame == other and SequenceMatcher(None, that.text, box.text).ratio() >= 0.8
        ]
        if not moves:
            return None
        return min(moves) if min(moves) > 2.0 else 0.0

    def _changed_within(self, box: Box, other: int) -> bool:
        """Whether the pixels under a box changed: not merely too faint or too small to be found again."""
        left, top, right, bottom = box.rect
        here, there = (self._soft[index][top:bottom, left:right].astype(np.int16) for index in (box.frame, other))
        return float((np.abs(here - there) > CHANGED_LEVELS).mean()) >= WITHIN_FRAC

    def _changed_around(self, box: Box, other: int) -> tuple[float | None, float | None]:
        """Share of the textured pixels that changed, near the box and in the whole picture; None where it is plain."""
        import cv2

        changed = cv2.absdiff(self._soft[box.frame], self._soft[other]) > CHANGED_LEVELS
        covered = self._covered[box.frame] | self._covered[other]
        usable = (self._textured[box.frame] | self._textured[other]) & ~covered
        left, top, right, bottom = box.rect
        pad = max(12, box.height)
        near = np.s_[max(0, top - pad) : bottom + pad, max(0, left - pad) : right + pad]
        return _share(changed[near], usable[near]), _share(changed, usable)

    def _cues(self, box: Box) -> int:
        """How many typography cues of an overlay a box shows: level, a word at least, drawn, usual place."""
        shape = self._frames[0].shape
        return sum((box.tilt_deg <= 1.5, len(box.text) >= 3, _drawn(self._frames[box.frame], box), _usual(box, shape)))


def _textured(soft: Gray) -> Mask:
    """Pixels with local contrast: the range of values in the 3x3 neighbourhood."""
    import cv2

    kernel = np.ones((3, 3), np.uint8)
    mask: Mask = cv2.absdiff(cv2.dilate(soft, kernel), cv2.erode(soft, kernel)) > TEXTURED_LEVELS
    return mask


def _cover(boxes: list[Box], frame: int, shape: tuple[int, ...]) -> Mask:
    """Pixels of a frame under text, with a margin for outlines and shadows."""
    mask = np.zeros(shape, bool)
    for box in boxes:
        if box.frame == frame:
            left, top, right, bottom = box.rect
            mask[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3] = True
    return mask


def _share(changed: Mask, usable: Mask) -> float | None:
    """Share of the usable pixels that changed; None where too few are usable."""
    count = int(usable.sum())
    return float((changed & usable).sum()) / count if count >= MIN_TEXTURED else None


def _drawn(frame: Gray, box: Box) -> bool:
    """Whether the letters, or the ground they stand on, have the even near-black or near-white of a drawn picture."""
    import cv2

    left, top, right, bottom = box.rect
    patch = frame[top:bottom, left:right]
    threshold, _ = cv2.threshold(patch, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    bright, dark = patch[patch > threshold], patch[patch <= threshold]
    if not bright.size or not dark.size:
        return False
    low, high = np.percentile(bright, [25, 75])
    bright_even = high - low <= DRAWN_SPREAD and high >= 255 - DRAWN_LEVELS
    low, high = np.percentile(dark, [25, 75])
    return bool(bright_even or (high - low <= DRAWN_SPREAD and low <= DRAWN_LEVELS))


def _usual(box: Box, shape: tuple[int, ...]) -> bool:
    """Whether a box is centred from side to side, or stands in one of the four corners, not cut off at one side."""
    height, width = shape[:2]
    left, top, right, bottom = box.rect
    if (left <= 1) != (right >= width - 1):
        return False
    centred = abs((left + right) / 2 - width / 2) <= 0.05 * width
    aside = left <= 0.15 * width or right >= 0.85 * width
    return centred or (aside and (bottom <= 0.22 * height or top >= 0.75 * height))
