"""The loader: the same samples, visits, draws and digests at any world size, worker count and place of resuming."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training_bridge.samples import STILL, TALL, WIDE, damage, draw_noise, make_shards
from training_bridge import index
from training_bridge.loader import Batch, Draw, micro_batches, of
from training_bridge.loop import step_digest
from training_bridge.plan import Mix, Plan, Sample, tokens
from training_bridge.reader import BadSample, Reader, Source
from training_bridge.view import View

SEED = 3
END = 10
RESUMED_AT = (0, 3, 7)
VIEW = View(16, 48, 48)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("made"), {WIDE: 7, TALL: 6, STILL: 10})


def made(folder: Path) -> tuple[Plan, Reader]:
    """Whole clips and pieces of them, mixed."""
    own = index.read(str(folder))
    reader = Reader({"whole": Source(own), "pieces": Source(own, VIEW)}, SEED)
    mix = Mix(global_tokens=3 * tokens(WIDE), images=1, videos=3)
    return Plan({name: source.shown for name, source in reader.sources.items()}, mix, SEED), reader


def steps(folder: Path, rank: int, world: int, workers: int, start: int, end: int = END) -> list[Batch]:
    plan, reader = made(folder)
    settings = {"part_of": of(rank, world), "micro_tokens": 2 * tokens(WIDE), "workers": workers}
    batches = micro_batches(plan.step, reader, draw_noise, start=start, prefetch=1 + rank, **settings)  # type: ignore[arg-type]
    return list(takewhile(lambda batch: batch.step < end, batches))


def slots(batch: Batch) -> Iterator[dict[str, object]]:
    """What a model sees of each slot that counts."""
    counted = [n for n, weight in enumerate(batch.weights.tolist()) if weight]
    for digest, n in zip(batch.digests, counted, strict=True):
        seen = {name: t[n].numpy().tobytes() for name, t in (batch.tensors | batch.draws).items()}
        yield {"key": batch.keys[n], "text": batch.texts[n], "shape": batch.shape, "digest": digest, **seen}


def by_step(ranks: list[list[Batch]]) -> dict[int, list[dict[str, object]]]:
    """Step -> its slots over all ranks in order."""
    found: dict[int, list[dict[str, object]]] = {}
    for batches in ranks:
        for batch in batches:
            found.setdefault(batch.step, []).extend(slots(batch))
    return found


@pytest.fixture(scope="module")
def alone(shards: Path) -> dict[int, list[dict[str, object]]]:
    """Uninterrupted, one rank, no workers."""
    return by_step([steps(shards, 0, 1, 0, 0)])


def test_a_step_is_what_the_plan_says(shards: Path, alone: dict[int, list[dict[str, object]]]) -> None:
    plan, _ = made(shards)
    assert list(alone) == list(range(END))
    shapes = set()
    for number, found in alone.items():
        step = plan.step(number)
        assert [(s["key"], s["shape"]) for s in found] == [(s.key, step.shape) for s in step.samples]
        shapes.add(step.shape)
    assert len(shapes) >= 3
    digests = [step_digest(s["digest"] for s in found) for found in alone.values()]  # type: ignore[misc]
    assert len(set(digests)) == END


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_layout_and_resume_gives_the_same(
    shards: Path, alone: dict[int, list[dict[str, object]]], world: int, workers: int
) -> None:
    for start in RESUMED_AT:
        end = END if start else 3  # a run of another layout stopped here; this one goes on
        found = by_step([steps(shards, rank, world, workers, start, end) for rank in range(world)])
        assert list(found) == list(range(start, end))
        for number, own in found.items():
            assert own == alone[number], f"step {number} from {start}"
            gathered = [bytes(16), *(s["digest"] for s in own), bytes(16)]
            assert step_digest(gathered) == step_digest(s["digest"] for s in alone[number])  # type: ignore[misc]


def test_ranks_have_micro_batches_of_one_size_and_weights_add_up(shards: Path) -> None:
    ranks = [steps(shards, rank, 4, 0, 0, 6) for rank in range(4)]
    for batches in zip(*ranks, strict=True):
        assert len({(b.step, b.micro, b.micros, b.shape, len(b.weights), b.total_weight) for b in batches}) == 1
        assert len(batches[0].tensors["pixels"]) == len(batches[0].texts) == len(batches[0].keys) == len(batches[0].weights)
    for number in range(6):
        own = [b for batches in ranks for b in batches if b.step == number]
        assert sum(b.weights.sum().item() for b in own) == own[0].total_weight == sum(len(b.digests) for b in own)
    assert any((b.weights == 0).any() for batches in ranks for b in batches)
    shown = ranks[0][0]
    assert shown.tensors["pixels"].dtype == torch.uint8 and shown.weights.dtype == torch.float32
    assert shown.tensors["pixels"].shape[1:] == (3, shown.shape.frames, shown.shape.height, shown.shape.width)
    assert shown.draws["noise"].dtype == torch.float32 and shown.draws["drop"].dtype == torch.bool


def other_times(seed: int, sample: Sample, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    drawn = draw_noise(seed, sample, shapes)
    return drawn | {"time": np.nextafter(drawn["time"], np.float32(2))}


def test_a_digest_is_of_samples_visits_and_draws(shards: Path, alone: dict[int, list[dict[str, object]]]) -> None:
    plan, reader = made(shards)
    settings = {"start": 0, "micro_tokens": 10**6, "workers": 0}
    first = next(micro_batches(plan.step, reader, other_times, **settings))  # type: ignore[arg-type]
    assert first.keys == [s["key"] for s in alone[0]]
    assert not set(first.digests) & {s["digest"] for s in alone[0]}, "the smallest change of one draw"
    undrawn = next(micro_batches(plan.step, reader, **settings))  # type: ignore[arg-type]
    assert undrawn.draws == {} and len(set(undrawn.digests)) == len(undrawn.digests)
    assert step_digest(undrawn.digests) != step_digest(reversed(undrawn.digests)), "order counts"


def test_torchs_own_generator_neither_matters_nor_moves(shards: Path, alone: dict[int, list[dict[str, object]]]) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert by_step([steps(shards, 0, 1, 1, 3, 5)]) == {n: alone[n] for n in (3, 4)}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_are_counted_up_to_a_budget(shards: Path, tmp_path: Path, workers: int) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    damage(folder, "c001")
    damage(folder, "c004")
    plan, reader = made(folder)
    settings = {"start": 0, "micro_tokens": 10**6, "workers": workers, "bad_budget": 2}
    replaced = 0
    for batch in takewhile(lambda b: b.step < 20, micro_batches(plan.step, reader, draw_noise, **settings)):  # type: ignore[arg-type]
        planned = [sample.key for sample in plan.step(batch.step).samples]
        wrong = [now for key, now in zip(planned, batch.keys, strict=True) if key != now]
        assert len(wrong) == sum(key in ("c001", "c004") for key in planned) and not {"c001", "c004"} & set(batch.keys)
        assert {key for key, _ in batch.bad} == {"c001", "c004"} & set(planned) or len(batch.bad) > len(wrong)
        replaced += len(batch.bad)
    assert replaced >= 10, "again and again, and still two samples"
    with pytest.raises(BadSample, match=r"2 samples are bad, more than 1: c00[14]: .*holds other bytes.*; c00[14]: "):
        list(takewhile(lambda b: b.step < 20, micro_batches(plan.step, reader, draw_noise, **(settings | {"bad_budget": 1}))))  # type: ignore[arg-type]


def die(seed: int, sample: Sample, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hang(seed: int, sample: Sample, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    time.sleep(1000)
    return {}


@pytest.mark.parametrize("fault", [die, hang])
def test_a_worker_that_dies_or_hangs_is_an_error(shards: Path, fault: Draw) -> None:
    plan, reader = made(shards)
    settings = {"start": 0, "micro_tokens": 10**6, "workers": 1, "timeout_s": 1.0}
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly"):
        next(micro_batches(plan.step, reader, fault, **settings))  # type: ignore[arg-type]
