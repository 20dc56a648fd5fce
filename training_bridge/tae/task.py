"""The autoencoder's part of a training run: its model, its loss, and what is said of held-out samples."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training_bridge.draws import generator
from training_bridge.index import Shape
from training_bridge.plan import Sample
from training_bridge.tae import losses, measures
from training_bridge.tae.encoder import export, to_network, to_pixels
from training_bridge.tae.losses import Discriminator, LossConfig, Lpips
from training_bridge.tae.model import SIZES, Decoder, Encoder, ModelConfig, ResBlock
from training_bridge.tae.normalisation import normalise
from training_bridge.tae.weights import load_image_weights

if TYPE_CHECKING:
    from training_bridge.layout import Layout, Meshes
    from training_bridge.loader import Batch

PICTURES = 4
"""Samples side by side in a film of reconstructions."""
LEAST_JUDGED = 32
"""Shortest side of what the discriminator sees."""
PROBE = 64
"""Side of the frame that the discriminator sees while it does not yet learn."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TaeConfig:
    """Settings of the autoencoder and its training."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    size: Literal["tiny", "full"] = "full"
    model: ModelConfig | None = None
    """An architecture of its own, instead of a named size."""
    activation_checkpointing: bool = False
    """Residual blocks are computed again for the backward pass, and only their inputs kept."""
    image_weights: str | None = None
    """A published image autoencoder to start from: a `.safetensors` or `.pt` file of diffusers' AutoencoderKL."""
    losses: LossConfig = field(default_factory=LossConfig)
    weight_decay: float = 0.0
    discriminator_lr_scale: float = 1.0
    rfvd_extractor: str | None = None
    """A TorchScript file that turns videos (B, 3, T, H, W) in [-1, 1] into features (B, D): validation then says rFVD."""

    @property
    def architecture(self) -> ModelConfig:
        """The model's settings, all told."""
        return replace(self.model or SIZES[self.size], checkpoint=self.activation_checkpointing)


