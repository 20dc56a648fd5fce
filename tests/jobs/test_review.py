"""The review server without a browser: who may ask, what is shown, what is decided, and the shards that come of it."""

import io
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from typer.testing import CliRunner

from bucketing.buckets import choose, fixed_fps
from bucketing.shard_format import read_index, read_member
from curation import embedding, review, run_folder, storage
from curation.errors import ConfigError, ReelsetError, SourceError
from curation.media import MediaLimits
from curation.review import ReviewConfig
from curation.sources import UNITS
from curation.tables import CLIPS, FRAMES, SERIES, SOURCES
from jobs import pipeline
from jobs.cli import app as command
from jobs.inspect import story
from jobs.review import candidates as candidates_module
from jobs.review import serve as serve_module
from jobs.review.app import make
from jobs.review.candidates import Candidates
from jobs.review.desk import Desk
from jobs.review.guard import Guard, checked
from jobs.review.preview import Previews, cut
from jobs.review.serve import Exporter, Options, serve
from jobs.review.store import Store, default_place, export
from jobs.review.wishes import SORTS, Target, Wish, targets
from tests.jobs.review_samples import CLIP_FRAMES, FPS, HOSTILE, STEP, film, make_run
from tests.jobs.run_samples import row_of, shown
from tests.media_samples import make_video, number_of
from tests.tiny_clip import NAME, needs_open_clip, tiny_clip

BASE = "http://127.0.0.1:8765"
Serve = Callable[..., "Served"]


class Served:
    """A server over a run, and people who use it."""

    def __init__(self, run: Path, judgements: int, guard: Guard, wanted: list[Target] | None, quota: int) -> None:
        self.run, self.decided = run, 0
        self.store = Store(default_place(str(run), "picked"), "picked", ReviewConfig(judgements=judgements))
        cache = run.parent / f"cache-{id(self)}"
        cache.mkdir()
        self.candidates = Candidates(str(run), self.store, cache / "candidates.sqlite", wanted, quota)
        self.previews = Previews(str(run), MediaLimits(), cache / "previews")
        self.app = make(Desk(str(run), self.candidates, self.previews, 256), guard, self.count)
        self.names = 0

    def count(self) -> None:
        self.decided += 1

    def close(self) -> None:
        self.previews.close()
        self.store.close()

    def person(self, name: str) -> TestClient:
        client = TestClient(self.app, base_url=BASE, follow_redirects=False)
        assert client.post("/who", json={"name": name}).json() == {"next": "/next"}
        return client

    def name(self) -> str:
        self.names += 1
        return f"{self.names:012x}"

    def decide(self, client: TestClient, clip_id: str, action: str, status: int = 200, **more: Any) -> Any:
        first = int(clip_id.split("_")[1])
        told = {"start_frame": first, "end_frame": first + CLIP_FRAMES, "caption": "A lamp swings.", **more.pop("mended", {})}
        given = {"accept": {"mended": told}, "reject": {"reason": "shaky"}, "skip": {}}[action] | more
        answer = client.post("/decide", json={"judgement": self.name(), "clip_id": clip_id, "action": action, **given})
        assert answer.status_code == status, answer.text
        return answer.json()

    def next(self, client: TestClient, query: str = "") -> str | None:
        answer = client.get(f"/next?{query}")
        found = re.match(r"/clip/([^?]+)", answer.headers.get("location", ""))
        return found[1] if found else None

    def ids(self, **wish: Any) -> list[str]:
        return [row["clip_id"] for row in self.candidates.page(Wish(**({"verdict": None} | wish)), 1000)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("review"))


@pytest.fixture
def served(planned: Path, tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as stack:

        def begin(
            judgements: int = 1, guard: Guard | None = None, wanted: list[Target] | None = None, quota: int = 50
        ) -> Served:
            run = tmp_path / "run"
            if not run.exists():
                shutil.copytree(planned, run)
            made = Served(run, judgements, guard or Guard(8765), wanted, quota)
            stack.callback(made.close)
            return made

        yield begin


# -- who may ask


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"origin": BASE}, True),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"host": "evil.example:8765"}, False),
        ({"host": "127.0.0.1:80"}, False),
        ({"host": "localhost:8765"}, True),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, False),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, False),
        ({"sec-fetch-site": "same-origin"}, True),
    ],
)
def test_only_this_page_may_ask(served: Serve, headers: dict[str, str], allowed: bool) -> None:
    own = served()
    ann = own.person("Ann")
    clip_id = own.ids()[0]
    asked = ann.get(f"/clip/{clip_id}", headers=headers)
    assert asked.status_code == (200 if allowed else 403)
    if headers.get("sec-fetch-site") != "same-origin":
        sent = ann.post("/decide", json={"judgement": own.name(), "clip_id": clip_id, "action": "skip"}, headers=headers)
        assert sent.status_code == (200 if allowed else 403)
    assert len(own.store.history()) <= allowed
    assert "script-src 'self'" in asked.headers["content-security-policy"]
    assert "unsafe" not in asked.headers["content-security-policy"]


