"""One source of a run analyzed again, or one clip cut again, to see for oneself: `reelset inspect RUN --replay ID`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation import run_folder, storage
from curation.child import Child
from curation.errors import ConfigError, SourceError
from curation.review import mended_id
from curation.stage import Source, Stage
from curation.tables import CLIPS, FRAMES, SERIES, SOURCES
from jobs import analyze
from jobs.config import RULE_LISTS, Config, resolve
from jobs.inspect import connect, new_table, number, rows, texts
from jobs.produce import CutUnits, cut_key

if TYPE_CHECKING:
    from rich.console import RenderableType

SLACK_S = 600.0
"""What all stages of one source may take beyond their own limits before the whole process is given up: loading models."""
MESSAGE = "error_message"
"""The one column that does not decide whether two outcomes are equal: it may name a process or a temporary file."""
FATE = ("status", "error_code", "sha256")
"""What became of a sample."""
Row = dict[str, Any]
Tables = dict[str, list[Row]]
"""What *analyze* wrote of one source: its rows of `sources`, `clips`, `series` and `frames`."""


@dataclass(frozen=True)
class Replay:
    """What the run folder says of a source, and what came out now."""

    recorded: Tables
    fresh: Tables
    cpu_s: dict[str, float]
    """CPU seconds of each stage that worked on it now."""

    @property
    def equal(self) -> bool:
        """Whether every row and every value but error messages is the same."""
        return not any(row[3] for row in self._facts())

    def _facts(self) -> list[tuple[str, str, str, bool]]:
        """(what, recorded, fresh, differs): the source's columns, how much there is of the rest, and what differs in it."""
        old, new = self.recorded, self.fresh
        facts = [_fact(k, old["sources"][0][k], new["sources"][0][k]) for k in old["sources"][0]]
        for name in ("clips", "series", "frames"):
            facts.append(_fact(name, len(old[name]), len(new[name])))
            if len(old[name]) == len(new[name]):
                pairs = zip(old[name], new[name], strict=True)
                facts += [_fact(f"{_name(a, i)} {k}", a[k], b[k]) for i, (a, b) in enumerate(pairs) for k in a if a[k] != b[k]]
        return facts

    def page(self) -> "RenderableType":
        """Both outcomes side by side."""
        from rich.console import Group
        from rich.text import Text

        source = self.recorded["sources"][0]
        table = new_table("", "recorded", "now", "", title=f"source {source['source_id']} {source['path']}")
        for what, old, new, differs in self._facts():
            if differs or old != "null" or new != "null":
                table.add_row(*texts(what, old, new), Text("differs", style="red") if differs else Text(""))
        cost = ", ".join(f"{stage} {cpu_s:.2f}" for stage, cpu_s in self.cpu_s.items())
        verdict = "the same outcome" if self.equal else "ANOTHER OUTCOME"
        return Group(table, Text(f"CPU seconds now: {cost}" if cost else "no stage ran to its end"), Text(f"replay: {verdict}"))


@dataclass(frozen=True)
class Recut:
    """A clip's samples, a subset each: what the run folder says of them, and what came out now."""

    clip_id: str
    recorded: list[Row]
    fresh: list[Row]

    @property
    def equal(self) -> bool:
        """Whether every sample has the same fate and the same bytes."""
        return all(a[key] == b[key] for a, b in zip(self.recorded, self.fresh, strict=True) for key in FATE)

    def page(self) -> "RenderableType":
        """Both outcomes side by side."""
        from rich.console import Group
        from rich.text import Text

        table = new_table("subset", "", "recorded", "now", "", title=f"clip {self.clip_id}")
        for old, new in zip(self.recorded, self.fresh, strict=True):
            for key in (*FATE, MESSAGE):
                differs = old[key] != new[key] and key != MESSAGE
                shown = texts(old["subset"], key, number(old[key]), number(new[key]))
                table.add_row(*shown, Text("differs", style="red") if differs else Text(""))
        return Group(table, Text(f"replay: {'the same outcome' if self.equal else 'ANOTHER OUTCOME'}"))


def replay(run: str, id: str) -> Replay | Recut:
    """Probe, decode, measure and score one source (by `source_id` or path) again, or cut one clip (by `clip_id`) again.

    Under the run's own settings, and nothing is written to the run. All of it happens in a child process: what kills a
    worker kills only that. Raises ConfigError where the run has no such source, and no sample of such a clip.
    """
    page = run_folder.read(run)
    with connect(run, ("sources", "clips")) as connection:
        clip = rows(connection, "SELECT unit FROM clips JOIN sources USING (source_id) WHERE clip_id = $1", [id])
        if clip:
            return _recut(run, page, id, clip[0]["unit"])
        found = rows(connection, "SELECT unit, path, source_id FROM sources WHERE source_id = $1 OR path = $1 LIMIT 1", [id])
    if not found:
        raise ConfigError(f"no analyzed source {id!r} in this run; `reelset sql` over the table sources finds its source_id")
    unit, path = found[0]["unit"], found[0]["path"]
    config = settings(page)
    source = next(s for s in analyze.read_unit(run, unit) if s.row["path"] == path)
    fresh = _again(source, config)
    return Replay(
        _recorded(run, unit, found[0]["source_id"]), _tables(fresh), {k: c.cpu_s for k, c in fresh.costs.items() if c.cpu_s}
    )


