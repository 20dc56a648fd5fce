"""Buckets: the paper's table, the rates sources have, bars, stretched pixels, and frames that are never repeated."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from bucketing.buckets import SIZES, Choice, all_buckets, choose, frame_indices, named, target_times


def clip(frames: int, fps: float, width: int = 1280, height: int = 720, **more: Any) -> dict[str, Any]:
    return {"kind": "video", "frames": frames, "duration_s": frames / fps, "width": width, "height": height, **more}


def indices(choice: Choice, frames: int, fps: float) -> np.ndarray:
    return frame_indices(np.arange(frames) / fps, frames / fps, choice)


def test_sizes_suit_an_autoencoder_and_match_in_tokens() -> None:
    for bucket_class, sizes in SIZES.items():
        tokens = [w * h / 256 for w, h in sizes.values()]
        assert all(w % 16 == 0 and h % 16 == 0 for w, h in sizes.values())
        assert max(tokens) / min(tokens) < 1.03
        assert {(h, w) for w, h in sizes.values()} == set(sizes.values())
        assert max(tokens) == pytest.approx((bucket_class / 16) ** 2, rel=0.03)


def test_names_are_unique_and_lead_back() -> None:
    buckets = all_buckets(256) + all_buckets(768)
    assert len({b.name for b in buckets}) == len(buckets) == 40
    assert all(named(b.name) == b for b in buckets)
    assert named("v256-16x9-f192").size == (336, 192) and named("i768-3x4").frames == 1
    with pytest.raises(ValueError, match="v256-2x1-f64"):
        named("v256-2x1-f64")


@pytest.mark.parametrize(
    "duration_s,frames,fps,span_s",
    [
        (20.0, 256, 16.0, 16.0),
        (16.0, 256, 16.0, 16.0),
        (13.0, 256, 256 / 13, 13.0),
        (12.0, 256, 256 / 12, 12.0),
        (11.5, 256, 24.0, 256 / 24),
        (10.7, 256, 24.0, 256 / 24),
        (10.0, 192, 19.2, 10.0),
        (8.0, 192, 24.0, 8.0),
        (7.9, 128, 128 / 7.9, 7.9),
        (4.0, 128, 32.0, 4.0),
    ],
)
def test_the_papers_table(duration_s: float, frames: int, fps: float, span_s: float) -> None:
    choice = choose(clip(round(duration_s * 60), 60), 256)
    assert choice.bucket is not None and choice.bucket.frames == frames
    assert float(choice.fps) == pytest.approx(fps, rel=2e-5)
    assert choice.span_s == pytest.approx(span_s, rel=2e-5)


@pytest.mark.parametrize(
    "frames,fps,count,rate",
    [
        (264, 24000 / 1001, 256, Fraction(24000, 1001)),  # 24 fps is asked for, the source has a little less
        (205, 24, 192, None),
        (192, 24, 192, Fraction(24)),
        (191, 24, 128, None),
        (128, 30, 128, Fraction(30)),
        (127, 30, None, None),  # 4.2 s, but one frame short
        (120, 30, None, None),
        (300, 15, None, None),  # frames enough, at a rate below the table's
        (600, 12, None, None),
        (128, 60, None, None),  # 2.1 s
        (256, 16, 256, Fraction(16)),
        (0, 25, None, None),
    ],
)
def test_a_sample_takes_only_frames_that_are_there(frames: int, fps: float, count: int | None, rate: Fraction | None) -> None:
    choice = choose(clip(frames, fps), 256)
    if count is None:
        assert (choice.bucket, choice.misfit) == (None, "too_few_frames")
        assert choice.why.startswith(f"{frames} frames in ")
        return
    assert choice.bucket is not None and choice.bucket.frames == count
    assert rate is None or choice.fps == rate
    assert choice.fps <= Fraction(fps).limit_denominator(1001)


def test_frames_that_are_all_wanted_come_as_they_are() -> None:
    choice = choose(clip(192, 24), 256)
    assert indices(choice, 192, 24).tolist() == list(range(192))


def test_half_the_rate_takes_every_second_frame() -> None:
    choice = choose(clip(32 * 20, 32), 256)
    found = indices(choice, 32 * 20, 32)
    assert set(np.diff(found)) == {2}
    assert found[0] == pytest.approx(640 - 1 - found[-1], abs=2)  # the centre


@pytest.mark.parametrize("fps", [16, 20, 24000 / 1001, 25, 30000 / 1001, 50, 59.94, 120])
def test_indices_rise_and_stay_within_half_a_source_frame(fps: float) -> None:
    for duration_s in np.arange(4.0, 20.0, 0.37):
        frames = round(duration_s * fps)
        choice = choose(clip(frames, fps), 256)
        if choice.bucket is None:
            continue
        times = np.arange(frames) / fps
        found = indices(choice, frames, fps)
        assert len(found) == choice.bucket.frames
        assert np.diff(found).min() >= 1 and found[0] >= 0 and found[-1] < frames
        assert np.abs(times[found] - target_times(times, frames / fps, choice)).max() <= 0.501 / fps


def test_an_uneven_rate_repeats_nothing_and_stays_near_its_times() -> None:
    rng = np.random.default_rng(0)
    times = np.sort(np.delete(np.arange(300) / 30, rng.choice(300, 20, replace=False)))
    times += 100.0
    choice = choose(clip(280, 28), 256)
    found = frame_indices(times, 110.0, choice)
    assert np.diff(found).min() >= 1
    assert np.abs(times[found] - target_times(times, 110.0, choice)).max() < 0.07


def test_a_hole_shifts_the_frames_on_both_of_its_sides() -> None:
    times = np.concatenate([np.arange(96), np.arange(104, 200)]) / 25.0
    choice = choose({"kind": "video", "frames": 192, "duration_s": 8.0, "width": 640, "height": 360}, 256)
    found = frame_indices(times, 8.0, choice)
    assert found.tolist() == list(range(192))


def test_fewer_frames_than_the_bucket_is_an_error() -> None:
    choice = choose(clip(192, 24), 256)
    with pytest.raises(ValueError, match="191 frames, 192 are wanted"):
        frame_indices(np.arange(191) / 24, 8.0, choice)


@pytest.mark.parametrize(
    "width,height,ratio,crop",
    [
        (1920, 1080, "16x9", (14, 0, 1890, 1080)),
        (1080, 1920, "9x16", (0, 14, 1080, 1890)),
        (640, 480, "4x3", (12, 0, 616, 480)),
        (481, 640, "3x4", (0, 12, 480, 616)),
        (500, 500, "1x1", (0, 0, 500, 500)),
        (2560, 1080, "16x9", (334, 0, 1890, 1080)),
        (256, 256, "1x1", (0, 0, 256, 256)),
    ],
)
def test_nearest_ratio_and_centre_crop(width: int, height: int, ratio: str, crop: tuple[int, int, int, int]) -> None:
    choice = choose(clip(240, 30, width, height), 256)
    assert choice.bucket is not None and choice.bucket.ratio == ratio
    assert choice.crop == crop
    across, down = choice.bucket.size
    assert crop[2] / crop[3] == pytest.approx(across / down, rel=0.01)


def test_bars_are_cut_off_first() -> None:
    choice = choose(clip(240, 30, 1920, 1080, border_left_px=656.0, border_right_px=657.0), 256)
    assert choice.bucket is not None and choice.bucket.ratio == "9x16"
    x, y, width, height = choice.crop
    assert x >= 656 + 2 and x + width <= 1920 - 657 - 2 and y >= 0 and y + height <= 1080
    assert width / height == pytest.approx(192 / 336, rel=0.01)


def test_nothing_is_enlarged() -> None:
    choice = choose(clip(240, 30, 334, 190), 256)
    assert (choice.bucket, choice.misfit) == (None, "too_small")
    assert "336x192 is the least" in choice.why
    assert choose(clip(240, 30, 1920, 1080, border_top_px=500.0, border_bottom_px=480.0), 256).misfit == "too_small"
    assert choose(clip(240, 30, 640, 360), 768).misfit == "too_small"
    assert choose(clip(240, 30, 100, 100, border_left_px=60.0, border_right_px=60.0), 256).misfit == "too_small"


def test_pixels_that_display_stretches_do_not_count_twice() -> None:
    wide = clip(240, 30, 1024, 576)
    assert choose(wide, 768).bucket is not None
    stretched = choose({**wide, "pixel_aspect": 64 / 45, "rotation": 0}, 768)
    assert stretched.misfit == "too_small" and "720x576 stored" in stretched.why
    turned = choose({**clip(240, 30, 576, 1024), "pixel_aspect": 64 / 45, "rotation": 90}, 768)
    assert turned.misfit == "too_small" and "576x720 stored" in turned.why


def test_images_need_no_frames() -> None:
    choice = choose({"kind": "image", "frames": 1, "duration_s": 0.0, "fps": None, "width": 800, "height": 600}, 256)
    assert choice.bucket is not None and choice.bucket.name == "i256-4x3"
    assert (choice.fps, choice.span_s) == (0, 0.0)


def test_the_choice_is_explained() -> None:
    why = choose(clip(240, 30, border_top_px=None), 256).why
    assert why == "16x9 is the nearest ratio, 1260x720 inside the bars; 192 of 240 frames at 24 fps show 8.00 of 8.00 s"
