"""Whether layouts agree: a few steps of one model at several, and how far loss and gradients lie from those of one rank.

Errors of parallel training are silent: a loss computed on gathered output has gradients too small by the number of context
ranks and trains all the same. And a fresh model hides them: what starts at zero (the output, the modulation) leaves nearly
every gradient at exactly zero, and zeros agree. So the model starts from no zero, and a reference gradient that is zero is an
error. Steps are plain gradient descent: Adam divides by what is nearly nothing and would enlarge rounding.
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from training_bridge.dit.flow import FlowConfig, draw, sample_losses
from training_bridge.dit.model import Backbone, BackboneConfig
from training_bridge.dit.parallel import recomputed, replicated, tensor_parallel
from training_bridge.dit.text import EncoderConfig, TextTokens, byte_ids, padded
from training_bridge.draws import generator
from training_bridge.exchange import Kind, exchange
from training_bridge.plan import Sample

FROZEN = EncoderConfig(name="frozen", kind="t5", path="none", width=24, limit=32)
LETTERS = EncoderConfig(name="letters", kind="bytes", width=32, limit=48, layers=1)


class Axes(NamedTuple):
    """Ranks along data, context and tensor."""

    data: int
    context: int
    tensor: int


SMALL = BackboneConfig(layers=2, width=64, heads=4, ffn=96, lengths=(4, 6, 8))
LAYOUTS = (Axes(1, 1, 1), Axes(2, 1, 1), Axes(1, 2, 1), Axes(1, 1, 2), Axes(2, 2, 1), Axes(1, 2, 2))
"""All that four ranks can tell apart, the reference first."""


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """What is run."""

    backbone: BackboneConfig = SMALL
    latents: tuple[int, int, int, int] = (16, 3, 8, 8)
    batch: int = 4
    steps: int = 2
    lr: float = 0.01
    seed: int = 0
    tolerance: float = 1e-5


@dataclass
class Trace:
    """The losses of a run, and the gradients of each of its steps, whole."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Agreement:
    """How far a layout lies from the reference."""

    axes: Axes
    kind: Kind
    loss: float
    """Largest |difference| / |loss| of a step."""
    gradients: dict[str, float]
    """Largest max|difference| / max|gradient| of a step, parameter by parameter."""

    @property
    def worst(self) -> tuple[str, float]:
        """The parameter whose gradients lie farthest apart."""
        return max(self.gradients.items(), key=lambda item: item[1])

    def agrees(self, tolerance: float) -> bool:
        """Whether loss and all gradients lie within it."""
        return max(self.loss, self.worst[1]) <= tolerance


@dataclass(frozen=True)
class Found:
    """What one rank's run gave, and how far the others lie from it."""

    losses: list[float]
    """Of each step, on one rank."""
    agreements: list[Agreement]

    def table(self, above: float) -> str:
        """A line a layout; below it each parameter whose gradients lie farther apart than `above`."""
        lines = [f"{'data context tensor  exchange':30}{'loss':>8}{'gradients':>11}  farthest parameter"]
        losses = " ".join(f"{loss:.6f}" for loss in self.losses)
        lines.append(f"{_layout(Axes(1, 1, 1)):30}reference, loss {losses}")
        for one in self.agreements:
            name, ratio = one.worst
            kind = one.kind if one.axes.context > 1 else "-"
            lines.append(f"{_layout(one.axes) + kind:30}{one.loss:8.1e}{ratio:11.1e}  {name}")
            lines += [f"{far:49.1e}  {name}" for name, far in one.gradients.items() if far > above]
        return "\n".join(lines)


def _layout(axes: Axes) -> str:
    return f"{axes.data:4}{axes.context:8}{axes.tensor:7}  "


def runs(layouts: Iterable[Axes], world: int) -> list[tuple[Axes, Kind]]:
    """Which layouts a world can run, and by which exchanges; the reference first."""
    fitting = [axes for axes in layouts if world % (axes.data * axes.context * axes.tensor) == 0]
    kinds: dict[bool, tuple[Kind, ...]] = {True: ("ulysses", "gather"), False: ("auto",)}
    return [(axes, kind) for axes in fitting for kind in kinds[axes.context > 1]]


def parity(config: ParityConfig, layouts: Sequence[Axes] = LAYOUTS, device: str = "cpu") -> Found:
    """Run all layouts that fit the process group, one after the other, and compare each with one rank's run.

    A layout of fewer ranks runs in copies. Raises ValueError where a reference gradient is zero.
    """
    reference = trace(config, Axes(1, 1, 1), "auto", device)
    for name in reference.gradients[0]:
        if any(float(step[name].abs().max()) == 0 for step in reference.gradients):
            raise ValueError(f"the reference gradient of {name} is zero: any layout would agree with it")
    rest = [run for run in runs(layouts, dist.get_world_size()) if run[0] != Axes(1, 1, 1)]
    agreements = [compared(reference, trace(config, axes, kind, device), axes, kind) for axes, kind in rest]
    return Found(reference.losses, agreements)


def compared(reference: Trace, found: Trace, axes: Axes, kind: Kind) -> Agreement:
    """How far one run lies from another."""
    loss = max(abs(a - b) / abs(a) for a, b in zip(reference.losses, found.losses, strict=True))
    ratios: dict[str, float] = {}
    for before, after in zip(reference.gradients, found.gradients, strict=True):
        for name, gradient in before.items():
            ratio = float((gradient - after[name]).abs().max() / gradient.abs().max())
            ratios[name] = max(ratio, ratios.get(name, 0.0))
    return Agreement(axes, kind, loss, ratios)


