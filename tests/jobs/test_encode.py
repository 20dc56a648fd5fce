"""Encoding shards: only what is missing, the same bytes from both engines, and nothing half done."""

import hashlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from curation.engine import EngineConfig, PoolConfig
from curation.errors import ConfigError, StageError
from jobs import encode
from jobs.events import logs
from tests.training_bridge.samples import (
    STILL,
    TALL,
    WIDE,
    TinyLatents,
    TinyTexts,
    damage,
    encode_shards,
    make_shards,
    sample_of,
)
from training_bridge import index
from training_bridge.reader import Reader, Source

INLINE, POOL = EngineConfig(kind="inline"), PoolConfig()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with shards of two subsets."""
    run = tmp_path_factory.mktemp("made") / "run"
    make_shards(run / "shards" / "low" / "train", {WIDE: 5, STILL: 2})
    make_shards(run / "shards" / "high" / "train", {TALL: 2})
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def sidecars(run: Path) -> dict[str, str]:
    found = (p for p in run.rglob("encoded-*/*") if not p.name.startswith("_"))
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def test_every_shard_is_encoded_once(run: Path) -> None:
    assert encode.encode(str(run), TinyLatents(), INLINE, POOL) == 4
    first = sidecars(run)
    assert len(first) == 8
    assert encode.encode(str(run), TinyLatents(), INLINE, POOL) == 0 and sidecars(run) == first
    assert encode.encode(str(run), TinyTexts(), INLINE, POOL, ["low"]) == 3
    both = sidecars(run)
    assert both.items() > first.items() and len(both) == 8 + 3 * 2 + 2, "and the empty caption in each of two buckets"
    (run / next(name for name in first if name.endswith("000001.parquet"))).unlink()
    assert encode.encode(str(run), TinyLatents(), INLINE, POOL) == 1 and sidecars(run) == both, "the same bytes again"
    kinds = [encode.kind(TinyLatents()), encode.kind(TinyTexts())]
    Reader({"d": Source(index.read(str(run / "shards/low/train")), encoded=tuple(kinds))}, 0)
    events = [event for _, own in logs(str(run)) for event in own if event["event"] == "encoded"]
    assert [event["samples"] for event in events] == [2, 2, 3, 2, 2, 3, 2, 2]


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_both_engines_write_what_the_reader_is_tested_with(run: Path, made: Path, tmp_path: Path) -> None:
    """Sidecars of the job on Ray, of the job inline, and of a plain loop over the shards: one and the same."""
    ray = EngineConfig(kind="ray")
    again = Path(shutil.copytree(made, tmp_path / "inline"))
    encode.encode(str(run), TinyLatents(), ray, POOL)
    encode.encode(str(again), TinyLatents(), INLINE, POOL)
    plain = Path(shutil.copytree(made, tmp_path / "plain"))
    for folder in ("low", "high"):
        encode_shards(plain / "shards" / folder / "train", TinyLatents())
    found = sidecars(run)
    assert found == sidecars(again) and len(found) == 8
    tars = {name: sha256 for name, sha256 in found.items() if not name.endswith(".parquet")}
    assert tars.items() == {n: s for n, s in sidecars(plain).items() if not n.endswith(".parquet")}.items()


KILLED = """
import os, signal, sys
from curation import storage
from curation.engine import EngineConfig, PoolConfig
from jobs import encode
from tests.training_bridge.samples import TinyLatents
write = storage.write_table
def write_table(url, table):
    if "000001" in url:
        os.kill(os.getpid(), signal.SIGKILL)
    write(url, table)
storage.write_table = write_table
encode.encode(sys.argv[1], TinyLatents(), EngineConfig(kind="inline"), PoolConfig())
"""


def test_a_killed_job_goes_on(run: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(run)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    half = sidecars(run)
    assert len(encode.missing(str(run), TinyLatents())[0]) == 1 and len(half) == 7, "a tar without index is no sidecar"
    assert encode.encode(str(run), TinyLatents(), INLINE, POOL) == 1
    assert len(sidecars(run)) == 8 and sidecars(run).items() >= half.items()


class Huge(TinyLatents):
    fingerprint = "huge"

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return super().encode(pixels) * 1e6


def test_what_cannot_be_encoded_is_said(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no finished shard: make some first"):
        encode.encode(str(tmp_path / "nothing"), TinyLatents(), INLINE, POOL)
    with pytest.raises(ConfigError, match="has no finished shard of other: "):
        encode.encode(str(run), TinyLatents(), INLINE, POOL, ["other"])
    with pytest.raises(StageError, match=r"shard-000000\.tar: an encoding has numbers that float16 cannot hold"):
        encode.encode(str(run), Huge(), INLINE, POOL)
    assert not sidecars(run)


def test_a_sample_that_cannot_be_read_is_an_empty_entry_with_a_substitute(run: Path) -> None:
    damage(run, "c004")
    assert encode.encode(str(run), TinyLatents(), INLINE, POOL) == 4
    events = [event for _, own in logs(str(run)) for event in own if event["event"] == "encoded"]
    assert [event["bad"] for event in events if "bad" in event] == [["c004"]]
    source = Source(index.read(str(run / "shards/low/train")), encoded=(encode.kind(TinyLatents()),))
    reader = Reader({"d": source}, 0)
    read = reader.read(sample_of(reader, "c004"))
    assert read.key != "c004" and read.bad == (("c004", "it could not be read when its latent was to be encoded"),)
