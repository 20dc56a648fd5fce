"""Weights of published image autoencoders into the spatial layers of ours; temporal layers stay as they are.

A file is safetensors or a `.pt` of tensors, with the keys of diffusers' AutoencoderKL (Stable Diffusion's and their kin).
Its two 1 x 1 quant convolutions, where it has them, are folded exactly into the layers beside them:

- the encoder's into its last convolution;
- the decoder's weight P into the decoder's first. Its bias b does not cross that convolution's zero padding: P^-1 b is added
  to the encoder's means instead, so that our latents are the published ones plus that constant.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from training_bridge.tae.model import Conv, Decoder, Encoder, ResBlock, Resize

FORMER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Attention's names in files of older versions."""
ENDS = ("encoder.conv_out.space", "decoder.conv_in.space")
"""Layers whose shape depends on the number of latent channels."""


def load_image_weights(encoder: Encoder, decoder: Decoder, path: str) -> list[str]:
    """Fill the spatial layers from a file. Returns the layers that start anew because it has other latent channels.

    Raises ValueError naming the keys where some are missing, unknown or of another shape; nothing is loaded then.
    """
    if encoder.config.skip:
        raise ValueError("a model with skip has layers of its own shapes: image weights need model.skip = false")
    theirs = folded(modern(read(path)), encoder.config.latent_channels)
    ours = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).state_dict()
    new = list(ENDS) if theirs["encoder.conv_out.weight"].shape[0] != 2 * encoder.config.latent_channels else []
    found, missing, wrong = {}, [], []
    for mine, their in names(encoder, decoder):
        for kind in ("weight", "bias"):
            own, value = ours[f"{mine}.{kind}"], theirs.pop(f"{their}.{kind}", None)
            if mine in new:
                continue
            if value is None:
                missing.append(f"{their}.{kind}")
            elif value.shape == own.shape or value.shape == (*own.shape, 1, 1):  # a 1 x 1 convolution is a linear layer
                found[f"{mine}.{kind}"] = value.view(own.shape)
            else:
                wrong.append(f"{their}.{kind} is {tuple(value.shape)}, and the model's {tuple(own.shape)}")
    faults = [*(f"no {key}" for key in missing), *wrong, *(f"unknown {key}" for key in theirs)]
    if faults:
        more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError(f"{path!r} does not fit this model: {'; '.join(faults[:5])}{more}")
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in found.items() if k.startswith("encoder.")}, strict=False)
    decoder.load_state_dict({k.removeprefix("decoder."): v for k, v in found.items() if k.startswith("decoder.")}, strict=False)
    return new


