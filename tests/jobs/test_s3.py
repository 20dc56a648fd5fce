"""A run whose input and folder are in an object store, against a real S3 server on this machine."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from curation import lock, storage
from curation.errors import ConfigError
from jobs import pipeline
from tests.faults.store import Store
from tests.promised import fingerprints
from tests.small_runs import driver, settings

pytest.importorskip("moto", reason="the S3 server comes with the extra `dev`")
pytest.importorskip("s3fs", reason="the S3 client comes with the extra `s3`")

ROOT = Path(__file__).parent.parent.parent
INPUT, BUCKET = "s3://films/in", "films"
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A server with the small corpus in it; this process's own client goes past the door."""
    import boto3

    store = Store(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (store.env() | {"AWS_ENDPOINT_URL": store.direct}).items():
            patch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=BUCKET)
        for file in corpus.iterdir():
            client.upload_file(str(file), BUCKET, f"in/{file.name}")
        yield store
    store.stop()


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Starts a driver that comes through the door; none outlives its test."""
    begun: list[subprocess.Popen[str]] = []

    def start(run: str) -> "subprocess.Popen[str]":
        command, env = driver(f"{INPUT}/manifest.csv", run), os.environ | store.env()
        begun.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True))
        return begun[-1]

    yield start
    store.refuse_share, store.bytes_per_s = 0.0, None
    for process in begun:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def on_disk(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The promised files of the same run on a disk, by name."""
    run = tmp_path_factory.mktemp("runs") / "disk"
    assert pipeline.run(str(corpus / "manifest.csv"), str(run), settings()) == 0
    return fingerprints(str(run))


def written(run: str) -> dict[str, object]:
    """When each object of the run was put."""
    import s3fs

    client = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
    return {name: facts["LastModified"] for name, facts in client.find(run, detail=True).items()}


def ended(process: "subprocess.Popen[str]") -> str:
    """What a driver said, which must have ended well."""
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


@pytest.mark.slow
def test_throttled_and_slow_the_bytes_are_those_of_a_disk(store: Store, start: Start, on_disk: dict[str, str]) -> None:
    store.refuse_share, store.bytes_per_s = 0.15, 4e6
    before = store.requests["503"]
    ended(start("s3://films/throttled"))
    assert store.requests["503"] > before + 5, "the store refused indeed"
    assert fingerprints("s3://films/throttled") == on_disk
    assert not storage.exists("s3://films/throttled/cuts") and not storage.exists("s3://films/throttled/.lock")


@pytest.mark.slow
@pytest.mark.parametrize("milestone", ["sources", "cuts"])
def test_a_killed_driver_is_gone_on_from(start: Start, on_disk: dict[str, str], milestone: str) -> None:
    run = f"s3://films/killed-{milestone}"
    first = start(run)
    deadline = time.monotonic() + 100
    while not storage.names(f"{run}/{milestone}") and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = [name for name in written(run) if "/sources/" in name]
    when = written(run)
    assert done, "killed too early to show anything"
    second = start(run)
    _, said = second.communicate(timeout=100)
    assert second.returncode and "is being worked on by process" in said and "its lease ends in" in said
    owner = json.loads(storage.read_bytes(f"{run}/{lock.NAME}"))
    storage.write_bytes(f"{run}/{lock.NAME}", json.dumps(owner | {"until": 0.0}).encode())
    ended(start(run))
    assert fingerprints(run) == on_disk
    assert {name: written(run)[name] for name in done} == {name: when[name] for name in done}, "done units are not done again"


@pytest.mark.parametrize(("megabytes", "bytes_per_s"), [(60, 4e6), (160, 3e7)], ids=["whole", "in parts"])
def test_an_upload_that_was_cut_short_is_never_seen(store: Store, megabytes: int, bytes_per_s: float) -> None:
    folder = f"s3://films/partial-{megabytes}"
    url = f"{folder}/large"
    code = "import sys; from curation import storage; storage.write_bytes(sys.argv[1], bytes(int(sys.argv[2]) << 20))"
    store.bytes_per_s = bytes_per_s
    command = [sys.executable, "-c", code, url, str(megabytes)]
    writer = subprocess.Popen(command, cwd=ROOT, env=os.environ | store.env())
    deadline = time.monotonic() + 60
    while megabytes > 100 and not uploads():
        assert writer.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(2)  # of the five that the rest of it takes, or more
    assert writer.poll() is None
    writer.kill()
    writer.communicate()
    store.bytes_per_s = None
    assert not storage.exists(url) and storage.names(folder) == []
    if megabytes > 100:
        assert uploads() == [f"partial-{megabytes}/large"], "its parts are kept, and paid for"
        storage.sweep(folder[:-1])  # another folder: its name only begins alike
        assert uploads() == [f"partial-{megabytes}/large"]
    storage.sweep(folder)
    assert uploads() == []


def uploads() -> list[str]:
    """Keys of the uploads that were begun and not ended."""
    import boto3

    return [upload["Key"] for upload in boto3.client("s3").list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])]


@pytest.mark.parametrize("page", [None, json.dumps({"token": "gone", "until": 0.0}).encode()], ids=["none", "expired"])
def test_of_many_drivers_at_once_one_has_the_lease(store: Store, page: bytes | None) -> None:
    for turn in range(8):
        run = f"s3://films/race-{page is None}-{turn}"
        if page:
            storage.write_bytes(f"{run}/.lock", page)
        racers, start = [lock.Lease(run) for _ in range(6)], threading.Barrier(6)
        with ThreadPoolExecutor(6) as pool:
            won = list(pool.map(partial(holds, start), racers))
        assert won.count(True) == 1, won
        owner = json.loads(storage.read_bytes(f"{run}/.lock"))
        assert owner["token"] == racers[won.index(True)].me["token"]
        racers[won.index(True)].release()
        assert not storage.exists(f"{run}/.lock")


def holds(start: threading.Barrier, lease: lock.Lease) -> bool:
    start.wait()
    try:
        lease.acquire()
    except ConfigError:
        return False
    return True
