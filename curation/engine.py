"""Two ways to run the same workers over the same items: Ray Data actor pools, or one process.

A worker is a picklable object with `open`, `close` and a call that maps one item to one result. A chain of pools is a
pipeline: each item passes through every worker in turn, pools work at the same time, and Ray Data holds back the
ones that run ahead. Items and results are small; what is large goes to the run folder.
"""

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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


class Chain:
    """Workers one after the other, as one."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = workers
        self.name = "+".join(worker.name for worker in workers)

    def open(self) -> None:
        for worker in self.workers:
            worker.open()

    def close(self) -> None:
        for worker in self.workers:
            worker.close()

    def __call__(self, item: Item) -> Item:
        for worker in self.workers:
            item = worker(item)
        return item


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

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    pools = fit(steps, nodes, len(items))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what a worker raised is said once, by us
    context.execution_options.preserve_order = False
    # Blocks are given as they are (no read task competes for CPUs); one item a block spreads items evenly.
    blocks = min(len(items), 20_000)
    dataset: ray.data.Dataset = ray.data.from_items([{"payload": item} for item in items], override_num_blocks=blocks)
    for step, (smallest, now) in zip(steps, pools, strict=True):
        dataset = dataset.map(
            _actor(step.worker),
            # A pool alone may start whole; pools side by side grow from their minima, or one would starve the next.
            # A pool grows on when nodes join, as far as there are items.
            compute=ray.data.ActorPoolStrategy(
                min_size=smallest,
                max_size=max(smallest, step.pool.max_actors or len(items)),
                initial_size=now if len(steps) == 1 else smallest,
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


def fit(steps: Sequence[Step], nodes: Sequence[Mapping[str, float]], items: int) -> list[tuple[int, int]]:
    """(smallest, largest) pool sizes for a cluster as it is now, whose nodes have these resources.

    All pools' minima must fit side by side, each actor on one node: a chain that does not fit would wait for ever,
    silently. Raises ConfigError with the numbers where it does not.
    """
    free = [dict(node) for node in nodes]
    for step in sorted(steps, key=lambda s: (s.pool.gpus, s.pool.cpus), reverse=True):
        for _ in range(step.pool.min_actors):
            node = next((node for node in free if _room(step.pool, node) >= 1), None)
            if node is None:
                raise ConfigError(_too_small(steps, nodes))
            for kind, need in _needs(step.pool).items():
                node[kind] -= need
    sizes = []
    for step in steps:
        room = step.pool.min_actors + sum(_room(step.pool, node) for node in free)
        largest = int(min(room, items, step.pool.max_actors or items))
        sizes.append((step.pool.min_actors, max(step.pool.min_actors, largest)))
    return sizes


def _needs(pool: PoolConfig) -> dict[str, float]:
    """What one actor takes of a node, in Ray's units."""
    needs = {"CPU": pool.cpus, "GPU": pool.gpus, "memory": (pool.memory_gb or 0.0) * 2**30}
    return {kind: need for kind, need in needs.items() if need}


def _room(pool: PoolConfig, node: Mapping[str, float]) -> float:
    """How many actors there is room for on a node; infinity where one needs nothing."""
    return min((math.floor(node.get(kind, 0.0) / need + 1e-9) for kind, need in _needs(pool).items()), default=math.inf)


def _too_small(steps: Sequence[Step], nodes: Sequence[Mapping[str, float]]) -> str:
    plan = ", ".join(f"{s.worker.name}: {s.pool.min_actors} x {_said(_needs(s.pool))}" for s in steps)
    total: Counter[str] = Counter()
    for step in steps:
        total.update({kind: step.pool.min_actors * need for kind, need in _needs(step.pool).items()})
    has = Counter(_said({kind: node.get(kind, 0.0) for kind in total}) for node in nodes)
    there = ", ".join(f"{n} x {said}" for said, n in has.items())
    return (
        f"the plan needs {_said(total)} at once, each actor on one node ({plan}); the cluster has {there or 'no nodes'}. "
        "Lower engine.*.cpus, memory_gb or min_actors, or add nodes"
    )


def _said(resources: Mapping[str, float]) -> str:
    cpus, gpus, memory = (resources.get(kind, 0.0) for kind in ("CPU", "GPU", "memory"))
    return f"{cpus:g} CPU" + (f" + {gpus:g} GPU" if gpus else "") + (f" + {memory / 2**30:.3g} GB" if memory else "")
