"""Anything may be killed, filled, shut or cut off at any time: run again, and nothing is lost, doubled or left behind.

`REELSET_FAULTS=N` sets how many faults `make faults` injects. The number of a fault is its seed and stands in the name of
its test: `-k '[17-'` repeats fault 17.
"""

import contextlib
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.bench import (
    ERRORS,
    SOURCES,
    UNITS,
    Bench,
    committed,
    counts,
    in_flight,
    leftovers,
    progress,
    repeated,
    strays,
)
from tests.faults.conftest import Outcome
from tests.faults.harness import Cluster, Process, wait_for
from tests.faults.kinds import KINDS, NODES, Kind, Scene, TooLateError, plan, small_disk
from tests.faults.store import Store
from tests.promised import fingerprints

FAULTS = int(os.environ.get("REELSET_FAULTS", "56"))
TRIES = 5
MOST_ACTORS = 4
"""Of half a CPU at least, on two raylets of one: no more can be in flight, nor be done again."""


@pytest.mark.faults
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number,name", plan(FAULTS), ids=str)
def test_a_fault_costs_nothing_but_time(
    number: int, name: str, bench: Bench, cluster: Cluster, store: Store, outcomes: list[Outcome], tmp_path: Path
) -> None:
    began, kind, draw = time.monotonic(), KINDS[name], random.Random(number)
    cluster.grow(NODES)  # after a fault that failed half way
    with place(kind, bench, tmp_path, number) as folder:
        scene, struck = hurt(kind, bench, cluster, store, draw, folder)
        if draw.random() < 0.5:  # else the next driver starts while workers of the hurt one may still be there
            gone(cluster, scene.job)
        last = bench.finish(scene.run, cluster if draw.random() < 0.25 else None)
        gone(cluster, scene.job, last)
        check(bench, scene.run, struck.commits)
    outcomes.append(Outcome(name, struck.moment, struck.status, struck.begun, time.monotonic() - began))


@dataclass(frozen=True)
class Struck:
    """What stood at the moment of the fault, and how the job ended."""

    moment: int
    commits: dict[str, Any]
    begun: int
    status: int


@contextlib.contextmanager
def place(kind: Kind, bench: Bench, folder: Path, number: int) -> Iterator[str]:
    """Where the run folders will be."""
    small = {"small": folder, "scratch": bench.scratch}.get(kind.place)
    with small_disk(small) if small else contextlib.nullcontext():
        yield f"s3://bucket/fault-{number}" if kind.place == "s3" else str(folder)


def hurt(kind: Kind, bench: Bench, cluster: Cluster, store: Store, draw: random.Random, folder: str) -> tuple[Scene, Struck]:
    """Do the fault to a job at a random moment, and see the job end, by itself or not."""
    for attempt in range(TRIES):
        run = f"{folder}/run-{attempt}"
        scene = Scene(bench, cluster, store, run, draw, bench.job(run, cluster))
        # A job that was quicker than its fault is let go, and the next one struck earlier.
        moment = draw.randrange(UNITS + 2 if kind.early else bench.commits) >> attempt
        with contextlib.suppress(TooLateError):
            return scene, strike(kind, scene, moment)
        assert scene.job.wait() == 0, scene.job.said()[-3000:]
    pytest.fail(f"too late {TRIES} times")


def strike(kind: Kind, scene: Scene, moment: int) -> Struck:
    """Do the fault once so many commits are done and work is in flight. TooLateError where there is nothing left to strike."""
    job = scene.job
    every = 0.5 if kind.place == "s3" else 0.05
    if not kind.at_once:
        wait_for(f"commit {moment}", lambda: progress(scene.run) >= moment or not job.running, 400, every)
    delay_s = scene.draw.uniform(0, 3 if kind.at_once else 0.3)
    if kind.at_once:
        time.sleep(delay_s)
    commits, done = committed(scene.run), progress(scene.run)  # before the wait for work: on S3 they take long
    begun = 0 if kind.at_once else at_work(scene, delay_s)
    if not job.running:
        raise TooLateError
    kind.inject(scene)
    status = job.wait()
    if kind.goes_on is False and status == 0 and commits == committed(scene.run):
        raise TooLateError
    if kind.goes_on is not None:
        assert (status == 0) == kind.goes_on, f"exit status {status}:\n{job.said()[-3000:]}"
    return Struck(done, commits, begun, status)


def at_work(scene: Scene, delay_s: float) -> int:
    """Wait until something is in flight that still is so much later: how much that is. 0 where the job ends first."""
    while scene.job.running:
        wait_for("work", lambda: in_flight(scene.run) or not scene.job.running, 400)
        time.sleep(delay_s)
        if begun := in_flight(scene.run):
            return begun
        delay_s /= 2  # a unit takes no longer than this
    return 0


def gone(cluster: Cluster, *jobs: Process) -> None:
    """Nothing of the jobs lives on. A child looks for its parent every second, a raylet for its driver somewhat later."""
    wait_for("the end of every process", lambda: not strays(cluster, *jobs), every=0.3)


def check(bench: Bench, run: str, commits: dict[str, Any]) -> None:
    """The promise, after the job was run again to its end."""
    assert fingerprints(run) == bench.reference
    assert commits.items() <= committed(run).items(), "what was done was written again"
    assert repeated(run) == {}, "what was done was done again"
    listed, states = counts(run)
    assert listed == sum(states.values()) == SOURCES and states["error"] == ERRORS
    assert leftovers(run, bench.scratch) == []


@pytest.mark.faults
def test_the_faults_were_many_of_many_kinds_and_struck_work(outcomes: list[Outcome]) -> None:
    if len(outcomes) < len(plan(FAULTS)) or FAULTS < 50:
        pytest.skip(f"{len(outcomes)} of {FAULTS} faults were injected and came out right: it takes 50, and all of them")
    assert len(outcomes) >= 50 and len({o.kind for o in outcomes}) >= 8
    struck = [o for o in outcomes if o.begun]
    assert len(struck) >= 0.8 * len(outcomes), f"only {len(struck)} of {len(outcomes)} faults came while work was in flight"
    assert max(o.begun for o in outcomes) <= MOST_ACTORS
