"""The catalogue of the demo's films: what each shows, how it is cut and encoded, and what is true of it.

Good films; edited ones; ones that the shipped `everyday` rules must drop, each for one reason; and odd encodings. Every
shot that is to be kept has at least 128 frames, the fewest that a bucket takes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from jobs.demo_scenes import Camera, Frame, Shot


@dataclass(frozen=True)
class Truth:
    """What is true of one file. None (or an empty `verdict`) means: not judged, because people could disagree."""

    path: str
    what: str
    status: tuple[str, ...] = ("ok",)
    """Statuses of the source that are right."""
    error_codes: tuple[str, ...] = ()
    frames: int | None = None
    size: tuple[int, int] | None = None
    """Displayed width and height, in pixels."""
    cut_frames: tuple[int, ...] | None = None
    """First frames of new shots, hard cuts only."""
    gradual: tuple[tuple[int, int, str], ...] = ()
    """Half-open spans of frames that mix two shots."""
    bars: tuple[int, int, int, int] | None = None
    """Top, bottom, left, right, in displayed pixels."""
    has_text: bool | None = None
    static: bool | None = None
    slideshow: bool | None = None
    jitter: bool | None = None
    verdict: tuple[str, ...] = ()
    """Under `everyday`: ("kept",), or columns of which one must stand in each clip's reason; `no_clip` where the source
    may have no clip."""
    kept_clips: int = 1
    """With the verdict `kept`: at least so many clips are kept and written."""
    exact_copy_of: str | None = None
    near_copy_of: str | None = None
    known_limits: tuple[str, ...] = ()
    """Facts that the default detectors are known to miss: shown, and not counted as wrong."""


@dataclass(frozen=True)
class Join:
    """How one shot becomes the next. A dissolve or wipe overlaps the shots by `frames`; a fade darkens as many on each
    side of the change."""

    kind: Literal["cut", "dissolve", "wipe", "fade"] = "cut"
    frames: int = 0


@dataclass(frozen=True)
class Encoding:
    """How frames become a file."""

    codec: str = "libx264"
    pixels: str = "yuv420p"
    fps: int = 25
    crf: int = 23
    uneven: bool = False
    """Variable frame rate: every third frame is shown twice as long."""
    rotated: bool = False
    """Stored a quarter turn anticlockwise, with the display matrix that turns it back."""
    pixel_aspect: Fraction = Fraction(1)


Finish = Callable[[Frame, int], Frame]
"""Draws on a frame; takes its index too. It may change the frame in place."""


@dataclass(frozen=True)
class Film:
    """One video to make. `truth` says what its shots do not: frames, size, cuts and spans follow from them."""

    truth: Truth
    shots: tuple[Shot, ...]
    joins: tuple[Join, ...] = ()
    size: tuple[int, int] = (854, 480)
    finish: Finish | None = None
    encoding: Encoding = field(default_factory=Encoding)


def films(seed: int) -> list[Film]:
    """Every video that is made from scratch."""
    fixed = [*_good_films(), *_edited_films(), *_bad_films(), *_odd_films()]
    return [replace(f, shots=tuple(replace(s, seed=_mix(seed, f, i)) for i, s in enumerate(f.shots))) for f in fixed]


def _mix(seed: int, film: Film, index: int) -> int:
    """A seed of its own for every shot, the same whichever other films there are."""
    text = f"{seed}/{film.truth.path}/{index}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest())


def _good(path: str, what: str, kept_clips: int = 1, **more: Any) -> Truth:
    plain: dict[str, Any] = {
        "bars": (0, 0, 0, 0),
        "has_text": False,
        "static": False,
        "slideshow": False,
        "jitter": False,
    }
    return Truth(path, what, **{**plain, "verdict": ("kept",), "kept_clips": kept_clips, **more})


def _good_films() -> list[Film]:
    pan, drift = Camera(pan=3.0), Camera(sway_px=14)
    return [
        Film(_good("good/pan right.mp4", "A pan to the right over green hills"), (Shot("meadow", 150, pan),)),
        Film(
            _good("good/zoom-in.mp4", "A zoom into a coral reef, fish all around"),
            (Shot("reef", 150, Camera(zoom=0.0025, pan=0.8)),),
        ),
        Film(
            _good("good/handheld.mp4", "A hand-held view of rocks in the desert"),
            (Shot("desert", 150, drift, things=7),),
        ),
        Film(
            _good("good/tilt_and_pan.mkv", "Over the mountains at dusk"),
            (Shot("dusk", 150, Camera(pan=-2.5, tilt=0.4)),),
        ),
        Film(
            _good("good/long_shot_40s.mp4", "One shot of forty seconds along a forest", kept_clips=3),
            (Shot("forest", 960, Camera(pan=2.2)),),
            encoding=Encoding(fps=24),
        ),
        Film(_good("good/portrait.mp4", "A snowy ridge, held upright"), (Shot("snow", 150, pan),), size=(480, 854)),
        Film(_good("good/square.mp4", "A square view of the reef"), (Shot("reef", 150, pan),), size=(512, 512)),
        Film(
            _good("good/four-three.mp4", "Hills in the old television format"),
            (Shot("meadow", 150, Camera(pan=-3.0)),),
            size=(640, 480),
        ),
        Film(
            _good("good/Ünïcode · 山の風景.mp4", "A name beyond ASCII: the desert at noon"),
            (Shot("desert", 150, Camera(pan=2.8, sway_px=2)),),
        ),
        Film(
            _good("good/rotated_by_metadata.mp4", "Filmed upright on a telephone: stored on its side"),
            (Shot("forest", 150, pan),),
            size=(480, 854),
            encoding=Encoding(rotated=True),
        ),
        Film(
            _good("good/variable_rate.mp4", "Frames that last unequally long"),
            (Shot("snow", 150, Camera(pan=2.4, sway_px=2)),),
            encoding=Encoding(fps=30, uneven=True),
        ),
    ]


def _edited_films() -> list[Film]:
    a, b, c = (
        Shot("meadow", 160, Camera(pan=2.5)),
        Shot("dusk", 175, Camera(pan=-2.5)),
        Shot("snow", 175, Camera(pan=3.0)),
    )
    no_wipes = ("gradual", "clips across", "verdict")
    short = [Shot(world, n, Camera(pan=3.0)) for world, n in (("reef", 37), ("desert", 24), ("forest", 55))]
    return [
        Film(_good("edited/hard_cuts.mp4", "Six shots, five hard cuts", kept_clips=3), (a, *short, b, c)),
        Film(
            _good("edited/fade_through_black.mp4", "Two shots, a fade through black", kept_clips=2),
            (a, c),
            (Join("fade", 20),),
        ),
        Film(
            _good("edited/dissolve.mp4", "Two shots, a dissolve of 24 frames", kept_clips=2),
            (b, c),
            (Join("dissolve", 24),),
        ),
        Film(
            _good("edited/wipe.mp4", "Two shots, a wipe of 20 frames", 2, known_limits=no_wipes),
            (c, Shot("reef", 165, Camera(pan=2.5))),
            (Join("wipe", 20),),
        ),
        Film(
            _good("edited/white_flash.mp4", "One shot with a flash of light, no cut"),
            (Shot("forest", 150, Camera(pan=2.5)),),
            finish=_flash,
        ),
    ]


def _bad_films() -> list[Film]:
    def bad(path: str, what: str, *verdict: str, **more: Any) -> Truth:
        return _good(path, what, verdict=verdict, **more)

    pan = Camera(pan=3.0)
    borders = ("border_frac", "border_top_px", "border_bottom_px", "border_left_px", "border_right_px")
    motion = ("motion_vmaf", "motion_mv", "motion_static_frac", "slideshow_score")
    shaken = ("jitter_shots_per_s", "motion_mv", "motion_vmaf", "no_clip")
    return [
        Film(
            bad("bad/letterbox.mp4", "Black bars of 60 pixels above and below", *borders, bars=(60, 60, 0, 0)),
            (Shot("meadow", 150, pan),),
            finish=_letterbox,
        ),
        Film(
            bad("bad/pillarbox_grey.mp4", "Grey bars of 110 pixels at both sides", *borders, bars=(0, 0, 110, 110)),
            (Shot("desert", 150, pan),),
            finish=_pillarbox,
        ),
        Film(
            bad("bad/blurred_pillars.mp4", "Upright, between blurred copies of itself", *borders, bars=(0, 0, 292, 292)),
            (Shot("reef", 150, pan),),
            finish=_blurred_pillars,
        ),
        Film(
            bad("bad/subtitles.mp4", "Subtitles burnt into the picture", "text_score", has_text=True),
            (Shot("snow", 150, pan),),
            finish=_subtitles,
        ),
        Film(
            bad("bad/watermark.mp4", "The name of a channel in the corner", "text_score", has_text=True),
            (Shot("forest", 150, pan),),
            finish=_watermark,
        ),
        Film(
            bad("bad/static_picture.mp4", "One photograph, six seconds long", *motion, static=True, slideshow=None),
            (Shot("meadow", 150, freeze=True),),
        ),
        Film(
            bad("bad/slideshow.mp4", "Three photographs of four seconds each", *motion, static=None, slideshow=True),
            tuple(Shot(world, 110, freeze=True) for world in ("desert", "snow", "reef")),
        ),
        Film(
            bad("bad/jitter.mp4", "A camera shaken like a rattle", *shaken, jitter=True),
            (Shot("desert", 150, Camera(shake_px=300)),),
        ),
        Film(
            bad("bad/slow_pan.mp4", "A pan so slow that it is nearly none", *motion, static=None),
            (Shot("dusk", 150, Camera(pan=0.06), things=0),),
        ),
        Film(
            bad("bad/tiny_160x120.mp4", "Too few pixels", "height", "width", has_text=None, status=("ok", "rejected")),
            (Shot("snow", 150, Camera(pan=1.0)),),
            size=(160, 120),
        ),
    ]


def _odd_films() -> list[Film]:
    pan = Camera(pan=2.6, sway_px=2)
    nothing: dict[str, Any] = {"status": ("ok", "rejected"), "verdict": ("no_clip", "duration_s", "frames")}
    return [
        Film(
            _good("odd/odd_size_yuv444.mkv", "855 by 481 pixels, colour not subsampled"),
            (Shot("reef", 160, pan),),
            size=(855, 481),
            encoding=Encoding(pixels="yuv444p"),
        ),
        Film(
            _good("odd/ten_bit.mkv", "Ten bits a channel"),
            (Shot("dusk", 150, pan),),
            encoding=Encoding(pixels="yuv420p10le"),
        ),
        Film(
            _good("odd/wide_pixels.avi", "MPEG-4 in AVI, pixels wider than high", size=(853, 480)),
            (Shot("meadow", 160, Camera(pan=2.4)),),
            size=(720, 480),
            encoding=Encoding(codec="mpeg4", pixel_aspect=Fraction(32, 27)),
        ),
        Film(Truth("odd/one_frame.mp4", "A video of a single frame", **nothing), (Shot("forest", 1),)),
        Film(Truth("odd/short_2s.mp4", "Two seconds, too short for a clip", **nothing), (Shot("snow", 50, pan),)),
    ]


def _flash(frame: Frame, t: int) -> Frame:
    strength = {70: 0.5, 71: 0.8, 72: 0.3}.get(t, 0.0)
    return (frame + (255.0 - frame) * strength).astype(np.uint8) if strength else frame


def _letterbox(frame: Frame, t: int) -> Frame:
    frame[:60], frame[-60:] = 0, 0
    return frame


def _pillarbox(frame: Frame, t: int) -> Frame:
    frame[:, :110], frame[:, -110:] = 96, 96
    return frame


def _blurred_pillars(frame: Frame, t: int) -> Frame:
    """The middle third upright, over its own blurred and darkened enlargement."""
    import cv2

    height, width = frame.shape[:2]
    middle = frame[:, 292 : width - 292].copy()
    behind = cv2.resize(cv2.GaussianBlur(cv2.resize(middle, (64, 64)), (0, 0), 3), (width, height))
    out = (behind * 0.7).astype(np.uint8)
    out[:, 292 : width - 292] = middle
    return out


def _subtitles(frame: Frame, t: int) -> Frame:
    for first, last, line in ((15, 75, "We should have brought a map."), (85, 145, "I know the way, follow me!")):
        if first <= t < last:
            _write(frame, line, 1.1, frame.shape[0] - 36)
    return frame


def _watermark(frame: Frame, t: int) -> Frame:
    _write(frame, "REEL CHANNEL", 0.9, 46, left=frame.shape[1] - 270)
    return frame


def _write(frame: Frame, line: str, size: float, base: int, left: int | None = None) -> None:
    """White letters with a dark rim, in place; centred unless `left` says where."""
    import cv2

    font = cv2.FONT_HERSHEY_DUPLEX
    width = cv2.getTextSize(line, font, size, 2)[0][0]
    place = ((frame.shape[1] - width) // 2 if left is None else left, base)
    # OpenCV 5 has no stroke wider than the letter: the rim is the letters around their place, and the letters on top.
    for dx, dy in ((-2, -2), (-2, 0), (-2, 2), (0, -2), (0, 2), (2, -2), (2, 0), (2, 2)):
        cv2.putText(frame, line, (place[0] + dx, place[1] + dy), font, size, (0, 0, 0), 2, cv2.LINE_AA)
    cv2.putText(frame, line, place, font, size, (255, 255, 255), 2, cv2.LINE_AA)
