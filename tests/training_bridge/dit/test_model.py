"""The backbone: its size, its tokens, what its parts do, and what is recomputed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from bucketing.buckets import all_buckets
from training_bridge.dit.model import (
    SIZES,
    Backbone,
    BackboneConfig,
    check_grid,
    config_of,
    grid_of,
    grow_positions,
    grown,
    kernels_seen,
    parameters_of,
    patchify,
    time_features,
    token_places,
    unpatchify,
)
from training_bridge.dit.parallel import Recompute, check_tensor, compiled, recomputed
from training_bridge.dit.parity import without_zeros

SMALL = BackboneConfig(layers=2, width=64, heads=4, ffn=96, lengths=(4, 6, 8))
GRID = (2, 3, 4)


def backbone(config: BackboneConfig = SMALL) -> Backbone:
    model = Backbone(config)
    without_zeros(model, 0)
    return model


def inputs(
    config: BackboneConfig = SMALL, batch: int = 2, grid: tuple[int, int, int] = GRID, text: int = 16
) -> tuple[Any, ...]:
    random = torch.Generator().manual_seed(1)
    t, h, w = grid
    patches = patchify(torch.randn(batch, config.channels, t, 2 * h, 2 * w, generator=random))
    mask = torch.ones(batch, text, dtype=torch.bool)
    mask[0, 5:] = False
    tokens = torch.randn(batch, text, config.width, generator=random)
    return patches, time_features(torch.rand(batch, generator=random)), tokens, mask, grid


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("more", [{}, {"qk_norm": False, "lengths": (32, 96, 96), "channels": 8}])
def test_parameters_are_as_many_as_the_closed_form_says(size: str, more: dict[str, Any]) -> None:
    config = config_of(size, **more)
    with torch.device("meta"):
        model = Backbone(config)
    assert sum(p.numel() for p in model.parameters()) == parameters_of(config)


def test_the_paper_counts_its_layers() -> None:
    config = config_of("30b")
    d, f = config.width, config.ffn
    assert (config.layers, d, f, config.heads, d // config.heads) == (48, 6144, 16384, 48, 128)
    assert config.layers * (8 * d * d + 3 * d * f) == pytest.approx(28.99e9, rel=1e-3)
    assert parameters_of(config) == pytest.approx(30e9, rel=0.03)


def test_patches_are_a_convolution_of_kernel_and_stride_two() -> None:
    x = torch.randn(2, 16, 3, 6, 8)
    weight = torch.randn(5, 16, 1, 2, 2)
    by_conv = torch.nn.functional.conv3d(x, weight, stride=(1, 2, 2)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(x) @ weight.flatten(1).T, by_conv, atol=1e-4, rtol=1e-4)
    assert torch.equal(unpatchify(patchify(x), grid_of(x.shape)), x)
    with pytest.raises(ValueError, match="7 x 8 do not divide"):
        patchify(torch.zeros(1, 16, 1, 7, 8))


@pytest.mark.parametrize(("bucket_class", "rows"), [(256, 32), (768, 96)])
def test_every_bucket_fits_its_classs_tables(bucket_class: int, rows: int) -> None:
    for bucket in all_buckets(bucket_class):
        width, height = bucket.size
        grid = grid_of((16, -(-bucket.frames // 8), height // 8, width // 8))
        check_grid(config_of("1b", lengths=(32, rows, rows)), grid)
        assert grid[1] * grid[2] % 4 == 0  # divides between the ranks of an axis, whatever the length


def test_the_768_class_has_73728_tokens() -> None:
    assert [grid_of((1, 16, 32, h, w)) for h, w in ((96, 96), (72, 128))] == [(32, 48, 48), (32, 36, 64)]
    assert 32 * 48 * 48 == 32 * 36 * 64 == 73_728


def test_a_fresh_block_is_nothing_and_a_fresh_model_is_still() -> None:
    model = Backbone(SMALL)
    patches, time, text, mask, grid = inputs()
    x, places, modulation, _ = model.entry(patches, token_places(grid, 0, 24, patches.device), time)
    assert torch.equal(model.blocks[0](x, places, modulation, text, mask), x + places)
    assert not model(patches, time, text, mask, grid).any()


def test_parts_of_a_sequence_know_their_places() -> None:
    places = token_places(GRID, 0, 24, torch.device("cpu"))
    assert places.tolist() == [[t, h, w] for t in range(2) for h in range(3) for w in range(4)]
    assert torch.equal(token_places(GRID, 12, 12, torch.device("cpu")), places[12:])


def test_padding_of_text_changes_nothing() -> None:
    model = backbone()
    patches, time, text, mask, grid = inputs()
    found = model(patches, time, text, mask, grid)
    junk = torch.where(mask[..., None], text, 1e3)
    assert torch.equal(model(patches, time, junk, mask, grid), found)
    torch.testing.assert_close(model(patches[:1], time[:1], text[:1, :5], mask[:1, :5], grid), found[:1])


@pytest.mark.parametrize("what", ["time", "text", "places", "tokens"])
def test_every_input_reaches_every_token(what: str) -> None:
    model = backbone()
    patches, time, text, mask, grid = inputs(batch=1)
    before = model(patches, time, text, mask, grid)
    if what == "places":
        with torch.no_grad():
            model.entry.places["t"].weight[0] += 1
    elif what == "tokens":
        patches = patches.clone()
        patches[:, 0] += 1  # full attention: the first token is seen by the last and the other way round
    after = model(patches, time + (what == "time"), text + (what == "text"), mask, grid)
    assert ((after - before).abs().amax(-1) > 1e-4).all()


def test_positions_are_added_at_every_layer() -> None:
    seen: list[Tensor] = []
    model = Backbone(SMALL)  # blocks that are nothing add the positions, and only these
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    patches, time, text, mask, grid = inputs(batch=1)
    model(patches, time, text, mask, grid)
    places = sum(
        table.weight[token_places(grid, 0, 24, patches.device)[:, i]] for i, table in enumerate(model.entry.places.values())
    )
    torch.testing.assert_close(seen[0][0], model.entry.patches(patches)[0] + SMALL.layers * places)


def test_samples_longer_than_the_tables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(5, 3, 4\) tokens .* \(4, 6, 8\) rows"):
        backbone()(*inputs(grid=(5, 3, 4)))


def test_longer_tables_keep_positions_and_larger_classes_places() -> None:
    table = torch.tensor([[0.0], [3.0], [6.0], [9.0]])
    assert grown(table, 6, "extend").flatten().tolist() == [0, 3, 6, 9, 9, 9]
    larger = grown(table, 12, "interpolate").flatten().tolist()
    assert larger == pytest.approx([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9], abs=1e-6)  # three centres for one
    with pytest.raises(ValueError, match="4 rows cannot become one of 3"):
        grown(table, 3, "extend")


def test_a_grown_model_does_what_it_did_and_its_optimizer_goes_on() -> None:
    model, larger = backbone(), Backbone(BackboneConfig(layers=2, width=64, heads=4, ffn=96, lengths=(6, 18, 24)))
    optimizer = torch.optim.AdamW(model.parameters())
    model(*inputs()).square().mean().backward()
    optimizer.step()
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    first = {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}
    grow_positions(state, [first], larger.config.lengths, time="extend", space="interpolate")
    larger.load_state_dict(state)
    assert torch.equal(larger.entry.places["t"].weight[:4], model.entry.places["t"].weight)
    assert not first["entry.places.t.weight"][4:].any() and first["entry.places.t.weight"][:2].any()
    torch.testing.assert_close(larger.entry.places["h"].weight[1::3], model.entry.places["h"].weight)


@pytest.mark.parametrize(("how", "times"), [("none", 1), ("selective", 1), ("full", 2)])
def test_attention_is_not_recomputed(how: Recompute, times: int) -> None:
    model, plain = backbone(), backbone()
    for block in model.blocks:
        recomputed(block, how)
    plain(*inputs()).square().sum().backward()
    with kernels_seen() as seen:
        model(*inputs()).square().sum().backward()
    assert seen == {"flash_attention_for_cpu": 2 * SMALL.layers * times}
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_kernel_is_chosen() -> None:
    chosen = BackboneConfig(layers=2, width=64, heads=4, ffn=96, lengths=(4, 6, 8), kernels=("math",))
    with kernels_seen() as seen:
        found = backbone(chosen)(*inputs())
    assert seen == {"math": 4}
    torch.testing.assert_close(found, backbone()(*inputs()), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_one_graph_serves_every_length() -> None:
    torch._dynamo.reset()
    counters.clear()
    deep = BackboneConfig(layers=4, width=64, heads=4, ffn=96, lengths=(4, 6, 8))
    model, plain, graphs = backbone(deep), backbone(deep), []
    for block in model.blocks:
        recomputed(block, "selective")
        compiled(block, backend="eager")
    for batch, grid, text in ((2, (2, 3, 4), 16), (2, (4, 6, 8), 32), (3, (3, 2, 5), 48)):
        args = inputs(batch=batch, grid=grid, text=text)
        torch.testing.assert_close(model(*args), plain(*args))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == graphs[:1] * 3 and graphs[0] < deep.layers  # nor does each block need its own
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: config_of("2b"), "no size '2b': there are tiny, 1b, 5b, 30b"),
        (lambda: BackboneConfig(layers=1, width=100, heads=3, ffn=8), "width 100 does not divide into 3 heads"),
        (lambda: config_of("tiny", kernels=("fast",)), "kernels fast are none of cudnn, flash, efficient, math"),
        (lambda: check_tensor(SMALL, 8), "4 heads do not divide between 8 tensor ranks"),
    ],
)
def test_bad_settings_are_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()
