"""The mean of several checkpoints' weights: what several fine-tuning runs learned, in one model (Movie Gen, section 3.3.4)."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


@torch.no_grad()
def average(states: Iterable[Mapping[str, Tensor]], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean of state dicts, summed in float64 and kept in the first one's types. States are read one by one.

    Tensors that are not floating-point must be equal in all. Raises ValueError where states do not belong to one
    model, there are none, or the weights are not as many as the states, or negative, or sum to nothing.
    """
    if weights is not None and (min(weights, default=0.0) < 0 or sum(weights) <= 0):
        raise ValueError(f"weights {list(weights)} are no shares: none is negative, and their sum is positive")
    first: Mapping[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    total, count = 0.0, 0
    for count, state in enumerate(states, 1):
        if weights is not None and count > len(weights):
            raise ValueError(f"more states than the {len(weights)} weights")
        if count == 1:
            first, sums = dict(state), {name: torch.zeros_like(x, dtype=torch.float64) for name, x in state.items()}
        _check(first, state, count)
        weight = 1.0 if weights is None else weights[count - 1]
        total += weight
        for name, x in state.items():
            if x.is_floating_point():
                sums[name].add_(x.double(), alpha=weight)
    if not count or (weights is not None and count < len(weights)):
        raise ValueError(f"{count} states" + (f" for {len(weights)} weights" if weights else " have no mean"))
    return {name: (sums[name] / total).to(x.dtype) if x.is_floating_point() else x.clone() for name, x in first.items()}


def _check(first: Mapping[str, Tensor], state: Mapping[str, Tensor], number: int) -> None:
    if lacking := first.keys() ^ state.keys():
        raise ValueError(f"state {number} is of another model: {', '.join(sorted(lacking)[:3])} is in one and not in the other")
    for name, x in state.items():
        if x.shape != first[name].shape:
            raise ValueError(f"state {number} is of another model: {name} is {tuple(x.shape)}, not {tuple(first[name].shape)}")
        if not x.is_floating_point() and not torch.equal(x, first[name]):
            raise ValueError(f"state {number}: {name} differs, and has no mean")
