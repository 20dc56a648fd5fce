"""An image autoencoder as diffusers' AutoencoderKL is, written again from its layer names, to compare with and to load from."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, inputs, 1e-6), nn.GroupNorm(groups, outputs, 1e-6)
        self.conv1, self.conv2 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.conv_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return y + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attend(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, 1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.group_norm(x).flatten(2).transpose(1, 2)
        weights = torch.softmax(self.to_q(y) @ self.to_k(y).transpose(1, 2) / y.shape[2] ** 0.5, dim=-1)
        return x + self.to_out[0](weights @ self.to_v(y)).transpose(1, 2).view_as(x)


class Part(nn.Module):
    """The encoder, or with `up` the decoder."""

    def __init__(self, up: bool, latent: int, channels: tuple[int, ...], blocks: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.up = up
        ends = (latent, 3) if up else (3, 2 * latent)
        levels = list(zip(channels, blocks, strict=True))[:: -1 if up else 1]
        width = levels[0][0]
        self.conv_in = nn.Conv2d(ends[0], width, 3, padding=1)
        stages = []
        for number, (outputs, count) in enumerate(levels):
            stage = nn.Module()
            stage.resnets = nn.ModuleList([Block(width if n == 0 else outputs, outputs, groups) for n in range(count)])
            width = outputs
            if number < len(levels) - 1:
                step = nn.Module()
                step.conv = nn.Conv2d(width, width, 3, stride=1 if up else 2, padding=1 if up else 0)
                setattr(stage, "upsamplers" if up else "downsamplers", nn.ModuleList([step]))
            stages.append(stage)
        setattr(self, "up_blocks" if up else "down_blocks", nn.ModuleList(stages))
        self.mid_block = nn.Module()
        deepest = channels[-1]
        self.mid_block.resnets = nn.ModuleList([Block(deepest, deepest, groups) for _ in range(2)])
        self.mid_block.attentions = nn.ModuleList([Attend(deepest, groups)])
        self.conv_norm_out = nn.GroupNorm(groups, width, 1e-6)
        self.conv_out = nn.Conv2d(width, ends[1], 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        first, second = self.mid_block.resnets
        return second(self.mid_block.attentions[0](first(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        if self.up:
            x = self.middle(x)
        for stage in self.up_blocks if self.up else self.down_blocks:
            for block in stage.resnets:
                x = block(x)
            if hasattr(stage, "downsamplers"):
                x = stage.downsamplers[0].conv(F.pad(x, (0, 1, 0, 1)))
            if hasattr(stage, "upsamplers"):
                x = stage.upsamplers[0].conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        if not self.up:
            x = self.middle(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class ImageVae(nn.Module):
    def __init__(
        self,
        latent: int = 4,
        channels: tuple[int, ...] = (8, 16, 16, 24),
        blocks: tuple[int, ...] = (1, 1, 2, 1),
        groups: int = 4,
        quant: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = Part(False, latent, channels, blocks, groups)
        self.decoder = Part(True, latent, channels, tuple(count + 1 for count in blocks), groups)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if quant else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if quant else nn.Identity()

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))
