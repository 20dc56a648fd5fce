"""The whole hostile corpus through real jobs: a row each, the right code, bounded cost, nothing else opened or called."""

import contextlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from curation import storage
from tests.hostile import corpus
from tests.media_samples import make_video, moving

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(900)]

ROOT = Path(__file__).parent.parent.parent
REELSET = [sys.executable, "-m", "jobs.cli"]
STALL_S, MEMORY_MB = 20.0, 1500.0
SUBSET = {"name": "all", "bucket_class": 256, "source_rules": [], "clip_rules": ["duration_s > 0"], "image_rules": []}


class Listener(http.server.ThreadingHTTPServer):
    """Hears who asks."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Answer)


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Listener

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


class Job:
    """What a job over the corpus left."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        canary = make_video(folder / "canary.mp4", moving(320, 192, seed=9), 30, 15)
        self.listener = Listener()
        threading.Thread(target=self.listener.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{self.listener.server_address[1]}"
        (folder / "in").mkdir()
        self.files = {storage.escape(f.path): f for f in corpus.write(folder / "in", canary, address)}
        self.config = folder / "config.yaml"
        limits = {"stall_s": STALL_S, "memory_mb": MEMORY_MB}
        tree = {"text": {"enabled": False}, "subsets": [SUBSET], "units": {"size": 1}, "limits": limits}
        self.config.write_text(yaml.safe_dump(tree))
        self.said = reelset(
            "run", "--input", folder / "in", "--output", self.run, "--config", self.config, "--engine", "inline"
        )
        self.rows = {r["path"]: r for r in storage.read_table(str(self.run / "sources")).to_pylist()}
        self.costs = defaultdict(lambda: {"wall_s": 0.0, "peak_mb": 0.0})
        for cost in storage.read_table(str(self.run / "costs")).to_pylist():
            mine = self.costs[cost["unit"]]
            mine["wall_s"] += cost["wall_s"]
            mine["peak_mb"] = max(mine["peak_mb"], cost["peak_mb"])


def reelset(*words: object, trace: Path | None = None) -> "subprocess.CompletedProcess[bytes]":
    """Run the command line; its output as bytes."""
    before = ["strace", "-f", "-qq", "-e", "trace=open,openat,connect", "-o", str(trace)] if trace else []
    command = [*before, *REELSET, *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=900, env=os.environ | {"COLUMNS": "160"})


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    job = Job(tmp_path_factory.mktemp("hostile"))
    yield job
    job.listener.shutdown()
    job.listener.server_close()


def test_every_file_is_a_row_with_a_right_code(job: Job) -> None:
    assert job.said.returncode == 0, job.said.stderr.decode(errors="replace")[-2000:]
    assert len(job.files) >= 300
    assert set(job.rows) == set(job.files)
    wrong = {p: job.rows[p]["error_code"] for p, f in job.files.items() if job.rows[p]["error_code"] not in f.codes}
    assert wrong == {}
    events = [json.loads(line) for file in (job.run / "events").iterdir() for line in file.read_text().splitlines()]
    outcome = next(e for e in events if e["event"] == "outcome")
    assert sum(outcome[state] for state in ("ok", "rejected", "error")) == len(job.files)
    assert all((row["status"] == "error") == (row["error_code"] is not None) for row in job.rows.values())


def test_no_file_costs_more_than_the_limits(job: Job) -> None:
    Console(stderr=True).print(table(job))
    for path, row in job.rows.items():
        assert job.costs[row["unit"]]["wall_s"] < 3 * STALL_S, path
        assert job.costs[row["unit"]]["peak_mb"] < 1.2 * MEMORY_MB, path


def table(job: Job) -> str:
    """The table of docs/security.md."""
    lines = ["| class | files | codes | worst seconds | worst memory, MB |", "|---|---|---|---|---|"]
    for kind in sorted({f.kind for f in job.files.values()}):
        rows = [job.rows[p] for p, f in job.files.items() if f.kind == kind]
        codes = ", ".join(f"{n} {code or 'none'}" for code, n in Counter(r["error_code"] for r in rows).most_common())
        worst = [max(job.costs[r["unit"]][what] for r in rows) for what in ("wall_s", "peak_mb")]
        lines.append(f"| {kind} | {len(rows)} | {codes} | {worst[0]:.1f} | {worst[1]:.0f} |")
    return "\n".join(lines)


def test_nobody_was_called_and_the_canary_has_no_row(job: Job) -> None:
    assert job.listener.asked == []
    linked = job.rows["places/out.mp4"]
    assert linked["frames"] is None and linked["video_codec"] is None


@pytest.mark.parametrize(
    "name,format,options,asked",
    [
        ("hls address.mp4", "hls", {"allowed_extensions": "ALL", "extension_picky": "0"}, "/hls.ts"),
        ("concat address.mp4", "concat", {"safe": "0"}, "/concat.mp4"),
    ],
)
def test_the_references_would_be_followed(job: Job, name: str, format: str, options: dict[str, str], asked: str) -> None:
    """What the other tests see nothing of does happen where libav is let: the listener hears it."""
    import av

    heard = len(job.listener.asked)
    with contextlib.suppress(av.error.FFmpegError):
        whole = options | {"protocol_whitelist": "file,http,tcp"}
        av.open(str(job.folder / "in" / "references" / name), format=format, container_options=whole).close()
    assert asked in job.listener.asked[heard:]
    del job.listener.asked[heard:]


def test_the_film_that_is_elsewhere_would_be_read(job: Job) -> None:
    import av

    followed = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(job.folder / "in" / "references" / "elsewhere.mov"), container_options=followed) as film:
        frames = [f.to_ndarray(format="gray") for f in film.decode(video=0)]
    with av.open(str(job.folder / "canary.mp4")) as film:
        canary = [f.to_ndarray(format="gray") for f in film.decode(video=0)]
    assert all(np.array_equal(a, b) for a, b in zip(frames, canary, strict=True))


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_other_file_is_opened_and_no_connection_made(job: Job, tmp_path: Path) -> None:
    """The classes that refer to others, under strace: the canary is never opened, and no address is called."""
    for kind in ("references", "places", "names"):
        shutil.copytree(job.folder / "in" / kind, tmp_path / "in" / kind, symlinks=True, ignore=_special)
    trace = tmp_path / "trace"
    words = ("run", "--input", tmp_path / "in", "--output", tmp_path / "run", "--config", job.config, "--engine", "inline")
    done = reelset(*words, trace=trace)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    calls = trace.read_text(errors="replace")
    opened = set(re.findall(r'open(?:at)?\((?:AT_FDCWD, )?"([^"]*)".* = \d+$', calls, re.MULTILINE))
    assert any(path.endswith("hls file.mp4") for path in opened), "the trace sees what the decoding process opens"
    assert "canary.mp4" not in calls
    ours = (str(tmp_path / "in"), str(tmp_path / "run"), str(job.config), str(ROOT))
    system = ("/usr/", "/lib", "/etc/", "/proc/", "/sys/", "/dev/", sys.prefix, os.path.realpath(sys.prefix), sys.base_prefix)
    scratch = re.compile(re.escape(tempfile.gettempdir()) + "(/(tmp)?[a-z0-9_]{8}|/reelset-.*)?")
    elsewhere = {path for path in opened if path.startswith("/") and not path.startswith((*ours, *system))}
    assert [path for path in elsewhere if not scratch.fullmatch(path)] == []
    assert not re.search(r"connect\(\d+, \{sa_family=AF_INET6?\b", calls)


