"""Layouts: they fit or say why not, and every rank knows its place."""

import pytest

from training_bridge.layout import Layout


def test_what_is_left_is_sharded() -> None:
    assert Layout().fitted(8) == Layout(shard=8)
    assert Layout(replicate=2, context=2).fitted(16).shard == 4
    assert Layout(tensor=4, context=2).fitted(8).world == 8


@pytest.mark.parametrize(
    ("layout", "world", "said"),
    [
        (Layout(context=3), 8, r"3 x tensor 1 = 6 ranks, and there are 8\. .* = 3 does not divide 8: it may be 1, 2, 4"),
        (
            Layout(replicate=3, tensor=2),
            8,
            r"= 6 ranks, and there are 8\. With context x tensor = 2, replicate x shard is 4: replicate may be 1, 2, 4",
        ),
        (Layout(shard=4, tensor=4), 8, "= 16 ranks, and there are 8.* replicate x shard is 2: replicate may be 1, 2, shard 0"),
        (Layout(context=0), 8, "are 1 or more"),
    ],
)
def test_what_does_not_fit_is_said_with_the_numbers(layout: Layout, world: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        layout.fitted(world)


def test_peers_see_the_same_samples() -> None:
    layout = Layout(replicate=2, shard=2, context=2, tensor=2).fitted(16)
    for frames, data in ((32, 4), (1, 8)):
        places = [layout.place(rank, frames) for rank in range(16)]
        assert {world for _, world in places} == {data} and {place for place, _ in places} == set(range(data))
        for rank in range(16):
            peers = layout.peers(rank, frames)
            assert rank in peers and {places[peer] for peer in peers} == {places[rank]}
            assert sum(place == places[rank] for place in places) == len(peers)
