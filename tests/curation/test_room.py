"""A pool that finds no room on the cluster says so and ends the job; it never waits for ever."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from curation import engine
from curation.engine import EngineConfig, Item, PoolConfig, Step

pytestmark = pytest.mark.faults
ROOT = Path(__file__).parent.parent.parent
WAIT_S = 8.0


class Slow:
    name = "slow"

    def open(self) -> None: ...
    def close(self) -> None: ...
    def __call__(self, item: Item) -> Item:
        time.sleep(1)
        return item


def job(items: int, folder: str) -> None:
    steps = [Step(Slow(), PoolConfig(cpus=1, max_actors=1))]
    for number, _ in enumerate(engine.run([{"unit": i} for i in range(items)], steps, EngineConfig(wait_s=WAIT_S), folder)):
        print(f"result {number}", flush=True)


def held(folder: str) -> None:
    """Another job has every CPU."""
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False)

    @ray.remote(num_cpus=1)
    def hold() -> None:
        time.sleep(600)

    task = hold.remote()
    while ray.available_resources().get("CPU"):
        time.sleep(0.1)
    job(2, folder)
    ray.cancel(task)


def lost(folder: str) -> None:
    """The only node with a CPU leaves while the job works, and none joins."""
    import threading

    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})  # type: ignore[no-untyped-call]
    node = cluster.add_node(num_cpus=1)  # type: ignore[no-untyped-call]
    ray.init(address=cluster.address)
    threading.Timer(8.0, cluster.remove_node, (node,)).start()
    try:
        job(60, folder)
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def late(folder: str) -> None:
    """The CPU becomes free before the patience ends."""
    import ray

    ray.init("local", num_cpus=1, include_dashboard=False)

    @ray.remote(num_cpus=1)
    def hold() -> None:
        time.sleep(WAIT_S / 2)

    task = hold.remote()
    while ray.available_resources().get("CPU"):
        time.sleep(0.1)
    job(2, folder)
    ray.get(task)


def alone(function: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A function of this file in a process of its own: Ray leaves threads and warnings behind."""
    code = f"import sys; from tests.curation.test_room import {function}; {function}(sys.argv[1])"
    return subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=90)


def test_a_cluster_that_others_use_up_ends_the_job_with_the_numbers(tmp_path: Path) -> None:
    done = alone("held", tmp_path / "attempts")
    assert done.returncode == 1
    assert "slow: no actor for" in done.stderr and "one needs 1 CPU on one node, free on the nodes: 1 x 0 CPU" in done.stderr
    assert f"engine.wait_s is {WAIT_S:g} s" in done.stderr, done.stderr[-3000:]


def test_a_cluster_whose_last_node_leaves_ends_the_job(tmp_path: Path) -> None:
    done = alone("lost", tmp_path / "attempts")
    assert done.returncode == 1
    assert "result 0" in done.stdout and "result 30" not in done.stdout
    assert "slow: no actor for" in done.stderr and f"engine.wait_s is {WAIT_S:g} s" in done.stderr, done.stderr[-3000:]


def test_a_cluster_that_has_room_in_time_goes_on(tmp_path: Path) -> None:
    done = alone("late", tmp_path / "attempts")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["result 0", "result 1"]
