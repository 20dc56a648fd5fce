"""Questions to a run folder: its tables as DuckDB views, one clip's or source's story, and SQL of the user's."""

import csv as csv_format
import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curation import review, run_folder, storage
from curation.errors import CODES, ConfigError
from curation.rules import Rule, SubsetConfig, clip_rule, quote, source_rule
from curation.sources import UNITS
from curation.tables import CLIP_SCORES, CLIPS, COSTS, FRAMES, PRODUCED, SELECTION, SERIES, SOURCES

if TYPE_CHECKING:
    import duckdb
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

TABLES: dict[str, pa.Schema] = {
    "units": UNITS,
    "sources": SOURCES,
    "clips": CLIPS,
    "series": SERIES,
    "frames": FRAMES,
    "costs": COSTS,
    "selection": SELECTION,
    "produced": PRODUCED,
}
"""Tables every run has; one without files yet is an empty view."""
LATER = ("captions", "embeddings", "duplicates", "concepts", "clusters", "review")
"""Tables a run has where that part of the path was used; no view else."""
FOLDERS = {"selection": ("subset",), "produced": ("subset",), "embeddings": ("model",), "shards": ("subset", "split", "bucket")}
"""Folders between a table's name and its files; they become columns."""
VIEWS = (*TABLES, *LATER, "shards")
SHOWN_ROWS = 1000


def connect(run: str, names: Sequence[str] = VIEWS) -> "duckdb.DuckDBPyConnection":
    """A DuckDB connection with one view for each table of the run (or of `names`), local or remote; nothing is loaded.

    `selection` and `produced` have a column `subset`; `shards` has the shards' own indexes with `subset`, `split`,
    `bucket` and `shard` (`<split>/<bucket>/shard-000000`). Raises ConfigError where `run` is no run folder.
    """
    connection = storage.database()
    connection.execute("LOAD parquet")
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute("CREATE SCHEMA declared")
    add(connection, run, names)
    return connection


def add(
    connection: "duckdb.DuckDBPyConnection", run: str, names: Sequence[str], schema: str = "main", alike: bool = False
) -> None:
    """Make views of a run's tables in a schema of a connection.

    To make one, each of its files is looked at: they may differ in their columns. Where they are `alike` only one is, and the
    view has the columns of `TABLES`: duckdb's BinderException or InvalidInputException come of asking for one a file lacks.
    """
    run_folder.read(run)
    protocol = run.split("://", 1)[0]
    if storage.is_remote(run) and not connection.filesystem_is_registered(protocol):
        import fsspec

        connection.register_filesystem(fsspec.filesystem(protocol))
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    for name in names:
        _view(connection, run, name, schema, alike)


def _view(connection: "duckdb.DuckDBPyConnection", run: str, name: str, place: str, alike: bool) -> None:
    folders = FOLDERS.get(name, ())
    schema = TABLES.get(name)
    if schema is not None:
        fields = [*schema, *(pa.field(f, pa.string()) for f in folders)]
        connection.register("given", pa.schema(fields).empty_table())
        connection.execute(f"CREATE TABLE IF NOT EXISTS declared.{name} AS FROM given")
        connection.unregister("given")
    pattern = "/".join([_no_glob(_root(run)), name, *("*" for _ in folders), "*.parquet"])
    declared = f"SELECT * FROM declared.{name}"
    if not connection.execute("SELECT 1 FROM glob(?) LIMIT 1", [pattern]).fetchone():
        if schema is not None:
            connection.execute(f"CREATE OR REPLACE VIEW {place}.{name} AS {declared}")
        return
    between = "/".join([name, *("([^/]+)" for _ in folders), "[^/]+[.]parquet$"])
    parts = [f"regexp_extract(filename, {_text(between)}, {i}) AS {f}" for i, f in enumerate(folders, 1)]
    if name == "shards":
        parts.append(f"regexp_extract(filename, {_text('shards/[^/]+/(.*)[.]parquet$')}, 1) AS shard")
    files = f"read_parquet({_text(pattern)}, union_by_name={not alike}, filename=true)"
    columns = [quote(column) for column in schema.names] if alike and schema else ["* EXCLUDE (filename)"]
    found = f"SELECT {', '.join([*columns, *parts])} FROM {files}"
    whole = f"{declared} UNION ALL BY NAME {found}" if schema and not alike else found
    connection.execute(f"CREATE OR REPLACE VIEW {place}.{name} AS {whole}")


