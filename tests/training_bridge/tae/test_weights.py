"""Published image weights: what fits, what starts anew, and what is refused by name."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.training_bridge.tae.image_vae import ImageVae
from tests.training_bridge.tae.test_model import SMALL, both
from training_bridge.tae.model import TINY
from training_bridge.tae.weights import load_image_weights


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    torch.save(ImageVae().state_dict(), tmp_path / "vae.pt")
    return tmp_path / "vae.pt"


def test_safetensors_and_former_names_of_attention(saved: Path) -> None:
    save_file = pytest.importorskip("safetensors.torch").save_file
    tensors = torch.load(saved, weights_only=True)
    for now, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        tensors = {k.replace(f"attentions.0.{now}.", f"attentions.0.{former}."): v for k, v in tensors.items()}
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in tensors
    other = str(saved.with_suffix(".safetensors"))
    save_file(tensors, other)
    parts, same = both(SMALL, 2), both(SMALL, 2)
    load_image_weights(*parts, other)
    load_image_weights(*same, str(saved))
    for ours, theirs in zip(parts, same, strict=True):
        for name, value in ours.state_dict().items():
            assert torch.equal(value, theirs.state_dict()[name]), name


def test_another_number_of_latent_channels_starts_new_ends_and_says_so(saved: Path) -> None:
    config = replace(SMALL, latent_channels=16)
    parts, fresh = both(config, 3), both(config, 3)
    assert load_image_weights(*parts, str(saved)) == ["encoder.conv_out.space", "decoder.conv_in.space"]
    theirs = torch.load(saved, weights_only=True)
    assert torch.equal(parts[0].conv_out.space.weight, fresh[0].conv_out.space.weight)
    assert torch.equal(parts[1].conv_in.space.bias, fresh[1].conv_in.space.bias)
    assert torch.equal(parts[0].conv_out.norm.weight, theirs["encoder.conv_norm_out.weight"])
    assert torch.equal(parts[1].levels[3][0].conv1.space.weight, theirs["decoder.up_blocks.3.resnets.0.conv1.weight"])


def test_what_does_not_fit_is_named_and_changes_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, decoder = both(SMALL)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    good = torch.load(saved, weights_only=True)
    gone = "decoder.mid_block.resnets.1.norm2.bias"
    cases = (
        ({k: v for k, v in good.items() if k != gone}, f"no {gone}"),
        ({**good, "loss.logvar": torch.zeros(1)}, "unknown loss.logvar"),
        (
            {**good, "encoder.conv_in.weight": torch.zeros(8, 4, 3, 3)},
            r"encoder.conv_in.weight is \(8, 4, 3, 3\).*\(8, 3, 3, 3\)",
        ),
        ({"encoder.conv_in.weight": torch.zeros(1)}, "no encoder.conv_out.weight: these are not an AutoencoderKL"),
        ({**good, "post_quant_conv.weight": torch.zeros(4, 4, 1, 1)}, "post_quant_conv.weight has no inverse"),
    )
    for tensors, said in cases:
        torch.save(tensors, saved)
        with pytest.raises(ValueError, match=said):
            load_image_weights(encoder, decoder, str(saved))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    saved.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is no file of tensors"):
        load_image_weights(encoder, decoder, str(saved))
    torch.save(torch.zeros(3), saved)
    with pytest.raises(ValueError, match="holds a Tensor, not a dictionary"):
        load_image_weights(encoder, decoder, str(saved))
    torch.save(good, saved)
    with pytest.raises(ValueError, match=r"image weights need model.skip = false"):
        load_image_weights(*both(TINY), str(saved))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ValueError, match="needs `pip install safetensors`"):
        load_image_weights(encoder, decoder, str(saved.with_suffix(".safetensors")))
