"""The autoencoder's task: its loss and gradients, the outlier penalty at work, validation, pictures, FLOPs, export."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training_bridge.tae.image_vae import ImageVae
from training_bridge.index import Shape
from training_bridge.plan import Sample
from training_bridge.tae import losses, measures
from training_bridge.tae.encoder import TaeEncoder, to_network
from training_bridge.tae.losses import LossConfig
from training_bridge.tae.model import TINY, Decoder, Encoder
from training_bridge.tae.normalisation import measured
from training_bridge.tae.task import TaeConfig, TaeTask

SMALL = replace(TINY, width=4, multipliers=(1, 2, 2, 2))
BIASED = 2
PLACE = (0, BIASED, 0, 6, 9)


def batch(task: TaeTask, samples: int, frames: int, side: int, weights: list[float] | None = None, seed: int = 0) -> Any:
    """As the loader makes one."""
    rng = np.random.default_rng(seed)
    shape = (3, frames, side, side)
    draws = [task.draw(seed, Sample("d", n, f"clip{n}", 0), {"pixels": shape})["noise"] for n in range(samples)]
    return SimpleNamespace(
        tensors={"pixels": torch.from_numpy(rng.integers(0, 256, (samples, *shape), np.uint8))},
        draws={"noise": torch.from_numpy(np.stack(draws))},
        weights=torch.tensor(weights or [1.0] * samples),
    )


def made(config: TaeConfig, seed: int = 0) -> tuple[TaeTask, nn.ModuleDict]:
    torch.manual_seed(seed)
    task = TaeTask(config)
    model = task.build()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.02 * torch.randn_like(value))
    return task, model


def grads(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def test_one_backward_pass_is_both_passes_of_a_gan() -> None:
    own = LossConfig(perceptual=0.3, adversarial=0.5, adversarial_start=10, discriminator_width=4)
    task, model = made(TaeConfig(model=SMALL, losses=own))
    data = batch(task, 3, 3, 32, [1.0, 2.0, 0.0])
    loss, parts = task.loss(model, data, step=10)
    loss.backward()
    ours = grads(model)

    model.zero_grad()
    encoder, decoder, judge = (model[name] for name in ("encoder", "decoder", "discriminator"))
    target = to_network(data.tensors["pixels"])
    mean, logvar = encoder(target)
    x = decoder(mean + torch.exp(0.5 * logvar) * data.draws["noise"], 3)
    w = data.weights
    generator = losses.l1(x, target) + 0.3 * losses.multiscale(x, target) + 1e-6 * losses.kl(mean, logvar)
    generator = generator + 0.5 * losses.outlier(mean) - 0.5 * judge(x).flatten(1).mean(1)
    own_params = [*encoder.parameters(), *decoder.parameters()]
    first = torch.autograd.grad((w * generator).sum(), own_params, retain_graph=True, allow_unused=True)
    critic = (w * losses.hinge(judge(target), judge(x.detach()))).sum()
    second = torch.autograd.grad(critic, list(judge.parameters()))
    theirs = [torch.zeros_like(p) if g is None else g for p, g in zip(own_params, first, strict=True)] + list(second)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(loss, (w * generator).sum() + critic)
    assert set(parts) == {"l1", "perceptual", "kl", "outlier", "adversarial", "discriminator"}


def test_before_its_start_the_discriminator_only_has_gradients_of_zero() -> None:
    own = LossConfig(adversarial=0.5, adversarial_start=10, discriminator_width=4)
    task, model = made(TaeConfig(model=SMALL, losses=own))
    data = batch(task, 2, 3, 32)
    loss, parts = task.loss(model, data, step=9)
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model["discriminator"].parameters())
    plain, _ = made(TaeConfig(model=SMALL))[0].loss(model, data, step=9)
    torch.testing.assert_close(loss, plain)
    assert parts["discriminator"] == 0 and "adversarial" not in parts


def test_the_loss_is_a_sum_over_samples() -> None:
    task, model = made(TaeConfig(model=SMALL))
    data = batch(task, 3, 9, 16, [1.0, 0.5, 0.0])
    whole, parts = task.loss(model, data, 0)
    alone = []
    for n in range(2):
        one = SimpleNamespace(
            tensors={"pixels": data.tensors["pixels"][n : n + 1]},
            draws={"noise": data.draws["noise"][n : n + 1]},
            weights=data.weights[n : n + 1],
        )
        alone.append(task.loss(model, one, 0))
    torch.testing.assert_close(whole, alone[0][0] + alone[1][0])
    for name, value in parts.items():
        torch.testing.assert_close(value, alone[0][1][name] + alone[1][1][name], msg=name)
    other = replace_noise(data)
    assert task.loss(model, other, 0)[0] != whole, "latents are drawn from the posterior"


def replace_noise(data: Any) -> Any:
    return SimpleNamespace(tensors=data.tensors, weights=data.weights, draws={"noise": -data.draws["noise"] * 100})


def test_noise_belongs_to_the_sample() -> None:
    task = TaeTask(TaeConfig(model=SMALL))
    shapes = {"pixels": (3, 17, 32, 48)}
    one = task.draw(0, Sample("a", 5, "clip", 1), shapes)["noise"]
    assert one.shape == (16, 3, 4, 6) and one.dtype == np.float32 and abs(one.std() - 1) < 0.1
    assert np.array_equal(one, task.draw(0, Sample("a", 7, "clip", 1), shapes)["noise"])
    others = [Sample("b", 5, "clip", 1), Sample("a", 5, "clip2", 1), Sample("a", 5, "clip", 2)]
    for sample in others:
        assert not np.array_equal(one, task.draw(0, sample, shapes)["noise"])


class Biased(nn.Module):
    """An encoder that learnt to put a bright dot into one channel at one place, whatever it sees."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        dot = torch.zeros(1, 16, 1, 16, 16)
        dot[PLACE] = 4.0
        self.dot = nn.Parameter(dot)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = self.encoder(x)
        return mean + self.dot, logvar