def _root(run: str) -> str:
    return run.rstrip("/") if storage.is_remote(run) else str(storage.local_path(run).absolute())


def _no_glob(path: str) -> str:
    """A path whose own `*`, `?` and `[` mean themselves."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in path)


def _text(value: str) -> str:
    """An SQL literal of any text."""
    return "'" + value.replace("'", "''") + "'"


def subsets(run: str) -> list[SubsetConfig]:
    """The rule lists that the run was last decided with."""
    return [SubsetConfig.model_validate(s) for s in run_folder.read(run)["config"].get("subsets", [])]


def rows(connection: "duckdb.DuckDBPyConnection", query: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """A small result as dicts."""
    found = connection.execute(query, list(values))
    names = [column[0] for column in found.description or []]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def view_names(connection: "duckdb.DuckDBPyConnection") -> set[str]:
    """The tables that a connection has views of."""
    return {row["name"] for row in rows(connection, "SHOW TABLES")}


def sql(run: str, query: str, csv: bool = False) -> "RenderableType":
    """The answer to one SELECT over the run's views, as a table (the first 1000 rows) or as CSV (all of them).

    The query can read nothing outside the run folder and can write nothing. Raises ConfigError with DuckDB's message.
    """
    import duckdb

    with connect(run, _mentioned(query)) as connection:
        _lock(connection, run)
        try:
            statements = connection.extract_statements(query)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise ConfigError("sql takes one SELECT (or WITH, FROM, DESCRIBE, SUMMARIZE, SHOW TABLES); it changes nothing")
            found = connection.execute(statements[0])
            return csv_text(found) if csv else rich_table(found)
        except duckdb.Error as error:
            raise ConfigError(f"sql: {error}") from error


def _mentioned(query: str) -> Sequence[str]:
    """The views whose names are in a query, all where there is none: to make a view, each of its files is looked at."""
    words = set(re.findall(r"\w+", query.lower()))
    return [name for name in VIEWS if name in words] or VIEWS


def _lock(connection: "duckdb.DuckDBPyConnection", run: str) -> None:
    """From here on the connection reads below the run folder only, and its settings stay as they are."""
    root = _root(run)
    allowed = {root, _no_glob(root)}  # DuckDB asks about the pattern and about each file that it finds
    if storage.is_remote(run):
        import fsspec

        fs, path = fsspec.core.url_to_fs(run)
        allowed.add(fs.unstrip_protocol(path))
    places = ", ".join(_text(f"{place}/") for place in sorted(allowed))
    connection.execute(f"SET allowed_directories = [{places}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def csv_text(found: "duckdb.DuckDBPyConnection") -> str:
    """All rows of an answer as CSV."""
    out = io.StringIO()
    writer = csv_format.writer(out, lineterminator="\n")
    writer.writerow([column[0] for column in found.description or []])
    while batch := found.fetchmany(10_000):
        writer.writerows([["" if v is None else _plain(v) for v in row] for row in batch])
    return out.getvalue()


def rich_table(found: "duckdb.DuckDBPyConnection", shown_as: Callable[[Any], str] | None = None) -> "RenderableType":
    """The first `SHOWN_ROWS` rows of an answer as a table, each value as it is or as `shown_as` says."""
    from rich.console import Group
    from rich.text import Text

    table = new_table(*(column[0] for column in found.description or []))
    shown = found.fetchmany(SHOWN_ROWS)
    for row in shown:
        table.add_row(*(Text("null", style="dim") if v is None else Text(printable((shown_as or _plain)(v))) for v in row))
    if found.fetchone() is None:
        return table
    return Group(table, Text(f"the first {len(shown)} rows; --csv prints all", style="dim"))


def _plain(value: Any) -> str:
    return f"<{len(value)} bytes>" if isinstance(value, bytes) else str(value)


def printable(text: str) -> str:
    """Text whose control characters are written out: a file name must not steer the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def new_table(*columns: str, title: str | None = None) -> "Table":
    """An empty table with these column heads."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        # A head is broken between words only: nobody reads one that is broken within.
        longest = max(map(len, printable(column).split()), default=0)
        table.add_column(Text(printable(column)), overflow="fold", min_width=longest)
    return table


def texts(*values: Any) -> "list[Text]":
    """Cells of a table: nothing in them is taken as markup or steers the terminal; lines stay lines."""
    from rich.text import Text

    lines = [("" if v is None else str(v)).split("\n") for v in values]
    return [Text("\n".join(printable(line) for line in cell)) for cell in lines]


def story(run: str, id: str) -> "RenderableType":
    """The whole story of a clip or a source, by `clip_id`, shard key, `source_id` or path.

    Raises ConfigError with the closest ids where there is none.
    """
    from rich.console import Group

    with connect(run) as connection:
        clip = rows(connection, "SELECT * FROM clips WHERE clip_id = ?", [id])
        if not clip and "_" in id:  # a sample's key is its clip_id, the judgement that mended it, and the bucket class
            clip = rows(connection, "SELECT * FROM clips WHERE clip_id = ?", [id.partition("-")[0]])
        if clip:
            return Group(*_clip_story(connection, run, clip[0], subsets(run)))
        source = rows(connection, "SELECT * FROM sources WHERE source_id = ? OR path = ? LIMIT 1", [id, id])
        if source:
            return Group(*_source_story(connection, source[0], subsets(run)))
        raise ConfigError(_unknown(connection, id))


def _unknown(connection: "duckdb.DuckDBPyConnection", id: str) -> str:
    close = rows(
        connection,
        """SELECT id, path FROM (SELECT clip_id AS id, path FROM clips UNION ALL SELECT source_id, path FROM sources)
           ORDER BY starts_with(id, $1) OR contains(path, $1) DESC,
                    greatest(jaro_winkler_similarity(id, $1), jaro_winkler_similarity(path, $1)) DESC, length(id), id
           LIMIT 5""",
        [id],
    )
    hints = "".join(f"\n  {row['id']}  {printable(str(row['path']))}" for row in close)
    return f"no clip or source {id!r} in this run" + (f"; the closest are:{hints}" if hints else "")


def _source_story(
    connection: "duckdb.DuckDBPyConnection", source: dict[str, Any], lists: Sequence[SubsetConfig]
) -> "list[RenderableType]":
    cuts = {"hard cuts": len(source["cut_frames"] or []), "gradual transitions": len(source["gradual"] or [])}
    shown: list[RenderableType] = [
        facts_table(f"source {source['source_id']}", _source_facts(source) | cuts),
        *_errors(source),
    ]
    if source["cut_frames"]:
        shown.append(_cuts(source))
    shown.append(_verdicts(connection, "sources", "source_id", source, lists))
    decided = rows(
        connection,
        f"""SELECT c.clip_id, c.start_s, c.end_s, c.status,
                   string_agg(concat(s.subset, ': ', s.reason), chr(10) ORDER BY s.subset) AS verdicts
            FROM clips c LEFT JOIN selection s USING (clip_id) WHERE c.source_id = {_text(source["source_id"])}
            GROUP BY c.clip_id, c.start_s, c.end_s, c.status ORDER BY c.start_s""",
    )
    table = new_table("clip", "from s", "to s", "status", "verdicts", title="Its clips")
    for row in decided:
        table.add_row(*texts(row["clip_id"], number(row["start_s"]), number(row["end_s"]), row["status"], row["verdicts"]))
    return [*shown, table]


def _cuts(source: dict[str, Any]) -> "Table":
    table = new_table("transition", "frame", "time s", title="Where shots change")
    for frame, time_s in zip(source["cut_frames"], source["cut_times_s"] or [], strict=False):
        table.add_row(*texts("hard cut", frame, number(time_s)))
    for span in source["gradual"] or []:
        table.add_row(*texts(span["kind"], f"{span['start']} to {span['end']}", ""))
    return table


def _clip_story(
    connection: "duckdb.DuckDBPyConnection", run: str, clip: dict[str, Any], lists: Sequence[SubsetConfig]
) -> "list[RenderableType]":
    source = rows(connection, "SELECT * FROM sources WHERE source_id = ? LIMIT 1", [clip["source_id"]])[0]
    frames = rows(connection, "SELECT count(*) AS n FROM frames WHERE clip_id = ?", [clip["clip_id"]])[0]["n"]
    span = f"{number(clip['start_s'])} to {number(clip['end_s'])} s, frames {clip['start_frame']} to {clip['end_frame']}"
    facts = {"path": clip["path"], "span": span, "size": f"{clip['width']} x {clip['height']}", "fps": number(clip["fps"])}
    facts |= {"frames": clip["frames"], "status": clip["status"], "kept frames": frames}
    scores = {k: clip[k] for k in (*CLIP_SCORES, "camera", "camera_code")}
    return [
        facts_table(f"clip {clip['clip_id']}", facts),
        *_errors(clip),
        facts_table(f"source {source['source_id']}", _source_facts(source)),
        *_errors(source),
        facts_table("Scores", {k: "unmeasured" if v is None else v for k, v in scores.items()}),
        _verdicts(connection, "sources", "source_id", source, lists if clip["kind"] == "video" else ()),
        _verdicts(connection, "clips", "clip_id", clip, lists),
        *_content(connection, clip["clip_id"]),
        *_caption(connection, clip["clip_id"]),
        *_reviews(run, clip["clip_id"], lists),
        _places(connection, clip["clip_id"]),
    ]


def _source_facts(source: dict[str, Any]) -> dict[str, Any]:
    skipped = ("source_id", "unit", "cut_frames", "cut_times_s", "gradual", "error_code", "error_message")
    return {k: v for k, v in source.items() if k not in skipped and v is not None}


def _errors(row: dict[str, Any]) -> "list[RenderableType]":
    from rich.text import Text

    if not row["error_code"]:
        return []
    code = row["error_code"]
    return [Text(f"error {code}: {CODES.get(code, 'unknown code')}. {printable(row['error_message'] or '')}", style="red")]


def facts_table(title: str, facts: dict[str, Any]) -> "Table":
    """A table of names and values."""
    table = new_table("", "", title=title)
    table.show_header = False
    for key, value in facts.items():
        table.add_row(*texts(key, number(value) if isinstance(value, float) else value))
    return table


def _verdicts(
    connection: "duckdb.DuckDBPyConnection", view: str, key: str, row: dict[str, Any], lists: Sequence[SubsetConfig]
) -> "RenderableType":
    """Each rule over `view` in each subset: pass, fail or unmeasured, as the rules' own SQL says."""
    from rich.text import Text

    colours = {"pass": "green", "fail": "red", "unmeasured": "yellow"}
    what = "source" if view == "sources" else "clip"
    table = new_table("subset", f"{what} rule", "verdict", "value", title=f"Rules over the {what}")
    for subset in lists:
        for rule in _rules_of(subset, view, row["kind"]):
            verdict = rows(connection, f"SELECT {_verdict_sql(rule)} AS v FROM {view} WHERE {key} = ? LIMIT 1", [row[key]])[0][
                "v"
            ]
            values = ", ".join(f"{c} {number(row[c])}" for c in rule.columns)
            table.add_row(*texts(subset.name, rule.text), Text(verdict, style=colours[verdict]), *texts(values))
    return table if table.row_count else Text("")


