"""Micro-batches of a plan: read and drawn in worker processes, in order, for ever; the same whatever the workers.

The plan is walked here; workers get the slots of one micro-batch at a time and give back its tensors. So nothing of a run
hangs on how many workers there are or how far they read ahead, and its whole state is the number of the next step.
"""

import faulthandler
import math
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from training_bridge.index import Shape
from training_bridge.loop import DIGEST_BYTES
from training_bridge.plan import Sample, Slot, Step, part, tokens
from training_bridge.reader import LATENTS, PIXELS, BadSample, Example, Reader

Draw = Callable[[int, Sample, dict[str, tuple[int, ...]]], dict[str, NDArray[Any]]]
"""(seed, sample, shapes of its arrays) -> its draws. It runs in the workers, so it must be picklable: a function of a
module, or a method of a small object. Its draws must come from `draws.generator` and nothing else."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank: arrays are stacked, the sample first."""

    step: int
    micro: int
    """Its place among the `micros` of the step on this rank."""
    micros: int
    shape: Shape
    tensors: dict[str, Tensor]
    """`pixels` uint8 (B, 3, T, H, W), or `latents` float32 (B, C, T, H, W)."""
    ragged: dict[str, list[Tensor]]
    """Text encodings by their encoder's name, (L, D) each."""
    texts: list[str]
    draws: dict[str, Tensor]
    weights: Tensor
    """(B,) float32; 0 where a slot only fills up."""
    total_weight: float
    """Of the whole step, over all ranks."""
    keys: list[str]
    """Of the samples that were read: a substitute has its own."""
    digests: list[bytes]
    """Of each slot that counts: its dataset, key, visit, window and the bytes of its draws."""
    bad: list[tuple[str, str]]
    """Keys of bad samples that others stand in for, and what is wrong with them."""

    @property
    def step_tokens(self) -> float:
        """Latent tokens of the whole step."""
        return self.total_weight * tokens(self.shape)

    def to(self, device: torch.device | str) -> "Batch":
        """On another device; copies from pinned memory do not wait."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """In page-locked memory."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            tensors={name: change(tensor) for name, tensor in self.tensors.items()},
            ragged={name: [change(tensor) for tensor in tensors] for name, tensors in self.ragged.items()},
            draws={name: change(tensor) for name, tensor in self.draws.items()},
            weights=change(self.weights),
        )


Parting = Callable[[Shape], tuple[int, int] | None]
"""Shape of a step -> (data rank, data ranks), or None where this rank does not read such steps."""


def of(rank: int, world: int) -> Parting:
    """One data rank of `world`, whatever the shape."""
    return lambda shape: (rank, world)


ALONE = of(0, 1)


def no_draws(seed: int, sample: Sample, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """For those who draw for themselves."""
    return {}


def micro_batches(
    step: Callable[[int], Step],
    reader: Reader,
    draw: Draw = no_draws,
    *,
    start: int,
    end: int | None = None,
    part_of: Parting = ALONE,
    micro_tokens: int,
    workers: int,
    prefetch: int = 2,
    bad_budget: int = 16,
    timeout_s: float = 600.0,
    pin_memory: bool = False,
    context: Literal["forkserver", "spawn", "fork"] = "forkserver",
) -> Iterator[Batch]:
    """A rank's micro-batches from step `start` on, to `end` or for ever: `step` is a plan's `step`, and `part_of` says which
    part of one this rank reads.

    `workers` processes read `prefetch` micro-batches ahead each; with 0 this one reads. More than `bad_budget` different
    bad samples raise BadSample with their keys. A worker that dies raises RuntimeError; one that is at a micro-batch for
    `timeout_s` says where, and dies. `fork` needs no picklable `draw`, but may hang in a process that has threads, as
    those with CUDA do.
    """
    places, micros = _places(step, start, end, part_of, micro_tokens), Micros(reader, draw, timeout_s)
    read: Iterable[Batch] = map(micros.__getitem__, places)
    if workers:
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])  # its imports are paid for once
        read = DataLoader(
            micros,
            sampler=places,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=prefetch,
            collate_fn=_as_it_is,  # DataLoader would look into it
            pin_memory=pin_memory,
            multiprocessing_context=context,
            generator=torch.Generator(),  # the process's own is left alone
        )
    bad: dict[str, str] = {}
    for batch in read:
        bad |= {f"{key}: {why}": key for key, why in batch.bad}
        if len(set(bad.values())) > bad_budget:
            raise BadSample(f"{len(set(bad.values()))} samples are bad, more than {bad_budget}: {'; '.join(bad)}")
        yield batch


