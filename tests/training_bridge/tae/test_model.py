"""The autoencoder: inflation, shapes, parts that change no result, and what frames see of each other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.training_bridge.tae.image_vae import ImageVae
from training_bridge.tae.model import FULL, TINY, Decoder, Encoder, ModelConfig
from training_bridge.tae.weights import load_image_weights

SMALL = ModelConfig(
    width=8, multipliers=(1, 2, 2, 3), encoder_blocks=(1, 1, 2, 1), decoder_blocks=(2, 2, 3, 2), groups=4, latent_channels=4
)


def both(config: ModelConfig, seed: int = 0) -> tuple[Encoder, Decoder]:
    torch.manual_seed(seed)
    return Encoder(config).eval(), Decoder(config).eval()


def moved(*parts: torch.nn.Module) -> None:
    """Weights as after training: nothing is zero, no temporal layer the identity."""
    with torch.no_grad():
        for part in parts:
            for value in part.parameters():
                value.add_(0.05 * torch.randn_like(value))


@torch.no_grad()
@pytest.mark.parametrize("quant", [True, False])
def test_an_inflated_image_model_is_the_image_model_on_every_frame(tmp_path: Path, quant: bool) -> None:
    torch.manual_seed(1)
    image = ImageVae(quant=quant).eval()
    torch.save(image.state_dict(), tmp_path / "vae.pt")
    encoder, decoder = both(SMALL)
    assert load_image_weights(encoder, decoder, str(tmp_path / "vae.pt")) == []
    for part in (image, encoder, decoder):
        part.double()  # rounding of fp32 alone comes near 1e-5
    x = torch.rand(2, 3, 1, 32, 40, dtype=torch.double) * 2 - 1
    mean, logvar = encoder(x)
    theirs, their_logvar = image.encode(x[:, :, 0])
    if quant:  # the bias that cannot cross the padding is in our means
        P, b = image.post_quant_conv.weight.flatten(1), image.post_quant_conv.bias
        theirs = theirs + torch.linalg.solve(P, b)[:, None, None]
    close(mean[:, :, 0], theirs)
    close(logvar[:, :, 0], their_logvar)
    whole = image.decode(image.encode(x[:, :, 0])[0])
    close(decoder(mean.double(), 1)[:, :, 0], whole)
    every = decoder(mean.double())
    assert every.shape == (2, 3, 8, 32, 40), "without being told, eight frames, and all are that image"
    close(every, whole[:, :, None].expand_as(every))
    video = torch.rand(1, 3, 9, 32, 40, dtype=torch.double) * 2 - 1
    kept, _ = encoder(video)
    alone, _ = encoder(video[:, :, 8:])
    close(kept[:, :, 1:], alone)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.double(), theirs.double(), atol=5e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("config", [SMALL, replace(TINY, width=4, latent_channels=5)], ids=["image", "skip"])
def test_any_length_and_any_size_of_eights(config: ModelConfig) -> None:
    encoder, decoder = both(config)
    moved(encoder, decoder)
    for frames in range(1, 34):
        height, width = (8, 16) if frames % 2 else (24, 8)
        mean, logvar = encoder(torch.rand(1, 3, frames, height, width))
        assert mean.shape == logvar.shape == (1, config.latent_channels, -(-frames // 8), height // 8, width // 8)
        x = decoder(mean, frames)
        assert x.shape == (1, 3, frames, height, width) and x.isfinite().all()
    assert decoder(mean).shape[2] == 40
    with pytest.raises(ValueError, match=r"multiples of 8, not \(1, 3, 4, 12, 8\)"):
        encoder(torch.zeros(1, 3, 4, 12, 8))
    with pytest.raises(ValueError, match=r"latents are \(B, \d, 5, H, W\) for 33 frames, not \(1, \d, 4, 1, 1\)"):
        decoder(torch.zeros(1, config.latent_channels, 4, 1, 1), 33)


@pytest.mark.parametrize("config", [SMALL, TINY], ids=["image", "skip"])
def test_parts_and_recomputation_change_nothing(config: ModelConfig) -> None:
    x = torch.rand(2, 3, 5, 16, 8)

    def results(changed: ModelConfig, grad: bool) -> list[Tensor]:
        encoder, decoder = both(changed)
        moved(encoder, decoder)
        with torch.set_grad_enabled(grad):
            mean, logvar = encoder(x)
            y = decoder(mean, 5)
            if not grad:
                return [mean, logvar, y]
            (y.square().mean() + logvar.mean()).backward()
        return [y.detach(), *(p.grad for part in (encoder, decoder) for p in part.parameters() if p.grad is not None)]

    for grad in (False, True):
        whole = results(config, grad)
        for other in (replace(config, chunk_elements=1500, checkpoint=True), replace(config, chunk_elements=20_000)):
            for ours, theirs in zip(results(other, grad), whole, strict=True):
                torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4)


@torch.no_grad()
def test_time_is_padded_on_both_sides_with_the_edge_frame() -> None:
    encoder, decoder = both(SMALL)
    moved(encoder, decoder)
    still = torch.rand(1, 3, 1, 16, 16)
    alone, _ = encoder(still)
    long, _ = encoder(still.expand(-1, -1, 16, -1, -1))
    torch.testing.assert_close(long, alone.expand_as(long), atol=1e-5, rtol=1e-4)
    x = torch.rand(1, 3, 32, 16, 16)
    changed = x.clone()
    changed[:, :, 20] += 1.0
    before, after = (encoder.conv_in(v.permute(0, 2, 3, 4, 1))[0].flatten(1) for v in (x, changed))
    assert (before != after).any(dim=1).nonzero().flatten().tolist() == [19, 20, 21], "both neighbours see a frame"


@torch.no_grad()
def test_normalisation_of_one_frame_does_not_hear_of_others() -> None:
    encoder, _ = both(SMALL)
    norm = encoder.conv_out.norm
    x = torch.rand(4, 24, 6, 6)
    alone = norm(x[2:3])
    x[0] *= 100
    torch.testing.assert_close(norm(x)[2:3], alone)


@torch.no_grad()
def test_the_skip_is_an_orthonormal_transform_whose_first_numbers_are_means() -> None:
    skip = TINY.cosines()
    rows = skip.basis.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(16), atol=1e-5, rtol=0)
    x = torch.rand(1, 3, 16, 16, 24)
    z = skip(x)
    means = torch.nn.functional.avg_pool3d(x, 8)
    colours = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    colours = colours / colours.norm(dim=1, keepdim=True)
    where = [int((rows @ torch.einsum("c,p->cp", c, torch.ones(512)).flatten()).abs().argmax()) for c in colours]
    assert where[0] == 0
    expected = torch.einsum("dc,bcthw->bdthw", colours, means) * 512**0.5 / 8
    torch.testing.assert_close(z[:, where], expected, atol=1e-4, rtol=1e-4)
    flat = torch.rand(1, 3, 1, 1, 1).expand(1, 3, 5, 8, 8)
    torch.testing.assert_close(skip.back(skip(flat), 5), flat, atol=1e-5, rtol=1e-4)
    encoder, decoder = both(TINY)
    mean, logvar = encoder(x)
    torch.testing.assert_close(mean, z)
    assert (logvar == -10).all()
    torch.testing.assert_close(decoder(mean, 16), skip.back(z, 16))


def test_sizes() -> None:
    with torch.device("meta"):
        count = [sum(p.numel() for p in part.parameters()) for part in (Encoder(FULL), Decoder(FULL))]
        tiny = sum(p.numel() for part in (Encoder(TINY), Decoder(TINY)) for p in part.parameters())
    assert [round(n / 1e6, 1) for n in count] == [46.8, 67.2] and round(tiny / 1e6, 1) == 3.2
    with pytest.raises(ValueError, match="3 multipliers need as many"):
        ModelConfig(multipliers=(1, 2, 4))
    with pytest.raises(ValueError, match="100 channels do not divide into 32 groups"):
        ModelConfig(width=100)
