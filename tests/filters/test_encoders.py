"""Motion belongs to the picture: the same film through six encoders gives the same scores and the same verdicts."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from curation.media import MediaLimits, probe
from filters.measure import MeasureConfig, measure
from tests.filters.synthetic import Rgb, pan, texture

LIMITS = MediaLimits()
ONE_CLIP = MeasureConfig.model_validate({"clips": {"min_s": 1}, "shots": {"min_picture_change": 1}})
ENCODERS = {
    "libx264": {"preset": "veryfast", "crf": "23"},
    "mpeg4": {"qmin": "3", "qmax": "3"},
    "libvpx": {"crf": "12", "b": "4M", "deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"crf": "32", "b": "0", "deadline": "realtime", "cpu-used": "8"},
    "libx265": {"preset": "ultrafast", "crf": "24", "x265-params": "log-level=none"},
    "libsvtav1": {"preset": "10", "crf": "30"},
}
"""Ordinary quality of each."""
REAL = Path(os.environ.get("REELSET_VIDEOS", "../shared/videos"))
SECONDS = 4


def encode(path: Path, codec: str, options: dict[str, str], frames: Iterator[av.VideoFrame], fps: Fraction) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        for i, frame in enumerate(frames):
            if not i:
                stream.width, stream.height, stream.pix_fmt = frame.width // 2 * 2, frame.height // 2 * 2, "yuv420p"
            frame = frame.reformat(stream.width, stream.height, "yuv420p")
            frame.pts, frame.time_base = i, 1 / fps
            container.mux(stream.encode(frame))
            if not i:
                no_priority()
        container.mux(stream.encode(None))
    return path


def no_priority() -> None:
    """Take from this process's threads what SVT-AV1 gives its own as root: real time, before everything else there is.

    Two such encoders on two cores wait for threads that they keep from running.
    """
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(int(task.name), os.SCHED_OTHER, os.sched_param(0))


def scores(path: Path) -> dict[str, float]:
    """Motion columns of the film's one clip."""
    row = {"source_id": "a" * 16, "path": path.name} | probe(str(path), LIMITS)
    (clip,) = measure(str(path), row, ONE_CLIP, LIMITS).clips
    return {name: clip[name] for name in ("motion_vmaf", "motion_mv", "motion_static_frac")}


def assert_same(
    folder: Path,
    frames: Callable[[], Iterator[av.VideoFrame]],
    fps: Fraction,
    columns: Sequence[str] = ("motion_vmaf", "motion_mv"),
) -> None:
    """10 % or 0.1, whichever is larger, from what the film itself gives; no verdict of another kind of still."""
    true = scores(encode(folder / "lossless.mkv", "ffv1", {}, frames(), fps))
    for codec, options in ENCODERS.items():
        found = scores(encode(folder / f"{codec}.mkv", codec, options, frames(), fps))
        for name in columns:
            assert found[name] == pytest.approx(true[name], rel=0.1, abs=0.1), (codec, name)
        assert (found["motion_static_frac"] > 0.9) == (true["motion_static_frac"] > 0.9), codec


def still_film() -> list[Rgb]:
    return [texture(2, 360, 640)] * 36


def panned_film() -> list[Rgb]:
    return pan(texture(4, 360, 1024), 36, 2.5)


def crept_film() -> list[Rgb]:
    """A slow pan, half a pixel a frame. Below that MPEG-4, which has no finer steps, moves the picture itself in jerks."""
    return pan(texture(4, 360, 1024), 36, 0.5)


def subject_film() -> list[Rgb]:
    """A small thing that crosses a still ground."""
    ground, thing = texture(6, 360, 640), texture(7, 90, 110)
    pictures = []
    for i in range(36):
        pictures.append(ground.copy())
        pictures[-1][140:230, 60 + 9 * i : 170 + 9 * i] = thing
    return pictures


def grainy_film() -> list[Rgb]:
    """Sensor noise of one level over a slow pan."""
    rng = np.random.default_rng(0)
    pictures = pan(texture(4, 360, 1024), 36, 1.0)
    return [np.clip(p + rng.normal(0, 1, p.shape), 0, 255).astype(np.uint8) for p in pictures]


@pytest.mark.parametrize("film", [still_film, crept_film, panned_film, subject_film, grainy_film])
def test_motion_belongs_to_the_picture(film: Callable[[], list[Rgb]], tmp_path: Path) -> None:
    pictures = film()
    assert_same(tmp_path, lambda: (av.VideoFrame.from_ndarray(p, format="rgb24") for p in pictures), Fraction(24))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "ask_yoga.mp4",
        "derived_cam_zoom_in.mp4",
        "moviepy_chaplin.mp4",
        "sam2_cups.mp4",
        "sam2_dog.mp4",
        "ta_cats.mp4",
        "vl2_ukulele.mp4",
        "vl_dog_barking.mp4",
    ],
)
def test_motion_of_real_films_belongs_to_the_picture(name: str, tmp_path: Path) -> None:
    assert_same(tmp_path, *real(name))


@pytest.mark.slow
def test_grain_that_a_codec_removes_is_part_of_vmaf_motion_only(tmp_path: Path) -> None:
    """A noisy film on a tripod: FFmpeg's measure counts the noise, so it falls by a seventh with it."""
    assert_same(tmp_path, *real("intel_asl_book.mkv"), columns=["motion_mv"])


def real(name: str) -> tuple[Callable[[], Iterator[av.VideoFrame]], Fraction]:
    """The first seconds of a labelled film."""
    path = REAL / name
    if not path.exists():
        pytest.skip(f"no {name} in {REAL}: set REELSET_VIDEOS")
    with av.open(str(path)) as container:
        fps = container.streams.video[0].average_rate or Fraction(25)
        frames = [f.reformat(format="yuv420p") for f in islice(container.decode(video=0), round(SECONDS * fps))]
    return lambda: iter(frames), fps