def test_a_form_of_another_page_cannot_decide(served: Serve) -> None:
    own = served()
    ann = own.person("Ann")
    body = json.dumps({"judgement": own.name(), "clip_id": own.ids()[0], "action": "skip"})
    assert ann.post("/decide", content=body, headers={"content-type": "text/plain"}).status_code == 403
    stranger = TestClient(own.app, base_url=BASE, follow_redirects=False)
    assert stranger.post("/decide", content=body, headers={"content-type": "application/json"}).status_code == 409
    assert own.store.history() == []


def test_cookies_are_strict_and_names_are_checked(served: Serve) -> None:
    own = served()
    client = TestClient(own.app, base_url=BASE)
    answer = client.post("/who", json={"name": "  Zoë   O'Hara "})
    assert "SameSite=strict" in answer.headers["set-cookie"] and "HttpOnly" in answer.headers["set-cookie"]
    own.decide(client, own.ids()[0], "skip")
    assert own.store.history()[0]["who"] == "Zoë O'Hara"
    for wrong in ("", "<b>", "x" * 41, "a\nb;c"):
        assert client.post("/who", json={"name": wrong}).status_code == 409


def test_other_machines_need_a_flag_and_a_token(served: Serve) -> None:
    token = "a-token-of-twenty-ch"
    assert checked("127.0.0.1", 1, None, False, ()).token is None
    for host in ("0.0.0.0", "192.168.1.4", "studio.local"):
        with pytest.raises(ConfigError, match="--allow-remote"):
            checked(host, 1, token, False, ())
        with pytest.raises(ConfigError, match="--token"):
            checked(host, 1, None, True, ())
    with pytest.raises(ConfigError, match="16 to 200"):
        checked("0.0.0.0", 1, "short", True, ())
    guard = checked("0.0.0.0", 8765, token, True, ("studio.local",))
    assert "studio.local" in guard.hosts and "0.0.0.0" not in guard.hosts
    guard = checked("127.0.0.1", 8765, token, False, ("studio.example", "studio.example:8443"))
    own = served(guard=guard)
    for name, status in {
        "studio.example": 303,
        "studio.example:8443": 303,
        "studio.example:1": 403,
        "other.example": 403,
    }.items():
        behind = TestClient(own.app, base_url=f"https://{name}", follow_redirects=False)
        assert behind.get(f"/?token={token}").status_code == status, name
        if status == 303:
            assert behind.post("/who", json={"name": "Bob"}, headers={"origin": f"https://{name}"}).status_code == 200
            assert behind.post("/who", json={"name": "Bob"}, headers={"origin": "https://other.example"}).status_code == 403
    client = TestClient(own.app, base_url=BASE, follow_redirects=False)
    assert client.get("/list").status_code == client.get("/static/review.js").status_code == 403
    assert client.get("/?token=another-token-of-20").status_code == 403
    entered = client.get(f"/?token={token}")
    assert entered.status_code == 303 and entered.headers["location"] == "/"
    assert client.get("/list").status_code == 200


# -- what is shown


def test_names_and_captions_show_as_text(served: Serve) -> None:
    own = served()
    ann = own.person("Ann")
    clip_id = next(c for c in own.ids() if c.startswith(f"{1:016x}"))
    for page in (ann.get(f"/clip/{clip_id}").text, ann.get("/list?verdict=all").text):
        assert HOSTILE not in page and "&lt;script&gt;document.title" in page
        assert re.findall(r"<script(?! src=\"/static/review.js\")", page) == []
    own.decide(ann, clip_id, "accept", mended={"caption": HOSTILE})
    assert HOSTILE not in ann.get(f"/clip/{clip_id}").text
    for odd in ("?rule=%3Cb%3E", "?sort=%3Cb%3E", "?verdict=%3Cb%3E", "?like=%3Cb%3E", "?about=a+lamp"):
        answer = ann.get(f"/list{odd}")
        assert answer.status_code == 400 and "<b>" not in answer.text.replace("review <b>", "")


def test_pages_follow_on_one_another_in_any_order(served: Serve) -> None:
    own = served()
    whole = own.candidates.page(Wish(None), 1000)
    assert len(whole) == 12
    for sort in (sign + name for name in SORTS for sign in ("", "-")):
        column, down = sort.lstrip("-"), sort.startswith("-")
        known = sorted((r for r in whole if r[column] is not None), key=lambda r: (r[column], r["clip_id"]), reverse=down)
        null = sorted((r["clip_id"] for r in whole if r[column] is None), reverse=down)
        expected = [r["clip_id"] for r in known] + null
        found: list[str] = []
        while rows := own.candidates.page(Wish(None, sort=sort), 5, found[-1] if found else None):
            found += [row["clip_id"] for row in rows]
        assert found == expected, sort
    assert len([r for r in whole if r["aesthetic"] is None]) == 3