@dataclass(frozen=True)
class Place:
    """Which micro-batch to make."""

    step: int
    micro: int
    micros: int
    shape: Shape
    slots: list[Slot]
    total_weight: float


def _places(made: Callable[[int], Step], start: int, end: int | None, part_of: Parting, micro_tokens: int) -> Iterator[Place]:
    number = start
    while end is None or number < end:
        step = made(number)
        own = part_of(step.shape)
        parts = [] if own is None else part(step, *own, micro_tokens)
        for micro, slots in enumerate(parts):
            yield Place(number, micro, len(parts), step.shape, slots, float(len(step.samples)))
        number += 1


class Micros(Dataset[Batch]):
    """Micro-batches by their places."""

    def __init__(self, reader: Reader, draw: Draw, timeout_s: float) -> None:
        self.reader, self.draw, self.timeout_s = reader, draw, timeout_s

    def __getitem__(self, place: Place) -> Batch:
        if get_worker_info() is None:
            return self._batch(place)
        faulthandler.dump_traceback_later(self.timeout_s, exit=True)  # DataLoader's own timeout would not see deaths
        try:
            return self._batch(place)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _batch(self, place: Place) -> Batch:
        size, shape = len(place.slots), place.shape
        pixels = None
        if self.reader.decodes(place.slots[0].sample.dataset):
            pixels = _shared_memory((size, 3, shape.frames, shape.height, shape.width))
        made: dict[Sample, tuple[Example, dict[str, NDArray[Any]], bytes]] = {}
        for number, slot in enumerate(place.slots):
            if slot.sample not in made:  # what fills up is one sample again and again
                made[slot.sample] = self._made(slot.sample, None if pixels is None else pixels[number].numpy())
            elif pixels is not None:
                pixels[number] = torch.from_numpy(made[slot.sample][0].arrays[PIXELS])
        rows = [made[slot.sample] for slot in place.slots]
        examples = [example for example, _, _ in rows]
        counted = [row for row, slot in zip(rows, place.slots, strict=True) if slot.weight]
        names = examples[0].arrays.keys() - {PIXELS}
        tensors = {name: _stack([e.arrays[name] for e in examples]) for name in names & {LATENTS}}
        return Batch(
            step=place.step,
            micro=place.micro,
            micros=place.micros,
            shape=shape,
            tensors=tensors if pixels is None else {PIXELS: pixels},
            ragged={name: [torch.from_numpy(e.arrays[name]) for e in examples] for name in sorted(names - {LATENTS})},
            texts=[example.text for example in examples],
            draws={name: _stack([draws[name] for _, draws, _ in rows]) for name in rows[0][1]},
            weights=torch.tensor([slot.weight for slot in place.slots]),
            total_weight=place.total_weight,
            keys=[example.key for example in examples],
            digests=[digest for _, _, digest in counted],
            bad=[bad for example, _, _ in counted for bad in example.bad],
        )

    def _made(self, sample: Sample, into: NDArray[np.uint8] | None) -> tuple[Example, dict[str, NDArray[Any]], bytes]:
        example = self.reader.read(sample, into)
        shapes = {name: array.shape for name, array in example.arrays.items()}
        draws = {name: np.asarray(drawn) for name, drawn in self.draw(self.reader.seed, sample, shapes).items()}
        return example, draws, slot_digest(example, draws)


def _stack(arrays: list[NDArray[Any]]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _shared_memory(shape: tuple[int, ...]) -> Tensor:
    """Room for pixels that a worker hands over without a copy, as torch's own collation makes it."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _as_it_is(batch: Any) -> Any:
    return batch


def slot_digest(example: Example, draws: dict[str, NDArray[Any]]) -> bytes:
    """Of what one sample is trained on: which it is, in which visit, what is shown of it, with which draws."""
    which = f"{example.dataset}\0{example.key}\0{example.visit}\0{example.window}"
    digest = blake2b(which.encode(), digest_size=DIGEST_BYTES)
    for name, drawn in sorted(draws.items()):
        digest.update(f"\0{name}\0{drawn.dtype.str}\0{drawn.shape}\0".encode() + drawn.tobytes())
    return digest.digest()
