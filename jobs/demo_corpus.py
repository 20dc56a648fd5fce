"""A small corpus of made-up films whose truth is known, because every cut, bar and letter was put there on purpose.

    truths = make_corpus(Path("corpus"))        # films, images, damaged files, manifest.csv, truth.json

Good films, films that the shipped `everyday` rules must drop, each for one reason, and files that no reader should trip
over. PyAV, NumPy and OpenCV make it all; the encoder runs on one thread, so the same seed gives the same pictures.
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jobs.demo_scenes import Camera, Frame, Shot, render

LICENCE = "CC0-1.0"
MOTION = ("motion_vmaf", "motion_mv", "motion_static_frac")


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
    """Under `everyday`: ("kept",), or the columns of which one must stand in the reason; `no_clip` where none is long enough."""
    kept_clips: int = 1
    """With the verdict `kept`: at least so many clips are kept and written."""
    exact_copy_of: str | None = None
    near_copy_of: str | None = None


@dataclass(frozen=True)
class Join:
    """How one shot becomes the next. `frames` are mixed ones: a dissolve or wipe overlaps the shots by so many, a fade darkens
    as many on either side."""

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


@dataclass(frozen=True)
class Film:
    """One video to make. `truth` holds what is said by hand; frames, size, cuts and gradual spans follow from the shots."""

    truth: Truth
    shots: tuple[Shot, ...]
    joins: tuple[Join, ...] = ()
    size: tuple[int, int] = (854, 480)
    finish: Finish | None = None
    encoding: Encoding = field(default_factory=Encoding)


def make_corpus(folder: Path, seed: int = 0, only: set[str] | None = None) -> list[Truth]:
    """Write the corpus into `folder` and return its truth, sorted by path; `only` names the files to make.

    Files that are copies or damages of another need that one: it is made too. `manifest.csv` (path, caption, licence)
    and `truth.json` stand beside the files. Half a minute on two cores.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {film.truth.path: film for film in films(seed)}
    derived = {d.truth.path: d for d in derivations()}
    names = set(made) | set(derived) if only is None else set(only)
    assert names <= set(made) | set(derived), f"no such files: {sorted(names - set(made) - set(derived))}"
    names |= {derived[n].source for n in names & set(derived) if derived[n].source}
    films_wanted = sorted((made[n] for n in names & set(made)), key=_work, reverse=True)
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1, len(films_wanted) or 1), get_context("spawn")) as pool:
        truths = list(pool.map(partial(write_film, folder), films_wanted))
    for name in sorted(names & set(derived)):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        derived[name].make(folder / derived[name].source, target)
        truths.append(derived[name].truth)
    truths.sort(key=lambda t: t.path)
    _write_lists(folder, truths)
    return truths


def _work(film: Film) -> int:
    return sum(shot.frames for shot in film.shots) * film.size[0] * film.size[1]


def _write_lists(folder: Path, truths: Iterable[Truth]) -> None:
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "caption", "licence"])
        rows.writerows([t.path, t.what, LICENCE] for t in truths)
    text = json.dumps([asdict(t) for t in truths], indent=1, ensure_ascii=False)
    (folder / "truth.json").write_text(text + "\n", encoding="utf-8")


# ---- the films ----------------------------------------------------------------------------------------------------


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
        Shot("dusk", 150, Camera(pan=-2.5)),
        Shot("snow", 170, Camera(pan=3.0)),
    )
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
            _good("edited/wipe.mp4", "Two shots, a wipe of 20 frames", kept_clips=2),
            (c, Shot("reef", 160, Camera(pan=2.5))),
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
    no_motion = (*MOTION, "slideshow_score")
    return [
        Film(bad("bad/letterbox.mp4", "Black bars of 60 pixels above and below", *borders, bars=(60, 60, 0, 0)), (Shot("meadow", 150, pan),), finish=_letterbox),
        Film(bad("bad/pillarbox_grey.mp4", "Grey bars of 110 pixels at both sides", *borders, bars=(0, 0, 110, 110)), (Shot("desert", 150, pan),), finish=_pillarbox),
        Film(bad("bad/blurred_pillars.mp4", "An upright film between blurred copies of itself", *borders, bars=(0, 0, 292, 292)), (Shot("reef", 150, pan),), finish=_blurred_pillars),
        Film(bad("bad/subtitles.mp4", "Subtitles burnt into the picture", "text_score", has_text=True), (Shot("snow", 150, pan),), finish=_subtitles),
        Film(bad("bad/watermark.mp4", "The name of a channel in the corner", "text_score", has_text=True), (Shot("forest", 150, pan),), finish=_watermark),
        Film(bad("bad/static_picture.mp4", "One photograph, six seconds long", *no_motion, static=True, slideshow=None), (Shot("meadow", 150, freeze=True),)),
        Film(
            bad("bad/slideshow.mp4", "Three photographs of four seconds and a half", *no_motion, static=None, slideshow=True),
            tuple(Shot(world, 110, freeze=True) for world in ("desert", "snow", "reef")),
        ),
        Film(
            bad("bad/jitter.mp4", "A camera shaken like a rattle", "jitter_shots_per_s", "motion_mv", "motion_vmaf", "no_clip", jitter=True, cut_frames=None),
            (Shot("desert", 150, Camera(shake_px=150)),),
        ),
        Film(bad("bad/slow_pan.mp4", "A pan so slow that it is nearly none", *MOTION, static=None), (Shot("dusk", 150, Camera(pan=0.06), things=0),)),
        Film(bad("bad/tiny_160x120.mp4", "Far too few pixels", "height", "width", has_text=None), (Shot("snow", 150, Camera(pan=1.0)),), size=(160, 120)),
    ]  # fmt: skip


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


