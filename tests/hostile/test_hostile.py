"""The whole hostile corpus through real jobs: a row each, the right code, bounded cost, nothing else opened or called."""

import contextlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from curation import storage
from tests.hostile import corpus
from tests.hostile.corpus import CLASSES
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
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
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
        self.said = self.over(self.run)
        self.rows = {r["path"]: r for r in storage.read_table(str(self.run / "sources")).to_pylist()}
        self.costs = defaultdict(lambda: {"wall_s": 0.0, "peak_mb": 0.0})
        for cost in storage.read_table(str(self.run / "costs")).to_pylist():
            mine = self.costs[cost["unit"]]
            mine["wall_s"] += cost["wall_s"]
            mine["peak_mb"] = max(mine["peak_mb"], cost["peak_mb"])

    def over(self, run: Path, *before: str) -> "subprocess.CompletedProcess[bytes]":
        """A job over the whole corpus, started by the words of `before`, its temporary files in a folder of its own."""
        words = ("run", "--input", self.folder / "in", "--output", run, "--config", self.config, "--engine", "inline")
        return reelset(*words, before=before, TMPDIR=str(self.temporary))


def reelset(*words: object, before: Sequence[str] = (), **env: str) -> "subprocess.CompletedProcess[bytes]":
    """Run the command line; its output as bytes."""
    whole = os.environ | {"COLUMNS": "160"} | env
    return subprocess.run([*before, *REELSET, *map(str, words)], cwd=ROOT, capture_output=True, timeout=900, env=whole)


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
    for kind, _ in Counter(f.kind for f in job.files.values()).most_common():
        rows = [job.rows[p] for p, f in job.files.items() if f.kind == kind]
        codes = ", ".join(f"{n} {code or 'none'}" for code, n in Counter(r["error_code"] for r in rows).most_common())
        worst = [max(job.costs[r["unit"]][what] for r in rows) for what in ("wall_s", "peak_mb")]
        lines.append(f"| {CLASSES[kind]} | {len(rows)} | {codes} | {worst[0]:.1f} | {worst[1]:.0f} |")
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
def test_nothing_else_is_touched_and_nobody_called(job: Job, tmp_path: Path) -> None:
    """The whole corpus under strace, without a network where that is permitted: the same fates, and no canary is named.

    One stands outside the input, one beside the references, inside it: no call that takes a path or an address may name
    either, be it only to ask whether it is there.
    """
    trace, run = tmp_path / "trace", tmp_path / "run"
    alone = ["unshare", "-rn"] if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0 else []
    watched = ["strace", "-f", "-qq", "-y", "-e", "trace=%file,%network", "-e", "signal=none", "-o", str(trace)]
    done = job.over(run, *alone, *watched)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    rows = {r["path"]: r["error_code"] for r in storage.read_table(str(run / "sources")).to_pylist()}
    slow = {p for p, r in job.rows.items() if job.costs[r["unit"]]["wall_s"] > STALL_S / 10}  # strace makes them slower
    assert {p: c for p, c in rows.items() if p not in slow} == {
        p: r["error_code"] for p, r in job.rows.items() if p not in slow
    }
    calls = trace.read_text(errors="replace")
    named = set(re.findall(r'^\d+ +(?:\w+)\((?:AT_FDCWD(?:<[^>]*>)?, |\d+<[^>]*>, )?"([^"]*)"', calls, re.MULTILINE))
    assert any(path.endswith("hls file.mp4") for path in named), "the trace sees what the decoding process opens"
    touched = [call for call in calls.splitlines() if "canary" in call]
    # Whether a link leads out of the input is known from the links that it goes through, which are asked for as links.
    asked = re.compile(r"readlink(at)?\(.*out\.mp4|(lstat|newfstatat)\(.*/canary\.mp4\".*AT_SYMLINK_NOFOLLOW")
    assert [call for call in touched if not asked.search(call)] == []
    opened = set(re.findall(r" = \d+<(/[^>]*)>$", calls, re.MULTILINE))
    ours = (str(job.folder / "in"), str(run), str(job.config), str(ROOT), str(job.temporary))
    system = ("/usr/", "/lib", "/etc/", "/proc/", "/sys/", "/dev/", sys.prefix, os.path.realpath(sys.prefix), sys.base_prefix)
    assert [path for path in sorted(opened) if not path.startswith((*ours, *system)) and path not in ("/", str(tmp_path))] == []
    assert not re.search(r"(?:connect|sendto|bind)\([^\n]*sa_family=AF_INET", calls)


