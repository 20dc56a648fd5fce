"""Text as the backbone sees it: several encoders' tokens, each projected to the model's width, side by side.

The paper's three (section 3.1.3): UL2 for what a caption means, ByT5 for the letters of text that shall be seen in the picture
(it is given only what stands in quotation marks), and a MetaCLIP with long prompts. They are frozen: their output may
be encoded once and kept beside the shards, as long as the caption is and no longer. `bytes` needs no weights: it is small, and
trained with the backbone.

The text of a sample that is dropped is the empty caption, for all encoders at once, as they encode it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training_bridge.dit.model import BackboneConfig, CrossAttention, FeedForward
from training_bridge.dit.quotes import quoted

MULTIPLE = 16
"""Lengths are padded to this: kernels copy masks of other lengths."""
END = 256
"""What follows a text's bytes."""
PROBE = "A sign says “Zoë’s café, 24h”; the camera pans right."


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """One text encoder."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    """What its encodings are called in the sidecar tars and the model."""
    kind: Literal["t5", "open_clip", "bytes"]
    """`t5`: the encoder of any T5 (UL2, ByT5) by transformers; `open_clip`: a CLIP's text tower; `bytes`: trained."""
    path: str = ""
    """What the package loads: a folder or a hub name (`google/ul2`, `google/byt5-small`); for open_clip `local-dir:FOLDER`,
    `hf-hub:OWNER/NAME`, or an architecture's name."""
    weights: str | None = None
    """File or tag of an open_clip architecture's weights."""
    width: int
    """Of its tokens: 4096 of UL2, 1472 of ByT5-small, 1280 of MetaCLIP ViT-bigG."""
    limit: int
    """Most tokens; what is longer is cut off. Usual are 512 for UL2, 100 for ByT5, 256 for a MetaCLIP with long prompts."""
    sees: Literal["caption", "quoted"] = "caption"
    """`quoted`: only what stands in quotation marks."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """What a frozen encoder computes in. Encodings are kept as float16."""
    layers: int = 2
    """Of `bytes`."""

    def __post_init__(self) -> None:
        if self.kind != "bytes" and not self.path:
            raise ValueError(f"text encoder {self.name!r} of kind {self.kind} needs a path")
        if self.kind == "bytes" and self.sees == "quoted":
            raise ValueError(f"text encoder {self.name!r}: `bytes` sees captions")


def byte_ids(caption: str, limit: int) -> Tensor:
    """A caption's bytes and an end: (L,)."""
    return torch.tensor([*caption.encode()[: limit - 1], END])


class Frozen(Protocol):
    """An encoder that is not trained."""

    config: EncoderConfig
    fingerprint: str
    """Of its weights, its tokens and its settings: encodings of the same are the same, but for the device's rounding."""

    def encode_text(self, captions: Sequence[str]) -> list[NDArray[np.float16]]:
        """Each caption's tokens (L, width), without padding; L is 1 at least."""
        ...


def load(config: EncoderConfig, device: str = "cpu") -> Frozen:
    """A frozen encoder with its weights. Raises ValueError where they are of another width than the config says."""
    kinds: dict[str, Callable[[EncoderConfig, str], Frozen]] = {"t5": T5Text, "open_clip": ClipText}
    encoder = kinds[config.kind](config, device)
    found = encoder.encode_text([PROBE])[0].shape[1]
    if found != config.width:
        raise ValueError(f"text encoder {config.name!r} gives tokens {found} wide, its config says {config.width}")
    return encoder


class T5Text:
    """The encoder of a T5: UL2, ByT5."""

    def __init__(self, config: EncoderConfig, device: str) -> None:
        import transformers

        self.config, self.device = config, device
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(config.path)
        model: Any = transformers.T5EncoderModel.from_pretrained(config.path, dtype=getattr(torch, config.dtype))
        self.model = model.eval().requires_grad_(False).to(device)
        self.fingerprint = _fingerprint(config, self.model.state_dict(), self._tokens([PROBE])["input_ids"])

    def _tokens(self, texts: Sequence[str]) -> Any:
        limit = self.config.limit
        return self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt").to(self.device)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> list[NDArray[np.float16]]:
        tokens = self._tokens(_seen(self.config, captions))
        states = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
        return _ragged(self.config, states, tokens["attention_mask"].sum(1))


class ClipText:
    """The text tower of a CLIP: its tokens after the last layer's norm, up to the end of the text."""

    def __init__(self, config: EncoderConfig, device: str) -> None:
        import open_clip

        self.config, self.device = config, device
        length = None if config.path.startswith(("local-dir:", "hf-hub:")) else config.limit
        made: Any = open_clip.create_model(
            config.path, pretrained=config.weights, force_context_length=length, device=device, require_pretrained=True
        )
        tower: Any = getattr(made, "text", made)
        made = made.eval().requires_grad_(False).to(getattr(torch, config.dtype))
        self.model, self.norm, self.length = made, tower.ln_final, int(tower.context_length)
        if self.length < config.limit:
            raise ValueError(f"text encoder {config.name!r} takes {self.length} tokens, its limit says {config.limit}")
        self.tokenizer: Any = open_clip.get_tokenizer(config.path)
        weights = {name: x for name, x in made.state_dict().items() if not name.startswith("visual.")}
        self.fingerprint = _fingerprint(config, weights, self._tokens([PROBE]))

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        ids: Tensor = self.tokenizer(list(texts), context_length=self.length)
        return ids.to(self.device)

    @torch.no_grad()
    def encode_text(self, captions: Sequence[str]) -> list[NDArray[np.float16]]:
        found: list[Tensor] = []
        ids = self._tokens(_seen(self.config, captions))
        hook = self.norm.register_forward_hook(lambda _module, _args, output: found.append(output))
        try:
            self.model.encode_text(ids)
        finally:
            hook.remove()
        return _ragged(self.config, found[0], (ids.argmax(1) + 1).clamp(max=self.config.limit))


