"""A small corpus, the bytes that an uninterrupted run makes of it, and what can be seen of a run from its folder."""

import os
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from curation import storage
from jobs.events import logs
from tests.faults.harness import ACTOR, BIN, CHILD, ROOT, Cluster, Process, members, named
from tests.promised import fingerprints
from tests.small_runs import SETTINGS, long_corpus

SOURCES, ERRORS, UNITS = 16, 2, 8
REMOTE_CORPUS = "s3://bucket/corpus"
"""The same files in the store: a run folder there has its corpus there too."""


@dataclass
class Bench:
    """What the faults share: the corpus, its settings, the bytes of an uninterrupted run, a folder for temporary files."""

    folder: Path
    corpus: Path
    settings: Path
    scratch: Path
    env: dict[str, str]
    reference: dict[str, str] = field(default_factory=dict)
    jobs: list[Process] = field(default_factory=list)
    commits: int = 0
    """Units analyzed, units cut and shards packed in a whole run."""

    def job(self, run: str, cluster: Cluster | None, *more: str) -> Process:
        """`reelset run` on the corpus; inline where there is no cluster."""
        engine = ["--engine", "inline"] if cluster is None else ["--engine", "ray", "--address", cluster.address]
        corpus = REMOTE_CORPUS if storage.is_remote(run) else str(self.corpus)
        command = [str(BIN / "reelset"), "run", "-i", corpus, "-o", run, "-c", str(self.settings), *engine, *more]
        env = self.env if cluster is None else cluster.env
        self.jobs.append(Process(command, self.folder / f"job-{secrets.token_hex(4)}.log", env))
        return self.jobs[-1]

    def finish(self, run: str, cluster: Cluster | None) -> Process:
        """Run to the end; a lease that a killed driver left on an object store is waited for, as a user would."""
        deadline = time.monotonic() + 120
        while True:
            job = self.job(run, cluster)
            code = job.wait()
            if code == 2 and "is being worked on" in job.said() and time.monotonic() < deadline:
                time.sleep(2.0)
                continue
            assert code == 0, f"exit status {code}:\n{job.said()[-3000:]}"
            return job


def make_bench(folder: Path, env: Mapping[str, str]) -> Bench:
    """A bench with its uninterrupted run, made inline; `env` is added to the environment of all its jobs."""
    import fsspec

    corpus = long_corpus(folder / "corpus")
    fsspec.filesystem("s3").put(f"{corpus}/", f"{REMOTE_CORPUS}/", recursive=True)
    settings = folder / "settings.yaml"
    settings.write_text(yaml.safe_dump(SETTINGS))
    scratch = folder / "tmp"
    scratch.mkdir()
    ours = {"PYTHONPATH": str(ROOT), "TMPDIR": str(scratch), "COLUMNS": "200"}
    bench = Bench(folder, corpus, settings, scratch, {**os.environ, **ours, **env})
    run = str(folder / "reference")
    bench.finish(run, None)
    bench.reference = fingerprints(run)
    unit_of = {row["source_id"]: row["unit"] for row in storage.read_table(storage.join(run, "sources")).to_pylist()}
    kept = storage.read_table(storage.join(run, "selection", "tiny"), columns=["source_id", "kept"]).to_pylist()
    cut = {unit_of[row["source_id"]] for row in kept if row["kept"]}
    bench.commits = UNITS + len(cut) + len(_files(run, "shards", suffix=".parquet"))
    assert len(storage.names(storage.join(run, "units"))) == UNITS
    return bench


def strays(cluster: Cluster, *jobs: Process) -> list[psutil.Process]:
    """Processes of jobs that have ended, on the cluster or off it."""
    assert not any(job.running for job in jobs)
    return named(cluster.processes(), ACTOR, CHILD) + members(*(job.pid for job in jobs))


def leftovers(run: str, scratch: Path) -> list[str]:
    """Files that a finished run must not leave: in its folder, and in the folder for temporary files."""
    here = [storage.join(run, part) for part in ("attempts", "cuts", ".lock")]
    found = [url for url in here if storage.exists(url)]
    if storage.is_remote(run):
        found += uploads(run)
    else:
        found += [str(path) for path in Path(run).rglob("_*")]
    return found + [str(path) for path in scratch.glob("reelset-*/*")]


def uploads(run: str) -> list[str]:
    """Uploads into the run folder that were begun and not ended."""
    import fsspec

    bucket, _, key = run.removeprefix("s3://").partition("/")
    found = fsspec.filesystem("s3").call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{key}/")
    return [upload["Key"] for upload in found.get("Uploads", [])]


def committed(run: str) -> dict[str, Any]:
    """Every unit, shard and selection that is done, with what would change if it were written again."""
    return {url: _stamp(url) for url in _files(run, "sources", "shards", "selection", suffix=".parquet")}


def progress(run: str) -> int:
    """How many units are analyzed, units cut and shards packed."""
    return len(_files(run, "sources", "cuts", "shards", suffix=".parquet"))


def in_flight(run: str) -> int:
    """Units and shards that workers are at."""
    return len(storage.names(storage.join(run, "attempts")))


def repeated(run: str) -> dict[str, int]:
    """Units, cuts and shards that drivers of this run had the result of more than once, and how often."""
    done = Counter(
        " ".join(str(event[key]) for key in ("event", "unit", "subset", "shard") if key in event)
        for _, log in logs(run)
        for event in log
        if event["event"] in ("unit", "cut", "shard")
    )
    return {what: times for what, times in done.items() if times > 1}


def counts(run: str) -> tuple[int, dict[str, int]]:
    """Sources listed, and how many of them ended in each state."""
    states = storage.read_table(storage.join(run, "sources"), columns=["status"])["status"].to_pylist()
    listed = storage.read_table(storage.join(run, "units"), columns=["path"]).num_rows
    return listed, {state: states.count(state) for state in ("ok", "rejected", "error")}


def _files(run: str, *parts: str, suffix: str = "") -> list[str]:
    return [url for part in parts for url in storage.walk(storage.join(run, part), suffix)]


def _stamp(url: str) -> Any:
    if storage.is_remote(url):
        import fsspec

        return fsspec.filesystem(url.split("://")[0]).info(url)["LastModified"]
    info = Path(url).stat()
    return info.st_ino, info.st_mtime_ns
