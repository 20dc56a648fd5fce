"""Four ranks on one machine, started once: all that needs a process group runs in them, one thing after the other."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RANKS = 4
Work = Callable[[], Any]


def together(work: dict[str, Work], folder: Path, ranks: int = RANKS) -> dict[str, Any]:
    """What each piece of work gave on rank 0, or the error that it raised there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    mp.spawn(_rank, (ranks, port, work, folder), nprocs=ranks)
    found: dict[str, Any] = torch.load(folder / "found.pt", weights_only=False)
    return found


def _rank(rank: int, ranks: int, port: int, work: dict[str, Work], folder: Path) -> None:
    os.environ.update(GLOO_SOCKET_IFNAME="lo", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    found = {name: piece() for name, piece in work.items()}
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()
