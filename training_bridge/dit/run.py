"""Runs of the flow model: train one, with the inputs that its data config names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from training_bridge import encoded, index, run
from training_bridge.data import DataConfig, DatasetConfig, planned
from training_bridge.dit import cost
from training_bridge.dit.task import DitConfig, FlowTask, Inputs, check_layout
from training_bridge.dit.text import EncoderConfig, load
from training_bridge.encoded import LATENT, Encoded
from training_bridge.index import Shape
from training_bridge.launch import Ranks, ranks
from training_bridge.layout import Layout
from training_bridge.loop import LoopConfig
from training_bridge.plan import tokens

AUTO = "auto"
"""In `encoded`: the one encoder of that name whose encodings lie beside the shards."""


@dataclass(frozen=True, kw_only=True)
class FlowRun:
    """The settings of a run."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    loop: LoopConfig
    data: DataConfig
    dit: DitConfig = field(default_factory=DitConfig)


def train(folder: Path, own: FlowRun, device: str | None = None) -> int:
    """Train one run below a folder; returns 0, or the code of a run that was told to stop. Raises as `run.train`."""
    here = ranks(device)
    data, inputs = resolved(own.data, own.dit)
    inputs = replace(inputs, prompts=prompts(own.dit, inputs.encoders, here))
    return run.train(folder, own.loop, data, FlowTask(own.dit, inputs), device)


def prompts(dit: DitConfig, encoders: Mapping[str, str], here: Ranks) -> dict[str, dict[str, Tensor]]:
    """What frozen text encoders make of the prompts, written for images and for films. Rank 0 loads them, for all.

    Raises ValueError, on all ranks, where one cannot be loaded or is not the one whose encodings are trained on.
    """
    texts = [dit.written(prompt, frames) for prompt in dit.prompts for frames in (1, 2)]
    frozen = [e for e in dit.text if e.kind != "bytes"]
    if not (texts and frozen):
        return {}
    found: list[Any] = [None]
    if here.rank == 0:
        try:
            found = [_encoded(texts, frozen, encoders, here.device.type)]
        except (ValueError, OSError, ImportError) as error:
            found = [f"dit.prompts: {error}"]
    dist.broadcast_object_list(found, src=0, group=here.control)
    if isinstance(found[0], str):
        raise ValueError(found[0])
    return cast("dict[str, dict[str, Tensor]]", found[0])


def _encoded(
    texts: Sequence[str], frozen: Sequence[EncoderConfig], encoders: Mapping[str, str], device: str
) -> dict[str, dict[str, Tensor]]:
    by_text: dict[str, dict[str, Tensor]] = {text: {} for text in texts}
    for config in frozen:
        encoder = load(config, device)
        if encoder.fingerprint != encoders[config.name]:
            raise ValueError(
                f"{config.path!r} is {config.name} {encoder.fingerprint!r}, trained on is {encoders[config.name]!r}"
            )
        for text, array in zip(texts, encoder.encode_text(texts), strict=True):
            by_text[text][config.name] = torch.from_numpy(array.astype("float32"))
    return by_text


def resolved(data: DataConfig, dit: DitConfig) -> tuple[DataConfig, Inputs]:
    """The data's settings with all encoders' fingerprints, and what the model must know of them.

    Raises ValueError where a dataset has no latents, those of another autoencoder, or encodings of another text encoder.
    """
    known = {LATENT: _tae_fingerprint(dit.tae)} if dit.tae else {}
    wanted = [LATENT, *(e.name for e in dit.text if e.kind != "bytes")]
    train = {name: _resolved(f"data.train.{name}", own, wanted, known) for name, own in data.train.items()}
    encoders = _one_each({f"data.train.{name}": own for name, own in train.items()})
    held = {name: _resolved(f"data.held_out.{name}", own, wanted, encoders) for name, own in data.held_out.items()}
    _one_each(
        {
            f"data.{part}.{name}": own
            for part, several in (("train", train), ("held_out", held))
            for name, own in several.items()
        }
    )
    null = _nulls(next(iter(train.values())), wanted[1:]) if train else {}
    return replace(data, train=train, held_out=held), Inputs(encoders, null)


def _resolved(where: str, dataset: DatasetConfig, wanted: Iterable[str], known: Mapping[str, str]) -> DatasetConfig:
    found = {}
    for name in wanted:
        own = dataset.encoded.get(name, known.get(name, AUTO))
        try:
            own = known.get(name) or encoded.only(dataset.path, name) if own == AUTO else own
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if own != known.get(name, own):
            raise ValueError(f"{where}: its {name} is of encoder {own!r}, and {known[name]!r} is wanted")
        found[name] = own
    return replace(dataset, encoded=found)


def _one_each(datasets: Mapping[str, DatasetConfig]) -> dict[str, str]:
    """The encoder of each name. Raises ValueError where two datasets have two."""
    found: dict[str, str] = {}
    for where, dataset in datasets.items():
        for name, own in dataset.encoded.items():
            if found.setdefault(name, own) != own:
                raise ValueError(f"{where}: its {name} is of encoder {own!r}, that of others is {found[name]!r}")
    return found


def _nulls(dataset: DatasetConfig, names: Iterable[str]) -> dict[str, Tensor]:
    shards = index.read(dataset.path)
    return {name: torch.from_numpy(Encoded(name, dataset.encoded[name]).empty(shards)) for name in names}


def _tae_fingerprint(path: str) -> str:
    from training_bridge.tae.encoder import TaeEncoder

    return TaeEncoder(path, "cpu").fingerprint


def laid_out(own: FlowRun, world: int, machine: cost.Machine | None = None) -> tuple[FlowRun, str]:
    """The run with the layout, micro-batch and recomputation that are the fastest on `world` cards by the cost model, and why.

    Raises ValueError where none fits.
    """
    data, _ = resolved(own.data, own.dit)
    _, plan = planned("train", data.train, data)
    shape = max(plan.shapes, key=tokens)
    text = sum(e.limit for e in own.dit.text)
    work = cost.Workload(config=own.dit.architecture, tokens=tokens(shape), text=text, batch=plan.batch[shape])
    found = [c for c in cost.ranked(work, world, machine) if _divides(own, plan.shapes, c)]
    if not found:
        raise ValueError(f"no layout of {world} ranks divides the tokens of all shapes: {', '.join(map(str, plan.shapes))}")
    best = found[0]
    layout = Layout(replicate=best.replicate, shard=best.shard, context=best.context, tensor=best.tensor)
    made = replace(
        own,
        loop=replace(own.loop, layout=layout),
        data=replace(own.data, micro_tokens=best.micro * tokens(shape)),
        dit=replace(own.dit, recompute=best.recompute),
    )
    return made, f"{shape}, {plan.batch[shape]} samples of {tokens(shape)} tokens a step:\n{cost.explained(found)}"


def _divides(own: FlowRun, shapes: Sequence[Shape], candidate: cost.Candidate) -> bool:
    """Whether every shape's tokens divide, and context ranks have films to share."""
    layout = Layout(context=candidate.context, tensor=candidate.tensor)
    if layout.context > 1 and all(shape.frames == 1 for shape in shapes):
        return False
    try:
        check_layout(own.dit.architecture, shapes, layout)
    except ValueError:
        return False
    return True
