"""Jitter and slideshows of planted truth: shakes of known size and spectrum; stills shown, panned, zoomed, cross-faded."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from filters import edits, motion, shots
from filters.motion import change_lag
from tests.filters.planted import Planted, Rgb, Scene, cover, join, reduce, seen
from tests.filters.synthetic import texture

FPS = 24.0
HEIGHT, WIDTH = 90, 160


def test_one_frame_has_no_edits() -> None:
    one = np.zeros(1, np.float32)
    assert edits.jitter_shots_per_s(one, np.zeros(1), 0.0, 0.04, 0.04) is None
    series = {"time_s": np.zeros(1), "changed_frac": one}
    assert edits.slideshow_score(series, [], [], (0.0, 0.04), 0.04, FPS) is None


def test_jitter_counts_triggers_over_ten_seconds_around_the_clip() -> None:
    time_s = np.arange(1000) / 25
    score = np.zeros(1000, np.float32)
    score[[250, 255, 260, 300, 700]] = 30
    score[400] = 26.9
    assert edits.jitter_shots_per_s(score, time_s, 10.0, 14.0, 40.0) == pytest.approx(0.4)
    assert edits.jitter_shots_per_s(score, time_s, 24.0, 40.0, 40.0) == pytest.approx(1 / 16)
    assert edits.jitter_shots_per_s(score[:100], time_s[:100], 0.0, 4.0, 4.0) == 0.0


def view(offsets: np.ndarray) -> list[Rgb]:
    """A detailed picture seen from `offsets` (N, 2), in frame widths."""
    picture = texture(3, 2 * HEIGHT, 2 * WIDTH)
    out = []
    for x, y in offsets * WIDTH:
        move = np.array([[1, 0, -WIDTH / 2 - x], [0, 1, -HEIGHT / 2 - y]], np.float32)
        out.append(cv2.warpAffine(picture, move, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT_101))
    return out


def jitter(offsets: np.ndarray) -> float:
    """`jitter_shots_per_s` of the view."""
    pictures = [shots.hsv(reduce(p)) for p in view(offsets)]
    score = np.array([0.0, *(shots.content_score(a, b) for a, b in itertools.pairwise(pictures))], np.float32)
    end_s = len(score) / FPS
    found = edits.jitter_shots_per_s(score, np.arange(len(score)) / FPS, 0.0, end_s, end_s)
    assert found is not None
    return found


def swing(size: float, hz: float, frames: int = 96) -> np.ndarray:
    """A shake of one frequency, `size` frame widths to each side."""
    phase = 2 * np.pi * hz * np.arange(frames) / FPS
    return size * np.stack([np.sin(phase + 0.3), np.cos(1.3 * phase)], axis=1)


def noise(size: float, low_hz: float, high_hz: float, frames: int = 96) -> np.ndarray:
    """A shake of deviation `size` whose spectrum is flat between two frequencies and empty elsewhere."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft(rng.normal(0, 1, (frames, 2)), axis=0)
    hz = np.fft.rfftfreq(frames, 1 / FPS)
    spectrum[(hz < low_hz) | (hz > high_hz)] = 0
    shake = np.fft.irfft(spectrum, frames, axis=0)
    return np.asarray(size * shake / shake.std())


def test_jitter_grows_with_the_size_of_a_shake() -> None:
    found = [jitter(swing(size, 4)) for size in (0.0, 0.01, 0.02, 0.04, 0.08)]
    assert found[:2] == [0.0, 0.0] and found == sorted(found) and found[3] > 10 and found[4] > found[3]


def test_jitter_grows_with_the_frequency_of_a_shake() -> None:
    found = [jitter(swing(0.04, hz)) for hz in (0.5, 1, 2, 4, 8)]
    assert found[:2] == [0.0, 0.0] and found == sorted(found) and found[4] > found[3] > found[2]


def test_jitter_grows_as_the_spectrum_of_a_shake_moves_up() -> None:
    found = [jitter(noise(0.04, *band)) for band in ((0.2, 0.5), (1, 3), (4, 10))]
    assert found[0] == 0.0 < found[1] < found[2]


@pytest.mark.parametrize("widths_a_second", [0.1, 0.3])
def test_a_smooth_pan_has_no_jitter(widths_a_second: float) -> None:
    path = np.linspace(-0.5, 0.5, 96)[:, None] * (widths_a_second * 4, 0.0)
    assert jitter(path) == 0.0


