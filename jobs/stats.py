"""The shipped statistics of a run: one SQL text each, valid in DuckDB and in Spark, over the run's tables and four views.

decided   a row a clip and subset: subset, clip_id, source_id, kind, duration_s, kept, reason, cluster, split, bucket, shard;
          reasons are grouped (the one clip that a near-duplicate resembles is left out)
steps     a row a step of a subset's list and a reason that it gives: subset, kind, place, step, about, reason, fate
verdicts  a row a clip and subset: `pattern` has a letter a rule of the list, p for pass, f for fail, u for unmeasured,
          whatever the other rules say; without clips in error and without copies of other sources
scores    a row a score of a clip that is not in error: clip_id, kind, score, value; null where it is unmeasured
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

from curation.errors import ConfigError
from curation.rules import Rule, SubsetConfig, clip_rule, literal, quote, source_rule
from curation.tables import CLIP_SCORES
from jobs.funnel import AFTER, GROUP
from jobs.inspect import LATER, VIEWS, connect, csv_text, new_table, number, rich_table, subsets, texts, view_names

if TYPE_CHECKING:
    import duckdb
    from rich.console import RenderableType

SCORES = ("duration_s", *CLIP_SCORES)
RULE = {"source_rules": "source rule", "clip_rules": "clip rule", "image_rules": "image rule"}


@dataclass(frozen=True)
class Statistic:
    """One file of `jobs/sql`: its name, its first line, its text, and the tables that not every run has."""

    name: str
    about: str
    sql: str
    needs: tuple[str, ...]


@lru_cache(maxsize=1)
def shipped() -> dict[str, Statistic]:
    """All statistics, by name."""
    found = {}
    for file in sorted((files("jobs") / "sql").iterdir(), key=lambda f: f.name):
        name, sql = file.name.removesuffix(".sql"), file.read_text()
        about = sql.partition("\n")[0].removeprefix("-- ")
        found[name] = Statistic(name, about, sql, tuple(t for t in LATER if re.search(rf"\b(FROM|JOIN) {t}\b", sql)))
    return found


def chosen(names: Sequence[str]) -> list[Statistic]:
    """Statistics by name, all of them for `all`. Raises ConfigError that lists the known ones."""
    known = shipped()
    if unknown := [name for name in names if name not in known and name != "all"]:
        raise ConfigError(f"no statistic is named {unknown[0]!r}; there are {', '.join(known)}, and all")
    return list(known.values()) if "all" in names else [known[name] for name in names]


def relations(lists: Sequence[SubsetConfig]) -> dict[str, str]:
    """The SQL of each view of the module's docstring, for these lists, in the order in which they can be made."""
    scores = ", ".join(SCORES)
    return {
        "decided": f"""
            SELECT s.subset, s.clip_id, c.source_id, c.kind, c.duration_s, s.kept, s.reason, s.cluster, s.split, s.bucket,
                   s.shard
            FROM (SELECT subset, clip_id, kept, {GROUP} AS reason, cluster, split, bucket, shard FROM selection) s
            JOIN clips c ON c.clip_id = s.clip_id""",
        "steps": _steps(lists),
        "verdicts": " UNION ALL ".join(_verdicts(subset) for subset in lists) or _NO_VERDICTS,
        "scores": f"""
            SELECT clip_id, kind, score, value FROM (SELECT clip_id, kind, {scores} FROM clips WHERE status = 'ok') AS measured
            UNPIVOT INCLUDE NULLS (value FOR score IN ({scores}))""",
    }


_NO_VERDICTS = "SELECT '' AS subset, clip_id, kind, duration_s, '' AS pattern FROM clips WHERE 1 = 0"


def rules_of(subset: SubsetConfig, kind: str) -> list[tuple[Rule, str]]:
    """The rules that a clip of `kind` meets, in order, each with what it is about: the letters of a `pattern`."""
    if kind == "image":
        return [(clip_rule(text), RULE["image_rules"]) for text in subset.image_rules]
    first = [(source_rule(text), RULE["source_rules"]) for text in subset.source_rules]
    return first + [(clip_rule(text), RULE["clip_rules"]) for text in subset.clip_rules]


