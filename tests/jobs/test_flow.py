"""The flow model's verbs, as a user calls them: latents, training, samples, averages, files."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image

from jobs.demo_train import Drawn, psnr
from jobs.rewrite import RewriteConfig
from tests.jobs.test_rewrite import GOOD, said, server
from tests.jobs.test_training import MODEL, reelset
from tests.training_bridge.dit.runs import BACKBONE, FILM, IMAGE, LETTERS, settings
from tests.training_bridge.dit.test_text import tiny_t5
from tests.training_bridge.launched import ROOT
from tests.training_bridge.samples import make_shards
from training_bridge.checkpoint import newest_of, weights
from training_bridge.dit import finished, recipe
from training_bridge.index import Shape
from training_bridge.loop import STOPPED
from training_bridge.media import decode_video
from training_bridge.tae.encoder import TaeEncoder, export
from training_bridge.tae.model import Decoder, Encoder, ModelConfig
from training_bridge.watch import LOST

SMALL = ("--size", "16x32x64", "--steps", "2")


def autoencoder(path: Path, seed: int) -> Path:
    """An autoencoder that has learned nothing."""
    torch.manual_seed(seed)
    config = ModelConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in MODEL.items()})
    export(Encoder(config), Decoder(config), str(path))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's shards with latents, an autoencoder, another one, and a flow model of four steps."""
    folder = tmp_path_factory.mktemp("made")
    make_shards(folder / "run" / "shards" / "s" / "train", {FILM: 6, IMAGE: 8})
    make_shards(folder / "run" / "shards" / "s" / "validation", {FILM: 2})
    tae, _ = autoencoder(folder / "tae.pt", 0), autoencoder(folder / "other.pt", 1)
    done = reelset("encode", str(folder / "run"), "--tae", str(tae), "--engine", "inline")
    assert done.exit_code == 0, done.output
    done = train(folder / "flow", tree(folder))
    assert done.exit_code == 0, done.output
    return folder


def tree(folder: Path, **loop: Any) -> dict[str, Any]:
    own = settings(folder / "run" / "shards" / "s", steps=4, **loop)
    dit = {"backbone": {**BACKBONE, "channels": 4}, "text": [LETTERS], "tae": str(folder / "tae.pt"), "pictures": 2}
    dit["prompts"] = ["a boat", "a dog", "a tree"]
    return {**own, "dit": {**dit, "sampler": {"steps": 2}}}


def train(folder: Path, own: dict[str, Any], *more: str) -> Any:
    folder.mkdir(exist_ok=True)
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(own))
    return reelset("train", "-c", str(file), "-o", str(folder), *more)


def test_validation_shows_samples(made: Path) -> None:
    film = (made / "flow" / "pictures" / "samples-00000004.mp4").read_bytes()
    assert decode_video(film, Shape(16, 64, 128)).shape == (3, 16, 64, 128), "two samples below their clips"
    config = json.loads((made / "flow" / "config.json").read_text())
    assert config["dit"]["tae"].endswith("tae.pt") and config["data"]["train"]["clips"]["encoded"] == {}
    state = json.loads((newest_of(made / "flow") / "state.json").read_text())
    assert state["task"]["latents"] == TaeEncoder(str(made / "tae.pt"), "cpu").fingerprint


def test_validation_draws_the_prompts_that_were_named(made: Path, tmp_path: Path) -> None:
    """Two by two with one left empty, each what `sample` draws for it."""
    grid = decode_video((made / "flow" / "pictures" / "prompts-00000004.mp4").read_bytes(), Shape(16, 64, 128)).astype(float)
    assert grid[:, :, 36:, 68:].mean() < 20 < grid[:, :, :32, :64].mean(), "the fourth is black"
    words = ["a boat", "a dog", "a tree"]
    assert reelset("sample", *words, str(made / "flow"), "-o", str(tmp_path / "x.mp4"), *SMALL).exit_code == 0
    films = [decode_video((tmp_path / f"x-{n:04d}.mp4").read_bytes(), FILM).astype(float) for n in range(3)]
    cells = [grid[:, :, :32, :64], grid[:, :, :32, 64:], grid[:, :, 32:, :64]]
    apart = [[float(np.abs(film - cell).mean()) for cell in cells] for film in films]
    assert [row.index(min(row)) for row in apart] == [0, 1, 2] and max(apart[n][n] for n in range(3)) < 5, apart
    silent = tree(made)
    silent["dit"]["tae"] = None
    assert "prompts are drawn for an autoencoder to show" in str(train(tmp_path / "silent", silent).exception)


