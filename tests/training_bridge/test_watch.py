"""Ranks that lose one of them stop, with a reason."""

import signal
import time

from tests.training_bridge.launched import ended, launched, start
from training_bridge.watch import LOST

SLEEPER = "tests.training_bridge.sleeper"


def test_the_others_stop_when_one_is_killed() -> None:
    three = start(3, SLEEPER, "60")
    for process in three:
        assert process.stdout is not None and process.stdout.readline() == "watching\n"
    three[1].send_signal(signal.SIGKILL)
    began = time.monotonic()
    done = ended(three, 60)
    assert [code for code, _ in done] == [LOST, -signal.SIGKILL, LOST] and time.monotonic() - began < 30
    assert "rank 0: another rank is gone, so this one stops" in done[0][1]


def test_ranks_that_end_one_after_the_other_are_not_lost() -> None:
    assert launched(2, SLEEPER, "0") == ["watching\nleft\n"] * 2
