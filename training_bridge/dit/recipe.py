"""A recipe: stages of training, each beginning with the weights of the one before, as data in one file.

    RECIPE/config.json         the stages' settings
    RECIPE/<stage>/            a run of its own: settings, log, checkpoints

A stage's settings stand on top of what `common` says to all.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch.distributed as dist

from training_bridge import settings
from training_bridge.checkpoint import newest_of, state_of
from training_bridge.data import DataConfig
from training_bridge.dit import run
from training_bridge.dit.cost import Machine
from training_bridge.dit.run import FlowRun
from training_bridge.dit.task import DitConfig
from training_bridge.launch import ranks
from training_bridge.loop import InitConfig, LoopConfig


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: the settings of a run, and what it takes of the stage before."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    loop: LoopConfig
    data: DataConfig
    dit: DitConfig = field(default_factory=DitConfig)
    weights: Literal["averaged", "plain"] = "averaged"
    """Of the stage before: its EMA, or the weights themselves."""
    optimizer: Literal["fresh", "kept"] = "fresh"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Stages, one after the other."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names) or not all(name.replace("-", "").isalnum() for name in names):
            raise ValueError(f"stages have names of letters, digits and -, each its own: {names}")
        if wrong := [stage.name for stage in self.stages[1:] if stage.loop.init is not None]:
            raise ValueError(f"stage {wrong[0]!r} begins with the stage before: loop.init is for the first stage")

    def run(self, number: int, folder: Path) -> FlowRun:
        """A stage as a run, which begins with the stage before."""
        stage = self.stages[number]
        loop = stage.loop
        if number:
            before = str(folder / self.stages[number - 1].name)
            loop = replace(loop, init=InitConfig(path=before, weights=stage.weights, optimizer=stage.optimizer))
        return FlowRun(loop=loop, data=stage.data, dit=stage.dit)


def expanded(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with `common` in each stage: groups are joined, values replaced, datasets too."""
    common = tree.get("common", {})
    return {"stages": [_joined(common, stage) for stage in tree["stages"]]} | {
        name: value for name, value in tree.items() if name not in ("common", "stages")
    }


REPLACED = ("train", "held_out", "text", "backbone")
"""What a stage says of these replaces what `common` says."""


def _joined(below: Any, above: Any, name: str = "") -> Any:
    if not isinstance(below, Mapping) or not isinstance(above, Mapping) or name in REPLACED:
        return above
    return {key: _joined(below.get(key), above[key], key) if key in above else below[key] for key in {**below, **above}}


def kind_of(tree: Mapping[str, Any]) -> type[Recipe] | type[FlowRun]:
    """What settings are of."""
    return Recipe if "stages" in tree else FlowRun


def checked(tree: Mapping[str, Any], profile: bool = False) -> Recipe | FlowRun:
    """The settings of a tree; with `profile` each run writes one. Raises ValueError with the path of every fault."""
    if kind_of(tree) is FlowRun:
        own: FlowRun = settings.checked(FlowRun, tree)
        return replace(own, loop=replace(own.loop, profile=own.loop.profile or profile))
    made: Recipe = settings.checked(Recipe, expanded(tree))
    return replace(made, stages=tuple(replace(s, loop=replace(s.loop, profile=s.loop.profile or profile)) for s in made.stages))


def laid_out(own: Recipe | FlowRun, world: int, machine: Machine, say: Callable[[str], None]) -> Recipe | FlowRun:
    """With the fastest layouts by the cost model; `say` hears why. Raises ValueError where none fits."""
    if isinstance(own, FlowRun):
        made, why = run.laid_out(own, world, machine)
        say(why)
        return made
    stages = []
    for stage in own.stages:
        made, why = run.laid_out(FlowRun(loop=stage.loop, data=stage.data, dit=stage.dit), world, machine)
        say(f"stage {stage.name}: {why}")
        stages.append(replace(stage, loop=made.loop, data=made.data, dit=made.dit))
    return Recipe(stages=tuple(stages))


def train(folder: Path) -> int:
    """Train by `folder/config.json`, one run or a recipe's stages; returns 0, or the code of a run that was told to stop.

    Raises as `run.train`.
    """
    own = settings.read(folder, kind_of(json.loads(settings.text(folder) or "{}")))
    return run.train(folder, own) if isinstance(own, FlowRun) else _train_stages(folder, own)


def _train_stages(folder: Path, recipe: Recipe) -> int:
    """From the first stage that is not finished on."""
    here = ranks()
    for number, stage in enumerate(recipe.stages):
        place, own = folder / stage.name, recipe.run(number, folder)
        if here.rank == 0:
            settings.write(place, own)
            done = steps_of(place)
            print(f"stage {stage.name}: {'finished' if done >= stage.loop.steps else 'from step'} {done} of {stage.loop.steps}")
        dist.barrier(here.control)
        if steps_of(place) >= stage.loop.steps:
            continue
        if code := run.train(place, own, here.device.type):
            return code
    return 0


def steps_of(folder: Path) -> int:
    """How many steps of a run are in its newest checkpoint; 0 where it has none."""
    try:
        return int(state_of(newest_of(folder))["step"])
    except ValueError:
        return 0
