"""The client against a real HTTP server that misbehaves, case by case."""

import asyncio
import io
import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from aiohttp import web

from captioning import client as module
from captioning.client import Client, Row, check, model_of
from captioning.config import CaptionConfig, ModelConfig
from captioning.limit import Limit
from captioning.showing import Clip, thinned
from curation.errors import ConfigError, StageError
from tests.captioning.server import Asked, CaptionServer, answer, completion, refusal, slow
from tests.media_samples import make_video, moving

SECRET = "sk-very-secret"


def clips(count: int, kind: str = "video") -> list[Clip]:
    return [Clip(f"clip{n:04d}", kind, lambda n=n: b"bytes of %d" % n) for n in range(count)]  # type: ignore[misc]


def config(*servers: CaptionServer, **more: Any) -> CaptionConfig:
    models = more.pop("models", None) or [{"name": "small", "urls": [server.url for server in servers]}]
    return CaptionConfig.model_validate({"models": models, "timeout_s": 5, "wait_s": 5, **more})


def ask(settings: CaptionConfig, what: Sequence[Clip]) -> list[Row]:
    async def run() -> list[Row]:
        client = Client(settings)
        try:
            return [row async for row in client.rows(what)]
        finally:
            await client.close()

    return asyncio.run(run())


def by_id(rows: Sequence[Row]) -> dict[str, Row]:
    found = {row["clip_id"]: row for row in rows}
    assert len(found) == len(rows), "a clip has one row"
    return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAIT_S", 0.2)
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    monkeypatch.setattr(module, "SMALL_S", 1.0)


def test_each_clip_has_its_caption_and_what_it_cost() -> None:
    with CaptionServer() as server:
        rows = by_id(ask(config(server), clips(40)))
    assert set(rows) == {clip.clip_id for clip in clips(40)}
    assert all(row["status"] == "ok" and row["caption"].startswith("A woman in a green coat") for row in rows.values())
    row = rows["clip0007"]
    assert (row["model"], row["prompt"], row["requests"], row["frames_shown"]) == ("small", "caption-v1", 1, None)
    assert (row["input_tokens"], row["output_tokens"]) == (1000, 200) and row["latency_s"] > 0
    assert sorted(a.data for a in server.asked) == sorted(clip.read() for clip in clips(40))


