"""A short fuzz run; a long one is `python -m tests.hostile.fuzz --seconds 300`."""

import math

import pytest

from tests.hostile.fuzz import fuzz

pytestmark = pytest.mark.hostile


def test_a_short_fuzz_run_finds_nothing_and_comes_out_the_same_again() -> None:
    """Bounded by executions: how far it comes, and so what it finds, is no matter of how busy the machine is."""
    outcome, again = (fuzz(seconds=math.inf, seed=0, most=400) for _ in range(2))
    assert outcome.findings == []
    assert outcome.executions == 400 and outcome.kept > 40, "it runs, and what it reaches guides it"
    assert len(outcome.codes) > 4
    assert (again.tried, again.kept, again.codes) == (outcome.tried, outcome.kept, outcome.codes)
    assert again.reached == outcome.reached
