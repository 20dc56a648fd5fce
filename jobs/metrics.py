"""What a run tells Ray's metrics, which Prometheus scrapes from every node; docs/observability.md has the table.

Nothing is told, and Ray is not imported, where this process is no part of a Ray cluster, as under the inline engine.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache

from curation.stage import Source

UNIT_BOUNDS_S = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 30_000.0)


def committed(run: str, sources: Sequence[Source]) -> None:
    """A worker wrote these sources' unit: count them by outcome and stage, with what they cost."""
    if not _cluster():
        return
    meters = _meters()
    for source in sources:
        meters.sources.inc(1, {"run": run, "status": source.row["status"]})
        if source.row["error_code"]:
            meters.errors.inc(1, {"run": run, "code": source.row["error_code"], "stage": failed_in(source)})
        if (source.row["duration_s"] or 0) > 0:
            meters.video.inc(source.row["duration_s"], {"run": run})
        for stage, cost in source.costs.items():
            tags = {"run": run, "stage": stage}
            meters.stage_sources.inc(1, tags)
            if cost.cpu_s > 0:
                meters.cpu.inc(cost.cpu_s, tags)
        for clip in source.clips:
            if clip["error_code"]:
                meters.clip_errors.inc(1, {"run": run, "code": clip["error_code"]})


def unit_took(run: str, pool: str, wall_s: float) -> None:
    """A worker of `pool` is through with one unit."""
    if _cluster():
        _meters().unit.observe(wall_s, {"run": run, "pool": pool})


def finished_one(run: str, part: str, left: int) -> None:
    """The driver has the result of one more item of `part` (a unit or a shard); `left` wait or are being worked on."""
    if _cluster():
        _meters().items.inc(1, {"run": run, "part": part})
        _meters().left.set(left, {"run": run, "part": part})


def standing(run: str, states: Mapping[str, int], codes: Mapping[str, int]) -> None:
    """The driver's count of the whole run's sources, earlier drivers' included: it does not go with an actor."""
    if _cluster():
        for status, number in states.items():
            _meters().run_sources.set(number, {"run": run, "status": status})
        for code, number in codes.items():
            _meters().run_errors.set(number, {"run": run, "code": code})


def failed_in(source: Source) -> str:
    """The stage at which a source in error failed: the last that worked on it."""
    return "worker" if source.row["error_code"] == "worker_died" else next(reversed(source.costs), "worker")


def _cluster() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


class Meters:
    """The metrics of one process. Ray exports them as `ray_<name>`, a counter with `_total` behind it."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self.sources = Counter("reelset_sources", "Sources analyzed, by outcome", ("run", "status"))
        self.errors = Counter("reelset_errors", "Sources in error, by code and the stage that failed", ("run", "code", "stage"))
        self.clip_errors = Counter("reelset_clip_errors", "Clips with an error code", ("run", "code"))
        self.video = Counter("reelset_video_seconds", "Duration of the sources analyzed", ("run",))
        self.stage_sources = Counter("reelset_stage_sources", "Sources through a stage", ("run", "stage"))
        self.cpu = Counter("reelset_stage_cpu_seconds", "CPU time of a stage, its child processes included", ("run", "stage"))
        self.unit = Histogram("reelset_unit_seconds", "Wall time of a unit in a pool", list(UNIT_BOUNDS_S), ("run", "pool"))
        self.run_sources = Gauge("reelset_run_sources", "Sources of the whole run so far, by outcome", ("run", "status"))
        self.run_errors = Gauge("reelset_run_errors", "Sources of the whole run in error so far, by code", ("run", "code"))
        self.items = Counter("reelset_items", "Units analyzed or cut, shards packed", ("run", "part"))
        self.left = Gauge("reelset_items_left", "Units or shards of a part that are not finished yet", ("run", "part"))


@lru_cache(maxsize=1)
def _meters() -> Meters:
    return Meters()
