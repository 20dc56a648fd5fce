"""Sampling: Euler's steps along the learned velocity, from noise to latents, by the linear-quadratic schedule.

The paper found Euler better than midpoint and Dormand-Prince, and 50 steps of this schedule as good as 250 even ones
(section 3.4.2): early steps are short because there each block changes its input most.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from training_bridge.dit.model import Backbone, Grid, check_grid, grid_of, patchify, time_features, unpatchify

Velocity = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How samples are drawn."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    steps: int = 50
    emulated: int = 250
    """Even steps whose first ones the first half takes; equal to `steps`: all steps are even."""
    guidance: float = 7.5
    """How far to go from the prediction without text to the one with it, and beyond; 1: no guidance."""

    def __post_init__(self) -> None:
        if not 2 <= self.steps <= self.emulated:
            raise ValueError(f"2 <= steps <= emulated is wanted, not {self.steps} and {self.emulated}")


def linear_quadratic(steps: int, emulated: int) -> list[float]:
    """The `steps` + 1 times of a schedule from 0 to 1.

    The first half are those of `emulated` even steps; the rest lies on a parabola that goes on from there without a kink
    and ends at 1. (Closed form: Genmo's Mochi.)
    """
    linear = steps // 2
    rest, joint = steps - linear, linear / emulated
    surplus = linear - joint * steps
    a, b, c = surplus / (linear * rest**2), joint / linear - 2 * surplus / rest**2, surplus * linear / rest**2
    times = [i / emulated for i in range(linear)]
    return [*times, *(a * i * i + b * i + c for i in range(linear, steps)), 1.0]


def euler(velocity: Velocity, noise: Tensor, times: Sequence[float]) -> Tensor:
    """Follow a velocity from noise at the first time to the last."""
    x = noise
    for now, then in itertools.pairwise(times):
        x = x + (then - now) * velocity(x, now)
    return x


def noise(seed: int, number: int, shape: Sequence[int]) -> Tensor:
    """The noise (C, T, H, W) that sample `number` of a seed starts from: the same on every device."""
    from training_bridge.draws import generator

    return torch.from_numpy(generator(seed, str(number), 0, "sampling").standard_normal(tuple(shape), dtype="float32"))


def guided(
    backbone: Backbone, text_BLD: Tensor, mask_BL: Tensor, null_LD: Tensor, null_mask_L: Tensor, guidance: float
) -> Velocity:
    """The velocity of latents (B, C, T, H, W) for their texts, by classifier-free guidance.

    `null` is the empty caption, as long as the texts. With guidance the batch is twice as large.
    """
    both = guidance != 1
    if both:
        text_BLD = torch.cat([text_BLD, null_LD.expand_as(text_BLD)])
        mask_BL = torch.cat([mask_BL, null_mask_L.expand_as(mask_BL)])

    def velocity(x_BCTHW: Tensor, time: float) -> Tensor:
        patches, grid = patchify(x_BCTHW), grid_of(x_BCTHW.shape)
        patches = torch.cat([patches, patches]) if both else patches
        features = time_features(torch.full((len(patches),), time, device=patches.device))
        v = backbone(patches, features, text_BLD, mask_BL, grid).float()
        if both:
            with_text, without = v.chunk(2)
            v = without + guidance * (with_text - without)
        return unpatchify(v, grid)

    return velocity


@torch.no_grad()
def sample(
    backbone: Backbone,
    text_BLD: Tensor,
    mask_BL: Tensor,
    null_LD: Tensor,
    null_mask_L: Tensor,
    *,
    grid: Grid,
    seed: int,
    config: SamplerConfig,
    first: int = 0,
) -> Tensor:
    """Normalised latents (B, C, T, H, W) of these texts, B samples of a seed from number `first` on.

    Sample n is the same in any batch, but for the rounding of matrix products. Raises ValueError where the position tables are
    too short for `grid`.
    """
    check_grid(backbone.config, grid)
    shape = (backbone.config.channels, grid[0], 2 * grid[1], 2 * grid[2])
    start = torch.stack([noise(seed, first + i, shape) for i in range(len(text_BLD))]).to(text_BLD.device)
    velocity = guided(backbone, text_BLD, mask_BL, null_LD, null_mask_L, config.guidance)
    return euler(velocity, start, linear_quadratic(config.steps, config.emulated))
