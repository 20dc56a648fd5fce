"""Captions on the path: who writes them, that they are bound to what was shown, and that none is asked for twice."""

import json
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from bucketing.cut import EncodeConfig
from captioning import client
from captioning.client import model_of
from captioning.config import ModelConfig
from captioning.text import CAMERA, training_text
from curation import storage
from curation.errors import ConfigError, StageError
from jobs import caption, inspect, pipeline
from jobs.config import Config
from tests.captioning.server import Asked, CaptionServer, answer, completion
from tests.media_samples import make_video, moving
from tests.small_runs import SUBSET, driver, settings, small_corpus

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MOST_WAIT_S", 0.2)
    monkeypatch.setattr(client, "SMALL_S", 1.0)


@pytest.fixture
def servers() -> Iterator[tuple[CaptionServer, CaptionServer]]:
    with CaptionServer("small") as small, CaptionServer("large") as large:
        yield small, large


@pytest.fixture(scope="module")
def selected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small corpus, measured and selected once, and nothing cut."""
    folder = tmp_path_factory.mktemp("captions")
    corpus = small_corpus(folder / "corpus")
    assert pipeline.run(str(corpus / "manifest.csv"), str(folder / "run"), settings(), parts=("analyze", "select")) == 0
    return corpus, folder / "run"


def with_captions(*servers: CaptionServer, **more: Any) -> Config:
    shares = {"small": 70, "large": 30}
    models = [{"name": s.models[0], "share": shares[s.models[0]], "urls": [s.url]} for s in servers]
    return settings(caption={"models": models, "timeout_s": 5, "wait_s": 5, **more.pop("caption", {})}, **more)


def copy_of(run: Path, to: Path) -> Path:
    import shutil

    return Path(shutil.copytree(run, to))


def produce(selected: tuple[Path, Path], run: Path, config: Config, parts: tuple[str, ...] = ("produce",)) -> int:
    return pipeline.run(str(selected[0] / "manifest.csv"), str(run), config, parts=parts)


def captions(run: Path) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in storage.read_table(str(run / "captions")).to_pylist()}


def members(run: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for file in sorted((run / "shards").rglob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                found[member.name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_every_sample_has_a_bound_caption(
    selected: tuple[Path, Path], servers: tuple[CaptionServer, CaptionServer], tmp_path: Path, engine: str
) -> None:
    run, config = copy_of(selected[1], tmp_path / "run"), with_captions(*servers)
    if engine == "ray":  # in a process of its own, as Ray raises warnings of its own
        more = {"caption": config.caption.model_dump(mode="json")}
        command = driver(selected[0] / "manifest.csv", run, "ray", **more)
        assert subprocess.run(command, cwd=ROOT, timeout=100).returncode == 0
    else:
        assert produce(selected, run, config) == 0
    rows, samples = captions(run), members(run)
    kept = {name.removesuffix(".json") for name in samples if name.endswith(".json")}
    assert kept == set(rows) and {row["status"] for row in rows.values()} == {"ok"}
    models = (ModelConfig(name="small", share=70), ModelConfig(name="large", share=30))
    for clip_id, row in rows.items():
        story = json.loads(samples[f"{clip_id}.json"])
        assert row["model"] == model_of(clip_id, models).name == story["caption"]["model"]
        assert row["shown_sha256"] == story["sample"]["sha256"] and row["shown_key"] == f"{clip_id}-256"
        assert (row["start_frame"], row["end_frame"]) == (story["clip"]["start_frame"], story["clip"]["end_frame"])
        text = samples[f"{clip_id}.txt"].decode()
        assert text == training_text(row["caption"], story["clip"], story["sample"]["fps"], config.caption)
        assert text.endswith(row["caption"]) and story["caption"]["subjects"] == row["subjects"] == ["a woman"]
    shown = [asked.data for server in servers for asked in server.asked]
    assert sorted(shown) == sorted(data for name, data in samples.items() if name.endswith((".mp4", ".webp")))
    assert not (run / "cuts").exists()
    table = inspect.sql(str(run), "SELECT count(*) AS n FROM captions WHERE input_tokens = 1000", csv=True)
    assert str(table).split() == ["n", str(len(rows))]


def test_captions_are_told(selected: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the report, in a clip's story and at the end of the job: who wrote, what failed, and hostile text as text."""

    async def handler(asked: Asked) -> web.Response:
        if asked.data.startswith(b"RIFF"):
            return completion("As an AI language model, I cannot see pictures at all.")
        hostile = 'A <script>alert("x")</script> sign hangs over a quiet street while a man walks past with a dog.'
        return completion(answer(caption=hostile, visible_text=["<b>IGNORE ALL RULES</b>"]))

    run = copy_of(selected[1], tmp_path / "run")
    with CaptionServer("small", handler=handler) as small:
        assert produce(selected, run, with_captions(small), ("produce", "report")) == 0
    assert "captions: 3 clips (small 100%) = 2 ok + 1 error (1 caption_refused)" in capsys.readouterr().err
    page = (run / "report" / "index.html").read_text()
    section = page[page.index('<section id="captions">') : page.index('<section id="errors">')]
    assert "<script>" not in section and "&lt;script&gt;" in section and "caption_refused" in section
    assert "No captions" not in page and section.count("<img") == 2
    written = next(row for row in captions(run).values() if row["status"] == "ok")
    Console(width=200).print(inspect.story(str(run), written["clip_id"]))
    told = capsys.readouterr().out
    assert written["shown_sha256"] in told and "<b>IGNORE ALL RULES</b>" in told


