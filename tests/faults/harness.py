"""Processes of a test, and a Ray cluster of several raylets on this machine that can be hurt and looked at.

Every process is started in a session of its own: the session's number names the process and all that descend from it,
however often they are orphaned.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.executable).parent
ACTOR, CHILD = "ray::MapWorker", "curation.child"
"""How an actor of a job and its decoding child are called in a list of processes."""


def wait_for(what: str, ready: Callable[[], Any], seconds: float = 120.0, every: float = 0.02) -> Any:
    """What `ready` returns once it is true. AssertionError where it never is."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"{what} did not come in {seconds:g} s"
        time.sleep(every)
    return found


def free_port() -> int:
    """A port nobody listens on, below those that Linux gives to clients and above those that Ray gives to workers."""
    for _ in range(100):
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError("no free port")


class Process:
    """A process in a session of its own, its output in a file."""

    def __init__(self, command: Sequence[str], log: Path, env: dict[str, str]) -> None:
        self.log = log
        # Where this process was started in the background, an interrupt is ignored, and so it would be in what it starts.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with log.open("wb") as out:
            self.popen = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=env,
                cwd=ROOT,
                start_new_session=True,
            )
        self.pid = self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def said(self) -> str:
        """All that it wrote."""
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 400.0) -> int:
        """Its exit status; one that does not end in time has failed the test."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {seconds:g} s:\n{self.said()[-3000:]}") from None

    def stop(self) -> None:
        """End it and all that it started."""
        for process in members(self.pid):
            kill(process)
        self.popen.wait()


def members(*sessions: int) -> list[psutil.Process]:
    """Living processes of the sessions."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) in sessions and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def named(processes: Sequence[psutil.Process], *parts: str) -> list[psutil.Process]:
    """Those whose command line has one of `parts`."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            if any(part in line for part in parts):
                found.append(process)
    return found


def kill(process: psutil.Process, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone by now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


@dataclass
class Cluster:
    """A head and further raylets on this machine, each with its own CPUs and object store."""

    folder: Path
    env: dict[str, str]
    cpus: int = 1
    head_cpus: int = 1
    store_mb: int = 100
    address: str = ""
    head: Process | None = None
    nodes: list[Process] = field(default_factory=list)
    gone: list[Process] = field(default_factory=list)
    scraped: list[int] = field(default_factory=list)
    """The ports where raylets tell Prometheus their metrics."""

    def start(self, nodes: int) -> None:
        """A head and `nodes` more raylets. The folder's path must be short: it will hold sockets."""
        # A token of its own; no wait of a minute for a head that will not come back; workers no nicer than all others.
        self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16), "RAY_BACKEND_LOG_LEVEL": "fatal"}
        self.env |= {"RAY_gcs_rpc_server_reconnect_timeout_s": "5", "RAY_worker_niceness": "0"}
        self.env |= {"RAY_metrics_report_interval_ms": "500"}
        port = free_port()
        command = ["--head", "--port", str(port), "--temp-dir", str(self.folder), "--include-dashboard", "false"]
        self.head = head = self._ray(*command, "--ray-client-server-port", str(free_port()), cpus=self.head_cpus)
        said = wait_for("the head", lambda: "Ray runtime started" in head.said() and head.said())
        self.address = f"{said.split('Local node IP: ')[1].split()[0]}:{port}"
        self.grow(nodes)

    def grow(self, nodes: int) -> None:
        """Have as many raylets beside the head."""
        while len(self.nodes) < nodes:
            node = self._ray("--address", self.address, cpus=self.cpus)
            self.nodes.append(node)
            wait_for("the raylet", lambda node=node: "Ray runtime started" in node.said())  # type: ignore[misc]

    def lose(self, node: Process, number: int = signal.SIGKILL) -> None:
        """Send a raylet a signal that ends it; what it started is left to find out by itself."""
        for raylet in named(members(node.pid), "/raylet/raylet "):
            kill(raylet, number)
        self.nodes.remove(node)
        self.gone.append(node)

    def processes(self) -> list[psutil.Process]:
        """All that live on the cluster, Ray's own included."""
        started = (self.head, *self.nodes, *self.gone)
        return members(*(process.pid for process in started if process is not None))

    def metrics(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Name, tags and value of every metric that the raylets tell now."""
        for port in self.scraped:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                for family in text_string_to_metric_families(page.read().decode()):
                    yield from ((sample.name, sample.labels, sample.value) for sample in family.samples)

    def stop(self) -> None:
        """End it all, at once."""
        for process in (*self.nodes, *self.gone, self.head):
            if process is not None:
                process.stop()
        self.nodes, self.gone, self.head, self.scraped = [], [], None, []

    def _ray(self, *arguments: str, cpus: int) -> Process:
        log = self.folder / f"ray-{secrets.token_hex(3)}.log"
        sizes = ["--num-cpus", str(cpus), "--object-store-memory", str(self.store_mb * 10**6)]
        quiet = ["--disable-usage-stats", "--log-color", "false", "--block"]
        self.scraped.append(free_port())
        told = ["--metrics-export-port", str(self.scraped[-1])]
        return Process([str(BIN / "ray"), "start", *arguments, *sizes, *told, *quiet], log, self.env)
