"""The plan: exact proportions, endless streams, and the same steps whoever asks."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from training_bridge.draws import generator, key, permuted
from training_bridge.index import Index, Shape, _shapes
from training_bridge.plan import Mix, Plan, Schedule, part, tokens

WIDE, TALL, STILL = Shape(128, 192, 336), Shape(128, 336, 192), Shape(1, 192, 336)


def index(name: str, counts: dict[Shape, int]) -> Index:
    rows = [(f"{name}-{shape}-{n}", *shape_of(shape)) for shape, count in counts.items() for n in range(count)]
    columns = dict(zip(("key", "frames", "height", "width"), zip(*rows, strict=True), strict=True))
    table = pa.table({name: list(values) for name, values in columns.items()})
    return Index(name, (), table, _shapes(table), f"of {name}")


def shape_of(shape: Shape) -> tuple[int, int, int]:
    return shape.frames, shape.height, shape.width


def plan(seed: int = 0, **mix: object) -> Plan:
    data = {"a": index("a", {WIDE: 50, TALL: 20, STILL: 400}), "b": index("b", {WIDE: 30})}
    return Plan(data, Mix(**{"global_tokens": 8 * tokens(WIDE), **mix}), seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 100, 1000, 4097])
def test_permutations_are_permutations(size: int) -> None:
    for secret in (0, 1, 1 << 127):
        assert sorted(permuted(n, size, secret) for n in range(size)) == list(range(size))
    with pytest.raises(ValueError, match="is not in 0"):
        permuted(size, size, 0)


def test_permutations_differ_and_are_spread() -> None:
    orders = [[permuted(n, 500, key(seed, "x")) for n in range(500)] for seed in range(20)]
    assert len({tuple(order) for order in orders}) == 20
    moved = np.array(orders)
    assert abs(np.corrcoef(moved[0], np.arange(500))[0, 1]) < 0.2
    assert 170 < moved[:, 0].mean() < 330 and len(set(moved[:, 7].tolist())) > 15


def test_draws_belong_to_a_sample() -> None:
    first = generator(1, "clip", 0, "noise").standard_normal(4)
    assert (generator(1, "clip", 0, "noise").standard_normal(4) == first).all()
    others = [generator(1 << 40, "clip", 0, "noise"), generator(1, "clip", 1, "noise"), generator(1, "clip", 0, "time")]
    assert all(abs(other.standard_normal(4) - first).max() > 1e-3 for other in others)
    assert key(0, "a", "b") != key(0, "ab") and key(0, 1) != key(0, "1")


def test_a_schedule_keeps_its_quotas_in_every_cycle() -> None:
    schedule = Schedule([10, 1, 0.001, 5], secret=3, cycle=64)
    assert schedule.quotas.sum() == 64 and schedule.quotas.min() == 1
    seen: Counter[int] = Counter()
    for place in range(5 * 64):
        choice, before = schedule.at(place)
        assert before == seen[choice]
        seen[choice] += 1
        if (place + 1) % 64 == 0:
            assert [seen[c] for c in range(4)] == [(place + 1) // 64 * q for q in schedule.quotas]
    assert schedule.at(10**12)[1] > 10**9, "far places cost no more"


def test_a_step_has_one_shape_and_its_batch() -> None:
    made = plan()
    assert made.batch == {WIDE: 8, TALL: 8, STILL: 128} and not made.left_out
    for number in range(50):
        step = made.step(number)
        assert len(step.samples) == made.batch[step.shape]
        assert all(f"-{step.shape}-" in sample.key for sample in step.samples)


def test_every_sample_of_a_stream_comes_once_a_visit() -> None:
    made, seen = plan(), Counter[tuple[str, int]]()
    for number in range(400):
        seen.update((sample.key, sample.visit) for sample in made.step(number).samples)
    assert set(seen.values()) == {1}, "no sample twice in one visit"
    most = {key: max(v for k, v in seen if k == key) for key, _ in seen}
    for name, visits in most.items():
        assert all((name, visit) in seen for visit in range(visits + 1)), "no visit is left out"


def test_images_come_one_step_in_eleven_and_samples_alike_within_a_kind() -> None:
    made = plan()
    steps = Counter(made.step(number).shape for number in range(4096))
    assert steps[STILL] / 4096 == pytest.approx(1 / 11, abs=1e-3)
    # a: 50 wide and 20 tall of 470, b: 30 wide of 30, each dataset with weight 1.
    assert steps[WIDE] / steps[TALL] == pytest.approx((50 / 470 + 1) / (20 / 470), rel=0.02)
    by_sample = plan(unit="sample")
    images = sum(len(s.samples) for s in map(by_sample.step, range(4096)) if s.shape == STILL)
    videos = sum(len(s.samples) for s in map(by_sample.step, range(4096)) if s.shape != STILL)
    assert videos / images == pytest.approx(10, rel=0.05)


def test_weights_are_of_datasets() -> None:
    made = plan(weights=(("a", 3.0),))
    steps = [step for step in map(made.step, range(600)) if step.shape == WIDE]
    wide = Counter(sample.dataset for step in steps for sample in step.samples)
    assert wide["a"] / wide["b"] == pytest.approx(3 * 50 / 470, rel=0.03)
    assert not any(s.dataset == "b" for n in range(300) for s in plan(weights=(("b", 0.0),)).step(n).samples)
    with pytest.raises(ValueError, match=r"mix\.weights names no dataset: c"):
        plan(weights=(("c", 1.0),))


def test_a_shape_that_is_too_rare_is_left_out_and_said() -> None:
    made = plan(global_tokens=25 * tokens(WIDE))
    assert made.left_out == {TALL: 20} and TALL not in {made.step(n).shape for n in range(200)}
    with pytest.raises(ValueError, match=r"no shape has as many samples as its batch .* 128x336x192: 20 samples"):
        plan(global_tokens=10_000 * tokens(WIDE))


@pytest.mark.parametrize("world", [1, 2, 3, 8, 16])
def test_ranks_share_a_step_whatever_their_number(world: int) -> None:
    for number in range(20):
        step = plan().step(number)
        parts = [part(step, rank, world, micro_tokens=3 * tokens(WIDE)) for rank in range(world)]
        sizes = {tuple(len(micro) for micro in own) for own in parts}
        assert len(sizes) == 1 and len(set(*sizes)) == 1, "all micro-batches of all ranks have one size"
        counted = [slot.sample for own in parts for micro in own for slot in micro if slot.weight]
        assert counted == list(step.samples)


def test_a_run_goes_on_with_the_same_steps() -> None:
    first = [plan(seed=5).step(n).digest for n in range(60)]
    again = plan(seed=5)
    start = again.resume(plan(seed=5).state(37))
    assert [again.step(n).digest for n in range(start, 60)] == first[37:]
    assert len(set(first)) == 60 and plan(seed=6).step(0).digest != first[0]
    with pytest.raises(ValueError, match=r"other samples: seed: 5 then, 6 now"):
        plan(seed=6).resume(again.state(37))
    with pytest.raises(ValueError, match=r"other samples: mix: "):
        plan(seed=5, images=2.0).resume(again.state(37))


def test_what_has_no_weight_is_left_out() -> None:
    films = plan(images=0.0)
    assert STILL in films.left_out and all(films.step(n).shape != STILL for n in range(4200))
    wide = plan(weights=(("a", 0.0),))
    assert set(wide.shapes) == {WIDE} and {s.dataset for n in range(4200) for s in wide.step(n).samples} == {"b"}
    with pytest.raises(ValueError, match="no shape has as many samples"):
        plan(images=0.0, videos=0.0)
    with pytest.raises(ValueError, match="weights are 0 or more"):
        plan(weights=(("a", -1.0),))


def test_held_out_shapes_come_in_turn_however_few_their_samples() -> None:
    data = {"a": index("a", {WIDE: 50, TALL: 2, STILL: 3})}
    held = Plan(data, Mix(global_tokens=8 * tokens(WIDE)), 0, all_shapes=True)
    assert held.batch == {WIDE: 8, TALL: 2, STILL: 3} and not held.left_out
    steps = [held.in_turn(n) for n in range(6)]
    assert [step.shape for step in steps] == [*held.shapes, *held.shapes]
    assert len({sample for step in steps for sample in step.samples}) == 2 * (8 + 2 + 3)