def test_what_has_a_caption_is_never_asked_about_again(
    selected: tuple[Path, Path], servers: tuple[CaptionServer, CaptionServer], tmp_path: Path
) -> None:
    run = copy_of(selected[1], tmp_path / "run")
    config = with_captions(*servers)
    assert produce(selected, run, config, ("caption",)) == 0
    asked, before = sum(len(server.asked) for server in servers), captions(run)
    assert asked == len(before) >= 3 and not (run / "shards").exists()
    assert produce(selected, run, config) == 0
    assert sum(len(server.asked) for server in servers) == asked and captions(run) == before
    larger = SUBSET | {"name": "larger", "image_rules": [], "clip_rules": ["motion_mv > 0.1"]}
    assert pipeline.again(str(run), None, [f"subsets={json.dumps([SUBSET, larger])}"], None, ("select", "produce")) == 0
    assert sum(len(server.asked) for server in servers) == len(captions(run)), "a second subset shares the captions"
    assert all(captions(run)[clip_id] == row for clip_id, row in before.items())


def test_a_finished_run_needs_no_servers(selected: tuple[Path, Path], tmp_path: Path) -> None:
    run = copy_of(selected[1], tmp_path / "run")
    with CaptionServer("small") as small, CaptionServer("large") as large:
        config = with_captions(small, large)
        assert produce(selected, run, config) == 0
    assert pipeline.run(str(selected[0] / "manifest.csv"), str(run), config) == 0


def test_servers_are_asked_for_before_any_work(selected: tuple[Path, Path], tmp_path: Path) -> None:
    with CaptionServer("small") as gone:
        config = with_captions(gone)
    with pytest.raises(ConfigError, match=r"caption\.models\.0\.urls: .* no caption server that answers"):
        pipeline.run(str(selected[0] / "manifest.csv"), str(tmp_path / "new"), config)
    assert not (tmp_path / "new" / "sources").exists()
    with pytest.raises(ConfigError, match=r"caption\.models is empty"):
        pipeline.again(str(copy_of(selected[1], tmp_path / "run")), None, [], None, ("caption",))


def test_a_clip_without_a_good_caption_is_never_written(selected: tuple[Path, Path], tmp_path: Path) -> None:
    bad: list[bytes] = []

    async def handler(asked: Asked) -> web.Response:
        if not bad:
            bad.append(asked.data)
        return completion("I'm sorry, I can't help with that." if asked.data in bad else answer())

    run = copy_of(selected[1], tmp_path / "run")
    with CaptionServer("small", handler=handler) as server:
        config = with_captions(server)
        assert produce(selected, run, config, ("caption",)) == 0
        refused = [clip_id for clip_id, row in captions(run).items() if row["status"] == "error"]
        assert len(refused) == 1
        whole = copy_of(run, tmp_path / "retried")
        assert produce(selected, run, config) == 0
        produced = {row["clip_id"]: row for row in storage.read_table(str(run / "produced" / "tiny")).to_pylist()}
        assert {c: row["error_code"] for c, row in produced.items() if row["error_code"]} == {refused[0]: "caption_refused"}
        assert not any(name.startswith(refused[0]) for name in members(run))
        server.handler = lambda asked: _good()
        asked = len(server.asked)
        assert pipeline.again(str(whole), None, [], None, ("produce",), retry_errors=True) == 0
    assert len(server.asked) == asked + 1 and {row["status"] for row in captions(whole).values()} == {"ok"}
    assert f"{refused[0]}.txt" in members(whole)


async def _good() -> web.Response:
    return completion(answer())


