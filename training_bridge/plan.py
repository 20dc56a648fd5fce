"""Which samples a step has: a pure function of the indexes, the mix, the seed and the step's number.

No argument says how many ranks there are: a step is the same at any world size, and each rank takes its part of it. No
stream ends, nothing is shuffled in memory, and the state of a run is the number of its next step.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from training_bridge.draws import key, permuted
from training_bridge.index import Index, Shape

CYCLE = 4096
"""Entries of a schedule's cycle: each choice has a whole number of them, spread at random anew in every cycle."""


@dataclass(frozen=True)
class Mix:
    """What steps are made of."""

    global_tokens: int
    """Latent tokens of a step; the batch of a shape is what fits, in multiples of `batch_multiple`."""
    batch_multiple: int = 1
    images: float = 1.0
    videos: float = 10.0
    """One image for ten videos, as in the paper's joint stages ..."""
    unit: Literal["step", "sample"] = "step"
    """... counted in steps or in samples."""
    weights: tuple[tuple[str, float], ...] = ()
    """Dataset -> weight; a dataset that is not named has weight 1. Weights are of samples, whatever the sizes."""

    @property
    def fingerprint(self) -> str:
        """Of all of it."""
        return blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Sample:
    """One sample of a step: a row of a dataset's index, and how often it came before."""

    dataset: str
    row: int
    key: str
    visit: int

    @property
    def identity(self) -> str:
        """What its draws are keyed by, beside seed and visit: a key has no slash, so no two have the same."""
        return f"{self.dataset}/{self.key}"


