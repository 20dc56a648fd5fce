"""A finished flow model: a file of averaged weights, or the newest checkpoint of a run; and what it draws for prompts.

The file is safetensors; its metadata has the model's settings and what its latents and texts must come from.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from training_bridge import average, settings
from training_bridge.checkpoint import STATE, newest_of, state_of, weights
from training_bridge.dit import text
from training_bridge.dit.recipe import Recipe, kind_of, steps_of
from training_bridge.dit.run import FlowRun
from training_bridge.dit.sample import SamplerConfig
from training_bridge.dit.task import PIXELS, DitConfig, FlowTask, Inputs, grid
from training_bridge.encoded import LATENT
from training_bridge.index import Shape
from training_bridge.loop import check_fingerprint

if TYPE_CHECKING:
    from training_bridge.tae.encoder import TaeEncoder

FORMAT = "reelset-flow-1"


@dataclass(frozen=True)
class Finished:
    """Weights by their names, the settings of their model, and its fingerprint."""

    config: DitConfig
    fingerprint: dict[str, Any]
    weights: dict[str, Tensor]
    place: Path


def read(place: Path) -> Finished:
    """A model from an exported file, a checkpoint, the newest checkpoint of a run, or a recipe's last stage that has one.

    Raises ValueError where it is none of these, or another version's.
    """
    if place.is_file():
        return _read_file(place)
    checkpoint = place if (place / STATE).exists() else newest_of(_last_stage(place))
    own = settings.read(checkpoint.parents[1], FlowRun)
    return Finished(own.dit, state_of(checkpoint)["task"], weights(checkpoint), checkpoint)


def _last_stage(folder: Path) -> Path:
    tree: dict[str, Any] = json.loads(settings.text(folder) or "{}")
    if kind_of(tree) is not Recipe:
        return folder
    begun: list[Path] = [folder / stage["name"] for stage in tree["stages"] if steps_of(folder / stage["name"])]
    if not begun:
        raise ValueError(f"{str(folder)!r}: no stage has a finished checkpoint")
    return begun[-1]


def _read_file(place: Path) -> Finished:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, "pt") as file:
            said = file.metadata() or {}
            if said.get("format") != FORMAT:
                raise ValueError(f"{str(place)!r} is no flow model of this version: its format is {said.get('format')!r}")
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(place)!r} is no flow model: {error}") from error
    config = settings.checked(DitConfig, json.loads(said["config"]))
    return Finished(config, json.loads(said["fingerprint"]), found, place)


def write(output: Path, model: Finished) -> None:
    """Write a model's file."""
    from safetensors.torch import save_file

    said = {"format": FORMAT, "config": TypeAdapter(DitConfig).dump_json(model.config).decode()}
    said["fingerprint"] = json.dumps(model.fingerprint)
    hidden = output.with_name(f"_{output.name}")
    save_file({name: value.contiguous() for name, value in model.weights.items()}, hidden, said)
    hidden.rename(output)


def averaged(places: Sequence[Path], shares: Sequence[float] | None = None) -> Finished:
    """The mean of several models, read one after the other. Raises ValueError where they are not of one kind."""
    first: Finished | None = None

    def each() -> Iterator[dict[str, Tensor]]:
        nonlocal first
        for place in places:
            model = read(place)
            first = first or model
            if wrong := [name for name, own in first.fingerprint.items() if model.fingerprint.get(name) != own]:
                raise ValueError(f"{str(place)!r} is of another model than {str(first.place)!r}: {', '.join(wrong)}")
            yield model.weights

    mean = average.average(each(), shares)
    assert first is not None
    return Finished(first.config, first.fingerprint, mean, first.place)


class Drawer:
    """Draws samples of a model, one at a time."""

    def __init__(self, model: Finished, device: str = "auto") -> None:
        """Loads its text encoders. Raises ValueError where they, or the weights, are not those of the model."""
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.device, self.config, self.fingerprint = torch.device(name), model.config, model.fingerprint
        self.encoders = {e.name: text.load(e, name) for e in model.config.text if e.kind != "bytes"}
        null = {name: encoder.encode_text([""])[0] for name, encoder in self.encoders.items()}
        prints = {name: encoder.fingerprint for name, encoder in self.encoders.items()}
        inputs = Inputs(prints | {LATENT: model.fingerprint[LATENT + "s"]}, _tensors(null))
        self.task = FlowTask(model.config, inputs)
        check_fingerprint(model.place, model.fingerprint, self.task.fingerprint())
        self.model = self.task.build()
        self.model.load_state_dict(model.weights, assign=True)
        self.model.to(self.device).eval().requires_grad_(False)

    def check_tae(self, tae: "TaeEncoder") -> None:
        """Raises ValueError where an autoencoder is not the one whose latents the model makes."""
        own = self.fingerprint["latents"]
        if tae.fingerprint != own:
            raise ValueError(f"{tae.path!r} is autoencoder {tae.fingerprint!r}, and the model makes latents of {own!r}")

    def draw(self, prompt: str, number: int, shape: Shape, seed: int, sampler: SamplerConfig) -> NDArray[np.float32]:
        """Sample `number` of a seed: normalised latents (C, T, H, W). Raises ValueError for a shape that it cannot draw."""
        self.task.check([shape])
        frames, *_ = grid(shape)
        size = (self.task.architecture.channels, frames, shape.height // PIXELS, shape.width // PIXELS)
        encodings = _tensors({name: encoder.encode_text([prompt])[0] for name, encoder in self.encoders.items()})
        low = torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else contextlib.nullcontext()
        with torch.inference_mode(), low:
            drawn = self.task.drawn(self.model, prompt, encodings, size, number, seed, sampler)
        found: NDArray[np.float32] = drawn.float().cpu().numpy()
        return found


def _tensors(arrays: Mapping[str, NDArray[np.float16]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