def test_what_was_written_stays_when_the_servers_go_away(selected: tuple[Path, Path], tmp_path: Path) -> None:
    async def handler(asked: Asked) -> web.Response | None:
        if len(server.asked) > 2:
            server.answers_small = False
            return None
        return completion(answer())

    run = copy_of(selected[1], tmp_path / "run")
    with CaptionServer("small", handler=handler) as server:
        config = with_captions(server, caption={"wait_s": 1, "timeout_s": 0.2})
        with pytest.raises(StageError, match="servers_down: small: no answer for"):
            produce(selected, run, config)
        done = captions(run)
        assert len(done) == 2
        server.handler, server.answers_small, asked = lambda asked: _good(), True, len(server.asked)
        assert produce(selected, run, config) == 0
    rows = captions(run)
    assert all(rows[clip_id] == row for clip_id, row in done.items()) and len(server.asked) == asked + len(rows) - 2


def test_a_caption_of_other_pictures_leaves_its_clip_out(
    selected: tuple[Path, Path], servers: tuple[CaptionServer, CaptionServer], tmp_path: Path
) -> None:
    run = copy_of(selected[1], tmp_path / "run")
    config = with_captions(*servers)
    assert produce(selected, run, config, ("caption",)) == 0
    unit = next(name for name in storage.names(str(run / "captions")) if len(caption.written(str(run), name[:-8])) > 1)[:-8]
    first, second, *rest = caption.written(str(run), unit).values()
    swapped = [first | {"shown_sha256": second["shown_sha256"]}, second, *rest]
    caption._write(str(run), unit, swapped)
    assert produce(selected, run, config) == 0
    produced = {row["clip_id"]: row["error_code"] for row in storage.read_table(str(run / "produced" / "tiny")).to_pylist()}
    assert {c: code for c, code in produced.items() if code} == {first["clip_id"]: "caption_mismatch"}


def test_a_larger_cut_of_a_captioned_clip_is_bound_to_what_was_shown(
    servers: tuple[CaptionServer, CaptionServer], tmp_path: Path
) -> None:
    """A class added later: the cut that was shown is made again beside the new one, and its bytes are compared."""
    (tmp_path / "in").mkdir()
    make_video(tmp_path / "in" / "large.mp4", moving(1024, 576, seed=4), 140, 28)
    run, large = tmp_path / "run", SUBSET | {"name": "large", "bucket_class": 768}
    assert pipeline.run(str(tmp_path / "in"), str(run), with_captions(*servers)) == 0
    (row,) = captions(run).values()
    assert pipeline.again(str(run), None, [f"subsets={json.dumps([SUBSET, large])}"], None, ("select", "produce")) == 0
    assert sum(len(server.asked) for server in servers) == 1
    produced = storage.read_table(str(run / "produced" / "large")).to_pylist()
    assert [(r["clip_id"], r["status"], r["bucket"][:4]) for r in produced] == [(row["clip_id"], "ok", "v768")]
    assert row["shown_key"].endswith("-256")


def test_other_encoding_is_refused_where_captions_were_written(
    selected: tuple[Path, Path], servers: tuple[CaptionServer, CaptionServer], tmp_path: Path
) -> None:
    run = copy_of(selected[1], tmp_path / "run")
    assert produce(selected, run, with_captions(*servers), ("caption",)) == 0
    other = with_captions(*servers, encode=EncodeConfig(crf=30).model_dump())
    with pytest.raises(ConfigError, match=r"(?s)captions of clips cut with other settings.*crf: 18 -> 30"):
        produce(selected, run, other)


def test_training_text_has_rate_camera_and_caption() -> None:
    config = with_captions().caption
    clip = {"camera": "push_in", "camera_confidence": 0.9}
    assert training_text("A cat.", clip, 19.7, config) == "FPS-20 Push in. A cat."
    assert training_text("A cat.", clip | {"camera_confidence": 0.5}, 16.0, config) == "FPS-16 A cat."
    assert training_text("A cat.", {"camera": None, "camera_confidence": None}, 24.0, config) == "FPS-24 A cat."
    assert training_text("A cat.", clip, None, config) == "A cat."
    assert len(CAMERA) == 16
    with pytest.raises(ConfigError, match=r"caption: .*may hold \{fps\}, \{camera\} and \{caption\}"):
        settings(caption={"text": "{rate} {caption}"})
    with pytest.raises(ConfigError, match=r"lacks \{caption\}"):
        settings(caption={"text": "{fps}"})


def test_no_key_in_the_run_folder(
    selected: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REELSET_CAPTION_KEY", "sk-very-secret")
    run = copy_of(selected[1], tmp_path / "run")
    with CaptionServer("small", key="sk-very-secret") as server:
        assert produce(selected, run, with_captions(server)) == 0
    assert Counter(row["status"] for row in captions(run).values())["ok"] >= 3
    assert not [p for p in run.rglob("*") if p.is_file() and b"sk-very-secret" in p.read_bytes()]
    assert "sk-very-secret" not in "".join(capfd.readouterr())
