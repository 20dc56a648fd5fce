"""A short fuzz run; a long one is `python -m tests.hostile.fuzz --seconds 300`."""

import pytest

from tests.hostile.fuzz import fuzz

pytestmark = pytest.mark.hostile


def test_a_short_fuzz_run_finds_nothing() -> None:
    outcome = fuzz(seconds=20, seed=0)
    assert outcome.findings == []
    assert outcome.executions > 100 and outcome.kept > 20, "it runs, and what it reaches guides it"
    assert len(outcome.codes) > 4