def test_filters_are_words_rules_verdicts_and_likeness(served: Serve) -> None:
    own = served()
    ann = own.person("Ann")
    assert len(own.ids(words="FILM 2")) == 4 and own.ids(words="nowhere") == []
    assert len(own.ids(rule="motion_mv > 2 and camera = 'pan_right'")) == 8
    assert len(own.ids(rule="max(motion_mv, aesthetic) > 5.6")) == 3 and own.ids(rule="aesthetic is null") != []
    first = own.ids()[0]
    own.decide(ann, first, "accept")
    assert own.ids(verdict="kept") == [first] and own.candidates.tally(Wish(words="film")) == {
        "not_reviewed": 11,
        "kept": 1,
        "rejected": 0,
        "conflict": 0,
    }
    page = ann.get(f"/list?like={first}&verdict=all").text
    near = re.findall(r'<img src="/frame/([^.]+)\.jpg', page)
    concept = {row["clip_id"]: row["concept"] for row in own.candidates.page(Wish(None), 100)}
    assert len(near) == 11 and first not in near and {concept[c] for c in near[:3]} == {concept[first]}


@needs_open_clip
def test_a_text_is_looked_for_by_the_runs_own_model(tmp_path: Path) -> None:
    model, setting = tiny_clip(tmp_path, width=8)
    run = make_run(tmp_path, films=1, embeddings=[setting | {"name": "layout"}])  # the vectors are there already
    own = Served(run, 1, Guard(8765), [Target(name="lamps", quota=2, text="a lamp swings")], 50)
    try:
        ann = own.person("Ann")
        page = ann.get("/list?about=a+lamp+swings&verdict=all").text
        import open_clip
        import torch

        with torch.inference_mode():
            wanted = model.encode_text(open_clip.get_tokenizer(NAME)(["a lamp swings"]))[0].numpy()
        rows = [row for row in storage.read_table(str(run / "embeddings/layout")).to_pylist() if row["clip_id"][-1] != "x"]
        cosines = {row["clip_id"]: np.dot(row["vector"], wanted) / np.linalg.norm(row["vector"]) for row in rows}
        nearest = sorted(cosines, key=lambda clip_id: -cosines[clip_id])
        assert re.findall(r'<img src="/frame/([^.]+)\.jpg', page) == nearest
        assert own.next(ann, "about=a+lamp+swings") == nearest[0]
        assert ann.post("/grow", json={"concept": "lamps"}).json() == {"added": 4}
        assert own.ids(concept="lamps", sort="-similarity") == nearest
    finally:
        own.close()


def test_films_are_cut_from_the_source_and_read_in_parts(served: Serve, tmp_path: Path) -> None:
    own = served()
    ann = own.person("Ann")
    clip_id = f"{2:016x}_{2 * STEP:07d}_{2 * STEP + CLIP_FRAMES:07d}"
    whole = ann.get(f"/film/{clip_id}.mp4")
    part = ann.get(f"/film/{clip_id}.mp4", headers={"range": "bytes=100-199"})
    assert part.status_code == 206 and part.content == whole.content[100:200]
    assert part.headers["content-range"] == f"bytes 100-199/{len(whole.content)}"
    with av.open(io.BytesIO(whole.content)) as opened:
        frames = [(frame.time, number_of(frame.to_ndarray(format="gray"))) for frame in opened.decode(video=0)]
    assert [n for _, n in frames] == list(range(2 * STEP, 2 * STEP + CLIP_FRAMES))
    assert [t for t, _ in frames] == pytest.approx([n / FPS for n in range(CLIP_FRAMES)], abs=1e-3)
    assert ann.get("/film/nobody.mp4").status_code == 404
    assert ann.get(f"/frame/{clip_id}.jpg").content.startswith(b"\xff\xd8")
    assert not list(own.run.rglob("*.mp4")), "previews are no part of the run folder"


def test_a_film_of_a_source_that_cannot_seek_is_cut_from_its_beginning(tmp_path: Path) -> None:
    path = make_video(tmp_path / "raw.h264", film(0), 60, FPS)
    clip = {"start_frame": 30, "end_frame": 50, "width": 352, "height": 200, "fps": 25.0, "rotation": 0}
    place = tmp_path / "film.mp4"
    cut(str(path), clip, [n / FPS for n in range(30, 50)], MediaLimits(), str(place))
    with av.open(str(place)) as opened:
        assert [number_of(frame.to_ndarray(format="gray")) for frame in opened.decode(video=0)] == list(range(30, 50))
    with pytest.raises(SourceError, match="10 of the clip's 20 frames"):
        cut(str(path), clip | {"start_frame": 50, "end_frame": 70}, [n / FPS for n in range(50, 70)], MediaLimits(), str(place))


