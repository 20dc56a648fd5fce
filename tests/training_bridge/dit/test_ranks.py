"""Context exchanges and layouts on four ranks of gloo: the same numbers as on one."""

import weakref
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

from tests.training_bridge.dit.gloo import RANKS, together
from training_bridge.dit import parity
from training_bridge.dit.model import BackboneConfig
from training_bridge.dit.parity import LAYOUTS, Agreement, Axes, Found, ParityConfig, Trace, compared, runs
from training_bridge.dit.task import BYTES, DitConfig, FlowTask
from training_bridge.exchange import exchange, own_part
from training_bridge.initial import materialise
from training_bridge.launch import Ranks
from training_bridge.layout import Layout
from training_bridge.loop import LoopConfig, prepare

pytestmark = pytest.mark.timeout(600)


def exchanged(kind: Any, heads: int, ranks: int) -> tuple[str, float, float]:
    """The exchange that was taken, and how far its output and gradients lie from undivided attention's, on any rank."""
    pairs = [dist.new_group(range(first, first + ranks)) for first in range(0, RANKS, ranks)]
    group = pairs[dist.get_rank() // ranks]
    torch.manual_seed(0)
    whole = [torch.randn(2, heads, 8 * ranks, 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    along = torch.randn(2, heads, 8 * ranks, 16, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(*whole)
    (expected * along).sum().backward()
    own = own_part(8 * ranks, group.rank(), ranks)
    parts = [x.detach()[:, :, own].clone().requires_grad_() for x in whole]
    taken = exchange(kind, group, heads)
    assert taken is not None
    found = taken(*parts, F.scaled_dot_product_attention)
    (found * along[:, :, own]).sum().backward()
    gradients = [(p.grad - w.grad[:, :, own]).abs().max() for p, w in zip(parts, whole, strict=True)]
    errors = torch.stack([(found - expected[:, :, own]).abs().max().detach(), torch.stack(gradients).max()])
    dist.all_reduce(errors, dist.ReduceOp.MAX)
    return type(taken).__name__, float(errors[0]), float(errors[1])


def fresh_model() -> str:
    """What parity says of a model as it is drawn, zeros and all."""
    drawn, parity.without_zeros = parity.without_zeros, lambda model, seed: None
    try:
        parity.parity(ParityConfig(steps=1), LAYOUTS[:1])
    except ValueError as error:
        return str(error)
    finally:
        parity.without_zeros = drawn
    return "all is well"


TASK = FlowTask(DitConfig(backbone=BackboneConfig(layers=2, width=32, heads=4, ffn=48), text=(BYTES,)))
DIVIDED = {
    "one rank": Layout(),
    "shards": Layout(),
    "tensor": Layout(tensor=2),
    "tensor and copies": Layout(replicate=2, tensor=2),
}


def first_weights(layout: Layout, ranks: int) -> dict[str, torch.Tensor]:
    """The model as a run begins with it, whole again."""
    here = Ranks(dist.get_rank() if ranks > 1 else 0, ranks, torch.device("cpu"), cast("dist.ProcessGroup", dist.group.WORLD))
    model, _, ema = prepare(TASK, LoopConfig(steps=1, seed=3, layout=layout), here)
    own = {name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in model.named_parameters()}
    assert ranks == 1 or all(isinstance(p, DTensor) for p in model.parameters())
    average = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in ema.average.items()}
    assert all(torch.equal(average[name], own[name]) for name in own)
    return {name: p.detach().clone() for name, p in own.items()}


EXCHANGES = [("ulysses", 4, 2), ("ulysses", 4, 4), ("gather", 4, 2), ("gather", 3, 4), ("auto", 4, 4), ("auto", 6, 4)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work: dict[str, Any] = {
        f"{kind}-{heads}-{ranks}": partial(exchanged, kind, heads, ranks) for kind, heads, ranks in EXCHANGES
    }
    work |= {name: partial(first_weights, layout, RANKS if name != "one rank" else 1) for name, layout in DIVIDED.items()}
    work |= {"parity": partial(parity.parity, ParityConfig()), "fresh": fresh_model}
    return together(work, Path(tmp_path_factory.mktemp("ranks")))


@pytest.mark.parametrize(("kind", "heads", "ranks"), EXCHANGES)
def test_an_exchange_is_attention(found: dict[str, Any], kind: str, heads: int, ranks: int) -> None:
    name, forward, backward = found[f"{kind}-{heads}-{ranks}"]
    assert name == {"ulysses": "Ulysses", "gather": "Gather", "auto": "Ulysses" if heads % ranks == 0 else "Gather"}[kind]
    assert forward <= 1e-12 and backward <= 1e-12


def test_layouts_agree(found: dict[str, Any]) -> None:
    agreements: list[Agreement] = found["parity"].agreements
    assert {(a.axes, a.kind) for a in agreements} == set(runs(LAYOUTS[1:], RANKS))
    assert {a.axes for a in agreements} == set(LAYOUTS[1:])
    for agreement in agreements:
        assert agreement.agrees(1e-5), found["parity"].table(1e-5)
        assert any(name.startswith("text.bytes") for name in agreement.gradients)
        assert len(agreement.gradients) == len(agreements[0].gradients) > 60


@pytest.mark.parametrize("name", list(DIVIDED)[1:])
def test_first_weights_are_the_same_however_they_are_divided(found: dict[str, Any], name: str) -> None:
    one = found["one rank"]
    assert found[name].keys() == one.keys() and all(torch.equal(found[name][key], value) for key, value in one.items())
    drawn = [value for key, value in one.items() if key.startswith("backbone.blocks") and value.any() and "norm" not in key]
    assert len(drawn) == 2 * 10 and len({float(value.flatten()[0]) for value in drawn}) == len(drawn), "each its own"


def test_a_rank_has_one_parameter_whole_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All lies on the meta device until it is divided; then the last whole tensor is gone before the next is made."""
    model, drawn = TASK.build(), []
    assert all(p.is_meta for p in model.parameters())
    for part in model.values():

        def watched(name: str, values: torch.Tensor, random: Any, own: Any = part.initial) -> torch.Tensor:
            assert all(seen() is None for seen in drawn), "an earlier one is still there"
            drawn.append(weakref.ref(values))
            return cast("torch.Tensor", own(name, values, random))

        monkeypatch.setattr(part, "initial", watched)
    materialise(model, torch.device("cpu"), 0)
    assert len(drawn) == len(list(model.parameters()))


def test_a_fresh_model_proves_nothing(found: dict[str, Any]) -> None:
    assert "is zero: any layout would agree with it" in found["fresh"]


def test_gradients_that_are_a_share_of_the_true_ones_are_seen() -> None:
    true = Trace([1.0], [{"a": torch.tensor([1.0, -4.0]), "b": torch.ones(2)}])
    half = Trace([1.0], [{"a": torch.tensor([0.5, -2.0]), "b": torch.ones(2)}])
    found = Found(true.losses, [compared(true, half, Axes(1, 2, 1), "gather")])
    assert found.agreements[0].worst == ("a", 0.5) and not found.agreements[0].agrees(1e-5)
    table = found.table(1e-5).splitlines()
    assert table[1].split() == ["1", "1", "1", "reference,", "loss", "1.000000"]
    assert [line.split() for line in table[2:]] == [["1", "2", "1", "gather", "0.0e+00", "5.0e-01", "a"], ["5.0e-01", "a"]]
    assert found.table(0.6).splitlines() == table[:3]


def test_tokens_must_divide_between_context_ranks() -> None:
    with pytest.raises(ValueError, match="63 tokens do not divide between 4 context ranks"):
        own_part(63, 0, 4)