def _rules_of(subset: SubsetConfig, view: str, kind: str) -> list[Rule]:
    if view == "sources":
        return [source_rule(text) for text in subset.source_rules] if kind == "video" else []
    return [clip_rule(text) for text in (subset.image_rules if kind == "image" else subset.clip_rules)]


def _verdict_sql(rule: Rule) -> str:
    missing = " OR ".join(f'"{c}" IS NULL' for c in rule.columns) or "FALSE"
    return f"CASE WHEN {missing} THEN 'unmeasured' WHEN coalesce({rule.sql}, FALSE) THEN 'pass' ELSE 'fail' END"


def _content(connection: "duckdb.DuckDBPyConnection", clip_id: str) -> "list[RenderableType]":
    """What the clip's vector says of it: near-duplicates and its concept; nothing where clips were not compared."""
    views = view_names(connection)
    facts: dict[str, Any] = {}
    if "duplicates" in views:
        query = "SELECT duplicate_of, similarity FROM duplicates WHERE clip_id = ?"
        for row in rows(connection, query, [clip_id]):
            facts["nearly"] = f"{row['duplicate_of']}, cosine {row['similarity']:.4f} to the nearest of the group"
        query = "SELECT count(*) AS n FROM duplicates WHERE duplicate_of = ?"
        if copies := rows(connection, query, [clip_id])[0]["n"]:
            facts["best of a group"] = f"of {copies + 1} near-duplicates"
    if "concepts" in views and "clusters" in views:
        query = """SELECT cluster, similarity, size, tightness FROM concepts JOIN clusters USING (cluster) WHERE clip_id = ?"""
        for row in rows(connection, query, [clip_id]):
            facts["concept"] = f"{row['cluster']}, of {row['size']} clips, cosine {row['similarity']:.4f} to its centre"
    return [facts_table("Content", facts)] if facts else []


