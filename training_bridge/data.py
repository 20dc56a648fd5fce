"""The data side of a run, from its settings: folders of shards -> plan -> reader -> this rank's batches."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch.distributed as dist
from torch import Tensor

from training_bridge import index
from training_bridge.encoded import Encoded
from training_bridge.index import Shape
from training_bridge.launch import Ranks
from training_bridge.layout import Layout
from training_bridge.loader import Batch, Draw, micro_batches
from training_bridge.plan import Mix, Plan, Step, part
from training_bridge.reader import Reader, Source
from training_bridge.sharing import shared
from training_bridge.view import View

Steps = Callable[[int], Step]
"""A step by its number."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """One dataset: the shards of a split, and what is read of them."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    path: str
    """A folder or URL with shards somewhere below."""
    view: View | None = None
    """Smaller pieces, drawn anew at each visit; several lengths are several datasets of one folder."""
    weight: float = 1.0
    """How often its samples come, relative to the other datasets'."""
    encoded: dict[str, str] = field(default_factory=dict)
    """What is read instead of pixels and text: `latent` or a text encoder's name -> the encoder's fingerprint."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the data side. `workers`, `prefetch`, `micro_tokens` and `cache_mb` change no sample and no draw."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    train: dict[str, DatasetConfig]
    held_out: dict[str, DatasetConfig] = field(default_factory=dict)
    """What validation measures; draws and samples are the same each time."""
    held_out_steps: int = 4
    """Steps of each shape that one validation takes; a shape of fewer samples than a batch has smaller steps."""
    seed: int = 0
    global_tokens: int
    """Latent tokens of a step: it fixes the batch of each shape."""
    batch_multiple: int = 1
    micro_tokens: int | None = None
    """Most latent tokens of one rank's forward and backward; None: the whole of its part."""
    images: float = 1.0
    videos: float = 10.0
    """One image for ten videos ..."""
    unit: Literal["step", "sample"] = "step"
    """... counted in steps or in samples."""
    workers: int = 2
    prefetch: int = 2
    bad_budget: int = 16
    """So many different samples may be unreadable; more end the run with their names."""
    cache_mb: int = 256


