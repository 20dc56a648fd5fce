"""Asks caption servers over the OpenAI-compatible API: as many at once as each bears, until each clip has its row.

A failure counts against a clip only where its server is not at fault. A server that is away, overloaded or broken is
waited for, `wait_s` at most since any server of its model last answered; then the job ends, and what is done stays.
"""

import asyncio
import heapq
import importlib.util
import itertools
import os
import random
import re
import time
import warnings
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from hashlib import md5, sha256
from typing import TYPE_CHECKING, Any

from captioning import answers
from captioning.config import CaptionConfig, ModelConfig
from captioning.limit import Limit
from captioning.servers import addresses
from captioning.showing import Clip, shown
from curation.errors import ClipError, ConfigError, StageError

if TYPE_CHECKING:
    import openai

Row = dict[str, Any]

SMALL_S = 60.0
"""How long a server may take to answer a small question, others being before it."""
TOGETHER = 2
"""Broken connections after which a clip is asked alone: whoever else was at the server lost theirs too."""
LOOK_S = 0.25
FIND_S = 5.0
"""Pause between two looks for servers where none is known."""
MOST_WAIT_S = 30.0
"""Longest pause before a request is sent again."""
SAME_REFUSAL = 20
"""So many clips refused in a row, none answered between: it is the request that is wrong, not the clips."""
FEWER = 16
"""Pictures of a clip that did not fit the context whole; and with `sends: frames` where the config says nothing."""
OVERFLOW = re.compile(r"context length|max(?:imum)?[ _]model[ _]len|(?:prompt|input)[^.]*(?:too long|longer than|exceed)", re.I)
"""What a server says of a request that is longer than the model's context."""


@dataclass
class Server:
    """One server, and what of ours is under way there."""

    url: str
    api: "openai.AsyncOpenAI"
    limit: Limit
    in_flight: int = 0
    away: bool = False
    """It broke a connection: it is given nothing until it answers a small question."""
    kept_for: "Ask | None" = None
    """The clip that shall be asked alone."""

    def room(self) -> int:
        """How many more requests it may get."""
        return 0 if self.away or self.kept_for else int(self.limit.now) - self.in_flight


@dataclass(eq=False)
class Ask:
    """A clip on its way to a caption, over all requests that it takes."""

    clip: Clip
    frames: int | None
    """How many pictures are shown; None: the whole video."""
    temperature: float
    requests: int = 0
    failures: int = 0
    broken: int = 0
    lost_at: "Server | None" = None
    """The server that broke its connection last."""
    latency_s: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    pause_s: float = 0.0
    """How long to wait before the next request."""

    def back_off(self, times: int) -> None:
        """Wait longer each time, and never in step with others."""
        self.pause_s = random.uniform(0, min(MOST_WAIT_S, 2.0**times))


