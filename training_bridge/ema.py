"""The exponential moving average of a model's parameters: sharded like them, kept in the checkpoint, swapped in to use."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Ema:
    """Averages of the parameters whose names begin with one of `prefixes`, in their own dtype (fp32 masters) and sharding.

    The decay warms up as min(decay, (1 + n) / (10 + n)) at update n, so that the first steps are forgotten.
    """

    def __init__(self, model: nn.Module, prefixes: tuple[str, ...], decay: float) -> None:
        """Begins as a copy of the parameters. Raises ValueError where the prefixes name none or decay is not in [0, 1)."""
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} is not in [0, 1)")
        self.decay, self.updates = decay, 0
        self.own = {n: p for n, p in model.named_parameters() if n.startswith(prefixes) and p.requires_grad}
        if not self.own:
            raise ValueError(f"no parameter's name begins with {', '.join(prefixes)}")
        self.average: dict[str, Tensor] = {n: p.detach().clone() for n, p in self.own.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the parameters as they are."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(_local(self.average), _local(self.own), 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again as a copy of the parameters as they are."""
        torch._foreach_copy_(_local(self.average), _local(self.own))
        self.updates = 0

    @contextmanager
    @torch.no_grad()
    def swapped(self) -> Iterator[None]:
        """The model has the averages inside, and its own parameters again after."""
        own, kept = _local(self.own), [p.clone() for p in _local(self.own)]
        torch._foreach_copy_(own, _local(self.average))
        try:
            yield
        finally:
            torch._foreach_copy_(own, kept)


def _local(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """What this rank holds of each: averaging is elementwise, so shards need not know of each other."""
    return [t.to_local().detach() if isinstance(t, DTensor) else t.detach() for t in tensors.values()]