def test_a_source_that_is_gone_says_so(served: Serve, tmp_path: Path) -> None:
    own = served()
    ann = own.person("Ann")
    unit = own.run / "units/unit-000000.parquet"
    table = storage.read_table(str(unit.parent)).slice(0, 1)
    storage.write_table(str(unit), table.set_column(table.column_names.index("url"), "url", [["/nowhere/film.mp4"]]))
    answer = ann.get(f"/film/{own.ids(words='film 0')[0]}.mp4")
    assert answer.status_code == 422 and "no such file" in answer.text


# -- what is decided


def test_a_clip_is_open_to_one_person_at_a_time(served: Serve) -> None:
    own = served()
    ann, bob = own.person("Ann"), own.person("Bob")
    hers = own.next(ann)
    assert hers is not None and own.next(ann) == hers, "a reload shows the same clip"
    his = own.next(bob)
    assert his is not None and his != hers
    assert "Ann has this clip open" in bob.get(f"/clip/{hers}").text
    assert own.decide(bob, hers, "accept", 409)["error"] == "Ann has this clip open"
    assert bob.post("/keep", json={"clip_id": hers}).json()["held"] == "Ann"
    own.decide(ann, hers, "skip")
    own.decide(bob, hers, "accept")
    assert own.next(ann) != hers
    ann.post("/leave", json={"clip_id": own.next(ann)})


def test_what_cannot_be_a_sample_is_not_accepted(served: Serve) -> None:
    own = served()
    ann = own.person("Ann")
    clip_id = own.ids()[0]
    start = int(clip_id.split("_")[1])
    for mended, why in [
        ({"end_frame": start + 255}, "256 frames at 24 fps"),
        ({"start_frame": start, "end_frame": start + CLIP_FRAMES + 1}, "not within the clip"),
        ({"caption": "  "}, "has a caption"),
        ({"start_frame": None}, "has a span"),
    ]:
        assert why in own.decide(ann, clip_id, "accept", 409, mended=mended)["error"]
    assert "has a reason" in own.decide(ann, clip_id, "reject", 409, reason=" ")["error"]
    for wrong in ({"camera": "sideways"}, {"shots": ["dutch"]}, {"subjects": ["x" * 201]}, {"surprise": 1}):
        own.decide(ann, clip_id, "accept", 422, mended=wrong)
    own.decide(ann, "nobody_0_0", "skip", 409)
    assert own.store.history() == [] and own.decided == 0
    assert own.decide(ann, clip_id, "accept", mended={"end_frame": start + 267})["verdict"] == "kept"


def test_two_judge_each_clip_unseen_and_a_third_settles(served: Serve) -> None:
    own = served(judgements=2)
    ann, bob, cy = own.person("Ann"), own.person("Bob"), own.person("Cy")
    first, second, third = own.ids(verdict="not_reviewed")[:3]
    assert own.decide(ann, first, "accept")["verdict"] == "not_reviewed"
    assert "Ann: accept" not in bob.get(f"/clip/{first}").text and "Ann: accept" in ann.get(f"/clip/{first}").text
    ann.post("/leave", json={"clip_id": first})
    assert own.next(ann) != first
    assert own.decide(bob, first, "reject")["verdict"] == "conflict"
    for who in (ann, bob):
        own.decide(who, second, "accept")
    start = int(third.split("_")[1])
    own.decide(ann, third, "accept", mended={"caption": "Long."})
    assert own.decide(bob, third, "accept", mended={"start_frame": start + 20, "caption": "Late."})["verdict"] == "kept"
    people = own.candidates.people()
    assert people["conflicts"] == [first] and people["agreed"] == pytest.approx(2 / 3) and people["twice"] == 3
    page = ann.get("/people").text
    assert f"/clip/{first}?verdict=conflict" in page and "66.7%" in page
    assert "They disagree" in cy.get(f"/clip/{first}").text
    assert own.decide(cy, first, "accept")["verdict"] == "kept"
    assert cy.post("/undo", json={"judgement": own.name()}).json() == {"clip_id": first, "action": "accept"}
    assert own.ids(verdict="conflict") == [first]


