"""One rank of a model-parallel group reads, and its peers receive the same micro-batches as plain tensors."""

import json
from collections.abc import Iterator
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training_bridge.index import Shape
from training_bridge.loader import Batch

END, FAILED = 0, -1
"""Sent instead of a head's length."""


def shared(batches: Iterator[Batch] | None, group: dist.ProcessGroup, device: torch.device | str = "cpu") -> Iterator[Batch]:
    """The same batches on all ranks of a group, on their devices: its first rank reads, the others give None.

    A head says what follows, so that peers can make room; then come the tensors, as bytes. Nothing is pickled. Where the
    first rank fails the others raise RuntimeError; they do not wait.
    """
    if dist.get_rank(group):
        while (batch := _received(group, device)) is not None:
            yield batch
        return
    assert batches is not None, "the first rank of a group reads"
    while (read := _next(batches, group, device)) is not None:
        batch = read.to(device)
        _send(batch, group, device)
        yield batch
    _say(END, group, device)


def _next(batches: Iterator[Batch], group: dist.ProcessGroup, device: torch.device | str) -> Batch | None:
    """The next batch, or None after the last; what goes wrong is said to the peers first."""
    failed = True
    try:
        batch = next(batches, None)
        failed = False
    finally:
        if failed:
            _say(FAILED, group, device)
    return batch


def _say(length: int, group: dist.ProcessGroup, device: torch.device | str) -> None:
    dist.broadcast(torch.tensor([length], dtype=torch.int64, device=device), group=group, group_src=0)


def _send(batch: Batch, group: dist.ProcessGroup, device: torch.device | str) -> None:
    tensors = _flat(batch)
    head = {
        "plain": [batch.step, batch.micro, batch.micros, batch.total_weight, batch.texts, batch.keys, batch.bad],
        "shape": [batch.shape.frames, batch.shape.height, batch.shape.width],
        "digests": [digest.hex() for digest in batch.digests],
        "lengths": {name: [len(own) for own in several] for name, several in batch.ragged.items()},
        "tensors": [[name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in tensors.items()],
    }
    data = json.dumps(head).encode()
    _say(len(data), group, device)
    dist.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device), group=group, group_src=0)
    for tensor in tensors.values():
        if tensor.numel():
            dist.broadcast(_bytes(tensor.contiguous()), group=group, group_src=0)


def _received(group: dist.ProcessGroup, device: torch.device | str) -> Batch | None:
    length = torch.empty(1, dtype=torch.int64, device=device)
    dist.broadcast(length, group=group, group_src=0)
    if (size := int(length.item())) == END:
        return None
    if size == FAILED:
        raise RuntimeError("the rank that reads for this group has failed; its own error says why")
    data = torch.empty(size, dtype=torch.uint8, device=device)
    dist.broadcast(data, group=group, group_src=0)
    head: dict[str, Any] = json.loads(bytes(data.cpu().numpy()))
    tensors = {}
    for name, dtype, shape in head["tensors"]:
        tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        if prod(shape):
            dist.broadcast(_bytes(tensors[name]), group=group, group_src=0)
    return _batch(head, tensors)


def _flat(batch: Batch) -> dict[str, Tensor]:
    """All tensors of a batch by `<field>/<name>`; ragged ones laid end to end."""
    found = {"weights/": batch.weights}
    found |= {f"tensors/{name}": tensor for name, tensor in batch.tensors.items()}
    found |= {f"draws/{name}": tensor for name, tensor in batch.draws.items()}
    return found | {f"ragged/{name}": torch.cat(several) for name, several in batch.ragged.items()}


def _batch(head: dict[str, Any], flat: dict[str, Tensor]) -> Batch:
    step, micro, micros, total_weight, texts, keys, bad = head["plain"]
    fields: dict[str, dict[str, Tensor]] = {"weights": {}, "tensors": {}, "draws": {}, "ragged": {}}
    for place, tensor in flat.items():
        field, _, name = place.partition("/")
        fields[field][name] = tensor
    return Batch(
        step=step,
        micro=micro,
        micros=micros,
        shape=Shape(*head["shape"]),
        tensors=fields["tensors"],
        ragged={name: list(torch.split(fields["ragged"][name], lengths)) for name, lengths in head["lengths"].items()},
        texts=texts,
        draws=fields["draws"],
        weights=fields["weights"][""],
        total_weight=total_weight,
        keys=keys,
        digests=[bytes.fromhex(digest) for digest in head["digests"]],
        bad=[(key, why) for key, why in bad],
    )


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
