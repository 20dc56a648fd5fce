"""The report: one HTML page that opens without a network and says what came in, what is left, and why.

Every figure is a query over the run's tables; rows that reach Python are few, whatever the run's size.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from curation import run_folder, storage
from curation.errors import CODES
from curation.rules import SubsetConfig
from jobs.caption_cards import captions
from jobs.concept_cards import concepts
from jobs.funnel import AFTER, GROUP, Amount, Step, steps
from jobs.inspect import connect, rows, subsets, view_names
from jobs.pictures import middle_frames

if TYPE_CHECKING:
    import duckdb
    import jinja2

BINS = 24
CHART_PX = 300
CHARACTER_PX = 7
"""Width of a chart, and of a character of its labels with room to spare."""
EXAMPLES = 6
"""Example frames a reason."""
CANDIDATES = 48
"""Clips looked at for them, so that they come from different sources where there are some."""
PICTURE_BYTES = 6 << 20
"""All example frames of a page together, as data URIs; what does not fit is counted and said."""
MISSING = {
    "captions": "No captions: samples carry the text of the manifest where it has one.",
    "embeddings": "No embeddings: clips were not compared with each other.",
    "duplicates": "No near-duplicate search: only exact copies of files were taken out.",
    "clusters": "No clusters: concepts were not balanced, every kept clip has weight 1.",
}
"""What a run without these tables has not done."""


def write_report(run: str) -> str:
    """Write `report/index.html` of a run folder and return where it is. Raises ConfigError where it is no run."""
    place = storage.join(run, "report", "index.html")
    with connect(run) as connection:
        page = gather(connection, run)
    storage.write_bytes(place, render(page).encode("utf-8", "replace"))
    return place


def render(page: Mapping[str, Any], template: str = "report.html.j2") -> str:
    """A template's HTML or SVG. Everything is escaped: names of files are other people's text."""
    return _environment().get_template(template).render(page)


@lru_cache(maxsize=1)
def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": "{:,}".format, "size": size, "score": score, "share": share}
    return environment


def gather(connection: "duckdb.DuckDBPyConnection", run: str) -> dict[str, Any]:
    """Everything the page shows of a run folder."""
    front, lists = run_folder.read(run), subsets(run)
    for query in (*HELD, DECIDED):
        connection.execute(query)
    sources = source_states(connection)
    made = [_subset(connection, subset, sources) for subset in (*lists, *_others(connection, lists))]
    pictures = example_frames(connection, run)
    views = view_names(connection)
    found = concepts(connection, run) if "clusters" in views else None
    return {
        "front": front,
        "versions": front.get("versions", {}),
        "sources": sources,
        "unit": "h" if sources["seconds"] >= 7200 else "min",
        "per_unit": 3600 if sources["seconds"] >= 7200 else 60,
        "missing": [text for table, text in MISSING.items() if table not in views],
        "subsets": made,
        "pictures": pictures,
        "concepts": found,
        "captions": captions(connection, run) if "captions" in views else None,
        "scores": list(histograms(connection, lists)),
        "unmeasured": [c for c in score_columns(connection) if not _measured(connection, c)],
        "errors": errors(connection),
        "kinds": [{"title": t, "rows": rows(connection, q)} for t, q in KINDS.items()],
        "costs": rows(connection, COSTS),
    }


HELD = (
    "SET memory_limit = '2GB'",
    "SET preserve_insertion_order = false",
    """CREATE TEMP TABLE sources AS SELECT source_id, unit, path, kind, container, video_codec, duration_s, width, height,
              status, reason, error_code, error_message FROM sources""",
    "CREATE TEMP TABLE clips AS FROM clips",
    "CREATE TEMP TABLE selection AS SELECT subset, clip_id, kept, reason, cluster, weight, split, bucket, shard FROM selection",
    """CREATE TEMP TABLE produced AS SELECT subset, clip_id, status, error_code, error_message, bucket, fps, frames, shard,
              bytes FROM produced""",
)
"""The page asks these tables a hundred questions and more: their files are read once. DuckDB spills what is too large."""


def _others(connection: "duckdb.DuckDBPyConnection", lists: Sequence[SubsetConfig]) -> list[SubsetConfig]:
    """Selections made with lists that `run.json` does not name any more: their reasons are known, not their rules' order."""
    found = rows(connection, "SELECT DISTINCT subset AS name FROM selection ORDER BY 1")
    about = "Decided by a list that run.json does not name any more: its reasons stand in no order."
    names = [row["name"] for row in found if row["name"] not in {s.name for s in lists}]
    return [SubsetConfig.model_construct(name=name, about=about) for name in names]


