"""*Analyze*: units of sources through the stages, each unit committed as its tables."""

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from curation import storage
from curation.engine import EngineConfig, Item, Step
from curation.probe import Probe
from curation.rules import SubsetConfig, source_stopped, stopped
from curation.sources import UNITS, source_id
from curation.stage import Source, Stage
from curation.tables import CLIPS, COSTS, FRAMES, SERIES, SOURCES
from filters.aesthetic import Aesthetic
from filters.measure import Measure, MeasureConfig
from filters.text import ReadText
from jobs import metrics
from jobs.attempts import Attempts
from jobs.config import Config


def stages(config: Config) -> list[Stage]:
    """The stages every source passes, in order. A scorer whose weights no setting names is not built."""
    measure = MeasureConfig(shots=config.shots, clips=config.clips, frames=config.frames, seed=config.seed)
    wanted = Wanted(config.subsets, config.score_all)
    path: list[Stage] = [Probe(config.limits, Stops(config.subsets), config.score_all), Measure(config.limits, measure)]
    if config.text.enabled:
        path.append(ReadText(config.text, wanted))
    if config.aesthetic.enabled:
        path.append(Aesthetic(config.aesthetic, wanted))
    return path


class Stops:
    """Why no requested subset can use a source, from its probe columns alone; None where one can."""

    def __init__(self, subsets: Sequence[SubsetConfig]) -> None:
        self.subsets = subsets

    def __call__(self, row: dict[str, Any]) -> str | None:
        return source_stopped(row, self.subsets)


class Wanted:
    """The clips that dear scorers should look at: all but those a cheap rule of every requested subset stopped."""

    def __init__(self, subsets: Sequence[SubsetConfig], score_all: bool) -> None:
        self.subsets = subsets
        self.score_all = score_all

    def __call__(self, source: Source) -> set[str]:
        clips = {c["clip_id"] for c in source.clips if c["status"] == "ok"}
        if self.score_all or not clips:
            return clips
        return clips - stopped(storage.rows_table(source.clips, CLIPS), self.subsets, source.row)


def done_units(run: str) -> list[str]:
    """Units whose `sources/` file is there: it is written last."""
    return [name.removesuffix(".parquet") for name in storage.names(storage.join(run, "sources"), ".parquet")]


def steps(run: str, config: Config) -> list[Step]:
    """The stages as pools: neighbours with the same needs share an actor, so nothing travels between them."""
    groups: list[list[Stage]] = []
    for stage in stages(config):
        if groups and bool(groups[-1][0].gpus) == bool(stage.gpus):
            groups[-1].append(stage)
        else:
            groups.append([stage])
    if groups[-1][0].gpus:
        groups.append([])
    return [
        Step(AnalyzeUnits(run, group, reads=i == 0, writes=i == len(groups) - 1), _pool(group, config.engine))
        for i, group in enumerate(groups)
    ]


def _pool(group: Sequence[Stage], engine: EngineConfig) -> Any:
    if not group:
        return engine.write
    return engine.gpu if group[0].gpus else engine.cpu


class AnalyzeUnits:
    """Takes units through a chain of stages; the first of its kind reads a unit, the last one writes it."""

    def __init__(self, run: str, chain: Sequence[Stage], reads: bool, writes: bool) -> None:
        self.run = run
        self.chain = chain
        self.reads = reads
        self.writes = writes
        self.name = "+".join(stage.name for stage in chain) or "write"
        self.driver = uuid.uuid4().hex

    def open(self) -> None:
        for stage in self.chain:
            stage.open()

    def close(self) -> None:
        for stage in self.chain:
            stage.close()

    def __call__(self, item: Item) -> Item:
        began = time.perf_counter()
        sources = read_unit(self.run, item["unit"]) if self.reads else iter(item["sources"])
        attempts = Attempts(self.run, f"{item['unit']}.{self.name}", self.driver)
        sources = attempts.guard(sources)
        for stage in self.chain:
            sources = stage.rows(sources)
        done = list(sources)
        result = write_unit(self.run, item["unit"], done) if self.writes else {"unit": item["unit"], "sources": done}
        attempts.done()
        if self.writes:
            metrics.committed(self.run, done)
        metrics.unit_took(self.run, self.name, time.perf_counter() - began)
        return result


def read_unit(run: str, unit: str) -> Iterator[Source]:
    """The sources of one unit of the work list."""
    with storage.open_read(storage.join(run, "units", f"{unit}.parquet")) as file:
        import pyarrow.parquet as pq

        listed = pq.read_table(file).to_pylist()
    for row in listed:
        extra = {k: v for k, v in row.items() if k not in UNITS.names}
        fresh = dict.fromkeys(SOURCES.names) | {k: row[k] for k in ("unit", "path", "bytes", "kind")}
        fresh |= {"status": "ok", "source_id": source_id(row["path"], row["bytes"], None)}
        fresh |= {k: row[k] for k in ("exact_copy_of", "error_code", "error_message")}
        yield Source(unit, row["url"], fresh | extra)


def write_unit(run: str, unit: str, sources: Sequence[Source]) -> Item:
    """Commit a unit's tables, `sources/` last: that file says the unit is done. Returns its counts."""
    extras = sorted({k for s in sources for k in s.row if k not in SOURCES.names})
    schema = pa.schema([*SOURCES, *(pa.field(k, pa.string()) for k in extras)])
    clips = [c for s in sources for c in s.clips]
    costs: dict[str, dict[str, Any]] = {}
    for source in sources:
        for stage, cost in source.costs.items():
            row = costs.setdefault(stage, {"unit": unit, "stage": stage, "rows": 0, "peak_mb": 0.0})
            row["rows"] += 1
            row["peak_mb"] = max(row["peak_mb"], cost.peak_mb)
            for key in ("cpu_s", "wall_s", "bytes"):
                row[key] = row.get(key, 0) + getattr(cost, key)
    tables = {
        "series": storage.rows_table([s.series for s in sources if s.series], SERIES),
        "frames": storage.rows_table([f for s in sources for f in s.frames], FRAMES),
        "clips": storage.rows_table(clips, CLIPS),
        "costs": storage.rows_table(list(costs.values()), COSTS),
        "sources": storage.rows_table([s.row for s in sources], schema),
    }
    for name, table in tables.items():
        storage.write_table(storage.join(run, name, f"{unit}.parquet"), table)
    states = [s.row["status"] for s in sources]
    return {
        "unit": unit,
        "ok": states.count("ok"),
        "rejected": states.count("rejected"),
        "error": states.count("error"),
        "clips": len(clips),
        "video_s": sum(s.row["duration_s"] or 0.0 for s in sources),
        "cpu_s": sum(row["cpu_s"] for row in costs.values()),
        "in_error": [_error(s) for s in sources if s.row["error_code"]],
    }


def _error(source: Source) -> dict[str, Any]:
    """What the event log says of a source in error: enough to look at it again (`reelset inspect --replay SOURCE_ID`)."""
    row = {name: source.row[name] for name in ("source_id", "path", "error_code", "error_message")}
    return {**row, "stage": metrics.failed_in(source)}
