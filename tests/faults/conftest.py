"""The bench and the cluster that the faults share, and the table of what they did."""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.bench import Bench, make_bench
from tests.faults.harness import Cluster, Process
from tests.faults.kinds import NODES
from tests.faults.store import Store


@dataclass(frozen=True)
class Outcome:
    """What became of one fault: when it came (commits done), the hurt job's exit status, what was in flight, seconds."""

    kind: str
    moment: int
    status: int
    begun: int
    seconds: float


OUTCOMES = pytest.StashKey[list[Outcome]]()


@pytest.fixture(scope="session")
def bench(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """The corpus and the bytes that an uninterrupted inline run made of it. Its jobs reach the store by its door."""
    return make_bench(tmp_path_factory.mktemp("bench"), store.env())


@pytest.fixture(autouse=True)
def no_job_survives(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that failed leaves no job to the next one."""
    yield
    if "bench" in request.fixturenames:
        jobs: list[Process] = request.getfixturevalue("bench").jobs
        for job in jobs:
            job.stop()
        jobs.clear()


@pytest.fixture(scope="session")
def cluster(bench: Bench) -> Iterator[Cluster]:
    """A head that only leads, and raylets of one CPU each."""
    # pytest's own paths are too long for sockets
    made = Cluster(Path(tempfile.mkdtemp(prefix="faults-")), dict(bench.env), head_cpus=0)
    try:
        made.start(NODES)
        yield made
    finally:
        made.stop()
        shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """An S3 server; this process's own requests go past its door."""
    import fsspec

    made = Store(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (made.env() | {"AWS_ENDPOINT_URL": made.direct}).items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("bucket")
        yield made
    made.stop()


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest) -> list[Outcome]:
    """Where faults write down what became of them."""
    return request.config.stash.setdefault(OUTCOMES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of all kinds, as it stands in docs/faults.md."""
    found = config.stash.get(OUTCOMES, [])
    if found:
        terminalreporter.section("faults")
        for line in table(found):
            terminalreporter.write_line(line)


def table(found: list[Outcome]) -> Iterator[str]:
    """Lines of Markdown: a kind, how often and when it struck, what became of the job, how much was in flight."""
    of_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in found:
        of_kind[outcome.kind].append(outcome)
    yield "| fault | times | after commits | went on by itself | ended, exit status | in flight: mean, most | seconds a round |"
    yield "|---|---|---|---|---|---|---|"
    for kind, of_it in of_kind.items():
        begun = [o.begun for o in of_it]
        yield (
            f"| {kind} | {len(of_it)} | {', '.join(str(o.moment) for o in of_it)} | {sum(o.status == 0 for o in of_it)} "
            f"| {', '.join(str(o.status) for o in of_it if o.status) or '-'} | {sum(begun) / len(begun):.1f}, {max(begun)} "
            f"| {sum(o.seconds for o in of_it) / len(of_it):.0f} |"
        )
    yield f"| all | {len(found)} | | {sum(o.status == 0 for o in found)} | | | |"
