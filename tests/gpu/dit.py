"""Training steps of the flow-matching transformer on one GPU: tokens per second, MFU, memory, and which attention kernel ran.

    PYTHONPATH=. python tests/gpu/dit.py                          1b, then 5b-shaped blocks, then the most of those that fit
    PYTHONPATH=. python tests/gpu/dit.py --size 5b --layers 8 --profile trace.json

Needs torch and nothing else. Each run is a line of JSON. Weights, gradients and AdamW's moments are bfloat16, as little memory
as the state of one rank of many; MFU is of the model's own FLOPs (forward, and backward twice that, attention at its real
length) against the card's dense peak.
"""

import argparse
import json
import time
from typing import Any

import torch
from torch import Tensor

from training_bridge.dit.cost import model_flops
from training_bridge.dit.flow import sample_losses
from training_bridge.dit.model import SIZES, Backbone, BackboneConfig, config_of, kernels_seen
from training_bridge.dit.parallel import compiled, recomputed


def main() -> None:
    """Run what the command line asks for."""
    args = parsed()
    if args.size:
        print(json.dumps(measured(args, configured(args, args.size, args.layers))), flush=True)
        return
    print(json.dumps(measured(args, configured(args, "1b", None))), flush=True)
    print(json.dumps(measured(args, configured(args, "5b", 8))), flush=True)
    print(json.dumps({"largest": True} | largest(args, "5b")), flush=True)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[*SIZES])
    parser.add_argument("--layers", type=int, help="fewer blocks than the size has")
    parser.add_argument("--grid", type=int, nargs=3, default=(32, 48, 48), help="tokens along time, height and width")
    parser.add_argument("--text", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--recompute", choices=("none", "selective", "full"), default="selective")
    parser.add_argument("--kernels", nargs="+", default=("cudnn", "flash", "efficient", "math"))
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="dense bfloat16; 989 of H100 and H200")
    parser.add_argument("--profile", help="write a Chrome trace of one step here, and print where its time goes")
    return parser.parse_args()


def configured(args: argparse.Namespace, size: str, layers: int | None) -> BackboneConfig:
    t, h, w = args.grid
    more: dict[str, Any] = {"layers": layers} if layers else {}
    return config_of(size, lengths=(max(32, t), max(96, h), max(96, w)), kernels=tuple(args.kernels), **more)


def measured(args: argparse.Namespace, config: BackboneConfig) -> dict[str, Any]:
    """Seconds of a step, the fastest half of them, after one that compiles."""
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.device(args.device):
        model = Backbone(config).to(dtype)
    model.register_forward_pre_hook(lambda _, given: (given[0].to(dtype), given[1].to(dtype), *given[2:]))  # as FSDP does
    seen = kernels(model, args, dtype)
    for block in model.blocks:
        recomputed(block, args.recompute)
        if not args.no_compile:
            compiled(block)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch = inputs(args, config, dtype)
    reset_peak(args)
    loss, first_s = step(model, optimizer, batch, args)
    losses = [step(model, optimizer, batch, args) for _ in range(args.steps)]
    step_s = sorted(seconds for _, seconds in losses)[: -(-args.steps // 2)]
    mean_s, tokens = sum(step_s) / len(step_s), args.grid[0] * args.grid[1] * args.grid[2]
    if args.profile:
        profiled(model, optimizer, batch, args)
    return {
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "width": config.width,
        "layers": config.layers,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens,
        "batch": args.batch,
        "recompute": args.recompute,
        "compiled": not args.no_compile,
        "kernels": seen,
        "first_step_s": round(first_s, 2),
        "step_s": round(mean_s, 4),
        "tokens_per_s": round(args.batch * tokens / mean_s, 1),
        "mfu": args.batch / mean_s * model_flops(config, tokens, args.text) / (args.peak_tflops * 1e12),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if args.device == "cuda" else None,
        "loss": [round(loss, 4), round(losses[-1][0], 4)],
    }


def inputs(args: argparse.Namespace, config: BackboneConfig, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Latents, noise, times, text and its mask, a tenth of it padding."""
    t, h, w = args.grid
    with torch.device(args.device):
        latents, noise = (torch.randn(args.batch, config.channels, t, 2 * h, 2 * w, dtype=dtype) for _ in range(2))
        mask = (torch.arange(args.text) < args.text * 0.9).expand(args.batch, -1)
        return latents, noise, torch.rand(args.batch), torch.randn(args.batch, args.text, config.width, dtype=dtype), mask


def step(model: Backbone, optimizer: Any, batch: tuple[Tensor, ...], args: argparse.Namespace) -> tuple[float, float]:
    """One training step: its loss and its seconds."""
    wait(args)
    began = time.perf_counter()
    latents, noise, at, text, mask = batch
    loss = sample_losses(model, latents, noise, at, text, mask, sigma_min=1e-5).mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    wait(args)
    return float(loss.detach()), time.perf_counter() - began


def kernels(model: Backbone, args: argparse.Namespace, dtype: torch.dtype) -> dict[str, str]:
    """Which attention kernels run at these shapes, asked of one block before it is compiled."""
    config, tokens = model.config, args.grid[0] * args.grid[1] * args.grid[2]
    block, found = model.blocks[0], {}
    with torch.device(args.device):
        x = torch.randn(args.batch, tokens, config.width, dtype=dtype, requires_grad=True)
        text = torch.randn(args.batch, args.text, config.width, dtype=dtype)
        mask = torch.ones(args.batch, args.text, dtype=torch.bool)
    with kernels_seen() as seen:
        block.attention(x)
    found["self"] = ", ".join(seen)
    with kernels_seen() as seen:
        block.cross(x, text, mask)
    return found | {"cross": ", ".join(seen)}


def largest(args: argparse.Namespace, size: str) -> dict[str, Any]:
    """The run with the most blocks of a size that the memory takes."""
    best, low, high = {}, 1, 4 * SIZES[size]["layers"]
    while low <= high:
        layers = (low + high) // 2
        try:
            best, low = measured(args, configured(args, size, layers)), layers + 1
        except torch.OutOfMemoryError:
            high = layers - 1
        torch.cuda.empty_cache()
    return best


def profiled(model: Backbone, optimizer: Any, batch: tuple[Tensor, ...], args: argparse.Namespace) -> None:
    from torch.profiler import ProfilerActivity, profile

    gpu = args.device == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as found:
        step(model, optimizer, batch, args)
    found.export_chrome_trace(args.profile)
    by = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=80), flush=True)


def wait(args: argparse.Namespace) -> None:
    if args.device == "cuda":
        torch.cuda.synchronize()


def reset_peak(args: argparse.Namespace) -> None:
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    main()