@pytest.mark.parametrize("judgements", [1, 2])
def test_a_draft_begins_with_what_was_accepted_where_it_may_be_seen(served: Serve, judgements: int) -> None:
    own = served(judgements=judgements)
    ann, bob, cy = own.person("Ann"), own.person("Bob"), own.person("Cy")
    clip_id = own.ids()[0]
    start = int(clip_id.split("_")[1])
    own.decide(ann, clip_id, "accept", mended={"start_frame": start + 20, "caption": "Ann's lamp."})

    def draft(person: TestClient) -> tuple[str, int]:
        page = person.get(f"/clip/{clip_id}").text
        person.post("/leave", json={"clip_id": clip_id})
        film = re.search(r"data-film='([^']+)'", page)
        caption = re.search(r"<textarea[^>]*>(.*?)</textarea>", page)
        assert film is not None and caption is not None
        return caption[1], json.loads(film[1])["from"] - start

    hers = ("Ann&#39;s lamp.", 20)
    assert draft(ann) == hers
    assert (draft(bob) == hers) == (judgements == 1), "who judges for themselves does not see it"
    own.decide(bob, clip_id, "reject")
    assert draft(cy) == hers, "who settles a conflict begins with what was accepted, were it rejected later"


def test_a_concept_grows_from_what_was_accepted_and_stops_at_its_quota(served: Serve) -> None:
    own = served(quota=2)
    ann = own.person("Ann")
    concepts = {row["concept"]: row for row in own.candidates.concepts()}
    assert {row["waiting"] for row in concepts.values()} == {4} and all(row["quota"] == 2 for row in concepts.values())
    name = sorted(concepts)[0]
    grown = ann.post("/grow", json={"concept": name})
    assert grown.status_code == 409 and "no accepted clip yet" in grown.json()["error"]
    mine = own.ids(concept=name, sort="-similarity")
    own.decide(ann, mine[0], "accept", concept=name)
    assert ann.post("/grow", json={"concept": name}).json() == {"added": 8}, "all others, the nearest first"
    queue = own.ids(concept=name, sort="-similarity")
    assert set(queue[:4]) == set(mine) or len(queue) == 12
    assert own.candidates.taken(name, 9) == [mine[0]]
    own.decide(ann, mine[1], "accept", concept=name)
    assert own.next(ann, f"concept={name.replace(' ', '+')}") is None, "it is full"
    assert "has its 2 clips" in ann.post("/grow", json={"concept": name}).json()["error"]
    left = set()
    while (clip_id := own.next(ann)) is not None:
        left.add(clip_id)
        own.decide(ann, clip_id, "skip")
    assert len(left) == 8 and not left & set(mine), "what is of a full concept is in no queue"
    found = f"like={mine[0]}"
    bob, passed = own.person("Bob"), set()
    while (clip_id := own.next(bob, found)) is not None:
        passed.add(clip_id)
        own.decide(bob, clip_id, "skip")
    assert len(passed) == 8 and not passed & set(mine), "nor in that of a search"
    assert "choose another concept" in own.decide(ann, mine[2], "accept", 409)["error"]
    assert own.store.verdict(mine[2]).reason == review.NOT_REVIEWED, "a refused decision leaves nothing behind"
    page = ann.get(f"/clip/{mine[2]}").text
    offered = re.findall(r'<option value="(concept [^"]+)"( selected)?>([^<]+)</option>', page)
    other = sorted(concepts)[1]
    assert [(value, bool(chosen)) for value, chosen, _ in offered] == [(c, c == name) for c in sorted(concepts)]
    assert offered[0][2] == f"{name} (full)" and f"{name} (full)" not in ann.get(f"/clip/{mine[2]}?concept={other}").text
    own.decide(ann, mine[2], "accept", concept=other)
    assert own.candidates.taken(other, 9) == [mine[2]]
    assert f'<option value="{other}" selected>' in ann.get(f"/clip/{mine[2]}").text, "mended, it stays there"
    assert "full" in ann.get("/concepts").text
    own.close()
    again = served(quota=3)
    assert {r["concept"]: r["accepted"] for r in again.candidates.concepts()}[name] == 2
    assert len(again.ids(concept=name, sort="-similarity")) == 12, "what it grew by is kept"


