"""Two ways to run the same workers over the same items: Ray Data actor pools, or one process.

A worker is a picklable object with `open`, `close` and a call that maps one item to one result. A chain of pools is a
pipeline: each item passes through every worker in turn, pools work at the same time, and Ray Data holds back the
ones that run ahead. Items and results are small; what is large goes to the run folder.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from curation.errors import ConfigError, StageError

Item = dict[str, Any]


class PoolConfig(BaseModel):
    """One actor pool: what an actor asks of the cluster, and how many there may be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpus: NonNegativeFloat = 1.0
    memory_gb: PositiveFloat | None = None
    gpus: NonNegativeFloat = 0.0
    min_actors: PositiveInt = 1
    max_actors: PositiveInt | None = None
    """None: as many as the cluster has room for, growing and shrinking with it."""


class EngineConfig(BaseModel):
    """Where the job runs. Nothing here changes what it writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["ray", "inline"] = "ray"
    address: str | None = None
    """A Ray cluster to join (`auto`, `ray://...`); None starts one on this machine, or joins the submitting job's."""
    cpu: PoolConfig = PoolConfig()
    gpu: PoolConfig = PoolConfig(cpus=0.5, gpus=1.0)
    write: PoolConfig = PoolConfig(cpus=0.5)


class Worker(Protocol):
    """What an actor holds."""

    name: str

    def open(self) -> None: ...
    def close(self) -> None: ...
    def __call__(self, item: Item) -> Item: ...


@dataclass(frozen=True)
class Step:
    """A worker and the pool it runs in."""

    worker: Worker
    pool: PoolConfig


def run(items: Sequence[Item], steps: Sequence[Step], config: EngineConfig) -> Iterator[Item]:
    """Yield the result of each item as it is finished; the order is the engine's own."""
    if not items:
        return iter(())
    return _inline(items, steps) if config.kind == "inline" else _ray(items, steps, config)


def _inline(items: Sequence[Item], steps: Sequence[Step]) -> Iterator[Item]:
    opened: list[Worker] = []
    try:
        for step in steps:
            opened.append(step.worker)
            step.worker.open()
        for item in items:
            for step in steps:
                item = step.worker(item)
            yield item
    finally:
        for worker in opened:
            worker.close()


def _actor(worker: Worker) -> type:
    """The class of a Ray actor that opens `worker` once and maps rows.

    The worker travels inside the class: constructor arguments would live in the object store, and an actor whose
    arguments are lost with a node cannot be restarted.
    """

    class Actor:
        def __init__(self) -> None:
            worker.open()

        def __call__(self, row: Item) -> Item:
            return {"payload": worker(row["payload"])}

        def __del__(self) -> None:
            worker.close()

    Actor.__name__ = worker.name
    return Actor


def _ray(items: Sequence[Item], steps: Sequence[Step], config: EngineConfig) -> Iterator[Item]:
    start_ray(config)
    import ray

    pools = fit(steps, ray.cluster_resources(), len(items))  # type: ignore[no-untyped-call]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what a worker raised is said once, by us
    context.execution_options.preserve_order = False
    # Blocks are given as they are (no read task competes for CPUs); one item a block spreads items evenly.
    blocks = min(len(items), 20_000)
    dataset: ray.data.Dataset = ray.data.from_items([{"payload": item} for item in items], override_num_blocks=blocks)
    for step, (smallest, largest) in zip(steps, pools, strict=True):
        dataset = dataset.map(
            _actor(step.worker),
            # A pool alone may start whole; pools side by side grow from their minima, or one would starve the next.
            compute=ray.data.ActorPoolStrategy(
                min_size=smallest, max_size=largest, initial_size=largest if len(steps) == 1 else smallest
            ),
            num_cpus=step.pool.cpus,
            num_gpus=step.pool.gpus or None,
            memory=int(step.pool.memory_gb * 2**30) if step.pool.memory_gb else None,
        )
    try:
        for row in dataset.iter_rows():
            yield row["payload"]
    except ray.exceptions.RayError as error:
        raise StageError("stage_failed", _cause(error)) from error


def _cause(error: BaseException) -> str:
    """The worker's own exception, in one line, out of the traceback that Ray wraps it in."""
    own = str(error).split("The above exception was the direct cause", 1)[0]
    lines = [line.strip() for line in own.splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def start_ray(config: EngineConfig) -> None:
    """Join or start a Ray cluster, quietly, once."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        return
    joined = config.address or os.environ.get("RAY_ADDRESS")
    ray.init(
        address=joined,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
        include_dashboard=False if joined is None else None,
    )


def fit(steps: Sequence[Step], cluster: dict[str, float], items: int) -> list[tuple[int, int]]:
    """(smallest, largest) pool sizes for a cluster.

    All pools' minima must fit side by side: a chain that does not fit would wait for ever, silently. Raises
    ConfigError with the numbers where even the minima do not.
    """
    needs: Callable[[str], float] = lambda kind: sum(  # noqa: E731
        s.pool.min_actors * (s.pool.cpus if kind == "CPU" else s.pool.gpus) for s in steps
    )
    for kind in ("CPU", "GPU"):
        have = cluster.get(kind, 0.0)
        if needs(kind) > have:
            plan = ", ".join(f"{s.worker.name}: {s.pool.min_actors} x {s.pool.cpus} CPU + {s.pool.gpus} GPU" for s in steps)
            raise ConfigError(
                f"the plan needs {needs(kind):g} {kind} at once ({plan}); the cluster has {have:g}. "
                "Lower engine.*.cpus, or engine.*.min_actors, or add nodes"
            )
    spare = cluster.get("CPU", 0.0) - needs("CPU")
    sizes = []
    for step in steps:
        room = int(spare // step.pool.cpus) if step.pool.cpus else items
        largest = step.pool.max_actors or min(step.pool.min_actors + room, items)
        sizes.append((step.pool.min_actors, max(step.pool.min_actors, largest)))
    return sizes
