"""Two runs compared: their settings, the clips that changed verdict and why, and how the scores drifted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation import run_folder
from curation.errors import ConfigError
from curation.tables import CLIP_SCORES
from jobs.funnel import GROUP
from jobs.inspect import add, connect, new_table, number, rows, texts
from jobs.report import reason_label, render

if TYPE_CHECKING:
    import duckdb
    from rich.console import RenderableType

SCORES = ("duration_s", "frames", *CLIP_SCORES)
TABLES = ("clips", "selection")
EXAMPLES = 3
BINS = 40
SETTINGS_LEFT_OUT = ("engine",)
"""Where a run was made says nothing of what it has."""


@dataclass(frozen=True)
class Comparison:
    """What two runs have in common, and what not."""

    settings: list[tuple[str, Any, Any]]
    counts: dict[str, int]
    verdicts: list[dict[str, Any]]
    drift: list[dict[str, Any]]
    cameras: list[dict[str, Any]]
    """Camera labels before and after that differ, with how many clips."""
    only: list[str]
    """Subsets that one of the runs has alone."""


def compare(run: str, other: str) -> Comparison:
    """Compare two runs of one corpus. Raises ConfigError where either is no run, or where they share no clip."""
    before, after = (_settings(run_folder.read(place)) for place in (run, other))
    with connect(run, TABLES) as connection:
        add(connection, other, TABLES, "other")
        counts = _join(connection)
        if not counts["shared"]:
            raise ConfigError(
                f"the runs share no clip ({counts['first']} clips in {run!r}, {counts['second']} in {other!r}): a clip is the "
                "same frames of the same file, so another corpus or other cuts make other clips"
            )
        names = [
            {row["subset"] for row in rows(connection, f"SELECT DISTINCT subset FROM {s}selection")} for s in ("", "other.")
        ]
        verdicts = rows(connection, VERDICTS)
        cameras = rows(connection, CAMERAS)
        drift = [row for row in (_drift(connection, score) for score in SCORES) if row["n_before"] or row["n_after"]]
    keys = sorted(k for k in before | after if before.get(k, "(unset)") != after.get(k, "(unset)"))
    settings = [(key, before.get(key, "(unset)"), after.get(key, "(unset)")) for key in keys]
    return Comparison(settings, counts, verdicts, drift, cameras, sorted(names[0] ^ names[1]))


def _settings(page: dict[str, Any]) -> dict[str, Any]:
    """A run's config and the versions it was made with, flat; a list of settings by their names, a list of rules by places."""
    named: dict[str, Any] = {}
    for key, value in {**page["config"], "versions": page["versions"]}.items():
        if key not in SETTINGS_LEFT_OUT:
            is_named = isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value)
            named[key] = {item["name"]: item for item in value} if is_named else value
    return run_folder.flatten(named)


def _join(connection: "duckdb.DuckDBPyConnection") -> dict[str, int]:
    """Make `pairs`: a row a clip that both runs have, with its scores in either; returns how many each has."""
    columns = ", ".join(f"a.{name} AS {name}, b.{name} AS {name}_after" for name in (*SCORES, "camera"))
    connection.execute(f"CREATE TEMP TABLE pairs AS SELECT clip_id, {columns} FROM clips a JOIN other.clips b USING (clip_id)")
    query = """SELECT (SELECT count(*) FROM pairs) AS shared, (SELECT count(*) FROM clips) AS first,
                      (SELECT count(*) FROM other.clips) AS second"""
    return rows(connection, query)[0]


VERDICTS = f"""
    WITH first AS (SELECT subset, clip_id, {GROUP} AS reason FROM selection),
         second AS (SELECT subset, clip_id, {GROUP} AS reason FROM other.selection)
    SELECT subset, first.reason AS before, second.reason AS after, count(*) AS clips, coalesce(sum(duration_s), 0) AS seconds,
           arg_min(clip_id, md5(clip_id), {EXAMPLES}) AS examples
    FROM first JOIN second USING (subset, clip_id) JOIN pairs USING (clip_id)
    GROUP BY ALL ORDER BY subset, clips DESC, before, after"""
"""Every pair of reasons that a shared clip was given."""


CAMERAS = """
    SELECT camera AS before, camera_after AS after, count(*) AS clips FROM pairs WHERE camera IS DISTINCT FROM camera_after
    GROUP BY ALL ORDER BY clips DESC, before, after"""