class ShardData:
    """What the loop asks of its data, over shards."""

    def __init__(self, config: DataConfig, draw: Draw, layout: Layout, ranks: Ranks) -> None:
        """Reads the indexes. Raises ValueError where shards, views or encodings will not do."""
        self.config, self.draw, self.layout, self.ranks = config, draw, layout, ranks
        self.sources, self.plan = planned("train", config.train, config)
        self.global_tokens = config.global_tokens
        self.reader = Reader(self.sources, config.seed, cache_bytes=config.cache_mb << 20)
        self.held: tuple[Reader, Plan] | None = None
        if config.held_out:
            sources, plan = planned("held_out", config.held_out, config)
            self.held = Reader(sources, config.seed, cache_bytes=config.cache_mb << 20), plan
        self.groups = _groups(layout, ranks)

    def about(self) -> list[str]:
        """What there is to train on, a line each."""
        lines = []
        for shape, batch in self.plan.batch.items():
            count = sum(len(source.shown.of_shape.get(shape, ())) for source in self.sources.values())
            lines.append(f"{shape}: {count} samples, {batch} a step")
        for plan, where in ((self.plan, ""), (self.held[1] if self.held else None, "held out, ")):
            left = plan.left_out.items() if plan else ()
            lines += [
                f"{where}{shape}: left out, its {n} samples are fewer than its batch or have no weight" for shape, n in left
            ]
        return lines

    def batches(self, start: int) -> Iterator[Batch]:
        """This rank's micro-batches from a step on, without end."""
        return self._batches(self.reader, self.plan.step, start, None, self.config.workers)

    def held_out(self) -> Iterator[Batch]:
        """The first `held_out_steps` steps of each held-out shape, the same each time."""
        if self.held is None:
            return iter(())
        reader, plan = self.held
        return self._batches(reader, plan.in_turn, 0, self.config.held_out_steps * len(plan.shapes), 0)

    def _batches(self, reader: Reader, step: Steps, start: int, end: int | None, workers: int) -> Iterator[Batch]:
        config, layout, rank = self.config, self.layout, self.ranks.rank
        micro_tokens = config.micro_tokens or config.global_tokens

        def part_of(shape: Shape) -> tuple[int, int] | None:
            """Whose part this rank reads in steps of a shape; None: a peer reads for it."""
            return layout.place(rank, shape.frames) if layout.peers(rank, shape.frames)[0] == rank else None

        read = micro_batches(
            step,
            reader,
            self.draw,
            start=start,
            end=end,
            part_of=part_of,
            micro_tokens=micro_tokens,
            workers=workers,
            prefetch=config.prefetch,
            bad_budget=config.bad_budget,
            pin_memory=self.ranks.device.type == "cuda",
        )
        if layout.context * layout.tensor == 1:
            return read
        return shared(read, self._turns(step, start, end, micro_tokens))

    def _turns(self, step: Steps, start: int, end: int | None, micro_tokens: int) -> Iterator[dist.ProcessGroup | None]:
        """For each micro-batch, who shares it with this rank."""
        number = start
        while end is None or number < end:
            made = step(number)
            _, world = self.layout.place(self.ranks.rank, made.shape.frames)
            for _ in part(made, 0, world, micro_tokens):
                yield self.groups[made.shape.frames == 1]
            number += 1

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.plan.state(step)

    def resume(self, state: Mapping[str, Any]) -> int:
        """The step to go on with. Raises ValueError where the state is of other data."""
        return self.plan.resume(state)

    def keys(self, step: int) -> list[str]:
        """The samples of a step."""
        return [sample.identity for sample in self.plan.step(step).samples]

    def write_film(self, path: Path, film: Tensor) -> None:
        """Write a film (T, H, W, 3), uint8, at 16 frames a second."""
        from training_bridge.media import write_video

        write_video(path, film.numpy(), 16.0)


def _source(dataset: DatasetConfig) -> Source:
    encoded = tuple(Encoded(name, fingerprint) for name, fingerprint in sorted(dataset.encoded.items()))
    return Source(index.read(dataset.path), dataset.view, encoded)


def planned(part: str, datasets: Mapping[str, DatasetConfig], config: DataConfig) -> tuple[dict[str, Source], Plan]:
    """Raises ValueError where there are no datasets, or they will not do."""
    mix = Mix(
        global_tokens=config.global_tokens,
        batch_multiple=config.batch_multiple,
        images=config.images,
        videos=config.videos,
        unit=config.unit,
        weights=tuple(sorted((name, dataset.weight) for name, dataset in datasets.items())),
    )
    try:
        if len(kinds := {tuple(sorted(dataset.encoded)) for dataset in datasets.values()}) > 1:
            said = " and ".join(", ".join(kind) or "nothing" for kind in sorted(kinds))
            raise ValueError(f"datasets share steps, so all are read alike; `encoded` has {said}")
        sources = {name: _source(dataset) for name, dataset in datasets.items()}
        shown = {name: source.shown for name, source in sources.items()}
        return sources, Plan(shown, mix, config.seed, all_shapes=part == "held_out")
    except ValueError as error:
        raise ValueError(f"data.{part}: {error}") from error


def _groups(layout: Layout, ranks: Ranks) -> dict[bool, dist.ProcessGroup | None]:
    """This rank's peers in steps of images (True) and of films (False); None where it is alone. All ranks call this."""
    found: dict[bool, dist.ProcessGroup | None] = {}
    for image in (True, False):
        frames = 1 if image else 2
        own = None
        for peers in sorted({layout.peers(rank, frames) for rank in range(layout.world)}):
            group = dist.new_group(list(peers), backend="gloo") if len(peers) > 1 else None
            own = group if ranks.rank in peers else own
        found[image] = own
    return found
