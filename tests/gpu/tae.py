"""The full-size autoencoder on one GPU: `python tests/gpu/tae.py`. It needs torch 2.11 and nothing else, and makes its input.

Prints one JSON line a measurement: encoding and decoding 768 x 768 x 256 in tiles (seconds, peak memory, share of the card's
bf16 peak), a training step at 256 x 256 x 32, and the temporal convolution as conv2d on a (T, H W) view against conv3d.
FLOPs are those of convolutions, matrices and attention, without what is computed again; the peak is the dense bf16 one.
`--device cpu` runs all of it small, to see that it runs.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))  # a script on a bare machine: the project is not installed

from training_bridge.tae import losses, tiling
from training_bridge.tae.model import FULL, TINY, Decoder, Encoder, ModelConfig

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "B200": 2250e12}


@dataclass(frozen=True)
class Sizes:
    """What is measured: (frames, height, width) each."""

    config: ModelConfig
    video: tuple[int, int, int]
    training: tuple[int, int, int]
    batch: int
    layer: tuple[int, int, int, int]
    """Channels, frames, height, width of the temporal convolution."""
    repeats: int


ON_GPU = Sizes(FULL, (256, 768, 768), (32, 256, 256), 4, (128, 32, 256, 256), 10)
ON_CPU = Sizes(replace(TINY, skip=False), (48, 16, 16), (2, 32, 32), 2, (8, 8, 8, 8), 2)


class Bench:
    """Times on one device."""

    def __init__(self, device: torch.device, sizes: Sizes) -> None:
        self.device, self.sizes, self.gpu = device, sizes, device.type == "cuda"
        self.dtype = torch.bfloat16 if self.gpu else torch.float32
        name = torch.cuda.get_device_name(device) if self.gpu else "CPU"
        self.peak = next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
        self.card = name

    def timed(self, work: Callable[[], Any]) -> tuple[float, float]:
        """Seconds and peak gigabytes of one call."""
        if self.gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        work()
        if self.gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() / 1e9 if self.gpu else 0.0

    def line(self, what: str, flops: float, work: Callable[[], Any], **more: Any) -> dict[str, Any]:
        """One measurement, after a first call that does not count."""
        work()
        seconds, memory = self.timed(work)
        line = {"what": what, "seconds": round(seconds, 4), "peak_memory_gb": round(memory, 2), "tflops": flops / 1e12}
        line |= {"share_of_peak": round(flops / seconds / self.peak, 4)} if self.peak else {}
        return {**line, "card": self.card, "torch": torch.__version__, **more}

    def parts(self, config: ModelConfig) -> tuple[Encoder, Decoder]:
        """Fresh weights on the device."""
        torch.manual_seed(0)
        encoder, decoder = Encoder(config), Decoder(config)
        for part in (encoder, decoder):
            part.to(device=self.device)
        return encoder, decoder


def flops_of(config: ModelConfig, frames: int, height: int, width: int) -> tuple[float, float]:
    """Of one forward pass through encoder and decoder, counted without memory."""
    found = []
    with torch.device("meta"), torch.no_grad():
        encoder, decoder = Encoder(config), Decoder(config)
        x, z = torch.empty(1, 3, frames, height, width), None
        with FlopCounterMode(display=False) as counter:
            z, _ = encoder(x)
        found.append(float(counter.get_total_flops()))
        with FlopCounterMode(display=False) as counter:
            decoder(z, frames)
        found.append(float(counter.get_total_flops()))
    return found[0], found[1]


def whole_video(bench: Bench) -> Iterator[dict[str, Any]]:
    """Encode and decode in tiles of 32 frames, the latter with 16 of overlap."""
    frames, height, width = bench.sizes.video
    encoder, decoder = (part.eval().to(dtype=bench.dtype) for part in bench.parts(bench.sizes.config))
    count = {"encoder": sum(p.numel() for p in encoder.parameters()), "decoder": sum(p.numel() for p in decoder.parameters())}
    tile = tiling.Tiling()
    each = flops_of(bench.sizes.config, tile.tile_frames, height, width)
    tiles = frames / tile.tile_frames, max(1.0, (frames - tile.overlap_frames) / (tile.tile_frames - tile.overlap_frames))
    source = torch.rand(1, 3, tile.tile_frames, height, width, device=bench.device, dtype=bench.dtype) * 2 - 1
    latents: list[Tensor] = []

    @torch.inference_mode()
    def encode() -> None:
        pieces = (source[:, :, : min(tile.tile_frames, frames - at)] for at in range(0, frames, tile.tile_frames))
        latents[:] = list(tiling.encode(lambda x: encoder(x)[0].to(bench.dtype), pieces, tile))

    @torch.inference_mode()
    def decode() -> None:
        made = sum(x.shape[2] for x in tiling.decode(decoder, latents, frames, tile))
        assert made == frames

    size = {"frames": frames, "height": height, "width": width}
    yield bench.line("encode", each[0] * tiles[0], encode, parameters=count["encoder"], **size)
    yield bench.line("decode", each[1] * tiles[1], decode, parameters=count["decoder"], **size)


def training_step(bench: Bench, recompute: bool) -> dict[str, Any]:
    """Forward, all losses but LPIPS, backward, AdamW; bf16 by autocast with fp32 weights on a GPU."""
    frames, height, width = bench.sizes.training
    config, batch = replace(bench.sizes.config, checkpoint=recompute), bench.sizes.batch
    encoder, decoder = bench.parts(config)
    judge = losses.Discriminator(64 if bench.gpu else 4).to(bench.device)
    optimizer = torch.optim.AdamW([p for part in (encoder, decoder, judge) for p in part.parameters()], lr=1e-5)
    target = torch.rand(batch, 3, frames, height, width, device=bench.device) * 2 - 1
    ones = torch.ones(batch, device=bench.device)

    def step() -> None:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=bench.gpu):
            mean, logvar = encoder(target)
            x = decoder(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean), frames)
            made, own = losses.adversarial(judge, x, target, ones)
        each = losses.l1(x, target) + losses.multiscale(x, target) + 1e-6 * losses.kl(mean, logvar)
        loss = (each + 0.5 * losses.outlier(mean) + 0.5 * made + own).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert torch.isfinite(loss)

    flops = 3 * batch * sum(flops_of(config, frames, height, width))
    size = {"batch": batch, "frames": frames, "height": height, "width": width, "recompute": recompute}
    return bench.line("training step", flops, step, **size)


def temporal_convolution(bench: Bench) -> Iterator[dict[str, Any]]:
    """Kernel 3 in time over x_BTHWC in one piece: as conv2d on a (T, H W) view, as the model has it, and as conv3d."""
    channels, frames, height, width = bench.sizes.layer
    x_BTHWC = torch.randn(1, frames + 2, height, width, channels, device=bench.device, dtype=bench.dtype)
    weight = torch.randn(channels, channels, 3, 1, device=bench.device, dtype=bench.dtype) / (3 * channels) ** 0.5
    weight = weight.contiguous(memory_format=torch.channels_last)
    weight_3d = weight[..., None].contiguous(memory_format=torch.channels_last_3d)

    def as_conv2d() -> Tensor:
        return F.conv2d(x_BTHWC.flatten(2, 3).permute(0, 3, 1, 2), weight).unflatten(3, (height, width))

    def as_conv3d() -> Tensor:
        return F.conv3d(x_BTHWC.permute(0, 4, 1, 2, 3), weight_3d)

    torch.testing.assert_close(as_conv2d(), as_conv3d(), atol=3e-2, rtol=3e-2)
    flops = 2.0 * 3 * channels * channels * frames * height * width
    for name, work in (("conv2d", as_conv2d), ("conv3d", as_conv3d), ("conv2d", as_conv2d), ("conv3d", as_conv3d)):
        repeats = bench.sizes.repeats
        yield bench.line(
            f"temporal {name}", flops * repeats, lambda work=work, n=repeats: [work() for _ in range(n)], calls=repeats
        )


def measurements(device: str) -> Iterator[dict[str, Any]]:
    """All of them, one at a time."""
    on = torch.device(device)
    bench = Bench(on, ON_GPU if on.type == "cuda" else ON_CPU)
    yield from temporal_convolution(bench)
    yield from whole_video(bench)
    yield training_step(bench, recompute=True)
    if bench.gpu:
        torch.cuda.empty_cache()
    bench = Bench(on, replace(bench.sizes, batch=1))
    yield training_step(bench, recompute=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU here; --device cpu only shows that it runs")
    for line in measurements(device):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
