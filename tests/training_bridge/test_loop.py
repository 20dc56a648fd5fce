"""The loop: the same numbers whatever the ranks, the micro-batches and the interruptions."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_bridge.launched import ended, launched, start
from tests.training_bridge.toy import trainer
from training_bridge.checkpoint import PINNED, state_of
from training_bridge.loop import STOPPED, InitConfig, LoopConfig, NotFinite, Trainer, learning_rate
from training_bridge.plateau import Plateau, PlateauConfig

TOY = "tests.training_bridge.toy"
OFTEN = {"validate_every": 10, "checkpoint_every": 20}


def lines(folder: Path, kind: str = "step") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def series(folder: Path, name: str, kind: str = "step") -> list[Any]:
    return [line[name] for line in lines(folder, kind)]


def weights(done: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in done.model.named_parameters()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """Fifty steps on one rank without a break."""
    done = trainer(tmp_path_factory.mktemp("whole"), **OFTEN)
    assert done.run() == 0
    return done


def test_it_learns_and_says_so(whole: Trainer) -> None:
    fit = series(whole.folder, "fit")
    assert len(fit) == 50 and sum(fit[-10:]) < 0.7 * sum(fit[:10])
    line = lines(whole.folder)[-1]
    assert line.keys() >= {
        "loss",
        "fit",
        "side",
        "grad_norm",
        "grad_norm_side",
        "lr",
        "digest",
        "data_wait_share",
        "peak_memory_gb",
        "tokens_per_s",
    }
    assert 0 <= line["data_wait_share"] <= 1 and 0.05 < line["peak_memory_gb"] < 50
    assert [v["step"] for v in lines(whole.folder, "validation")] == [10, 20, 30, 40, 50]
    assert [p.name for p in whole.checkpoints.all()] == ["step-00000020", "step-00000040", "step-00000050"]
    assert sorted(p.name for p in (whole.folder / "pictures").iterdir())[-1] == "film-00000050.mp4"


def test_a_resumed_run_is_the_uninterrupted_one(whole: Trainer, tmp_path: Path) -> None:
    first = trainer(tmp_path, **OFTEN, steps=30)
    assert first.run() == 0
    again = trainer(tmp_path, **OFTEN)
    assert again.step == 30 and again.run() == 0
    for name in ("loss", "grad_norm", "digest"):
        assert series(tmp_path, name) == series(whole.folder, name), "bit for bit"
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value)
    assert all(torch.equal(again.ema.average[n], v) for n, v in whole.ema.average.items())


def test_steps_after_the_last_checkpoint_are_done_and_logged_again(whole: Trainer, tmp_path: Path) -> None:
    first = trainer(tmp_path, **OFTEN)
    batches = first.data.batches(0)
    for _ in range(27):
        first._train_step(batches)
        if first.step == 20:
            first.save()
    first.checkpoints.finish()
    assert trainer(tmp_path, **OFTEN).run() == 0
    assert series(tmp_path, "step") == list(range(50)) and series(tmp_path, "loss") == series(whole.folder, "loss")


def test_two_ranks_are_one(whole: Trainer, tmp_path: Path) -> None:
    """FSDP over two ranks with validation between, against one process: losses within 1e-5, digests equal."""
    launched(2, TOY, str(tmp_path), json.dumps(OFTEN))
    assert series(tmp_path, "digest") == series(whole.folder, "digest")
    assert series(tmp_path, "loss") == pytest.approx(series(whole.folder, "loss"), rel=1e-5)
    assert series(tmp_path, "fit", "validation") == pytest.approx(series(whole.folder, "fit", "validation"), rel=1e-5)
    loaded = trainer(tmp_path, **OFTEN)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(loaded)[name], value, rtol=1e-4, atol=1e-6)


def test_the_world_may_change_on_the_way(whole: Trainer, tmp_path: Path) -> None:
    """2 ranks, then 4 of which 2 are copies, then 1: as if nothing had been."""
    launched(2, TOY, str(tmp_path), json.dumps({**OFTEN, "steps": 17}))
    launched(4, TOY, str(tmp_path), json.dumps({**OFTEN, "steps": 33, "layout": {"replicate": 2}}))
    last = trainer(tmp_path, **OFTEN)
    assert last.step == 33 and last.run() == 0
    assert series(tmp_path, "digest") == series(whole.folder, "digest")
    assert series(tmp_path, "loss") == pytest.approx(series(whole.folder, "loss"), rel=1e-5)


def test_context_peers_see_the_same_films_and_images_of_their_own(whole: Trainer, tmp_path: Path) -> None:
    """Two context ranks: what they hold of a film counts once a rank, so its sums double; images are shared out."""
    launched(2, TOY, str(tmp_path), json.dumps({**OFTEN, "steps": 3, "layout": {"context": 2}}))
    ours, theirs = lines(tmp_path), lines(whole.folder)[:3]
    assert [line["digest"] for line in ours] == [line["digest"] for line in theirs]
    assert ours[0]["loss"] == pytest.approx(2 * theirs[0]["loss"], rel=1e-5)
    assert ours[2]["shape"] == "1x16x16"


def test_the_average_in_the_checkpoint_is_the_average(tmp_path: Path) -> None:
    done = trainer(tmp_path, steps=12, ema_decay=0.6, checkpoint_every=12)
    name = "main.1.weight"
    average, seen = dict(done.model.named_parameters())[name].detach().clone(), []
    batches = done.data.batches(0)
    for n in range(12):
        done._train_step(batches)
        now = dict(done.model.named_parameters())[name].detach()
        decay = min(0.6, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * now
        seen.append(decay)
    done.save()
    done.checkpoints.finish()
    assert seen[0] == 0.1 and seen[-1] > 0.5
    loaded = trainer(tmp_path, steps=12, ema_decay=0.6)
    assert loaded.ema.updates == 12
    torch.testing.assert_close(loaded.ema.average[name], average)
    assert not torch.equal(loaded.ema.average[name], now)
    assert all(n.startswith("main.") for n in loaded.ema.average)


def test_the_averages_are_swapped_in_and_out(whole: Trainer) -> None:
    own = weights(whole)
    with whole.ema.swapped():
        inside = weights(whole)
        assert torch.equal(inside["main.1.weight"], whole.ema.average["main.1.weight"])
        assert torch.equal(inside["side.weight"], own["side.weight"])
    assert all(torch.equal(value, own[name]) for name, value in weights(whole).items())


def test_a_loss_that_is_no_number_names_its_samples_and_pins_the_last_good_checkpoint(tmp_path: Path) -> None:
    bad = trainer(tmp_path, **OFTEN, poison=23, keep=1)
    with pytest.raises(NotFinite, match=r"step 23: loss is nan; .* step-00000020, is pinned; its samples: 23-0, 23-1"):
        bad.run()
    assert "step 23" in (tmp_path / "checkpoints" / "step-00000020" / PINNED).read_text()
    assert lines(tmp_path, "event")[-1]["keys"][0] == "23-0"
    good = trainer(tmp_path, **OFTEN, keep=1)
    assert good.step == 20 and good.run() == 0
    assert [p.name for p in good.checkpoints.all()] == ["step-00000020", "step-00000050"], "a pinned one is never removed"


def test_other_models_and_other_data_are_refused(whole: Trainer, tmp_path: Path) -> None:
    assert trainer(tmp_path, steps=2).run() == 0
    with pytest.raises(ValueError, match="is of another model: width: 16 there, 24 here"):
        trainer(tmp_path, width=24)
    with pytest.raises(ValueError, match="was trained on other samples"):
        trainer(tmp_path, seed=1)
    other = trainer(tmp_path / "other", width=24)
    with pytest.raises(ValueError, match=r"is of another model: main\.0\.0\.bias is \(16,\), \(24,\) here; main"):
        other.checkpoints.load(whole.checkpoints.all()[0], other.model, other.optimizer, other.ema)
    with pytest.raises(ValueError, match="is no finished checkpoint"):
        state_of(tmp_path)


def test_settings_of_the_optimizer_are_those_of_the_run_that_goes_on(tmp_path: Path) -> None:
    assert trainer(tmp_path, steps=2).run() == 0
    again = trainer(tmp_path, betas=(0.5, 0.6))
    assert [group["betas"] for group in again.optimizer.param_groups] == [(0.5, 0.6)] * 2
    assert len(again.optimizer.state) > 0, "its moments are those of the checkpoint"


def test_a_checkpoint_of_skipped_steps_loads(tmp_path: Path) -> None:
    assert trainer(tmp_path, steps=2, skip_norm=1e-9).run() == 0
    assert trainer(tmp_path, steps=4).run() == 0 and series(tmp_path, "step") == [0, 1, 2, 3]


def test_a_killed_save_leaves_the_one_before(tmp_path: Path) -> None:
    assert trainer(tmp_path, steps=2).run() == 0
    torn = tmp_path / "checkpoints" / "_step-00000004"
    torn.mkdir()
    (torn / "__0_0.distcp").write_bytes(b"half")
    again = trainer(tmp_path, steps=2)
    assert again.step == 2 and again.run() == 0 and not torn.exists()


def test_told_to_stop_it_writes_a_checkpoint_and_says_so(tmp_path: Path) -> None:
    """One of two ranks hears of it; both stop at the same step, with the code to start again."""
    both = start(2, TOY, str(tmp_path), json.dumps({"steps": 10**6}))
    try:
        log = tmp_path / "log.jsonl"
        deadline = time.monotonic() + 60
        while not (log.exists() and len(log.read_text().splitlines()) > 3):
            assert time.monotonic() < deadline and all(process.poll() is None for process in both)
            time.sleep(0.05)
        both[1].send_signal(signal.SIGTERM)
    finally:
        done = ended(both)
    assert [code for code, _ in done] == [STOPPED, STOPPED], done
    last = lines(tmp_path)[-1]["step"]
    assert trainer(tmp_path).step == last + 1


def test_spikes_and_skips_are_said(tmp_path: Path) -> None:
    done = trainer(tmp_path, steps=3, skip_norm=1e-9)
    before = weights(done)
    assert done.run() == 0 and set(series(tmp_path, "skipped")) == {1}
    assert all(torch.equal(value, before[name]) for name, value in weights(done).items()) and done.ema.updates == 0
    calm = trainer(tmp_path / "calm", steps=60)
    for _ in range(55):
        calm._watch("16x16x16", 1.0)
    calm._watch("16x16x16", 9.0)
    event = lines(tmp_path / "calm", "event")[-1]
    assert event["event"] == "spike" and event["ratio"] == pytest.approx(9.0) and len(event["keys"]) == 5


def test_a_step_weighs_by_samples_or_by_tokens(whole: Trainer, tmp_path: Path) -> None:
    by_token = trainer(tmp_path, steps=1, mean="token")
    assert by_token.run() == 0
    assert series(tmp_path, "loss")[0] == pytest.approx(series(whole.folder, "loss")[0] / 2)


def test_the_rate_rises_and_falls() -> None:
    config = LoopConfig(steps=110, lr=1.0, warmup_steps=10, schedule="cosine", final_lr_frac=0.1)
    rates = [learning_rate(config, step) for step in range(111)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[60] == pytest.approx(0.55) and rates[110] == pytest.approx(0.1)
    assert learning_rate(LoopConfig(steps=10, lr=1.0, warmup_steps=2), 9) == 1.0


def test_a_plateau_lowers_the_rate() -> None:
    """A new best is 10 % better than the last; the second validation without one halves the rate, down to a quarter of it."""
    config = PlateauConfig(min_delta=0.1, patience=2, factor=0.5, least_frac=0.25)
    seen = Plateau()
    falls = [seen.see(value, config) for value in (1.0, 0.95, 0.8, 0.79, 0.78, 0.7, 0.7, 0.7, 0.7, 0.7)]
    assert falls == [False, False, False, False, True, False, False, True, False, False]
    assert seen == Plateau(scale=0.25, best=0.7, waited=4 - 2)
    rates = LoopConfig(steps=10, lr=1.0, warmup_steps=2, schedule="plateau")
    assert [learning_rate(rates, step, 0.25) for step in (0, 1, 2, 9)] == [0.125, 0.25, 0.25, 0.25]
    with pytest.raises(ValueError, match="0 < factor < 1"):
        PlateauConfig(factor=1.0)


def test_a_plateau_is_in_the_log_and_in_the_checkpoint(tmp_path: Path) -> None:
    """Nothing is ever better by half, so every second validation halves the rate; a resumed run does the same."""
    own = {"schedule": "plateau", "plateau": PlateauConfig(measure="fit", min_delta=0.5, patience=2), "validate_every": 4}
    own |= {"checkpoint_every": 4, "warmup_steps": 0}
    assert trainer(tmp_path / "whole", steps=24, **own).run() == 0
    assert trainer(tmp_path / "parts", steps=14, **own).run() == 0
    assert trainer(tmp_path / "parts", steps=24, **own).run() == 0
    falls = lines(tmp_path / "whole", "event")
    assert [(fall["step"], fall["scale"]) for fall in falls] == [(12, 0.5), (20, 0.25)]
    assert series(tmp_path / "whole", "lr") == [1e-2] * 12 + [5e-3] * 8 + [2.5e-3] * 4
    assert lines(tmp_path / "parts", "event") == falls
    assert series(tmp_path / "parts", "loss") == series(tmp_path / "whole", "loss")
    with pytest.raises(ValueError, match="validation says no 'loss' but fit, ranks"):
        trainer(tmp_path / "other", steps=4, schedule="plateau", validate_every=4).run()


@pytest.mark.parametrize("weights_of,optimizer", [("averaged", "fresh"), ("plain", "kept")])
def test_a_run_begins_with_anothers_weights(whole: Trainer, tmp_path: Path, weights_of: Any, optimizer: Any) -> None:
    init = InitConfig(path=str(whole.folder), weights=weights_of, optimizer=optimizer)
    begun = trainer(tmp_path, init=init, seed=1, steps=2)
    expected = weights(whole) | (whole.ema.average if weights_of == "averaged" else {})
    assert begun.step == 0 and all(torch.equal(value, expected[name]) for name, value in weights(begun).items())
    assert all(torch.equal(value, expected[name]) for name, value in begun.ema.average.items()) and begun.ema.updates == 0
    assert len(begun.optimizer.state) == (0 if optimizer == "fresh" else len(expected))
    for mine, theirs in zip(begun.optimizer.state.values(), whole.optimizer.state.values(), strict=False):
        assert torch.equal(mine["exp_avg_sq"], theirs["exp_avg_sq"])
    assert begun.run() == 0
    (whole.folder / "gone").mkdir(exist_ok=True)
    again = trainer(tmp_path, init=InitConfig(path=str(whole.folder / "gone")), seed=1, steps=2)
    assert again.step == 2, "its own checkpoint is taken, and the other run is not asked"
    with pytest.raises(ValueError, match="is of another model: width: 16 there, 24 here"):
        trainer(tmp_path / "wide", init=init, width=24)


def test_tensorboard_has_the_steps_numbers(tmp_path: Path) -> None:
    """Read back by TensorBoard itself; a run that goes on adds to them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps in (3, 5):
        assert trainer(tmp_path, steps=steps, tensorboard=True, validate_every=5).run() == 0
    board = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"step/loss", "step/lr", "step/peak_memory_gb", "validation/fit"} <= set(board.Tags()["scalars"])
    found = {event.step: event.value for event in board.Scalars("step/loss")}
    assert found == pytest.approx(dict(enumerate(series(tmp_path, "loss"))))


def test_a_profile_is_written(tmp_path: Path) -> None:
    assert trainer(tmp_path, steps=14, profile=True).run() == 0
    assert json.loads((tmp_path / "profile" / "step-00000000.json").read_text())["traceEvents"]
