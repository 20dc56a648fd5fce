"""Runs of the autoencoder: train one, and make its file."""

from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

from training_bridge import run, settings
from training_bridge.checkpoint import Checkpoints
from training_bridge.data import DataConfig, ShardData
from training_bridge.launch import ranks
from training_bridge.layout import Layout
from training_bridge.loop import LoopConfig, prepare
from training_bridge.tae.task import TaeConfig, TaeTask

MEASURED = 64
"""Micro-batches of the training set from which the latents' mean and deviation are measured."""


@dataclass(frozen=True, kw_only=True)
class TaeRun:
    """The settings of a run."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    loop: LoopConfig
    data: DataConfig
    tae: TaeConfig = field(default_factory=TaeConfig)


def train(folder: Path) -> int:
    """Train by `folder/config.json`; returns 0, or the code of a run that was told to stop. Raises as `run.train`."""
    own = settings.read(folder, TaeRun)
    return run.train(folder, own.loop, own.data, TaeTask(own.tae))


def export(folder: Path, output: Path) -> Path:
    """Make the file that encoding takes: the averaged weights of the newest checkpoint, and the latents' normalisation.

    Returns the checkpoint. Raises ValueError where there is none.
    """
    own = settings.read(folder, TaeRun)
    here, task = ranks(), TaeTask(own.tae)
    loop = replace(own.loop, layout=Layout())
    model, _, ema = prepare(task, loop, here)
    checkpoints = Checkpoints(folder / "checkpoints", loop.keep, here.control)
    place = checkpoints.newest()
    if place is None:
        raise ValueError(f"{str(folder)!r} has no finished checkpoint")
    checkpoints.load(place, model, None, ema)
    data = ShardData(own.data, task.draw, Layout().fitted(1), here)
    model.eval()
    with ema.swapped():
        batches = (batch.to(here.device) for batch in islice(data.batches(0), MEASURED))
        task.export(model, batches, str(output))
    return place
