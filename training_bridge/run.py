"""One training run on this rank: settings, data and task put together."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from training_bridge.data import DataConfig, ShardData
from training_bridge.launch import Ranks, ranks
from training_bridge.loop import LoopConfig, NotFinite, Trainer
from training_bridge.task import Task
from training_bridge.watch import watched


def train(folder: Path, loop: LoopConfig, data: DataConfig, task: Task, device: str | None = None) -> int:
    """Train below `folder`, from its newest checkpoint on; returns the exit code of `Trainer.run`.

    Raises ValueError where settings, data and ranks do not go together, NotFinite as the trainer does.
    """
    here = ranks(device)
    layout = loop.layout.fitted(here.world)
    with held(folder, here):
        return _train(folder, loop, ShardData(data, task.draw, layout, here), task, here)


def _train(folder: Path, loop: LoopConfig, shards: ShardData, task: Task, here: Ranks) -> int:
    task.check([*shards.plan.shapes, *(shards.held[1].shapes if shards.held else ())])
    trainer = Trainer(task, shards, loop, here, folder)
    if here.rank == 0:
        count = sum(p.numel() for p in trainer.model.parameters())
        print(f"{task.name}: {count / 1e6:.2f} million parameters on {here.world} x {here.device.type}, {trainer.layout}")
        print("\n".join(shards.about()))
        print(f"from step {trainer.step} of {loop.steps}", flush=True)
    with watched():
        try:
            return trainer.run()
        except NotFinite as error:  # all ranks have it: they leave together, and none takes another for dead
            failure = error
    raise failure


@contextmanager
def held(folder: Path, here: Ranks) -> Iterator[None]:
    """Inside, no other run trains in this folder. Raises ValueError where one does."""
    taken = torch.zeros(())
    with (folder / "lock").open("w") as file:
        if here.rank == 0:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                taken += 1
        dist.broadcast(taken, group=here.control, group_src=0)
        if taken.item():
            raise ValueError(f"another run trains in {str(folder)!r}")
        yield
