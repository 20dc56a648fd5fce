import os

import pytest

from curation.engine import EngineConfig, Item, PoolConfig, Step, fit, run
from curation.errors import ConfigError


class Double:
    name = "double"

    def __init__(self) -> None:
        self.opened = False

    def open(self) -> None:
        self.opened = True

    def close(self) -> None:
        self.opened = False

    def __call__(self, item: Item) -> Item:
        assert self.opened
        return {"x": item["x"] * 2, "pid": os.getpid()}


def steps(*cpus: float, gpus: float = 0.0, least: int = 1) -> list[Step]:
    return [Step(Double(), PoolConfig(cpus=c, gpus=gpus, min_actors=least)) for c in cpus]


def test_inline_runs_every_worker_in_turn_and_closes_them() -> None:
    chain = steps(1, 1)
    results = list(run([{"x": 1}, {"x": 2}], chain, EngineConfig(kind="inline"), ""))
    assert [r["x"] for r in results] == [4, 8]
    assert not any(s.worker.opened for s in chain)  # type: ignore[attr-defined]


def test_a_plan_that_fits_takes_what_is_left_over() -> None:
    assert fit(steps(1), [{"CPU": 8.0}], items=100) == [(1, 8)]
    assert fit(steps(1), [{"CPU": 8.0}], items=3) == [(1, 3)]
    assert fit(steps(1, 0.5), [{"CPU": 2.0}], items=100) == [(1, 1), (1, 2)]
    assert fit(steps(0.1), [{"CPU": 0.3}], items=100) == [(1, 3)]
    assert fit(steps(1, 1), [{"CPU": 1.5}, {"CPU": 2.5}, {}], items=100) == [(1, 2), (1, 2)]
    assert fit(needy(max_actors=2), [{"CPU": 4.0}], items=100) == [(1, 2)]
    assert fit(needy(max_actors=9), [{"CPU": 4.0}], items=100) == [(1, 4)]
    assert fit(steps(0), [{"CPU": 1.0}], items=7) == [(1, 7)]
    assert fit(steps(1, gpus=0.5), [{"CPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}], items=7) == [(1, 2)]


def needy(**pool: float) -> list[Step]:
    return [Step(Double(), PoolConfig(**pool))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "chain,nodes,needs,has",
    [
        (steps(1, 1, 1), [{"CPU": 2.0}], "3 CPU", "1 x 2 CPU"),
        (steps(1, gpus=1.0), [{"CPU": 2.0}], r"1 CPU \+ 1 GPU", "1 x 2 CPU"),
        (steps(1, least=3), [{"CPU": 2.0}], "3 CPU", "1 x 2 CPU"),
        (steps(1.5), [{"CPU": 1.0}, {"CPU": 1.0}], "1.5 CPU", "2 x 1 CPU"),
        (steps(1, 1), [{"CPU": 1.5}, {"CPU": 0.5}], "2 CPU", "1 x 1.5 CPU, 1 x 0.5 CPU"),
        (needy(memory_gb=4.0), [{"CPU": 2.0, "memory": 2.0 * 2**30}], r"1 CPU \+ 4 GB", r"1 x 2 CPU \+ 2 GB"),
        (steps(1), [], "1 CPU", "no nodes"),
    ],
)
def test_a_plan_that_would_wait_for_ever_is_refused_with_the_numbers(
    chain: list[Step], nodes: list[dict[str, float]], needs: str, has: str
) -> None:
    with pytest.raises(ConfigError, match=rf"needs {needs} at once, .*; the cluster has {has}\. "):
        fit(chain, nodes, items=10)