@dataclass(frozen=True)
class Noise:
    """Draws the posterior's noise of a sample, in the loader's workers."""

    config: ModelConfig

    def __call__(self, seed: int, sample: Sample, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
        """`noise` (C, T, H, W) of the latents of `pixels` (3, T', H', W')."""
        _, frames, height, width = shapes["pixels"]
        side = self.config.pixels_per_latent
        shape = (self.config.latent_channels, self.config.latent_frames(frames), height // side, width // side)
        rng = generator(seed, sample.identity, sample.visit, "noise")
        return {"noise": rng.standard_normal(shape, np.float32)}


class TaeTask:
    """What the training loop asks for; the model has `encoder`, `decoder` and, where it has weight, `discriminator`."""

    name = "tae"
    averaged = ("encoder.", "decoder.")

    def __init__(self, config: TaeConfig) -> None:
        """Loads the networks that only measure. Raises ValueError where a file of theirs is not what it should be."""
        self.config, self.architecture = config, config.architecture
        self.draw = Noise(self.architecture)
        self.rfvd = measures.Rfvd(config.rfvd_extractor) if config.rfvd_extractor else None
        own = config.losses
        self.lpips = Lpips(own.vgg_weights, own.lpips_weights) if own.vgg_weights and own.lpips_weights else None
        self._flops: dict[Shape, float] = {}

    def check(self, shapes: Sequence[Shape]) -> None:
        """Raises ValueError for sides that are no multiple of 8 or too short to be measured or judged."""
        least = LEAST_JUDGED if self.config.losses.adversarial else measures.WINDOW
        for shape in shapes:
            side = self.architecture.pixels_per_latent
            if shape.height % side or shape.width % side or min(shape.height, shape.width) < least:
                raise ValueError(f"{shape}: the autoencoder takes sides that are multiples of {side}, {least} pixels at least")

    def build(self) -> nn.ModuleDict:
        """The parts. Raises ValueError where the image weights do not fit."""
        encoder, decoder = Encoder(self.architecture), Decoder(self.architecture)
        if (path := self.config.image_weights) and (new := load_image_weights(encoder, decoder, path)):
            log.warning("%s has other latent channels: these layers start anew: %s", path, ", ".join(new))
        model = nn.ModuleDict({"encoder": encoder, "decoder": decoder})
        if self.config.losses.adversarial:
            model["discriminator"] = Discriminator(self.config.losses.discriminator_width)
        return model

    def blocks(self, model: nn.ModuleDict) -> Iterator[nn.Module]:
        """What is sharded on its own."""
        for part in (model["encoder"], model["decoder"]):
            assert isinstance(part, Encoder | Decoder)
            yield from (layer for level in part.levels for layer in level.children() if isinstance(layer, ResBlock))
            yield part.middle

    def parallelize(self, model: nn.ModuleDict, layout: "Layout", meshes: "Meshes | None") -> None:
        """Raises ValueError for a layout that splits samples or matrices: an autoencoder's ranks see different samples."""
        if layout.context * layout.tensor > 1:
            raise ValueError(f"the autoencoder takes context 1 and tensor 1, not {layout.context} and {layout.tensor}")

    def groups(self, model: nn.ModuleDict) -> list[dict[str, Any]]:
        """One for the autoencoder, one for the discriminator."""
        both = [*model["encoder"].parameters(), *model["decoder"].parameters()]
        groups = [{"params": both, "weight_decay": self.config.weight_decay, "lr_scale": 1.0}]
        if "discriminator" in model:
            own = list(model["discriminator"].parameters())
            groups.append({"params": own, "weight_decay": 0.0, "lr_scale": self.config.discriminator_lr_scale})
        return groups

    def loss(self, model: nn.ModuleDict, batch: "Batch", step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over samples of weight x loss, and of each loss by itself before its own weight."""
        target = to_network(batch.tensors["pixels"])
        mean, logvar = model["encoder"](target)
        z = mean + torch.exp(0.5 * logvar) * batch.draws["noise"]
        x = model["decoder"](z, target.shape[2])
        with torch.autocast(x.device.type, enabled=False):
            each = self._losses(x, target, mean, logvar)
        if self.config.losses.adversarial:
            each |= self._judged(model["discriminator"], x, target, batch.weights, step)
        parts = {name: (batch.weights * value).sum() for name, value in each.items()}
        scales = {**vars(self.config.losses), "discriminator": 1.0}
        total = torch.stack([scales[name] * value for name, value in parts.items()]).sum()
        return total, parts

    def _losses(self, x: Tensor, target: Tensor, mean: Tensor, logvar: Tensor) -> dict[str, Tensor]:
        """Per sample, by the names of their weights in the config."""
        own = self.config.losses
        each: dict[str, Tensor] = {}
        if own.l1:
            each["l1"] = losses.l1(x, target)
        if own.perceptual:
            each["perceptual"] = self._perceptual(x, target)
        if own.kl:
            each["kl"] = losses.kl(mean, logvar)
        if own.outlier:
            each["outlier"] = losses.outlier(mean)
        return each

    def _judged(self, discriminator: nn.Module, x: Tensor, target: Tensor, weights: Tensor, step: int) -> dict[str, Tensor]:
        """What the discriminator says, and its own loss."""
        if step >= self.config.losses.adversarial_start:
            generator, own = losses.adversarial(discriminator, x, target, weights)
            return {"adversarial": generator, "discriminator": own}
        # Its gradients are zeros from the first step on, so that all steps and checkpoints are alike.
        score = discriminator(target[:1, :, :1, :PROBE, :PROBE]).float().mean()
        return {"discriminator": (0.0 * score).expand(len(weights))}

    def _perceptual(self, x: Tensor, target: Tensor) -> Tensor:
        if self.lpips is None:
            return losses.multiscale(x, target)
        return self.lpips.to(x.device)(x, target)  # type: ignore[no-any-return]

    def validate(self, model: nn.ModuleDict, batch: "Batch") -> dict[str, Tensor]:
        """Sums of weight x measure, of reconstructions from the posterior's mean."""
        x, target = self._reconstructed(model, batch)
        with torch.autocast(x.device.type, enabled=False):
            found = {"psnr": measures.psnr(x, target), "ssim": measures.ssim(x, target), "l1": losses.l1(x, target)}
            if self.lpips is not None:
                found["lpips"] = self._perceptual(x.clamp(-1, 1), target)
            if self.rfvd is not None and x.shape[2] > 1:
                real = batch.weights > 0
                self.rfvd.add(x[real], target[real])
        return {name: (batch.weights * value).sum() for name, value in found.items()}

    def validated(self, group: dist.ProcessGroup | None) -> dict[str, float]:
        """What is known only after all held-out samples, on all ranks of a gloo group: rFVD where it is asked for."""
        return {} if self.rfvd is None else {"rfvd": self.rfvd.value(group)}

    def _reconstructed(self, model: nn.ModuleDict, batch: "Batch") -> tuple[Tensor, Tensor]:
        target = to_network(batch.tensors["pixels"])
        mean, _ = model["encoder"](target)
        return model["decoder"](mean, target.shape[2]), target

    def pictures(self, model: nn.ModuleDict, batch: "Batch") -> dict[str, Tensor]:
        """A film of some samples side by side, each above its reconstruction."""
        x, target = self._reconstructed(model, batch)
        rows = [to_pixels(row[:PICTURES]).permute(2, 3, 0, 4, 1).flatten(2, 3) for row in (target, x)]
        return {"reconstruction": torch.cat(rows, dim=1)}

    def flops(self, shape: Shape) -> float:
        """Of encoder and decoder for one sample: forward, and backward twice that. Counted on tensors without memory."""
        if shape not in self._flops:
            with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
                mean, _ = Encoder(self.architecture)(torch.empty(1, 3, shape.frames, shape.height, shape.width))
                Decoder(self.architecture)(mean, shape.frames)
            self._flops[shape] = 3.0 * counter.get_total_flops()
        return self._flops[shape]

    def fingerprint(self) -> dict[str, Any]:
        """A checkpoint is of this architecture, with a discriminator or without."""
        width = self.config.losses.discriminator_width if self.config.losses.adversarial else 0
        return {"architecture": json.dumps(self.architecture.architecture(), sort_keys=True), "discriminator_width": width}

    grows = ()

    def grow(self, weights: dict[str, Tensor], moments: Sequence[dict[str, Tensor]]) -> None:
        """Nothing of it may be of another shape."""

    @torch.no_grad()
    def export(self, model: nn.ModuleDict, batches: Iterable["Batch"], path: str) -> None:
        """Measure the latents' normalisation over batches of the training set, and write the autoencoder's file."""
        encoder, decoder = model["encoder"], model["decoder"]
        assert isinstance(encoder, Encoder) and isinstance(decoder, Decoder)
        normalise(encoder, (encoder(to_network(batch.tensors["pixels"]))[0] for batch in batches))
        export(encoder, decoder, path)
