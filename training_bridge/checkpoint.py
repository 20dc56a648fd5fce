"""Checkpoints: sharded by DCP, written beside the training, whole or not at all, loadable at any number of ranks.

    CHECKPOINTS/step-00000100/    DCP's files (model, optimizer, EMA) and state.json (step, data, model, digest)

A checkpoint is written under a name beginning with `_` and renamed by rank 0 when every rank's part is there.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from training_bridge.ema import Ema

STATE = "state.json"
MOMENTS = ("exp_avg", "exp_avg_sq")
ADAM = ("step", *MOMENTS)
"""AdamW's state of a parameter."""
PINNED = "PINNED"
"""A file in a checkpoint that is never removed: what it holds says why."""


class Checkpoints:
    """The checkpoints of one run. Every rank makes one and calls the same methods in the same order.

    `group` is a gloo group of all ranks. Saving, which goes on beside the training, talks over one of its own: two threads
    that share a group would take each other's messages.
    """

    def __init__(self, folder: Path, keep: int, group: dist.ProcessGroup) -> None:
        """The newest `keep` checkpoints are kept, and pinned ones."""
        self.folder, self.keep, self.group = folder, keep, group
        self.first = dist.get_rank(group) == 0
        self._saving = dist.new_group(backend="gloo")
        self._writing: tuple[Path, dict[str, Any], Future[Any]] | None = None

    def sweep(self) -> None:
        """Remove what a process left that died while it wrote. Only the run that trains may do this."""
        for left in self.folder.glob("_*") if self.first else ():
            shutil.rmtree(left)

    def all(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(p for p in self.folder.glob("step-*") if (p / STATE).exists())

    def newest(self) -> Path | None:
        """The last finished one, as rank 0 sees it: shared file systems may show ranks different things."""
        found = self.all()
        number = torch.tensor(int(found[-1].name.removeprefix("step-")) if found else -1)
        dist.broadcast(number, group=self.group, group_src=0)
        return self.folder / _name(int(number)) if number >= 0 else None

    def save(self, model: nn.Module, optimizer: Optimizer, ema: Ema, state: Mapping[str, Any]) -> None:
        """Begin to write a checkpoint of `state["step"]`; the values are those of now, whatever the training does next."""
        self.finish()
        name = _name(state["step"])
        parts = _parts(model, optimizer, ema)
        place = self.folder / f"_{name}"
        if self.first:
            place.mkdir(parents=True)
        dist.barrier(self.group)
        done = async_save(parts, checkpoint_id=place, process_group=self._saving)
        self._writing = (self.folder / name, {**state, "ema_updates": ema.updates}, cast("Future[Any]", done))

    def finish(self) -> None:
        """Wait until what is being written is there. Raises what went wrong with it."""
        if self._writing is None:
            return
        place, state, done = self._writing
        self._writing = None
        done.result()
        dist.barrier(self.group)
        if self.first:
            hidden = place.with_name(f"_{place.name}")
            (hidden / STATE).write_text(json.dumps(state, indent=1, sort_keys=True))
            if place.exists():  # of the same step, before a resume from an older one
                _removed(place)
            hidden.rename(place)
            self._thin()
        dist.barrier(self.group)

    def poll(self) -> None:
        """Finish what has been written, without waiting: every rank asks whether every rank is done."""
        if self._writing is None:
            return
        done = torch.tensor(int(self._writing[2].done()))
        dist.all_reduce(done, dist.ReduceOp.MIN, group=self.group)
        if done.item():
            self.finish()

    def load(self, place: Path, model: nn.Module, optimizer: Optimizer | None, ema: Ema) -> None:
        """Fill model, optimizer and EMA from a checkpoint made at any number of ranks.

        `optimizer` None leaves it as it is (a new stage begins with the weights alone). Raises ValueError where the
        checkpoint is of another model, naming what differs.
        """
        parts = _parts(model, optimizer, ema)  # tensors that are filled where they are: the average's own among them
        if not _check(place, parts):  # every step until then was skipped: the optimizer has seen nothing
            optimizer = None
            parts.pop("optimizer", None)
        settings = [] if optimizer is None else [_settings(group) for group in optimizer.param_groups]
        load(parts, checkpoint_id=place, process_group=self.group)
        optimizers = [] if optimizer is None else [optimizer]
        set_state_dict(model, optimizers, model_state_dict=parts["model"], optim_state_dict=parts.get("optimizer", {}))
        for group, own in zip(optimizer.param_groups if optimizer else (), settings, strict=True):
            group.update(own)  # this run's, not those that the checkpoint was made with
        ema.updates = state_of(place)["ema_updates"]

    def begin(self, place: Path, model: nn.Module, optimizer: Optimizer | None, ema: Ema, averaged: bool, grow: "Grow") -> None:
        """Fill the model with another run's weights, plain or averaged, the average with the same, and the optimizer too where
        it is given; `grow` gets what is of another shape.

        Raises ValueError where that leaves another model.
        """
        parts = _parts(model, optimizer, ema)
        states = parts.get("optimizer", {}).get("state", {})
        ours = {"weights": parts["model"], **{kind: {n: own[kind] for n, own in states.items()} for kind in ADAM}}
        sizes = _sizes(place)

        def key(kind: str, name: str) -> str:
            if kind != "weights":
                return f"optimizer.state.{name}.{kind}"
            return f"ema.{name}" if averaged and name in ema.average else f"model.{name}"

        flat = {key(kind, name): tensor for kind, own in ours.items() for name, tensor in own.items()}
        if missing := sorted(flat.keys() - sizes.keys()):
            raise ValueError(f"{str(place)!r} is of another model: {', '.join(missing[:5])} is not in it")
        other = {
            kind: {n: _local(t).new_empty(sizes[key(kind, n)]) for n, t in own.items() if tuple(t.shape) != sizes[key(kind, n)]}
            for kind, own in ours.items()
        }
        whole = {key(kind, name): tensor for kind, own in other.items() for name, tensor in own.items()}
        load({**flat, **whole}, checkpoint_id=place, process_group=self.group)
        grow(other["weights"], [other[kind] for kind in MOMENTS] if optimizer else [])
        for kind, own in other.items():
            for name, tensor in own.items():
                put(ours[kind][name], tensor, f"{str(place)!r} is of another model: {name}")
        if optimizer is not None:
            settings = [_settings(group) for group in optimizer.param_groups]
            set_state_dict(model, [optimizer], model_state_dict=parts["model"], optim_state_dict=parts["optimizer"])
            for group, own_settings in zip(optimizer.param_groups, settings, strict=True):
                group.update(own_settings)
        ema.restart()

    def pin(self, before: int, why: str) -> Path | None:
        """Keep the newest checkpoint of fewer than `before` steps for good, and say why in it; returns which.

        One of `before` steps, whose weights may be what is wrong, is set aside: a run that is started again goes on from
        the pinned one.
        """
        self.finish()
        good = [place for place in self.all() if int(place.name.removeprefix("step-")) < before]
        if self.first:
            for place in self.all()[len(good) :]:
                place.rename(place.with_name(f"suspect-{place.name}"))
            if good:
                (good[-1] / PINNED).write_text(why + "\n")
        dist.barrier(self.group)
        return good[-1] if good else None

    def _thin(self) -> None:
        loose = [p for p in self.all() if not (p / PINNED).exists()]
        for old in loose[: -self.keep] if self.keep else ():
            _removed(old)


def state_of(place: Path) -> dict[str, Any]:
    """What a checkpoint says of itself. Raises ValueError where the folder is none."""
    try:
        return cast("dict[str, Any]", json.loads((place / STATE).read_text()))
    except FileNotFoundError:
        raise ValueError(f"{str(place)!r} is no finished checkpoint: it has no {STATE}") from None


Grow = Callable[[dict[str, torch.Tensor], Sequence[dict[str, torch.Tensor]]], None]
"""Gives weights, and two moments under the same names, other shapes, in place."""


def newest_of(folder: Path) -> Path:
    """A checkpoint, or the newest one of a run's folder. Raises ValueError where there is none."""
    if (folder / STATE).exists():
        return folder
    found = sorted(p for p in (folder / "checkpoints").glob("step-*") if (p / STATE).exists())
    if not found:
        raise ValueError(f"{str(folder)!r} has no finished checkpoint")
    return found[-1]


def weights(place: Path, averaged: bool = True) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint, whole, on the CPU: no model and no other rank is needed. Averaged ones are those that EMA
    keeps."""
    metadata, part = FileSystemReader(place).read_metadata().state_dict_metadata, "ema." if averaged else "model."
    flat = {
        name: torch.empty(own.size, dtype=own.properties.dtype)
        for name, own in metadata.items()
        if name.startswith(part) and isinstance(own, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(flat, checkpoint_id=place, no_dist=True)
    return {name.removeprefix(part): value for name, value in flat.items()}


def put(target: torch.Tensor, value: torch.Tensor, what: str) -> None:
    """Fill a tensor, or this rank's part of it, with a whole one. Raises ValueError where that has another shape."""
    if value.shape != target.shape:
        raise ValueError(f"{what} is {tuple(value.shape)}, {tuple(target.shape)} here")
    if isinstance(target, DTensor):  # every rank has read all of it
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    with torch.no_grad():
        target.copy_(value)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sizes(place: Path) -> dict[str, tuple[int, ...]]:
    metadata = FileSystemReader(place).read_metadata().state_dict_metadata
    return {name: tuple(getattr(own, "size", ())) for name, own in metadata.items()}


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _removed(place: Path) -> None:
    """A folder that is half removed is no checkpoint."""
    gone = place.with_name(f"_gone-{place.name}")
    place.rename(gone)
    shutil.rmtree(gone)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _parts(model: nn.Module, optimizer: Optimizer | None, ema: Ema) -> dict[str, Any]:
    own, of_optimizer = get_state_dict(model, [] if optimizer is None else [optimizer])
    parts: dict[str, Any] = {"model": own, "ema": dict(ema.average)}
    return parts if optimizer is None else {**parts, "optimizer": of_optimizer}


def _check(place: Path, parts: Mapping[str, Any]) -> bool:
    """Whether the optimizer has a state in it. Raises ValueError where a checkpoint's tensors are not the model's."""
    metadata = FileSystemReader(place).read_metadata().state_dict_metadata
    there = {n.removeprefix("model."): tuple(getattr(m, "size", ())) for n, m in metadata.items() if n.startswith("model.")}
    wanted = {n: tuple(t.shape) for n, t in parts["model"].items() if isinstance(t, torch.Tensor)}
    said = [f"{n} is missing" for n in wanted.keys() - there.keys()]
    said += [f"{n} is not ours" for n in there.keys() - wanted.keys()]
    said += [f"{n} is {there[n]}, {wanted[n]} here" for n in wanted.keys() & there.keys() if there[n] != wanted[n]]
    if said:
        more = f" and {len(said) - 5} more" if len(said) > 5 else ""
        raise ValueError(f"{str(place)!r} is of another model: {'; '.join(sorted(said)[:5])}{more}")
    return any(name.startswith("optimizer.state.") for name in metadata)