def _drift(connection: "duckdb.DuckDBPyConnection", score: str) -> dict[str, Any]:
    """How one score of the shared clips drifted, with a histogram of either run over the same bins."""
    a, b = score, f"{score}_after"
    query = f"""
        SELECT count({a}) AS n_before, count({b}) AS n_after, avg({a}) AS mean_before, avg({b}) AS mean_after,
               quantile_cont({a}, [0.05, 0.5, 0.95]) AS q_before, quantile_cont({b}, [0.05, 0.5, 0.95]) AS q_after,
               count(*) FILTER ({a} IS DISTINCT FROM {b}) AS changed, max(abs({a} - {b})) AS largest,
               least(min({a}), min({b})) AS low, greatest(quantile_cont({a}, 0.99), quantile_cont({b}, 0.99)) AS high
        FROM pairs"""
    found = rows(connection, query)[0]
    low, high = found.pop("low"), found.pop("high")
    found |= {"name": score, "low": low, "high": high, "before": [], "after": []}
    if low is not None and found["changed"]:
        width = (high - low) / BINS or 1.0
        for name, column in (("before", a), ("after", b)):
            counts = dict(
                connection.execute(
                    f"""SELECT least({BINS - 1}, floor(({column} - $1) / $2))::INT AS bin, count(*) FROM pairs
                        WHERE {column} IS NOT NULL GROUP BY 1""",
                    [low, width],
                ).fetchall()
            )
            found[name] = [counts.get(bin, 0) for bin in range(BINS)]
    return found


def listed(found: Comparison) -> "RenderableType":
    """A comparison for the terminal."""
    from rich.console import Group

    settings = new_table("setting", "before", "after", title="Settings that differ")
    for key, before, after in found.settings:
        settings.add_row(*texts(key, _short(before), _short(after)))
    counts = found.counts
    alone = (
        f"{counts['first'] - counts['shared']} only in the first run, {counts['second'] - counts['shared']} only in the second"
    )
    shown: list[RenderableType] = [
        settings if found.settings else "No setting differs.",
        f"{counts['shared']} clips in both; {alone}.",
    ]
    changes = new_table("subset", "before", "after", "clips", "hours", "examples", title="Verdicts that changed")
    for row in changed(found.verdicts):
        hours, labels = f"{row['seconds'] / 3600:.3f}", (reason_label(row["before"]), reason_label(row["after"]))
        changes.add_row(*texts(row["subset"], *labels, row["clips"], hours, "\n".join(row["examples"])))
    shown.append(changes if changes.row_count else "No clip changed verdict.")
    cameras = new_table("before", "after", "clips", title="Camera labels that changed")
    for row in found.cameras:
        cameras.add_row(*texts(*(row[k] or "(none)" for k in ("before", "after")), row["clips"]))
    shown += [cameras] * bool(found.cameras)
    shown += [f"Only one of the runs has a selection {name}." for name in found.only]
    drift = new_table(
        "score", "changed", "measured", "mean", "p05", "p50", "p95", "largest change", title="Scores that drifted"
    )
    for row in found.drift:
        if row["changed"]:
            pairs = [(row["mean_before"], row["mean_after"]), *quantiles(row)]
            moved = [f"{number(a)} -> {number(b)}" for a, b in pairs]
            measured = f"{row['n_before']} -> {row['n_after']}"
            drift.add_row(*texts(row["name"], row["changed"], measured, *moved, number(row["largest"])))
    shown.append(drift if drift.row_count else "No score of a shared clip differs.")
    return Group(*shown)


def changed(verdicts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pairs of reasons that differ."""
    return [row for row in verdicts if row["before"] != row["after"]]


def quantiles(row: dict[str, Any]) -> Iterator[tuple[float | None, float | None]]:
    """5, 50 and 95 % of a score, before and after."""
    none = [None] * 3
    return zip(row["q_before"] or none, row["q_after"] or none, strict=True)


def _short(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def page(run: str, other: str, found: Comparison, place: Path) -> None:
    """Write a page with the comparison and a picture of every score that drifted."""
    drifted = [{**row, "quantiles": list(quantiles(row)), "paths": _paths(row)} for row in found.drift if row["changed"]]
    verdicts = [{**row, "labels": [reason_label(row[k]) for k in ("before", "after")]} for row in changed(found.verdicts)]
    values = {"run": run, "other": other, "found": found, "verdicts": verdicts, "drifted": drifted, "short": _short}
    place.write_bytes(render(values, "diff.html.j2").encode("utf-8", "replace"))


def _paths(row: dict[str, Any]) -> dict[str, str]:
    """Outlines of both histograms, 300 wide and 80 high, on one scale."""
    top = max([*row["before"], *row["after"], 1])
    paths = {}
    for name in ("before", "after"):
        steps = [f"V{90 - 80 * (n / top) ** 0.5:.1f}H{300 * (place + 1) / BINS:.1f}" for place, n in enumerate(row[name])]
        paths[name] = f"M0 90{''.join(steps)}V90"
    return paths