def trace(config: ParityConfig, axes: Axes, kind: Kind, device: str) -> Trace:
    """Losses and gradients of one layout. All ranks of the world call it together."""
    copies = dist.get_world_size() // (axes.data * axes.context * axes.tensor)
    mesh = init_device_mesh(device, (copies, *axes), mesh_dim_names=("copy", "data", "context", "tensor"))
    shards = mesh["data", "context"]._flatten("shards")
    model = _divided(config, mesh, shards, kind, device)
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr)
    found = Trace()
    for step in range(config.steps):
        optimizer.zero_grad()
        loss = _loss(model, config, mesh, step, device)
        torch.autograd.backward(loss)
        whole = loss.detach().clone()
        dist.all_reduce(whole, group=shards.get_group())
        found.losses.append(float(whole))
        found.gradients.append({name: _whole(p.grad) for name, p in model.named_parameters() if p.grad is not None})
        optimizer.step()
    return found


def _divided(config: ParityConfig, mesh: DeviceMesh, shards: DeviceMesh, kind: Kind, device: str) -> nn.ModuleDict:
    backbone, text = Backbone(config.backbone), TextTokens([FROZEN, LETTERS], config.backbone.width)
    model = nn.ModuleDict({"text": text, "backbone": backbone})
    without_zeros(model, config.seed)
    model.to(device)
    if mesh["tensor"].size() > 1:
        tensor_parallel(backbone, mesh["tensor"])
        replicated(text, mesh["tensor"], (None, None))
    heads = config.backbone.heads // mesh["tensor"].size()
    backbone.set_exchange(exchange(kind, mesh["context"].get_group(), heads))
    for block in backbone.blocks:
        recomputed(block, "selective")
    for unit in (*backbone.blocks, backbone, text):
        sharded: FSDPModule = fully_shard(unit, mesh=shards)
        sharded.set_gradient_divide_factor(1.0)  # the loss is a sum already ...
        sharded.set_force_sum_reduction_for_comms(True)  # ... and gloo only sums
    return model


@torch.no_grad()
def without_zeros(model: nn.Module, seed: int) -> None:
    """Draw every parameter anew: normal around 0, norms around 1."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.copy_(around + 0.1 * torch.randn(parameter.shape, generator=random))


def _loss(model: nn.ModuleDict, config: ParityConfig, mesh: DeviceMesh, step: int, device: str) -> Tensor:
    """This rank's part of the mean loss of a step: of its samples, its tokens."""
    each = config.batch // mesh["data"].size()
    first = mesh["data"].get_local_rank() * each
    samples = [Sample("parity", i, f"sample-{i}", step) for i in range(first, first + each)]
    draws = [draw(FlowConfig(), config.seed, sample, {"latents": config.latents}) for sample in samples]
    noise, time = (torch.stack([torch.from_numpy(d[name]) for d in draws]).to(device) for name in ("noise", "time"))
    drop = [sample.row == 0 for sample in samples]
    of = partial(_numbers, config.seed)
    latents = torch.stack([of(sample, "latents", config.latents) for sample in samples]).to(device)
    rows = {
        "frozen": [of(sample, "text", (4 + 7 * sample.row, FROZEN.width)) for sample in samples],
        "letters": [byte_ids("letters " * (1 + sample.row), LETTERS.limit) for sample in samples],
    }
    null = {"frozen": torch.ones(1, FROZEN.width), "letters": byte_ids("", LETTERS.limit)}
    context, backbone = mesh["context"], model["backbone"]
    assert isinstance(backbone, Backbone)
    text, mask = model["text"](*padded(rows, drop, null, device))
    losses = sample_losses(
        backbone, latents, noise, time, text, mask, sigma_min=1e-5, rank=context.get_local_rank(), ranks=context.size()
    )
    weights = torch.tensor([1.0 + sample.row for sample in samples], device=device)
    return (weights * losses).sum() / config.batch


def _numbers(seed: int, sample: Sample, purpose: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(generator(seed, sample.key, sample.visit, purpose).standard_normal(shape, dtype="float32"))


def _whole(gradient: Tensor) -> Tensor:
    return (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).detach().clone()


def main() -> int:
    """Run it on the ranks of this process's environment, print what was found; 1 where a layout does not agree.

    `torchrun --nproc-per-node 4 -m training_bridge.dit.parity [--steps 2] [--above 1e-5] [--device cuda]`
    """
    from training_bridge.launch import ranks

    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=ParityConfig.steps)
    parser.add_argument("--above", type=float, default=ParityConfig.tolerance)
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    # Whole gradients are gathered for the comparison alone: that DTensor takes two steps for some is no news.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    here, config = ranks(asked.device), ParityConfig(steps=asked.steps)
    found = parity(config, device=here.device.type)
    wrong = [one for one in found.agreements if not one.agrees(config.tolerance)]
    if here.rank == 0:
        print(f"{here.world} ranks on {here.device.type}, {config.steps} steps in float32; differences from one rank:")
        print(found.table(asked.above))
        print(f"{len(found.agreements)} runs at other layouts, {len(wrong)} beyond {config.tolerance:g}")
    dist.destroy_process_group()
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