def slideshow(film: Planted) -> float:
    """`slideshow_score` of the middle of a film."""
    height, width = film.pictures[0].shape[:2]
    flow, change = motion.Flow(film.fps, width, height), motion.Change(film.fps)
    moved: list[tuple[float, float, float]] = []
    changed = []
    for i, picture in enumerate(film.pictures):
        reduced = reduce(picture)
        changed.append(change.push(reduced.y))
        found = flow.push(reduced.y, reduced.scale) if i else (flow.push(reduced.y, reduced.scale), (0.0, 0.0, 0.0))[1]
        if found is not None:
            moved += [found] * (i + 1 - len(moved))
    moved += [moved[-1]] * (len(film.pictures) - len(moved))
    columns = np.array(moved, np.float32).T
    series: dict[str, Any] = dict(zip(("motion_px", "global_dx_px", "global_dy_px"), columns, strict=True))
    series |= seen(film.pictures, film.fps)
    series |= {"time_s": np.arange(len(changed)) / film.fps, "changed_frac": np.array(changed, np.float32)}
    cuts, gradual = shots.boundaries(series, film.fps, shots.ShotConfig())
    end_s = len(changed) / film.fps
    score = edits.slideshow_score(series, cuts, gradual, (0.4 * end_s, 0.6 * end_s), end_s, film.fps)
    assert score is not None
    return score


def photographs(count: int, seconds: float, zoom: Callable[[float], float], path: Callable[[float], float]) -> list[list[Rgb]]:
    """Detailed pictures, each panned over and zoomed into as functions of progress, 0 to 1, say."""
    out = []
    for seed in range(count):
        picture = texture(seed, 2 * HEIGHT, 2 * WIDTH)
        shown = []
        for p in np.linspace(0, 1, round(seconds * FPS)):
            by, x = zoom(p), path(p) * WIDTH * (-1) ** seed
            move = np.array([[by, 0, WIDTH / 2 - by * (WIDTH + x)], [0, by, HEIGHT / 2 - by * HEIGHT]])
            shown.append(cv2.warpAffine(picture, move, (WIDTH, HEIGHT), flags=cv2.INTER_CUBIC))
        out.append(shown)
    return out


def crossfaded(pictures: Sequence[Sequence[Rgb]], frames: int) -> Planted:
    film = Planted(list(pictures[0]))
    for shot in pictures[1:]:
        film = cover(film.pictures, shot, frames, "dissolve", float)
    return film


Way = tuple[Callable[[float], float], Callable[[float], float]]
STILL: Way = (lambda p: 1.0, lambda p: 0.0)
PAN: Way = (lambda p: 1.0, lambda p: 0.2 * p)
ZOOM: Way = (lambda p: 1 + 0.15 * p, lambda p: 0.0)


@pytest.mark.parametrize("way", [STILL, PAN, ZOOM], ids=["still", "pan", "zoom"])
def test_stills_are_a_slideshow(way: Way) -> None:
    assert slideshow(join(*photographs(4, 2.5, *way))) > 0.9


@pytest.mark.parametrize("way", [STILL, PAN], ids=["still", "pan"])
def test_crossfaded_stills_are_a_slideshow(way: Way) -> None:
    assert slideshow(crossfaded(photographs(4, 3.5, *way), 16)) > 0.6


def live(seed: int, **style: Any) -> Scene:
    return replace(Scene(seed, speed=0.04), **style)


def unsteady(seed: int) -> Scene:
    walk = np.cumsum(noise(0.002, 0.5, 6, 60), axis=0)
    return live(seed, path=tuple((float(x), float(y)) for x, y in walk))


LIVE: dict[str, Callable[[], Planted]] = {
    "cuts of one length": lambda: join(*(live(i).render(60) for i in range(4))),
    "tripod with cuts": lambda: join(*(live(i, speed=0.0).render(60) for i in range(4))),
    "hand-held": lambda: join(*(unsteady(i).render(60) for i in range(4))),
    "one drone shot": lambda: join(live(1, things=0, grain=0.0).render(240)),
    "one still": lambda: join(photographs(1, 8.0, *STILL)[0]),
}


@pytest.mark.parametrize("name", LIVE)
def test_live_video_is_no_slideshow(name: str) -> None:
    assert slideshow(LIVE[name]()) <= 0.25  # things that drift along straight lines may look like one pan


def test_pans_of_unlike_length_are_no_slideshow() -> None:
    uneven = [photographs(i + 1, s, *PAN)[i] for i, s in enumerate((1.6, 4.0, 1.6, 4.0))]
    assert slideshow(join(*uneven)) < 0.2


def test_the_lag_of_a_change_after_a_cut_is_no_motion() -> None:
    changed = np.zeros(500, np.float32)
    cuts = [100, 200, 300, 400]
    for cut in cuts:
        changed[cut : cut + change_lag(25)] = 0.8
    zeros = dict.fromkeys(("motion_px", "global_dx_px", "global_dy_px"), np.zeros(500, np.float32))
    series = {"time_s": np.arange(500) / 25, "changed_frac": changed} | zeros
    assert edits.slideshow_score(series, cuts, [], (4.0, 8.0), 20.0, 25) == pytest.approx(1.0)
    assert edits.slideshow_score(series | {"changed_frac": np.full(500, 0.3)}, cuts, [], (4.0, 8.0), 20.0, 25) == 0.0
