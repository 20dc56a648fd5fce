"""From shots to clips: which spans of a source become clips. A pure decision over frame times, cuts and transitions."""

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

SLACK_S = 1e-3
"""Durations are sums of rounded time stamps: this much over or under a limit still meets it."""

Span = tuple[int, int]
"""Half-open [start_frame, end_frame)."""


class ClipConfig(BaseModel):
    """Which spans of a shot become clips."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_s: float = Field(default=4.0, gt=0)
    """Shorter shots give no clip."""
    max_s: float = Field(default=16.0, gt=0)
    """Longer shots give several equal clips of at most this."""
    policy: Literal["all", "paper"] = "all"
    """`all`: every shot. `paper`: at most two shots longer than `max_s`, in each a random span of `min_s` to `max_s`."""
    skip_start_s: float = Field(default=0.0, ge=0)
    """The opening seconds of a source that no clip may touch (unsteady camera, title transitions)."""

    @model_validator(mode="after")
    def _ordered(self) -> "ClipConfig":
        if self.max_s < self.min_s:
            raise ValueError(f"max_s ({self.max_s}) is below min_s ({self.min_s})")
        return self


def spans(
    time_s: ArrayLike,
    cut_frames: Sequence[int],
    gradual: Sequence[dict[str, Any]],
    end_s: float,
    config: ClipConfig,
    seed_key: str,
) -> list[Span]:
    """The clips of a source as frame spans, in order of time; none crosses a cut or touches a gradual transition.

    `time_s` is the time of every frame, `end_s` the end of the last one; `cut_frames` the first frames of new shots;
    `gradual` has half-open frame spans `start`, `end`. `seed_key` decides the draws of the policy `paper`.
    """
    edges = np.append(np.asarray(time_s, dtype=np.float64), end_s)
    found = _shots(edges, cut_frames, gradual, config.skip_start_s)
    if config.policy == "paper":
        return _random_spans(edges, found, config, seed_key)
    return [piece for shot in found for piece in _pieces(edges, shot, config)]


def _shots(
    edges: NDArray[np.float64], cut_frames: Sequence[int], gradual: Sequence[dict[str, Any]], skip_s: float
) -> list[Span]:
    """Single shots without their transitions."""
    frames = len(edges) - 1
    first = int(np.searchsorted(edges[:frames], skip_s - SLACK_S)) if skip_s > 0 else 0
    usable = np.ones(frames + 1, dtype=bool)
    usable[:first] = usable[frames] = False
    for span in gradual:
        usable[span["start"] : span["end"]] = False
    breaks = {0, frames, *(c for c in cut_frames if 0 < c < frames)}
    breaks |= set((np.flatnonzero(usable[1:] != usable[:-1]) + 1).tolist())
    points = sorted(b for b in breaks if b <= frames)
    return [(a, b) for a, b in itertools.pairwise(points) if usable[a]]


def _pieces(edges: NDArray[np.float64], shot: Span, config: ClipConfig) -> list[Span]:
    """Equal pieces of at most `max_s`, or none where that would make them shorter than `min_s`."""
    start, end = shot
    length = edges[end] - edges[start]
    if length < config.min_s - SLACK_S:
        return []
    for count in range(max(1, math.ceil((length - SLACK_S) / config.max_s)), end - start + 1):
        targets = edges[start] + length * np.arange(count + 1) / count
        bounds = [_nearest(edges, t) for t in targets]
        bounds[0], bounds[-1] = start, end
        lengths = np.diff(edges[bounds])
        if lengths.max() <= config.max_s + SLACK_S:
            if lengths.min() >= config.min_s - SLACK_S:
                return list(itertools.pairwise(bounds))
            break
    return _middle(edges, shot, config)


def _middle(edges: NDArray[np.float64], shot: Span, config: ClipConfig) -> list[Span]:
    """As many whole `max_s` as fit, centred: for settings where no equal division is both long and short enough."""
    start, end = shot
    length = edges[end] - edges[start]
    count = int((length + SLACK_S) // config.max_s)
    begin = edges[start] + (length - count * config.max_s) / 2
    found = [_between(edges, shot, begin + i * config.max_s, begin + (i + 1) * config.max_s) for i in range(count)]
    return [s for s in found if edges[s[1]] - edges[s[0]] >= config.min_s - SLACK_S]


def _random_spans(edges: NDArray[np.float64], shots: list[Span], config: ClipConfig, seed_key: str) -> list[Span]:
    long = [s for s in shots if edges[s[1]] - edges[s[0]] > config.max_s + SLACK_S]
    chosen = sorted(long, key=lambda s: _draw(seed_key, s[0], "shot"))[:2]
    found = []
    for shot in sorted(chosen):
        length = config.min_s + (config.max_s - config.min_s) * _draw(seed_key, shot[0], "length")
        room = edges[shot[1]] - edges[shot[0]] - length
        begin = edges[shot[0]] + room * _draw(seed_key, shot[0], "start")
        span = _between(edges, shot, begin, begin + length)
        if edges[span[1]] - edges[span[0]] < config.min_s - SLACK_S and span[1] < shot[1]:
            span = (span[0], span[1] + 1)
        found.append(span)
    return found


def _between(edges: NDArray[np.float64], shot: Span, begin_s: float, end_s: float) -> Span:
    """The frames that lie whole between two times, inside a shot."""
    first = int(np.searchsorted(edges, begin_s - SLACK_S))
    last = int(np.searchsorted(edges, end_s + SLACK_S, side="right")) - 1
    return max(first, shot[0]), max(first, min(last, shot[1]))


def _nearest(edges: NDArray[np.float64], time_s: float) -> int:
    after = int(np.searchsorted(edges, time_s))
    if after == 0 or after == len(edges):
        return min(after, len(edges) - 1)
    return after if edges[after] - time_s <= time_s - edges[after - 1] else after - 1


def _draw(seed_key: str, shot: int, what: str) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    digest = hashlib.md5(f"{seed_key}:{shot}:{what}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
