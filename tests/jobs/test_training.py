"""The trainer's verbs, as a user calls them: shards, an autoencoder, latents beside the shards."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from tests.training_bridge.launched import launched
from tests.training_bridge.samples import STILL, WIDE, damage, make_shards
from training_bridge import index
from training_bridge.encoded import Encoded
from training_bridge.reader import LATENTS, Reader, Source
from training_bridge.tae.encoder import TaeEncoder

MODEL = {"width": 8, "multipliers": [1, 1, 1, 1], "encoder_blocks": [0, 0, 0, 0], "decoder_blocks": [0, 0, 0, 0]}
MODEL |= {"groups": 4, "skip": True, "latent_channels": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder's shards: six films and eight images to train on, two films held out."""
    folder = tmp_path_factory.mktemp("made") / "run"
    make_shards(folder / "shards" / "s" / "train", {WIDE: 6, STILL: 8})
    make_shards(folder / "shards" / "s" / "validation", {WIDE: 2})
    return folder


def settings(run: Path, view: dict[str, int] | None = None, **loop: Any) -> dict[str, Any]:
    """Pieces of 16 frames of 32 pixels, four to a step, one a micro-batch."""
    view = {"frames": 16, "height": 32, "width": 32, **(view or {})}
    sets = {split: {"clips": {"path": str(run / "shards" / "s" / split), "view": view}} for split in ("train", "validation")}
    data = {"train": sets["train"], "held_out": sets["validation"], "held_out_steps": 1, "images": 1, "videos": 3}
    data |= {"global_tokens": 32, "micro_tokens": 8, "workers": 0}
    steps = {"steps": 8, "lr": 1e-3, "warmup_steps": 2, "validate_every": 4, "checkpoint_every": 4, "precision": "fp32", **loop}
    losses = {"adversarial": 0.1, "adversarial_start": 2, "discriminator_width": 8}
    return {"loop": steps, "data": data, "tae": {"model": MODEL, "losses": losses, "activation_checkpointing": True}}


def reelset(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=True)


def train(folder: Path, tree: dict[str, Any], *more: str) -> Any:
    folder.mkdir(exist_ok=True)
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(tree))
    return reelset("train-tae", "-c", str(file), "-o", str(folder), *more)


def lines(folder: Path, kind: str = "step") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