def read(path: str) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pt` file, in fp32. Raises ValueError where it is neither."""
    if Path(path).suffix == ".safetensors":
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load_file
        except ImportError as error:
            raise ValueError(f"{path!r}: reading safetensors needs `pip install safetensors`") from error
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path!r} is no safetensors file: {error}") from error
    else:
        tensors = read_pt(path)
    return {key: value.float() for key, value in tensors.items()}


def read_pt(path: str) -> dict[str, Tensor]:
    """The tensors of a dictionary that `torch.save` wrote."""
    loaded = load_plain(path)
    inner = loaded.get("state_dict", loaded)
    return {key: value for key, value in inner.items() if isinstance(value, Tensor)}


def load_plain(path: str) -> dict[str, Any]:
    """A dictionary that `torch.save` wrote; nothing but tensors and plain values is let in.

    Raises ValueError where the file is something else.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path!r} is no file of tensors and plain values, or a damaged one") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path!r} holds a {type(loaded).__name__}, not a dictionary")
    return loaded


def shortly(error: RuntimeError) -> str:
    """The first complaint of `load_state_dict`, of what may be hundreds."""
    lines = str(error).splitlines()
    return " ".join(line.strip() for line in lines[:2]) + (f" (and {len(lines) - 2} more)" if len(lines) > 2 else "")


def modern(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same under the present names of attention."""
    found = {}
    for key, value in tensors.items():
        for now, former in FORMER.items():
            key = key.replace(f"attentions.0.{former}.", f"attentions.0.{now}.")
        found[key] = value
    return found


def folded(tensors: dict[str, Tensor], latent_channels: int) -> dict[str, Tensor]:
    """The same function without quant convolutions."""
    if missing := [k for k in ("encoder.conv_out.weight", "decoder.conv_in.weight") if k not in tensors]:
        raise ValueError(f"no {missing[0]}: these are not an AutoencoderKL's weights")
    if "quant_conv.weight" in tensors:
        Q, q = tensors.pop("quant_conv.weight").flatten(1), tensors.pop("quant_conv.bias")
        W, w = tensors["encoder.conv_out.weight"], tensors["encoder.conv_out.bias"]
        tensors["encoder.conv_out.weight"] = torch.einsum("oi,ichw->ochw", Q, W)
        tensors["encoder.conv_out.bias"] = Q @ w + q
    if "post_quant_conv.weight" in tensors:
        P, p = tensors.pop("post_quant_conv.weight").flatten(1), tensors.pop("post_quant_conv.bias")
        tensors["decoder.conv_in.weight"] = torch.einsum("oihw,ic->ochw", tensors["decoder.conv_in.weight"], P)
        if len(p) == latent_channels:
            try:
                shift = torch.linalg.solve(P.double(), p.double()).float()
            except RuntimeError as error:
                raise ValueError("post_quant_conv.weight has no inverse: its bias cannot be folded") from error
            tensors["encoder.conv_out.bias"] = tensors["encoder.conv_out.bias"] + torch.cat([shift, torch.zeros_like(shift)])
    return tensors


def names(encoder: Encoder, decoder: Decoder) -> Iterator[tuple[str, str]]:
    """Our spatial layers and what AutoencoderKL calls them."""
    for part, ends, blocks, steps in (
        ("encoder", encoder, "down_blocks", "downsamplers"),
        ("decoder", decoder, "up_blocks", "upsamplers"),
    ):
        assert isinstance(ends, Encoder | Decoder)
        yield from layer(ends.conv_in, f"{part}.conv_in", f"{part}.conv_in", "")
        for number, level in enumerate(ends.levels):
            assert isinstance(level, nn.ModuleList)
            for place, module in enumerate(level):
                mine = f"{part}.levels.{number}.{place}"
                if isinstance(module, Resize):
                    yield from layer(module, mine, f"{part}.{blocks}.{number}.{steps}.0.conv", "")
                else:
                    yield from residual(module, mine, f"{part}.{blocks}.{number}.resnets.{place}")
        for mine, place in (("block1", 0), ("block2", 1)):
            yield from residual(ends.middle.get_submodule(mine), f"{part}.middle.{mine}", f"{part}.mid_block.resnets.{place}")
        for own, their in (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out.0")):
            yield f"{part}.middle.space.{own}", f"{part}.mid_block.attentions.0.{their}"
        yield from layer(ends.conv_out, f"{part}.conv_out", f"{part}.conv_out", f"{part}.conv_norm_out")


def layer(module: nn.Module, mine: str, conv: str, norm: str) -> Iterator[tuple[str, str]]:
    """A convolution, and the norm before it where there is one."""
    assert isinstance(module, Conv)
    if module.norm is not None:
        yield f"{mine}.norm", norm
    yield f"{mine}.space", conv


def residual(module: nn.Module, mine: str, theirs: str) -> Iterator[tuple[str, str]]:
    """A residual block."""
    assert isinstance(module, ResBlock)
    for number in ("1", "2"):
        yield from layer(
            module.get_submodule(f"conv{number}"), f"{mine}.conv{number}", f"{theirs}.conv{number}", f"{theirs}.norm{number}"
        )
    if isinstance(module.shortcut, nn.Linear):
        yield f"{mine}.shortcut", f"{theirs}.conv_shortcut"
