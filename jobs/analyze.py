"""*Analyze*: units of sources through the stages, each unit committed as its tables."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from captioning.camera import Camera
from curation import attempts, storage
from curation.engine import EngineConfig, Item, Step
from curation.errors import SourceError
from curation.probe import Probe
from curation.rules import SubsetConfig, source_stopped, stopped
from curation.sources import UNITS, source_id
from curation.stage import Source, Stage
from curation.tables import CLIPS, COSTS, FRAMES, SERIES, SOURCES
from filters.aesthetic import Aesthetic
from filters.faces import Faces
from filters.measure import Measure, MeasureConfig
from filters.text import ReadText
from jobs import metrics
from jobs.config import Config


def stages(config: Config) -> list[Stage]:
    """The stages every source passes, in order. A scorer whose weights no setting names is not built."""
    measure = MeasureConfig(shots=config.shots, clips=config.clips, frames=config.frames, seed=config.seed)
    wanted = Wanted(config.subsets, config.score_all)
    path: list[Stage] = [Probe(config.limits, Stops(config.subsets), config.score_all), Measure(config.limits, measure)]
    if config.camera.enabled:  # reads the series alone: of every clip, for next to nothing
        path.append(Camera(config.camera))
    if config.faces.enabled:  # first of the scorers: on the CPU it shares an actor with the decode
        path.append(Faces(config.faces, wanted))
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

    def open(self) -> None:
        for stage in self.chain:
            stage.open()

    def close(self) -> None:
        for stage in self.chain:
            stage.close()

    def __call__(self, item: Item) -> Item:
        unit, began = item["unit"], time.perf_counter()
        if self.reads and storage.exists(storage.join(self.run, "sources", f"{unit}.parquet")):
            return committed_unit(self.run, unit)  # by an actor that died before it could say so
        if not self.reads and "sources" not in item:
            return item
        sources = begun(read_unit(self.run, unit) if self.reads else item["sources"])
        for stage in self.chain:
            sources = stage.rows(sources)
        done = list(sources)
        result = write_unit(self.run, unit, done) if self.writes else {"unit": unit, "sources": done}
        if self.writes:
            metrics.committed(self.run, done)
        metrics.unit_took(self.run, self.name, time.perf_counter() - began)
        return result


def begun(sources: Iterable[Source]) -> Iterator[Source]:
    """Pass sources on, each noted before it is worked on; one that killed too many workers as an error row."""
    for source in sources:
        if source.live:
            try:
                attempts.at(source.row["source_id"])
            except SourceError as error:
                source.fail(error)
        yield source
    attempts.at()


def read_unit(run: str, unit: str) -> Iterator[Source]:
    """The sources of one unit of the work list."""
    for row in _read(run, "units", unit).to_pylist():
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
    return _counted(unit, [s.row | {"stage": metrics.failed_in(s)} for s in sources], len(clips), list(costs.values()))


def committed_unit(run: str, unit: str) -> Item:
    """What `write_unit` returned of a committed unit, but for the stages at which its sources failed."""
    sources, clips, costs = (_read(run, table, unit) for table in ("sources", "clips", "costs"))
    return _counted(unit, sources.to_pylist(), clips.num_rows, costs.to_pylist())


def _read(run: str, table: str, unit: str) -> pa.Table:
    with storage.open_read(storage.join(run, table, f"{unit}.parquet")) as file:
        return pq.read_table(file)


def _counted(unit: str, sources: Sequence[dict[str, Any]], clips: int, costs: Sequence[dict[str, Any]]) -> Item:
    """A unit's counts, and enough of each source in error to look at it again (`reelset inspect --replay SOURCE_ID`)."""
    states = [row["status"] for row in sources]
    shown = ("source_id", "path", "error_code", "error_message", "stage")
    return {
        "unit": unit,
        "ok": states.count("ok"),
        "rejected": states.count("rejected"),
        "error": states.count("error"),
        "clips": clips,
        "video_s": sum(row["duration_s"] or 0.0 for row in sources),
        "cpu_s": sum(row["cpu_s"] for row in costs),
        "in_error": [{name: row.get(name) for name in shown} for row in sources if row["error_code"]],
    }
