"""vLLM servers: started where there is room, watched, started again when they die, and found through a book.

Each server is held by a Ray actor, on this machine or on a cluster; the book is a JSON file that says where they are.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captioning.config import CaptionConfig, ModelConfig
from captioning.keeper import Kept
from curation import storage
from curation.engine import EngineConfig, PoolConfig, Step, fit, start_ray
from curation.errors import ConfigError, StageError

LOOK_S = 1.0
HEALTH_S = 10.0
"""How long a server may take to say that it is well ..."""
UNWELL = 6
"""... and how many times in a row it may fail to, before it is started again."""
TRIES = 3
"""Starts of a server that never came up, after which it is given up."""
MOST_WAIT_S = 60.0
"""Longest pause between two starts."""
STOP_S = 10.0
"""How long a server may take to end on its own."""
TAIL_LINES = 15

Say = Callable[[str], None]


def addresses(book: str) -> dict[str, list[str]]:
    """Model name -> URLs of its servers, as the book says. Raises ConfigError where there is no book, or it is none."""
    try:
        page = json.loads(storage.read_bytes(book))
        found: dict[str, list[str]] = defaultdict(list)
        for server in page["servers"]:
            found[str(server["model"])].append(str(server["url"]))
    except FileNotFoundError:
        raise ConfigError(f"caption.book {book!r} is not there: start the servers with `reelset caption-servers`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"caption.book {book!r} is no book of servers: {type(error).__name__}: {error}") from error
    return dict(found)


@dataclass(frozen=True)
class State:
    """How a server is, as its holder sees it."""

    model: str
    url: str
    log: str
    said: tuple[str, ...] = ()
    """What happened since the beginning, a line each."""
    was_well: bool = False
    failed: str | None = None
    """Why it was given up."""
    setting: str | None = None
    """The setting that is wrong, where one is."""


@dataclass
class Holder:
    """Holds one server: starts it, watches it, starts it again on the same port. Lives in an actor."""

    place: int
    model: ModelConfig
    config: CaptionConfig
    here: bool
    """The server is for this machine alone."""
    lines: list[str] = field(default_factory=list)
    was_well: bool = False
    failed: str | None = None
    setting: str | None = None

    def start(self) -> None:
        """Begin to hold the server, in a thread."""
        self.host = "127.0.0.1" if self.here else _node_address()
        self.port = _free_port(self.host)
        # A folder that nobody else may have made before.
        self.log = Path(tempfile.mkdtemp(prefix="reelset-server-")) / f"{self.model.name.replace('/', '--')}-{self.port}.log"
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._hold, daemon=True)
        self.thread.start()

    def state(self) -> State:
        url = f"http://{self.host}:{self.port}/v1"
        return State(self.model.name, url, str(self.log), tuple(self.lines), self.was_well, self.failed, self.setting)

    def stop(self) -> None:
        """End the server and all its processes."""
        self.ending.set()
        self.thread.join()

    def _hold(self) -> None:
        failures = 0
        if missing := _missing(self.python, self.model.serve.env):
            self.setting, self.failed = f"caption.models.{self.place}.serve.python", missing
            return
        while not self.ending.is_set():
            kept, began = self._begin(), time.monotonic()
            if well := self._comes_up(kept, began):
                failures, self.was_well = 0, True
                self.lines.append(f"well after {time.monotonic() - began:.0f} s at {self.host}:{self.port}")
                self._watch(kept)
            status = kept.ended()
            _end(kept)
            if self.ending.is_set():
                return
            failures += not well
            why = "is stuck" if status is None else f"ended with status {status}"
            self.lines.append(f"{why}; its last words are in {self.log}")
            if not self.was_well and failures >= TRIES:
                self.failed = f"did not come up in {TRIES} starts; {self.log} ends with\n{_tail(self.log)}"
                return
            self.ending.wait(min(MOST_WAIT_S, 2.0**failures))

    @property
    def python(self) -> str:
        return self.model.serve.python or sys.executable

    def _begin(self) -> Kept:
        serve, own = self.model.serve, os.environ | self.model.serve.env
        if key := os.environ.get(self.config.key_env):
            own["VLLM_API_KEY"] = key  # never on the command line, which everybody may read
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server", "--model", self.model.path or self.model.name]
        command += ["--served-model-name", self.model.name, "--host", self.host, "--port", str(self.port)]
        command += ["--tensor-parallel-size", str(serve.tensor_parallel), "--limit-mm-per-prompt", json.dumps(serve.limits)]
        command += ["--max-model-len", str(serve.max_model_len)] if serve.max_model_len else []
        command += ["--allowed-local-media-path", str(self.config.files)] if self.model.sends == "file" else []
        self.lines.append(f"starting at {self.host}:{self.port}, log {self.log}")
        with self.log.open("ab") as log:
            return Kept([*command, *serve.args], own, log)

    def _comes_up(self, kept: Kept, began: float) -> bool:
        while kept.ended() is None and not self.ending.wait(LOOK_S):
            if self._well():
                return True
            if time.monotonic() - began > self.model.serve.start_s:
                self.lines.append(f"not well within serve.start_s, {self.model.serve.start_s:g} s")
                return False
        return False

    def _watch(self, kept: Kept) -> None:
        """Return when the server is dead, or unwell for long."""
        unwell = 0
        while kept.ended() is None and unwell < UNWELL and not self.ending.wait(LOOK_S):
            unwell = 0 if self._well() else unwell + 1

    def _well(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.host}:{self.port}/health", timeout=HEALTH_S) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False


def serve(config: CaptionConfig, engine: EngineConfig, say: Say) -> None:
    """Start the servers of all models that name no URLs, keep the book, and stop them all on SIGINT or SIGTERM.

    Raises ConfigError where a setting will not do, StageError where a server does not come up.
    """
    book, models = _startable(config)
    os.environ.setdefault("RAY_worker_niceness", "0")  # a server that feeds a GPU is no background work
    start_ray(engine)
    import ray

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which takes SIGTERM for itself
        signal.signal(number, lambda *_: ended.set())
    wanted = [(place, model) for place, model in models for _ in range(model.serve.replicas)]
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    check_room([model for _, model in wanted], nodes)
    here = not (engine.address or os.environ.get("RAY_ADDRESS"))
    kind: Any = ray.remote(Holder)
    holders = []
    try:
        for place, model in wanted:
            needs = {"num_cpus": model.serve.cpus, "num_gpus": model.serve.gpus}
            holders.append(kind.options(**needs, max_restarts=-1).remote(place, model, config, here))
        ray.get([holder.start.remote() for holder in holders])
        _follow(holders, book, say, ended)
    finally:
        storage.remove(book)
        if holders:
            ray.wait([holder.stop.remote() for holder in holders], num_returns=len(holders), timeout=2 * STOP_S + 5)
        for holder in holders:
            ray.kill(holder)
        say("all servers are stopped")


def _startable(config: CaptionConfig) -> tuple[str, list[tuple[int, ModelConfig]]]:
    """The book, and the models that are to be started with their places in the config."""
    models = [(place, model) for place, model in enumerate(config.models) if not model.urls]
    if not models:
        raise ConfigError("caption.models names no model without `urls`: there is nothing to start")
    if config.book is None:
        raise ConfigError("caption.book is not set: a file or URL where the job finds the servers' addresses")
    if storage.exists(config.book):
        living = [url for urls in addresses(config.book).values() for url in urls if _answers(url)]
        if living:
            raise ConfigError(f"caption.book {config.book!r} speaks of servers that are alive: {', '.join(living)}")
    return config.book, models


def check_room(models: Sequence[ModelConfig], nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises ConfigError with the numbers where these servers do not fit side by side on nodes with these resources."""

    @dataclass
    class Named:
        name: str

    steps = [Step(Named(m.name), PoolConfig(cpus=m.serve.cpus, gpus=m.serve.gpus)) for m in models]  # type: ignore[arg-type]
    try:
        fit(steps, nodes, len(steps))
    except ConfigError as error:
        raise ConfigError(f"the caption servers do not fit: {error} (caption.models.*.serve.gpus, cpus, replicas)") from error


