"""The flow model on the loop: the same run at any layout and after any interruption, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training_bridge.dit.runs import BACKBONE, FILM, FROZEN, IMAGE, settings, shards
from tests.training_bridge.launched import ended, start
from tests.training_bridge.samples import TinyLatents, encode_shards
from training_bridge import encoded
from training_bridge.checkpoint import newest_of, state_of
from training_bridge.checkpoint import weights as weights_of
from training_bridge.dit import recipe
from training_bridge.dit.model import BackboneConfig
from training_bridge.dit.recipe import Recipe
from training_bridge.dit.run import FlowRun, laid_out, resolved
from training_bridge.dit.task import DitConfig, FlowTask, check_layout
from training_bridge.index import Shape
from training_bridge.layout import Layout
from training_bridge.loop import NotFinite
from training_bridge.settings import checked, write

LAYOUTS: dict[str, dict[str, int]] = {"data": {}, "context": {"context": 2}, "tensor": {"tensor": 2}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("shards"))


def train(folder: Path, tree: dict[str, Any]) -> Path:
    """One rank in this process."""
    write(folder, checked(recipe.kind_of(tree), tree))
    assert recipe.train(folder) == 0
    return folder


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps on one rank without a break."""
    return train(tmp_path_factory.mktemp("whole"), settings(made))


def lines(folder: Path, kind: str = "step") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def series(folder: Path, name: str, kind: str = "step") -> list[Any]:
    return [line[name] for line in lines(folder, kind)]


def test_two_ranks_are_one_however_they_share(made: Path, whole: Path, tmp_path: Path) -> None:
    """Half of the run on data, context and tensor ranks, in one start; then one rank goes on."""
    for name, layout in LAYOUTS.items():
        write(tmp_path / name, checked(FlowRun, settings(made, steps=4, layout=layout)))
    done = ended(start(2, "tests.training_bridge.dit.runs", *(str(tmp_path / name) for name in LAYOUTS)), timeout_s=280)
    assert [code for code, _ in done] == [0, 0], done
    assert set(series(whole, "shape")[:4]) == {str(FILM), str(IMAGE)}
    for name in LAYOUTS:
        assert series(tmp_path / name, "digest") == series(whole, "digest")[:4], name
        assert series(tmp_path / name, "loss") == pytest.approx(series(whole, "loss")[:4], rel=1e-5), name
        there, here = ({**lines(run, "validation")[0], "kind": 0} for run in (whole, tmp_path / name))
        assert here == pytest.approx(there, rel=1e-5) and any(key.startswith("loss_t") for key in here)
    again = train(tmp_path / "tensor", settings(made))
    assert series(again, "loss") == pytest.approx(series(whole, "loss"), rel=1e-5)
    assert series(again, "digest") == series(whole, "digest")


