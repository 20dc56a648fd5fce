"""One training run on this rank: settings, data and task put together."""

from pathlib import Path

from training_bridge.data import DataConfig, ShardData
from training_bridge.launch import ranks
from training_bridge.loop import LoopConfig, Task, Trainer
from training_bridge.watch import watched


def train(folder: Path, loop: LoopConfig, data: DataConfig, task: Task, device: str | None = None) -> int:
    """Train below `folder`, from its newest checkpoint on; returns the exit code of `Trainer.run`.

    Raises ValueError where settings, data and ranks do not go together, NotFinite as the trainer does.
    """
    here = ranks(device)
    layout = loop.layout.fitted(here.world)
    shards = ShardData(data, task.draw, layout, here)
    trainer = Trainer(task, shards, loop, here, folder)
    if here.rank == 0:
        count = sum(p.numel() for p in trainer.model.parameters())
        print(f"{task.name}: {count / 1e6:.2f} million parameters on {here.world} x {here.device.type}, {layout}")
        print("\n".join(shards.about()))
        print(f"from step {trainer.step} of {loop.steps}", flush=True)
    with watched():
        return trainer.run()