def test_the_request_is_what_vllm_takes() -> None:
    with CaptionServer() as server:
        ask(config(server), clips(1))
        ask(config(server), clips(1, "image"))
    video, image = (asked.body for asked in server.asked)
    assert video["messages"][0]["content"][0]["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert video["max_tokens"] == 768
    form = video["response_format"]["json_schema"]
    assert form["strict"] and set(form["schema"]["required"]) == set(form["schema"]["properties"])
    assert image["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/webp;base64,")


def test_frames_are_sent_to_models_that_take_no_video(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4", moving(128, 96, seed=1), 40, 20)
    data = (tmp_path / "clip.mp4").read_bytes()
    with CaptionServer() as server:
        models = [{"name": "small", "urls": [server.url], "sends": "frames", "frames": 6}]
        row = ask(config(models=models), [Clip("c", "video", lambda: data)])[0]
    assert row["status"] == "ok" and row["frames_shown"] == 6 and row["sends"] == "frames"
    kinds = [part["type"] for part in server.asked[0].parts]
    assert kinds == ["image_url"] * 6 + ["text"] and server.asked[0].data[:2] == b"\xff\xd8"


def test_a_file_stands_where_the_server_may_read_it_as_long_as_it_is_asked(tmp_path: Path) -> None:
    from urllib.parse import unquote, urlparse

    seen = []

    async def look(asked: Asked) -> web.Response:
        seen.append(Path(unquote(urlparse(asked.parts[0]["video_url"]["url"]).path)).read_bytes())
        return completion(answer())

    folder = tmp_path / "shown to servers"
    folder.mkdir()
    with CaptionServer(handler=look) as server:
        models = [{"name": "small", "urls": [server.url], "sends": "file"}]
        ask(config(models=models, files=str(folder)), clips(3))
    assert sorted(seen) == sorted(clip.read() for clip in clips(3)) and not list(folder.iterdir())


def test_two_models_share_the_clips_seventy_to_thirty() -> None:
    models = (ModelConfig(name="small", share=70), ModelConfig(name="large", share=30))
    names = Counter(model_of(f"clip{n}", models).name for n in range(20_000))
    assert abs(names["small"] / 20_000 - 0.7) < 0.01
    tenths = (ModelConfig(name="small", share=7), ModelConfig(name="large", share=3))
    assert all(model_of(f"clip{n}", models).name == model_of(f"clip{n}", tenths).name for n in range(500))
    with CaptionServer("small") as small, CaptionServer("large") as large:
        both = [{"name": s.models[0], "share": n, "urls": [s.url]} for s, n in ((small, 70), (large, 30))]
        rows = ask(config(models=both), clips(60))
    assert {row["clip_id"]: row["model"] for row in rows} == {c.clip_id: model_of(c.clip_id, models).name for c in clips(60)}
    assert len(small.asked) + len(large.asked) == 60 and len(large.asked) > 5


@pytest.mark.parametrize(
    "first,code",
    [
        ("I'm sorry, but I can't help with that.", "caption_refused"),
        ("", "caption_empty"),
        (answer(caption="A man walks. " * 12), "caption_repeated"),
        (answer(caption="Un homme marche lentement sur la plage avec son chien et regarde la mer."), "caption_language"),
        ("{" + "x" * 100_000, "caption_malformed"),
    ],
)
def test_an_answer_that_is_none_is_asked_for_once_more_at_another_temperature(first: str, code: str) -> None:
    async def handler(asked: Asked) -> web.Response:
        stubborn = asked.data == b"bytes of 1"
        return completion(first if stubborn or asked.body["temperature"] == 0.2 else answer())

    with CaptionServer(handler=handler) as server:
        rows = by_id(ask(config(server), clips(2)))
    good, bad = rows["clip0000"], rows["clip0001"]
    assert (good["status"], good["requests"], good["temperature"]) == ("ok", 2, 0.8)
    assert (bad["status"], bad["error_code"], bad["requests"]) == ("error", code, 2)
    assert "caption" not in bad and bad["output_tokens"] == 400


def test_truncated_and_broken_bytes() -> None:
    async def handler(asked: Asked) -> web.Response:
        if asked.data == b"bytes of 0":
            return completion(answer()[:200], "length")
        return web.Response(body=b'{"choices": [{"message": {"content": "\xff\xfe"}}]}', content_type="application/json")

    with CaptionServer(handler=handler) as server:
        rows = by_id(ask(config(server), clips(2)))
    assert [rows[f"clip000{n}"]["error_code"] for n in (0, 1)] == ["caption_truncated", "caption_malformed"]


def test_an_overloaded_server_is_given_less_and_no_clip_is_charged() -> None:
    async def handler(asked: Asked) -> web.Response:
        if server.in_flight > 5:
            return refusal(429 if asked.number % 2 else 503, "busy", **{"Retry-After": "0"})
        await asyncio.sleep(0.01)
        return completion(answer())

    with CaptionServer(handler=handler) as server:
        rows = ask(config(server, attempts=1), clips(150))
    assert Counter(row["status"] for row in rows) == {"ok": 150}
    refused_late = sum(asked.number > 200 for asked in server.asked)
    assert len(server.asked) > 150 and refused_late < 100


@pytest.mark.parametrize("how", ["500", "html", "html200", "hangs", "nonsense"])
def test_a_clip_on_which_the_server_fails_is_given_up_and_costs_no_other(how: str) -> None:
    async def handler(asked: Asked) -> web.Response:
        if asked.data != b"bytes of 3":
            return completion(answer())
        if how == "hangs":
            await asyncio.sleep(20)
        if how.startswith("html"):
            return web.Response(
                text="<html>Bad Gateway</html>", content_type="text/html", status=200 if how == "html200" else 502
            )
        return refusal(500, "CUDA error") if how == "500" else web.json_response({"choices": []})

    with CaptionServer(handler=handler) as server:
        rows = by_id(ask(config(server, timeout_s=0.4), clips(12)))
    assert Counter(row["status"] for row in rows.values()) == {"ok": 11, "error": 1}
    bad = rows["clip0003"]
    assert (bad["error_code"], bad["requests"]) == ("caption_failed", 3) and server.small >= 1


def test_a_server_that_fails_on_everything_ends_the_job_and_charges_nobody() -> None:
    async def sick(asked: Asked) -> web.Response:
        return refusal(500, "CUDA error: device lost")

    with CaptionServer(handler=sick) as server, pytest.raises(StageError, match=r"servers_down: small: no answer for"):
        server.answers_small = False
        ask(config(server, wait_s=1, timeout_s=0.2), clips(5))


def test_a_dead_server_that_comes_back_costs_nothing() -> None:
    with CaptionServer() as first:
        port = first.port
    settings = CaptionConfig.model_validate(
        {"models": [{"name": "small", "urls": [f"http://127.0.0.1:{port}/v1"]}], "timeout_s": 5, "wait_s": 30}
    )

    async def run() -> list[Row]:
        client = Client(settings)
        rows = []
        asking = client.rows(clips(30))
        task = asyncio.create_task(_collect(asking, rows))
        await asyncio.sleep(0.5)
        assert not rows
        with CaptionServer(port=port):
            await asyncio.wait_for(task, 20)
        await client.close()
        return rows

    assert Counter(row["status"] for row in asyncio.run(run())) == {"ok": 30}


async def _collect(asking: Any, rows: list[Row]) -> None:
    async for row in asking:
        rows.append(row)


def test_a_book_that_is_away_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIND_S", 0.1)
    book = tmp_path / "book.json"

    async def run(server: CaptionServer) -> list[Row]:
        client, rows = Client(config(models=[{"name": "small"}], book=str(book))), []
        task = asyncio.create_task(_collect(client.rows(clips(5)), rows))
        await asyncio.sleep(0.5)
        assert not rows
        book.write_text(json.dumps({"servers": [{"model": "small", "url": server.url}]}))
        await asyncio.wait_for(task, 10)
        await client.close()
        return rows

    with CaptionServer() as server:
        assert Counter(row["status"] for row in asyncio.run(run(server))) == {"ok": 5}


def test_a_server_that_dies_in_the_middle_loses_no_clip_and_asks_none_twice_that_was_answered() -> None:
    served: Counter[bytes] = Counter()

    async def handler(asked: Asked) -> web.Response | None:
        await asyncio.sleep(0.01)
        if 20 <= asked.number < 40:  # all connections break at once
            return None
        served[asked.data] += 1
        return completion(answer())

    with CaptionServer(handler=handler) as server:
        rows = by_id(ask(config(server, attempts=2), clips(80)))
    assert Counter(row["status"] for row in rows.values()) == {"ok": 80}
    assert set(served.values()) == {1}


def test_a_clip_that_kills_the_server_is_asked_alone_and_given_up() -> None:
    deaths = 0

    async def handler(asked: Asked) -> web.Response | None:
        nonlocal deaths
        if asked.data == b"bytes of 5":
            await asyncio.sleep(0.01)
            deaths += 1
            return None
        before = deaths
        await asyncio.sleep(0.02)
        return completion(answer()) if deaths == before else None  # whoever was there with it loses theirs too

    with CaptionServer(handler=handler) as server:
        rows = by_id(ask(config(server, attempts=2), clips(30)))
    assert Counter(row["status"] for row in rows.values()) == {"ok": 29, "error": 1}
    assert rows["clip0005"]["error_code"] == "caption_failed" and "dies of it" in rows["clip0005"]["error_message"]
    assert deaths == 4, "twice in company, twice alone"


def test_the_other_server_takes_over() -> None:
    async def dead(asked: Asked) -> None:
        return None

    with CaptionServer() as good, CaptionServer(handler=dead) as bad:
        rows = ask(config(good, bad), clips(60))
    assert Counter(row["status"] for row in rows) == {"ok": 60}


@pytest.mark.parametrize("sends", ["video", "frames"])
def test_a_context_overflow_shows_fewer_frames_and_says_so(tmp_path: Path, sends: str) -> None:
    make_video(tmp_path / "clip.mp4", moving(128, 96, seed=1), 40, 20)
    data = (tmp_path / "clip.mp4").read_bytes()
    most = 9

    async def handler(asked: Asked) -> web.Response:
        if asked.frames > most:
            return refusal(
                400,
                "This model's maximum context length is 4096 tokens. However, your prompt contains at least 4097 input tokens.",
            )
        return completion(answer())

    with CaptionServer(handler=handler) as server:
        settings = config(models=[{"name": "small", "urls": [server.url], "sends": sends}])
        row = ask(settings, [Clip("c", "video", lambda: data)])[0]
        most = 0
        none = ask(settings, [Clip("c", "video", lambda: data)])[0]
    assert (row["status"], row["frames_shown"], row["requests"]) == ("ok", 8, 3 if sends == "video" else 2)
    assert none["error_code"] == "caption_context" and none["frames_shown"] == 1


def test_a_thinned_clip_takes_as_long_as_the_whole(tmp_path: Path) -> None:
    make_video(tmp_path / "clip.mp4", moving(128, 96, seed=1), 40, 20)
    with av.open(io.BytesIO(thinned((tmp_path / "clip.mp4").read_bytes(), 8)), "r") as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(stream)]
        assert len(frames) == 8 and float(stream.duration * stream.time_base) == pytest.approx(2.0)
    with av.open(str(tmp_path / "clip.mp4"), "r") as container:
        whole = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    nearest = [int(np.argmin([np.abs(few.astype(int) - one).mean() for one in whole])) for few in frames]
    assert nearest == [2, 7, 12, 17, 22, 27, 32, 37]


def test_a_clip_that_the_server_cannot_decode_is_one_row() -> None:
    async def handler(asked: Asked) -> web.Response:
        return refusal(400, "Failed to decode video") if asked.data == b"bytes of 1" else completion(answer())

    with CaptionServer(handler=handler) as server:
        rows = by_id(ask(config(server), clips(4)))
    assert rows["clip0001"]["error_code"] == "caption_undecodable" and rows["clip0001"]["requests"] == 1
    assert sum(row["status"] == "ok" for row in rows.values()) == 3


def test_a_request_that_is_refused_for_every_clip_ends_the_job() -> None:
    async def handler(asked: Asked) -> web.Response:
        return refusal(400, "At most 0 video(s) may be provided in one prompt.")

    with (
        CaptionServer(handler=handler) as server,
        pytest.raises(StageError, match=r"refuses one clip after .* At most 0 video"),
    ):
        ask(config(server), clips(50))


def test_a_model_that_went_away_ends_the_job() -> None:
    with CaptionServer("other") as server, pytest.raises(StageError, match=r"small at http.* says 404"):
        ask(config(server), clips(3))


def test_wrong_settings_are_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with CaptionServer("small", "large", key=SECRET) as server:
        with pytest.raises(ConfigError, match=r"caption\.models\.0\.urls: .* does not take the key in \$REELSET_CAPTION_KEY"):
            check(config(server))
        monkeypatch.setenv("REELSET_CAPTION_KEY", SECRET)
        check(config(server))
        with pytest.raises(ConfigError, match=r"caption\.models\.0\.urls: .* serves large, small, not 'huge'"):
            check(config(models=[{"name": "huge", "urls": [server.url]}]))
        gone = server.url
    with pytest.raises(ConfigError, match=rf"caption\.models\.0\.urls: {gone} is no caption server that answers"):
        check(config(models=[{"name": "small", "urls": [gone]}]))
    with pytest.raises(ConfigError, match=r"name running ones in `urls`, or start them"):
        check(config(models=[{"name": "small"}]))
    with pytest.raises(ConfigError, match=r"caption\.language 'xx'"):
        check(config(models=[{"name": "small", "urls": [gone]}], language="xx"))


def test_the_key_is_sent_and_stands_nowhere(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("REELSET_CAPTION_KEY", SECRET)
    with caplog.at_level(logging.DEBUG), CaptionServer(key=SECRET) as server:
        settings = config(server)
        rows = ask(settings, clips(3))
    assert all(row["status"] == "ok" for row in rows)
    assert SECRET not in caplog.text + str(rows) + settings.model_dump_json() + repr(settings)


@pytest.mark.parametrize("slots", [5, 40])
def test_the_limit_finds_what_a_server_bears(slots: int) -> None:
    async def run() -> tuple[float, int]:
        server.handler = slow(0.04, slots)
        client = Client(config(server, most_at_once=200))
        began, rows = time.monotonic(), []
        await _collect(client.rows(clips(40 * slots)), rows)
        await client.close()
        return time.monotonic() - began, int(client.lines["small"].servers[0].limit.now)

    with CaptionServer() as server:
        _, limit = asyncio.run(run())
    assert 0.6 * slots <= limit <= 2.5 * slots


def test_limit_stays_in_its_bounds() -> None:
    limit, at = Limit(20), 0.0
    for _ in range(5000):  # each answer comes at the same rate, whatever is asked at once
        at += 0.01
        limit.answer(at, int(limit.now))
        assert 1 <= limit.now <= 20


def test_limit_is_cut_once_for_requests_that_met_the_same_crowd() -> None:
    limit = Limit(100, now=50)
    for _ in range(30):
        limit.overloaded(began=1.0, at=2.0)
    assert limit.now == 45
    limit.overloaded(began=2.5, at=3.0)
    assert limit.now == 40.5
    for n in range(200):
        limit.overloaded(began=4.0 + n, at=4.5 + n)
    assert limit.now == 1