def _steps(lists: Sequence[SubsetConfig]) -> str:
    """Every reason of every list: a rule's own, that of a column it needs (the first rule to need it), and those after them."""
    rows = []
    for subset in lists:
        for kind in ("video", "image"):
            given: set[str] = set()
            for place, (rule, about) in enumerate(rules_of(subset, kind), 1):
                reasons = [(f"rule:{rule.text}", "dropped"), *((f"unmeasured:{c}", "unknown") for c in rule.columns)]
                new = [pair for pair in reasons if pair[0] not in given]
                rows += [(subset.name, kind, place, rule.text, about, reason, fate) for reason, fate in new]
                given |= {reason for reason, _ in reasons}
            after = [("exact_copy", "exact copies of another source", 0)]
            after += [(reason, label, 1000 + place) for place, (reason, label) in enumerate(AFTER.items())]
            rows += [(subset.name, kind, place, label, "after the rules", r, "dropped") for r, label, place in after]
    none = ("", "", 0, "", "", "", "")
    values = ", ".join(
        "(" + ", ".join(str(v) if isinstance(v, int) else literal(v) for v in row) + ")" for row in rows or [none]
    )
    columns = "subset, kind, place, step, about, reason, fate"
    return f"SELECT {columns} FROM (VALUES {values}) AS given ({columns}){'' if rows else ' WHERE 1 = 0'}"


def _verdicts(subset: SubsetConfig) -> str:
    """What each rule of a list says of each clip, whatever the others say."""
    of_source = [(source_rule(text), f"j{n}") for n, text in enumerate(subset.source_rules)]
    judged = "".join(f", {verdict_sql(rule)} AS {name}" for rule, name in of_source)
    video = [*(f"coalesce({name}, 'u')" for _, name in of_source), *(verdict_sql(clip_rule(t)) for t in subset.clip_rules)]
    image = [verdict_sql(clip_rule(text)) for text in subset.image_rules]
    return f"""
        SELECT {literal(subset.name)} AS subset, clip_id, kind, duration_s,
               CASE WHEN kind = 'image' THEN {joined(image)} ELSE {joined(video)} END AS pattern
        FROM (SELECT * FROM clips WHERE status <> 'error') AS measured
        JOIN (SELECT source_id AS judged_id{judged} FROM sources WHERE exact_copy_of IS NULL) AS judged
            ON judged_id = source_id"""


def verdict_sql(rule: Rule) -> str:
    """SQL of a letter: p for pass, f for fail, u where a column that the rule needs is unmeasured."""
    missing = " OR ".join(f"{quote(c)} IS NULL" for c in rule.columns)
    unknown = f"WHEN {missing} THEN 'u' " if missing else ""
    return f"CASE {unknown}WHEN coalesce({rule.sql}, FALSE) THEN 'p' ELSE 'f' END"


def joined(letters: Sequence[str]) -> str:
    """SQL of a pattern."""
    return f"concat({', '.join(letters)})" if letters else "''"


def prepare(connection: "duckdb.DuckDBPyConnection", lists: Sequence[SubsetConfig]) -> None:
    """Make the views of the module's docstring."""
    for name, sql in relations(lists).items():
        connection.execute(f"CREATE TEMP VIEW {name} AS {sql}")


def stats(run: str, names: Sequence[str] = (), csv: bool = False) -> "RenderableType":
    """These statistics of a run, each as a table (the first 1000 rows) or as CSV; without names, a list of what there is.

    One that needs a table which the run has not got says so. Raises ConfigError for an unknown name or where `run` is no run.
    """
    from rich.console import Group
    from rich.text import Text

    wanted = chosen(names)
    with connect(run, VIEWS) as connection:
        there = view_names(connection)
        if not wanted:
            return _listed(there)
        prepare(connection, subsets(run))
        parts: list[RenderableType] = []
        for one in wanted:
            if lacking := [table for table in one.needs if table not in there]:
                parts.append(Text(lacks(one, lacking), style="yellow") if not csv else f"# {lacks(one, lacking)}\n")
                continue
            if not csv:
                parts.append(Text(f"{one.name}: {one.about}", style="bold"))
            elif len(wanted) > 1:
                parts.append(f"# {one.name}\n")
            found = connection.execute(one.sql)
            parts.append(csv_text(found) if csv else rich_table(found, number))
    return "".join(map(str, parts)) if csv else Group(*parts)


def lacks(statistic: Statistic, tables: Sequence[str]) -> str:
    """What to say of a statistic that a run cannot give."""
    return f"{statistic.name}: this run has no table {' and no table '.join(tables)}"


def _listed(there: set[str]) -> "RenderableType":
    table = new_table("name", "what it says", "")
    for one in shipped().values():
        lacking = [name for name in one.needs if name not in there]
        table.add_row(*texts(one.name, one.about, f"needs {', '.join(lacking)}" if lacking else ""))
    return table