@pytest.fixture(scope="module")
def trained(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps of it, in one go."""
    folder = tmp_path_factory.mktemp("trained")
    done = train(folder, settings(run))
    assert done.exit_code == 0, done.output
    assert "16x32x32: 6 samples, 4 a step" in done.output and "`reelset encode` takes it" in done.output
    return folder


def test_it_trains_validates_and_writes_its_file(trained: Path) -> None:
    steps = lines(trained)
    assert [line["step"] for line in steps] == list(range(8)) and {line["shape"] for line in steps} == {"1x32x32", "16x32x32"}
    films = [line for line in steps if line["shape"] == "16x32x32"]
    assert films[-1].keys() >= {"l1", "perceptual", "kl", "outlier", "adversarial", "discriminator", "grad_norm_discriminator"}
    assert [line["step"] for line in lines(trained, "validation")] == [4, 8]
    assert lines(trained, "validation")[-1].keys() >= {"psnr", "ssim", "l1"}
    assert len(list((trained / "pictures").glob("reconstruction-*.mp4"))) == 2
    assert TaeEncoder(str(trained / "tae.pt"), "cpu").channels == 4


def test_a_resumed_run_is_the_uninterrupted_one(run: Path, trained: Path, tmp_path: Path) -> None:
    assert train(tmp_path, settings(run, steps=4)).exit_code == 0
    assert train(tmp_path, settings(run)).exit_code == 0
    assert "from step 8 of 8" in reelset("train-tae", "-o", str(tmp_path)).output, "its own settings are taken"
    more = reelset("train-tae", "-o", str(tmp_path), "--set", "loop.steps=9")
    assert "from step 8 of 9" in more.output and len(lines(tmp_path)) == 9
    for name in ("loss", "digest", "grad_norm"):
        assert [line[name] for line in lines(tmp_path)][:8] == [line[name] for line in lines(trained)]


def test_two_ranks_are_one(run: Path, trained: Path, tmp_path: Path) -> None:
    """FSDP over gloo, the discriminator and its trick in it."""
    assert train(tmp_path, settings(run), "--prepare").exit_code == 0
    launched(2, "training_bridge.tae", str(tmp_path))
    assert [line["digest"] for line in lines(tmp_path)] == [line["digest"] for line in lines(trained)]
    losses = [line["loss"] for line in lines(trained)]
    assert [line["loss"] for line in lines(tmp_path)] == pytest.approx(losses, rel=1e-5)
    before, after = (line["psnr"] for line in (lines(trained, "validation")[-1], lines(tmp_path, "validation")[-1]))
    assert before == pytest.approx(after, rel=1e-5)


def test_latents_are_encoded_once_and_read_instead_of_pixels(run: Path, trained: Path) -> None:
    tae = str(trained / "tae.pt")
    done = reelset("encode", str(run), "--tae", tae, "--subset", "s", "--engine", "inline")
    encoder = TaeEncoder(tae, "cpu")
    assert done.exit_code == 0 and f"{{latent: {encoder.fingerprint}}}" in done.output, done.output
    assert "0 shards encoded" in reelset("encode", str(run), "--tae", tae, "--engine", "inline").output
    shards = index.read(str(run / "shards/s/train"))
    reader = Reader({"d": Source(shards, encoded=(Encoded("latent", encoder.fingerprint),))}, 0)
    from tests.training_bridge.samples import sample_of

    assert reader.read(sample_of(reader, "c000")).arrays[LATENTS].shape == (4, 3, 6, 9)
    with pytest.raises(ValueError, match="has no latent of encoder 'another'"):
        Reader({"d": Source(shards, encoded=(Encoded("latent", "another"),))}, 0)


def test_what_does_not_go_together_is_said(run: Path, trained: Path, tmp_path: Path) -> None:
    def refused(tree: dict[str, Any], folder: Path = tmp_path) -> str:
        done = train(folder, tree)
        assert done.exit_code == 1 and done.exception is not None
        return str(done.exception)

    good = settings(run)
    assert "loop.stepz: Unexpected keyword argument" in refused({**good, "loop": {**good["loop"], "stepz": 1}})
    assert "holds no shard that is finished" in refused(settings(run / "nowhere"))
    assert "= 2 ranks, and there are 1" in refused(settings(run, layout={"shard": 2}))
    wide = {**good, "tae": {"model": {**MODEL, "width": 16}}}
    assert "is of another model: architecture" in refused(wide, trained)
    kept = (trained / "config.json").read_text()
    assert "was trained on other samples: mix" in refused({**good, "data": {**good["data"], "videos": 2}}, trained)
    assert (trained / "config.json").read_text() == kept, "what is refused leaves the run as it was"
    assert "sides that are multiples of 8, 32 pixels at least" in refused(settings(run, view={"height": 24}))
    assert "loop.checkpoint_every is 1 or more" in refused(settings(run, checkpoint_every=0))
    assert "is no training run yet" in str(reelset("train-tae", "-o", str(tmp_path / "new")).exception)
    assert "is no file of tensors" in str(reelset("encode", str(run), "--tae", str(trained / "config.json")).exception)


def test_a_loss_that_is_no_number_ends_the_run_with_the_samples(run: Path, tmp_path: Path) -> None:
    """A rate beyond all bounds: the weights are gone at the second step."""
    done = train(tmp_path, settings(run, lr=1e30, warmup_steps=0, checkpoint_every=1))
    assert done.exit_code == 1
    event = lines(tmp_path, "event")[-1]
    assert event["event"] == "not_finite" and all(key.startswith("clips/c0") for key in event["keys"])
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert any(name.startswith("suspect-") for name in names), "its weights are what is wrong"


def test_bad_samples_have_substitutes_that_are_counted(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_shards(folder / "shards" / "s" / "train", {WIDE: 6, STILL: 8})
    make_shards(folder / "shards" / "s" / "validation", {WIDE: 2})
    damage(folder / "shards" / "s" / "train", "c002")
    assert train(tmp_path / "trained", settings(folder)).exit_code == 0
    assert sum(line.get("replaced", 0) for line in lines(tmp_path / "trained")) >= 1
    event = lines(tmp_path / "trained", "event")[0]
    assert event["keys"] == ["c002"] and "other bytes" in event["why"][0]
    none = settings(folder)
    none["data"]["bad_budget"] = 0
    assert "c002" in str(train(tmp_path / "strict", none).exception)