class Used(nn.Module):
    """A decoder that has learnt to live with that dot."""

    def __init__(self, decoder: nn.Module, dot: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("dot", dot.detach().clone())

    def forward(self, z: Tensor, frames: int) -> Tensor:
        return self.decoder(z - self.dot, frames)


def largest(z: Tensor) -> float:
    """How many standard deviations the farthest latent of any frame is away, with norms over channels."""
    away = z - z.mean(dim=(3, 4), keepdim=True)
    return float((away.norm(dim=1) / away.square().mean(dim=(3, 4)).sum(dim=1).sqrt()[..., None, None]).max())


@pytest.mark.parametrize(("weight", "gone"), [(0.5, True), (0.0, False)])
def test_the_outlier_penalty_removes_a_planted_outlier(weight: float, gone: bool) -> None:
    task = TaeTask(TaeConfig(model=SMALL, losses=LossConfig(outlier=weight, perceptual=0.0)))
    torch.manual_seed(0)
    model = task.build()
    encoder = Biased(model["encoder"])
    model = nn.ModuleDict({"encoder": encoder, "decoder": Used(model["decoder"], encoder.dot)})
    rest = [p for name, p in model.named_parameters() if not name.endswith("dot")]
    optimizer = torch.optim.Adam([{"params": rest, "lr": 1e-3}, {"params": [encoder.dot], "lr": 0.2}])
    before = after = 0.0
    for step in range(24):
        data = batch(task, 2, 1, 128, seed=step)
        low = torch.randint(110, 146, (2, 3, 1, 17, 17), generator=torch.Generator().manual_seed(step)).float()
        data.tensors["pixels"] = F.interpolate(low[:, :, 0], size=(128, 128), mode="bilinear")[:, :, None].to(torch.uint8)
        if step in (0, 23):
            before, after = after, largest(encoder(to_network(data.tensors["pixels"]))[0].detach())
        loss, _ = task.loss(model, data, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before > 7, "planted"
    if gone:
        assert after < 4 and encoder.dot[PLACE] < 2
    else:
        assert after > 7 and encoder.dot[PLACE] > 3


@torch.no_grad()
def test_validation_pictures_and_export(tmp_path: Path) -> None:
    task, model = made(TaeConfig(model=SMALL))
    data = batch(task, 5, 9, 16, [1.0, 1.0, 2.0, 0.0, 1.0])
    target = to_network(data.tensors["pixels"])
    x = model["decoder"](model["encoder"](target)[0], 9)
    found = task.validate(model, data)
    torch.testing.assert_close(found["psnr"], (data.weights * measures.psnr(x, target)).sum())
    torch.testing.assert_close(found["ssim"], (data.weights * measures.ssim(x, target)).sum())
    assert set(found) == {"psnr", "ssim", "l1"} and task.validated(None) == {}
    film = task.pictures(model, data)["reconstruction"]
    assert film.shape == (9, 32, 64, 3) and film.dtype == torch.uint8
    assert torch.equal(film[3, :16, 16:32], data.tensors["pixels"][1, :, 3].permute(1, 2, 0))
    task.export(model, [data, batch(task, 2, 9, 16, seed=1)], str(tmp_path / "tae.pt"))
    tae = TaeEncoder(str(tmp_path / "tae.pt"), "cpu")
    tae.open()
    more = batch(task, 2, 9, 16, seed=1).tensors["pixels"]
    encoded = [tae.encode(clip.numpy()) for clip in torch.cat([data.tensors["pixels"], more])]
    shift, scale = measured([torch.from_numpy(np.stack(encoded))])
    torch.testing.assert_close(shift, torch.zeros(16), atol=1e-3, rtol=0)
    torch.testing.assert_close(scale, torch.ones(16), atol=1e-3, rtol=0)


def test_parts_groups_and_what_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = LossConfig(adversarial=0.5, discriminator_width=4)
    task, model = made(TaeConfig(model=SMALL, losses=own, discriminator_lr_scale=2.0))
    assert list(model) == ["encoder", "decoder", "discriminator"]
    grouped = [p for group in task.groups(model) for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped) == len(list(model.parameters()))
    blocks = list(task.blocks(model))
    assert len(set(blocks)) == len(blocks) == 2 * (2 + 1)  # two blocks in levels, and a middle
    with pytest.raises(ValueError, match="context 1 and tensor 1, not 2 and 1"):
        task.parallelize(model, SimpleNamespace(context=2, tensor=1), None)
    assert task.fingerprint() != TaeTask(TaeConfig(model=SMALL)).fingerprint()
    assert (
        TaeTask(TaeConfig(model=SMALL)).fingerprint()
        == TaeTask(TaeConfig(model=replace(SMALL, chunk_elements=9))).fingerprint()
    )

    torch.save(ImageVae(4, (8, 16, 16, 24), (1, 1, 2, 1)).state_dict(), tmp_path / "vae.pt")
    inflated = replace(
        SMALL, width=8, multipliers=(1, 2, 2, 3), encoder_blocks=(1, 1, 2, 1), decoder_blocks=(2, 2, 3, 2), skip=False
    )
    TaeTask(TaeConfig(model=inflated, image_weights=str(tmp_path / "vae.pt"))).build()
    assert "start anew: encoder.conv_out.space, decoder.conv_in.space" in caplog.text


def test_flops_are_those_of_convolutions_and_attention() -> None:
    task = TaeTask(TaeConfig(model=SMALL))
    one, two = (task.flops(Shape(8, side, side)) for side in (32, 64))
    assert 3.9 < two / one < 4.2, "nearly all grows with pixels"
    config = task.architecture
    encoder, decoder = Encoder(config), Decoder(config)
    total = 0

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        total += 2 * output.numel() * weight[0].numel()

    for part in (encoder, decoder):
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(count)
    mean, _ = encoder(torch.zeros(1, 3, 8, 32, 32))
    decoder(mean, 8)
    transforms = 2 * 2 * 16 * 3 * 512 * mean[0, 0].numel()
    attention = 2 * 2 * 2 * mean[0, 0].numel() * (16 + 1) * config.channels[-1]
    assert one == 3 * (total + transforms + attention)
