"""Clips from shots: lengths, equal pieces, transitions, variable frame rate, and the seeded policy."""

import numpy as np
import pytest
from pydantic import ValidationError

from curation.clips import ClipConfig, spans


def at(fps: float, seconds: float) -> np.ndarray:
    return np.arange(round(fps * seconds)) / fps


def test_a_short_source_gives_no_clip_and_a_sufficient_one_gives_itself() -> None:
    assert spans(at(25, 3.9), [], [], 3.9, ClipConfig(), "s") == []
    assert spans(at(25, 4.0), [], [], 4.0, ClipConfig(), "s") == [(0, 100)]
    assert spans(at(24, 16.0), [], [], 16.0, ClipConfig(), "s") == [(0, 384)]


def test_a_long_shot_is_cut_into_equal_pieces_below_the_limit() -> None:
    found = spans(at(24, 50), [], [], 50.0, ClipConfig(), "s")
    assert found == [(0, 300), (300, 600), (600, 900), (900, 1200)]


def test_no_clip_crosses_a_cut_or_enters_a_transition() -> None:
    gradual = [{"start": 300, "end": 325, "kind": "dissolve"}]
    found = spans(at(25, 30), [125, 500], gradual, 30.0, ClipConfig(), "s")
    assert found == [(0, 125), (125, 300), (325, 500), (500, 750)]


def test_a_cut_inside_a_transition_adds_nothing() -> None:
    gradual = [{"start": 100, "end": 110, "kind": "fade"}]
    assert spans(at(25, 8.4), [105], gradual, 8.4, ClipConfig(), "s") == [(0, 100), (110, 210)]


def test_times_are_those_of_the_frames_not_of_a_rate() -> None:
    time_s = np.concatenate([np.arange(100) / 50, 2 + np.arange(100) / 10])  # 2 s at 50 fps, then 10 s at 10
    assert spans(time_s, [100], [], 12.0, ClipConfig(), "s") == [(100, 200)]
    halves = spans(time_s, [], [], 12.0, ClipConfig(max_s=6), "s")
    assert halves == [(0, 140), (140, 200)]


def test_the_opening_seconds_can_be_dropped() -> None:
    assert spans(at(25, 10), [], [], 10.0, ClipConfig(skip_start_s=3), "s") == [(75, 250)]
    assert spans(at(25, 5), [], [], 5.0, ClipConfig(skip_start_s=3), "s") == []


def test_where_equal_pieces_would_be_too_short_whole_ones_are_taken_from_the_middle() -> None:
    assert spans(at(10, 7), [], [], 7.0, ClipConfig(min_s=4, max_s=5), "s") == [(10, 60)]


def test_the_papers_policy_takes_at_most_two_long_shots_and_is_seeded() -> None:
    config = ClipConfig(policy="paper")
    time_s = at(25, 100)
    cuts = [500, 600, 1200, 1900]
    first = spans(time_s, cuts, [], 100.0, config, "a")
    assert len(first) == 2
    assert first == spans(time_s, cuts, [], 100.0, config, "a")
    assert any(first != spans(time_s, cuts, [], 100.0, config, key) for key in "bcdef")
    shots = [(0, 500), (600, 1200), (1200, 1900), (1900, 2500)]
    for key in map(str, range(200)):
        for start, end in spans(time_s, cuts, [], 100.0, config, key):
            assert 100 <= end - start <= 400
            assert any(a <= start and end <= b for a, b in shots)


def test_the_papers_policy_ignores_shots_that_are_not_longer_than_the_limit() -> None:
    assert spans(at(25, 16), [], [], 16.0, ClipConfig(policy="paper"), "s") == []


def test_limits_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValidationError, match="below min_s"):
        ClipConfig(min_s=8, max_s=4)
