"""Rules decide: a subset's lists of rules, the reason SQL they make, and the gates that spare work for what they stop.

A rule is one line over columns (`curation.grammar`), parsed to one canonical SQL that is the only evaluator: in the
selection over all clips, and in the actors on one source at a time.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation.errors import ConfigError
from curation.grammar import Rule, parse
from curation.resample import PeopleConfig, ResampleConfig
from curation.review import ReviewConfig
from curation.rule_tree import literal, quote
from curation.tables import CLIPS, SOURCES

__all__ = [
    "Rule",
    "SubsetConfig",
    "check",
    "clip_rule",
    "literal",
    "parse",
    "pass_sql",
    "quote",
    "reason_sql",
    "source_rule",
    "source_stopped",
    "stopped",
]

DEAR = frozenset(("text_score", "text_scene_score", "text_area_frac", "aesthetic", "face_count_max", "people_score"))
"""Columns of the scorers that run after the cheap ones: a rule that mentions one cannot stop a clip beforehand."""
DECODED = frozenset(("frames", "decode_errors", "status", "reason", "error_code", "error_message"))
"""Columns of `sources` that a decode may still change: a rule that mentions one cannot stop a source beforehand."""


class SubsetConfig(BaseModel):
    """One training subset: its rules, its bucket class, its mix. Rules are ordered cheap to dear.

    Rules after the first one on a dear column do not spare the dear scorers any work.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    about: str = ""
    bucket_class: Literal[256, 768] = 256
    source_rules: tuple[str, ...] = ()
    """Over the columns of `sources`, for videos; those on probe columns stop a source before it is decoded."""
    clip_rules: tuple[str, ...] = ()
    """Over `clips`, for video."""
    image_rules: tuple[str, ...] = ()
    """Over `clips`, for images."""
    resample: ResampleConfig | None = None
    """How much is kept when concepts are balanced by the inverse square root of their sizes; None keeps all."""
    people: PeopleConfig | None = None
    """The least share of clips with people; their share is not lowered by the resampling either."""
    landscape_share: float | None = Field(None, ge=0.01, le=0.99)
    """Wanted share of landscape videos (width >= height) among the kept, met to within one clip: the surplus side is
    dropped, all of it where the other side has none. None keeps what there is. Images are not counted."""
    validation_share: float = Field(0.01, ge=0, lt=1)
    """Share of sources whose clips go to the validation split."""
    review: ReviewConfig | None = None
    """People pick, trim and caption what is left (`reelset review`); its samples have a fixed rate. None takes all."""

    @field_validator("source_rules")
    @classmethod
    def _sources(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(rules, SOURCES)

    @field_validator("clip_rules", "image_rules")
    @classmethod
    def _clips(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(rules, CLIPS)

    @field_validator("people")
    @classmethod
    def _people(cls, people: PeopleConfig | None) -> PeopleConfig | None:
        if people is not None:
            _checked(people.rules, CLIPS)
        return people


def _checked(rules: tuple[str, ...], schema: pa.Schema) -> tuple[str, ...]:
    for text in rules:
        try:
            parse(text, schema)
        except ConfigError as error:
            raise ValueError(str(error)) from None
    return rules


@lru_cache(maxsize=1024)
def source_rule(text: str) -> Rule:
    """A rule over `sources`. Raises ConfigError that shows the place of a fault."""
    return parse(text, SOURCES)


@lru_cache(maxsize=1024)
def clip_rule(text: str) -> Rule:
    """A rule over `clips`. Raises ConfigError that shows the place of a fault."""
    return parse(text, CLIPS)


def check(subset: SubsetConfig, columns_off: Mapping[str, str]) -> None:
    """Refuse rules on columns that nothing will measure; `columns_off` says what to set for each such column.

    A rule that asks whether the column is null has an answer for it, and passes.
    """
    people = subset.people.rules if subset.people else ()
    for text in (*subset.clip_rules, *subset.image_rules, *people):
        for column in clip_rule(text).columns:
            if column in columns_off:
                raise ConfigError(
                    f"subset {subset.name!r}: rule {text!r} needs the column {column}, which is not measured: "
                    f"{columns_off[column]}"
                )


def reason_sql(rules: Iterable[Rule], otherwise: str = "NULL") -> str:
    """SQL for the reason of the first rule that does not hold: `unmeasured:<column>` or `rule:<text>`."""
    branches = []
    for rule in rules:
        branches += [f"WHEN {quote(c)} IS NULL THEN {literal(f'unmeasured:{c}')}" for c in rule.columns]
        branches.append(f"WHEN NOT coalesce({rule.sql}, FALSE) THEN {literal(f'rule:{rule.text}')}")
    return f"CASE {' '.join(branches)} ELSE {otherwise} END" if branches else otherwise


def pass_sql(rules: Iterable[Rule]) -> str:
    """SQL that is true where every rule holds on measured columns, else false. Cheaper to plan than `reason_sql`."""
    tests = [term for rule in rules for term in (*(f"{quote(c)} IS NOT NULL" for c in rule.columns), rule.sql)]
    return f"coalesce({' AND '.join(dict.fromkeys(tests))}, FALSE)" if tests else "TRUE"


def source_stopped(row: Mapping[str, Any], subsets: Sequence[SubsetConfig]) -> str | None:
    """Why no subset can use a video with these probe columns; None where at least one can, and for images.

    The reason is that of the first subset. Rules from the first one on that a decode may still change are not asked.
    """
    if row["kind"] == "image":
        return None
    schema, passes, reason = _source_gate(tuple(s.source_rules for s in subsets))
    given = pa.Table.from_pylist([{name: row.get(name) for name in schema.names}], schema=schema)
    return None if any(_ask(passes, given)[0]) else str(_ask(reason, given)[0][0])


def stopped(clips: pa.Table, subsets: Sequence[SubsetConfig], source: Mapping[str, Any] | None = None) -> set[str]:
    """Clips of one source that a cheap rule of every subset already stops: no dear scorer need look at them.

    Asked are the rules before each list's first dear one, so a clip's reason is the same with and without the gate.
    With `source`, the source's row, a subset whose source rules stop it asks for none of its clips.
    """
    if source is not None and source["kind"] != "image":
        schema, passes, _ = _source_gate(tuple(s.source_rules for s in subsets))
        given = pa.Table.from_pylist([{name: source.get(name) for name in schema.names}], schema=schema)
        subsets = [s for s, open_to in zip(subsets, _ask(passes, given)[0], strict=True) if open_to]
    if not subsets:
        return set(clips["clip_id"].to_pylist())
    schema, query = _clip_gate(tuple((s.clip_rules, s.image_rules) for s in subsets))
    return {row[0] for row in _ask(query, clips.select(schema.names))}


@lru_cache(maxsize=64)
def _source_gate(lists: tuple[tuple[str, ...], ...]) -> tuple[pa.Schema, str, str]:
    """The columns asked, a query for whether each list lets a source pass, and one for the first list's reason."""
    rules = [_before([source_rule(text) for text in texts], DECODED) for texts in lists]
    schema = _narrow(SOURCES, ["source_id"], rules)
    return schema, f"SELECT {', '.join(pass_sql(r) for r in rules)} FROM given", f"SELECT {reason_sql(rules[0])} FROM given"


@lru_cache(maxsize=64)
def _clip_gate(lists: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]) -> tuple[pa.Schema, str]:
    """The columns asked, and a query for the clips that no pair of (video rules, image rules) lets pass."""
    pairs = [[_before([clip_rule(text) for text in texts], DEAR) for texts in pair] for pair in lists]
    passes = " OR ".join(f"(kind = 'video' AND {pass_sql(v)}) OR (kind = 'image' AND {pass_sql(i)})" for v, i in pairs)
    schema = _narrow(CLIPS, ["clip_id", "kind"], [rules for pair in pairs for rules in pair])
    return schema, f"SELECT clip_id FROM given WHERE NOT ({passes})"


def _before(rules: Sequence[Rule], columns: frozenset[str]) -> list[Rule]:
    """The rules before the first that mentions one of `columns`."""
    first = next((i for i, rule in enumerate(rules) if columns & set(rule.mentioned)), len(rules))
    return list(rules[:first])


def _narrow(schema: pa.Schema, keys: Sequence[str], lists: Iterable[Sequence[Rule]]) -> pa.Schema:
    wanted = {*keys, *(name for rules in lists for rule in rules for name in rule.mentioned)}
    return pa.schema([field for field in schema if field.name in wanted])


_ONE_AT_A_TIME = Lock()


@lru_cache(maxsize=1)
def _connection() -> Any:
    import duckdb

    connection = duckdb.connect(config={"threads": 1, "enable_external_access": False})
    connection.execute("PRAGMA disable_optimizer")  # planning is all the cost on a handful of rows
    return connection


def _ask(query: str, given: pa.Table) -> list[tuple[Any, ...]]:
    with _ONE_AT_A_TIME:
        connection = _connection()
        connection.register("given", given)
        return connection.execute(query).fetchall()  # type: ignore[no-any-return]
