"""How the ranks of a run share the work: replicate x shard x context x tensor, checked once and never guessed again.

Data ranks (replicate x shard) see different samples. The ranks of a model-parallel group (context x tensor) see the same
ones. Parameters are sharded over shard x context, so that gradients, which are sums over local slices, add up over all
ranks that hold a part of the batch.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Numbers of ranks; rank = ((replicate * shard + s) * context + c) * tensor + t."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    replicate: int = 1
    """Copies of the sharded parameters (HSDP): gradients are reduced inside a copy first."""
    shard: int = 0
    """Ranks that share one copy of the parameters, beside context ranks; 0: all that are left."""
    context: int = 1
    """Ranks that share the sequence of a sample."""
    tensor: int = 1
    """Ranks that share each matrix; the sequence too, between the matrices."""

    def fitted(self, world: int) -> "Layout":
        """The layout with `shard` filled in. Raises ValueError with the numbers where it does not fit `world` ranks."""
        if min(self.replicate, self.context, self.tensor) < 1 or self.shard < 0:
            raise ValueError(f"{self}: replicate, context and tensor are 1 or more, shard 0 or more")
        fixed = self.replicate * self.context * self.tensor
        shard = self.shard or max(1, world // fixed)
        if fixed * shard != world:
            model = self.context * self.tensor
            if world % model:
                fits = f"context x tensor = {model} does not divide {world}: it may be {nearest_divisors(world, model)}"
            else:
                fits = f"With context x tensor = {model}, replicate x shard is {world // model}: "
                fits += f"replicate may be {nearest_divisors(world // model, self.replicate)}, shard 0"
            raise ValueError(
                f"replicate {self.replicate} x shard {shard} x context {self.context} x tensor {self.tensor} = {fixed * shard} "
                f"ranks, and there are {world}. {fits}"
            )
        return Layout(replicate=self.replicate, shard=shard, context=self.context, tensor=self.tensor)

    @property
    def data(self) -> int:
        """Ranks that see different samples."""
        return self.replicate * self.shard

    @property
    def world(self) -> int:
        """All ranks."""
        return self.data * self.context * self.tensor

    def place(self, rank: int, frames: int) -> tuple[int, int]:
        """A rank's (data rank, data ranks) in a step of samples of `frames` frames.

        Images are too short to be shared: in their steps the context peers are data ranks of their own.
        """
        across = self.context if frames == 1 else 1
        return rank // (self.context * self.tensor // across), self.data * across

    def peers(self, rank: int, frames: int) -> tuple[int, ...]:
        """The ranks that see the same samples as `rank`, the one that reads them first."""
        size = self.tensor if frames == 1 else self.context * self.tensor
        first = rank // size * size
        return tuple(range(first, first + size))

    def __str__(self) -> str:
        return f"replicate {self.replicate} x shard {self.shard} x context {self.context} x tensor {self.tensor}"


def nearest_divisors(number: int, wanted: int) -> str:
    """Up to three divisors of a number that are nearest to what was wanted, to be told."""
    fits = [n for n in range(1, number + 1) if number % n == 0]
    return ", ".join(map(str, sorted(sorted(fits, key=lambda n: abs(n - wanted))[:3])))


@dataclass(frozen=True)
class Meshes:
    """A layout's process groups. `parameters` has the axes (replicate, fsdp, tensor), `samples` (data, context, tensor)."""

    parameters: DeviceMesh
    samples: DeviceMesh

    @classmethod
    def of(cls, layout: Layout, device: torch.device) -> "Meshes":
        """Make them; every rank calls this once, after the process group is there."""
        sizes = (layout.replicate, layout.shard * layout.context, layout.tensor)
        parameters = init_device_mesh(device.type, sizes, mesh_dim_names=("replicate", "fsdp", "tensor"))
        samples = init_device_mesh(
            device.type, (layout.data, layout.context, layout.tensor), mesh_dim_names=("data", "context", "tensor")
        )
        return cls(parameters, samples)

    @property
    def fsdp(self) -> DeviceMesh:
        """What `fully_shard` takes: one axis, or two for HSDP."""
        return self.parameters["replicate", "fsdp"] if self.parameters["replicate"].size() > 1 else self.parameters["fsdp"]

    @property
    def context(self) -> dist.ProcessGroup:
        """The ranks that share a sample's sequence."""
        return self.samples["context"].get_group()
