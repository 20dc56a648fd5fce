"""*Select*: from measured clips to a plan that says which clip goes to which shard, in which order."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from bucketing import buckets, plan
from curation import run_folder, storage
from curation import select as rules_select
from curation.errors import ConfigError
from curation.rules import SubsetConfig
from curation.tables import CLIPS, CONCEPTS, DUPLICATES, SELECTION, SOURCES
from jobs.analyze import done_units
from jobs.config import Config, apply, resolve

MADE_BY = b"reelset_select"
MADE_OF = b"reelset_content"
"""Where tables of the comparison say what settings and centroids made them."""
UNITS = b"reelset_units"
FIT_ROWS = 4096
"""Clips that are fitted to their buckets at a time."""
FIT_COLUMNS = (
    *("clip_id", "source_id", "status", "kind", "frames", "duration_s", "width", "height"),
    *(f"border_{side}_px" for side in ("left", "right", "top", "bottom")),
)
SHAPE_COLUMNS = ("source_id", "pixel_aspect", "rotation")
"""Columns of `clips` and `sources` that decide a bucket (`buckets.choose`)."""
FITTED = f"""
    SELECT {", ".join(f"c.{name}" for name in FIT_COLUMNS if name not in ("source_id", "status"))}, s.pixel_aspect, s.rotation
    FROM clips c JOIN sources s ON s.source_id = c.source_id WHERE c.status = 'ok'"""
"""SQL, valid in DuckDB and in Spark, for what decides the bucket of each clip."""
EARLIER = ("clip_id", "source_id", "kept", "reason", "cluster", "people", "split", "bucket", "shard")
"""Columns of earlier selections that decide later ones."""
READERS = 16
"""Files that are read side by side: a store answers in some 30 ms, whatever is asked."""


def settings(
    page: dict[str, Any], file: Path | None, overrides: Sequence[str], rules: Sequence[str | Mapping[str, Any]] | None
) -> Config:
    """A run's own settings with a file's, `--set` and `--rules` (names of lists, or lists) on top."""
    tree = {**page}
    if file is not None:
        tree |= yaml.safe_load(file.read_text()) or {}
    for override in overrides:
        apply(tree, override)
    if rules:
        tree["subsets"] = list(rules)
    return resolve(tree)


Decide: TypeAlias = Callable[[str, Config, SubsetConfig, Sequence[str], str], Iterable[pa.RecordBatch]]
"""From a run folder, a config, a list, units and the place of the selections so far to the rows of these units, sorted by
clip_id."""


def select(folder: str, config: Config, subset: SubsetConfig, decide: Decide | None = None) -> str:
    """Decide for every measured unit that the subset's selection does not cover yet; returns a line for people.

    Rows once written are never changed: later units are decided with the earlier ones counted in the quotas. Other
    rules make the selection anew, unless shards of the old one exist: then ConfigError. `decide` is how: on this machine,
    or as a Spark job does.
    """
    place = storage.join(folder, "selection", subset.name)
    made_by = _made_by(folder, config, subset)
    if _stale(place, made_by):
        if storage.names(storage.join(folder, "produced", subset.name)):
            raise ConfigError(
                f"shards of {subset.name!r} were made by another selection. Give the new rules another name, or remove "
                f"shards/{subset.name} and produced/{subset.name} first"
            )
        storage.remove(place)
    done = covered(place)
    units = [u for u in done_units(folder) if u not in done]
    if not units:
        return f"select: {subset.name}: nothing new"
    batches = (decide or _decide)(folder, config, subset, units, place)
    written, kept, alone = _write(storage.join(place, f"{unit_span(units)}.parquet"), batches, made_by, units)
    lonely = config.clusters.enabled and config.embeddings and alone
    said = f"; {alone} of them have no vector: nothing is in their frames, or no list wanted them when clips were embedded"
    return f"select: {subset.name}: {kept} of {written} clips kept{said if lonely else ''}"


def _write(url: str, batches: Iterable[pa.RecordBatch], made_by: str, units: Sequence[str]) -> tuple[int, int, int]:
    """Commit a selection; returns the number of its clips, of those that are kept, and of these without a concept."""
    schema = SELECTION.with_metadata({MADE_BY: made_by.encode(), **of_units(units)})
    written = kept = alone = 0
    with storage.committed(url) as out, pq.ParquetWriter(out, schema, compression="zstd", store_schema=True) as writer:
        for rows in _row_groups(batches):
            writer.write_table(rows.replace_schema_metadata(schema.metadata), rules_select.BATCH)
            chosen = rows["cluster"].filter(rows["kept"])
            written, kept, alone = written + rows.num_rows, kept + len(chosen), alone + chosen.null_count
        if not written:
            writer.write_table(schema.empty_table())
    return written, kept, alone


def _row_groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables of `rules_select.BATCH`, whatever they came in: a file's bytes depend on its rows alone."""
    held: list[pa.RecordBatch] = []
    room = rules_select.BATCH
    for batch in batches:
        while batch.num_rows:
            held.append(batch.slice(0, room))
            batch, room = batch.slice(room), room - held[-1].num_rows
            if not room:
                yield pa.Table.from_batches(held)
                held, room = [], rules_select.BATCH
    if held:
        yield pa.Table.from_batches(held)


