"""A task and data small enough for tests of the loop: a two-part model that fits made vectors.

python -m tests.training_bridge.toy FOLDER JSON     one rank (RANK, WORLD_SIZE, MASTER_PORT in the environment)
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training_bridge.draws import generator
from training_bridge.index import Shape
from training_bridge.launch import ranks
from training_bridge.layout import Layout, Meshes
from training_bridge.loop import LoopConfig, Trainer

WIDTH, SAMPLES = 8, 5
SHAPES = (Shape(16, 16, 16), Shape(1, 16, 16))


@dataclass(frozen=True)
class ToyBatch:
    """What the loop needs of a batch."""

    step: int
    micro: int
    micros: int
    shape: Shape
    x: Tensor
    weights: Tensor
    digests: list[bytes]
    total_weight: float = float(SAMPLES)
    bad: tuple[tuple[str, str], ...] = ()
    step_tokens: int = SAMPLES

    def to(self, device: torch.device) -> "ToyBatch":
        return replace(self, x=self.x.to(device), weights=self.weights.to(device))


@dataclass
class ToyData:
    """Five samples a step, of which each rank takes its part, in micro-batches of one."""

    rank: int
    layout: Layout
    poison: int = -1
    seed: int = 0
    global_tokens: int = 2 * SAMPLES

    def sample(self, step: int, n: int) -> tuple[Tensor, bytes]:
        x = generator(self.seed, f"{step}-{n}", 0, "x").standard_normal(WIDTH, "float32")
        return torch.from_numpy(x), blake2b(x.tobytes(), digest_size=16).digest()

    def batches(self, start: int) -> Iterator[ToyBatch]:
        step = start
        while True:
            shape = SHAPES[step % 3 == 2]
            place, world = self.layout.place(self.rank, shape.frames)
            each = -(-SAMPLES // world)
            for micro in range(each):
                n = place * each + micro
                x, digest = self.sample(step, min(n, SAMPLES - 1))
                x = x * float("nan") if step == self.poison else x
                real = n < SAMPLES
                yield ToyBatch(step, micro, each, shape, x[None], torch.tensor([float(real)]), [digest] * real)
            step += 1

    def held_out(self) -> Iterator[ToyBatch]:
        x, digest = self.sample(10**6, 0)
        yield ToyBatch(0, 0, 1, SHAPES[0], x[None], torch.ones(1), [digest])

    def state(self, step: int) -> dict[str, Any]:
        return {"step": step, "seed": self.seed}

    def resume(self, state: Mapping[str, Any]) -> int:
        if state["seed"] != self.seed:
            raise ValueError("this run was trained on other samples")
        return int(state["step"])

    def keys(self, step: int) -> list[str]:
        return [f"{step}-{n}" for n in range(SAMPLES)]

    def write_film(self, path: Path, film: Tensor) -> None:
        path.write_bytes(film.numpy().tobytes())


class ToyTask:
    """A network and a second part with weights and a rate of its own."""

    name = "toy"

    def __init__(self, width: int = 16) -> None:
        self.width = width

    def build(self) -> nn.ModuleDict:
        body = nn.Sequential(nn.Linear(WIDTH, self.width), nn.SiLU(), nn.Linear(self.width, self.width), nn.SiLU())
        return nn.ModuleDict({"main": nn.Sequential(body, nn.Linear(self.width, WIDTH)), "side": nn.Linear(WIDTH, 1)})

    def blocks(self, model: nn.ModuleDict) -> Iterable[nn.Module]:
        return [model["main"][0]]  # type: ignore[index]

    def parallelize(self, model: nn.ModuleDict, layout: Layout, meshes: Meshes | None) -> None:
        pass

    def groups(self, model: nn.ModuleDict) -> list[dict[str, Any]]:
        return [
            {"params": list(model["main"].parameters()), "weight_decay": 0.1},
            {"params": list(model["side"].parameters()), "weight_decay": 0.0, "lr_scale": 2.0},
        ]

    averaged = ("main.",)

    def loss(self, model: nn.ModuleDict, batch: ToyBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        made = model["main"](batch.x)
        fit = ((made - torch.sin(batch.x)) ** 2).mean(dim=1)
        side = (model["side"](made.detach()).squeeze(1) - batch.x.mean(dim=1)) ** 2
        parts = {"fit": (batch.weights * fit).sum(), "side": (batch.weights * side).sum()}
        return parts["fit"] + parts["side"], parts

    def validate(self, model: nn.ModuleDict, batch: ToyBatch) -> dict[str, Tensor]:
        return {"fit": (batch.weights * ((model["main"](batch.x) - torch.sin(batch.x)) ** 2).mean(dim=1)).sum()}

    def validated(self, group: object) -> dict[str, float]:
        return {"ranks": float(torch.distributed.get_world_size())}

    def pictures(self, model: nn.ModuleDict, batch: ToyBatch) -> dict[str, Tensor]:
        return {"film": (model["main"](batch.x)[0, :3].reshape(1, 1, 1, 3) * 50 + 128).clamp(0, 255).to(torch.uint8)}

    def flops(self, shape: Shape) -> float:
        return 1.0

    def fingerprint(self) -> dict[str, Any]:
        return {"width": self.width}

    grows = ()

    def grow(self, weights: dict[str, Tensor], moments: Sequence[dict[str, Tensor]]) -> None:
        pass


def trainer(folder: Path, *, poison: int = -1, width: int = 16, seed: int = 0, **settings: Any) -> Trainer:
    """A trainer of the toy on the ranks of this process's environment."""
    layout = Layout(**settings.pop("layout", {}))
    config = LoopConfig(**{"steps": 50, "lr": 1e-2, "warmup_steps": 5, "log_every": 1000, "layout": layout, **settings})
    here = ranks("cpu")
    return Trainer(ToyTask(width), ToyData(here.rank, layout.fitted(here.world), poison, seed), config, here, folder)


if __name__ == "__main__":
    sys.exit(trainer(Path(sys.argv[1]), **json.loads(sys.argv[2])).run())
