"""What the autoencoder is trained with: each loss a mean over a sample's own elements, one value a sample (B,).

Means, not LDM's sums, so that weights do not depend on resolution, length or batch. Pixels are x_BCTHW in [-1, 1], latents
z_BCTHW. All is computed in fp32.

The paper's outlier weight, 1e5, stands beside an L1 that is *summed* over a frame: over 3 x 256 x 256 = 196,608 values it
weighs as much as 1e5 / 196,608 = 0.51 beside a mean. Hence our default of 0.5. In the same way LDM's KL weight of 1e-6 on
sums (16 latent values for 1,536 pixel values) is 1e-8 on means; our default is stronger, because flow models prefer latents
without far outliers, and is still too weak to be seen in PSNR.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training_bridge.tae.weights import read_pt, shortly

RADIUS = 3.0
"""r of the outlier penalty: how many standard deviations are free."""
LPIPS_LAYERS = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}
"""Of torchvision's `vgg16().features`: the last ReLU of each resolution, and its channels."""
VGG = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
"""Convolutions' channels; 0 is a pooling."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the losses; one of weight 0 is not computed."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    l1: float = 1.0
    perceptual: float = 1.0
    """Of LPIPS where its weights are given, else of `multiscale`."""
    kl: float = 1e-6
    outlier: float = 0.5
    adversarial: float = 0.0
    """Fixed; 0: no discriminator is built. LDM's is 0.5."""
    adversarial_start: int = 50_000
    """The step from which the discriminator learns and is listened to."""
    discriminator_width: int = 64
    vgg_weights: str | None = None
    """torchvision's `vgg16-397923af.pth`; with `lpips_weights`, the perceptual loss and the LPIPS measure are LPIPS."""
    lpips_weights: str | None = None
    """The linear layers of the `lpips` package, version 0.1: its `weights/v0.1/vgg.pth`."""

    def __post_init__(self) -> None:
        if (self.vgg_weights is None) != (self.lpips_weights is None):
            raise ValueError("LPIPS needs both losses.vgg_weights and losses.lpips_weights")


def l1(x_BCTHW: Tensor, target_BCTHW: Tensor) -> Tensor:
    """Mean absolute difference."""
    return (x_BCTHW - target_BCTHW).abs().mean(dim=(1, 2, 3, 4))


def kl(mean_BCTHW: Tensor, logvar_BCTHW: Tensor) -> Tensor:
    """Divergence of the posterior from N(0, 1), mean over latent elements, in nats."""
    each = 0.5 * (mean_BCTHW.square() + logvar_BCTHW.exp() - 1 - logvar_BCTHW)
    return each.mean(dim=(1, 2, 3, 4))


def outlier(z_BCTHW: Tensor, radius: float = RADIUS) -> Tensor:
    """Movie Gen's outlier penalty: latent dots that decode to bright spots.

    For each frame X (C, H, W), with mean and standard deviation over its H x W positions for each channel, and Euclidean
    norms over channels: the mean over positions of max(||X_ij - Mean(X)|| - r ||Std(X)||, 0); frames count as samples of
    the batch. On a plane of n positions a single dot is sqrt(n) standard deviations away at most: below 4 x 4 there are none.
    """
    z_NCP = z_BCTHW.transpose(1, 2).flatten(0, 1).flatten(2)
    away_NCP = z_NCP - z_NCP.mean(dim=2, keepdim=True)
    spread_N = torch.linalg.vector_norm(away_NCP, dim=(1, 2)) / away_NCP.shape[2] ** 0.5  # ||Std||, without 0 / 0 when flat
    over_NP = F.relu(torch.linalg.vector_norm(away_NCP, dim=1) - radius * spread_N[:, None])
    return per_sample(over_NP.mean(dim=1), z_BCTHW)


def per_sample(values_N: Tensor, x_BCTHW: Tensor) -> Tensor:
    """Means over the frames of each sample."""
    return values_N.view(x_BCTHW.shape[0], -1).mean(dim=1)


def multiscale(x_BCTHW: Tensor, target_BCTHW: Tensor, scales: int = 4) -> Tensor:
    """A perceptual loss without weights: mean absolute difference of the two pictures' horizontal and vertical gradients, at
    full size and, by pooling, at 1/2, 1/4 and 1/8, averaged over directions and scales. It asks for edges in their places,
    where L1 alone is content with blur.
    """
    difference_NCHW = (x_BCTHW - target_BCTHW).transpose(1, 2).flatten(0, 1)
    total = difference_NCHW.new_zeros(len(difference_NCHW))
    for scale in range(scales):
        if scale:
            difference_NCHW = F.avg_pool2d(difference_NCHW, 2)
        for dim in (2, 3):
            if difference_NCHW.shape[dim] > 1:
                total = total + difference_NCHW.diff(dim=dim).abs().mean(dim=(1, 2, 3)) / (2 * scales)
    return per_sample(total, x_BCTHW)