def test_a_sample_is_exact_and_the_same_from_run_and_file(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "flow.safetensors"
    done = reelset("export", str(made / "flow"), "-o", str(file))
    assert done.exit_code == 0 and "is made of step-00000004" in done.output, done.output
    assert reelset("sample", "a prompt", str(made / "flow"), "-o", str(tmp_path / "a.mp4"), *SMALL).exit_code == 0
    lines = tmp_path / "prompts.txt"
    lines.write_text("another prompt\n\na third\n")
    done = reelset("sample", "a prompt", str(file), "-o", str(tmp_path / "b.mp4"), "--prompts", str(lines), *SMALL)
    assert done.exit_code == 0 and "b-0000.mp4: FPS-16 a prompt" in done.output, done.output
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b-0000.mp4").read_bytes()
    films = {(tmp_path / f"b-{n:04d}.mp4").read_bytes() for n in range(3)}
    assert len(films) == 3
    assert reelset("sample", "a prompt", str(file), "-o", str(tmp_path / "c.mp4"), "--seed", "1", *SMALL).exit_code == 0
    assert (tmp_path / "c.mp4").read_bytes() not in films
    one = reelset("sample", "x", str(file), "-o", str(tmp_path / "d.png"), "--size", "1x32x64", "--steps", "2")
    assert one.exit_code == 0
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.size == (64, 32)


def test_prompts_are_rewritten_before_they_are_drawn(made: Path, tmp_path: Path) -> None:
    """Over HTTP: the caption that came back is what is drawn; a server that is gone or loses quoted words draws nothing."""
    flow, sign = str(made / "flow"), 'a sign that says "FISH"'
    caption = f'{GOOD} A sign says "FISH".'

    def rewritten(prompt: str, config: RewriteConfig) -> Any:
        (tmp_path / "server.yaml").write_text(yaml.safe_dump(config.model_dump()))
        out = str(tmp_path / "x.mp4")
        return reelset("sample", prompt, flow, "-o", out, "--rewrite", str(tmp_path / "server.yaml"), *SMALL)

    with server(lambda body: said(caption)) as (config, asked):
        done = rewritten(sign, config)
    assert done.exit_code == 0 and f"x.mp4: FPS-16 {caption}" in done.output, done.output
    assert [body["messages"][1]["content"] for body in asked] == [sign]
    drawn = (tmp_path / "x.mp4").read_bytes()
    assert reelset("sample", caption, flow, "-o", str(tmp_path / "y.mp4"), *SMALL).exit_code == 0
    assert (tmp_path / "y.mp4").read_bytes() == drawn
    (tmp_path / "x.mp4").unlink()
    assert f"no answer from {config.url}" in str(rewritten(sign, config).exception)
    with server(lambda body: said(GOOD)) as (config, asked):
        lost = str(rewritten(sign, config).exception)
    assert "prompts that could not be rewritten: " in lost and "the words 'FISH' that shall be in the picture are lost" in lost
    assert len(asked) == 2 and not (tmp_path / "x.mp4").exists()
    (tmp_path / "server.yaml").write_text("url: 3")
    done = reelset("sample", sign, flow, "-o", str(tmp_path / "x.mp4"), "--rewrite", str(tmp_path / "server.yaml"), *SMALL)
    assert "--rewrite" in str(done.exception) and "model\n  Field required" in str(done.exception)


def test_the_average_of_models(made: Path, tmp_path: Path) -> None:
    last = newest_of(made / "flow")
    output = tmp_path / "mean.safetensors"
    assert reelset("average", str(last), str(made / "flow"), "-o", str(output)).exit_code == 0
    own = weights(last)
    assert all(torch.equal(value, own[name]) for name, value in finished.read(output).weights.items())
    nothing = replace(finished.read(output), weights={name: 0 * value for name, value in own.items()})
    finished.write(tmp_path / "zero.safetensors", nothing)
    both = [str(output), str(tmp_path / "zero.safetensors")]
    assert reelset("average", *both, "-o", str(tmp_path / "half.safetensors"), "--weight", "3", "--weight", "1").exit_code == 0
    half = finished.read(tmp_path / "half.safetensors").weights
    torch.testing.assert_close(half["backbone.entry.patches.weight"], 0.75 * own["backbone.entry.patches.weight"])


def test_what_does_not_go_together_is_said(made: Path, tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        done = reelset(*arguments)
        assert done.exit_code != 0 and done.exception is not None, done.output
        return str(done.exception)

    flow, out = str(made / "flow"), str(tmp_path / "x.mp4")
    said = refused("sample", "x", flow, "-o", out, "--tae", str(made / "other.pt"), *SMALL)
    assert "and the model makes latents of" in said
    assert "position tables have (2, 4, 4) rows" in refused("sample", "x", flow, "-o", out, "--size", "32x32x64")
    assert "sides that are multiples of 16" in refused("sample", "x", flow, "-o", out, "--size", "16x40x64")
    assert "write it as frames x height x width" in refused("sample", "x", flow, "-o", out, "--size", "big")
    assert "has no finished checkpoint" in refused("sample", "x", str(tmp_path), "-o", out, *SMALL)
    assert "is no flow model" in refused("sample", "x", str(made / "tae.pt"), "-o", out, *SMALL)
    assert "takes a prompt before the model" in refused("sample", flow, "-o", out)
    assert "is of another model than" in refused("average", flow, str(other_model(made, tmp_path)), "-o", out)
    assert "encode takes --tae, --text or both" in refused("encode", str(made / "run"))
    other = tree(made)
    other["dit"]["tae"] = str(made / "other.pt")
    assert "has no latent of encoder" in str(train(tmp_path / "latents", other).exception)
    assert "--layout 'x': only auto" in str(train(tmp_path / "auto", tree(made), "--layout", "x").exception)
    ranks = train(tmp_path / "ranks", tree(made, layout={"shard": 1, "tensor": 2}))
    assert "= 2 ranks, and there are 1" in str(ranks.exception)


def other_model(made: Path, folder: Path) -> Path:
    model = finished.read(made / "flow")
    path = folder / "other.safetensors"
    finished.write(path, replace(model, fingerprint={**model.fingerprint, "latents": "other"}))
    return path


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_frozen_encoders_texts_are_encoded_trained_on_and_asked_for(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curation import open_clip_model
    from training_bridge.dit import text

    open_clip_model.import_package("text")
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    ul2 = {"name": "ul2", "kind": "t5", "path": tiny_t5(tmp_path / "t5"), "width": 32, "limit": 20, "dtype": "float32"}
    own = tree(made, validate_every=99)
    own["dit"] |= {"text": [ul2, LETTERS], "pictures": 0}
    for part, split in (("train", "train"), ("held_out", "validation")):
        own["data"][part]["clips"]["path"] = str(run / "shards" / "s" / split)
    assert "has ul2 encodings of no encoder" in str(train(tmp_path / "flow", own).exception)
    loads = []
    monkeypatch.setattr(text, "load", lambda *of, load=text.load: loads.append(of) or load(*of))
    done = reelset("encode", str(run), "--text", str(tmp_path / "flow" / "settings.yaml"), "--engine", "inline")
    assert done.exit_code == 0 and "; ul2: " in done.output, done.output
    assert len(loads) == 1, "once, for its fingerprint and to encode"
    assert train(tmp_path / "flow", own).exit_code == 0
    assert (tmp_path / "flow" / "pictures" / "prompts-00000004.mp4").exists()
    out = str(tmp_path / "x.mp4")
    assert reelset("sample", "a prompt", str(tmp_path / "flow"), "-o", out, *SMALL).exit_code == 0
    tiny_t5(tmp_path / "t5", seed=1)
    said = str(reelset("sample", "a prompt", str(tmp_path / "flow"), "-o", out, *SMALL).exception)
    assert "is of another model: text: " in said
    said = str(train(tmp_path / "flow", {**own, "loop": {**own["loop"], "steps": 5}}).exception)
    assert "dit.prompts: " in said and "trained on is" in said


def test_auto_prints_why_and_writes_it_down(made: Path, tmp_path: Path) -> None:
    done = train(tmp_path, tree(made), "--layout", "auto", "--ranks", "2", "--prepare", "--profile")
    assert done.exit_code == 0 and "layout" in done.output and "4 samples of 16 tokens a step" in done.output, done.output
    own = json.loads((tmp_path / "config.json").read_text())
    assert own["loop"]["profile"] and own["loop"]["layout"]["shard"] * own["loop"]["layout"]["replicate"] >= 1
    assert "training_bridge.dit" in done.output


def test_the_shipped_recipe_is_sound() -> None:
    from jobs.config import tree as read

    own = recipe.checked(read(Path(str(files("jobs") / "configs" / "movie_gen.yaml")), []))
    assert isinstance(own, recipe.Recipe)
    assert own.stages[0].name == "t2i-256" and own.stages[0].loop.steps == 210_000
    assert own.stages[-1].dit.architecture.lengths == (32, 96, 96)
    assert own.stages[1].data.global_tokens == 1536 * 8192 and own.run(3, Path("r")).loop.init is not None
    assert all(stage.data.train["clips"].path.startswith("/data/curated") for stage in own.stages)


def test_psnr_and_what_is_good_enough() -> None:
    film = np.full((2, 4, 4, 3), 100, np.uint8)
    assert psnr(film, film) == 100 and psnr(film, film + 10) == pytest.approx(28.13, abs=0.01)
    assert Drawn("a", 25.0, "a").ok and not Drawn("a", 24.9, "a").ok and not Drawn("a", 40.0, "b").ok


@pytest.mark.slow
def test_ranks_of_this_machine_end_with_their_own_code(made: Path, tmp_path: Path) -> None:
    """Refused: 2, and no settings are left. One killed: the others stop and say so, 76. SIGTERM: one more checkpoint, 75."""
    own = tree(made, checkpoint_every=2, validate_every=10**6) | {"dit": {**tree(made)["dit"], "prompts": [], "pictures": 0}}
    own["loop"]["steps"] = 10**6
    refused, run, file = tmp_path / "refused", tmp_path / "run", tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(own))

    def started(folder: Path, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from jobs.cli import main; main()", "train", "-c", str(file), "-o", str(folder)]
        pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(
            [*command, "--ranks", "2", *more], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipe
        )

    def steps_done(count: int) -> list[psutil.Process]:
        """The ranks, once they have written so many checkpoints."""
        deadline = time.monotonic() + 100
        while len(list((run / "checkpoints").glob("step-*"))) < count:
            assert going.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        return psutil.Process(going.pid).children()

    said, _ = (going := started(refused, "--set", "loop.layout={tensor: 8}")).communicate(timeout=100)
    assert going.returncode == 2 and "= 8 ranks, and there are 2" in said and "Traceback" not in said, said
    assert not (refused / "config.json").exists()
    going = started(run, "--set", "loop.keep=1000000")
    steps_done(1)[1].kill()
    began = time.monotonic()
    said, _ = going.communicate(timeout=100)
    assert going.returncode == LOST and time.monotonic() - began < 60, said
    assert "rank 0: another rank is gone, so this one stops" in said
    before = len(list((run / "checkpoints").glob("step-*")))
    going = started(run, "--set", "loop.keep=1000000")
    steps_done(before + 1)
    going.terminate()
    said, _ = going.communicate(timeout=100)
    assert going.returncode == STOPPED, said
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert json.loads((newest_of(run) / "state.json").read_text())["step"] == last + 1


@pytest.mark.slow
def test_parity_is_a_verb(capfd: pytest.CaptureFixture[str]) -> None:
    assert reelset("train-parity", "--ranks", "2", "--steps", "1", "--above", "0").exit_code == 0
    said, warned = capfd.readouterr()
    lines = said.splitlines()
    assert lines[0].startswith("2 ranks on cpu, 1 steps in float32") and lines[-1] == "4 runs at other layouts, 0 beyond 1e-05"
    assert sum(line.endswith("  text.linear.frozen.weight") for line in lines) >= 4 and "redistribut" not in warned
