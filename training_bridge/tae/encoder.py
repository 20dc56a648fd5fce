"""A finished autoencoder in one file, to encode videos to latents and to decode them again.

The file is what `torch.save` writes of plain values and tensors: the architecture, and the weights of encoder and decoder
with the latents' normalisation. Pixels are RGB in full range, uint8; the network sees 2 x / 255 - 1.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training_bridge.tae import tiling
from training_bridge.tae.model import Decoder, Encoder, ModelConfig
from training_bridge.tae.weights import load_plain, shortly

FORMAT = "reelset-tae-1"


def to_network(pixels: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(x: Tensor) -> Tensor:
    """[-1, 1] to uint8, rounded and clipped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def export(encoder: Encoder, decoder: Decoder, path: str) -> None:
    """Write an autoencoder's file: its present weights, in fp32."""
    parts = {"encoder": encoder.state_dict(), "decoder": decoder.state_dict()}
    state = {f"{part}.{key}": value.detach().float().cpu() for part, own in parts.items() for key, value in own.items()}
    torch.save({"format": FORMAT, "config": encoder.config.architecture(), "state": state}, path)


def load(path: str, settings: Mapping[str, Any] | None = None) -> tuple[Encoder, Decoder]:
    """The autoencoder of a file; `settings` are those of `ModelConfig` that are no architecture.

    Raises ValueError where the file is another thing, or its weights are not of the architecture it names.
    """
    saved = load_plain(path)
    if saved.get("format") != FORMAT:
        raise ValueError(f"{path!r} is no autoencoder of this version: its format is {saved.get('format')!r}, not {FORMAT!r}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in saved["config"].items()}
    try:
        config = ModelConfig(**values, **(settings or {}))
    except TypeError as error:
        raise ValueError(f"{path!r} is of another architecture: {error}") from error
    encoder, decoder = Encoder(config), Decoder(config)
    for name, part in (("encoder", encoder), ("decoder", decoder)):
        own = {k.removeprefix(f"{name}."): v for k, v in saved["state"].items() if k.startswith(f"{name}.")}
        try:
            part.load_state_dict(own, assign=True)
        except RuntimeError as error:
            raise ValueError(f"{path!r} is of another architecture: {shortly(error)}") from error
        part.eval().requires_grad_(False)
    return encoder, decoder


def fingerprint(encoder: Encoder, tiles: tiling.Tiling) -> str:
    """32 hexadecimal digits of all that decides latents: architecture, weights, normalisation, scaling of pixels, tiles.

    The decoder is no part of it, and neither are device and precision.
    """
    digest = sha256(json.dumps([FORMAT, encoder.config.architecture(), tiles.tile_frames], sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\0".encode())
        digest.update(memoryview(value.detach().float().cpu().contiguous().numpy()).cast("B"))
    return digest.hexdigest()[:32]


class TaeEncoder:
    """What encodes a dataset once, and decodes what a flow model makes; may be pickled before `open`."""

    def __init__(self, path: str, device: str = "auto", tiles: tiling.Tiling | None = None) -> None:
        """Reads the file to know its fingerprint. `device` "auto" is the GPU where there is one.

        Raises ValueError where the file is no autoencoder.
        """
        self.path, self.device = path, device
        encoder, _ = load(path)
        self.tiles = tiles or tiling.Tiling(frames_per_latent=encoder.config.frames_per_latent)
        self.fingerprint = fingerprint(encoder, self.tiles)
        self.channels = encoder.config.latent_channels

    def open(self) -> None:
        """Load the weights on the device: bf16 on a GPU, fp32 on a CPU. The normalisation stays in fp32."""
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        self.on = torch.device(name)
        self.dtype = torch.bfloat16 if self.on.type == "cuda" else torch.float32
        self.encoder, self.decoder = load(self.path)
        self.shift, self.scale = (v.to(self.on).view(-1, 1, 1, 1) for v in (self.encoder.shift, self.encoder.scale))
        for part in (self.encoder, self.decoder):
            part.to(device=self.on, dtype=self.dtype)

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels (3, T, H, W) to normalised latents (C, ceil(T / 8), H / 8, W / 8): the posterior's mean."""
        parts = list(
            self.encode_stream(
                pixels[:, i : i + self.tiles.tile_frames] for i in range(0, pixels.shape[1], self.tiles.tile_frames)
            )
        )
        return np.concatenate(parts, axis=1)

    def encode_stream(self, pieces: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """The same of a video that comes in pieces (3, T, H, W) of any length; memory does not grow with it."""
        frames = (torch.from_numpy(np.ascontiguousarray(piece))[None].to(self.on) for piece in pieces)
        for z_BCTHW in tiling.encode(self._encode, frames, self.tiles):
            yield z_BCTHW[0].cpu().numpy()

    def decode(self, latents: NDArray[np.float32], frames: int) -> NDArray[np.uint8]:
        """Normalised latents (C, T, H, W) to the `frames` frames (T, H, W, 3) that they are of."""
        return np.concatenate(list(self.decode_stream([latents], frames)))

    def decode_stream(self, pieces: Iterable[NDArray[np.float32]], frames: int) -> Iterator[NDArray[np.uint8]]:
        """The same of latents that come in pieces along time."""
        latents = (torch.from_numpy(np.ascontiguousarray(piece))[None].to(self.on) for piece in pieces)
        for x_BCTHW in tiling.decode(self._decode, latents, frames, self.tiles):
            yield to_pixels(x_BCTHW[0]).permute(1, 2, 3, 0).cpu().numpy()

    @torch.inference_mode()
    def _encode(self, pixels: Tensor) -> Tensor:
        mean, _ = self.encoder(to_network(pixels).to(self.dtype))
        return (mean - self.shift) / self.scale  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _decode(self, z_BCTHW: Tensor, frames: int) -> Tensor:
        return self.decoder((z_BCTHW.float() * self.scale + self.shift).to(self.dtype), frames)  # type: ignore[no-any-return]
