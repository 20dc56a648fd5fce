"""The flow model's part of a training run: text and backbone, how they are divided, their loss, and what is shown of them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training_bridge.dit import flow
from training_bridge.dit.cost import model_flops
from training_bridge.dit.flow import FlowConfig, sample_losses
from training_bridge.dit.model import PATCH, Backbone, BackboneConfig, How, check_grid, config_of, grow_positions
from training_bridge.dit.parallel import Recompute, compiled, recomputed, replicated, tensor_parallel
from training_bridge.dit.sample import SamplerConfig, sample
from training_bridge.dit.text import EncoderConfig, TextTokens, byte_ids, padded
from training_bridge.exchange import Gather, Kind, Ulysses, exchange
from training_bridge.index import Shape
from training_bridge.layout import nearest_divisors
from training_bridge.plan import tokens

if TYPE_CHECKING:
    from training_bridge.layout import Layout, Meshes
    from training_bridge.loader import Batch

BYTES = EncoderConfig(name="letters", kind="bytes", width=128, limit=256)
TIME_BINS = 4
"""Validation tells the loss of so many equal spans of time apart."""
PIXELS = 8
"""Pixels of a latent, and frames."""
FPS = 16
"""Frames a second of what validation draws."""


@dataclass(frozen=True, kw_only=True)
class DitConfig:
    """Settings of the flow model and its training."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    size: str = "1b"
    """tiny, 1b, 5b or 30b."""
    backbone: BackboneConfig | None = None
    """An architecture of its own, instead of a named size."""
    lengths: tuple[int, int, int] | None = None
    """Rows of the position tables for time, height and width, instead of the architecture's."""
    grow_time: How = "extend"
    """How tables grow where the weights to begin with have shorter ones."""
    grow_space: How = "interpolate"
    objective: FlowConfig = field(default_factory=FlowConfig)
    text: tuple[EncoderConfig, ...] = (BYTES,)
    prompt: str = "FPS-{fps} {prompt}"
    """How a prompt for a film is written when samples are drawn: as the captions were that it was trained on."""
    tae: str | None = None
    """The autoencoder's file: its latents are the ones to train on, and samples are shown."""
    pictures: int = 4
    """Captions of held-out samples that are sampled at each validation, where `tae` is named."""
    prompts: tuple[str, ...] = ()
    """Texts of your own that are sampled beside them, each time from the same noise."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """How these are drawn."""
    weight_decay: float = 0.1
    """Of matrices; norms, biases, tables and modulation have none."""
    exchange: Kind = "auto"
    recompute: Recompute = "none"
    compile: bool = False
    """Compile the blocks."""

    def __post_init__(self) -> None:
        try:
            self.prompt.format(fps="", prompt="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"prompt {self.prompt!r} may hold {{fps}} and {{prompt}} and nothing else: {error}") from error
        if self.prompts and self.tae is None:
            raise ValueError("prompts are drawn for an autoencoder to show: name its file, tae")

    @property
    def architecture(self) -> BackboneConfig:
        """The backbone's settings, all told."""
        own = self.backbone or config_of(self.size)
        return own if self.lengths is None else replace(own, lengths=self.lengths)

    def written(self, prompt: str, frames: int, fps: int = FPS) -> str:
        """A prompt as the model is given it: of a film with its rate, of an image as it is."""
        return prompt if frames == 1 else self.prompt.format(fps=fps, prompt=prompt)


@dataclass(frozen=True)
class Inputs:
    """What a run was given: fingerprints of the encoders of latents and texts, the empty caption as each text encoder
    encodes it, and what frozen ones make of the texts that validation draws."""

    encoders: Mapping[str, str] = field(default_factory=dict)
    null: Mapping[str, Tensor] = field(default_factory=dict)
    prompts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """By the text, then by the encoder's name."""