def test_concepts_of_ones_own(served: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "concepts.yaml"
    file.write_text(
        "- {name: lamps, quota: 3, seeds: ['0000000000000000_0000000_0000300']}\n- {name: rain, quota: 1, text: rain}\n"
    )
    own = served(wanted=targets(file))
    ann = own.person("Ann")
    assert ann.post("/grow", json={"concept": "lamps"}).json()["added"] == 11
    asked: list[Any] = []
    monkeypatch.setattr(candidates_module, "search", lambda run, text, like, count, among: asked.append((text, like)) or [])
    ann.post("/grow", json={"concept": "rain"})
    assert asked == [("rain", [])]
    assert "open_clip" in ann.get("/list?about=rain").text or asked[1:], "a search by text goes to the model that reads"
    for text, why in [
        ("- {name: a}", "quota"),
        ("- {name: a, quota: 1}\n- {name: a, quota: 2}", "one name"),
        (": :", "concepts"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=why):
            targets(file)


def test_what_was_decided_is_there_after_a_new_start(served: Serve) -> None:
    own = served()
    ann = own.person("Ann")
    for clip_id, action in zip(own.ids(), ("accept", "reject", "skip"), strict=False):
        own.decide(ann, clip_id, action)
    before = [(row["clip_id"], row["verdict"], row["judges"]) for row in own.candidates.page(Wish(None), 100)]
    own.close()
    again = served()
    assert [(row["clip_id"], row["verdict"], row["judges"]) for row in again.candidates.page(Wish(None), 100)] == before


# -- what comes of it


def reasons(run: Path) -> dict[str, str]:
    rows = storage.read_table(str(run / "selection/picked")).to_pylist()
    assert len({row["clip_id"] for row in rows}) == len(rows) == 24
    return {row["clip_id"]: row["reason"] for row in rows if not row["clip_id"].endswith("x")}


def again(run: Path, *parts: str) -> None:
    assert pipeline.again(str(run), None, [], None, parts) == 0


def samples(run: Path) -> dict[str, tuple[list[int], Any, dict[str, Any], str]]:
    """key -> numbers of the frames, rate, story and text of each sample in the shards."""
    found = {}
    for place in sorted((run / "shards/picked").rglob("*.parquet")):
        index = read_index(place).to_pylist()
        with place.with_suffix(".tar").open("rb") as tar:
            members = {row["member"]: read_member(tar, row) for row in index}
        for key in {row["key"] for row in index}:
            with av.open(io.BytesIO(members[f"{key}.mp4"])) as sample:
                rate = sample.streams.video[0].average_rate
                numbers = [number_of(frame.to_ndarray(format="gray")) for frame in sample.decode(video=0)]
            found[key] = (numbers, rate, json.loads(members[f"{key}.json"]), members[f"{key}.txt"].decode())
    return found


def test_shards_have_the_spans_and_captions_that_people_gave(served: Serve) -> None:
    own = served()
    ann = own.person("Ann")
    one, two, three, four = own.ids()[:4]
    start = int(one.split("_")[1])
    told = {"start_frame": start + 30, "end_frame": start + 298, "caption": " A  lamp\nswings. ", "camera": "tilt_up"}
    told |= {"shots": ["low_angle", "close_up"], "subjects": ["lamp"], "lighting": "warm"}
    own.decide(ann, one, "accept", mended=told)
    own.decide(ann, two, "accept", mended={"camera": None})
    own.decide(ann, three, "reject")
    again(own.run, "select")  # the store is exported on the way
    found = reasons(own.run)
    assert (found[one], found[two], found[three], found[four]) == (
        "kept",
        "kept",
        "unselected:rejected",
        "unselected:not_reviewed",
    )
    again(own.run, "produce")
    made = samples(own.run)
    assert set(made) == {one, two}
    numbers, rate, story, text = made[one]
    assert rate == 24 and len(numbers) == 256
    assert numbers == sorted(set(numbers)) and start + 30 <= numbers[0] and numbers[-1] < start + 298
    assert numbers[0] - (start + 30) <= 1 and (start + 298) - numbers[-1] <= 2, "10.72 s of which the sample shows 10.67"
    assert text == "FPS-24 Tilt up, low angle, close up. A lamp swings."
    assert story["review"]["who"] == "Ann" and story["review"]["start_frame"] == start + 30
    assert story["caption"]["lighting"] == "warm" and story["clip"]["clip_id"] == one
    assert story["sample"]["first_frame"] == numbers[0] and story["sample"]["last_frame"] == numbers[-1]
    assert made[two][3] == "FPS-24 A lamp swings."
    whole = made[two][0]
    first = int(two.split("_")[1])
    assert abs((whole[0] - first) - (first + CLIP_FRAMES - 1 - whole[-1])) <= 1, "the centre of what was not trimmed"
    shown = CliRunner().invoke(command, ["inspect", str(own.run), "--replay", one])
    assert shown.exit_code == 0, shown.output


def test_a_clips_story_has_what_people_said(served: Serve) -> None:
    own = served(judgements=2)
    ann, bob, cy = own.person("Ann"), own.person("Bob"), own.person("Cy")
    clip_id, other = own.ids()[:2]
    start = int(clip_id.split("_")[1])
    own.decide(ann, clip_id, "reject", reason="cluttered")
    ann.post("/undo", json={"judgement": own.name()})
    told = {"start_frame": start + 20, "caption": HOSTILE, "camera": "tilt_up", "shots": ["low_angle"]}
    own.decide(ann, clip_id, "accept", mended=told)
    own.decide(bob, clip_id, "reject")
    export(str(own.run), own.store)
    page = shown(story(str(own.run), clip_id))
    assert "Reviews for picked: conflict" in page
    assert row_of(page, "cluttered").split()[0] == "Ann" and "reject, undone" in row_of(page, "cluttered")
    mended = row_of(page, "Ann", f"frames {start + 20} to {start + CLIP_FRAMES}")
    assert f"{own.store.history()[2]['at']:%Y-%m-%d %H:%M:%S} UTC" in mended and "accept " in mended
    assert "tilt_up, low_angle" in page and "document.title" in page
    assert "shaky" in row_of(page, "Bob")
    own.decide(cy, clip_id, "accept")
    export(str(own.run), own.store)
    page = shown(story(str(own.run), f"{clip_id}-{own.store.history()[-1]['judgement']}-256"))
    assert "Reviews for picked: kept" in page and "accept, settles it" in row_of(page, "Cy")
    assert "Reviews" not in shown(story(str(own.run), other))


def test_later_reviews_are_added_and_taken_back_ones_are_refused(served: Serve) -> None:
    own = served()
    ann = own.person("Ann")
    ids = own.ids()
    own.decide(ann, ids[0], "accept")
    again(own.run, "select")
    assert reasons(own.run)[ids[0]] == "kept"
    ann.post("/undo", json={"judgement": own.name()})
    again(own.run, "select")
    assert set(reasons(own.run).values()) == {"unselected:not_reviewed"}, "nothing was written yet: it is decided anew"
    own.decide(ann, ids[0], "accept")
    again(own.run, "select", "produce")
    tars = {p: p.read_bytes() for p in (own.run / "shards").rglob("*.tar")}
    own.decide(ann, ids[1], "accept")
    again(own.run, "select", "produce")
    assert {p: p.read_bytes() for p in tars} == tars and len(samples(own.run)) == 2
    own.decide(ann, ids[1], "accept", mended={"caption": "Another lamp."})
    with pytest.raises(ConfigError, match=rf"1 clips .* mended otherwise since: {ids[1]}"):
        again(own.run, "select")
    for name in ("shards", "produced"):
        storage.remove(str(own.run / name / "picked"))
    again(own.run, "select", "produce")
    assert samples(own.run)[ids[1]][3].endswith("Another lamp.")


def test_new_clips_join_the_candidates(planned: Path, served: Serve) -> None:
    own = served()
    ann = own.person("Ann")
    ids = own.ids()
    own.decide(ann, ids[0], "accept")
    again(own.run, "select", "produce")
    before = reasons(own.run)
    for table in ("sources", "clips", "units", "series", "frames", "embeddings/layout"):
        rows = storage.read_table(str(own.run / table)).slice(0, 0)
        storage.write_table(str(own.run / table / "unit-000003.parquet"), rows)
    again(own.run, "select")
    assert reasons(own.run) == before


def test_an_image_is_picked_without_a_span(served: Serve) -> None:
    own = served()
    own.close()
    place, source_id = own.run.parent / "still.png", f"{9:016x}"
    Image.fromarray(film(9)(5)).save(place)
    shape = {"source_id": source_id, "path": place.name, "kind": "image", "status": "ok", "width": 352, "height": 200}
    clip = shape | {"clip_id": f"{source_id}_0000000_0000001", "start_frame": 0, "end_frame": 1, "start_s": 0.0, "end_s": 0.0}
    clip |= {"duration_s": 0.0, "frames": 1}
    frame = {"clip_id": clip["clip_id"], "source_id": source_id, "frame": 0, "jpeg": b"none"}
    vectors = pa.table([pa.array([clip["clip_id"]]), pa.array([[1.0] * 8], pa.list_(pa.float32(), 8))], ["clip_id", "vector"])
    source = shape | {"unit": "unit-000009", "rotation": 0, "pixel_aspect": 1.0}
    for name, table in {
        "sources": storage.rows_table([source], SOURCES),
        "clips": storage.rows_table([clip], CLIPS),
        "units": storage.rows_table([{"unit": "unit-000009", "path": place.name, "url": storage.escape(str(place))}], UNITS),
        "series": SERIES.empty_table(),
        "frames": storage.rows_table([frame], FRAMES),
        "embeddings/layout": vectors.cast(embedding.schema(8)),
    }.items():
        storage.write_table(str(own.run / name / "unit-000009.parquet"), table)
    again(own.run, "select")
    new = served()
    ann = new.person("Ann")
    assert "<video" not in ann.get(f"/clip/{clip['clip_id']}").text
    assert new.decide(ann, str(clip["clip_id"]), "accept", mended={"camera": "pan_left"})["verdict"] == "kept"
    again(new.run, "select", "produce")
    tar = next((new.run / "shards").rglob("*.tar")).read_bytes()
    assert b"_0000001.webp" in tar and b"\0A lamp swings.\0" in tar and new.store.history()[0]["end_frame"] is None


def test_the_verb_exports_and_says_what_is_in_conflict(served: Serve) -> None:
    own = served()
    runner = CliRunner()
    ann, bob = own.person("Ann"), own.person("Bob")
    first, second = own.ids()[:2]
    own.decide(ann, first, "accept")
    own.decide(bob, first, "reject")
    own.decide(bob, second, "reject")
    done = runner.invoke(command, ["review", str(own.run), "--subset", "picked", "--export"])
    assert done.exit_code == 0, done.output
    assert "3 decisions exported" in done.output and "1 rejected, 1 conflict" in done.output
    assert f"conflict: {first}" in done.output
    asked = runner.invoke(command, ["sql", str(own.run), "SELECT who, action, reason FROM review ORDER BY seq", "--csv"])
    assert asked.output.splitlines() == ["who,action,reason", "Ann,accept,", "Bob,reject,shaky", "Bob,reject,shaky"]
    again(own.run, "select")
    assert reasons(own.run)[first] == "unselected:conflict"


def test_what_cannot_be_reviewed_is_said(planned: Path, tmp_path: Path) -> None:
    def refused(run: Path, subset: str, match: str, **options: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            serve(str(run), subset, Options(**options), print)

    run = tmp_path / "run"
    shutil.copytree(planned, run)
    refused(run, "finetune", r"was decided with picked, not with 'finetune'")
    refused(run, "picked", "--allow-remote", host="0.0.0.0")
    storage.remove(str(run / "selection"))
    refused(run, "picked", "has no candidates")
    page = run_folder.read(str(run))
    page["config"]["subsets"][0]["review"] = None
    run_folder.write(str(run), page["config"], page["decides"])
    refused(run, "picked", "takes all that its rules leave")
    assert not (run / "review").exists()


@pytest.mark.parametrize(
    ("frames", "seconds", "fps"),
    [
        (400, 16.0, 16),  # 16 s: all of it at 16 fps
        (399, 15.96, 16),
        (398, 15.92, 24),
        (300, 12.0, 24),
        (267, 10.68, 24),
        (320, 10.66, 24),
        (264, 10.56, None),  # 25 fps: the last of 256 frames would stand behind its end
        (256, 10.677, 23.976),  # NTSC film: as good as 24
        (320, 16.0, 16),
        (300, 15.0, None),  # 20 fps give no 24, and are not long enough for 16
        (240, 16.0, None),
        (500, 20.0, 16),
    ],
)
def test_picked_spans_have_one_of_two_rates(frames: int, seconds: float, fps: float | None) -> None:
    found = fixed_fps(frames, seconds)
    assert (found is None) if fps is None else (found is not None and float(found) == pytest.approx(fps, abs=1e-3))
    clip = {"kind": "video", "frames": frames, "duration_s": seconds, "width": 352, "height": 200}
    choice = choose(clip, 256, fixed=True)
    assert (choice.bucket.name if choice.bucket else choice.misfit) == ("v256-16x9-f256" if fps else "too_few_frames")


def test_a_failed_export_is_said_and_made_good_by_the_next(served: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    own = served()
    own.decide(own.person("Ann"), own.ids()[0], "accept")
    failures: list[Exception] = [ReelsetError("the place is gone"), OSError("full")]
    done, said = threading.Event(), list[str]()

    def failing(run: str, store: Store) -> int:
        if failures:
            raise failures.pop(0)
        rows = export(run, store)
        done.set()
        return rows

    monkeypatch.setattr(serve_module, "export", failing)
    monkeypatch.setattr(serve_module, "EVERY", 1)
    monkeypatch.setattr(serve_module, "EVERY_S", 0.01)
    exporter = Exporter(str(own.run), own.store, said.append)
    exporter.decided()
    assert done.wait(10), said
    exporter.close()
    assert said == ["review: not exported: the place is gone", "review: not exported: full"]
    assert review.read(str(own.run), "picked") == own.store.history()


def test_times_stand_though_another_thread_empties_what_is_kept(served: Serve) -> None:
    class Emptied(dict[str, Any]):
        def __setitem__(self, key: str, value: Any) -> None:
            self.clear()

    own = served()
    clip = own.candidates.page(Wish(None), 1)[0]
    times = Desk(str(own.run), own.candidates, own.previews, 256, Emptied()).times(clip)
    assert len(times) == CLIP_FRAMES and times[0] == pytest.approx(clip["start_s"])


def test_export_survives_a_store_elsewhere(served: Serve, tmp_path: Path) -> None:
    """A run on an object store: the decisions are kept on this machine, the table goes there."""
    own = served()
    own.decide(own.person("Ann"), own.ids()[0], "accept")
    assert export("memory://review/run", own.store) == 1
    assert review.read("memory://review/run", "picked")[0]["who"] == "Ann"
    storage.remove("memory://review")
    assert replace(Options(), store="x").store == "x"
