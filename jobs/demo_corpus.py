"""A small corpus of made-up films whose truth is known, because every cut, bar and letter was put there on purpose.

    truths = make_corpus(Path("corpus"))        # films, images, damaged files, manifest.csv, truth.json

PyAV, NumPy and OpenCV make it all; the encoder runs on one thread, so the same seed gives the same pictures.
"""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from jobs.demo_films import Encoding, Film, Join, Truth, films
from jobs.demo_scenes import Frame, Shot, render

LICENCE = "CC0-1.0"


def make_corpus(folder: Path, seed: int = 0, only: set[str] | None = None) -> list[Truth]:
    """Write the corpus into `folder` and return its truth, sorted by path; `only` names the files to make.

    Files that are copies or damages of another need that one: it is made too. `manifest.csv` (path, caption, licence)
    and `truth.json` stand beside the files. About 45 s on two cores.
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
    return replace(
        truth, frames=count, size=truth.size or film.size, cut_frames=None if truth.jitter else cuts, gradual=gradual
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

    copy = Truth("odd/same bytes again.mp4", "An exact copy", ("rejected",), exact_copy_of=pan, verdict=("exact_copy",))
    near = Truth("odd/near_copy.mp4", "The same, smaller and coarser", frames=150, size=(768, 432), near_copy_of=drift)
    forty = "Forty bytes of picture data changed"
    flipped = Truth("broken/flipped_bytes.mp4", forty, frames=150, size=(854, 480), near_copy_of=pan)
    short = Truth("broken/cut_short.mkv", "The second half of the file is missing", size=(854, 480))
    playlist = broken("playlist.mp4", "A playlist by the name of a film", "unsupported_format", "not_media")
    half = broken("half_image.jpg", "Half of a photograph", "decode_failed", "zero_frames", "not_media", "bad_header")
    small = Truth("images/thumbnail.png", "A thumbnail", ("ok", "rejected"), (), 1, (128, 96), verdict=TOO_SMALL)
    return [
        Derivation(copy, _copy, pan),
        Derivation(replace(near, cut_frames=(), bars=(0, 0, 0, 0), has_text=False, static=False, jitter=False), _shrink, drift),
        Derivation(flipped, _flip, pan),
        Derivation(short, _halve, dusk),
        Derivation(broken("no_index.mp4", "Cut off before the index", "bad_header", "not_media"), _halve, pan),
        Derivation(broken("empty.mp4", "No bytes at all", "empty"), partial(_bytes, b"")),
        Derivation(broken("text.mp4", "Text by the name of a film", "not_media"), partial(_bytes, b"Not a film.\n" * 200)),
        Derivation(playlist, partial(_bytes, PLAYLIST)),
        Derivation(broken("sound_only.mp4", "Sound without a picture", "no_video_stream"), _tone),
        Derivation(half, partial(_picture, "snow", 1024, 768, 0.4)),
        Derivation(_image("hills.jpg", "A photograph of hills", (1280, 960)), partial(_picture, "meadow", 1280, 960, 1.0)),
        Derivation(_image("reef.webp", "A square photograph", (1024, 1024)), partial(_picture, "reef", 1024, 1024, 1.0)),
        Derivation(small, partial(_picture, "dusk", 128, 96, 1.0)),
    ]


def _image(name: str, what: str, size: tuple[int, int]) -> Truth:
    return Truth(f"images/{name}", what, frames=1, size=size, verdict=("kept",))


TOO_SMALL = ("height", "width", "too_small")
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
