"""The kinds of fault: how each is done to a job that works, and how that job must take it."""

import contextlib
import random
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.faults.bench import Bench
from tests.faults.harness import ACTOR, CHILD, Cluster, Process, kill, named, wait_for
from tests.faults.store import Store

NODES = 2
"""Raylets beside the head."""
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""A raylet ends with its agents; that a raylet ends is a fault of its own."""
CONTROL_GROUPS = (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"))
"""Where the kernel limits the memory of a group of processes: version 2, then version 1."""


class TooLateError(Exception):
    """The job had ended, or had come to a part in which the fault has nothing to strike."""


@dataclass
class Scene:
    """A job that works, and what is around it. `draw` decides all that is random."""

    bench: Bench
    cluster: Cluster
    store: Store
    run: str
    draw: random.Random
    job: Process

    def one(self, *names: str) -> psutil.Process:
        """A process of the job on the cluster with one of these names, once there is any."""
        found = wait_for(f"one of {names}", lambda: named(self.cluster.processes(), *names) or not self.job.running)
        if found is True:
            raise TooLateError
        return self.draw.choice(sorted(found, key=lambda p: p.pid))  # type: ignore[no-any-return]


def driver_killed(scene: Scene) -> None:
    scene.job.popen.kill()


def interrupted(scene: Scene) -> None:
    scene.job.popen.send_signal(signal.SIGINT)


def terminated(scene: Scene) -> None:
    scene.job.popen.send_signal(signal.SIGTERM)


def actor_killed(scene: Scene) -> None:
    kill(scene.one(ACTOR))


def worker_killed(scene: Scene) -> None:
    """A process that Ray keeps for itself: an idle worker, or one of Ray Data's own actors."""
    workers = [p for p in named(scene.cluster.processes(), "ray::") if p not in named([p], ACTOR, *AGENTS)]
    if not workers:
        raise TooLateError
    kill(scene.draw.choice(workers))


def child_killed(scene: Scene) -> None:
    kill(scene.one(CHILD))


def raylet_killed(scene: Scene) -> None:
    _replace_a_node(scene, signal.SIGKILL)


def raylet_leaves(scene: Scene) -> None:
    """What a cloud does when it takes a machine back."""
    _replace_a_node(scene, signal.SIGTERM)


def _replace_a_node(scene: Scene, number: int) -> None:
    scene.cluster.lose(scene.draw.choice(scene.cluster.nodes), number)
    time.sleep(scene.draw.uniform(0, 4))
    scene.cluster.grow(NODES)


def cluster_killed(scene: Scene) -> None:
    scene.cluster.stop()
    scene.job.wait()
    scene.cluster.start(NODES)


def out_of_memory(scene: Scene) -> None:
    """The kernel's own killer: an actor or its decoding child gets into a control group that has no memory left."""
    struck = scene.one(ACTOR, CHILD)
    with starving() as group, contextlib.suppress(ProcessLookupError):
        (group / "cgroup.procs").write_text(str(struck.pid))
        wait_for("the kernel's killer", lambda: not struck.is_running() or struck.status() == psutil.STATUS_ZOMBIE)


@contextlib.contextmanager
def starving() -> Iterator[Path]:
    """A control group that may have one MB of memory."""
    place, limit = next(((Path(p), f) for p, f in CONTROL_GROUPS if (Path(p) / "cgroup.procs").exists()), (None, None))
    if place is None or limit is None:
        pytest.skip("no control groups here")
    group = place / f"reelset-{secrets.token_hex(4)}"
    try:
        group.mkdir()
        (group / limit).write_text(str(1 << 20))
    except OSError as error:
        pytest.skip(f"control groups of memory are not permitted here: {error}")
    try:
        yield group
    finally:
        for pid in (group / "cgroup.procs").read_text().split():  # a survivor goes back to all the others
            with contextlib.suppress(OSError):
                (place / "cgroup.procs").write_text(pid)
        wait_for("the group's last process", lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def disk_full(scene: Scene) -> None:
    _fill(scene, Path(scene.run).parent)


def scratch_full(scene: Scene) -> None:
    _fill(scene, scene.bench.scratch)


def _fill(scene: Scene, place: Path) -> None:
    """Take the last byte, and each that is freed, until the job has ended."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file:
        while scene.job.running:
            try:
                file.write(bytes(1 << 16))
            except OSError:
                time.sleep(0.01)
    ballast.unlink()


def read_only(scene: Scene) -> None:
    mount("--bind", scene.run, scene.run)
    try:
        mount("-o", "remount,bind,ro", scene.run)
        scene.job.wait()
    finally:
        unmount(scene.run)


def store_away(scene: Scene) -> None:
    scene.store.shut()
    time.sleep(scene.draw.uniform(1, 10))
    scene.store.open()


def store_gone(scene: Scene) -> None:
    scene.store.shut()
    try:
        scene.job.wait()
    finally:
        scene.store.open()


def mount(*arguments: str) -> None:
    """Skips the test where mounting is not permitted."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


def unmount(place: str | Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True)


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A file system of 64 MB in memory over a folder."""
    place.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place))
    try:
        yield
    finally:
        unmount(place)


@dataclass(frozen=True)
class Kind:
    """A kind of fault. `place` is where the run folder is: `disk`, `small` (a disk that can be filled) or `s3`; `scratch`
    puts the folder for temporary files on a small disk. `goes_on`: the job ends well by itself; None: it may."""

    inject: Callable[[Scene], None]
    goes_on: bool | None
    place: str = "disk"
    early: bool = False
    """Only while there is something to decode."""
    at_once: bool = False
    """While the corpus is listed and planned, before any work."""
    each: int = 1
    """Only in every so manieth turn: it takes minutes."""


KINDS = {
    "driver killed": Kind(driver_killed, goes_on=False),
    "actor killed": Kind(actor_killed, goes_on=True),
    "decoding child killed": Kind(child_killed, goes_on=True, early=True),
    "raylet killed, another joins": Kind(raylet_killed, goes_on=True),
    "disk full": Kind(disk_full, goes_on=False, place="small"),
    "worker process of Ray's own killed": Kind(worker_killed, goes_on=True),
    "out of memory, killed by the kernel": Kind(out_of_memory, goes_on=True, early=True),
    "output made read-only": Kind(read_only, goes_on=False, place="small"),
    "SIGINT": Kind(interrupted, goes_on=False),
    "store out of reach for seconds": Kind(store_away, goes_on=True, place="s3"),
    "store out of reach as the job begins": Kind(store_away, goes_on=True, place="s3", at_once=True),
    "temporary folder full": Kind(scratch_full, goes_on=None, place="scratch", early=True),
    "raylet leaves, another joins": Kind(raylet_leaves, goes_on=True),
    "SIGTERM": Kind(terminated, goes_on=False),
    "whole cluster killed": Kind(cluster_killed, goes_on=False, each=2),
    "store out of reach for more than a minute": Kind(store_gone, goes_on=False, place="s3", each=4),
}


def plan(number: int) -> Sequence[tuple[int, str]]:
    """So many faults, the kinds in turn. The number of a fault is its seed."""
    names: list[str] = []
    turn = 0
    while len(names) < number:
        names += [name for name, kind in KINDS.items() if turn % kind.each == 0]
        turn += 1
    return list(enumerate(names[:number]))
