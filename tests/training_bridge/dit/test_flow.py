"""The objective: path and velocity in closed form, draws that belong to samples, a loss that is a sum of parts."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from training_bridge.dit.flow import (
    FlowConfig,
    denormalised,
    draw,
    latent_shape,
    normalised,
    on_path,
    sample_losses,
    velocity,
)
from training_bridge.dit.model import Backbone, BackboneConfig, grid_of, patchify, time_features
from training_bridge.dit.parity import without_zeros
from training_bridge.plan import Sample

CONFIG = FlowConfig()
LATENTS = {"latents": (16, 3, 4, 4)}


def data(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_path_goes_from_noise_to_data_at_the_velocity() -> None:
    x1, x0 = data(3, 16, 2, 4, 4), data(3, 16, 2, 4, 4, seed=1)
    at = [on_path(x1, x0, torch.full((3,), t, dtype=torch.float64), 1e-5) for t in (0.0, 0.25, 1.0)]
    assert torch.equal(at[0], x0)
    torch.testing.assert_close(at[1], 0.25 * x1 + 0.7500025 * x0, rtol=0, atol=1e-15)
    torch.testing.assert_close(at[2], x1 + 1e-5 * x0, rtol=0, atol=1e-15)
    v = velocity(x1, x0, 1e-5)
    torch.testing.assert_close(v, x1 - 0.99999 * x0, rtol=0, atol=0)
    torch.testing.assert_close((at[2] - at[1]) / 0.75, v, rtol=0, atol=1e-14)


def test_each_sample_has_its_own_time() -> None:
    x1, x0 = torch.ones(2, 1, 1, 2, 2), torch.zeros(2, 1, 1, 2, 2)
    assert on_path(x1, x0, torch.tensor([0.25, 0.5]), 0.0)[:, 0, 0, 0, 0].tolist() == [0.25, 0.5]


def sample(row: int, visit: int = 0, dataset: str = "films") -> Sample:
    return Sample(dataset, row, f"clip-{row}", visit)


def test_draws_belong_to_the_sample() -> None:
    one = draw(CONFIG, 7, sample(0), LATENTS)
    again = draw(CONFIG, 7, Sample("films", 99, "clip-0", 0), LATENTS)  # the row is a place in a file, not the sample
    assert one["noise"].shape == (16, 3, 4, 4) and one["noise"].dtype == np.float32
    assert all(np.array_equal(one[name], again[name]) for name in ("noise", "time", "drop"))
    for other in (
        draw(CONFIG, 8, sample(0), LATENTS),
        draw(CONFIG, 7, sample(0, 1), LATENTS),
        draw(CONFIG, 7, sample(0, 0, "b"), LATENTS),
    ):
        assert not np.array_equal(one["noise"], other["noise"]) and one["time"] != other["time"]


def test_times_are_logit_normal_and_texts_dropped_as_often_as_said() -> None:
    draws = [draw(CONFIG, 0, sample(row), {"latents": (1, 1, 2, 2)}) for row in range(4000)]
    normal = np.array([math.log(d["time"] / (1 - d["time"])) for d in draws])
    assert abs(normal.mean()) < 0.05 and abs(normal.std() - 1) < 0.04
    assert np.mean([d["drop"] for d in draws]) == pytest.approx(0.1, abs=0.015)
    late = draw(FlowConfig(time_mean=2.0, time_std=1e-6), 0, sample(0), LATENTS)["time"]
    assert late == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-5)


def test_the_noise_of_pixels_has_the_shape_of_their_latents() -> None:
    assert latent_shape({"pixels": (3, 255, 192, 336)}) == (16, 32, 24, 42)
    assert latent_shape({"pixels": (3, 1, 256, 256)}, 8) == (8, 1, 32, 32)


def test_latents_are_normalised_by_channel_and_back() -> None:
    x = data(2, 2, 1, 2, 2)
    y = normalised(x, [1.0, 2.0], [0.5, 4.0])
    torch.testing.assert_close(y[:, 1], (x[:, 1] - 2) / 4)
    torch.testing.assert_close(denormalised(y, [1.0, 2.0], [0.5, 4.0]), x)
    with pytest.raises(ValueError, match="2 channels, statistics of 3"):
        normalised(x, [0.0] * 3, [1.0] * 3)


def test_parts_of_a_sequence_sum_to_the_loss() -> None:
    model = Backbone(BackboneConfig(layers=1, width=32, heads=4, ffn=48))
    without_zeros(model, 0)
    x1, x0 = (data(2, 16, 2, 4, 4, seed=s).float() for s in (0, 1))
    time, text, mask = torch.tensor([0.2, 0.7]), data(2, 16, 32).float(), torch.ones(2, 16, dtype=torch.bool)
    whole = sample_losses(model, x1, x0, time, text, mask, sigma_min=1e-5)
    predicted = model(patchify(on_path(x1, x0, time, 1e-5)), time_features(time), text, mask, grid_of(x1.shape))
    torch.testing.assert_close(whole, (predicted - patchify(velocity(x1, x0, 1e-5))).square().mean((1, 2)))
    # Attention without an exchange sees its own part only; with none to see, parts are independent and sum up.
    for block in model.blocks:
        torch.nn.init.zeros_(block.attention.out.weight)
    whole = sample_losses(model, x1, x0, time, text, mask, sigma_min=1e-5)
    parts = [sample_losses(model, x1, x0, time, text, mask, sigma_min=1e-5, rank=r, ranks=4) for r in range(4)]
    torch.testing.assert_close(sum(parts), whole)
    with pytest.raises(ValueError, match="8 tokens do not divide between 3"):
        sample_losses(model, x1, x0, time, text, mask, sigma_min=1e-5, ranks=3)


def test_neighbouring_times_differ() -> None:
    near = time_features(torch.tensor([0.5, 0.5001]))
    assert near.shape == (2, 256) and float((near[0] - near[1]).abs().max()) > 0.05


@pytest.mark.parametrize(
    "make", [lambda: FlowConfig(sigma_min=1.0), lambda: FlowConfig(time_std=0.0), lambda: FlowConfig(text_drop=1.5)]
)
def test_bad_settings_are_refused(make: Callable[[], FlowConfig]) -> None:
    with pytest.raises(ValueError, match="are wanted, not"):
        make()
