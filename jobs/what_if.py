"""What another rule list would keep of a measured run: queries over its tables, no decoding.

Every clip's verdicts are read once, a letter a rule (`jobs.stats`); what follows are counts over these letters.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from curation.errors import ConfigError
from curation.rules import Rule, SubsetConfig, source_rule
from jobs.config import rule_list
from jobs.funnel import Amount, Step, steps
from jobs.inspect import add, connect, new_table, number, rows, subsets, texts
from jobs.stats import joined, rules_of, verdict_sql
from jobs.suppose import Bound, bounds, changed, replaced

if TYPE_CHECKING:
    import duckdb
    from rich.console import RenderableType
    from rich.table import Table

SHARES = (0.01, 0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.99)
"""Quantiles of what a rule compares that are tried as its threshold."""
EXAMPLES = 5
READ = ("clips", "sources")


def what_if(run: str, rules_name: str) -> "RenderableType":
    """Rule by rule, what a shipped list or a YAML file would keep, drop, or cannot know (a column is null).

    Only the rules are asked: shape buckets, duplicates and mixes come after them. Compared with the run's own list of that
    name where there is one. Raises ConfigError where the list or the run will not do.
    """
    subset = rule_list(rules_name)
    return compared(run, subset, next((s for s in subsets(run) if s.name == subset.name), None), ())


def supposed(run: str, rules: Sequence[str], base: str | None, name: str | None = None) -> tuple[SubsetConfig, SubsetConfig]:
    """A list of the run with these rules, and the list as it is. Without `base`, the run's only list.

    Raises ConfigError where the run has no such list or several, or where a rule will not do.
    """
    lists = {subset.name: subset for subset in subsets(run)}
    if base is None and len(lists) != 1:
        raise ConfigError(f"this run has the lists {', '.join(lists)}: name the one to change with --subset")
    found = lists.get(base or next(iter(lists)))
    if found is None:
        raise ConfigError(f"this run has no list {base!r}; it has {', '.join(lists)}")
    if name in lists:
        raise ConfigError(f"this run has a list {name!r} already: give the new one another name")
    return changed(found, rules, name or found.name), found


def lists(run: str) -> list[dict[str, Any]]:
    """The run's lists as settings."""
    return [subset.model_dump(mode="json") for subset in subsets(run)]


def compared(run: str, subset: SubsetConfig, base: SubsetConfig | None, rules: Sequence[str]) -> "RenderableType":
    """What `subset` would keep, beside what `base` does; a sweep of the thresholds of those of its rules that are `rules`."""
    from rich.console import Group

    swept = [part for part in _parts(subset) if part.rule.text in {text.strip() for text in rules}]
    with connect(run, ()) as connection:
        _measure(connection, run, subset, base or subset, swept)
        groups = [Verdicts(*row) for row in connection.execute(GROUPS).fetchall()]
        shown: list[RenderableType] = [_asked(rules, replaced(base, subset))] if base and rules else []
        for kind in ("video", "image"):
            if tally := _tally(subset, kind, groups):
                whole = sum(tally.values(), Amount())
                shown.append(_funnel(f"{subset.name}: {kind} clips", steps(subset, kind, tally), whole))
        shown += _outcome(groups, subset, base)
        if base is not None:
            shown += _examples(connection, swept)
        shown += [_marginal(subset, kind, groups) for kind in ("video", "image") if _whole(kind, groups).count]
        shown += [_sweep(connection, part, bound) for part in swept for bound in bounds(part.rule)]
        return Group(*shown, *_undecoded(connection))


@dataclass(frozen=True)
class Part:
    """A rule of a list: which clips meet it, the letter of their verdicts that is its, and whether it is over sources."""

    rule: Rule
    kind: str
    place: int
    of_source: bool

    def held(self, column: str) -> str:
        """The column of `measured` that has a column of the rule."""
        return f"{'source' if self.of_source else 'clip'}_{column}"


def _parts(subset: SubsetConfig) -> list[Part]:
    return [
        Part(rule, kind, place, about == "source rule")
        for kind in ("video", "image")
        for place, (rule, about) in enumerate(rules_of(subset, kind), 1)
    ]


@dataclass(frozen=True)
class Verdicts:
    """Clips that all rules, new and old, say the same of. `barred` is why no rule was asked: an error, or a copy."""

    kind: str
    barred: str | None
    pattern: str
    before: str
    count: int
    seconds: float

    @property
    def amount(self) -> Amount:
        return Amount(self.count, self.seconds)

    def fate(self, pattern: str) -> str:
        """What becomes of them by these verdicts."""
        if self.barred is not None:
            return "error" if self.barred.startswith("error:") else "dropped"
        return {"": "kept", "f": "dropped", "u": "unknown"}[pattern.lstrip("p")[:1]]


GROUPS = """
    SELECT kind, barred, pattern, before, count(*), coalesce(sum(duration_s), 0) FROM measured
    GROUP BY kind, barred, pattern, before ORDER BY ALL"""