# ---- what is done to the frames -----------------------------------------------------------------------------------


def _flash(frame: Frame, t: int) -> Frame:
    strength = {70: 0.6, 71: 1.0, 72: 0.7, 73: 0.3}.get(t, 0.0)
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
    cv2.putText(frame, line, place, font, size, (0, 0, 0), 6, cv2.LINE_AA)
    cv2.putText(frame, line, place, font, size, (255, 255, 255), 2, cv2.LINE_AA)


# ---- from shots to a file -----------------------------------------------------------------------------------------


def write_film(folder: Path, film: Film) -> Truth:
    """Make one film's file and complete its truth."""
    import cv2

    cv2.setNumThreads(1)  # a process a core already
    path = folder / film.truth.path
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = _joined(film)
    if film.finish is not None:
        frames = (film.finish(frame, t) for t, frame in enumerate(frames))
    count = _encode(path, frames, film)
    cuts, gradual = timeline(film)
    truth = film.truth
    judged = truth.cut_frames is None and not truth.jitter
    return replace(
        truth, frames=count, size=truth.size or film.size, cut_frames=cuts if judged else None, gradual=gradual
    )


def _joins(film: Film) -> tuple[Join, ...]:
    return film.joins or (Join(),) * (len(film.shots) - 1)


def timeline(film: Film) -> tuple[tuple[int, ...], tuple[tuple[int, int, str], ...]]:
    """The film's hard cuts and gradual spans, from the lengths of its shots and joins."""
    cuts: list[int] = []
    gradual: list[tuple[int, int, str]] = []
    end = 0
    for shot, join in zip(film.shots, (*_joins(film), Join()), strict=True):
        end += shot.frames
        if shot is film.shots[-1]:
            break
        if join.kind == "cut":
            cuts.append(end)
        elif join.kind == "fade":
            gradual.append((end - join.frames, end + join.frames, "fade"))
        else:
            gradual.append((end - join.frames, end, join.kind))
            end -= join.frames
    return tuple(cuts), tuple(gradual)


def _joined(film: Film) -> Iterator[Frame]:
    """All frames of a film: its shots one after the other, mixed where they overlap."""
    joins = _joins(film)
    held: list[Frame] = []
    for shot, before, after in zip(film.shots, (Join(), *joins), (*joins, Join()), strict=True):
        own = shot.frames - (after.frames if after.kind in ("dissolve", "wipe") else 0)
        tail: list[Frame] = []
        for t, picture in enumerate(render(shot, *film.size)):
            frame = _lit(picture, t, shot.frames, before, after)
            if t < len(held):
                frame = _mixed(held[t], frame, before.kind, (t + 1) / (len(held) + 1))
            if t < own:
                yield frame
            else:
                tail.append(frame)
        held = tail


def _lit(frame: Frame, t: int, frames: int, before: Join, after: Join) -> Frame:
    """The frame as fades leave it; the last of a fade out and the first of a fade in are black."""
    rise = t / before.frames if before.kind == "fade" else 1.0
    fall = (frames - 1 - t) / after.frames if after.kind == "fade" else 1.0
    light = min(rise, fall, 1.0)
    return frame if light == 1.0 else (frame * light).astype(np.uint8)


def _mixed(old: Frame, new: Frame, kind: str, share: float) -> Frame:
    """`share` (0 to 1) of the way from the old shot to the new one."""
    import cv2

    if kind == "dissolve":
        return cv2.addWeighted(old, 1 - share, new, share, 0)  # type: ignore[return-value]
    edge = round(new.shape[1] * share)
    return np.hstack([new[:, :edge], old[:, edge:]])


def _encode(path: Path, frames: Iterable[Frame], film: Film) -> int:
    """Write the frames; returns how many. One encoder thread and no time stamps: the same frames give the same file."""
    import av

    how = film.encoding
    width, height = film.size[::-1] if how.rotated else film.size
    count = pts = 0
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream(how.codec, rate=how.fps)
        stream.width, stream.height, stream.pix_fmt = width, height, how.pixels
        stream.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 600)
        stream.codec_context.sample_aspect_ratio = how.pixel_aspect
        stream.options = X264 | {"crf": str(how.crf)} if how.codec == "libx264" else {"qscale": "4"}
        if how.codec != "libx264":  # MPEG-4 in AVI counts frames
            stream.codec_context.time_base = Fraction(1, how.fps)
        tick = round(1 / how.fps / stream.codec_context.time_base)
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(np.rot90(picture).copy() if how.rotated else picture, format="bgr24")
            frame.pts, frame.time_base = pts, stream.codec_context.time_base
            pts += tick * (2 if how.uneven and count % 3 == 2 else 1)
            count += 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if how.rotated:
        _turn(path)
    return count


