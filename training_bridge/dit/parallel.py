"""How the backbone is divided: tensor and sequence parallel by DTensor, context by an exchange, and what is recomputed.

Under tensor parallelism all that travels between modules is a DTensor: tokens are divided along the sequence, and whole only
inside attention and the feed-forward net, where heads and hidden units are divided. What is computed from divided tokens
(norms, modulation) has partial gradients, which DTensor sums. All parameters become DTensors of one mesh, so that one
optimizer, one gradient norm and one EMA take them together. Order: `tensor_parallel`, `recomputed`, `compiled`, then FSDP.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module
from torch.distributed.tensor.experimental import local_map
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from training_bridge.dit.model import Attention, Backbone, BackboneConfig

Recompute = Literal["none", "selective", "full"]

ATTENTION = frozenset(
    getattr(torch.ops.aten, name).default
    for name in (
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_fused_attention_overrideable",
    )
)
"""What is never recomputed under `selective`: a quadratic amount of work for a linear amount of memory. (The kernel `math` is
no kernel of its own, and is recomputed.)"""


def check_tensor(config: BackboneConfig, ranks: int) -> None:
    """Raises ValueError where a backbone does not divide between so many tensor ranks."""
    for what, count in (("heads", config.heads), ("hidden units of the feed-forward net", config.ffn)):
        if count % ranks:
            raise ValueError(f"{count} {what} do not divide between {ranks} tensor ranks")


def tensor_parallel(backbone: Backbone, mesh: DeviceMesh) -> None:
    """Divide a backbone over a mesh of one axis. Raises ValueError where it does not divide."""
    check_tensor(backbone.config, mesh.size())
    for block in backbone.blocks:
        parallelize_module(block, mesh, _block_plan(backbone.config))
        distribute_module(block, mesh)
    replicated(backbone.entry, mesh, (Shard(1), Shard(1), Replicate(), Replicate()))
    replicated(backbone.head, mesh, (None,))

    def text_enters(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        patches, time, text, *rest = args
        return patches, time, _whole(text, mesh), *rest

    backbone.register_forward_pre_hook(text_enters)


def _block_plan(config: BackboneConfig) -> dict[str, Any]:
    """Which way the parts of a block are divided (Korthikanti et al. 2022)."""
    tokens, whole = Shard(1), Replicate()
    gathered = PrepareModuleInput(input_layouts=(tokens,), desired_input_layouts=(whole,))
    text = PrepareModuleInput(input_layouts=(tokens, whole, None), desired_input_layouts=(whole, whole, None))
    scattered = RowwiseParallel(output_layouts=tokens, use_local_output=False)
    plan: dict[str, Any] = {"attention": gathered, "cross": text, "ffn": gathered}
    for name in ("attention", "cross"):
        plan |= {f"{name}.{part}": ColwiseParallel() for part in "qkv"} | {f"{name}.out": scattered}
        if config.qk_norm:  # each rank its own heads, as if these were a sequence
            plan |= {f"{name}.{part}_norm": SequenceParallel(sequence_dim=2, use_local_output=True) for part in "qk"}
    return plan | {"ffn.gate": ColwiseParallel(), "ffn.up": ColwiseParallel(), "ffn.down": scattered}


def replicated(module: nn.Module, mesh: DeviceMesh, leaves: tuple[Placement | None, ...]) -> None:
    """Every rank of the mesh computes all of a module; outputs leave as DTensors of these placements, or as plain tensors."""

    def enter(_: nn.Module, args: Any, mesh: DeviceMesh) -> Any:
        return tree_map_only(Tensor, partial(_whole, mesh=mesh), args)

    def leave(_: nn.Module, outputs: Any, mesh: DeviceMesh) -> Any:
        several = outputs if isinstance(outputs, tuple) else (outputs,)
        left = tuple(_left(y, mesh, placement) for y, placement in zip(several, leaves, strict=True))
        return left if isinstance(outputs, tuple) else left[0]

    distribute_module(module, mesh, input_fn=enter, output_fn=leave)
    for part in module.modules():
        if isinstance(part, Attention):  # not every kernel knows DTensors
            part.attend = local_map(part.attend, out_placements=[Replicate()], in_placements=None)  # type: ignore[method-assign]


def _whole(x: Tensor, mesh: DeviceMesh) -> Tensor:
    if isinstance(x, DTensor):
        return x.redistribute(placements=[Replicate()])
    return DTensor.from_local(x, mesh, [Replicate()], run_check=False)


def _left(y: DTensor, mesh: DeviceMesh, placement: Placement | None) -> Tensor:
    if placement is None:
        return y.to_local().clone()  # FSDP puts a hook on it, which views may lose
    # A new DTensor of the local one: its gradient comes back summed, here, where it is small, and not at the weights.
    return DTensor.from_local(y.to_local(), mesh, [Replicate()], run_check=False).redistribute(placements=[placement])


def recomputed(block: nn.Module, how: Recompute) -> None:
    """Keep fewer activations of a block: `full` keeps its input, `selective` what attention gives as well."""
    if how == "none":
        return
    more: dict[str, Any] = (
        {"context_fn": partial(create_selective_checkpoint_contexts, _keep_attention)} if how == "selective" else {}
    )
    block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False, **more)


def _keep_attention(_: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


def compiled(block: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile a block's forward for any batch and length, without the hooks of FSDP and DTensor around it."""
    block.forward = torch.compile(block.forward, fullgraph=True, dynamic=True, backend=backend)