def _caption(connection: "duckdb.DuckDBPyConnection", clip_id: str) -> "list[RenderableType]":
    """Who captioned the clip, what was shown and what was written; nothing where nobody was asked."""
    if "captions" not in view_names(connection):
        return []
    found = rows(connection, "SELECT * FROM captions WHERE clip_id = ?", [clip_id])
    skipped = ("clip_id", "source_id", "start_frame", "end_frame", "start_s", "end_s", "error_code", "error_message")
    shown: list[RenderableType] = []
    for row in found:
        facts = {k: ", ".join(v) if isinstance(v, list) else v for k, v in row.items() if k not in skipped and v is not None}
        shown += [facts_table("Caption", facts), *_errors(row)]
    return shown


def _reviews(run: str, clip_id: str, lists: Sequence[SubsetConfig]) -> "list[RenderableType]":
    """What people said of the clip, as far as it was exported, the oldest first, and what follows from it for each subset."""
    shown: list[RenderableType] = []
    for subset in lists:
        history = review.by_clip(review.read(run, subset.name)).get(clip_id) if subset.review else None
        if history and subset.review:
            stands = review.verdict(history, subset.review).reason.removeprefix("unselected:").replace("_", " ")
            title = f"Reviews for {subset.name}: {stands}"
            table = new_table("who", "when", "said", "reason", "span", "camera and shot", "caption", title=title)
            undone = {row["undoes"] for row in history}
            for row in history:
                table.add_row(*texts(*_reviewed(row, row["judgement"] in undone)))
            shown.append(table)
    return shown


