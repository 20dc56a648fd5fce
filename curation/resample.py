"""Inverse-square-root resampling: how many clips of each concept are kept, so that large concepts weigh less.

A clip of a concept of n clips has the weight 1 / sqrt(n) (Mahajan et al. 2018, as Movie Gen uses it): of n clips
min(n, k sqrt(n)) are kept, k such that the whole is what is wanted. Quotas are integers whose expectations over seeds are
exactly these numbers: an offset is drawn, and the concepts, in an order that is drawn too, are rounded along their running
sum.
"""

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


class ResampleConfig(BaseModel):
    """How much of a subset is kept when its concepts are balanced: one of both."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float | None = Field(None, gt=0, le=1)
    """Of the clips that are left then. Movie Gen keeps 0.94 / 1.15 = 0.817."""
    count: PositiveInt | None = None

    @model_validator(mode="after")
    def _one(self) -> "ResampleConfig":
        if (self.share is None) == (self.count is None):
            raise ValueError("set one of share and count")
        return self

    def target(self, clips: int) -> int:
        """How many of so many clips are kept."""
        return min(clips, self.count) if self.count is not None else math.floor(clips * (self.share or 0) + 0.5)


class PeopleConfig(BaseModel):
    """The least share of clips with people in them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(ge=0.01, le=0.99)
    """To a thousandth. Movie Gen: 0.6 of its high-resolution set. Clips without people are dropped until it holds."""
    rule: str = "face_count_max >= 1"
    """Which clips have people in them, a rule over `clips`; what it cannot tell (null) has none."""
    least_similarity: float | None = Field(None, gt=-1, lt=1)
    """Instead of the rule: least `people_similarity` of a clip with people (`clusters.people`)."""

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules that are asked: one or none."""
        return (self.rule,) if self.least_similarity is None else ()


def expected(groups: Sequence[tuple[int, int]], target: int) -> list[float]:
    """How much of each group is kept on average, for `target` in all.

    A group is (clips in it, clips of its whole concept): of n clips of a concept of m, min(n, k n / sqrt(m)) are kept.
    """
    most = sum(n for n, _ in groups)
    left, total = float(min(target, most)), math.fsum(n / math.sqrt(m) for n, m in groups)
    kept = [0.0] * len(groups)
    for place in sorted(range(len(groups)), key=lambda g: groups[g][1]):  # the smallest concepts are the first to be whole
        n, m = groups[place]
        share = n / math.sqrt(m)
        kept[place] = min(float(n), left * share / total) if total > 0 else 0.0
        left, total = left - kept[place], total - share
    return kept


def quotas(
    groups: Sequence[tuple[int, int]], target: int, order: Sequence[int], offset: float, kept: Sequence[int] = ()
) -> list[int]:
    """Integer quotas with the expectations of `expected` where `offset` is uniform in [0, 1); `order` is that of rounding.

    Each is its expectation rounded up or down, and together they are `target`, or everything where there is less. No quota
    is less than what is `kept` of its group already; what that takes too much is taken off the others.
    """
    have = list(kept) or [0] * len(groups)
    given = list(have)
    free = list(order)
    while True:
        held = set(free)
        room = target - sum(have[place] for place in range(len(groups)) if place not in held)
        wanted = expected([groups[place] for place in free], max(0, room))
        whole = min(max(0, room), sum(groups[place][0] for place in free))
        sums, before = 0.0, 0
        for place, share in zip(free, wanted, strict=True):
            sums += share
            given[place] = min(groups[place][0], min(whole, math.floor(sums + offset + 1e-9)) - before)
            before += given[place]
        over = [place for place in free if given[place] < have[place]]
        if not over:
            return given
        for place in over:
            given[place] = have[place]
        free = [place for place in free if place not in set(over)]
