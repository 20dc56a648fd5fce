"""`reelset caption-servers` with a stand-in for vLLM: started, watched, found through the book, stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from captioning import servers
from captioning.client import urls
from captioning.config import CaptionConfig, ModelConfig
from captioning.servers import addresses
from curation.errors import ConfigError
from tests.captioning import fake_vllm

KEY = "sk-very-secret"
REELSET = [sys.executable, "-m", "jobs.cli"]


def settings(folder: Path, *models: dict[str, Any]) -> Path:
    """A config file; each model's server is the stand-in."""
    folder.mkdir(exist_ok=True)
    own = {"python": fake_vllm.PYTHON, "env": fake_vllm.make(folder / "stand-in"), "gpus": 0, "cpus": 0.25}
    tree = {"book": str(folder / "book.json"), "models": [m | {"serve": own | m.get("serve", {})} for m in models]}
    file = folder / "captions.yaml"
    file.write_text(yaml.safe_dump({"caption": tree}))
    return file


class Started:
    """The command, under way, and what it says."""

    def __init__(self, config: Path) -> None:
        self.log = config.parent / "said.txt"
        with self.log.open("wb") as log:
            env = os.environ | {"REELSET_CAPTION_KEY": KEY}
            command = [*REELSET, "caption-servers", "--config", str(config)]
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=env, cwd=fake_vllm.ROOT)

    def said(self) -> str:
        return self.log.read_text()

    def wait(self, what: Callable[[], object], within_s: float = 60) -> None:
        until = time.monotonic() + within_s
        while not what():
            assert time.monotonic() < until and self.process.poll() is None, self.said()
            time.sleep(0.1)


def server_at(url: str) -> psutil.Process:
    """The process that listens at a URL; the real vLLM gives its processes other names."""
    port = int(url.split(":")[2].split("/")[0])
    (pid,) = {c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port}
    return psutil.Process(pid)


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it started."""
    return [process, *process.children(recursive=True)]


@pytest.fixture
def stopped() -> Iterator[list[Started]]:
    """What is put in here is ended after the test."""
    started: list[Started] = []
    yield started
    for one in started:
        one.process.kill()
        one.process.wait()


def well(url: str) -> bool:
    try:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/health", timeout=2):
            return True
    except OSError:
        return False


def test_servers_start_come_back_and_stop(tmp_path: Path, stopped: list[Started]) -> None:
    config = settings(tmp_path, {"name": "tiny-small", "path": "/models/s"}, {"name": "tiny-large", "path": "/models/l"})
    stopped.append(run := Started(config))
    book = tmp_path / "book.json"
    run.wait(lambda: "all 2 servers are well" in run.said())
    before = addresses(str(book))
    (small,), (large,) = before["tiny-small"], before["tiny-large"]
    assert small.startswith("http://127.0.0.1:") and well(small) and well(large)
    tree = CaptionConfig.model_validate(yaml.safe_load(config.read_text())["caption"])
    assert [urls(tree, model) for model in tree.models] == [[small], [large]]

    second = subprocess.run(
        [*REELSET, "caption-servers", "--config", str(config)], capture_output=True, text=True, cwd=fake_vllm.ROOT
    )
    assert second.returncode == 2 and "speaks of servers that are alive" in second.stderr

    other = server_at(large)
    server_at(small).kill()
    run.wait(lambda: "tiny-small: ended with status -9" in run.said())
    run.wait(lambda: run.said().count("tiny-small: well after") == 2)
    assert addresses(str(book)) == before and well(small) and server_at(large) == other

    assert KEY not in run.said() + book.read_text()
    assert not any(KEY in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    logs = {Path(log) for log in re.findall(r"log (\S+[.]log)", run.said())}
    assert len(logs) == 2 and not any(KEY in log.read_text() for log in logs)

    began, all_of_it = time.monotonic(), [*family(server_at(small)), *family(other)]
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(30) == 0 and time.monotonic() - began < 20
    assert not book.exists() and not any(process.is_running() for process in all_of_it)
    assert "all servers are stopped" in run.said()


def test_servers_die_with_a_driver_that_is_killed(tmp_path: Path, stopped: list[Started]) -> None:
    stopped.append(run := Started(settings(tmp_path, {"name": "tiny-orphan", "path": "/models/s"})))
    run.wait(lambda: "all 1 servers are well" in run.said())
    orphans = family(server_at(addresses(str(tmp_path / "book.json"))["tiny-orphan"][0]))
    run.process.kill()
    until = time.monotonic() + 60
    while any(process.is_running() for process in orphans):
        assert time.monotonic() < until, "a server outlives the driver that started it"
        time.sleep(0.5)


def held(tmp_path: Path, model: dict[str, Any]) -> servers.State:
    """What becomes of a server that never comes up."""
    config = CaptionConfig.model_validate(yaml.safe_load(settings(tmp_path, model).read_text())["caption"])
    holder = servers.Holder(0, config.models[0], config, here=True)
    holder.start()
    holder.thread.join(60)
    return holder.state()


def test_a_server_that_never_comes_up_ends_with_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "MOST_WAIT_S", 0.1)
    monkeypatch.setattr(servers, "LOOK_S", 0.1)
    state = held(tmp_path, {"name": "tiny-broken", "path": "/models/broken"})
    assert state.failed and state.failed.startswith("did not come up in 3 starts") and state.setting is None
    assert "OSError: no file named config.json found in directory /models/broken" in state.failed
    assert [line.split()[0] for line in state.said] == ["starting", "ended"] * 3


def test_an_interpreter_without_vllm_is_named(tmp_path: Path) -> None:
    state = held(tmp_path, {"name": "a", "serve": {"python": "/usr/bin/true/python"}})
    assert state.setting == "caption.models.0.serve.python" and "'/usr/bin/true/python' does not run" in str(state.failed)
    state = held(tmp_path / "none", {"name": "a", "serve": {"env": {}}})
    assert state.setting == "caption.models.0.serve.python" and "has no vLLM: pip install vllm" in str(state.failed)


def test_servers_must_fit_the_cluster() -> None:
    model = ModelConfig.model_validate({"name": "a", "serve": {"gpus": 4}})
    servers.check_room([model, model], [{"CPU": 8, "GPU": 8}])
    with pytest.raises(ConfigError, match=r"the caption servers do not fit: the plan needs 2 CPU \+ 8 GPU at once"):
        servers.check_room([model, model], [{"CPU": 8, "GPU": 4}])


def test_a_config_without_servers_to_start_is_refused(tmp_path: Path) -> None:
    config = settings(tmp_path, {"name": "a", "urls": ["http://127.0.0.1:9/v1"]})
    done = subprocess.run([*REELSET, "caption-servers", "-c", str(config)], capture_output=True, text=True, cwd=fake_vllm.ROOT)
    assert done.returncode == 2 and "there is nothing to start" in done.stderr


@pytest.mark.parametrize("page", ["", "[]", '{"servers": [{"model": "a"}]}'])
def test_a_book_that_is_none(tmp_path: Path, page: str) -> None:
    book = tmp_path / "book.json"
    with pytest.raises(ConfigError, match=r"caption\.book .* is not there: start the servers with `reelset caption-servers`"):
        addresses(str(book))
    book.write_text(page)
    with pytest.raises(ConfigError, match=r"caption\.book .* is no book of servers"):
        addresses(str(book))
    book.write_text(json.dumps({"servers": [{"model": "a", "url": "http://h:1/v1"}, {"model": "a", "url": "http://h:2/v1"}]}))
    assert addresses(str(book)) == {"a": ["http://h:1/v1", "http://h:2/v1"]}