def _seen(config: EncoderConfig, captions: Sequence[str]) -> list[str]:
    return [quoted(caption) for caption in captions] if config.sees == "quoted" else list(captions)


def _ragged(config: EncoderConfig, states_BLD: Tensor, lengths_B: Tensor) -> list[NDArray[np.float16]]:
    kept = states_BLD.to("cpu", torch.float16)
    arrays: list[NDArray[np.float16]] = [row[: int(n)].numpy() for row, n in zip(kept, lengths_B, strict=True)]
    if not all(np.isfinite(array).all() for array in arrays):
        raise ValueError(f"text encoder {config.name!r} gives numbers beyond float16, or none, in {config.dtype}")
    return arrays


def _fingerprint(config: EncoderConfig, weights: Mapping[str, Tensor], probe: Tensor) -> str:
    """Of settings, of how the probe is made tokens, and of up to 4096 values of each weight (UL2 has 40 GB)."""
    digest = blake2b(f"{config.kind}/{config.limit}/{config.sees}/{config.dtype}/{probe.tolist()}".encode(), digest_size=16)
    for name, weight in sorted(weights.items()):
        flat = weight.flatten()
        some = flat[:: max(1, len(flat) // 4096)].to("cpu", torch.float32).numpy()
        digest.update(f"{name}/{tuple(weight.shape)}".encode() + some.tobytes())
    return digest.hexdigest()


Padded = tuple[dict[str, Tensor], dict[str, Tensor]]
"""Tokens of each encoder, padded (B, L, width), bytes (B, L); and masks (B, L) that are True where there is text."""


def padded(
    encodings: Mapping[str, Sequence[Tensor]],
    drop: Sequence[bool],
    null: Mapping[str, Tensor],
    device: str | torch.device = "cpu",
) -> Padded:
    """A batch of ragged encodings, where those of dropped samples are the empty caption's, `null`."""
    values, masks = {}, {}
    for name, rows in encodings.items():
        kept = [null[name] if dropped else row for row, dropped in zip(rows, drop, strict=True)]
        longest = -(-max(len(row) for row in kept) // MULTIPLE) * MULTIPLE
        whole = kept[0].new_zeros(len(kept), longest, *kept[0].shape[1:])
        mask = torch.zeros(len(kept), longest, dtype=torch.bool)
        for i, row in enumerate(kept):
            whole[i, : len(row)], mask[i, : len(row)] = row, True
        values[name], masks[name] = whole.to(device), mask.to(device)
    return values, masks


class ByteEncoder(nn.Module):
    """A small transformer over bytes."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        d = config.width
        like = BackboneConfig(layers=config.layers, width=d, heads=max(1, d // 64), ffn=2 * d)
        self.bytes, self.places = nn.Embedding(END + 1, d), nn.Embedding(config.limit + MULTIPLE, d)
        self.mixing = nn.ModuleList(CrossAttention(like) for _ in range(config.layers))
        self.ffns = nn.ModuleList(FeedForward(like) for _ in range(config.layers))
        self.norms = nn.ModuleList(nn.RMSNorm(d, eps=1e-6) for _ in range(2 * config.layers))

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        x: Tensor = self.bytes(ids_BL) + self.places.weight[: ids_BL.shape[1]]
        for mix, ffn, before, between in zip(self.mixing, self.ffns, self.norms[::2], self.norms[1::2], strict=True):
            y = before(x)
            x = x + mix(y, y, mask_BL)
            x = x + ffn(between(x))
        return x


class TextTokens(nn.Module):
    """What cross-attention sees: each encoder's tokens by a Linear and a LayerNorm of its own, one after the other."""

    def __init__(self, encoders: Sequence[EncoderConfig], width: int) -> None:
        super().__init__()
        if not encoders or len({e.name for e in encoders}) < len(encoders):
            raise ValueError(f"text encoders need names, each its own: {[e.name for e in encoders]}")
        self.order = [e.name for e in encoders]
        self.linear = nn.ModuleDict({e.name: nn.Linear(e.width, width) for e in encoders})
        self.norm = nn.ModuleDict({e.name: nn.LayerNorm(width) for e in encoders})
        self.bytes = nn.ModuleDict({e.name: ByteEncoder(e) for e in encoders if e.kind == "bytes"})

    def initial(self, name: str, values: Tensor, random: torch.Generator | None = None) -> Tensor:
        """Fill the values of a parameter as torch's own modules do."""
        module = self.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            return values.uniform_(-bound, bound, generator=random)
        if isinstance(module, nn.Embedding):
            return values.normal_(generator=random)
        return values.fill_(float(name.endswith("weight")))  # norms

    def forward(self, values: dict[str, Tensor], masks: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Text (B, L, D) of all encoders' tokens, and its mask (B, L)."""
        tokens = []
        for name in self.order:
            x = self.bytes[name](values[name], masks[name]) if name in self.bytes else values[name]
            dtype = next(self.linear[name].parameters()).dtype
            tokens.append(self.norm[name](self.linear[name](x.to(dtype))))
        return torch.cat(tokens, dim=1), torch.cat([masks[name] for name in self.order], dim=1)
