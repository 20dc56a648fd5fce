"""Prompts rewritten over real HTTP: what is asked, what is taken for an answer, and what is said when there is none."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from captioning import answers
from curation.errors import ConfigError
from jobs.rewrite import RewriteConfig, rewrite

GOOD = "A dog with brown fur runs over a wide meadow in warm evening light."
Answer = Callable[[dict[str, Any]], tuple[int, Any]]


def said(text: str, finish: str = "stop") -> tuple[int, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    return 200, {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}


@contextmanager
def server(answer: Answer) -> Iterator[tuple[RewriteConfig, list[dict[str, Any]]]]:
    """A server that answers so, the config that names it, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"key": self.headers["Authorization"]})
            status, page = answer(body)
            data = json.dumps(page).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield RewriteConfig(url=f"http://127.0.0.1:{running.server_port}/v1", model="writer", retries=0), asked
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


def test_prompts_are_sent_with_the_shipped_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REELSET_REWRITE_KEY", "secret")
    with server(lambda body: said(f"Caption: {GOOD}\n{body['messages'][1]['content']}")) as (config, asked):
        found = rewrite(["a dog", "two dogs"], config)
    assert [(r.prompt, r.caption) for r in found] == [("a dog", f"{GOOD} a dog"), ("two dogs", f"{GOOD} two dogs")]
    assert {body["messages"][0]["content"] for body in asked} == {answers.prompt("rewrite-v1", "rewrite.prompt", "jobs")}
    assert {(body["model"], body["temperature"], body["key"]) for body in asked} == {("writer", 0.0, "Bearer secret")}


@pytest.mark.parametrize(
    ("prompt", "answer", "fault"),
    [
        ("a dog", said("I'm sorry, I cannot help with that."), "a refusal"),
        ("a dog", said(GOOD, "length"), "cut off after"),
        ("a dog", said("A dog."), "hardly a word"),
        ('a sign that says "FISH"', said(f'{GOOD} A sign says "FRESH".'), "the words 'FISH' that shall be in the picture"),
    ],
)
def test_what_is_no_caption_is_asked_for_twice_and_said(prompt: str, answer: tuple[int, Any], fault: str) -> None:
    with server(lambda body: answer) as (config, asked):
        (found,) = rewrite([prompt], config)
    assert found.caption is None and found.fault is not None and fault in found.fault
    assert [body["temperature"] for body in asked] == [0.0, 0.7]


def test_a_second_answer_may_be_good() -> None:
    with server(lambda body: said(f'{GOOD} A sign says "FISH".' if body["temperature"] else GOOD)) as (config, _):
        (found,) = rewrite(['a sign that says "FISH"'], config)
    assert found.caption is not None and found.caption.endswith('"FISH".')


def test_a_server_that_does_not_know_the_model_is_named() -> None:
    refusing = server(lambda body: (404, {"error": {"message": "no model writer"}}))
    with refusing as (config, _), pytest.raises(ConfigError, match="refuses model 'writer'"):
        rewrite(["a dog"], config)
    with pytest.raises(ConfigError, match=f"no answer from {config.url}"):
        rewrite(["a dog"], config)


def test_instructions_that_are_not_there_are_named() -> None:
    with pytest.raises(ConfigError, match=r"rewrite.prompt 'rewrite-v0' is neither shipped \(rewrite-v1\)"):
        rewrite(["a dog"], RewriteConfig(url="http://127.0.0.1:9/v1", model="writer", prompt="rewrite-v0"))
