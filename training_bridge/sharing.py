"""One rank of a model-parallel group reads, and its peers receive the same micro-batches as plain tensors."""

import json
from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training_bridge.index import Shape
from training_bridge.loader import Batch

FAILED = -1
"""Sent instead of a head's length."""


def shared(batches: Iterator[Batch], turns: Iterable[dist.ProcessGroup | None]) -> Iterator[Batch]:
    """A rank's micro-batches, one for each of `turns`: the gloo group that shares it, or None where this rank is alone.

    The first rank of a group takes the next of `batches`, its peers receive it and take none. A head says what follows, so
    that they can make room; then come the tensors, as bytes. Nothing is pickled. Where the first rank fails the others
    raise RuntimeError; they do not wait.
    """
    for group in turns:
        if group is None:
            yield next(batches)
        elif dist.get_rank(group):
            yield _received(group)
        else:
            batch = _next(batches, group)
            _send(batch, group)
            yield batch


def _next(batches: Iterator[Batch], group: dist.ProcessGroup) -> Batch:
    """The next batch; what goes wrong is said to the peers first."""
    failed = True
    try:
        batch = next(batches)
        failed = False
    finally:
        if failed:
            _say(FAILED, group)
    return batch


def _say(length: int, group: dist.ProcessGroup) -> None:
    dist.broadcast(torch.tensor([length], dtype=torch.int64), group=group, group_src=0)


def _send(batch: Batch, group: dist.ProcessGroup) -> None:
    tensors = _flat(batch)
    head = {
        "plain": [batch.step, batch.micro, batch.micros, batch.total_weight, batch.texts, batch.keys, batch.bad],
        "shape": [batch.shape.frames, batch.shape.height, batch.shape.width],
        "digests": [digest.hex() for digest in batch.digests],
        "lengths": {name: [len(own) for own in several] for name, several in batch.ragged.items()},
        "tensors": [[name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)] for name, tensor in tensors.items()],
    }
    data = json.dumps(head).encode()
    _say(len(data), group)
    dist.broadcast(torch.frombuffer(bytearray(data), dtype=torch.uint8), group=group, group_src=0)
    for tensor in tensors.values():
        if tensor.numel():
            dist.broadcast(_bytes(tensor.contiguous()), group=group, group_src=0)


def _received(group: dist.ProcessGroup) -> Batch:
    length = torch.empty(1, dtype=torch.int64)
    dist.broadcast(length, group=group, group_src=0)
    if (size := int(length.item())) == FAILED:
        raise RuntimeError("the rank that reads for this group has failed; its own error says why")
    data = torch.empty(size, dtype=torch.uint8)
    dist.broadcast(data, group=group, group_src=0)
    head: dict[str, Any] = json.loads(bytes(data.numpy()))
    tensors = {}
    for name, dtype, shape in head["tensors"]:
        tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype))
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