def _reviewed(row: review.Row, undone: bool) -> tuple[Any, ...]:
    said = row["action"] + (", undone" if undone else ", settles it" if row["settles"] else "")
    span = "" if row["start_frame"] is None else f"frames {row['start_frame']} to {row['end_frame']}"
    labels = ", ".join(filter(None, [row["camera"], *(row["shots"] or ())]))
    return row["who"], f"{row['at']:%Y-%m-%d %H:%M:%S} UTC", said, row["reason"], span, labels, row["caption"]


def _places(connection: "duckdb.DuckDBPyConnection", clip_id: str) -> "Table":
    """The verdict of each subset, and where the clip's sample is."""
    table = new_table(
        "subset", "verdict", "weight", "split", "bucket", "shard", "position", "sample", title="Verdicts and samples"
    )
    found = rows(
        connection,
        """SELECT s.*, p.status, p.error_code, p.shard AS at, p."offset" AS start, p.bytes FROM selection s
           LEFT JOIN produced p ON p.clip_id = s.clip_id AND p.subset = s.subset WHERE s.clip_id = ? ORDER BY s.subset""",
        [clip_id],
    )
    for row in found:
        sample = "" if row["status"] is None else row["error_code"] or f"byte {row['start']}, {row['bytes']} bytes"
        if row["kept"] and row["status"] is None:
            sample = "planned, not written yet"
        shown = ("split", "bucket", "shard", "position")
        weight = "" if row["weight"] is None else number(row["weight"])
        table.add_row(*texts(row["subset"], row["reason"], weight, *("" if row[k] is None else row[k] for k in shown), sample))
    return table


def number(value: Any) -> str:
    """A value as a table shows it: six digits, null for None."""
    if value is None:
        return "null"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