def test_the_film_beside_would_be_read(job: Job) -> None:
    """The references of that test are live: where libav is let, it reads the canary beside them."""
    import av

    place = job.folder / "in" / "references"
    whole = {"safe": "0", "protocol_whitelist": "file"}
    with av.open(str(place / "concat above.mp4"), format="concat", container_options=whole) as film:
        assert film.streams.video[0].width == 320 and len(list(film.decode(video=0))) == 30


def test_time_and_memory_beyond_the_limits_have_their_codes(job: Job, tmp_path: Path) -> None:
    """A film that is too long for `source_s`, one whose frames are too large for `memory_mb`, and one that is neither."""
    (tmp_path / "in").mkdir()
    make_video(tmp_path / "in" / "long.mp4", moving(640, 368, seed=1), 6000, 30)
    make_video(tmp_path / "in" / "large.mp4", lambda n: np.zeros((8640, 8640, 3), np.uint8), 3, 1)
    shutil.copy(job.folder / "canary.mp4", tmp_path / "in" / "small.mp4")
    words = ("run", "--input", tmp_path / "in", "--output", tmp_path / "run", "--config", job.config, "--engine", "inline")
    limits = ("--set", "limits.source_s=3", "--set", "limits.memory_mb=400", "--set", "limits.max_pixels=100000000")
    began = time.monotonic()
    done = reelset(*words, *limits)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert time.monotonic() - began < 60
    rows = {r["path"]: r["error_code"] for r in storage.read_table(str(tmp_path / "run" / "sources")).to_pylist()}
    assert rows == {"long.mp4": "timeout", "large.mp4": "memory", "small.mp4": None}


def test_a_manifest_names_what_is_no_file(job: Job, tmp_path: Path) -> None:
    """A pipe and a device are never opened; a link to a film is the film: whoever writes a manifest may read it."""
    places = job.folder / "in" / "places"
    wanted = {str(places / "pipe.mp4"): "unreadable", str(places / "a folder.mp4"): "unreadable", "absent.mp4": "missing"}
    wanted |= {str(places / "loop.mp4"): "unreadable", str(places / "nowhere.mp4"): "missing", str(places / "out.mp4"): None}
    if (places / "zero.mp4").exists():
        wanted[str(places / "zero.mp4")] = "unreadable"
    manifest = tmp_path / "list.txt"
    manifest.write_text("\n".join(wanted))
    words = ("run", "--input", manifest, "--output", tmp_path / "run", "--config", job.config, "--engine", "inline")
    trace, began = tmp_path / "trace", time.monotonic()
    watched = ("strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", str(trace)) if shutil.which("strace") else ()
    done = reelset(*words, before=watched)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert time.monotonic() - began < 60
    rows = {r["path"]: r["error_code"] for r in storage.read_table(str(tmp_path / "run" / "sources")).to_pylist()}
    assert rows == wanted
    if watched:  # by a directory's descriptor too: by its last part
        opened = {Path(name).name for name in re.findall(r'"([^"]*)"', trace.read_text(errors="replace"))}
        assert "out.mp4" in opened and not opened & {"pipe.mp4", "zero.mp4"}


def test_the_docs_have_the_table_of_this_corpus(job: Job) -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    shown = text.split("| class | files |")[1].split("\n\n")[0]
    said = {name: int(files) for name, files in re.findall(r"^\| ([^|]+) \| (\d+) \|", shown, re.MULTILINE)}
    assert said == {CLASSES[kind]: n for kind, n in Counter(f.kind for f in job.files.values()).items()}


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
