"""A group of two: one rank reads, both have the same; and a rank that fails does not leave the other waiting."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.training_bridge.launched import launched
from tests.training_bridge.samples import TALL, WIDE, draw_noise, make_shards
from training_bridge import index
from training_bridge.launch import ranks
from training_bridge.loader import Batch, micro_batches
from training_bridge.plan import Mix, Plan, tokens
from training_bridge.reader import Reader, Source
from training_bridge.sharing import shared
from training_bridge.view import View

STEPS = 4


def batches(folder: str) -> list[Batch]:
    """A few batches, with ragged encodings added: one of them is empty, one text is not ASCII."""
    source = Source(index.read(folder), View(8, 32, 48))
    plan = Plan({"d": source.shown}, Mix(global_tokens=4 * tokens(WIDE) // 9), 0)
    read = micro_batches(plan.step, Reader({"d": source}, 0), draw_noise, start=0, micro_tokens=12, workers=0)
    found = [next(read) for _ in range(STEPS)]
    for number, batch in enumerate(found):
        lengths = [(number + place) % 3 for place in range(len(batch.keys))]
        batch.ragged["t5"] = [torch.full((length, 4), float(number + length)) for length in lengths]
        batch.texts[0] = "a tram in Kraków"
        batch.bad.append(("c009", "gone"))
    return found


def same(left: Batch, right: Batch) -> None:
    for name, value in vars(left).items():
        other = getattr(right, name)
        torch.testing.assert_close(other, value, rtol=0, atol=0) if name in ("tensors", "ragged", "draws", "weights") else None
        assert name in ("tensors", "ragged", "draws", "weights") or other == value, name
    assert left.draws["drop"].dtype == right.draws["drop"].dtype == torch.bool


def main(folder: str) -> None:
    """What each of the two ranks does."""
    here = ranks("cpu")
    group, truth = here.control, batches(folder)
    own = iter(truth if here.rank == 0 else [truth[0]])
    got = list(shared(own, [group, group, None, group]))
    alone = truth[2] if here.rank == 0 else truth[0]
    for left, right in zip([truth[0], truth[1], alone, truth[3]], got, strict=True):
        same(left, right)

    def failing() -> Iterator[Batch]:
        yield truth[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError if here.rank == 0 else RuntimeError, match=r"the disk is gone|its own error says why"):
        list(shared(failing(), [group, group]))
    print("the same")


def test_two_ranks_have_what_one_of_them_reads_and_what_is_their_own(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "shards", {WIDE: 5, TALL: 4})
    assert launched(2, "tests.training_bridge.test_sharing", str(folder)) == ["the same\n"] * 2


if __name__ == "__main__":
    main(sys.argv[1])
