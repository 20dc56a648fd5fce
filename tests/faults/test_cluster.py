"""The job on clusters that are small, large, growing, or too small; two drivers; a source that kills its workers."""

import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from curation import engine, storage
from curation.engine import EngineConfig, Item, PoolConfig, Step
from tests.faults.bench import ERRORS, SOURCES, UNITS, Bench, counts, leftovers, progress, strays
from tests.faults.harness import ACTOR, CHILD, Cluster, Process, kill, named, wait_for
from tests.jobs.test_metrics import exported
from tests.promised import fingerprints

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
STORE_MB, BLOCK_MB, BLOCKS, FILL_MB = 80, 100, 6, 8
QUEUE = "ray_data_operator_queued_blocks"
SPILLED = "ray_spill_manager_objects_bytes"


@pytest.fixture(scope="module")
def small(bench: Bench) -> Iterator[Cluster]:
    """A cluster of its own that begins as a head of one CPU, with the smallest object store that Ray takes."""
    made = Cluster(Path(tempfile.mkdtemp(prefix="faults-")), dict(bench.env), store_mb=STORE_MB)
    try:
        made.start(0)
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


def ended_well(bench: Bench, run: Path, cluster: Cluster, *jobs: Process) -> None:
    """The bytes of the uninterrupted run, and nothing left behind."""
    assert fingerprints(str(run)) == bench.reference
    wait_for("the end of every process", lambda: not strays(cluster, *jobs), every=0.3)
    assert leftovers(str(run), bench.scratch) == []


def alone(function: str, cluster: Cluster, folder: Path) -> Process:
    """A function of this file, given the cluster's address, in a process of its own: Ray leaves threads and warnings."""
    code = f"import sys; from tests.faults.test_cluster import {function}; {function}(sys.argv[1])"
    return Process([sys.executable, "-c", code, cluster.address], folder / "log", cluster.env)


class Swell:
    """Makes rows larger than a node's object store."""

    name = "swell"

    def open(self) -> None: ...
    def close(self) -> None: ...
    def __call__(self, item: Item) -> Item:
        return {**item, "block": os.urandom(1 << 20) * BLOCK_MB}


class Shrink(Swell):
    name = "shrink"

    def __call__(self, item: Item) -> Item:
        time.sleep(0.5)  # slower than what comes before it
        return {"n": item["n"], "bytes": len(item["block"])}


def through_two_pools(address: str) -> None:
    """Rows larger than the object store, from one pool to another."""
    pool = PoolConfig(cpus=0.5, max_actors=1)
    steps = [Step(Swell(), pool), Step(Shrink(), pool)]
    results = list(engine.run([{"n": n} for n in range(BLOCKS)], steps, EngineConfig(address=address), tempfile.mkdtemp()))
    assert sorted(r["n"] for r in results) == list(range(BLOCKS)) and {r["bytes"] for r in results} == {BLOCK_MB << 20}


def test_rows_larger_than_the_object_store_do_not_stop_the_flow(small: Cluster, tmp_path: Path) -> None:
    job = alone("through_two_pools", small, tmp_path)
    assert job.wait() == 0, job.said()[-3000:]


class Fill(Swell):
    """Makes ordinary blocks as fast as it can, and says when."""

    name = "fill"

    def __call__(self, item: Item) -> Item:
        return {**item, "block": os.urandom(FILL_MB * 10**6), "made": time.time()}


class Drain(Swell):
    """Takes a block, says when, and is in no hurry."""

    name = "drain"

    def __call__(self, item: Item) -> Item:
        taken = time.time()
        time.sleep(0.3)
        return {"made": item["made"], "taken": taken}


