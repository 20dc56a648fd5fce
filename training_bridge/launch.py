"""Where a process stands among its ranks: torchrun, Slurm's srun, or alone."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
"""What torchrun sets, and where srun says the same. `MASTER_ADDR` and `MASTER_PORT` are the batch script's to set."""
PATIENCE = timedelta(minutes=10)
"""A rank that is so long behind the others is given up."""


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among the others."""

    rank: int
    world: int
    device: torch.device
    control: dist.ProcessGroup
    """A gloo group of all ranks for numbers, stop flags and checkpoints."""


def ranks(device: str | None = None) -> Ranks:
    """Join the other ranks. `device` None: a GPU where there is one.

    Raises ValueError where the environment names ranks but not where they meet.
    """
    rank, world, local = _placed(os.environ)
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.device(kind, local) if kind == "cuda" else torch.device(kind)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if dist.is_initialized():
        return Ranks(rank, world, place, dist.new_group(backend="gloo", timeout=PATIENCE))
    if world == 1:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
        return Ranks(0, 1, place, dist.group.WORLD)  # type: ignore[arg-type]
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise ValueError(f"{world} ranks, and {' and '.join(missing)} not set: start by torchrun, or set where rank 0 listens")
    backend = "nccl" if place.type == "cuda" else "gloo"
    dist.init_process_group(backend, rank=rank, world_size=world, timeout=PATIENCE)
    return Ranks(rank, world, place, dist.new_group(backend="gloo", timeout=PATIENCE))


def _placed(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """(rank, world, rank on this machine)."""
    among = {} if "MASTER_ADDR" not in environment else environment  # a batch script's own commands are alone
    found = {name: environment.get(name, among.get(other)) for name, other in SLURM.items()}
    if found["RANK"] is None or found["WORLD_SIZE"] is None:
        return 0, 1, 0
    return int(found["RANK"]), int(found["WORLD_SIZE"]), int(found["LOCAL_RANK"] or 0)
