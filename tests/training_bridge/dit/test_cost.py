"""The arithmetic of layouts: FLOPs as torch counts them, and rankings that a person would give."""

import pytest
from torch.utils.flop_counter import FlopCounterMode

from tests.training_bridge.dit.test_model import backbone, inputs
from training_bridge.dit.cost import Candidate, Machine, Workload, explained, forward_flops, mfu, model_flops, ranked
from training_bridge.dit.model import TIME_FEATURES, BackboneConfig, config_of

LONG = 73_728


def test_flops_are_those_that_torch_counts() -> None:
    config = BackboneConfig(layers=2, width=64, heads=4, ffn=96, lengths=(4, 6, 8), kernels=("math",))
    model, (patches, time, text, mask, grid) = backbone(config), inputs(config, batch=1, grid=(4, 6, 8))
    with FlopCounterMode(display=False) as forward:
        loss = model(patches, time, text, mask, grid).sum()
    d = config.width
    of_time = 2 * (TIME_FEATURES * d + d * d + 6 * d * d)  # once a sample, and not counted
    assert forward.get_total_flops() == sum(forward_flops(config, 192, 16)) + of_time
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert backward.get_total_flops() == pytest.approx(2 * sum(forward_flops(config, 192, 16)), rel=0.05)


def test_attention_is_half_of_the_work_at_the_real_length() -> None:
    products, attention = forward_flops(config_of("30b"), LONG, 512)
    ours = 28.99e9 - 48 * 2 * 6144**2  # keys and values of text are made once a word, not once a token
    assert products == pytest.approx(2 * ours * LONG, rel=0.01)
    assert attention == pytest.approx(4 * 48 * 6144 * LONG**2, rel=0.01)
    assert mfu(config_of("30b"), LONG, 512, 1 / 16, 989e12) == pytest.approx(
        model_flops(config_of("30b"), LONG, 512) / 16 / 989e12
    )


def movie_gen(gpus: int = 6144, batch: int = 768, size: str = "30b") -> list[Candidate]:
    return ranked(Workload(config=config_of(size), tokens=LONG, batch=batch), gpus)


def test_the_papers_layout_ranks_near_the_top() -> None:
    found = movie_gen()
    place = next(i for i, c in enumerate(found) if (c.tensor, c.context) == (4, 2))
    assert place <= 3 and found[place].step_s <= 1.1 * found[0].step_s, explained(found)
    assert found[place].recompute == "selective" and found[place].memory_gb < 72
    assert all(c.replicate * c.shard * c.context * c.tensor == 6144 for c in found)
    assert all(c.replicate * c.shard * c.micro * c.accumulate == 768 for c in found)
    assert [c.step_s for c in found] == sorted(c.step_s for c in found)


def test_images_need_no_context_and_small_models_no_tensor_axis() -> None:
    image = ranked(Workload(config=config_of("1b"), tokens=256, batch=512), 8)[0]
    assert (image.context, image.tensor) == (1, 1)
    alone = ranked(Workload(config=config_of("1b"), tokens=LONG, batch=1), 1)
    assert [(c.recompute, c.context, c.tensor) for c in alone] == [("selective", 1, 1)]


def test_heads_that_do_not_divide_are_gathered() -> None:
    kinds = {(c.context, c.tensor): c.exchange for c in movie_gen(gpus=64, batch=2, size="5b")}  # 24 heads
    assert kinds[8, 4] == kinds[16, 2] == kinds[32, 1] == "gather"
    assert {c.exchange for c in movie_gen() if (c.context, c.tensor) == (4, 4)} == {"ulysses"}  # 48 heads


def test_slower_networks_keep_communication_inside_nodes() -> None:
    work = Workload(config=config_of("30b"), tokens=LONG, batch=256)
    slow = ranked(work, 2048, Machine(network_gbs=4.0))
    assert slow[0].context * slow[0].tensor <= 8


def test_it_says_why() -> None:
    text = explained(movie_gen(), 3)
    assert len(text.splitlines()) == 5 and "before" in text.splitlines()[-1] and "s less of" in text.splitlines()[-1]


def test_what_does_not_fit_is_said_with_the_numbers() -> None:
    with pytest.raises(
        ValueError, match=r"no layout of 8 cards takes steps of 8 samples of 73728 tokens; the smallest needs \d+ GB"
    ):
        movie_gen(gpus=8, batch=8)
    with pytest.raises(ValueError, match="more cards than samples"):
        ranked(Workload(config=config_of("30b"), tokens=63, batch=1), 64)
