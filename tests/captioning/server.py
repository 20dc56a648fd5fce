"""A small caption server over real HTTP that misbehaves on command.

python -m tests.captioning.server PORT LATENCY_S SLOTS      a well-behaved one in a process of its own
"""

import asyncio
import io
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

NOUNS = ("river", "tower", "garden", "bridge", "market", "harbour", "meadow", "street", "forest", "kitchen", "stage")


def answer(seed: str = "", **more: Any) -> str:
    """A plain answer that passes every check, different for each seed."""
    numbers = [sum(map(ord, seed)) + 7 * n for n in range(3)]
    first, second, third = (NOUNS[n % len(NOUNS)] for n in numbers)
    caption = (
        f"A woman in a green coat crosses the {first} with a basket of apples. She stops, looks back towards the {second}, "
        f"and goes on with quick steps. Behind her stand low houses and a {third}. The camera stays at eye height and does "
        "not move. Soft light comes from an overcast sky. Live action in pale colours, calm in mood."
    )
    fields = {"subjects": ["a woman"], "actions": ["crosses"], "setting": "a street", "lighting": "overcast"}
    return json.dumps({"caption": caption, **fields, "style": "pale", "people": "one", "visible_text": [], **more})


def completion(text: str | None, finish: str = "stop") -> web.Response:
    """What a server says whose model wrote this text."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}
    page = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return web.json_response(page)


def refusal(status: int, message: str, **headers: str) -> web.Response:
    """An error as vLLM words it."""
    page = {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}}
    return web.json_response(page, status=status, headers=headers)


def drop(request: web.Request) -> None:
    """Break the connection without a word, as a process does that dies."""
    assert request.transport is not None
    request.transport.abort()


Handler = Callable[["Asked"], Awaitable[web.Response | None]]


class Asked:
    """One request for a caption."""

    def __init__(self, request: web.Request, body: dict[str, Any], number: int) -> None:
        self.request = request
        self.body = body
        self.number = number
        """Counts from 1, over all clips."""
        self.parts: list[dict[str, Any]] = body["messages"][0]["content"]
        self.at = time.monotonic()

    @property
    def data(self) -> bytes:
        """The first picture or video that came with it."""
        import base64

        part = self.parts[0]
        return base64.b64decode(part[part["type"]]["url"].partition(",")[2])

    @property
    def frames(self) -> int:
        """How many pictures it shows."""
        import av

        if self.parts[0]["type"] == "image_url":
            return sum(part["type"] == "image_url" for part in self.parts)
        with av.open(io.BytesIO(self.data), "r") as container:
            return sum(1 for _ in container.decode(video=0))


async def well(asked: Asked) -> web.Response:
    """Answers as one should."""
    return completion(answer(str(asked.number)))


class CaptionServer:
    """Serves models of these names in a thread; `handler` answers requests for captions (None: the connection breaks)."""

    def __init__(self, *models: str, handler: Handler = well, key: str | None = None, port: int = 0) -> None:
        self.models = models or ("small",)
        self.handler = handler
        self.key = key
        self.port = port
        self.asked: list[Asked] = []
        self.small = 0
        """Small questions answered: is anybody there?"""
        self.in_flight = 0
        self.most_in_flight = 0
        self.answers_small = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        started = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self.thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.run(self._serve(started))

    async def _serve(self, started: threading.Event) -> None:
        self.loop, self.ended = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=2**28)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, backlog=512)
        await site.start()
        self.port = runner.addresses[0][1]
        started.set()
        await self.ended.wait()
        await runner.cleanup()

    def _locked_out(self, request: web.Request) -> bool:
        return self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}"

    async def _list(self, request: web.Request) -> web.Response:
        if self._locked_out(request):
            return refusal(401, "Unauthorized")
        return web.json_response({"object": "list", "data": [{"id": m, "object": "model"} for m in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        if self._locked_out(request):
            return refusal(401, "Unauthorized")
        if body["model"] not in self.models:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        if isinstance(body["messages"][0]["content"], str):
            self.small += self.answers_small
            return completion("Yes") if self.answers_small else refusal(500, "CUDA error: device lost")
        asked = Asked(request, body, len(self.asked) + 1)
        self.asked.append(asked)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            said = await self.handler(asked)
        finally:
            self.in_flight -= 1
        if said is None:
            drop(request)
            return web.Response()
        return said


def slow(latency_s: float, slots: int) -> Handler:
    """Answers after `latency_s`, `slots` requests at a time; the others stand in a line."""
    free = asyncio.Semaphore(slots)

    async def handler(asked: Asked) -> web.Response:
        async with free:
            await asyncio.sleep(latency_s)
        return completion(answer(str(asked.number)))

    return handler


if __name__ == "__main__":
    port, latency_s, slots = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    text = answer("x")

    async def serve() -> None:
        """As little as can be done for a request: the benchmark's other side."""
        free = asyncio.Semaphore(slots)
        body = completion(text).body

        async def chat(request: web.Request) -> web.Response:
            await request.read()
            async with free:
                await asyncio.sleep(latency_s)
            return web.Response(body=body, content_type="application/json")

        app = web.Application(client_max_size=2**28)
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=512).start()
        print("ready", flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())