X264 = {"preset": "superfast", "g": "50", "flags": "+bitexact", "x264-params": "threads=1:cpu-independent=1"}


def _turn(path: Path) -> None:
    """Give an MP4's track header the display matrix of a telephone held upright: a quarter turn clockwise."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    turned = (0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big", signed=True) for v in turned)
    path.write_bytes(data)


# ---- copies, damage, images, and files that are no films ------------------------------------------------------------


@dataclass(frozen=True)
class Derivation:
    """One file that is made from another one (or from nothing: `source` is empty)."""

    truth: Truth
    make: Callable[[Path, Path], None]
    source: str = ""


def derivations() -> list[Derivation]:
    """Every file that is no film made from scratch."""
    pan, drift, dusk = "good/pan right.mp4", "good/handheld.mp4", "good/tilt_and_pan.mkv"

    def broken(path: str, what: str, *codes: str) -> Truth:
        return Truth(f"broken/{path}", what, ("error",), codes)

    plain: dict[str, Any] = {
        "cut_frames": (),
        "bars": (0, 0, 0, 0),
        "has_text": False,
        "static": False,
        "jitter": False,
    }
    return [
        Derivation(Truth("odd/same bytes again.mp4", "An exact copy", ("rejected",), exact_copy_of=pan, verdict=("exact_copy",)), _copy, pan),
        Derivation(Truth("odd/near_copy.mp4", "The same film, smaller and coarser", frames=150, size=(768, 432), near_copy_of=drift, **plain), _shrink, drift),
        Derivation(Truth("broken/flipped_bytes.mp4", "Forty bytes of picture data changed", frames=150, size=(854, 480)), _flip, pan),
        Derivation(Truth("broken/cut_short.mkv", "The second half of the file is missing", size=(854, 480)), _halve, dusk),
        Derivation(broken("no_index.mp4", "Cut off before the index", "bad_header", "not_media"), _halve, pan),
        Derivation(broken("empty.mp4", "No bytes at all", "empty"), partial(_bytes, b"")),
        Derivation(broken("text.mp4", "Plain text by the name of a film", "not_media"), partial(_bytes, b"Not a film.\n" * 200)),
        Derivation(broken("playlist.mp4", "A playlist by the name of a film", "unsupported_format", "not_media"), partial(_bytes, PLAYLIST)),
        Derivation(broken("sound_only.mp4", "Sound without a picture", "no_video_stream"), _tone),
        Derivation(broken("half_image.jpg", "Half of a photograph", "decode_failed", "zero_frames", "not_media", "bad_header"), partial(_picture, "snow", 1024, 768, 0.4)),
        Derivation(Truth("images/hills.jpg", "A photograph of green hills", size=(1280, 960), verdict=("kept",)), partial(_picture, "meadow", 1280, 960, 1.0)),
        Derivation(Truth("images/reef.webp", "A square photograph of a reef", size=(1024, 1024), verdict=("kept",)), partial(_picture, "reef", 1024, 1024, 1.0)),
        Derivation(Truth("images/thumbnail.png", "A thumbnail", status=("ok", "rejected"), size=(128, 96), verdict=("height", "width", "too_small")), partial(_picture, "dusk", 128, 96, 1.0)),
    ]  # fmt: skip


PLAYLIST = b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n"


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _halve(source: Path, target: Path) -> None:
    data = source.read_bytes()
    target.write_bytes(data[: len(data) // 2])


def _flip(source: Path, target: Path) -> None:
    data = bytearray(source.read_bytes())
    for place in np.random.default_rng(5).integers(len(data) // 5, len(data) * 3 // 5, 40):
        data[place] ^= 0x5A
    target.write_bytes(data)


def _bytes(data: bytes, _: Path, target: Path) -> None:
    target.write_bytes(data)


def _shrink(source: Path, target: Path) -> None:
    import av
    import cv2

    def frames() -> Iterator[Frame]:
        with av.open(str(source)) as container:
            for frame in container.decode(video=0):
                yield cv2.resize(frame.to_ndarray(format="bgr24"), (768, 432), interpolation=cv2.INTER_AREA)  # type: ignore[misc]

    _encode(target, frames(), Film(Truth(target.name, ""), (), size=(768, 432), encoding=Encoding(crf=32)))


def _tone(_: Path, target: Path) -> None:
    import av

    wave = (0.2 * np.sin(np.arange(48_000 * 2) * 2 * np.pi * 440 / 48_000)).astype(np.float32)
    with av.open(str(target), "w", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("aac", rate=48_000)
        stream.layout = "mono"
        for start in range(0, len(wave) - 1024, 1024):
            frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _picture(world: str, width: int, height: int, share: float, _: Path, target: Path) -> None:
    """A photograph; only the first `share` of its bytes."""
    import cv2

    frame = next(render(Shot(world, 1, seed=width + height), width, height))
    data = cv2.imencode(target.suffix, frame)[1].tobytes()
    target.write_bytes(data[: int(len(data) * share)])
