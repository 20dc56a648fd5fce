"""Jitter and slideshows of planted truth."""

import numpy as np
import pytest

from filters import edits


def test_one_frame_has_no_edits() -> None:
    one = np.zeros(1, np.float32)
    assert edits.jitter_shots_per_s(one, np.zeros(1), 0.0, 0.04, 0.04) is None
    assert edits.slideshow_score(one, [], [], np.zeros(1), (0.0, 0.04), 0.04, 6) is None


def test_jitter_counts_triggers_over_ten_seconds_around_the_clip() -> None:
    time_s = np.arange(1000) / 25
    score = np.zeros(1000, np.float32)
    score[[250, 255, 260, 300, 700]] = 30
    score[400] = 26.9
    assert edits.jitter_shots_per_s(score, time_s, 10.0, 14.0, 40.0) == pytest.approx(0.4)
    assert edits.jitter_shots_per_s(score, time_s, 24.0, 40.0, 40.0) == pytest.approx(1 / 16)
    assert edits.jitter_shots_per_s(score[:100], time_s[:100], 0.0, 4.0, 4.0) == 0.0


def slideshow(changed: np.ndarray, cuts: list[int], span: tuple[int, int]) -> float | None:
    time_s = np.arange(len(changed)) / 25
    return edits.slideshow_score(changed, cuts, [], time_s, (span[0] / 25, span[1] / 25), len(changed) / 25, 6)


def test_stills_one_after_another_are_a_slideshow_and_a_still_or_a_film_is_none() -> None:
    stills = np.zeros(500, np.float32)
    cuts = [100, 200, 300, 400]
    for cut in cuts:
        stills[cut : cut + 6] = 0.8
    assert slideshow(stills, cuts, (100, 200)) == pytest.approx(1.0)
    assert slideshow(np.zeros(500, np.float32), [], (0, 400)) == 0.0
    moving = np.full(500, 0.3, np.float32)
    assert slideshow(moving, cuts, (100, 200)) == 0.0
    one_cut = np.zeros(500, np.float32)
    one_cut[250:256] = 0.8
    assert slideshow(one_cut, [250], (0, 250)) == pytest.approx(0.5)
