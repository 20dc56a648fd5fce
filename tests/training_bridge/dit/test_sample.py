"""Sampling: the schedule's numbers, Euler on a law whose velocity is known, guidance, and seeds."""

import itertools
import math

import pytest
import torch

from training_bridge.dit.model import Backbone, BackboneConfig
from training_bridge.dit.parity import without_zeros
from training_bridge.dit.sample import SamplerConfig, euler, guided, linear_quadratic, noise, sample

SIGMA = 1e-5


def test_fifty_steps_emulate_two_hundred_and_fifty() -> None:
    times = linear_quadratic(50, 250)
    assert len(times) == 51 and times[0] == 0 and times[-1] == 1
    for i, t in enumerate(times):
        # tau = 0.1, a = 0.00128, b = -0.06, c = 0.8
        assert t == pytest.approx(i * 0.1 / 25 if i < 25 else 0.00128 * i * i - 0.06 * i + 0.8, abs=1e-12)
    assert times[26] == pytest.approx(0.10528) and times[49] == pytest.approx(0.93328)
    assert all(a < b for a, b in itertools.pairwise(times))


@pytest.mark.parametrize(("steps", "emulated"), [(50, 1000), (7, 21), (2, 2), (40, 40), (3, 1000)])
def test_schedules_begin_as_the_even_one_and_go_on_without_a_kink(steps: int, emulated: int) -> None:
    times, half = linear_quadratic(steps, emulated), steps // 2
    assert times[: half + 1] == pytest.approx([i / emulated for i in range(half + 1)])
    assert times[-1] == 1 and all(a < b for a, b in itertools.pairwise(times))
    bends = [c - 2 * b + a for a, b, c in zip(times[half:], times[half + 1 :], times[half + 2 :], strict=False)]
    assert bends == pytest.approx(bends[:1] * len(bends), abs=1e-9)  # a parabola
    if bends:
        assert times[half + 1] - times[half] == pytest.approx(1 / emulated + bends[0] / 2)
    if steps == emulated:
        assert times == pytest.approx([i / steps for i in range(steps + 1)])


def gaussian(x: torch.Tensor, t: float, std: float = 1.0) -> torch.Tensor:
    """The true velocity where the data is Gaussian: the mean of X_1 - (1 - sigma) X_0 at x."""
    rest = 1 - (1 - SIGMA) * t
    return (t * std**2 - (1 - SIGMA) * rest) / (t**2 * std**2 + rest**2) * x


def test_euler_on_a_gaussian_is_the_product_of_its_steps() -> None:
    times = linear_quadratic(50, 250)
    start = torch.tensor([-2.0, 0.5, 1.0], dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    product = math.prod(1 + (b - a) * float(gaussian(one, a)) for a, b in itertools.pairwise(times))
    torch.testing.assert_close(euler(gaussian, start, times), product * start, rtol=1e-12, atol=0)
    assert product == pytest.approx(0.9465, abs=5e-4)  # the method's own shrinkage


@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_euler_converges_to_first_order(std: float) -> None:
    one = torch.ones((), dtype=torch.float64)
    errors = [std - float(euler(lambda x, t: gaussian(x, t, std), one, linear_quadratic(n, 5 * n))) for n in (200, 400, 800)]
    assert all(1.85 < a / b < 2.15 for a, b in itertools.pairwise(errors))


SMALL = BackboneConfig(layers=1, width=32, heads=4, ffn=48, lengths=(4, 4, 4))


def conditions(count: int) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(3)
    text, null = torch.randn(count, 16, 32, generator=random), torch.randn(16, 32, generator=random)
    return text, torch.ones(count, 16, dtype=torch.bool), null, torch.arange(16) < 1


def model() -> Backbone:
    made = Backbone(SMALL)
    without_zeros(made, 0)
    return made


def test_guidance_goes_from_no_text_beyond_the_text() -> None:
    net, (text, mask, null, null_mask) = model(), conditions(2)
    x = torch.randn(2, 16, 2, 4, 4)
    with_text = guided(net, text, mask, null, null_mask, 1.0)(x, 0.3)
    without = guided(net, null.expand(2, -1, -1), null_mask.expand(2, -1), null, null_mask, 1.0)(x, 0.3)
    found = guided(net, text, mask, null, null_mask, 7.5)(x, 0.3)
    torch.testing.assert_close(found, without + 7.5 * (with_text - without), atol=1e-4, rtol=1e-4)
    assert float((found - with_text).detach().abs().max()) > 1e-3


def test_a_seed_is_a_sample_whatever_the_batch() -> None:
    net, (text, mask, null, null_mask) = model(), conditions(3)
    config = SamplerConfig(steps=4, emulated=8, guidance=2.0)
    grid = (3, 2, 1)  # tall, and longer than it is wide
    all_three = sample(net, text, mask, null, null_mask, grid=grid, seed=5, config=config)
    assert all_three.shape == (3, 16, 3, 4, 2) and not all_three.requires_grad
    assert torch.equal(all_three, sample(net, text, mask, null, null_mask, grid=grid, seed=5, config=config))
    last = sample(net, text[2:], mask[2:], null, null_mask, grid=grid, seed=5, config=config, first=2)
    torch.testing.assert_close(last, all_three[2:], atol=1e-4, rtol=1e-4)
    other = sample(net, text, mask, null, null_mask, grid=grid, seed=6, config=config)
    assert float((other - all_three).abs().max()) > 0.1
    with pytest.raises(ValueError, match=r"\(5, 2, 2\) tokens"):
        sample(net, text, mask, null, null_mask, grid=(5, 2, 2), seed=5, config=config)


def test_noise_is_normal_and_its_own() -> None:
    first, second = noise(0, 0, (16, 8, 16, 16)), noise(0, 1, (16, 8, 16, 16))
    assert abs(float(first.mean())) < 0.02 and abs(float(first.std()) - 1) < 0.02
    assert abs(float((first * second).mean())) < 0.02


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="not 50 and 40"):
        SamplerConfig(steps=50, emulated=40)
