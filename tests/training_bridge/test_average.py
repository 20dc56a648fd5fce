"""Averages of checkpoints."""

from typing import Any

import pytest
import torch

from training_bridge.average import average


def state(value: float, **more: Any) -> dict[str, torch.Tensor]:
    return {"a": torch.full((2, 2), value), "b": torch.tensor([value], dtype=torch.bfloat16), "n": torch.tensor(3), **more}


def test_the_mean_of_states() -> None:
    found = average(state(value) for value in (1.0, 2.0, 6.0))
    assert torch.equal(found["a"], torch.full((2, 2), 3.0)) and found["b"].dtype == torch.bfloat16 and found["n"] == 3
    assert torch.equal(average([state(1.0), state(5.0)], [3, 1])["a"], torch.full((2, 2), 2.0))


def test_small_differences_survive() -> None:
    states = [{"a": torch.tensor([1.0 + i * 2**-23])} for i in (0, 2)]
    assert float(average(states)["a"]) == 1.0 + 2**-23


@pytest.mark.parametrize(
    ("states", "weights", "said"),
    [
        ([], None, "0 states have no mean"),
        ([state(1.0)], [1, 2], "1 states for 2 weights"),
        ([state(1.0), state(2.0)], [1], "more states than the 1 weights"),
        ([state(1.0)], [-1], "no shares"),
        ([state(1.0), state(1.0, c=torch.zeros(1))], None, "state 2 is of another model: c is in one"),
        ([state(1.0), state(1.0, a=torch.zeros(3))], None, r"a is \(3,\), not \(2, 2\)"),
        ([state(1.0), state(1.0, n=torch.tensor(4))], None, "n differs"),
    ],
)
def test_what_has_no_mean_is_refused(states: Any, weights: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        average(states, weights)
