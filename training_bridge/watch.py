"""Ranks watch each other: when one dies or stands still, the others stop too and say so, whoever started them."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

LOST = 76
"""Exit code of a rank whose peer is gone: start the run again, it goes on from its last checkpoint."""
ROUND_S = 2.0
"""Seconds from one round to the next."""


@contextmanager
def watched(patience_s: float = 45.0) -> Iterator[None]:
    """Inside, this process ends with LOST when a peer has died, or has not answered for `patience_s` seconds.

    A thread of each rank adds up a number with the others', over a group of its own, every ROUND_S: a dead process's
    connections break at once, a frozen machine's run out of time. Training itself cannot be asked: it may wait in a kernel
    for the lost rank for ever. All ranks enter together; the first that leaves ends the watch for all.
    """
    if dist.get_world_size() == 1:
        yield
        return
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=patience_s))
    leaving = threading.Event()
    thread = threading.Thread(target=_rounds, args=(group, leaving), daemon=True, name="watch")
    thread.start()
    yield  # a rank that fails dies with its error, and the others see that
    leaving.set()
    thread.join()


def _rounds(group: dist.ProcessGroup, leaving: threading.Event) -> None:
    while True:
        leaves = torch.tensor(float(leaving.wait(ROUND_S)))
        try:
            dist.all_reduce(leaves, group=group)
        except RuntimeError as error:
            said = str(error).strip().splitlines()[0]
            print(f"rank {dist.get_rank()}: another rank is gone, so this one stops ({said})", file=sys.stderr, flush=True)
            os._exit(LOST)
        if leaves.item():
            return
