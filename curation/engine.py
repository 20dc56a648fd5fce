"""Two ways to run the same workers over the same items: Ray Data actor pools, or one process.

A worker is a picklable object with `open`, `close` and a call that maps one item to one result. A chain of pools is a
pipeline: each item passes through every worker in turn, pools work at the same time, and Ray Data holds back the
ones that run ahead. Items and results are small; what is large goes to the run folder.
"""

import logging
import math
import os
import signal
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from curation import storage
from curation.attempts import Attempt
from curation.errors import ConfigError, StageError

Item = dict[str, Any]

MOST_BLOCKS = 20_000
"""Blocks that Ray Data is given at once: beyond, each costs the driver more than it helps. An actor takes a block's items
in turn, and one that dies takes them all again: workers know what is done."""
NAMES = ("unit", "block", "subset", "shard")
"""Keys of an item that say to people which one it is."""
LOOK_S = 5.0
SAY_S = 30.0
UNBORN = frozenset(("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING"))


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
    """A Ray cluster to join (`auto`, `host:port`); None starts one on this machine, or joins the submitting job's."""
    wait_s: PositiveFloat = 600.0
    """How long a pool may be without a single actor, for want of room or because none can start, before the job ends."""
    cpu: PoolConfig = PoolConfig()
    gpu: PoolConfig = PoolConfig(cpus=0.5, gpus=1.0)
    write: PoolConfig = PoolConfig(cpus=0.5)
    caption: PoolConfig = PoolConfig(cpus=0.5, max_actors=8)


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


def run(items: Sequence[Item], steps: Sequence[Step], config: EngineConfig, marks: str) -> Iterator[Item]:
    """Yield the result of each item as it is finished; the order is the engine's own.

    `marks` is the folder in which actors say what they are at (`attempts`); it is removed with the last result. An item
    may reach a worker again after the worker is done with it: what dies between a result and its receipt is done anew.
    Raises ConfigError where the plan does not fit the cluster, StageError where a worker raised, where workers died again
    and again, or where a pool had no actor for `wait_s`.
    """
    if not items:
        return iter(())
    return _inline(items, steps) if config.kind == "inline" else _ray(items, steps, config, marks)


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


def _actor(worker: Worker, marks: str) -> type:
    """The class of a Ray actor that opens `worker` once and maps rows.

    The worker travels inside the class: constructor arguments would live in the object store, and an actor whose
    arguments are lost with a node cannot be restarted.
    """

    class Actor:
        def __init__(self) -> None:
            worker.open()

        def __call__(self, row: Item) -> Item:
            item, number = row["payload"], row["number"]
            what = " ".join(str(item[name]) for name in NAMES if name in item)
            with Attempt(f"{marks}.{number}.json", f"{worker.name} {what}"):
                return {"payload": worker(item), "number": number}

        def __del__(self) -> None:
            worker.close()

    Actor.__name__ = worker.name
    return Actor


def _ray(items: Sequence[Item], steps: Sequence[Step], config: EngineConfig, marks: str) -> Iterator[Item]:
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
    rows = [{"payload": item, "number": number} for number, item in enumerate(items)]
    dataset: ray.data.Dataset = ray.data.from_items(rows, override_num_blocks=min(len(items), MOST_BLOCKS))
    driver = uuid.uuid4().hex[:12]
    for place, (step, (smallest, now)) in enumerate(zip(steps, pools, strict=True)):
        dataset = dataset.map(
            _actor(step.worker, storage.join(marks, f"{driver}.{place}")),
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
    watch = Watch(steps, config.wait_s)
    try:
        for row in watch.over(dataset.iter_rows()):
            yield row["payload"]
        storage.remove(marks)
    except BaseException as error:
        if watch.verdict:  # the interrupt that ended the wait may have become another error on its way
            raise StageError("stage_failed", watch.verdict) from None
        if isinstance(error, ray.exceptions.RayError):
            raise StageError("stage_failed", _cause(error)) from error
        raise


class Watch(threading.Thread):
    """Ends a wait that would have no end: Ray waits silently for room when others took it, or its last node is gone.

    Sends the main thread an interrupt, with what to say of it in `verdict`, once a pool has had no actor for `wait_s`
    although it asks for one.
    """

    def __init__(self, steps: Sequence[Step], wait_s: float) -> None:
        super().__init__(daemon=True)
        self.pools = {f"MapWorker(Map({step.worker.name}))": step for step in steps}
        self.wait_s = wait_s
        self.verdict: str | None = None
        self.waits = False
        self.ended = threading.Event()

    def over(self, rows: Iterable[Item]) -> Iterator[Item]:
        """Pass rows on, watching while the next one is waited for."""
        self.start()
        try:
            self.waits = True
            for row in rows:
                self.waits = False
                yield row
                self.waits = True
        finally:
            self.waits = False
            self.ended.set()

    def run(self) -> None:
        since: dict[str, float] = {}
        said: set[str] = set()
        while not self.ended.wait(LOOK_S):
            try:
                states = _actor_states()
            except Exception as error:  # Ray's head does not answer: Ray itself ends the job if it stays away
                logging.getLogger(__name__).debug("actors cannot be looked at: %s", error)
                continue
            for name, step in self.pools.items():
                if "ALIVE" in states[name] or not states[name] & UNBORN:
                    since.pop(name, None)
                    said.discard(name)
                    continue
                waited_s = time.monotonic() - since.setdefault(name, time.monotonic())
                if waited_s > min(SAY_S, self.wait_s) and name not in said:
                    said.add(name)
                    logging.getLogger(__name__).warning("%s; waiting", _no_actor(step, waited_s))
                if waited_s > self.wait_s and self.waits:
                    self.verdict = (
                        f"{_no_actor(step, waited_s)}. engine.wait_s is {self.wait_s:g} s: what is done stays, run again"
                    )
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return


def _actor_states() -> dict[str, set[str]]:
    """Class name -> states of this job's actors. Ray's public call for it asks the dashboard, which need not be there."""
    import ray
    from ray._private import state

    job = ray.get_runtime_context().get_job_id()
    found: dict[str, set[str]] = defaultdict(set)
    for actor in state.actors(job_id=ray.JobID.from_hex(job)).values():
        found[actor["ActorClassName"]].add(actor["State"])
    return found


def _no_actor(step: Step, waited_s: float) -> str:
    from ray._private import state

    nodes = state.available_resources_per_node()  # type: ignore[no-untyped-call]
    free = Counter(_said(node) for node in nodes.values())
    there = ", ".join(f"{n} x {said}" for said, n in free.items())
    return (
        f"{step.worker.name}: no actor for {waited_s:.0f} s; one needs {_said(_needs(step.pool))} on one node, "
        f"free on the nodes: {there or 'none'}"
    )


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
    if joined and joined.startswith("ray://"):
        raise ConfigError(f"engine.address {joined!r}: Ray Data has no client mode; submit the command with `ray job submit`")
    ray.init(
        address=joined or "local",  # None would join whatever cluster was last started on this machine, dead or alive
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