def source_states(connection: "duckdb.DuckDBPyConnection") -> dict[str, Any]:
    """Sources by state, and whether they add up."""
    query = """SELECT status, count(*) AS n, coalesce(sum(duration_s), 0) AS s FROM sources GROUP BY 1"""
    state = {row["status"]: Amount(row["n"], row["s"]) for row in rows(connection, query)}
    ok, rejected, error = (state.get(s, Amount()) for s in ("ok", "rejected", "error"))
    whole = sum(state.values(), Amount())
    listed = rows(connection, "SELECT count(*) AS n FROM units")[0]["n"]
    measured = rows(connection, MEASURED)[0]
    why = rows(
        connection,
        f"""SELECT {GROUP} AS reason, count(*) AS n, coalesce(sum(duration_s), 0) AS s FROM sources
            WHERE status = 'rejected' GROUP BY 1 ORDER BY n DESC, 1""",
    )
    return {
        "listed": max(listed, whole.count),
        "count": whole.count,
        "seconds": whole.seconds,
        "ok": ok,
        "rejected": rejected,
        "error": error,
        "measured": Amount(measured["n"], measured["s"]),
        "adds_up": whole.count == ok.count + rejected.count + error.count,
        "why": [{"label": reason_label(w["reason"]), "amount": Amount(w["n"], w["s"])} for w in why],
    }


MEASURED = """
    SELECT count(*) AS n, coalesce(sum(duration_s), 0) AS s FROM sources WHERE status <> 'error'
    AND source_id IN (SELECT source_id FROM clips UNION SELECT source_id FROM series)"""
"""Sources that were decoded: those that are ok, and with `score_all` rejected ones too."""

DECIDED = f"""
    CREATE TEMP VIEW decided AS
    SELECT s.subset, s.clip_id, c.source_id, c.path, c.kind, c.duration_s, c.start_s, {GROUP} AS reason
    FROM selection s JOIN clips c USING (clip_id)"""


def _subset(connection: "duckdb.DuckDBPyConnection", subset: SubsetConfig, sources: Mapping[str, Any]) -> dict[str, Any]:
    tally: dict[str, dict[str, Amount]] = {"video": {}, "image": {}}
    query = """SELECT kind, reason, count(*) AS n, coalesce(sum(duration_s), 0) AS s FROM decided WHERE subset = ?
               GROUP BY kind, reason ORDER BY n DESC, reason"""
    for row in rows(connection, query, [subset.name]):
        tally[row["kind"]][row["reason"]] = Amount(row["n"], row["s"])
    clips = rows(connection, "SELECT count(*) AS n FROM clips")[0]["n"]
    reasons: dict[str, Amount] = {}
    for reason, amount in [pair for kind in tally.values() for pair in kind.items()]:
        reasons[reason] = reasons.get(reason, Amount()) + amount
    decided = sum(a.count for kind in tally.values() for a in kind.values())
    kept = reasons.get("kept", Amount())
    error = sum(a.count for kind in tally.values() for r, a in kind.items() if r.startswith("error:"))
    dropped = rows(
        connection,
        "SELECT count(*) AS n FROM selection WHERE subset = ? AND NOT kept AND NOT starts_with(reason, 'error:')",
        [subset.name],
    )[0]["n"]
    return {
        "config": subset,
        "clips": clips,
        "decided": decided,
        "kept": kept.count,
        "kept_seconds": kept.seconds,
        "dropped": dropped,
        "error": error,
        "adds_up": decided == kept.count + dropped + error and decided <= clips,
        "funnels": [funnel(subset, kind, amounts, sources) for kind, amounts in tally.items() if amounts],
        "after": [(r, a) for r, a in reasons.items() if not r.startswith("rule:") and r not in ("kept", "exact_copy")],
        "buckets": rows(connection, BUCKETS, [subset.name]),
    }