def _decide(folder: str, config: Config, subset: SubsetConfig, units: Sequence[str], place: str) -> list[pa.RecordBatch]:
    """The selection of these units on this machine. Their tables pass as streams; what is held is the selection itself."""
    of_sources, of_clips = rules_select.columns(subset)
    previous = storage.read_table(place, SELECTION, list(EARLIER))
    same = storage.read_table(storage.join(folder, "duplicates"), DUPLICATES, ["clip_id", "duplicate_of"])
    with _fits(folder, units, subset.bucket_class) as fits:
        sources = stream(folder, "sources", units, SOURCES, of_sources)
        clips = stream(folder, "clips", units, CLIPS, of_clips)
        chosen = rules_select.select(sources, clips, subset, config.seed, previous, fits, same, concepts(folder))
    kept = chosen.select(["clip_id", "kept", "split", "bucket", "shard", "position"]).filter(chosen["kept"])
    placed = plan.assign(kept, config.seed, config.shards, plan.next_shards(previous))
    batches: list[pa.RecordBatch] = _join(chosen, placed).to_batches()
    return batches


def _join(chosen: pa.Table, placed: pa.Table) -> pa.Table:
    """A selection with the shards and positions of its kept rows filled in; both tables are sorted by clip_id."""
    filled, taken = [], 0
    for batch in chosen.to_batches():
        kept = batch["kept"]
        part = placed.slice(taken, kept.true_count).combine_chunks()
        taken += kept.true_count
        for name in ("shard", "position") if part.num_rows else ():
            column = pc.replace_with_mask(batch[name], kept, part[name].chunk(0))
            batch = batch.set_column(batch.schema.get_field_index(name), name, column)
        filled.append(batch)
    return pa.Table.from_batches(filled, chosen.schema)


@contextmanager
def _fits(folder: str, units: Sequence[str], bucket_class: int) -> Iterator[pa.RecordBatchReader]:
    """Which bucket each clip fits, as a stream of `FIT` rows."""
    with storage.database(rules_select.MEMORY) as connection:
        connection.register("sources", stream(folder, "sources", units, SOURCES, SHAPE_COLUMNS))
        connection.register("clips", stream(folder, "clips", units, CLIPS, FIT_COLUMNS))
        found = connection.sql(FITTED).to_arrow_reader(FIT_ROWS)
        yield pa.RecordBatchReader.from_batches(rules_select.FIT, (fit(batch, bucket_class) for batch in found))


def fit(clips: pa.RecordBatch, bucket_class: int) -> pa.RecordBatch:
    """Which bucket each of some rows of `FITTED` fits, as rows of `FIT`."""
    choices = [buckets.choose(clip, bucket_class) for clip in clips.to_pylist()]
    columns = [
        clips["clip_id"],
        pa.array([c.bucket.name if c.bucket else None for c in choices], pa.string()),
        pa.array([c.why for c in choices], pa.string()),
        pa.array([c.misfit for c in choices], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=rules_select.FIT)


def stream(folder: str, table: str, units: Sequence[str], schema: pa.Schema, columns: Sequence[str]) -> pa.RecordBatchReader:
    """Some columns of a table for these units, unit by unit; the files of the next ones are on their way meanwhile."""

    def read(unit: str) -> pa.Table:
        with storage.open_read(storage.join(folder, table, f"{unit}.parquet")) as file, pq.ParquetFile(file) as parquet:
            return parquet.read(columns=list(columns), use_threads=False).select(columns)

    def batches() -> Iterator[pa.RecordBatch]:
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(units), 4 * READERS):
                for part in pool.map(read, units[start : start + 4 * READERS]):
                    yield from part.to_batches()

    return pa.RecordBatchReader.from_batches(pa.schema([schema.field(name) for name in columns]), batches())


def concepts(folder: str) -> pa.RecordBatchReader:
    """Rows of `CONCEPTS` of a run, file by file; none where clips were not clustered."""
    place = storage.join(folder, "concepts")

    def batches() -> Iterator[pa.RecordBatch]:
        for name in storage.names(place, ".parquet"):
            with storage.open_read(storage.join(place, name)) as file:
                yield from pq.read_table(file).replace_schema_metadata(None).to_batches()

    return pa.RecordBatchReader.from_batches(CONCEPTS, batches())


def _made_by(folder: str, config: Config, subset: SubsetConfig) -> str:
    """Settings of the selection, and what made the tables that it is made of."""
    below = {table: made_of(storage.join(folder, table)) for table in ("duplicates", "concepts")}
    own = {"subset": subset.model_dump(mode="json"), "shards": config.shards.model_dump(mode="json"), "seed": config.seed}
    return run_folder.fingerprint({**own, **below})


def made_of(place: str) -> dict[str, Any] | None:
    """What made a table of the comparison (`MADE_OF`); None where there is none."""
    for name in storage.names(place, ".parquet")[:1]:
        made: dict[str, Any] = json.loads(_metadata(storage.join(place, name)).get(MADE_OF, b"{}"))
        return made
    return None


def _stale(place: str, made_by: str) -> bool:
    urls = [storage.join(place, name) for name in storage.names(place, ".parquet")]
    return any(_metadata(url).get(MADE_BY) != made_by.encode() for url in urls)


def _metadata(url: str) -> dict[bytes, bytes]:
    with storage.open_read(url) as file:
        return dict(pq.read_schema(file).metadata or {})


def unit_span(units: Sequence[str]) -> str:
    """The name of a file that speaks of these units: the first and the last, between which some may be missing."""
    return f"{units[0]}--{units[-1]}"


def of_units(units: Sequence[str]) -> dict[bytes, bytes]:
    """Metadata of a file that speaks of these units."""
    return {UNITS: " ".join(units).encode()}


def units_of(url: str) -> list[str]:
    """The units that a file speaks of."""
    return _metadata(url)[UNITS].decode().split()


def covered(place: str) -> set[str]:
    """Units that a table's files speak of."""
    return {unit for name in storage.names(place, ".parquet") for unit in units_of(storage.join(place, name))}
