"""Tiles along time: seams, weights, pieces of any length, and memory that does not grow with the video."""

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.training_bridge.tae.test_model import both, moved
from training_bridge.tae import tiling
from training_bridge.tae.model import TINY
from training_bridge.tae.tiling import Tiling, blended

CONFIG = replace(TINY, width=4, multipliers=(1, 2, 2, 2))


def cut(x: Tensor, *lengths: int) -> Iterator[Tensor]:
    yield from x.split([*lengths, x.shape[2] - sum(lengths)], dim=2)


def repeat(z: Tensor, frames: int) -> Tensor:
    """A decoder without neighbours: each latent frame eight times."""
    return z.repeat_interleave(8, dim=2)[:, :, :frames]


@pytest.mark.parametrize("frames", [1, 8, 31, 32, 33, 40, 41, 64, 77])
def test_what_does_not_look_across_time_is_the_same_in_tiles(frames: int) -> None:
    x = torch.rand(1, 3, frames, 2, 2)

    def encode(tile: Tensor) -> Tensor:
        assert tile.shape[2] <= 32
        return tile[:, :, ::8]

    z = torch.cat(list(tiling.encode(encode, cut(x, frames // 3, frames // 2))), dim=2)
    assert torch.equal(z, x[:, :, ::8])
    sizes = []

    def decode(tile: Tensor, count: int) -> Tensor:
        sizes.append(tile.shape[2])
        return repeat(tile, count)

    pieces = list(tiling.decode(decode, cut(z, z.shape[2] // 2), frames))
    torch.testing.assert_close(torch.cat(pieces, dim=2), repeat(z, frames))
    assert max(sizes) <= 4 and (len(sizes) == 1 or min(sizes) >= 3)


def test_away_from_seams_tiles_do_not_matter() -> None:
    def smooth(x: Tensor) -> Tensor:  # two frames to each side
        padded = torch.cat([x[:, :, :1]] * 2 + [x] + [x[:, :, -1:]] * 2, dim=2)
        return sum(padded[:, :, k : k + x.shape[2]] for k in range(5)) / 5

    x = torch.rand(1, 3, 96, 2, 2)
    z = torch.cat(list(tiling.encode(lambda tile: smooth(tile)[:, :, ::8], [x])), dim=2)
    same = (z == smooth(x)[:, :, ::8]).all(dim=1).flatten(2).all(dim=-1)[0]
    assert same.tolist() == [frame not in (32, 64) for frame in range(0, 96, 8)]
    decoded = torch.cat(list(tiling.decode(lambda z, n: smooth(repeat(z, n)), [z], 96)), dim=2)
    torch.testing.assert_close(decoded[:, :, :14], smooth(repeat(z, 96))[:, :, :14])
    assert not torch.allclose(decoded[:, :, 30:32], smooth(repeat(z, 96))[:, :, 30:32])


def test_the_later_tile_rises_from_0_by_one_nth_a_frame() -> None:
    earlier, later = torch.zeros(1, 1, 16, 1, 1), torch.ones(1, 1, 16, 1, 1)
    assert blended(earlier, later).flatten().tolist() == [j / 16 for j in range(16)]
    tiles = iter(range(3))
    z = torch.zeros(1, 1, 8, 1, 1)
    x = torch.cat(list(tiling.decode(lambda z, n: repeat(z, n) + next(tiles), [z], 64)), dim=2).flatten()
    ramp = torch.arange(16) / 16
    expected = torch.cat([torch.zeros(16), ramp, 1 + ramp, torch.full((16,), 2.0)])
    assert torch.equal(x, expected), "16 frames alone, two overlaps, 16 frames alone"


@torch.no_grad()
def test_tiles_of_the_model_are_what_it_makes_of_them_alone() -> None:
    encoder, decoder = both(CONFIG)
    moved(encoder, decoder)
    x = torch.rand(1, 3, 70, 16, 16) * 2 - 1
    z = torch.cat(list(tiling.encode(lambda tile: encoder(tile)[0], [x])), dim=2)
    assert torch.equal(z[:, :, 4:8], encoder(x[:, :, 32:64])[0]) and z.shape[2] == 9
    y = torch.cat(list(tiling.decode(decoder, cut(z, 3), 70)), dim=2)
    assert torch.equal(y[:, :, :16], decoder(z[:, :, :4], 32)[:, :, :16])
    middle = decoder(z[:, :, 2:6], 32)
    torch.testing.assert_close(y[:, :, 24], (decoder(z[:, :, :4], 32)[:, :, 24] + middle[:, :, 8]) / 2)
    assert torch.equal(y[:, :, 64:], decoder(z[:, :, 6:], 22)[:, :, 16:])


def test_latents_of_another_length_are_refused() -> None:
    z = torch.zeros(1, 1, 5, 1, 1)
    with pytest.raises(ValueError, match="the latents end 1 latent frames early"):
        list(tiling.decode(repeat, [z], 41))
    with pytest.raises(ValueError, match="32 frames have 4 latent frames, and there are more"):
        list(tiling.decode(repeat, cut(z, 4), 32))
    with pytest.raises(ValueError, match="tiles of 32 frames and an overlap of 24"):
        Tiling(overlap_frames=24)


@torch.no_grad()
def test_memory_does_not_grow_with_the_video() -> None:
    """Bytes of tensors that are alive at once, seen whenever a tile goes through the model."""
    encoder, decoder = both(CONFIG)
    sizes: dict[int, int] = {}
    gc.collect()
    gc.freeze()  # what is there already is not looked at
    for frames in (64, 512):
        most = 0

        def look() -> None:
            nonlocal most
            alive = {
                t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is Tensor
            }
            most = max(most, sum(alive.values()))

        def encode(tile: Tensor) -> Tensor:
            look()
            return encoder(tile)[0]

        def decode(tile: Tensor, count: int) -> Tensor:
            x = decoder(tile, count)
            look()
            return x

        source = (torch.rand(1, 3, 16, 16, 16) for _ in range(frames // 16))
        total = sum(piece.shape[2] for piece in tiling.decode(decode, tiling.encode(encode, source), frames))
        assert total == frames
        sizes[frames] = most
    gc.unfreeze()
    one_video = 512 * 3 * 16 * 16 * 4
    assert sizes[512] <= sizes[64] + one_video // 100, sizes