def funnel(subset: SubsetConfig, kind: str, tally: Mapping[str, Amount], sources: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of one funnel, each with its shares. Videos are measured in time, images by number."""
    whole = sum(tally.values(), Amount())
    came_in = sources["seconds"] if kind == "video" else whole.count
    shown = []
    before = whole
    for step in steps(subset, kind, tally):
        shown.append(_row(step, before, came_in, kind))
        before = step.left
    first = {"amount": whole, "share": _part(_in_kind(whole, kind), came_in)}
    return {"kind": kind, "clips": first, "steps": shown, "kept": before}


def _row(step: Step, before: Amount, came_in: float, kind: str) -> dict[str, Any]:
    return {
        "step": step,
        "share": _part(_in_kind(step.left, kind), came_in),
        "yield": _part(step.left.count, before.count),
        "dropped": _part(_in_kind(step.dropped, kind), came_in),
        "unknown": _part(_in_kind(step.unknown, kind), came_in),
    }


def _in_kind(amount: Amount, kind: str) -> float:
    return amount.seconds if kind == "video" else amount.count


def _part(part: float, whole: float) -> float | None:
    return part / whole if whole else None


BUCKETS = """
    WITH plan AS (SELECT split, bucket, count(*) AS planned, count(DISTINCT shard) AS shards_planned FROM selection
                  WHERE subset = $1 AND kept GROUP BY ALL),
         made AS (SELECT split_part(shard, '/', 1) AS split, bucket, count(*) FILTER (status = 'ok') AS samples,
                         count(*) FILTER (status <> 'ok') AS failed, count(DISTINCT shard) AS shards,
                         coalesce(sum(bytes) FILTER (status = 'ok'), 0) AS bytes,
                         sum(frames / fps) FILTER (status = 'ok' AND fps > 0) AS seconds
                  FROM produced WHERE subset = $1 GROUP BY ALL)
    SELECT split, bucket, planned, shards_planned, coalesce(samples, 0) AS samples, coalesce(failed, 0) AS failed,
           coalesce(shards, 0) AS shards, coalesce(bytes, 0)::BIGINT AS bytes, coalesce(seconds, 0) AS seconds
    FROM plan LEFT JOIN made USING (split, bucket) ORDER BY split, bucket"""

KINDS = {
    "Codec": """SELECT coalesce(video_codec, 'unknown') AS label, count(*) AS n, coalesce(sum(duration_s), 0) AS s
                FROM sources GROUP BY 1 ORDER BY n DESC, 1 LIMIT 12""",
    "Container": """SELECT coalesce(container, 'unknown') AS label, count(*) AS n, coalesce(sum(duration_s), 0) AS s
                    FROM sources GROUP BY 1 ORDER BY n DESC, 1 LIMIT 12""",
    "Short side": """
        SELECT CASE WHEN side IS NULL THEN 'unknown' WHEN side < 256 THEN 'under 256 px' WHEN side < 480 THEN '256 to 479 px'
                    WHEN side < 720 THEN '480 to 719 px' WHEN side < 768 THEN '720 to 767 px'
                    WHEN side < 1080 THEN '768 to 1079 px' WHEN side < 2160 THEN '1080 to 2159 px'
                    ELSE '2160 px and more' END AS label, count(*) AS n, coalesce(sum(duration_s), 0) AS s
        FROM (SELECT least(width, height) AS side, duration_s FROM sources) GROUP BY 1 ORDER BY min(side) NULLS LAST""",
}

COSTS = """
    SELECT stage, sum("rows")::BIGINT AS n, sum(cpu_s) AS cpu_s, sum(wall_s) AS wall_s, max(peak_mb) AS peak_mb,
           sum(cpu_s) / nullif((SELECT sum(duration_s) FROM sources) / 3600, 0) AS cpu_s_per_hour
    FROM costs GROUP BY 1 ORDER BY cpu_s DESC, 1"""


def errors(connection: "duckdb.DuckDBPyConnection") -> list[dict[str, Any]]:
    """Every error code of sources, clips and samples: how often, what it means, and up to five examples."""
    found = rows(
        connection,
        """SELECT what, error_code AS code, count(*) AS n, arg_min(struct_pack(path := path, message := error_message), path, 5)
                  AS examples
           FROM (SELECT 'source' AS what, error_code, path, error_message FROM sources
                 UNION ALL SELECT 'clip', error_code, path, error_message FROM clips
                 UNION ALL SELECT 'sample', error_code, clip_id, error_message FROM produced)
           WHERE error_code IS NOT NULL GROUP BY what, error_code ORDER BY what = 'sample', what = 'clip', n DESC, code""",
    )
    return [{**row, "meaning": CODES.get(row["code"], "unknown code")} for row in found]


def score_columns(connection: "duckdb.DuckDBPyConnection") -> list[str]:
    """Columns of `clips` that hold a score, those a later scorer added included."""
    described = rows(connection, "SELECT column_name, column_type FROM (DESCRIBE clips)")
    return [
        d["column_name"]
        for d in described
        if d["column_type"] == "DOUBLE" and d["column_name"] not in ("start_s", "end_s", "fps")
    ]


def _measured(connection: "duckdb.DuckDBPyConnection", column: str) -> bool:
    return bool(rows(connection, f"SELECT 1 FROM clips WHERE {column} IS NOT NULL LIMIT 1"))


def histograms(connection: "duckdb.DuckDBPyConnection", lists: Sequence[SubsetConfig]) -> Iterator[dict[str, Any]]:
    """One histogram a measured score, with the thresholds that the subsets' rules set on it."""
    for column in score_columns(connection):
        stats = rows(connection, STATS.format(column=column, shown=_shown(column)))[0]
        if stats["n"]:
            yield _histogram(connection, column, stats, thresholds(lists, column))


STATS = """
    SELECT count({column}) AS n,
           count(*) FILTER ({column} IS NULL AND kind = 'video') AS missing,
           count(*) FILTER ({column} IS NULL AND kind = 'image') AS images, min({column}) AS low, max({column}) AS high,
           approx_quantile({column}, 0.05) AS p5, approx_quantile({column}, 0.5) AS p50,
           approx_quantile({column}, 0.95) AS p95, approx_quantile({column}, 0.99) AS p99
    FROM clips WHERE {shown}"""


def _shown(column: str) -> str:
    """The clips that a histogram counts: an image has no duration."""
    return "status = 'ok' AND kind = 'video'" if column == "duration_s" else "status = 'ok'"


@dataclass(frozen=True)
class Threshold:
    """A number that rules compare a column with, and the subsets whose rules do."""

    value: float
    sign: str
    subsets: tuple[str, ...]


def thresholds(lists: Sequence[SubsetConfig], column: str) -> list[Threshold]:
    """The numbers that the subsets' rules compare `column` itself with; sums and functions of it have none to draw."""
    number = r"-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|-?\.\d+"
    after = re.compile(rf"(?<![\w*/+-])(?<![*/+-] ){column}\s*(<=|>=|==?|!=|<>|<|>)\s*({number})(?!\s*[*/+-]|[\w.])")
    before = re.compile(rf"(?<![\w.])({number})\s*(<=|>=|<|>)\s*{column}(?!\s*[*/+-]|\w)")
    turned = {"<": ">", ">": "<", "<=": "≥", ">=": "≤"}
    found: dict[tuple[float, str], list[str]] = {}
    for subset in lists:
        rules = (*subset.clip_rules, *subset.image_rules, *(subset.source_rules if column == "duration_s" else ()))
        for text in rules:
            pairs = [(float(value), sign) for sign, value in after.findall(text)]
            pairs += [(float(value), turned[sign]) for value, sign in before.findall(text)]
            for value, sign in pairs:
                names = found.setdefault((value, sign.replace("<=", "≤").replace(">=", "≥")), [])
                names += [subset.name] if subset.name not in names else []
    return [Threshold(value, sign, tuple(names)) for (value, sign), names in sorted(found.items())]


def _histogram(
    connection: "duckdb.DuckDBPyConnection", column: str, stats: dict[str, Any], lines: Sequence[Threshold]
) -> dict[str, Any]:
    low, high = float(stats["low"]), float(stats["high"])
    if high - low > 4 * (stats["p99"] - low) > 0:
        high = float(stats["p99"])  # a long tail goes into the last bin
    near = [t.value for t in lines if low - (high - low) <= t.value <= high + (high - low)]
    low, high = min([low, *near]), max([high, *near])
    if high <= low:
        high = low + 1
    query = f"""SELECT least({BINS - 1}, greatest(0, floor(({column} - $1) / $2 * {BINS})))::INT AS bin, count(*) AS n
                FROM clips WHERE {_shown(column)} AND {column} IS NOT NULL GROUP BY 1"""
    counts = {row["bin"]: row["n"] for row in rows(connection, query, [low, high - low])}
    top = max(counts.values())
    bars = [{"x": b, "n": counts.get(b, 0), "height": (counts.get(b, 0) / top) ** 0.5} for b in range(BINS)]
    drawn = _drawn(lines, low, high)
    return {"name": column, **stats, "from": low, "to": high, "tail": stats["high"] > high, "bars": bars, "lines": drawn}


def _drawn(lines: Sequence[Threshold], low: float, high: float) -> list[dict[str, Any]]:
    """Where each line stands, in pixels of the chart, and its label's row: the first of two with room for it, or none."""
    free = [-1.0, -1.0]
    drawn = []
    for line in lines:
        x = CHART_PX * min(1.0, max(0.0, (line.value - low) / (high - low)))
        inside = low <= line.value <= high
        label = f"{'' if inside or x else '← '}{line.sign} {line.value:g}{'' if inside or not x else ' →'}"
        width = CHARACTER_PX * len(label)
        left = min(CHART_PX - width, max(0.0, x - width / 2))
        row = next((i for i, end in enumerate(free) if left > end), None)
        if row is not None:
            free[row] = left + width
        drawn.append({"line": line, "x": x, "inside": inside, "label": label, "left": left, "row": row})
    return drawn


def example_frames(connection: "duckdb.DuckDBPyConnection", run: str) -> dict[str, Any]:
    """subset -> reasons, each with up to `EXAMPLES` small pictures; the first of every reason before the second of any."""
    query = f"""SELECT subset, reason, count(*) AS n,
                       arg_min(struct_pack(clip_id := clip_id, path := path, at := start_s), md5(clip_id), {CANDIDATES})
                       AS clips
                FROM decided GROUP BY subset, reason ORDER BY subset, reason = 'kept' DESC, n DESC, reason"""
    reasons = rows(connection, query)
    chosen = [_spread(row["clips"]) for row in reasons]
    jpegs = middle_frames(connection, run, [clip["clip_id"] for clips in chosen for clip in clips])
    shown: dict[str, list[dict[str, Any]]] = {}
    groups = []
    for row in reasons:
        group = {
            "label": reason_label(row["reason"]),
            "failed": row["reason"].startswith("rule:"),
            "count": row["n"],
            "pictures": [],
        }
        shown.setdefault(row["subset"], []).append(group)
        groups.append(group)
    room, left_out = PICTURE_BYTES, 0
    for place, (group, clips) in itertools.product(range(EXAMPLES), zip(groups, chosen, strict=True)):
        if place < len(clips) and (uri := jpegs.get(clips[place]["clip_id"])):
            room -= len(uri)
            left_out += room < 0
            if room >= 0:
                group["pictures"].append({**clips[place], "uri": uri})
    return {"subsets": shown, "left_out": left_out}


def _spread(clips: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`EXAMPLES` of the candidates, from as many sources as there are."""
    first: dict[str, dict[str, Any]] = {}
    for clip in clips:
        first.setdefault(clip["path"], clip)
    others = [clip for clip in clips if first[clip["path"]] is not clip]
    return [*first.values(), *others][:EXAMPLES]


def reason_label(reason: str) -> str:
    """A grouped reason for people."""
    if reason == "exact_copy":
        return "exact copies of another source"
    return AFTER.get(reason, reason.removeprefix("rule:") if reason.startswith("rule:") else reason.replace(":", ": ", 1))


def share(part: float | None) -> str:
    """A share in percent, a dash where there is no whole."""
    if part is None:
        return "–"
    return f"{part:.2%}" if 0 < part < 0.01 else f"{part:.1%}"


def score(value: float | None) -> str:
    """A score in three digits."""
    return "–" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def size(count: int) -> str:
    """A number of bytes for people."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.1f} {unit}"
    return f"{count} B"
