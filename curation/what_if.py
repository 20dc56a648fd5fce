"""What a rule list would cost on measured clips: rule by rule and together, by one scan, without a decode.

A selection names one reason a clip, so it cannot say what loosening a rule would bring back: another rule may stop the
same clips. Here every rule is asked of every clip.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from tempfile import TemporaryDirectory

from curation.grammar import Rule
from curation.rule_tree import quote
from curation.rules import SubsetConfig, clip_rule, source_rule
from curation.select import Rows


@dataclass(frozen=True)
class Loss:
    """What one rule does to the clips that it is asked of."""

    rule: str
    about: str
    """`source rule`, `clip rule` or `image rule`."""
    fails: int
    """Clips on which it does not hold, whatever the other rules say."""
    only: int
    """Clips that would be kept but for it."""
    unknown: int
    """Clips on which it cannot be decided: a column it needs is null."""


@dataclass(frozen=True)
class WhatIf:
    """Clips by what the rules alone make of them, before duplicates, shape buckets and mixes.

    `clips = errors + copies + kept + dropped + unknown`. A clip is unknown where no rule fails but one cannot be
    decided: its column is null though no scorer failed, because a gate spared the measuring. `both` counts the clips on
    which two rules fail, by their places in `losses`; pairs that share no clip are left out.
    """

    clips: int
    errors: int
    copies: int
    kept: int
    dropped: int
    unknown: int
    kept_s: float
    dropped_s: float
    unknown_s: float
    losses: tuple[Loss, ...]
    both: Mapping[tuple[int, int], int]


def what_if(sources: Rows, clips: Rows, subset: SubsetConfig) -> WhatIf:
    """Ask every rule of `subset` of every clip. Memory does not grow with the number of clips."""
    import duckdb

    asked = [
        *(_Asked("source rule", "video", source_rule(text)) for text in subset.source_rules),
        *(_Asked("clip rule", "video", clip_rule(text)) for text in subset.clip_rules),
        *(_Asked("image rule", "image", clip_rule(text)) for text in subset.image_rules),
    ]
    pairs = list(combinations(range(len(asked)), 2))
    query = f"SELECT {', '.join(_sums(len(asked), pairs))} FROM ({_verdicts_sql(asked)})"
    with TemporaryDirectory() as spill, duckdb.connect(config={"temp_directory": spill}) as connection:
        connection.register("sources", sources)
        connection.register("clips", clips)
        row = connection.execute(query).fetchall()[0]
    of_rules, of_pairs = row[9 : 9 + 3 * len(asked)], row[9 + 3 * len(asked) :]
    losses = tuple(Loss(a.rule.text, a.about, *of_rules[3 * i : 3 * i + 3]) for i, a in enumerate(asked))
    both = {pair: count for pair, count in zip(pairs, of_pairs, strict=True) if count}
    return WhatIf(*(*row[:9], losses, both))


@dataclass(frozen=True)
class _Asked:
    about: str
    kind: str
    rule: Rule


def _verdicts_sql(asked: Sequence[_Asked]) -> str:
    """A row a clip: whether it is broken, a copy, or sound, and v0, v1, ...: each rule's true, false, or null."""
    columns = {"source": "", "clip": ""}
    for i, a in enumerate(asked):
        # what a probe or a failed scorer left null stays null; another null is a measure that was spared
        final = "TRUE" if a.about == "source rule" else "error_code IS NOT NULL"
        verdict = f"CASE WHEN kind = '{a.kind}' THEN {_held(a.rule, final)} ELSE TRUE END AS v{i}"
        columns["source" if a.about == "source rule" else "clip"] += f", {verdict}"
    return f"""
        WITH judged AS (SELECT source_id, exact_copy_of IS NOT NULL AS copy {columns["source"]} FROM sources),
             scored AS (SELECT source_id, duration_s, status = 'error' AS broken {columns["clip"]} FROM clips)
        SELECT *, NOT broken AND NOT copy AS sound FROM scored JOIN judged USING (source_id)"""


def _held(rule: Rule, final: str) -> str:
    """True, false, or null where a needed column is null and not finally so."""
    missing = " OR ".join(f"{quote(c)} IS NULL" for c in rule.columns) or "FALSE"
    return f"CASE WHEN {missing} THEN (CASE WHEN {final} THEN FALSE END) ELSE coalesce({rule.sql}, FALSE) END"


def _sums(rules: int, pairs: Sequence[tuple[int, int]]) -> list[str]:
    """The nine totals of `WhatIf`, then three counts a rule, then one a pair."""
    every = range(rules)
    kept, passable = _all("v{} IS TRUE", every), _all("v{} IS NOT FALSE", every)
    fates = [f"sound AND {kept}", f"sound AND NOT {passable}", f"sound AND {passable} AND NOT {kept}"]
    tests = ["TRUE", "broken", "copy AND NOT broken", *fates]
    for i in every:
        but_for = _all("v{} IS TRUE", (n for n in every if n != i))
        tests += [f"sound AND v{i} IS FALSE", f"sound AND v{i} IS FALSE AND {but_for}", f"sound AND v{i} IS NULL"]
    tests += [f"sound AND v{i} IS FALSE AND v{j} IS FALSE" for i, j in pairs]
    counts = [f"count(*) FILTER ({test})" for test in tests]
    return counts[:6] + [f"coalesce(sum(duration_s) FILTER ({fate}), 0)" for fate in fates] + counts[6:]


def _all(test: str, rules: Iterable[int]) -> str:
    return f"({' AND '.join(['TRUE', *(test.format(n) for n in rules)])})"
