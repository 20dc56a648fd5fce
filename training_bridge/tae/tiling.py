"""Whole videos through an autoencoder in tiles along time, with memory that does not grow with their length.

Movie Gen's way: the encoder takes 32 frames at a time without overlap; the decoder takes as many, and each tile begins 16
frames (2 latent frames) before the last one ends. In the overlap of N frames, frame j of 0 ... N - 1 is (1 - j / N) x the
earlier tile + j / N x the later one: the first frame is all of the earlier tile, and the first frame after the overlap
would be j = N, all of the later one. The paper prints the weights the other way round, which jumps at both ends.

Frames and latents have time in dimension 2: (B, C, T, H, W). What encodes and decodes is any callable.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Decode = Callable[[Tensor, int], Tensor]
"""Latents and how many frames they are of, to frames."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """Sizes of tiles, in frames."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    tile_frames: int = 32
    overlap_frames: int = 16
    """Of the decoder's tiles; at most half a tile, so that a frame lies in two at most."""
    frames_per_latent: int = 8

    def __post_init__(self) -> None:
        sizes = (self.tile_frames, self.overlap_frames)
        if (
            any(n % self.frames_per_latent for n in sizes)
            or not 0 <= 2 * self.overlap_frames <= self.tile_frames
            or not sizes[0]
        ):
            raise ValueError(
                f"tiles of {self.tile_frames} frames and an overlap of {self.overlap_frames}: both are multiples of "
                f"{self.frames_per_latent}, and the overlap is at most half a tile"
            )


def encode(encoder: Callable[[Tensor], Tensor], frames: Iterable[Tensor], tiling: Tiling | None = None) -> Iterator[Tensor]:
    """Latents of a video that comes in pieces of any length, one piece a tile."""
    tiling = tiling or Tiling()
    for tile in pieces(frames, tiling.tile_frames):
        yield encoder(tile)


def decode(decoder: Decode, latents: Iterable[Tensor], frames: int, tiling: Tiling | None = None) -> Iterator[Tensor]:
    """The `frames` frames of latents that come in pieces of any length, in pieces that are final.

    Raises ValueError where the latents are more or fewer than so many frames have.
    """
    tiling = tiling or Tiling()
    each, over = tiling.frames_per_latent, tiling.overlap_frames
    size, stride = tiling.tile_frames // each, (tiling.tile_frames - over) // each
    T, stream, held, tail = -(-frames // each), iter(latents), None, None
    for start in range(0, max(T - size, 0) + stride, stride):
        last = start + size >= T
        held = filled(held, stream, min(size, T - start))
        x = decoder(held[:, :, :size], frames - start * each if last else tiling.tile_frames)
        held = held[:, :, stride:].clone()
        if tail is not None:
            x = torch.cat([blended(tail, x[:, :, :over]), x[:, :, over:]], dim=2)
        keep = x.shape[2] - (0 if last else over)
        yield x[:, :, :keep]
        tail = x[:, :, keep:].clone()
    if next(stream, None) is not None:
        raise ValueError(f"{frames} frames have {T} latent frames, and there are more")


def filled(held: Tensor | None, stream: Iterator[Tensor], size: int) -> Tensor:
    """`held` and what comes after it, at least `size` long. Raises ValueError where the stream ends before."""
    parts = [] if held is None else [held]
    while (have := sum(part.shape[2] for part in parts)) < size:
        if (part := next(stream, None)) is None:
            raise ValueError(f"the latents end {size - have} latent frames early")
        parts.append(part)
    return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def blended(earlier: Tensor, later: Tensor) -> Tensor:
    """Frame j of N: the later tile weighs j / N."""
    N = earlier.shape[2]
    weight = (torch.arange(N, device=earlier.device, dtype=torch.float32) / N).view(1, 1, N, 1, 1)
    return torch.lerp(earlier.float(), later.float(), weight).to(earlier.dtype)


def pieces(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same stream in pieces of `size` in time; the last may be shorter."""
    held: list[Tensor] = []
    for part in parts:
        held.append(part)
        while sum(p.shape[2] for p in held) >= size:
            whole = torch.cat(held, dim=2) if len(held) > 1 else held[0]
            yield whole[:, :, :size]
            held = [whole[:, :, size:].clone()] if whole.shape[2] > size else []
    if held:
        yield torch.cat(held, dim=2)