def _special(folder: str, names: list[str]) -> list[str]:
    """What cannot be copied: pipes and devices, which the job over all has met."""
    return [n for n in names if not (Path(folder, n).is_symlink() or Path(folder, n).is_file() or Path(folder, n).is_dir())]


def test_a_file_that_grows_does_not_hold_up_the_job(job: Job, tmp_path: Path) -> None:
    """A recording that is still being written: the job ends, with a row for it."""
    film = (job.folder / "in" / "sound" / "a.ts").read_bytes()
    place, stop = tmp_path / "in" / "live.ts", threading.Event()
    place.parent.mkdir()
    place.write_bytes(film)

    def write() -> None:
        with place.open("ab") as file:
            while not stop.wait(0.02):
                file.write(film)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        words = ("run", "--input", place.parent, "--output", tmp_path / "run", "--config", job.config, "--engine", "inline")
        done = reelset(*words, "--set", "limits.source_s=10")
    finally:
        stop.set()
        writer.join()
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    (row,) = storage.read_table(str(tmp_path / "run" / "sources")).to_pylist()
    assert row["error_code"] in (None, "timeout")


def test_the_other_engine_says_the_same(job: Job, tmp_path: Path) -> None:
    """One file in eight through Ray's actors: the same fates as in one process."""
    wanted = sorted(p for p in job.files if job.rows[p]["bytes"] and job.rows[p]["error_code"] != "timeout")[::8]
    manifest = tmp_path / "list.parquet"
    pq.write_table(pa.table({"path": [str(job.folder / "in" / storage.unescape(p)) for p in wanted]}), manifest)
    words = ("run", "--input", manifest, "--output", tmp_path / "run", "--config", job.config, "--engine", "ray")
    done = reelset(*words, "--set", "units.size=8", "--set", "engine.cpu.cpus=0.5")
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    found = {r["path"]: r["error_code"] for r in storage.read_table(str(tmp_path / "run" / "sources")).to_pylist()}
    assert len(found) == len(wanted) >= 60
    base = f"{job.folder / 'in'}/"
    assert {p.removeprefix(base): code for p, code in found.items()} == {p: job.rows[p]["error_code"] for p in wanted}
