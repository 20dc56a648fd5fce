"""Motion of known size, still pictures, repeated frames, and equality with FFmpeg's own filter."""

from collections.abc import Callable
from pathlib import Path

import av
import av.filter
import cv2
import numpy as np
import pytest

from filters import border, motion
from filters.planes import factor, planes, shrink
from tests.filters.synthetic import pan, texture, write


def scores(
    pictures: list[np.ndarray], fps: float, shown: tuple[float, float, float, float] = motion.WHOLE
) -> tuple[float | None, float | None]:
    """(motion_mv, motion_static_frac) of luma pictures, of which bars leave what is `shown`."""
    height, width = pictures[0].shape
    flow, change = motion.Flow(fps, width, height), motion.Change(fps)
    by = factor(width, height)
    moved, changed = [0.0], []
    for i, picture in enumerate(pictures):
        small = shrink(picture, by)
        changed.append(change.push(small))
        found = flow.push(small, by)
        if found is not None:
            moved += [found[0]] * (i + 1 - len(moved))
    moved += [moved[-1]] * (len(pictures) - len(moved))
    series = np.array(moved, np.float32), np.array(changed, np.float32)
    return (
        motion.motion_mv(series[0], 0, len(pictures), fps),
        motion.motion_static_frac(series[1], change.maps, 0, len(pictures), motion.change_lag(fps), shown),
    )


def luma(pictures: list[np.ndarray]) -> list[np.ndarray]:
    return [np.ascontiguousarray(p[..., 1]) for p in pictures]


def still(frames: int, noise: float = 0.0) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    base = texture(3, 360, 640)[..., 1].astype(np.float32)
    return [np.clip(base + noise * rng.standard_normal(base.shape), 0, 255).astype(np.uint8) for _ in range(frames)]


@pytest.mark.parametrize(("height", "step"), [(360, 0.5), (360, 3.0), (720, 1.0), (720, 6.0)])
def test_displacement_is_in_pixels_a_frame_at_720_lines(height: int, step: float) -> None:
    wide = texture(5, height, height * 3)
    mv, static = scores(luma(pan(wide, 25, step)), 24)
    assert mv == pytest.approx(step * 720 / height, rel=0.15)
    assert static == 0.0


def with_counter(picture: np.ndarray, index: int) -> np.ndarray:
    """A clock of tenths of a second that runs in a box."""
    cv2.rectangle(picture, (250, 150), (390, 200), 0, -1)
    cv2.putText(picture, f"{index / 24:07.3f}", (256, 186), cv2.FONT_HERSHEY_SIMPLEX, 1, 255, 2)
    return picture


def with_film(picture: np.ndarray, index: int) -> np.ndarray:
    """A small film that plays in a corner."""
    picture[200:320, 400:600] = FILM[200:320, 4 * index : 4 * index + 200]
    return picture


def with_car(picture: np.ndarray, index: int) -> np.ndarray:
    """Something small that drives through the picture, straight."""
    picture[200:240, 8 * index : 8 * index + 60] = 250
    return picture


def with_head(picture: np.ndarray, index: int) -> np.ndarray:
    """A head that nods all the time before a still wall."""
    cv2.ellipse(picture, (320, 180 + index % 12), (70, 100), 0, 0, 360, 160, -1)
    return picture


def with_bars(picture: np.ndarray, index: int) -> np.ndarray:
    """An upright film between two bars."""
    picture[:, :220] = picture[:, 420:] = 0
    picture[:, 220:420] = FILM[:, 4 * index : 4 * index + 200]
    return picture


def with_large_film(picture: np.ndarray, index: int) -> np.ndarray:
    """A film within a frame."""
    picture[30:330, 60:580] = FILM[30:330, 4 * index : 4 * index + 520]
    return picture


FILM = texture(8, 360, 1280)[..., 1]


@pytest.mark.parametrize(
    ("draw", "static"),
    [(with_counter, True), (with_film, True), (with_car, False), (with_head, False), (with_large_film, False)],
)
def test_a_counter_or_a_small_film_in_a_still_picture_leaves_it_static(
    draw: Callable[[np.ndarray, int], np.ndarray], static: bool
) -> None:
    found = scores([draw(picture, i) for i, picture in enumerate(still(96))], 24)[1]
    assert found is not None and (found > 0.9 if static else found < 0.5), found


def test_a_film_between_bars_is_no_inset() -> None:
    frames = [with_bars(picture, i) for i, picture in enumerate(still(96))]
    assert scores(frames, 24, border.picture(border.Bars(left=220, right=220), 360, 640))[1] == 0.0


def test_an_inset_is_that_of_its_clip() -> None:
    """A pan, then a counter over a still: each clip is judged by its own frames."""
    frames = [FILM[:, 4 * i : 4 * i + 640].copy() for i in range(72)]
    frames += [with_counter(picture, i) for i, picture in enumerate(still(72))]
    change = motion.Change(24)
    changed = np.array([change.push(shrink(f, factor(640, 360))) for f in frames], np.float32)
    first, second, both = (motion.motion_static_frac(changed, change.maps, *s, 6) for s in ((0, 72), (72, 144), (0, 144)))
    assert first == 0.0 and second is not None and second > 0.9 and both is not None and both < 0.6