def _measure(
    connection: "duckdb.DuckDBPyConnection", run: str, subset: SubsetConfig, base: SubsetConfig, swept: Sequence[Part]
) -> None:
    """Read sources and clips once, into `judged` and `measured`: verdicts, and the columns of the rules that are swept."""
    import duckdb

    connection.execute("SET preserve_insertion_order = false")  # no order of rows is asked for, and keeping it takes time
    try:
        connection.execute("SET parquet_metadata_cache = false")  # each file is opened once
        add(connection, run, READ, alike=True)
        _judge(connection, subset, base, swept)
    except (
        duckdb.BinderException,
        duckdb.InvalidInputException,
    ):  # units of several versions: some files lack columns that others have
        connection.execute("SET parquet_metadata_cache = true")
        add(connection, run, READ)
        _judge(connection, subset, base, swept)


def _judge(connection: "duckdb.DuckDBPyConnection", subset: SubsetConfig, base: SubsetConfig, swept: Sequence[Part]) -> None:
    held = {(part.of_source, column): part.held(column) for part in swept for column in part.rule.mentioned}
    of_source = "".join(f", {column} AS {name}" for (source, column), name in held.items() if source)
    kept = "".join(f", {name if source else f'{column} AS {name}'}" for (source, column), name in held.items())
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE judged AS
            SELECT source_id AS judged_id, status AS source_status, kind AS source_kind, duration_s AS source_seconds,
                   exact_copy_of, {_source_letters(subset)} AS source_letters,
                   {_source_letters(base)} AS source_before{of_source}
            FROM sources"""
    )
    connection.execute(
        f"""CREATE OR REPLACE TEMP TABLE measured AS
            SELECT clip_id, source_id, kind, duration_s,
                   CASE WHEN status = 'error' THEN 'error:' || error_code WHEN exact_copy_of IS NOT NULL THEN 'exact_copy' END
                   AS barred, {_letters(subset, "source_letters")} AS pattern, {_letters(base, "source_before")} AS before{kept}
            FROM clips LEFT JOIN judged ON judged_id = source_id"""
    )


def _source_letters(subset: SubsetConfig) -> str:
    return joined([verdict_sql(source_rule(text)) for text in subset.source_rules])


def _letters(subset: SubsetConfig, of_source: str) -> str:
    """SQL for a clip's verdicts; `of_source` are those on its source, which come first, and which an image has not."""
    video = [verdict_sql(rule) for rule, about in rules_of(subset, "video") if about != "source rule"]
    image = [verdict_sql(rule) for rule, _ in rules_of(subset, "image")]
    return f"CASE WHEN kind = 'image' THEN {joined(image)} ELSE {joined([of_source, *video])} END"


def _tally(subset: SubsetConfig, kind: str, groups: Sequence[Verdicts]) -> dict[str, Amount]:
    """Amounts by reason, as a selection would give them."""
    rules = [rule for rule, _ in rules_of(subset, kind)]
    needed_by: dict[str, int] = {}
    for place, rule in enumerate(rules):
        for column in rule.columns:
            needed_by.setdefault(column, place)
    tally: dict[str, Amount] = {}
    for group in groups:
        if group.kind == kind:
            place = len(group.pattern) - len(group.pattern.lstrip("p"))
            reason = group.barred
            if reason is None and group.fate(group.pattern) == "unknown":
                reason = f"unmeasured:{next(c for c in rules[place].columns if needed_by[c] == place)}"
            elif reason is None:
                reason = "kept" if place == len(rules) else f"rule:{rules[place].text}"
            tally[reason] = tally.get(reason, Amount()) + group.amount
    return tally


def _funnel(title: str, found: list[Step], whole: Amount) -> "Table":
    table = new_table("rule", "dropped", "unknown", "clips left", "hours left", "of all clips", title=title)
    table.add_row(*texts("measured clips", "", "", whole.count, _hours(whole), ""))
    for step in found:
        share = f"{step.left.count / whole.count:.1%}"
        table.add_row(*texts(step.label, step.dropped.count, step.unknown.count, step.left.count, _hours(step.left), share))
    return table


def _asked(rules: Sequence[str], gone: Sequence[str]) -> str:
    """What is asked, and the rules of the list that make room for it."""
    return f"Asked: {'; '.join(rules)}" + (f", in place of {'; '.join(gone)}." if gone else ".")


def _outcome(groups: Sequence[Verdicts], subset: SubsetConfig, base: SubsetConfig | None) -> "list[RenderableType]":
    """Kept, dropped and unknown, beside what the run's own list says, and how much is gained and lost."""
    columns = ["clips now", "hours now", "change"] if base else []
    table = new_table("by the rules alone", "clips", "hours", *columns, title="All clips")
    moved = new_table("by the rules alone", "gained", "hours gained", "lost", "hours lost", title="Gained and lost")
    for name in ("kept", "dropped", "unknown", "error"):
        new = [group for group in groups if group.fate(group.pattern) == name]
        old = [group for group in groups if group.fate(group.before) == name]
        amount, now = _sum(new), _sum(old)
        gained, lost = _sum(g for g in new if g not in old), _sum(g for g in old if g not in new)
        more = [now.count, _hours(now), f"{amount.count - now.count:+d}"] if base else []
        table.add_row(*texts(name, amount.count, _hours(amount), *more))
        moved.add_row(*texts(name, gained.count, _hours(gained), lost.count, _hours(lost)))
    return [table, moved] if base else [table, f"The run has no selection named {subset.name} to compare with."]


