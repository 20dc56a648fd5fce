"""A fixed transform of blocks of pixels to a few numbers and back: what goes round the layers of a small autoencoder.

Shapes: B batch, C channels, T frames, H height, W width; pixels x_BCTHW, latents z_BCTHW.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cosines(nn.Module):
    """The low frequencies of each block of pixels that becomes one latent, as many as there are latent channels.

    An orthonormal cosine transform in time, height and width, of brightness and two colour differences; which
    frequencies: those that are strongest where neighbours are alike, brightness before colour. Nothing in it is learned.
    """

    basis: Tensor

    def __init__(self, channels: int, frames: int, pixels: int) -> None:
        super().__init__()
        size = (frames, pixels, pixels)
        colours = F.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]))
        waves = [cosines(n) for n in size]
        order = sorted(product(range(3), *map(range, size)), key=falling)[:channels]
        rows = [torch.einsum("c,t,h,w->cthw", colours[c], *(w[k] for w, k in zip(waves, f, strict=True))) for c, *f in order]
        self.register_buffer("basis", torch.stack(rows), persistent=False)
        self.size, self.gain = size, float(pixels)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Pixels to latents; the last frame is repeated to fill its block."""
        if more := -x_BCTHW.shape[2] % self.size[0]:
            x_BCTHW = torch.cat([x_BCTHW, x_BCTHW[:, :, -1:].expand(-1, -1, more, -1, -1)], dim=2)
        return F.conv3d(x_BCTHW, self.basis.to(x_BCTHW.dtype), stride=self.size) / self.gain

    def back(self, z_BCTHW: Tensor, frames: int) -> Tensor:
        """Latents to pixels."""
        x_BCTHW = F.conv_transpose3d(z_BCTHW * self.gain, self.basis.to(z_BCTHW.dtype), stride=self.size)
        return x_BCTHW[:, :, :frames]


def cosines(n: int) -> Tensor:
    """The orthonormal DCT-II of length n: rows are frequencies."""
    at = torch.arange(n, dtype=torch.float64)
    rows: Tensor = torch.cos(torch.pi * (2 * at[None] + 1) * at[:, None] / (2 * n)) * (2 / n) ** 0.5
    rows[0] /= 2**0.5
    return rows.float()


def falling(frequency: tuple[int, ...]) -> tuple[float, tuple[int, ...]]:
    """Order of (colour, time, height, width): by a power that falls with the square of each; ties as they come."""
    colour, time, height, width = frequency
    return (8.0 + colour if colour else 1.0) * (1 + 2 * time**2) * (1 + height**2) * (1 + width**2), frequency
