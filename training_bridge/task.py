"""What the training loop is given: a task, which is a model with its loss, and data, which are batches without end."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch.distributed as dist
from torch import Tensor, nn

from training_bridge.layout import Layout, Meshes

if TYPE_CHECKING:
    from training_bridge.loader import Batch, Draw


class Task(Protocol):
    """What a trainer brings."""

    name: str

    @property
    def draw(self) -> "Draw":
        """What is drawn for each sample, in the workers."""

    def check(self, shapes: Sequence[Any]) -> None:
        """Raises ValueError where it cannot be trained on samples of these shapes."""

    def build(self) -> nn.ModuleDict:
        """The parts of the model; only `forward` of parts and blocks is ever called.

        On the CPU with their first weights; or all on the meta device, and then each part is `initial.Drawn`.
        """

    def blocks(self, model: nn.ModuleDict) -> Iterable[nn.Module]:
        """What is sharded on its own, inner modules first."""

    def parallelize(self, model: nn.ModuleDict, layout: Layout, meshes: Meshes | None) -> None:
        """Split modules over tensor ranks, tell them their context group, compile; before sharding."""

    def groups(self, model: nn.ModuleDict) -> list[dict[str, Any]]:
        """AdamW's parameter groups; `lr_scale` multiplies the rate."""

    @property
    def averaged(self) -> tuple[str, ...]:
        """What EMA keeps: beginnings of parameters' names."""

    def loss(self, model: nn.ModuleDict, batch: "Batch", step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of weight x loss over this rank's part of the samples, and sums of what is logged."""

    def validate(self, model: nn.ModuleDict, batch: "Batch") -> dict[str, Tensor]:
        """Sums of weight x measure over this rank's part of held-out samples."""

    def validated(self, group: dist.ProcessGroup) -> dict[str, float]:
        """Measures of all held-out samples together, after the last; `group` has all ranks."""

    def pictures(self, model: nn.ModuleDict, batch: "Batch") -> dict[str, Tensor]:
        """Films (T, H, W, 3), uint8, to look at."""

    def flops(self, shape: Any) -> float:
        """Model FLOPs of a training step's sample: forward, and backward twice that; recomputation is not counted."""

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must agree with beside its tensors."""

    @property
    def grows(self) -> tuple[str, ...]:
        """Parts of the fingerprint that may be another in weights to begin with."""

    def grow(self, weights: dict[str, Tensor], moments: Sequence[dict[str, Tensor]]) -> None:
        """Give weights to begin with the model's shapes, in place; `moments` are AdamW's, under the same names."""


class Data(Protocol):
    """Where batches come from."""

    global_tokens: int
    """Latent tokens that a step has at most."""

    def batches(self, start: int) -> Iterator["Batch"]:
        """This rank's micro-batches from a step on, without end."""

    def held_out(self) -> Iterator["Batch"]:
        """This rank's micro-batches of the validation samples, the same each time; as many on every rank."""

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps."""

    def resume(self, state: Mapping[str, Any]) -> int:
        """The step to go on with. Raises ValueError where the state is of other data."""

    def keys(self, step: int) -> list[str]:
        """The samples of a step."""

    def write_film(self, path: Path, film: Tensor) -> None:
        """Write a film (T, H, W, 3), uint8."""
