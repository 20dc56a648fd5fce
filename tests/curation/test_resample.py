"""Quotas: integers with the right sum and, over offsets, exactly the right mean."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.resample import PeopleConfig, ResampleConfig, expected, quotas

GROUPS = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(0, 5000)).map(lambda pair: (pair[0], sum(pair))), min_size=1, max_size=30
)


@given(GROUPS, st.integers(0, 60_000))
def test_what_is_expected_is_the_inverse_square_root_up_to_what_there_is(groups: list[tuple[int, int]], target: int) -> None:
    kept = expected(groups, target)
    assert math.fsum(kept) == pytest.approx(min(target, sum(n for n, _ in groups)), abs=1e-6)
    assert all(0 <= k <= n for k, (n, _) in zip(kept, groups, strict=True))
    open_ones = [k * math.sqrt(m) / n for k, (n, m) in zip(kept, groups, strict=True) if k < n - 1e-9]
    assert max(open_ones, default=0) - min(open_ones, default=0) <= 1e-6 * max(open_ones, default=1), "one k for all"
    whole = [math.sqrt(m) for k, (n, m) in zip(kept, groups, strict=True) if k >= n - 1e-9]
    if open_ones:
        assert all(m <= open_ones[0] + 1e-6 for m in whole), "whole is what k sqrt(n) would exceed"


@given(GROUPS, st.integers(0, 60_000), st.floats(0, 1, exclude_max=True), st.randoms())
def test_quotas_are_whole_numbers_next_to_what_is_expected(
    groups: list[tuple[int, int]], target: int, offset: float, chance: random.Random
) -> None:
    order = list(range(len(groups)))
    chance.shuffle(order)
    given_ = quotas(groups, target, order, offset)
    assert sum(given_) == min(target, sum(n for n, _ in groups))
    assert all(abs(q - e) < 1 + 1e-6 for q, e in zip(given_, expected(groups, target), strict=True))


@given(GROUPS, st.integers(0, 60_000), st.floats(0, 1, exclude_max=True), st.data())
def test_what_is_kept_already_is_taken_off_the_others(
    groups: list[tuple[int, int]], target: int, offset: float, data: st.DataObject
) -> None:
    kept = [data.draw(st.integers(0, n)) for n, _ in groups]
    given_ = quotas(groups, target, range(len(groups)), offset, kept)
    assert all(k <= q <= n for k, q, (n, _) in zip(kept, given_, groups, strict=True))
    whole = sum(n for n, _ in groups)
    assert sum(given_) == max(sum(kept), min(target, whole))


def test_quotas_are_exact_in_expectation() -> None:
    groups, steps = [(1, 1), (9, 9), (40, 40), (400, 500), (100, 500)], 10_000
    sums = [0] * len(groups)
    for n in range(steps):
        for place, quota in enumerate(quotas(groups, 60, [3, 1, 4, 0, 2], (n + 0.5) / steps)):
            sums[place] += quota
    assert [s / steps for s in sums] == pytest.approx(expected(groups, 60), abs=2e-4)


def test_a_target_is_a_share_or_a_count() -> None:
    assert [ResampleConfig(share=0.817).target(n) for n in (0, 1, 1000)] == [0, 1, 817]
    assert [ResampleConfig(count=10).target(n) for n in (0, 7, 1000)] == [0, 7, 10]
    for wrong in ({}, {"share": 0.5, "count": 3}, {"share": 0}, {"count": 0}):
        with pytest.raises(ValidationError):
            ResampleConfig(**wrong)
    for share in (0.0004, 0.9996, 1):
        with pytest.raises(ValidationError):
            PeopleConfig(share=share)
