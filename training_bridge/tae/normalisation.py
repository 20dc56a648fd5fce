"""The latents' own mean and standard deviation per channel over a training set, and putting them into an encoder.

A flow model starts from N(0, 1), so what it is given should be of that size. Both numbers are part of the encoder: they are
in its state dict and in its hash.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from training_bridge.tae.model import Encoder

SMALLEST = 1e-6
"""A channel whose latents vary less says nothing; dividing by it would only make noise."""


def measured(latents: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (C,) of latents z_BCTHW that come a few at a time, each element counted alike.

    Merged as Chan et al. 1979 do, in fp64: no batch is kept, and no large sum of squares is subtracted from another.
    Raises ValueError where there are none.
    """
    count, mean, square = 0, torch.zeros(0), torch.zeros(0)
    for z_BCTHW in latents:
        z_CN = z_BCTHW.detach().double().cpu().transpose(0, 1).flatten(1)
        n, own = z_CN.shape[1], z_CN.mean(dim=1)
        away = own - mean if count else own
        if not count:
            mean, square = torch.zeros_like(own), torch.zeros_like(own)
        square = square + (z_CN - own[:, None]).square().sum(dim=1) + away.square() * (count * n / (count + n))
        mean, count = mean + away * (n / (count + n)), count + n
    if not count:
        raise ValueError("no latents to measure")
    return mean.float(), (square / count).sqrt().float()


def normalise(encoder: Encoder, latents: Iterable[Tensor]) -> None:
    """Measure latents, as `encoder` itself returned them (its means), and let it keep the numbers.

    Raises ValueError where a channel does not vary.
    """
    shift, scale = measured(latents)
    if flat := [str(c) for c, value in enumerate(scale.tolist()) if value < SMALLEST]:
        raise ValueError(f"latent channels {', '.join(flat)} do not vary over the training set")
    with torch.no_grad():
        encoder.shift.copy_(shift)
        encoder.scale.copy_(scale)
