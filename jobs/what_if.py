"""What another rule list would keep of a measured run: a query over its tables, no decoding."""

from typing import TYPE_CHECKING

from curation.rules import SubsetConfig, clip_rule, reason_sql, source_rule
from jobs.config import rule_list
from jobs.funnel import GROUP, Amount, Step, steps
from jobs.inspect import connect, new_table, rows, texts

if TYPE_CHECKING:
    import duckdb
    from rich.console import RenderableType
    from rich.table import Table


def what_if(run: str, rules_name: str) -> "RenderableType":
    """Rule by rule, what a shipped list or a YAML file would keep, drop, or cannot know (a column is null).

    Only the rules are asked: shape buckets, duplicates and mixes come after them. Compared with the run's own
    selection of that name where there is one. Raises ConfigError where the list or the run will not do.
    """
    from rich.console import Group

    subset = rule_list(rules_name)
    with connect(run) as connection:
        connection.execute(f"CREATE TEMP VIEW supposed AS {supposed_sql(subset)}")
        shown: list[RenderableType] = []
        for kind in ("video", "image"):
            tally = tallied(connection, "supposed", f"kind = '{kind}'")
            if tally:
                shown.append(_funnel(f"{subset.name}: {kind} clips", steps(subset, kind, tally), sum(tally.values(), Amount())))
        return Group(*shown, *_outcome(connection, subset), *_undecoded(connection, subset))


def supposed_sql(subset: SubsetConfig) -> str:
    """A row a clip (clip_id, kind, duration_s, reason), with the reason that the rules of `subset` alone would give."""
    source = reason_sql([source_rule(t) for t in subset.source_rules])
    video = reason_sql([clip_rule(t) for t in subset.clip_rules])
    image = reason_sql([clip_rule(t) for t in subset.image_rules])
    return f"""
        WITH judged AS (SELECT source_id, any_value(CASE WHEN exact_copy_of IS NOT NULL THEN 'exact_copy:'
                            WHEN kind = 'video' THEN {source} END) AS source_reason FROM sources GROUP BY 1),
             ruled AS (SELECT clip_id, source_id, kind, duration_s, status, error_code,
                              CASE WHEN kind = 'image' THEN {image} ELSE {video} END AS clip_reason FROM clips)
        SELECT clip_id, kind, duration_s, coalesce(CASE WHEN status = 'error' THEN concat('error:', error_code) END,
               source_reason, clip_reason, 'kept') AS reason FROM ruled LEFT JOIN judged USING (source_id)"""


def tallied(connection: "duckdb.DuckDBPyConnection", view: str, where: str = "TRUE") -> dict[str, Amount]:
    """Grouped reason -> amount, over a view with `reason` and `duration_s`."""
    query = f"SELECT {GROUP} AS reason, count(*) AS n, coalesce(sum(duration_s), 0) AS s FROM {view} WHERE {where} GROUP BY 1"
    return {row["reason"]: Amount(row["n"], row["s"]) for row in rows(connection, query)}


def _funnel(title: str, found: list[Step], whole: Amount) -> "Table":
    table = new_table("rule", "dropped", "unknown", "clips left", "hours left", "of all clips", title=title)
    table.add_row(*texts("measured clips", "", "", whole.count, _hours(whole), ""))
    for step in found:
        share = f"{step.left.count / whole.count:.1%}"
        table.add_row(*texts(step.label, step.dropped.count, step.unknown.count, step.left.count, _hours(step.left), share))
    return table


def _outcome(connection: "duckdb.DuckDBPyConnection", subset: SubsetConfig) -> "list[RenderableType]":
    """Kept, dropped and unknown, beside what the run's selection of that name says."""
    supposed = _sums(tallied(connection, "supposed"))
    own = "SELECT c.duration_s, s.reason FROM selection s JOIN clips c USING (clip_id) WHERE s.subset = "
    connection.execute(f"CREATE TEMP VIEW own AS {own}'{subset.name}'")  # a name is [a-z0-9_-] only
    present = _sums(tallied(connection, "own"))
    compared = any(amount.count for amount in present.values())
    columns = ["clips", "hours"] + (["clips now", "hours now", "change"] if compared else [])
    table = new_table("by the rules alone", *columns, title="All clips")
    for name, amount in supposed.items():
        now = present[name]
        change = [now.count, _hours(now), f"{amount.count - now.count:+d}"] if compared else []
        table.add_row(*texts(name, amount.count, _hours(amount), *change))
    return [table] if compared else [table, f"The run has no selection named {subset.name} to compare with."]


def _sums(tally: dict[str, Amount]) -> dict[str, Amount]:
    sums = {"kept": Amount(), "dropped": Amount(), "unknown": Amount(), "error": Amount()}
    for reason, amount in tally.items():
        sums[_fate(reason)] += amount
    return sums


def _fate(reason: str) -> str:
    """A clip that passed the rules counts as kept here, whatever came after them."""
    if reason.startswith("error:"):
        return "error"
    if reason.startswith("unmeasured:"):
        return "unknown"
    after = reason.startswith(("unselected:", "duplicate")) or reason == "resampled_out"
    return "kept" if reason == "kept" or after else "dropped"


def _undecoded(connection: "duckdb.DuckDBPyConnection", subset: SubsetConfig) -> "list[RenderableType]":
    """What no query can tell: sources that were stopped before they were decoded, which this list would let in."""
    from rich.text import Text

    reason = reason_sql([source_rule(t) for t in subset.source_rules])
    query = f"""SELECT count(*) AS n, coalesce(sum(duration_s), 0) AS s FROM sources
                WHERE status = 'rejected' AND exact_copy_of IS NULL AND kind = 'video' AND ({reason}) IS NULL
                AND source_id NOT IN (SELECT source_id FROM clips)"""
    found = rows(connection, query)[0]
    if not found["n"]:
        return []
    text = (
        f"Not counted: {found['n']} sources ({found['s'] / 3600:.2f} h) that the run stopped before decoding and this list "
        "would let in. Their clips were never measured."
    )
    return [Text(text, style="yellow")]


def _hours(amount: Amount) -> str:
    return f"{amount.seconds / 3600:.3f}"