def _sum(groups: "Iterator[Verdicts] | Sequence[Verdicts]") -> Amount:
    return sum((group.amount for group in groups), Amount())


def _whole(kind: str, groups: Sequence[Verdicts]) -> Amount:
    return _sum(group for group in groups if group.kind == kind and group.barred is None)


def _examples(connection: "duckdb.DuckDBPyConnection", swept: Sequence[Part]) -> "list[RenderableType]":
    """A few of the clips that only the new rules keep, and of those that only the old ones keep."""
    names = list(dict.fromkeys(part.held(column) for part in swept for column in part.rule.mentioned))
    table = new_table("", "clip_id", *(name.partition("_")[2] for name in names), title="Examples")
    for label, kept, lost in (("gained", "pattern", "before"), ("lost", "before", "pattern")):
        query = f"""SELECT clip_id{"".join(f", {name}" for name in names)} FROM measured
                    WHERE barred IS NULL AND ltrim({kept}, 'p') = '' AND ltrim({lost}, 'p') <> ''
                    ORDER BY md5(clip_id) LIMIT {EXAMPLES}"""
        for row in rows(connection, query):
            table.add_row(*texts(label, *(number(value) for value in row.values())))
    return [table] if table.row_count else ["No clip is gained or lost."]


def _marginal(subset: SubsetConfig, kind: str, groups: Sequence[Verdicts]) -> "Table":
    """What each rule alone takes: the clips that the list would gain without it."""
    title = f"Without one rule: {kind} clips"
    table = new_table("rule left out", "clips gained", "hours gained", "of them unmeasured", "clips kept then", title=title)
    asked = [group for group in groups if group.kind == kind and group.barred is None]
    kept = _sum(group for group in asked if not group.pattern.lstrip("p"))
    for place, (rule, _) in enumerate(rules_of(subset, kind)):
        only = [g for g in asked if g.pattern[place] != "p" and not (g.pattern[:place] + g.pattern[place + 1 :]).lstrip("p")]
        gained, unknown = _sum(only), _sum(group for group in only if group.pattern[place] == "u")
        table.add_row(*texts(rule.text, gained.count, _hours(gained), unknown.count, kept.count + gained.count))
    return table


def _sweep(connection: "duckdb.DuckDBPyConnection", part: Part, bound: Bound) -> "Table":
    """What other thresholds would keep of the clips that pass all other rules: quantiles of what is compared, and its own."""
    as_named = ", ".join(f"{part.held(column)} AS {column}" for column in part.rule.mentioned)
    others = f"substr(pattern, 1, {part.place - 1}) || substr(pattern, {part.place + 1})"
    asked = f"""(SELECT duration_s AS seconds, ltrim({others}, 'p') = '' AS passes, {as_named} FROM measured
                 WHERE kind = '{part.kind}' AND barred IS NULL)"""
    found = rows(connection, f"SELECT quantile_cont({bound.measured_sql}, {list(SHARES)}) AS q FROM {asked}")[0]["q"] or []
    share_of = {float(f"{value:.4g}"): share for value, share in zip(found, SHARES, strict=False)}
    grid = sorted({*share_of, bound.value})
    passes = [f"coalesce({bound.rule_sql(value)}, FALSE)" for value in grid]
    counts = ", ".join(f"count(*) FILTER ({p}), coalesce(sum(seconds) FILTER ({p}), 0)" for p in passes)
    answer = connection.execute(f"SELECT {counts} FROM {asked} WHERE passes").fetchall()[0]
    own = answer[2 * grid.index(bound.value)]
    columns = ("threshold", "quantile", "clips kept", "hours kept", "change")
    table = new_table(*columns, title=f"Other thresholds of {part.rule.text}: {bound.label} ({part.kind} clips)")
    for place, value in enumerate(grid):
        clips, seconds = answer[2 * place : 2 * place + 2]
        mark = " <- asked" if value == bound.value else ""
        share = f"{share_of[value]:.0%}" if value in share_of else ""
        table.add_row(*texts(f"{value:g}{mark}", share, clips, _hours(Amount(clips, seconds)), f"{clips - own:+d}"))
    return table


def _undecoded(connection: "duckdb.DuckDBPyConnection") -> "list[RenderableType]":
    """What no query can tell: sources that were stopped before they were decoded, which this list would let in."""
    from rich.text import Text

    query = """SELECT count(*) AS n, coalesce(sum(source_seconds), 0) AS s FROM judged
               ANTI JOIN measured ON measured.source_id = judged_id
               WHERE source_status = 'rejected' AND exact_copy_of IS NULL AND source_kind = 'video'
               AND ltrim(source_letters, 'p') = ''"""
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
