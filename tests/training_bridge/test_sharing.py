"""A group of two: one rank reads, both have the same; and a rank that fails does not leave the other waiting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training_bridge.samples import TALL, WIDE, draw_noise, make_shards
from training_bridge import index
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
    read = micro_batches(plan, Reader({"d": source}, 0), draw_noise, start=0, rank=0, world=1, micro_tokens=12, workers=0)
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


def main(rank: int, folder: str, store: str) -> None:
    """What each of the two ranks does."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    group = dist.group.WORLD
    assert group is not None
    truth = batches(folder)
    got = list(shared(iter(truth) if rank == 0 else None, group))
    assert len(got) == STEPS
    for left, right in zip(truth, got, strict=True):
        same(left, right)

    def failing():  # type: ignore[no-untyped-def]
        yield truth[0]
        raise OSError("the disk is gone")

    with pytest.raises(OSError if rank == 0 else RuntimeError, match=r"the disk is gone|its own error says why"):
        list(shared(failing() if rank == 0 else None, group))
    dist.destroy_process_group()
    print("the same")


def test_two_ranks_have_what_one_of_them_reads(tmp_path: Path) -> None:
    folder = make_shards(tmp_path / "shards", {WIDE: 5, TALL: 4})
    command = [sys.executable, "-W", "error", "-m", "tests.training_bridge.test_sharing"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(folder), str(tmp_path / "store")], stdout=-1, stderr=-1, text=True, env=env)
        for rank in range(2)
    ]
    for rank in ranks:
        out, err = rank.communicate(timeout=60)
        assert (rank.returncode, out) == (0, "the same\n"), err


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
