"""A finished autoencoder: its file, its fingerprint, its normalisation, encoding and decoding."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training_bridge.tae.test_model import both, moved
from training_bridge.tae.encoder import TaeEncoder, export, fingerprint, load, to_network, to_pixels
from training_bridge.tae.model import TINY
from training_bridge.tae.normalisation import measured, normalise
from training_bridge.tae.tiling import Tiling

CONFIG = replace(TINY, width=4, multipliers=(1, 2, 2, 2))


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    encoder, decoder = both(CONFIG)
    moved(encoder, decoder)
    encoder.shift += torch.arange(16) / 10
    encoder.scale *= 2
    export(encoder, decoder, str(tmp_path / "tae.pt"))
    return str(tmp_path / "tae.pt")


def test_means_and_deviations_of_a_stream_are_those_of_the_whole() -> None:
    z = torch.randn(7, 4, 3, 5, 5) * torch.tensor([1.0, 10.0, 0.1, 2.0]).view(4, 1, 1, 1) + 1000
    shift, scale = measured(z.split([1, 4, 2]))
    flat = z.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(shift, flat.mean(1).float())
    torch.testing.assert_close(scale, flat.std(1, correction=0).float())
    encoder, _ = both(CONFIG)
    with pytest.raises(ValueError, match="no latents to measure"):
        normalise(encoder, [])
    latents = torch.randn(2, 16, 2, 4, 4)
    latents[:, 3] = 1.0
    with pytest.raises(ValueError, match="latent channels 3 do not vary"):
        normalise(encoder, [latents])
    latents[:, 3] = torch.randn(2, 2, 4, 4)
    normalise(encoder, [latents])
    normal = encoder.normalised(latents)
    shift, scale = measured([normal])
    torch.testing.assert_close(shift, torch.zeros(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(scale, torch.ones(16), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.denormalised(normal), latents, atol=1e-5, rtol=1e-5)


def test_it_encodes_and_decodes_as_the_model_does_in_tiles(saved: str) -> None:
    tae = pickle.loads(pickle.dumps(TaeEncoder(saved, "cpu")))
    tae.open()
    encoder, decoder = load(saved)
    video = pixels(3, 41, 16, 24)
    latents = tae.encode(video)
    assert latents.dtype == np.float32 and latents.shape == (16, 6, 2, 3)
    parts = [encoder.normalised(encoder(to_network(torch.from_numpy(v))[None])[0])[0] for v in (video[:, :32], video[:, 32:])]
    np.testing.assert_allclose(latents, torch.cat(parts, dim=1).numpy(), atol=1e-5)
    pieces = [video[:, :5], video[:, 5:37], video[:, 37:]]
    assert np.array_equal(np.concatenate(list(tae.encode_stream(pieces)), axis=1), latents)
    frames = tae.decode(latents, 41)
    assert frames.dtype == np.uint8 and frames.shape == (41, 16, 24, 3)
    first = decoder(encoder.denormalised(torch.from_numpy(latents)[None])[:, :, :4], 32)
    assert np.array_equal(frames[:16], to_pixels(first[0]).permute(1, 2, 3, 0).numpy()[:16])
    image = tae.encode(pixels(3, 1, 8, 8))
    assert image.shape == (16, 1, 1, 1) and tae.decode(image, 1).shape == (1, 8, 8, 3)


def test_pixels_there_and_back_are_the_same() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    x = to_network(every)
    assert x.min() == -1 and x.max() == 1 and torch.equal(to_pixels(x), every)
    assert to_pixels(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_the_fingerprint_is_of_all_that_decides_latents_and_nothing_else(saved: str) -> None:
    encoder, decoder = load(saved)
    own = TaeEncoder(saved).fingerprint
    assert own == fingerprint(encoder, Tiling()) and len(own) == 32
    other = str(Path(saved).with_name("other.pt"))
    with torch.no_grad():
        decoder.conv_in.space.bias += 1
    export(encoder, decoder, other)
    assert TaeEncoder(other).fingerprint == own, "the decoder makes no latents"
    assert fingerprint(load(other, {"chunk_elements": 1000})[0], Tiling()) == own
    assert fingerprint(encoder, Tiling(tile_frames=64)) != own
    for change in (encoder.scale, encoder.middle.time.out.bias, encoder.conv_in.time.weight):
        before = change.flatten()[0].item()
        with torch.no_grad():
            change.view(-1)[0] += 1e-3
            assert fingerprint(encoder, Tiling()) != own
            change.view(-1)[0] = before
    assert fingerprint(encoder, Tiling()) == own


def test_a_file_of_another_thing_is_refused(saved: str) -> None:
    path = Path(saved)
    good = torch.load(path, weights_only=True)
    cases = (
        ({"model": torch.zeros(1)}, "its format is None, not 'reelset-tae-1'"),
        ({**good, "config": {**good["config"], "width": 8}}, "size mismatch for conv_in.space.* more"),
        ({**good, "config": {**good["config"], "heads": 8}}, "is of another architecture: .*heads"),
        (
            {**good, "state": {k: v for k, v in good["state"].items() if k != "encoder.middle.time.q.weight"}},
            "is of another architecture: .*middle.time.q.weight",
        ),
    )
    for content, said in cases:
        torch.save(content, path)
        with pytest.raises(ValueError, match=said):
            TaeEncoder(saved)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is no file of tensors"):
        TaeEncoder(saved)