class FlowTask:
    """What the training loop asks for; the model has `text` and `backbone`."""

    name = "flow"
    averaged = ("text.", "backbone.")
    grows = ("positions",)

    def __init__(self, config: DitConfig, inputs: Inputs | None = None) -> None:
        """Raises ValueError where a frozen text encoder has no encodings to train on."""
        self.config, self.inputs = config, inputs or Inputs()
        self.architecture = config.architecture
        self.draw = partial(flow.draw, config.objective)
        self.null = {e.name: byte_ids("", e.limit) for e in config.text if e.kind == "bytes"} | dict(self.inputs.null)
        if lacking := [e.name for e in config.text if e.name not in self.null]:
            raise ValueError(f"no encodings of text encoders {', '.join(lacking)} are read: see data.train.*.encoded")
        self.shapes: list[Shape] = []
        self.exchange: Ulysses | Gather | None = None
        self.group: dist.ProcessGroup | None = None
        self._text_tokens = 0
        """Of the last batch."""
        self._bins = torch.zeros(2, TIME_BINS, dtype=torch.float64)
        """Sums of loss and weight by time, of the validation under way."""

    def check(self, shapes: Sequence[Shape]) -> None:
        """Raises ValueError for sides that do not make whole patches, or longer samples than the position tables."""
        for shape in shapes:
            if shape.height % (PIXELS * PATCH) or shape.width % (PIXELS * PATCH):
                raise ValueError(f"{shape}: the flow model takes sides that are multiples of {PIXELS * PATCH}")
            check_grid(self.architecture, grid(shape))
        self.shapes = list(shapes)

    def build(self) -> nn.ModuleDict:
        """The parts, on the meta device."""
        with torch.device("meta"):
            text = TextTokens(self.config.text, self.architecture.width)
            return nn.ModuleDict({"backbone": Backbone(self.architecture), "text": text})

    def blocks(self, model: nn.ModuleDict) -> Iterator[nn.Module]:
        """What is sharded on its own."""
        yield from _backbone(model).blocks

    def parallelize(self, model: nn.ModuleDict, layout: "Layout", meshes: "Meshes | None") -> None:
        """Divide the model. Raises ValueError with what would fit where heads or tokens do not divide."""
        check_layout(self.architecture, self.shapes, layout)
        backbone = _backbone(model)
        if meshes is not None and layout.tensor > 1:
            mesh = meshes.parameters["tensor"]
            tensor_parallel(backbone, mesh)
            replicated(model["text"], mesh, (None, None))
        if meshes is not None and layout.context > 1:
            self.group = meshes.context
            self.exchange = exchange(self.config.exchange, meshes.context, self.architecture.heads // layout.tensor)
        for block in backbone.blocks:
            recomputed(block, self.config.recompute)
            if self.config.compile:
                compiled(block)

    def groups(self, model: nn.ModuleDict) -> list[dict[str, Any]]:
        """Matrices with decay, all else without."""
        matrices = {
            f"{path}.weight" for path, m in model.named_modules() if isinstance(m, nn.Linear) and "modulation" not in path
        }
        decayed = [p for name, p in model.named_parameters() if name in matrices]
        rest = [p for name, p in model.named_parameters() if name not in matrices]
        return [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": rest, "weight_decay": 0.0}]

    def loss(self, model: nn.ModuleDict, batch: "Batch", step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum over samples of weight x loss, of this rank's tokens."""
        return (batch.weights * self._losses(model, batch, batch.draws["drop"])).sum(), {}

    def _losses(self, model: nn.ModuleDict, batch: "Batch", drop: Tensor) -> Tensor:
        backbone, shared = _backbone(model), self.exchange is not None and batch.shape.frames > 1
        backbone.set_exchange(self.exchange if shared else None)
        rank, ranks = (dist.get_rank(self.group), dist.get_world_size(self.group)) if shared else (0, 1)
        if (found := batch.tensors["latents"].shape[1]) != self.architecture.channels:
            raise ValueError(
                f"the latents have {found} channels, the backbone takes {self.architecture.channels}: another autoencoder's?"
            )
        text, mask = self._text(model, batch.ragged, batch.texts, drop)
        return sample_losses(
            backbone,
            batch.tensors["latents"],
            batch.draws["noise"],
            batch.draws["time"],
            text,
            mask,
            sigma_min=self.config.objective.sigma_min,
            rank=rank,
            ranks=ranks,
        )

    def _text(
        self, model: nn.ModuleDict, ragged: Mapping[str, Sequence[Tensor]], texts: Sequence[str], drop: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the backbone sees of captions."""
        rows = {
            e.name: [byte_ids(text, e.limit) for text in texts] if e.kind == "bytes" else ragged[e.name]
            for e in self.config.text
        }
        found: tuple[Tensor, Tensor] = model["text"](*padded(rows, drop.tolist(), self._nulls(drop.device), drop.device))
        self._text_tokens = found[0].shape[1]
        return found

    def _nulls(self, device: torch.device) -> dict[str, Tensor]:
        kinds = {e.name: e.kind for e in self.config.text}
        return {name: null if kinds[name] == "bytes" else null.to(device) for name, null in self.null.items()}

    def validate(self, model: nn.ModuleDict, batch: "Batch") -> dict[str, Tensor]:
        """The loss at the held-out samples' own times and noise, no text dropped; by time as well, until `validated`."""
        each = batch.weights * self._losses(model, batch, torch.zeros_like(batch.draws["drop"]))
        ranks = 1 if self.group is None or batch.shape.frames == 1 else dist.get_world_size(self.group)
        bins = (batch.draws["time"] * TIME_BINS).long().clamp(max=TIME_BINS - 1).cpu()
        self._bins[0].index_add_(0, bins, each.double().cpu())
        self._bins[1].index_add_(0, bins, batch.weights.double().cpu() / ranks)
        return {"loss": each.sum()}

    def validated(self, group: dist.ProcessGroup | None) -> dict[str, float]:
        """The loss of each span of time that had samples, over all ranks."""
        sums, self._bins = self._bins, torch.zeros_like(self._bins)
        dist.all_reduce(sums, group=group)
        found = zip(*sums.tolist(), strict=True)
        return {f"loss_t{i / TIME_BINS:.2f}": total / weight for i, (total, weight) in enumerate(found) if weight}

    def pictures(self, model: nn.ModuleDict, batch: "Batch") -> dict[str, Tensor]:
        """Films to look at, which all ranks draw.

        `samples`: the first held-out samples side by side, each above what is drawn for its caption. `prompts`: what is
        drawn for the settings' prompts in the same shape, row by row.
        """
        if self.config.tae is None:
            return {}
        _backbone(model).set_exchange(None)
        latents, frames = batch.tensors["latents"], batch.shape.frames
        count = min(self.config.pictures, len(batch.weights))
        encodings = [{name: rows[i] for name, rows in batch.ragged.items()} for i in range(count)]
        captioned = [self.drawn(model, batch.texts[i], encodings[i], latents[i].shape, i) for i in range(count)]
        texts = [self.config.written(prompt, frames) for prompt in self.config.prompts]
        prompted = [
            self.drawn(model, text, self.inputs.prompts.get(text, {}), latents[0].shape, i) for i, text in enumerate(texts)
        ]
        if dist.get_rank() != 0 or not (captioned or prompted):
            return {}
        from training_bridge.tae.encoder import TaeEncoder

        tae = TaeEncoder(self.config.tae, str(latents.device))
        tae.open()

        def film(drawn: Sequence[Tensor], width: int) -> Tensor:
            cells = [torch.from_numpy(tae.decode(z.float().cpu().numpy(), frames)) for z in drawn]
            cells += [torch.zeros_like(cells[0])] * (-len(cells) % width)
            return torch.cat([torch.cat(cells[i : i + width], dim=2) for i in range(0, len(cells), width)], dim=1)

        shown = {"samples": film([*latents[:count], *captioned], count)} if captioned else {}
        return shown | ({"prompts": film(prompted, math.ceil(len(prompted) ** 0.5))} if prompted else {})

    def drawn(
        self,
        model: nn.ModuleDict,
        text: str,
        encodings: Mapping[str, Tensor],
        shape: Sequence[int],
        number: int,
        seed: int = 0,
        config: SamplerConfig | None = None,
    ) -> Tensor:
        """Sample `number` of a seed: normalised latents (C, T, H, W) for a caption and its encodings by frozen encoders.

        One at a time, so that it does not depend on what else is drawn.
        """
        device = next(model.parameters()).device
        both = {name: [row.to(device), self.null[name].to(device)] for name, row in encodings.items()}
        tokens_BLD, mask_BL = self._text(model, both, [text, ""], torch.zeros(2, dtype=torch.bool, device=device))
        _, frames, height, width = shape
        return sample(
            _backbone(model),
            tokens_BLD[:1],
            mask_BL[:1],
            tokens_BLD[1:],
            mask_BL[1:],
            grid=(frames, height // PATCH, width // PATCH),
            seed=seed,
            config=config or self.config.sampler,
            first=number,
        )[0]

    def flops(self, shape: Shape) -> float:
        """Of a sample's forward and backward, its text as long as in the last batch."""
        return model_flops(self.architecture, tokens(shape), self._text_tokens)

    def fingerprint(self) -> dict[str, Any]:
        """Architecture and position tables, text encoders, and whose latents."""
        backbone = {k: v for k, v in asdict(self.architecture).items() if k not in ("lengths", "kernels")}
        text = [
            [e.name, e.kind, e.width, e.limit, e.layers if e.kind == "bytes" else self.inputs.encoders.get(e.name)]
            for e in self.config.text
        ]
        return {
            "backbone": json.dumps(backbone, sort_keys=True),
            "positions": list(self.architecture.lengths),
            "text": json.dumps(text),
            "latents": self.inputs.encoders.get("latent"),
        }

    def grow(self, weights: dict[str, Tensor], moments: Sequence[dict[str, Tensor]]) -> None:
        """Position tables, each way along time and space."""
        grow_positions(weights, moments, self.architecture.lengths, self.config.grow_time, self.config.grow_space)


def grid(shape: Shape) -> tuple[int, int, int]:
    """Tokens of a sample along time, height and width."""
    side = PIXELS * PATCH
    return -(-shape.frames // PIXELS), shape.height // side, shape.width // side


def check_layout(config: BackboneConfig, shapes: Sequence[Shape], layout: "Layout") -> None:
    """Raises ValueError where heads, hidden units or tokens do not divide, with what would fit."""

    if config.heads % layout.tensor or config.ffn % layout.tensor:
        fits = nearest_divisors(math.gcd(config.heads, config.ffn), layout.tensor)
        raise ValueError(
            f"{config.heads} heads and {config.ffn} hidden units do not divide between {layout.tensor} tensor ranks; "
            f"tensor may be {fits}"
        )
    for shape in shapes:
        ranks, count = layout.tensor * (layout.context if shape.frames > 1 else 1), tokens(shape)
        if count % ranks:
            fits = nearest_divisors(count, ranks)
            raise ValueError(
                f"{shape}: its {count} tokens do not divide between {ranks} ranks of context x tensor; context x tensor may be "
                f"{fits}"
            )


def _backbone(model: nn.ModuleDict) -> Backbone:
    backbone = model["backbone"]
    assert isinstance(backbone, Backbone)
    return backbone