class Line:
    """The clips of one model on their way through its servers."""

    def __init__(self, config: CaptionConfig, model: ModelConfig) -> None:
        self.config = config
        self.model = model
        self.prompt = answers.prompt(config.prompt)
        self.asked_for = {"type": "json_schema", "json_schema": {"name": "caption", "strict": True, "schema": answers.schema()}}
        self.servers: list[Server] = []
        self.looked_at = 0.0
        self.find_servers()
        self.answered_at = 0.0
        self.refused = 0
        self.later: list[tuple[float, int, Ask]] = []
        self.numbers = itertools.count()
        self.finished: asyncio.Queue[tuple[Server, Ask, Row | BaseException | None]] = asyncio.Queue()
        self.tasks: set[asyncio.Task[None]] = set()

    def find_servers(self) -> None:
        """Get to know the servers that the config or the book names, and that are not known yet."""
        import openai

        self.looked_at = time.monotonic()
        known, named = {server.url for server in self.servers}, []
        with suppress(ConfigError):  # the book is away while servers start anew
            named = [*urls(self.config, self.model)]
        for url in named:
            if url not in known:
                api = openai.AsyncOpenAI(
                    base_url=url,
                    api_key=key(self.config),
                    max_retries=0,  # what is sent again, when and where, is decided here
                    timeout=self.config.timeout_s,
                    http_client=openai.DefaultAioHttpClient(timeout=self.config.timeout_s),
                )
                self.servers.append(Server(url, api, Limit(self.config.most_at_once)))

    async def rows(self, clips: Sequence[Clip]) -> AsyncIterator[Row]:
        """A row for each of these clips, as they come.

        Raises StageError where no server of the model answers for `wait_s`, or none can do what is asked of it.
        """
        usual = self.model.frames or (FEWER if self.model.sends == "frames" else None)
        fresh = (Ask(clip, usual if clip.kind == "video" else 1, self.config.temperature) for clip in clips)
        self.answered_at, left = time.monotonic(), len(clips)
        try:
            while left:
                for ask, server in self._startable(fresh):
                    server.in_flight += 1
                    self._spawn(self._report(ask, server))
                for server, ask, outcome in await self._returned():
                    server.in_flight -= 1
                    server.kept_for = None if server.kept_for is ask else server.kept_for
                    if isinstance(outcome, BaseException):
                        raise outcome
                    if outcome is None:
                        self._postpone(ask)
                    else:
                        left -= 1
                        yield outcome
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            self.later.clear()
            for server in self.servers:
                server.in_flight, server.away, server.kept_for = 0, False, None

    async def close(self) -> None:
        """Close the connections."""
        for server in self.servers:
            await server.api.close()

    def _startable(self, fresh: Iterator[Ask]) -> Iterator[tuple[Ask, Server]]:
        """Asks that may be sent now, each with the server that has the most room, and not the one it was lost at."""
        while free := [server for server in self.servers if server.room() > 0]:
            due = self.later and self.later[0][0] <= time.monotonic()
            ask = heapq.heappop(self.later)[2] if due else next(fresh, None)
            if ask is None:
                break
            server = max(free, key=lambda s: (s is not ask.lost_at, s.room()))
            if ask.broken >= TOGETHER:
                server.kept_for = ask
            else:
                yield ask, server
        for server in self.servers:
            if server.kept_for is not None and server.in_flight == 0:
                if server.away:
                    self._postpone(server.kept_for)
                    server.kept_for = None
                else:
                    yield server.kept_for, server

    async def _returned(self) -> list[tuple[Server, Ask, Row | BaseException | None]]:
        """What came back; nothing after a while, when it is time to look at those that wait."""
        try:
            first = await asyncio.wait_for(self.finished.get(), LOOK_S)
        except TimeoutError:
            now = time.monotonic()
            if not self.servers and now - self.looked_at > FIND_S:
                self.find_servers()
            away_s = now - self.answered_at
            if away_s > max(self.config.wait_s, self.config.timeout_s + SMALL_S):
                raise StageError(
                    "servers_down",
                    f"{self.model.name}: no answer for {away_s:.0f} s from "
                    f"{', '.join(server.url for server in self.servers) or 'any server'}; "
                    f"caption.wait_s is {self.config.wait_s:g} s. What is done stays: start the servers and run again",
                ) from None
            return []
        return [first, *(self.finished.get_nowait() for _ in range(self.finished.qsize()))]

    def _postpone(self, ask: Ask) -> None:
        heapq.heappush(self.later, (time.monotonic() + ask.pause_s, next(self.numbers), ask))
        ask.pause_s = 0.0

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _report(self, ask: Ask, server: Server) -> None:
        try:
            outcome: Row | BaseException | None = await self._ask(ask, server)
        except Exception as error:
            outcome = error
        self.finished.put_nowait((server, ask, outcome))

    async def _ask(self, ask: Ask, server: Server) -> Row | None:
        """Send one request. The clip's row, or None where it has to be asked again.

        Raises StageError where asking other clips would end the same way.
        """
        import openai

        ask.requests += 1
        with ExitStack() as stack:
            parts = await asyncio.to_thread(stack.enter_context, shown(ask.clip, self.model, ask.frames, self.config.files))
            body = self._body(ask, parts)
            began = time.monotonic()
            try:
                reply = await server.api.post("/chat/completions", body=body, cast_to=object)
            except openai.APIConnectionError as error:
                # A lost connection too comes as a timeout of sorts from the package's aiohttp transport: the clock tells.
                if time.monotonic() - began >= self.config.timeout_s:
                    server.limit.overloaded(began, time.monotonic())
                    return await self._count(ask, server, f"no answer within {self.config.timeout_s:g} s")
                self._lost(server)
                return self._broken(ask, server, error)
            except openai.APIStatusError as error:
                return await self._status(ask, server, error, began)
            except ValueError as error:  # bytes that are no JSON, or no text at all
                return self._second(ask, ClipError("caption_malformed", f"{type(error).__name__}: {error}"))
            finally:
                ask.latency_s += time.monotonic() - began
        return await self._reply(ask, server, reply)

    def _body(self, ask: Ask, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "model": self.model.name,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": self.prompt}]}],
            "temperature": ask.temperature,
            "max_tokens": self.config.max_tokens,
            "response_format": self.asked_for,
        }

    async def _reply(self, ask: Ask, server: Server, reply: Any) -> Row | None:
        """The row of an answer, if it is one."""
        try:
            choice = reply["choices"][0]
            text, finish = choice["message"]["content"], choice["finish_reason"]
            usage = reply.get("usage") or {}
            ask.input_tokens += int(usage.get("prompt_tokens") or 0)
            ask.output_tokens += int(usage.get("completion_tokens") or 0)
            if not isinstance(text, str | None):
                raise TypeError(f"content is of type {type(text).__name__}")
        except (TypeError, KeyError, IndexError, ValueError, AttributeError):
            return await self._count(ask, server, f"no answer of a chat completion: {str(reply)[:200]!r}")
        self._answered()
        server.limit.answer(time.monotonic(), server.in_flight)
        try:
            answer = answers.read(text, finish, self.prompt, self.config.language)
        except ClipError as error:
            return self._second(ask, error)
        return self._row(ask) | answer.model_dump() | {"status": "ok"}

    def _answered(self) -> None:
        self.answered_at, self.refused = time.monotonic(), 0

    def _second(self, ask: Ask, error: ClipError) -> Row | None:
        """After an answer that is no good: ask once more, differently."""
        if ask.temperature == self.config.temperature != self.config.second_temperature:
            ask.temperature = self.config.second_temperature
            return None
        return self._failed(ask, error)

    async def _status(self, ask: Ask, server: Server, error: "openai.APIStatusError", began: float) -> Row | None:
        """After an HTTP status that is no success."""
        status, said = error.status_code, " ".join(error.message.split())[:500]
        if status in (429, 503):
            server.limit.overloaded(began, time.monotonic())
            ask.back_off(2)
            ask.pause_s = _retry_after_s(error.response.headers.get("retry-after")) or ask.pause_s
            return None
        if status >= 500 or status == 408:
            return await self._count(ask, server, f"{status}: {said}")
        if status in (401, 403, 404):
            hint = "caption.key_env names the variable that holds the key" if status != 404 else "caption.models names it so"
            raise StageError("stage_failed", f"{self.model.name} at {server.url} says {status}: {said}; {hint}")
        if OVERFLOW.search(said):
            if ask.frames is None or ask.frames > 1:
                ask.frames = ask.frames // 2 if ask.frames else FEWER
                return None
            return self._failed(ask, ClipError("caption_context", said))
        self.refused += 1
        if self.refused >= SAME_REFUSAL:
            raise StageError("stage_failed", f"{self.model.name} refuses one clip after the other, {status}: {said}")
        return self._failed(ask, ClipError("caption_undecodable", f"{status}: {said}"))

    async def _count(self, ask: Ask, server: Server, said: str) -> Row | None:
        """After a failure that is the server's or the clip's: the clip's where the server answers a small question."""
        ask.failures += 1
        ask.back_off(ask.failures)
        if ask.failures < self.config.attempts:
            return None
        if await self._well(server):
            return self._failed(ask, ClipError("caption_failed", said))
        self._lost(server)
        return None

    def _broken(self, ask: Ask, server: Server, error: Exception) -> Row | None:
        """After a broken connection: the clip's fault where it was alone there, time and again."""
        ask.broken += 1
        ask.lost_at = server
        ask.failures += server.kept_for is ask
        ask.back_off(ask.broken)
        if server.kept_for is ask and ask.failures >= self.config.attempts:
            return self._failed(ask, ClipError("caption_failed", f"the server dies of it: {error}"))
        return None

    def _lost(self, server: Server) -> None:
        """Give a server nothing more until it answers again."""
        if server.away:
            return
        server.away = True
        self._spawn(self._probe(server))

    async def _probe(self, server: Server) -> None:
        for times in itertools.count():
            if await self._well(server):
                server.away = False
                return
            await asyncio.sleep(random.uniform(0.2, min(5.0, 0.5 * 2.0**times)))
            self.find_servers()

    async def _well(self, server: Server) -> bool:
        """Whether the server answers a small question."""
        import openai

        body = {"model": self.model.name, "messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1}
        try:
            reply = await server.api.post("/chat/completions", body=body, cast_to=object, options={"timeout": SMALL_S})
        except (openai.APIError, ValueError):
            return False
        well = isinstance(reply, dict) and bool(reply.get("choices"))
        if well:
            self.answered_at = time.monotonic()
        return well

    def _row(self, ask: Ask) -> Row:
        return {
            "clip_id": ask.clip.clip_id,
            "model": self.model.name,
            "prompt": self.config.prompt,
            "prompt_sha256": sha256(self.prompt.encode()).hexdigest(),
            "sends": self.model.sends,
            "frames_shown": ask.frames,
            "temperature": ask.temperature,
            "requests": ask.requests,
            "input_tokens": ask.input_tokens,
            "output_tokens": ask.output_tokens,
            "latency_s": round(ask.latency_s, 6),
        }

    def _failed(self, ask: Ask, error: ClipError) -> Row:
        return self._row(ask) | {"status": "error", "error_code": error.code, "error_message": error.message}


class Client:
    """All models' lines. Lives in one event loop."""

    def __init__(self, config: CaptionConfig) -> None:
        # A clip goes out whole, in one write to a socket's buffer; how many at once is bounded by the servers' limits.
        warnings.filterwarnings("ignore", "Sending a large body directly", ResourceWarning)
        if config.language is not None:
            answers.languages()  # loaded now: later it would hold up requests
        self.config = config
        self.lines = {model.name: Line(config, model) for model in config.models}

    async def rows(self, clips: Sequence[Clip]) -> AsyncIterator[Row]:
        """A row of `tables.CAPTIONS` for each clip as it comes, but for what was shown. Raises StageError as `Line.rows`."""
        of_model: dict[str, list[Clip]] = defaultdict(list)
        for clip in clips:
            of_model[model_of(clip.clip_id, self.config.models).name].append(clip)
        found: asyncio.Queue[Row | BaseException | None] = asyncio.Queue(maxsize=2 * self.config.most_at_once)

        async def follow(name: str) -> None:
            try:
                async for row in self.lines[name].rows(of_model[name]):
                    await found.put(row)
            except Exception as error:
                await found.put(error)
            await found.put(None)

        tasks = [asyncio.create_task(follow(name)) for name in of_model]
        try:
            ended = 0
            while ended < len(tasks):
                item = await found.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    ended += 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Close all connections."""
        for line in self.lines.values():
            await line.close()


def model_of(clip_id: str, models: Sequence[ModelConfig]) -> ModelConfig:
    """The model that captions a clip: by a hash of its id, in proportion to the shares, whatever else there is."""
    place = _number(clip_id) * sum(model.share for model in models) >> 60
    for model in models:
        if place < model.share:
            return model
        place -= model.share
    raise AssertionError("shares sum to more than any place")


def _number(clip_id: str) -> int:
    """60 bits, evenly spread."""
    return int(md5(f"caption/{clip_id}".encode()).hexdigest()[:15], 16)


def _retry_after_s(header: str | None) -> float:
    return min(MOST_WAIT_S, float(header)) if header and header.isdecimal() else 0.0


def key(config: CaptionConfig) -> str:
    """The servers' API key; a placeholder where none is set."""
    return os.environ.get(config.key_env) or "none"


def urls(config: CaptionConfig, model: ModelConfig) -> Sequence[str]:
    """A model's servers. Raises ConfigError where nothing names any."""
    if model.urls:
        return model.urls
    if config.book is None:
        raise ConfigError(
            f"caption.models: {model.name} has no servers: name running ones in `urls`, or start them with "
            "`reelset caption-servers` and name their book in caption.book"
        )
    found = addresses(config.book).get(model.name, [])
    if not found:
        raise ConfigError(f"caption.book {config.book!r} names no server of {model.name}")
    return found


def check(config: CaptionConfig) -> None:
    """Ask each server which models it has. Raises ConfigError naming the setting where one will not do."""
    if not config.models:
        return
    for package in ("openai", "py3langid"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"caption.models needs the package {package}: pip install 'reelset[caption]'")
    import openai

    answers.prompt(config.prompt)
    if config.language is not None and config.language not in answers.languages():
        raise ConfigError(f"caption.language {config.language!r} is not one of {', '.join(answers.languages())}")
    for place, model in enumerate(config.models):
        setting = f"caption.models.{place}.urls" if model.urls else "caption.book"
        for url in urls(config, model):
            try:
                with openai.OpenAI(base_url=url, api_key=key(config), max_retries=1, timeout=SMALL_S) as api:
                    has = sorted(found.id for found in api.models.list())
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise ConfigError(f"{setting}: {url} does not take the key in ${config.key_env} (caption.key_env)") from error
            except (openai.APIError, ValueError, AttributeError, TypeError) as error:
                raise ConfigError(f"{setting}: {url} is no caption server that answers: {error}") from error
            if model.name not in has:
                raise ConfigError(f"{setting}: {url} serves {', '.join(has) or 'nothing'}, not {model.name!r}")