@pytest.mark.slow
def test_the_world_may_change_on_the_way(made: Path, tmp_path: Path) -> None:
    """Two data ranks, then two by two of data and context, then one: fifty steps as one rank does them."""
    often = {"steps": 50, "validate_every": 25, "checkpoint_every": 50}
    whole, parts = train(tmp_path / "whole", settings(made, **often)), tmp_path / "parts"
    for ranks, steps, layout in ((2, 17, {}), (4, 33, {"context": 2})):
        write(parts, checked(FlowRun, settings(made, **{**often, "steps": steps}, layout=layout)))
        done = ended(start(ranks, "tests.training_bridge.dit.runs", str(parts)), timeout_s=280)
        assert [code for code, _ in done] == [0] * ranks, done
        assert state_of(newest_of(parts))["step"] == steps
    train(parts, settings(made, **often))
    assert series(parts, "digest") == series(whole, "digest") and len(series(parts, "digest")) == 50
    assert series(parts, "loss") == pytest.approx(series(whole, "loss"), rel=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one(made: Path, whole: Path, tmp_path: Path) -> None:
    train(tmp_path, settings(made, steps=4))
    train(tmp_path, settings(made))
    for name in ("loss", "grad_norm", "digest"):
        assert series(tmp_path, name) == series(whole, name), "bit for bit"
    for name, value in weights_of(newest_of(whole)).items():
        assert torch.equal(weights_of(newest_of(tmp_path))[name], value)


def test_validation_is_the_same_each_time_and_drops_no_text(made: Path, tmp_path: Path) -> None:
    """Weights that hardly move give the same loss twice; dropping all text in training changes nothing of it."""
    losses = []
    for drop in (0.0, 1.0):
        tree = settings(made, lr=1e-30, validate_every=2, steps=4)
        tree["dit"]["objective"] = {"text_drop": drop}
        first, second = series(train(tmp_path / str(drop), tree), "loss", "validation")
        assert first == second
        losses.append(first)
    assert losses[0] == losses[1]


def test_no_decay_but_on_matrices() -> None:
    config = DitConfig(backbone=BackboneConfig(layers=1, width=32, heads=4, ffn=48))
    task = FlowTask(config)
    model = task.build()
    decayed, rest = (group["params"] for group in task.groups(model))
    names = {id(p): name for name, p in model.named_parameters()}
    assert len(decayed) + len(rest) == len(names)
    assert all(p.ndim == 2 for p in decayed)
    free = {names[id(p)] for p in rest}
    assert {n for n in names.values() if "norm" in n or "places" in n or "modulation" in n or n.endswith("bias")} <= free
    assert "backbone.blocks.0.attention.q.weight" not in free and "text.bytes.letters.bytes.weight" in free


def test_latents_and_texts_of_others_are_refused(made: Path, whole: Path, tmp_path: Path) -> None:
    own = checked(FlowRun, settings(made))
    data, inputs = resolved(own.data, own.dit)
    assert data.train["clips"].encoded == {"latent": TinyLatents.fingerprint, "letters": "tiny texts, weights 1"}
    assert inputs.null["letters"].shape == (1, 2)
    named = settings(made)
    named["data"]["train"]["clips"]["encoded"] = {"latent": "another"}
    with pytest.raises(ValueError, match=r"data.held_out.clips|has no latent of encoder 'another'"):
        train(tmp_path / "named", named)
    folder = shards(tmp_path / "shards")
    other = TinyLatents()
    other.fingerprint = "another tae"  # type: ignore[misc]
    for split in ("train", "validation"):
        encode_shards(folder / split, other)
    with pytest.raises(ValueError, match=r"has latent encodings of encoders another tae, tiny latents, weights 1: name one"):
        encoded.only(str(folder / "train"), "latent")
    tree = settings(folder)
    for part in ("train", "held_out"):
        tree["data"][part]["clips"]["encoded"] = {"latent": "another tae"}
    resumed = tmp_path / "resumed"
    train(resumed, settings(folder, steps=1) | {"data": settings(made)["data"]})
    with pytest.raises(ValueError, match=r"of another model: latents: 'tiny latents, weights 1' there, 'another tae' here"):
        train(resumed, tree)
    bare = tree | {"dit": {**tree["dit"], "text": [{**FROZEN, "name": "ul2"}]}}
    with pytest.raises(ValueError, match=r"data.train.clips: .* has ul2 encodings of no encoder: `reelset encode` makes them"):
        train(tmp_path / "bare", bare)


def test_another_model_is_refused(made: Path, whole: Path) -> None:
    wide = settings(made)
    wide["dit"]["backbone"] = {**BACKBONE, "width": 64}
    with pytest.raises(ValueError, match=r"of another model: backbone: .*\"width\": 32.* there"):
        train(whole, wide)
    write(whole, checked(FlowRun, settings(made)))


def test_a_loss_that_is_no_number_names_its_samples(made: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match=r"step [12]: .* is (nan|inf); .*its samples: clips/c0"):
        train(tmp_path, settings(made, lr=1e30, warmup_steps=0, checkpoint_every=1))


@pytest.mark.parametrize(
    "layout,shapes,message",
    [
        (Layout(tensor=8), [], "4 heads and 48 hidden units do not divide between 8 tensor ranks; tensor may be 1, 2, 4"),
        (
            Layout(context=3),
            [Shape(16, 32, 64)],
            "16x32x64: its 16 tokens do not divide between 3 ranks of context x tensor; context x tensor may be 1, 2, 4",
        ),
    ],
)
def test_layouts_that_do_not_fit_say_what_would(layout: Layout, shapes: list[Shape], message: str) -> None:
    config = BackboneConfig(layers=1, width=32, heads=4, ffn=48)
    with pytest.raises(ValueError, match=message):
        check_layout(config, shapes, layout)


def test_samples_must_fit_the_tables_and_the_patches() -> None:
    task = FlowTask(DitConfig(size="tiny"))
    with pytest.raises(ValueError, match="24x48x72: the flow model takes sides that are multiples of 16"):
        task.check([Shape(24, 48, 72)])
    with pytest.raises(ValueError, match=r"a sample of \(33, 4, 4\) tokens .*, the position tables have \(32, 32, 32\) rows"):
        task.check([Shape(264, 64, 64)])


def test_auto_takes_what_the_cost_model_ranks_first(made: Path) -> None:
    own, why = laid_out(checked(FlowRun, settings(made)), 2)
    assert own.loop.layout.fitted(2).world == 2 and "layout" in why and "16x32x64" in why
    check_layout(own.dit.architecture, [FILM, IMAGE], own.loop.layout)
    with pytest.raises(ValueError, match="no layout of 7 cards takes steps of 4 samples of 16 tokens"):
        laid_out(own, 7)


def staged(made: Path, **second: Any) -> dict[str, Any]:
    """Images, then films of tables twice as long."""
    common = settings(made, steps=3, checkpoint_every=3)
    images = {"name": "images", "data": {"videos": 0}, "dit": {"backbone": {**BACKBONE, "lengths": [1, 2, 4]}}}
    films = {"name": "films", "loop": {"steps": 2, "warmup_steps": 0}, "dit": {"grow_space": "interpolate"}, **second}
    return {"common": {**common, "data": {**common["data"], "held_out": {}}}, "stages": [images, films]}


@pytest.mark.parametrize("weights", ["averaged", "plain"])
def test_a_stage_begins_with_the_one_before(made: Path, tmp_path: Path, weights: str) -> None:
    tree = recipe.expanded(staged(made, weights=weights, optimizer="kept"))
    assert tree["stages"][1]["loop"] == {**settings(made)["loop"], "steps": 2, "checkpoint_every": 3, "warmup_steps": 0}
    own = checked(Recipe, tree)
    write(tmp_path, own)
    assert recipe.train(tmp_path) == 0
    first, second = (newest_of(tmp_path / name) for name in ("images", "films"))
    assert (state_of(first)["step"], state_of(second)["step"]) == (3, 2)
    begun = begin(own, tmp_path)
    before = weights_of(first, weights == "averaged")
    table = "backbone.entry.places.h.weight"
    assert begun[table].shape == (4, 32) and before[table].shape == (2, 32)
    expected = torch.stack([before[table][0], 0.75 * before[table][0] + 0.25 * before[table][1]])
    torch.testing.assert_close(begun[table][:2], expected)
    torch.testing.assert_close(begun["backbone.entry.places.t.weight"], before["backbone.entry.places.t.weight"].expand(2, -1))
    same = [name for name in before if "places" not in name]
    assert all(torch.equal(begun[name], before[name]) for name in same)
    log = (tmp_path / "films" / "log.jsonl").read_text()
    assert recipe.train(tmp_path) == 0 and (tmp_path / "films" / "log.jsonl").read_text() == log, "finished stages are left"


def begin(own: Recipe, folder: Path) -> dict[str, torch.Tensor]:
    """The second stage's model as it begins."""
    from training_bridge.data import ShardData
    from training_bridge.launch import ranks
    from training_bridge.loop import Trainer

    stage, here = own.run(1, folder), ranks("cpu")
    data, inputs = resolved(stage.data, stage.dit)
    task = FlowTask(stage.dit, inputs)
    trainer = Trainer(task, ShardData(data, task.draw, Layout().fitted(1), here), stage.loop, here, folder / "again")
    assert trainer.step == 0
    moments = {name: trainer.optimizer.state[p] for name, p in trainer.model.named_parameters()}
    assert int(moments["backbone.head.out.weight"]["step"]) == 3
    table = moments["backbone.entry.places.t.weight"]["exp_avg"]
    assert table[0].abs().max() > 0 and not table[1].any(), "rows that `extend` adds have moments of zero"
    for name, value in trainer.ema.average.items():
        assert torch.equal(value, dict(trainer.model.named_parameters())[name])
    return {name: p.detach() for name, p in trainer.model.named_parameters()}


def test_stages_need_names_and_only_the_first_begins_elsewhere(made: Path) -> None:
    tree = recipe.expanded(staged(made, name="images"))
    with pytest.raises(ValueError, match="each its own"):
        checked(Recipe, tree)
    tree = recipe.expanded(staged(made))
    tree["stages"][1]["loop"]["init"] = {"path": "x"}
    with pytest.raises(ValueError, match=r"loop\.init is for the first stage"):
        checked(Recipe, tree)


def test_a_sample_is_its_seed_and_number(made: Path, whole: Path) -> None:
    own = checked(FlowRun, settings(made))
    _, inputs = resolved(own.data, own.dit)
    task = FlowTask(own.dit, inputs)
    model = task.build()
    model.load_state_dict(weights_of(newest_of(whole)), assign=True)
    encodings = {"letters": torch.from_numpy(np.ones((5, 2), np.float32))}
    one, again, two, other = (
        task.drawn(model, "a text", encodings, (3, 2, 4, 8), number, seed) for number, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(one, again) and not torch.equal(one, two) and not torch.equal(one, other)