def _recut(run: str, page: dict[str, Any], clip_id: str, unit: str) -> Recut:
    config = resolve({k: v for k, v in page["config"].items() if k != "input"})
    with connect(run, ("selection", "produced")) as connection:
        query = """SELECT s.subset, s.judgement, p.status, p.error_code, p.error_message, p.sha256 FROM selection s
                   JOIN produced p USING (subset, clip_id) WHERE clip_id = $1 ORDER BY s.subset"""
        recorded = rows(connection, query, [clip_id])
    classes = {subset.name: subset.bucket_class for subset in config.subsets}
    recorded = [row for row in recorded if row["subset"] in classes]
    if not recorded:
        raise ConfigError(f"no sample of clip {clip_id!r} was written or failed; `reelset inspect` shows why")
    plain = {row["subset"]: (clip_id, classes[row["subset"]]) for row in recorded if row["judgement"] is None}
    picked = {
        row["subset"]: (mended_id(clip_id, row["judgement"]), classes[row["subset"]]) for row in recorded if row["judgement"]
    }
    worker, fates = CutUnits(run, config.encode, config.limits), {}
    worker.open()
    try:
        for made, _ in worker.made(unit, sorted(set(plain.values())), sorted(picked.values())):
            digest = None if made.file is None else hashlib.sha256(Path(made.file).read_bytes()).hexdigest()
            status = "ok" if made.error_code is None else "error"
            fates[made.key] = dict(zip((*FATE, MESSAGE), (status, made.error_code, digest, made.error_message), strict=True))
    finally:
        worker.close()
    keys = {subset: cut_key(*own) for subset, own in (plain | picked).items()}
    return Recut(clip_id, recorded, [{"subset": row["subset"], **fates[keys[row["subset"]]]} for row in recorded])


def settings(page: dict[str, Any]) -> Config:
    """The settings that a run was measured with: the rule lists that spared sources and clips are the ones of then."""
    tree = {k: v for k, v in page["config"].items() if k != "input"}
    gates = page["decides"]["analyze"].get("gates")
    if gates:
        tree["subsets"] = [{"name": name, **{k: lists[k] for k in RULE_LISTS}} for name, lists in gates.items()]
    return resolve(tree)


def _again(source: Source, config: Config) -> Source:
    limits = config.limits
    stages = analyze.stages(config)
    # The stages' own child has the limits; this one is only to outlive a death, so its limits are out of their way.
    whole = len(stages) * limits.source_s + SLACK_S
    child = Child(limits.model_copy(update={"stall_s": whole, "source_s": whole, "memory_mb": float("inf")}))
    try:
        done = child.call(through, source, stages)
    except SourceError as error:
        source.fail(SourceError("worker_died", error.message) if error.code == "crashed" else error)
        return source
    finally:
        child.close()
    return done


def through(source: Source, stages: Sequence[Stage]) -> Source:
    """One source through all stages, in this process."""
    passed = iter((source,))
    try:
        for stage in stages:
            stage.open()
            passed = stage.rows(passed)
        return next(passed)
    finally:
        for stage in stages:
            stage.close()


def _tables(source: Source) -> Tables:
    extra = [pa.field(k, pa.string()) for k in sorted(source.row) if k not in SOURCES.names]
    made = {
        "sources": storage.rows_table([source.row], pa.schema([*SOURCES, *extra])),
        "clips": storage.rows_table(source.clips, CLIPS),
        "series": storage.rows_table([source.series] if source.series else [], SERIES),
        "frames": storage.rows_table(source.frames, FRAMES),
    }
    return {name: table.to_pylist() for name, table in made.items()}


def _recorded(run: str, unit: str, source_id: str) -> Tables:
    tables = {}
    for name in ("sources", "clips", "series", "frames"):
        with storage.open_read(storage.join(run, name, f"{unit}.parquet")) as file:
            tables[name] = pq.read_table(file, filters=[("source_id", "=", source_id)]).to_pylist()
    return tables


def _fact(what: str, old: Any, new: Any) -> tuple[str, str, str, bool]:
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        place = next((i for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b), None)
        if place is not None:
            return f"{what}[{place}]", number(old[place]), number(new[place]), True
    return what, _short(old), _short(new), old != new and what.split()[-1] != MESSAGE


def _name(row: Row, place: int) -> str:
    if "jpeg" in row:
        return f"frame {row['frame']}"
    return f"clip {place}" if "clip_id" in row else "series"


def _short(value: Any) -> str:
    if isinstance(value, list | bytes):
        return f"{len(value)} {'bytes' if isinstance(value, bytes) else 'values'}"
    return number(value)
