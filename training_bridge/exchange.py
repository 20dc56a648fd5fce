"""Attention over a sequence whose parts lie on the ranks of a context group, with gradients.

A part is a run of neighbouring tokens, all of one length, in the order of the ranks. Nothing but queries, keys and values
of the video is ever exchanged: text is on every rank, and attention to it is each rank's own (exchanged, its gradient would
count once a rank). Attention is full, so that no part has more work than another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import _functional_collectives as collectives

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention over whole sequences: queries, keys and values (B, N, S, E) to (B, N, S, E)."""
Kind = Literal["auto", "ulysses", "gather"]

# Since torch 2.13 the first of these names; 2.11 has the second.
_all_gather = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd


@dataclass(frozen=True)
class Ulysses:
    """Two all-to-alls: from parts of the sequence with all heads to some heads with the whole sequence, and back.

    Each rank sends and receives 4 (c - 1) / c of its tokens' activations forward, and as much backward, however many ranks c.
    Heads must divide by c.
    """

    group: dist.ProcessGroup

    def __call__(self, q_BNSE: Tensor, k_BNSE: Tensor, v_BNSE: Tensor, attend: Attend) -> Tensor:
        """Queries, keys and values of this rank's tokens to their attention over all tokens."""
        ranks = self.group.size()
        shares = [torch.unflatten(x, 1, (ranks, -1)).movedim(1, 0) for x in (q_BNSE, k_BNSE, v_BNSE)]
        sent = torch.stack(shares, dim=1)  # rank, 3, B, N / ranks, S, E
        qkv = self._all_to_all(sent).movedim(0, 3).flatten(3, 4)  # 3, B, N / ranks, ranks S, E
        y = attend(qkv[0], qkv[1], qkv[2])
        parts = torch.unflatten(y, 2, (ranks, -1)).movedim(2, 0)  # rank, B, N / ranks, S, E
        return self._all_to_all(parts).movedim(0, 1).flatten(1, 2)

    def _all_to_all(self, x: Tensor) -> Tensor:
        """Slice i of the first axis goes to rank i; slice i of the answer came from it."""
        return collectives.all_to_all_single_autograd(x.contiguous(), None, None, self.group)


@dataclass(frozen=True)
class Gather:
    """Every rank gathers all keys and values, and attends from its own queries (the paper's way).

    Forward each rank receives 2 (c - 1) of its tokens' activations; backward the gradients are reduced and scattered.
    """

    group: dist.ProcessGroup

    def __call__(self, q_BNSE: Tensor, k_BNSE: Tensor, v_BNSE: Tensor, attend: Attend) -> Tensor:
        """Queries, keys and values of this rank's tokens to their attention over all tokens."""
        kv = torch.stack([k_BNSE, v_BNSE]).movedim(3, 0).contiguous()  # S, 2, B, N, E: ranks' parts are one after the other
        kv = _all_gather(kv, 0, self.group).movedim(0, 3)
        return attend(q_BNSE, kv[0], kv[1])


def exchange(kind: Kind, group: dist.ProcessGroup, heads: int) -> Ulysses | Gather | None:
    """The exchange for a group; None where it has one rank. `heads` are those of this rank's share of the model.

    `auto` takes Ulysses where the heads divide. Raises ValueError where `ulysses` is asked for and they do not.
    """
    ranks = group.size()
    if ranks == 1:
        return None
    if kind == "ulysses" and heads % ranks:
        raise ValueError(f"{heads} heads do not divide between {ranks} context ranks: use `gather`")
    return Gather(group) if kind == "gather" or heads % ranks else Ulysses(group)


def own_part(tokens: int, rank: int, ranks: int) -> slice:
    """The tokens of a rank. Raises ValueError where they do not divide."""
    if tokens % ranks:
        raise ValueError(f"{tokens} tokens do not divide between {ranks} context ranks")
    each = tokens // ranks
    return slice(rank * each, (rank + 1) * each)
