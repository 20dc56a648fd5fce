"""*Search*: the clips of a run that are nearest to a text or to other clips, over the index that the run folder keeps."""

import csv as csv_format
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation import clusters, embedding, run_folder, storage, vectors
from curation.embedding import EmbeddingConfig
from curation.errors import ConfigError
from curation.layout import Vector
from jobs import content, embed
from jobs.config import Config, resolve
from jobs.inspect import connect, new_table, number, rows, texts
from jobs.pictures import middle_frames
from jobs.report import render

if TYPE_CHECKING:
    import duckdb
    from rich.console import RenderableType

Row = dict[str, Any]


def search(
    run: str,
    text: str | None,
    like: Sequence[str],
    count: int,
    model: str | None = None,
    subset: str | None = None,
    among: pa.Array | None = None,
) -> list[Row]:
    """The `count` nearest clips to a text or to clips (the mean of their vectors), the nearest first; these are left out.

    Columns: clip_id, similarity, path, start_s, end_s. With `subset` only clips that it keeps, or those `among`.
    Raises ConfigError where the run has no index, a clip no vector, or no model reads text.
    """
    if (text is None) == (not like):
        raise ConfigError("search takes a text, or clips with --like, and one of both")
    config = resolve({k: v for k, v in run_folder.read(run)["config"].items() if k != "input"})
    chosen = _model(config, text is not None, model)
    with connect(run, ("clips", "sources", "selection")) as connection:
        wanted = _of_text(chosen, text) if text is not None else _of_clips(connection, run, chosen, like)
        among = _kept(connection, subset) if subset is not None else among
        near = _nearest(run, chosen, wanted, count, set(like), among)
        query = "SELECT clip_id, path, start_s, end_s FROM clips WHERE clip_id IN (SELECT unnest($1::VARCHAR[]))"
        facts = {row["clip_id"]: row for row in rows(connection, query, [[clip_id for _, clip_id in near]])}
    return [{**facts[clip_id], "similarity": cosine} for cosine, clip_id in near]


def listed(found: Sequence[Row], csv: bool) -> "RenderableType":
    """The clips that were found as a table, or as CSV."""
    if csv:
        out = io.StringIO()
        writer = csv_format.DictWriter(out, ["clip_id", "similarity", "path", "start_s", "end_s"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
        return out.getvalue()
    table = new_table("clip_id", "similarity", "path", "start_s", "end_s")
    for row in found:
        table.add_row(
            *texts(row["clip_id"], f"{row['similarity']:.4f}", row["path"], number(row["start_s"]), number(row["end_s"]))
        )
    return table


def page(run: str, found: Sequence[Row], title: str, place: Path) -> None:
    """Write a page with a frame of each clip that was found."""
    with connect(run, ("clips", "sources")) as connection:
        uris = middle_frames(connection, run, [row["clip_id"] for row in found])
    shown = [{**row, "uri": uris.get(row["clip_id"])} for row in found]
    html = render({"title": title, "run": run, "found": shown}, "search.html.j2")
    place.write_bytes(html.encode("utf-8", "replace"))


def _model(config: Config, reads_text: bool, name: str | None) -> EmbeddingConfig:
    by_name = {model.name: model for model in config.embeddings}
    if name is not None and name not in by_name:
        raise ConfigError(f"--model {name!r} is none of this run's embeddings: {', '.join(by_name) or 'there are none'}")
    fit = [m for m in config.embeddings if (name is None or m.name == name) and (not reads_text or m.kind == "open_clip")]
    if not fit:
        have = ", ".join(f"{m.name} ({m.kind})" for m in config.embeddings) or "none"
        raise ConfigError(f"a text needs an embedding of kind open_clip; this run has {have}. Name clips with --like instead")
    preferred = clusters.chosen(config.clusters, config.embeddings)
    return preferred if preferred in fit else fit[0]


def _of_text(model: EmbeddingConfig, text: str) -> Vector:
    loaded = embedding.load(model, f"embeddings.{model.name}")
    assert isinstance(loaded, embedding.OpenClip), "only such a model is chosen for texts"
    found: Vector = loaded.text([text])[0]
    return found


def _of_clips(connection: "duckdb.DuckDBPyConnection", run: str, model: EmbeddingConfig, like: Sequence[str]) -> Vector:
    query = """SELECT clip_id, unit FROM clips JOIN sources USING (source_id)
               WHERE clip_id IN (SELECT unnest($1::VARCHAR[]))"""
    units = {row["clip_id"]: row["unit"] for row in rows(connection, query, [list(like)])}
    found = []
    for clip_id in like:
        if clip_id not in units:
            raise ConfigError(f"{clip_id!r} is no clip of this run")
        place = storage.join(embed.folder(run, model.name), f"{units[clip_id]}.parquet")
        if not storage.exists(place):
            raise ConfigError(f"embeddings/{model.name} lacks {units[clip_id]}: run `reelset run` again")
        with storage.open_read(place) as file:
            own = pq.read_table(file, filters=pc.field("clip_id") == clip_id)["vector"].to_pylist()
        vector = np.asarray(own[0] if own and own[0] is not None else [0.0], np.float64)
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length <= vectors.SHORTEST:
            raise ConfigError(
                f"{clip_id!r} has no vector of {model.name}: a rule stopped it first, or nothing is in its frames"
            )
        found.append(vector / length)
    mean = np.mean(found, axis=0)
    length = float(np.linalg.norm(mean))
    if length <= vectors.SHORTEST:
        raise ConfigError("these clips are opposites of one another: nothing is like them all")
    return np.asarray(mean / length, np.float32)


def _kept(connection: "duckdb.DuckDBPyConnection", subset: str) -> pa.Array:
    kept = connection.execute("SELECT clip_id FROM selection WHERE subset = ? AND kept", [subset]).fetchall()
    if not kept:
        raise ConfigError(f"no subset {subset!r} of this run keeps a clip")
    return pa.array([clip_id for (clip_id,) in kept], pa.string())


def _nearest(
    run: str, model: EmbeddingConfig, wanted: Vector, count: int, without: set[str], among: pa.Array | None
) -> list[tuple[float, str]]:
    """(cosine, clip_id), block by block; only the best are held."""
    blocks = content.blocks(run, model.name)
    if not blocks:
        raise ConfigError(f"{run!r} has no index of {model.name}: run `reelset select` on it first")
    best: list[tuple[float, str]] = []
    for place in blocks:
        near = vectors.load(place, mapped=True).nearest(wanted, count, without, among)
        best = sorted([*best, *near], key=lambda pair: (-pair[0], pair[1]))[:count]
    return best
