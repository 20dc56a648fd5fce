"""First weights of models too large for one rank: the same however they are sharded, and never whole anywhere.

Such a model is built on the meta device, divided, and only then gets memory. Each rank draws one parameter after the other,
whole, on the CPU, from a generator of the run's seed and the parameter's name, and keeps its own part of it.
"""

from hashlib import blake2b
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from training_bridge.checkpoint import put


class Drawn(Protocol):
    """What a part of a model on the meta device knows."""

    def initial(self, name: str, values: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Fill `values` with the first ones of the parameter `name`, and return them."""


def materialise(model: nn.ModuleDict, device: torch.device, seed: int) -> None:
    """Give a model that lies on the meta device its memory and its first weights."""
    assert not list(model.buffers()), "buffers would be left without values"
    model.to_empty(device=device)
    for part, module in model.items():
        for name, parameter in module.named_parameters():
            random = torch.Generator().manual_seed(_seed(seed, f"{part}.{name}"))
            put(parameter, cast("Drawn", module).initial(name, torch.empty(parameter.shape), random), name)


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=4).digest(), "big")