def _follow(holders: Sequence[Any], book: str, say: Say, ended: threading.Event) -> None:
    """Say what happens and keep the book, until the end is asked for."""
    import ray

    told: dict[int, int] = defaultdict(int)
    written: list[dict[str, str]] | None = None
    while not ended.wait(LOOK_S):
        try:
            states: list[State] = ray.get([holder.state.remote() for holder in holders], timeout=60)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError, ray.exceptions.RayTaskError):
            # An actor that Ray has started anew, elsewhere perhaps, holds nothing yet.
            for holder in holders:
                _begin_again(holder, say)
            told.clear()
            continue
        for number, state in enumerate(states):
            for line in state.said[told[number] :]:
                say(f"{state.model}: {line}")
            told[number] = len(state.said)
            if state.failed and state.setting:
                raise ConfigError(f"{state.setting}: {state.failed}")
            if state.failed:
                raise StageError("stage_failed", f"{state.model}: {state.failed}")
        servers = [{"model": state.model, "url": state.url} for state in states if state.was_well]
        if servers != written and servers:
            storage.write_bytes(book, json.dumps({"servers": servers}, indent=1).encode())
            if len(servers) == len(states):
                say(f"all {len(states)} servers are well; {book} says where")
            written = servers


def _begin_again(holder: Any, say: Say) -> None:
    import ray

    try:
        ray.get(holder.state.remote(), timeout=60)
    except ray.exceptions.RayTaskError:  # it has no port: it was never told to start
        ray.get(holder.start.remote(), timeout=60)
        say("a server's actor was started anew")
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        say(f"a server's actor does not answer: {type(error).__name__}")


def _missing(python: str, env: Mapping[str, str]) -> str | None:
    """Why an interpreter cannot run vLLM; None where it can."""
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        found = subprocess.run([python, "-c", probe], capture_output=True, timeout=60, env=os.environ | env)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python!r} does not run: {error}"
    return None if found.returncode == 0 else f"{python!r} has no vLLM: pip install vllm, or name an interpreter that has it"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=HEALTH_S):
            return True
    except (OSError, urllib.error.URLError):
        return False


def _end(kept: Kept) -> None:
    """End a server and all its processes, by force where asking does not do."""
    kept.kill(signal.SIGTERM)
    until = time.monotonic() + STOP_S
    while kept.kill(0) and time.monotonic() < until:
        time.sleep(0.1)
    kept.kill(signal.SIGKILL)
    kept.close()


def _free_port(host: str) -> int:
    with socket.socket() as free:
        free.bind((host, 0))
        return int(free.getsockname()[1])


def _node_address() -> str:
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _tail(file: Path) -> str:
    lines = file.read_bytes().decode("utf-8", "replace").splitlines() if file.exists() else []
    return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  nothing"