class Lpips(nn.Module):
    """The published perceptual distance (Zhang et al. 2018, version 0.1): VGG16's features, unit length, weighted."""

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg_weights: str, lpips_weights: str) -> None:
        """Raises ValueError where a file is not of the published layout."""
        super().__init__()
        self.features, width = nn.Sequential(), 3
        for channels in VGG:
            if channels:
                self.features += nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), nn.ReLU())
                width = channels
            else:
                self.features.append(nn.MaxPool2d(2))
        self.heads = nn.ParameterList([nn.Parameter(torch.empty(1, c, 1, 1)) for c in LPIPS_LAYERS.values()])
        trunk = {k.removeprefix("features."): v for k, v in read_pt(vgg_weights).items() if k.startswith("features.")}
        heads = {k.removeprefix("lin").split(".")[0]: v for k, v in read_pt(lpips_weights).items() if k.startswith("lin")}
        for module, tensors, path in ((self.features, trunk, vgg_weights), (self.heads, heads, lpips_weights)):
            try:
                module.load_state_dict(tensors)
            except RuntimeError as error:
                raise ValueError(f"{path!r} is not of the published layout: {shortly(error)}") from error
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))
        self.requires_grad_(False)

    def forward(self, x_BCTHW: Tensor, target_BCTHW: Tensor) -> Tensor:
        """Mean over the frames of each sample (B,)."""
        ours, theirs = (x.transpose(1, 2).flatten(0, 1).sub(self.shift).div(self.scale) for x in (x_BCTHW, target_BCTHW))
        total = ours.new_zeros(len(ours))
        for number, layer in enumerate(self.features):
            ours, theirs = layer(ours), layer(theirs)
            if number in LPIPS_LAYERS:
                head = self.heads[list(LPIPS_LAYERS).index(number)]
                total = total + (head * (unit(ours) - unit(theirs)).square()).sum(dim=1).mean(dim=(1, 2))
        return per_sample(total, x_BCTHW)


def unit(x_NCHW: Tensor) -> Tensor:
    """Of length 1 over the channels."""
    return x_NCHW / (x_NCHW.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


class Discriminator(nn.Module):
    """PatchGAN (pix2pix's, three strides) over each frame, with a temporal convolution after each spatial one.

    Groups take the place of batch norm: what it says of a video does not depend on the others in its batch.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.space, self.time, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        sizes = [3, width, 2 * width, 4 * width, 8 * width, 1]
        for layer, (inputs, outputs) in enumerate(pairwise(sizes)):
            normed = 0 < layer < 4  # and then a bias before it would do nothing
            self.space.append(nn.Conv2d(inputs, outputs, 4, stride=2 if layer < 3 else 1, padding=1, bias=not normed))
            self.time.append(nn.Conv3d(outputs, outputs, (3, 1, 1), padding=(1, 0, 0), padding_mode="replicate"))
            self.norms.append(nn.GroupNorm(min(32, outputs), outputs) if normed else nn.Identity())

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Scores of patches (B, 1, T, h, w), high for what looks real. Frames are 32 pixels or more."""
        B = x_BCTHW.shape[0]
        for layer, (space, time, norm) in enumerate(zip(self.space, self.time, self.norms, strict=True)):
            x_NCHW = space(x_BCTHW.transpose(1, 2).flatten(0, 1))
            x_BCTHW = time(norm(x_NCHW).unflatten(0, (B, -1)).transpose(1, 2))
            if layer < 4:
                x_BCTHW = F.leaky_relu(x_BCTHW, 0.2)
        return x_BCTHW


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss of scores, per sample."""
    return 0.5 * (F.relu(1 - real) + F.relu(1 + fake)).flatten(1).mean(dim=1)


def adversarial(discriminator: nn.Module, x_BCTHW: Tensor, target_BCTHW: Tensor, weights_B: Tensor) -> tuple[Tensor, Tensor]:
    """The generator's and the discriminator's losses, per sample, so that one backward pass serves both.

    The generator's is -D(x), whose gradient is taken here by itself: `autograd.grad` leaves nothing in the discriminator's
    gradients, and what is returned has that value and that gradient for x alone. The discriminator's own sees no x.
    """
    leaf = x_BCTHW.detach().requires_grad_()
    score_B = -discriminator(leaf).float().flatten(1).mean(dim=1)
    (pull,) = torch.autograd.grad((score_B * (weights_B != 0)).sum(), leaf)
    steered_B = (x_BCTHW * pull).flatten(1).sum(dim=1)
    generator_B = score_B.detach() + steered_B - steered_B.detach()
    real, fake = discriminator(torch.cat([target_BCTHW, x_BCTHW.detach()])).float().chunk(2)
    return generator_B, hinge(real, fake)