@dataclass(frozen=True)
class Step:
    """One step: one shape, one batch."""

    number: int
    shape: Shape
    samples: tuple[Sample, ...]

    @property
    def digest(self) -> str:
        """Of which samples it has in which visit; equal wherever the step is made."""
        text = "\n".join(f"{s.dataset}\t{s.key}\t{s.visit}" for s in self.samples)
        return blake2b(f"{self.shape}\n{text}".encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Slot:
    """A place in a rank's micro-batch. `weight` 0: it only fills up, and counts for nothing."""

    sample: Sample
    weight: float


def tokens(shape: Shape) -> int:
    """Latent tokens of a sample: 8 x 8 x 8 compression and patches of 1 x 2 x 2 (`paper_spec` C)."""
    return -(-shape.frames // 8) * -(-shape.height // 16) * -(-shape.width // 16)


class Schedule:
    """An endless row of choices in fixed proportions: in each cycle every choice comes as often as its quota says."""

    def __init__(self, weights: Sequence[float], secret: int, cycle: int = CYCLE) -> None:
        """Quotas by largest remainder, at least one each. Raises ValueError where there are more choices than places."""
        shares = np.asarray(weights, np.float64) / sum(weights) * cycle
        if len(shares) > cycle:
            raise ValueError(f"{len(shares)} choices do not fit a cycle of {cycle}")
        self.quotas = np.maximum(np.floor(shares).astype(np.int64), 1)
        order = np.lexsort((np.arange(len(shares)), -(shares - self.quotas)))
        left = cycle - int(self.quotas.sum())
        for choice in order[:left] if left > 0 else ():
            self.quotas[choice] += 1
        while (over := int(self.quotas.sum()) - cycle) > 0:
            self.quotas[self.quotas.argmax()] -= min(over, int(self.quotas.max()) - 1)
        self.cycle, self.secret = cycle, secret
        self._row = lru_cache(maxsize=4)(self._made)

    def _made(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """A cycle's choices, and how often each came before in it."""
        rng = Generator(Philox(key=key(0, format(self.secret, "x"), number)))
        row = rng.permutation(np.repeat(np.arange(len(self.quotas)), self.quotas))
        before = np.empty_like(row)
        before[np.argsort(row, kind="stable")] = np.concatenate([np.arange(quota) for quota in self.quotas])
        return row, before

    def at(self, place: int) -> tuple[int, int]:
        """The choice at a place, and how often it came before."""
        number, rest = divmod(place, self.cycle)
        row, before = self._row(number)
        choice = int(row[rest])
        return choice, number * int(self.quotas[choice]) + int(before[rest])


class Plan:
    """The endless row of steps over some datasets."""

    def __init__(self, datasets: Mapping[str, Index], mix: Mix, seed: int, *, all_shapes: bool = False) -> None:
        """With `all_shapes` a shape of fewer samples than its batch has a smaller batch, as validation wants it.

        Raises ValueError where a weight is negative or names no dataset, or no shape is left to be trained on.
        """
        self.datasets, self.mix, self.seed = dict(sorted(datasets.items())), mix, seed
        if unknown := {name for name, _ in mix.weights} - self.datasets.keys():
            raise ValueError(f"mix.weights names no dataset: {', '.join(sorted(unknown))}")
        if min([mix.images, mix.videos, *(weight for _, weight in mix.weights)]) < 0 or mix.global_tokens < 1:
            raise ValueError(f"weights are 0 or more and global_tokens 1 or more, not {mix}")
        self.batch: dict[Shape, int] = {}
        self.left_out: dict[Shape, int] = {}
        """Shapes with fewer samples than their batch, or of weight 0, and how many samples that leaves out."""
        for shape in sorted({shape for index in self.datasets.values() for shape in index.of_shape}):
            batch = max(1, mix.global_tokens // tokens(shape) // mix.batch_multiple) * mix.batch_multiple
            there = sum(len(index.of_shape.get(shape, ())) for index in self.datasets.values())
            wanted = self._wanted(shape)
            if all_shapes and there:
                batch = min(batch, there)
            if there < batch or not wanted:
                self.left_out[shape] = there
            else:
                self.batch[shape] = batch
        if not self.batch:
            said = ", ".join(f"{shape}: {n} samples" for shape, n in self.left_out.items())
            raise ValueError(f"no shape has as many samples as its batch of {mix.global_tokens} tokens: {said or 'no samples'}")
        self.shapes = list(self.batch)
        self.keys = {name: index.table["key"].combine_chunks() for name, index in self.datasets.items()}
        self.parts = {shape: self._parts(shape) for shape in self.shapes}
        self.steps = Schedule(self._step_weights(), key(seed, "steps"))
        self.slots = {
            shape: Schedule([w for _, w in self.parts[shape]], key(seed, "slots", str(shape))) for shape in self.shapes
        }

    def _wanted(self, shape: Shape) -> bool:
        """Whether the mix gives a shape any weight."""
        weights = dict(self.mix.weights)
        own = any(shape in index.of_shape and weights.get(name, 1.0) > 0 for name, index in self.datasets.items())
        return own and (self.mix.images if shape.frames == 1 else self.mix.videos) > 0

    def _parts(self, shape: Shape) -> list[tuple[str, float]]:
        """Datasets that have a shape, each with the share of all samples that its weight gives it there."""
        weights, found = dict(self.mix.weights), []
        for name, index in self.datasets.items():
            usable = sum(len(rows) for own, rows in index.of_shape.items() if own in self.batch)
            if rows := len(index.of_shape.get(shape, ())):
                found.append((name, weights.get(name, 1.0) * rows / usable))
        return [(name, weight) for name, weight in found if weight > 0]

    def _step_weights(self) -> list[float]:
        """How often each shape has a step: so often that its samples come as often as others of its kind."""
        steps = {s: sum(w for _, w in self.parts[s]) / self.batch[s] for s in self.shapes}
        samples = {s: sum(w for _, w in self.parts[s]) for s in self.shapes}
        weights = []
        for shape in self.shapes:
            kin = [s for s in self.shapes if (s.frames == 1) == (shape.frames == 1)]
            part = self.mix.images if shape.frames == 1 else self.mix.videos
            whole = sum((steps if self.mix.unit == "step" else samples)[s] for s in kin)
            weights.append(part * steps[shape] / whole if whole else 0.0)
        return weights

    def in_turn(self, number: int) -> Step:
        """The step of this number where shapes come one after the other: so validation sees all of them."""
        before, which = divmod(number, len(self.shapes))
        return self._step(number, self.shapes[which], before)

    def step(self, number: int) -> Step:
        """The step of this number, from 0 on."""
        which, before = self.steps.at(number)
        return self._step(number, self.shapes[which], before)

    def _step(self, number: int, shape: Shape, before: int) -> Step:
        first = before * self.batch[shape]
        return Step(number, shape, tuple(self._sample(shape, first + place) for place in range(self.batch[shape])))

    def _sample(self, shape: Shape, slot: int) -> Sample:
        part, place = self.slots[shape].at(slot)
        name = self.parts[shape][part][0]
        rows = self.datasets[name].of_shape[shape]
        visit, place = divmod(place, len(rows))
        row = int(rows[permuted(place, len(rows), self._order(name, shape, visit))])
        return Sample(name, row, str(self.keys[name][row]), visit)

    def _order(self, name: str, shape: Shape, visit: int) -> int:
        return key(self.seed, "order", name, str(shape), visit)

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps: enough to go on with this step, anywhere."""
        return {"step": step, "seed": self.seed, "mix": self.mix.fingerprint, "indexes": self._indexes()}

    def resume(self, state: Mapping[str, Any]) -> int:
        """The step to go on with. Raises ValueError where the state is of other data, another mix or seed."""
        now = self.state(state["step"])
        if wrong := [name for name in now if now[name] != state.get(name)]:
            said = "; ".join(f"{name}: {state.get(name)!r} then, {now[name]!r} now" for name in wrong)
            raise ValueError(f"this run was trained on other samples: {said}")
        return int(state["step"])

    def _indexes(self) -> dict[str, str]:
        return {name: index.fingerprint for name, index in self.datasets.items()}


def part(step: Step, rank: int, world: int, micro_tokens: int) -> list[list[Slot]]:
    """A data rank's micro-batches of a step, all of one size on all ranks; what does not divide is filled with weight 0."""
    size = max(1, micro_tokens // tokens(step.shape))
    each = -(-len(step.samples) // world)
    size = min(size, each)
    count = -(-each // size)
    own = step.samples[rank * each : (rank + 1) * each]
    slots = [Slot(sample, 1.0) for sample in own]
    slots += [Slot(step.samples[0], 0.0)] * (count * size - len(own))
    return [slots[i * size : (i + 1) * size] for i in range(count)]
