"""How many requests a server gets at once."""

from dataclasses import dataclass

FIRST = 8
"""Requests at once with which a server is begun."""
FIRST_STEP, STEP = 2.0, 1.25
"""By how much more is tried each time, until a step was too far, and from then on."""
WORTH = 0.3
"""Least share of a step that must come out as more answers a second; below, the server was full before."""
HOLD = 10
"""Windows between two tries for more."""
BACK = 0.9
"""What is left of the limit where the server says that it is too much."""


@dataclass
class Limit:
    """More at once as long as that brings more answers a second, fewer where the server says so; `most` at most.

    After each window of twice as many answers as requests at once, the rate is compared with that before the last step. A
    model that batches answers more a second the more it is asked, and each request later: latency alone does not show
    when it is full, their ratio does.
    """

    most: int
    now: float = FIRST
    before: float = 0.0
    """The limit before the last step, 0 where none is being tried."""
    rate: float = 0.0
    step: float = FIRST_STEP
    hold: int = 0
    began: float = 0.0
    answered: int = 0
    full: bool = True
    cut_at: float = 0.0

    def __post_init__(self) -> None:
        self.now = min(self.now, self.most)

    def answer(self, at: float, in_flight: int) -> None:
        """A request was answered at this time (s), when so many were under way, itself included."""
        self.full &= in_flight >= int(self.now)
        self.answered += 1
        if not self.began:
            self.began, self.answered = at, 0
        elif self.answered >= 2 * self.now:
            if self.full:  # else the rate says how much was asked, not what the server can do
                self._judge(self.answered / max(at - self.began, 1e-6))
            self.began, self.answered, self.full = at, 0, True

    def _judge(self, rate: float) -> None:
        if self.hold:
            self.hold -= 1
        elif self.before and rate / self.rate - 1 < WORTH * (self.now / self.before - 1):
            # A little more than was enough: what is on its way to the server keeps none of its places busy.
            self.now, self.before, self.hold, self.step = min(self.most, self.before * STEP), 0.0, HOLD, STEP
        elif self.now < self.most:
            self.before, self.rate = self.now, rate
            self.now = min(self.most, max(self.now + 1, self.now * self.step))

    def overloaded(self, began: float, at: float) -> None:
        """A request begun at this time met a full server. Those begun before the last cut say nothing new."""
        if began >= self.cut_at:
            self.now, self.before, self.hold, self.step = max(1.0, self.now * BACK), 0.0, HOLD, STEP
            self.began, self.cut_at = 0.0, at