def test_repeated_frames_are_no_stillness_and_leave_the_motion() -> None:
    frames = luma(pan(texture(5, 360, 1080), 24, 3.0))
    once, _ = scores(frames, 24)
    twice, static = scores([f for f in frames for _ in range(2)], 48)
    assert static == 0.0
    assert once is not None and twice == pytest.approx(once * 24 / 30, rel=0.1)  # a frame of 1/30 s


@pytest.mark.parametrize("step,fps,as_of", [(1.0, 60.0, 30.0), (3.0, 12.0, 24.0), (2.0, 25.0, 25.0)])
def test_displacement_at_unusual_rates_is_that_of_the_nearest_usual_one(step: float, fps: float, as_of: float) -> None:
    mv, _ = scores(luma(pan(texture(5, 360, 1440), 60, step)), fps)
    assert mv == pytest.approx(step * 2 * fps / as_of, rel=0.15)


def test_what_moves_counts_for_more_than_the_ground_it_moves_over() -> None:
    """A square of a ninth of the picture at 4 pixels a frame: the plain mean would be under one pixel."""
    ground = texture(3, 360, 640)[..., 1]
    thing = texture(8, 120, 213)[..., 1]
    pictures = []
    for i in range(24):
        pictures.append(ground.copy())
        pictures[-1][120:240, 40 + 4 * i : 253 + 4 * i] = thing
    mv, _ = scores(pictures, 24)
    assert mv is not None and 3.0 < mv <= 8.5


def test_flow_where_nothing_changes_is_no_motion() -> None:
    """Black film with coding noise of two levels, on which flow finds anything."""
    rng = np.random.default_rng(1)
    mv, static = scores([(17 + rng.integers(0, 3, (360, 640))).astype(np.uint8) for _ in range(24)], 24)
    assert mv == 0.0 and static == 1.0


def test_noise_on_a_still_picture_is_no_motion() -> None:
    mv, static = scores(still(30, noise=3.0), 24)
    assert static == 1.0
    assert mv is not None and mv < 0.1


def test_slow_motion_is_seen_over_a_quarter_of_a_second() -> None:
    mv, static = scores(luma(pan(texture(5, 360, 1080), 48, 0.25)), 24)
    assert static is not None and static < 0.05
    assert mv == pytest.approx(0.5, rel=0.2)


def test_direction_of_the_global_displacement() -> None:
    frames = luma(pan(texture(5, 360, 1080), 3, 3.0))
    flow = motion.Flow(12, 675, 360)
    found = [flow.push(shrink(f, 4), 4) for f in frames]
    assert found[0] is None and found[2] is not None
    assert found[2][1] == pytest.approx(-6.0, rel=0.15)
    assert abs(found[2][2]) < 0.3


def filtered(path: Path) -> np.ndarray:
    """FFmpeg's own vmafmotion, frame by frame."""
    out = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        source, score, sink = graph.add_buffer(template=stream), graph.add("vmafmotion"), graph.add("buffersink")
        source.link_to(score)
        score.link_to(sink)
        graph.configure()
        for frame in container.decode(stream):
            graph.push(frame)
            out.append(float(graph.pull().metadata["lavfi.vmafmotion.score"]))
    return np.array(out)


def test_luma_motion_is_ffmpegs_vmafmotion(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", pan(texture(5, 240, 720), 20, 1.5) + pan(texture(6, 240, 720), 20, 0.2))
    with av.open(str(path)) as container:
        meter = motion.LumaMotion()
        ours = np.array([meter.push(planes(f)[0]) for f in container.decode(video=0)], np.float32)
    theirs = filtered(path)
    assert np.abs(ours - theirs).max() < 0.02
    assert motion.motion_vmaf(ours, 0, 40) == pytest.approx(theirs.mean(), rel=0.005)
    inner = theirs[21:40].sum() / 20
    assert motion.motion_vmaf(ours, 20, 40) == pytest.approx(inner, rel=0.01)


def test_one_frame_has_no_motion() -> None:
    one = np.zeros(1, np.float32)
    assert motion.motion_vmaf(one, 0, 1) is None
    assert motion.motion_mv(one, 0, 1, 25) is None
    assert motion.motion_static_frac(one, [], 0, 1, 6) is None


def test_motion_before_a_clip_is_none_of_its_own() -> None:
    moved = np.zeros(60, np.float32)
    moved[:53] = 50.0
    assert motion.motion_mv(moved, 50, 58, 24) == pytest.approx(50 / 3)  # pairs that end at 52, 54 and 56
    assert motion.motion_mv(moved, 51, 58, 24) == 0.0


def test_a_tenth_of_the_pairs_at_either_end_is_left_out() -> None:
    moved = np.repeat(np.array([9, 0, 3, 1, 2, 3, 2, 1, 2, 2, 100], np.float32), 2)[1:]
    assert motion.motion_mv(moved, 0, len(moved), 24) == pytest.approx((3 + 1 + 2 + 3 + 2 + 1 + 2 + 2) / 8)
