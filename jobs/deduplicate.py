"""*Duplicates*: the measured clips that are nearly one another, found once a run, before any rule looks at them."""

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation import duplicates, run_folder, storage
from curation.duplicates import Clips
from curation.errors import ConfigError
from curation.tables import CLIPS, DUPLICATES, SOURCES
from jobs import embed
from jobs.config import Config
from jobs.selecting import covered, stream, unit_span

MADE_BY = b"reelset_duplicates"
OF_CLIPS = ("clip_id", "source_id", "kind", "status", "width", "height", "duration_s", "quality_sharpness")


def find(folder: str, config: Config, units: Sequence[str]) -> str:
    """Look for the near-duplicates of these measured units among themselves and in all before; a line for people.

    Rows once written are never changed. Raises ConfigError where other settings made the earlier rows and shards exist,
    and where the vectors are not of one width.
    """
    how = duplicates.chosen(config.duplicates, config.embeddings)
    if how is None:
        return "duplicates: not looked for: no embedding of a kind that tells copies"
    model, threshold = how
    place = storage.join(folder, "duplicates")
    made_by = {"model": model.decides(), "threshold": threshold, "min_ratio": config.duplicates.min_ratio}
    _remove_others(folder, place, made_by)
    before = covered(place)
    new = [unit for unit in units if unit not in before]
    if not new:
        return "duplicates: nothing new"
    clips = _clips(folder, model.name, units, set(new), storage.read_table(place, DUPLICATES))
    found = duplicates.groups(clips, threshold, config.duplicates.min_ratio)
    table = duplicates.table(clips, found, model.name, DUPLICATES)
    metadata = {MADE_BY: json.dumps(made_by, sort_keys=True).encode()}
    storage.write_table(storage.join(place, unit_span(new)), table.replace_schema_metadata(metadata))
    return f"duplicates: {table.num_rows} of {len(clips.ids)} clips, by {model.name} at {threshold:g}, {clips.how}"


def _remove_others(folder: str, place: str, made_by: dict[str, object]) -> None:
    """Rows that other settings made go, where no shard was written by them."""
    for name in storage.names(place, ".parquet")[:1]:
        with storage.open_read(storage.join(place, name)) as file:
            old = json.loads((pq.read_schema(file).metadata or {}).get(MADE_BY, b"{}"))
        if old == json.loads(json.dumps(made_by)):
            return
        if storage.walk(storage.join(folder, "produced"), ".parquet"):
            raise ConfigError(
                f"duplicates/ was made with other settings, and shards exist:\n{run_folder.difference(old, made_by)}\n"
                "Use the old settings, or remove shards/ and produced/ first"
            )
        storage.remove(place)


def _clips(folder: str, model: str, units: Sequence[str], new: set[str], decided: pa.Table) -> Clips:
    """All embedded clips of these units: those of earlier units first, then the new ones, the best first."""
    query = f"""SELECT clip_id, dense_rank() OVER (ORDER BY coalesce(exact_copy_of, source_id)) AS source,
                       CASE WHEN kind = 'video' THEN coalesce(duration_s, 0) ELSE 0 END AS seconds,
                       unit IN (SELECT unit FROM new_units) AS new
                FROM clips JOIN (SELECT source_id, exact_copy_of, bytes AS source_bytes, unit FROM sources) USING (source_id)
                WHERE status = 'ok' ORDER BY new, {duplicates.BEST}"""
    with storage.database() as connection:
        connection.register("clips", stream(folder, "clips", units, CLIPS, OF_CLIPS))
        connection.register(
            "sources", stream(folder, "sources", units, SOURCES, ("source_id", "exact_copy_of", "bytes", "unit"))
        )
        connection.register("new_units", pa.table({"unit": sorted(new)}))
        facts = connection.sql(query).to_arrow_table()
    place = {clip: n for n, clip in enumerate(facts["clip_id"].to_pylist())}
    vectors = np.zeros((0, 0), np.float32)
    for unit in units:
        try:
            with storage.open_read(storage.join(embed.folder(folder, model), f"{unit}.parquet")) as file:
                part = pq.read_table(file)
        except FileNotFoundError:
            raise ConfigError(f"embeddings/{model} lacks {unit}: run `reelset analyze` with this embedding first") from None
        width = part.schema.field("vector").type.list_size
        if not vectors.size:
            vectors = np.zeros((len(place), width), np.float32)
        if width != vectors.shape[1]:
            raise ConfigError(f"embeddings/{model}: {unit} has vectors of {width} numbers, others of {vectors.shape[1]}")
        known = part.filter(part["vector"].is_valid())
        rows = [place[clip] for clip in known["clip_id"].to_pylist()]
        vectors[rows] = known["vector"].combine_chunks().flatten().to_numpy().reshape(-1, width)
    good = np.flatnonzero(duplicates.usable(vectors)) if vectors.size else np.zeros(0, np.int64)
    ids = facts["clip_id"].take(pa.array(good)).to_pylist()
    numbers = {clip: n for n, clip in enumerate(ids)}
    kept = dict(zip(decided["clip_id"].to_pylist(), decided["duplicate_of"].to_pylist(), strict=True))
    is_new = facts["new"].to_numpy()[good]
    before = np.array(
        [-1 if fresh else numbers[kept.get(clip, clip)] for clip, fresh in zip(ids, is_new, strict=True)], np.int64
    )
    source, seconds = facts["source"].to_numpy()[good], facts["seconds"].to_numpy()[good]
    return Clips(ids, np.ascontiguousarray(vectors[good]), source.astype(np.int64), seconds, before)
