"""How a trained autoencoder stands against resampling, on the held-out pieces of its own run.

python -m tests.benchmarks.tae RUN [--picture FILE.png]     RUN: a folder that `reelset train-tae` filled
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from training_bridge import settings
from training_bridge.data import ShardData
from training_bridge.launch import ranks
from training_bridge.layout import Layout
from training_bridge.tae.encoder import load as load_tae
from training_bridge.tae.encoder import to_network, to_pixels
from training_bridge.tae.measures import psnr, ssim
from training_bridge.tae.run import TaeRun
from training_bridge.tae.task import TaeTask

ROWS = 3


def pooled(x_BCTHW: Tensor) -> Tensor:
    """Means of 8 x 8 x 8, and straight lines between them: 3 values a block."""
    means = F.avg_pool3d(x_BCTHW, 8)
    return F.interpolate(means, x_BCTHW.shape[2:], mode="trilinear", align_corners=False)


def resampled(x_BCTHW: Tensor, values: float) -> Tensor:
    """The picture made smaller along all axes alike, to as many values as latents of `values` a block have, and back."""
    share = (values / 3 / 512) ** (1 / 3)
    size = [max(1, round(n * share)) for n in x_BCTHW.shape[2:]]
    small = F.interpolate(x_BCTHW, size, mode="area")
    return F.interpolate(small, x_BCTHW.shape[2:], mode="trilinear", align_corners=False)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    own = settings.read(given.run, TaeRun)
    data = ShardData(own.data, TaeTask(own.tae).draw, Layout().fitted(1), ranks("cpu"))
    encoder, decoder = load_tae(str(given.run / "tae.pt"))
    sums: dict[str, Tensor] = {}
    count, rows = 0, []
    for batch in data.held_out():
        target = to_network(batch.tensors["pixels"])
        if target.shape[2] % 8:
            continue  # images have no 8 frames to pool
        made = {
            "autoencoder": decoder(encoder(target)[0], target.shape[2]),
            "means of 8 x 8 x 8": pooled(target),
            "trilinear, as many values": resampled(target, encoder.config.latent_channels),
        }
        for name, x in made.items():
            found = torch.stack([psnr(x, target).sum(), ssim(x, target).sum()])
            sums[name] = sums.get(name, torch.zeros(2)) + found
        count += len(target)
        rows.append([to_pixels(x[:, :, 8]).permute(0, 2, 3, 1) for x in (target, *made.values())])
    last = [json.loads(line) for line in (given.run / "log.jsonl").read_text().splitlines()]
    wall_s = sum(line["wall_s"] for line in last if line["kind"] == "step")
    print(f"{sum(line['kind'] == 'step' for line in last)} steps in {wall_s:.0f} s; {count} held-out pieces")
    for name, values in sums.items():
        print(f"{name:28} PSNR {values[0] / count:.2f} dB  SSIM {values[1] / count:.3f}")
    if given.picture:
        shown = [np.concatenate([column[n].numpy() for column in rows[0]], axis=1) for n in range(min(ROWS, len(rows[0][0])))]
        picture = Image.fromarray(np.concatenate(shown))
        picture.resize((picture.width * 3, picture.height * 3), Image.Resampling.NEAREST).save(given.picture)


if __name__ == "__main__":
    main()