def through_a_slow_pool(address: str) -> None:
    """Four times what the object store holds, past a pool that is slow; never more than half of it waits."""
    pool = PoolConfig(cpus=0.5, max_actors=1)
    items = [{"n": n} for n in range(4 * STORE_MB // FILL_MB)]
    results = list(
        engine.run(items, [Step(Fill(), pool), Step(Drain(), pool)], EngineConfig(address=address), tempfile.mkdtemp())
    )
    assert len(results) == len(items)
    waiting = [sum(r["made"] <= now < r["taken"] for r in results) for now in (r["made"] for r in results)]
    assert max(waiting) * FILL_MB <= STORE_MB / 2, f"{max(waiting)} blocks of {FILL_MB} MB waited"


def test_a_slow_pool_holds_back_the_one_before_it(small: Cluster, tmp_path: Path) -> None:
    """Blocks wait within the object store's limit, and none is spilled to a disk to make room."""
    job, most, spilled = alone("through_a_slow_pool", small, tmp_path), 0.0, list[float]()
    while job.running:
        told = list(small.metrics())
        held = [value for name, tags, value in told if name == "ray_object_store_memory" and tags["Location"] == "MMAP_SHM"]
        most = max(most, sum(held))
        spilled += [value for name, tags, value in told if name == SPILLED and tags["State"] == "Spilled"]
        time.sleep(0.3)
    assert job.wait() == 0, job.said()[-3000:]
    assert FILL_MB * 10**6 <= most <= 0.6 * STORE_MB * 10**6
    assert len(set(spilled)) == 1, "more was spilled than by the test before"


def test_ray_tells_prometheus_what_the_docs_say(bench: Bench, cluster: Cluster, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    job = bench.job(run, cluster)
    told: dict[str, float] = {}
    while job.running:
        now: Counter[str] = Counter()
        for name, tags, value in cluster.metrics():
            if tags.get("run") == run or name == QUEUE:
                now[name] += value
        told |= {name: max(value, told.get(name, 0.0)) for name, value in now.items()}
        time.sleep(0.5)
    assert job.wait() == 0, job.said()[-3000:]
    named = {f"{name}_count" if name.endswith("unit_seconds") else name for name in exported()}
    assert named - set(told) <= {"ray_reelset_clip_errors_total"}  # no clip has an error here
    assert 1 <= told["ray_reelset_sources_total"] <= SOURCES and told["ray_reelset_errors_total"] <= ERRORS
    assert told["ray_reelset_run_sources"] == SOURCES and told["ray_reelset_run_errors"] == ERRORS
    assert told[QUEUE] >= 1, "units waited before the pool"


@pytest.mark.parametrize("raylets,cpus", [(1, 0.5), (1, 1), (2, 0.5), (4, 0.7)])
def test_any_number_of_raylets_gives_the_same_bytes(
    bench: Bench, small: Cluster, tmp_path: Path, raylets: int, cpus: float
) -> None:
    for node in small.nodes[raylets - 1 :]:
        small.lose(node)
    small.grow(raylets - 1)
    run = tmp_path / "run"
    job = bench.job(str(run), small, "--set", f"engine.cpu.cpus={cpus}")
    wait_for("actors", lambda: len(named(small.processes(), ACTOR)) >= min(raylets, 2) or not job.running)
    assert job.running, "the job ended before it had taken what the cluster has"
    assert job.wait() == 0, job.said()[-3000:]
    ended_well(bench, run, small, job)


def test_a_plan_too_large_for_any_node_is_refused_with_the_numbers(bench: Bench, cluster: Cluster, tmp_path: Path) -> None:
    job = bench.job(str(tmp_path / "run"), cluster, "--set", "engine.cpu.cpus=1.5")
    assert job.wait(120) == 2
    for words in ("the plan needs 1.5 CPU at once, each actor on one node", "the cluster has", "1 x 0 CPU", "2 x 1 CPU"):
        assert words in job.said()


def test_a_second_driver_is_refused_and_harms_nothing(bench: Bench, cluster: Cluster, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = bench.job(str(run), cluster)
    wait_for("a unit", lambda: progress(str(run)) > 0 or not job.running)
    second = bench.job(str(run), cluster)
    assert second.wait() == 2
    assert f"is being worked on by process {job.pid} on" in second.said()
    assert job.wait() == 0, job.said()[-3000:]
    ended_well(bench, run, cluster, job, second)


class Slow(Swell):
    """Says on which node it worked."""

    name = "slow"

    def __call__(self, item: Item) -> Item:
        import ray

        time.sleep(2)
        return {"node": ray.get_runtime_context().get_node_id()}


def slowly(address: str) -> None:
    """Twenty tasks of two seconds, one at a time on each CPU."""
    items = [{"n": n} for n in range(20)]
    results = list(engine.run(items, [Step(Slow(), PoolConfig())], EngineConfig(address=address), tempfile.mkdtemp()))
    assert len(results) == len(items)
    assert len({r["node"] for r in results}) == 2, "the node that joined had no work"


def test_a_pool_grows_on_to_a_node_that_joins(small: Cluster, tmp_path: Path) -> None:
    for node in list(small.nodes):
        small.lose(node)
    job = alone("slowly", small, tmp_path)
    wait_for("an actor", lambda: named(small.processes(), ACTOR) or not job.running)
    small.grow(1)
    assert job.wait() == 0, job.said()[-3000:]


class Quick(Swell):
    """Is done long before what comes after it."""

    name = "quick"

    def __call__(self, item: Item) -> Item:
        return {**item, "quick": os.getpid()}


class Long(Swell):
    """Says which process worked."""

    name = "long"

    def __call__(self, item: Item) -> Item:
        time.sleep(2)
        return {**item, "long": os.getpid()}


def past_a_quick_pool(address: str) -> None:
    """Two CPUs, a pool on each at first: the first has nothing to do any more, and gives its CPU to the second."""
    steps = [Step(Quick(), PoolConfig()), Step(Long(), PoolConfig())]
    results = list(engine.run([{"n": n} for n in range(20)], steps, EngineConfig(address=address), tempfile.mkdtemp()))
    assert sorted(r["n"] for r in results) == list(range(20))
    assert len({r["long"] for r in results}) == 2, "the pool that was done kept its CPU"


def test_a_pool_shrinks_and_the_other_grows(small: Cluster, tmp_path: Path) -> None:
    small.grow(1)
    job = alone("past_a_quick_pool", small, tmp_path)
    assert job.wait() == 0, job.said()[-3000:]


def test_a_source_that_kills_its_worker_every_time_is_given_up(bench: Bench, cluster: Cluster, tmp_path: Path) -> None:
    """Whoever has this film open loses its actor at once."""
    run, film, deaths = tmp_path / "run", str(bench.corpus / "03 moving.mp4"), 0
    job = bench.job(str(run), cluster)
    while job.running:
        for child in named(cluster.processes(), CHILD):
            if film in opened(child):
                kill(psutil.Process(child.ppid()))
                deaths += 1
                wait_for("the child's end", lambda child=child: not child.is_running(), 10)  # type: ignore[misc]
        time.sleep(0.002)
    assert job.wait() == 0, job.said()[-3000:]
    assert deaths == 4  # the first says nothing of which source it was
    rows = {row["path"]: row for row in storage.read_table(storage.join(str(run), "sources")).to_pylist()}
    assert rows["03 moving.mp4"]["error_code"] == "worker_died"
    listed, states = counts(str(run))
    assert listed == sum(states.values()) and states["error"] == ERRORS + 1
    others = {name: digest for name, digest in bench.reference.items() if name.startswith("/clips/")}
    same = [name for name in others if fingerprints(str(run)).get(name) == others[name]]
    assert len(same) == UNITS - 1
    wait_for("the end of every process", lambda: not strays(cluster, job), every=0.3)


def opened(process: psutil.Process) -> list[str]:
    """Files that a process has open."""
    try:
        return [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    except OSError:
        return []
