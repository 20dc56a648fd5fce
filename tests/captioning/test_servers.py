"""`reelset caption-servers` with a stand-in for vLLM: started, watched, found through the book, stopped."""

import json
import os
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

from captioning.client import urls
from captioning.config import CaptionConfig
from captioning.servers import addresses
from curation.errors import ConfigError
from tests.captioning import fake_vllm

KEY = "sk-very-secret"
REELSET = [sys.executable, "-m", "jobs.cli"]


def settings(folder: Path, *models: dict[str, Any]) -> Path:
    """A config file; each model's server is the stand-in."""
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


def servers_of(model: str) -> list[psutil.Process]:
    """Processes of the stand-in that serve a model."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "vllm.entrypoints.openai.api_server" in line and model in line and "captioning.keeper" not in line:
            found.append(process)
    return found


@pytest.fixture
def stopped() -> Iterator[list[Started]]:
    """What is put in here is ended after the test."""
    started: list[Started] = []
    yield started
    for one in started:
        if one.process.poll() is None:
            one.process.kill()


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

    (victim,), (other,) = servers_of("tiny-small"), servers_of("tiny-large")
    victim.kill()
    run.wait(lambda: "tiny-small: ended with status -9" in run.said())
    run.wait(lambda: run.said().count("tiny-small: well after") == 2)
    assert addresses(str(book)) == before and well(small) and servers_of("tiny-large") == [other]

    assert KEY not in run.said() + book.read_text()
    assert not any(KEY in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    folder = Path(f"/tmp/reelset-servers-{os.getuid()}")
    assert not any(KEY in log.read_text() for log in folder.glob("tiny-*.log"))

    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.process.wait(30) == 0 and time.monotonic() - began < 20
    assert not book.exists() and not servers_of("tiny-small") and not servers_of("tiny-large")
    assert "all servers are stopped" in run.said()


def test_servers_die_with_a_driver_that_is_killed(tmp_path: Path, stopped: list[Started]) -> None:
    stopped.append(run := Started(settings(tmp_path, {"name": "tiny-orphan", "path": "/models/s"})))
    run.wait(lambda: "all 1 servers are well" in run.said())
    run.process.kill()
    until = time.monotonic() + 60
    while servers_of("tiny-orphan"):
        assert time.monotonic() < until, "a server outlives the driver that started it"
        time.sleep(0.5)


def said_by(config: Path) -> tuple[int, str]:
    done = subprocess.run(
        [*REELSET, "caption-servers", "--config", str(config)], capture_output=True, text=True, cwd=fake_vllm.ROOT, timeout=120
    )
    return done.returncode, done.stderr


def test_a_server_that_never_comes_up_ends_with_its_last_words(tmp_path: Path) -> None:
    code, said = said_by(settings(tmp_path, {"name": "tiny-broken", "path": "/models/broken"}))
    assert code == 1 and "tiny-broken: did not come up in 3 starts" in said
    assert "OSError: no file named config.json found in directory /models/broken" in said and not servers_of("tiny-broken")


def test_what_cannot_work_is_said_before_anything_starts(tmp_path: Path) -> None:
    code, said = said_by(settings(tmp_path, {"name": "a", "serve": {"python": "/usr/bin/true/python"}}))
    assert code == 2 and "caption.models.0.serve.python: '/usr/bin/true/python' does not run" in said
    (tmp_path / "large").mkdir()
    code, said = said_by(settings(tmp_path / "large", {"name": "a", "serve": {"cpus": 4000}}))
    assert code == 2 and "the caption servers do not fit: the plan needs 4000 CPU" in said
    (tmp_path / "none").mkdir()
    code, said = said_by(settings(tmp_path / "none", {"name": "a", "urls": ["http://127.0.0.1:9/v1"]}))
    assert code == 2 and "there is nothing to start" in said


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
