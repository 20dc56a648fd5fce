"""Flow matching: the straight path from noise to latents, and the loss of a model that predicts its velocity.

Latents are normalised by channel, time runs from 0 (noise) to 1 (data). Noise, time and the drop of the text are drawn in the
loader's workers, for samples and not for ranks, so that they are the same in any layout. Movie Gen, section 3.1.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from training_bridge.dit.model import Backbone, grid_of, patchify, time_features
from training_bridge.exchange import own_part

if TYPE_CHECKING:
    from training_bridge.plan import Sample


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The objective."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    sigma_min: float = 1e-5
    """Deviation of the noise that is left at time 1."""
    time_mean: float = 0.0
    time_std: float = 1.0
    """Times are logit-normal: the sigmoid of a normal draw of this mean and deviation."""
    text_drop: float = 0.1
    """How often a sample's text is the empty caption, for guidance. The paper does not say; 10 % is usual."""

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < 1 or self.time_std <= 0 or not 0 <= self.text_drop <= 1:
            raise ValueError(f"0 <= sigma_min < 1, time_std > 0 and 0 <= text_drop <= 1 are wanted, not {self}")


def normalised(latents_BCTHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Latents of mean 0 and deviation 1 in each channel, given those of the autoencoder's latents."""
    return (latents_BCTHW - _channels(mean, latents_BCTHW)) / _channels(std, latents_BCTHW)


def denormalised(latents_BCTHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Latents as the autoencoder decodes them."""
    return latents_BCTHW * _channels(std, latents_BCTHW) + _channels(mean, latents_BCTHW)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    if len(values) != like.shape[1]:
        raise ValueError(f"latents of {like.shape[1]} channels, statistics of {len(values)}: another autoencoder's?")
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1, 1)


def on_path(data: Tensor, noise: Tensor, time_B: Tensor, sigma_min: float) -> Tensor:
    """Where a sample is at its time: t X_1 + (1 - (1 - sigma_min) t) X_0."""
    t = time_B.view(-1, *[1] * (data.ndim - 1))
    return t * data + (1 - (1 - sigma_min) * t) * noise


def velocity(data: Tensor, noise: Tensor, sigma_min: float) -> Tensor:
    """How fast it moves, at any time: X_1 - (1 - sigma_min) X_0."""
    return data - (1 - sigma_min) * noise


def latent_shape(shapes: Mapping[str, tuple[int, ...]], channels: int = 16) -> tuple[int, ...]:
    """(C, T, H, W) of a sample's latents: what is stored, or what the autoencoder makes of its `pixels`."""
    if "latents" in shapes:
        return shapes["latents"]
    _, frames, height, width = shapes["pixels"]
    return channels, -(-frames // 8), height // 8, width // 8


def draw(config: FlowConfig, seed: int, sample: "Sample", shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """A sample's noise (C, T, H, W), time and drop of the text, as NumPy arrays: the same wherever it is drawn."""
    import numpy as np

    from training_bridge.draws import generator

    def of(purpose: str) -> np.random.Generator:
        return generator(seed, sample.identity, sample.visit, purpose)

    normal = config.time_mean + config.time_std * of("time").standard_normal()
    return {
        "noise": of("noise").standard_normal(latent_shape(shapes), dtype=np.float32),
        "time": np.asarray(1 / (1 + np.exp(-normal)), dtype=np.float32),
        "drop": np.asarray(of("drop").random() < config.text_drop),
    }


def sample_losses(
    backbone: Backbone,
    latents_BCTHW: Tensor,
    noise_BCTHW: Tensor,
    time_B: Tensor,
    text_BLD: Tensor,
    mask_BL: Tensor,
    *,
    sigma_min: float,
    rank: int = 0,
    ranks: int = 1,
) -> Tensor:
    """Each sample's mean squared error of the velocity: (B,), in float32.

    Of `ranks` context ranks that have the same samples, each gives the part of its own tokens; their sum is the loss. The
    prediction is never gathered. Raises ValueError where the tokens do not divide.
    """
    x = patchify(on_path(latents_BCTHW, noise_BCTHW, time_B, sigma_min))
    target = patchify(velocity(latents_BCTHW, noise_BCTHW, sigma_min))
    own = own_part(x.shape[1], rank, ranks)
    predicted = backbone(x[:, own], time_features(time_B), text_BLD, mask_BL, grid_of(latents_BCTHW.shape), own.start)
    error: Tensor = (predicted.float() - target[:, own].float()).square().sum((1, 2)) / target[0].numel()
    return error
