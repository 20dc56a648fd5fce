"""Rules over columns: one line of text, parsed to a tree that prints one canonical SQL, the only evaluator.

    rule     := or ;  or := and ("or" and)* ;  and := not ("and" not)* ;  not := "not" not | test
    test     := sum (op sum)+ | sum "is" ["not"] "null" | sum ["not"] "in" "(" literal ("," literal)* ")" | sum
    sum      := product (("+"|"-") product)* ;  product := unary (("*"|"/") unary)* ;  unary := "-" unary | atom
    atom     := number | 'text' | true | false | column | ("min"|"max"|"abs") "(" sum ("," sum)* ")" | "(" or ")"

The SQL is valid in DuckDB and in Spark and means the same in both: chained comparisons are taken apart, `min` and `max`
of several values are `least` and `greatest`, a division by zero is null, and text holds no backslash (an escape in one
of the two only).
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from curation.errors import ConfigError
from curation.tables import CLIPS, SOURCES

COMPARISONS = {"<": "<", "<=": "<=", ">": ">", ">=": ">=", "=": "=", "==": "=", "!=": "<>", "<>": "<>"}
FUNCTIONS = {"min": "least", "max": "greatest", "abs": "abs"}
WORDS = ("and", "or", "not", "in", "is", "null", "true", "false")
TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<text>'(?:[^']|'')*')"
    r"|(?P<sign><=|>=|==|!=|<>|[-+*/<>=(),]))"
)
DEAR = ("text_score", "text_scene_score", "text_area_frac", "aesthetic", "face_count_max", "people_score")
"""Columns of the scorers that run after the cheap ones; rules on them cannot stop a clip beforehand."""


class SubsetConfig(BaseModel):
    """One training subset: its rules, its bucket class, its mix. Rules are ordered cheap to dear."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    about: str = ""
    bucket_class: Literal[256, 768] = 256
    source_rules: tuple[str, ...] = ()
    """Over the probe columns of `sources`, for videos; they stop a source before it is decoded."""
    clip_rules: tuple[str, ...] = ()
    """Over `clips`, for video."""
    image_rules: tuple[str, ...] = ()
    """Over `clips`, for images."""
    landscape_share: float | None = Field(None, gt=0, lt=1)
    """Wanted share of landscape videos (width >= height) among the kept; the surplus side is dropped."""
    validation_share: float = Field(0.01, ge=0, lt=1)
    """Share of sources whose clips go to the validation split."""

    @field_validator("source_rules")
    @classmethod
    def _sources(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(rules, SOURCES.names)

    @field_validator("clip_rules", "image_rules")
    @classmethod
    def _clips(cls, rules: tuple[str, ...]) -> tuple[str, ...]:
        return _checked(rules, CLIPS.names)


@dataclass(frozen=True)
class Rule:
    """A rule: its text as written, its canonical SQL, and the columns that must be measured for it to be decided."""

    text: str
    sql: str
    columns: tuple[str, ...]


class Fault(Exception):
    """What is wrong with a rule's text, and where."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.message = message
        self.position = position


def parse(text: str, columns: Collection[str]) -> Rule:
    """Parse one rule over the given columns. Raises ConfigError with the position of a fault."""
    try:
        parser = _Parser(text, columns)
        sql = parser.rule()
    except Fault as fault:
        raise ConfigError(f"rule {text!r}: {fault.message}\n  {text}\n  {' ' * fault.position}^") from None
    return Rule(text.strip(), sql, tuple(dict.fromkeys(parser.needed)))


@lru_cache(maxsize=1024)
def source_rule(text: str) -> Rule:
    """A rule over `sources`."""
    return parse(text, SOURCES.names)


@lru_cache(maxsize=1024)
def clip_rule(text: str) -> Rule:
    """A rule over `clips`."""
    return parse(text, CLIPS.names)


def check(subset: SubsetConfig, unconfigured: Mapping[str, str]) -> None:
    """Refuse rules on columns that nothing will measure; `unconfigured` says what to set for each such column."""
    for text in (*subset.clip_rules, *subset.image_rules):
        for column in clip_rule(text).columns:
            if column in unconfigured:
                raise ConfigError(
                    f"subset {subset.name!r}: rule {text!r} needs the column {column}, which is not measured: "
                    f"{unconfigured[column]}"
                )


def reason_sql(rules: Sequence[Rule], otherwise: str = "NULL") -> str:
    """SQL for the reason of the first rule that does not hold: `unmeasured:<column>` or `rule:<text>`."""
    branches = []
    for rule in rules:
        branches += [f"WHEN {quote(c)} IS NULL THEN {literal(f'unmeasured:{c}')}" for c in rule.columns]
        branches.append(f"WHEN NOT coalesce({rule.sql}, FALSE) THEN {literal(f'rule:{rule.text}')}")
    return f"CASE {' '.join(branches)} ELSE {otherwise} END" if branches else otherwise


def source_stopped(row: Mapping[str, Any], subsets: Sequence[SubsetConfig]) -> str | None:
    """Why no subset can use a video with these probe columns; None where at least one can, and for images."""
    if row.get("kind") == "image":
        return None
    known = pa.Table.from_pylist([dict.fromkeys(SOURCES.names) | {k: row.get(k) for k in SOURCES.names}], schema=SOURCES)
    reasons = [_first_reason(known, [source_rule(t) for t in s.source_rules]) for s in subsets]
    return next((r for r in reasons if r is not None), None) if all(reasons) else None


def stopped(clips: pa.Table, subsets: Sequence[SubsetConfig]) -> set[str]:
    """Clips of one source that a cheap rule of every subset already stops: no dear scorer need look at them."""
    verdicts = []
    for subset in subsets:
        lists = {"video": subset.clip_rules, "image": subset.image_rules}
        sql = " ".join(f"WHEN kind = '{kind}' THEN {reason_sql(_cheap(rules))}" for kind, rules in lists.items())
        verdicts.append(f"(CASE {sql} END) IS NOT NULL")
    query = f"SELECT clip_id FROM given WHERE {' AND '.join(verdicts)}"
    return {row[0] for row in _ask(query, clips)}


def _cheap(texts: Sequence[str]) -> list[Rule]:
    rules = [clip_rule(text) for text in texts]
    return [r for r in rules if not set(r.columns) & set(DEAR)]


def _first_reason(table: pa.Table, rules: Sequence[Rule]) -> str | None:
    if not rules:
        return None
    return _ask(f"SELECT {reason_sql(rules)} FROM given", table)[0][0]  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def _connection() -> Any:
    import duckdb

    return duckdb.connect(config={"threads": 1})


def _ask(query: str, given: pa.Table) -> list[tuple[Any, ...]]:
    connection = _connection()
    connection.register("given", given)
    return connection.execute(query).fetchall()  # type: ignore[no-any-return]


def quote(name: str) -> str:
    """An identifier, checked; plain names need no quotes in either engine."""
    assert re.fullmatch(r"[A-Za-z_]\w*", name), name
    return name


def literal(text: str) -> str:
    """Text as an SQL literal that both engines read alike."""
    assert "\\" not in text, "a backslash escapes in Spark only"
    return "'" + text.replace("'", "''") + "'"


def _checked(rules: tuple[str, ...], columns: Collection[str]) -> tuple[str, ...]:
    for text in rules:
        try:
            parse(text, columns)
        except ConfigError as error:
            raise ValueError(str(error)) from None
    return rules


@dataclass(frozen=True)
class _Token:
    kind: str
    value: str
    position: int


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while text[position:].strip():
        match = TOKEN.match(text, position)
        if match is None:
            start = position + len(text[position:]) - len(text[position:].lstrip())
            raise Fault(f"cannot read {text[start]!r}", start)
        kind = str(match.lastgroup)
        value, start = match[kind], match.start(kind)
        if kind == "name" and value.lower() in WORDS:
            kind, value = "word", value.lower()
        yield _Token(kind, value, start)
        position = match.end()
    yield _Token("end", "", len(text))


class _Parser:
    """Recursive descent over the grammar of the module's docstring; each method returns the SQL of its part."""

    def __init__(self, text: str, columns: Collection[str]) -> None:
        if "\\" in text:
            raise Fault("a backslash is not allowed", text.index("\\"))
        self.tokens = list(_tokens(text))
        self.columns = columns
        self.needed: list[str] = []
        self.at = 0

    @property
    def now(self) -> _Token:
        return self.tokens[self.at]

    def take(self, *values: str) -> str | None:
        """Step over the present token if it is one of these signs or words."""
        token = self.now
        if token.kind in ("sign", "word") and token.value in values:
            self.at += 1
            return token.value
        return None

    def need(self, value: str) -> None:
        if self.take(value) is None:
            raise Fault(f"expected {value!r}, found {self.now.value or 'the end'!r}", self.now.position)

    def rule(self) -> str:
        sql = self.either()
        if self.now.kind != "end":
            raise Fault(f"did not expect {self.now.value!r}", self.now.position)
        return sql

    def either(self) -> str:
        parts = [self.both()]
        while self.take("or"):
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else f"({' OR '.join(parts)})"

    def both(self) -> str:
        parts = [self.negation()]
        while self.take("and"):
            parts.append(self.negation())
        return parts[0] if len(parts) == 1 else f"({' AND '.join(parts)})"

    def negation(self) -> str:
        return f"(NOT {self.negation()})" if self.take("not") else self.test()

    def test(self) -> str:
        needed = len(self.needed)
        left = self.sum()
        if self.take("is"):
            negated = "NOT " if self.take("not") else ""
            self.need("null")
            del self.needed[needed:]  # asking whether a column is null needs no value in it
            return f"({left} IS {negated}NULL)"
        if self.take("not"):
            self.need("in")
            return f"({left} NOT IN ({self.choices()}))"
        if self.take("in"):
            return f"({left} IN ({self.choices()}))"
        return self.chain(left)

    def chain(self, left: str) -> str:
        parts = []
        while operator := self.take(*COMPARISONS):
            right = self.sum()
            parts.append(f"{left} {COMPARISONS[operator]} {right}")
            left = right
        if not parts:
            return left
        return f"({' AND '.join(parts)})"

    def choices(self) -> str:
        self.need("(")
        found = [self.constant()]
        while self.take(","):
            found.append(self.constant())
        self.need(")")
        return ", ".join(found)

    def constant(self) -> str:
        token = self.now
        if token.kind not in ("number", "text"):
            raise Fault("expected a number or a 'text'", token.position)
        return self.atom()

    def sum(self) -> str:
        sql = self.product()
        while operator := self.take("+", "-"):
            sql = f"({sql} {operator} {self.product()})"
        return sql

    def product(self) -> str:
        sql = self.unary()
        while operator := self.take("*", "/"):
            right = self.unary()
            sql = f"({sql} * {right})" if operator == "*" else f"({sql} / nullif({right}, 0))"
        return sql

    def unary(self) -> str:
        return f"(- {self.unary()})" if self.take("-") else self.atom()

    def atom(self) -> str:
        token = self.now
        if self.take("("):
            sql = self.either()
            self.need(")")
            return sql
        if self.take("true", "false"):
            return token.value.upper()
        self.at += 1
        if token.kind == "number":
            return token.value
        if token.kind == "text":
            return token.value
        if token.kind == "name":
            return self.call(token) if token.value in FUNCTIONS else self.column(token)
        raise Fault(f"expected a value, found {token.value or 'the end'!r}", token.position)

    def call(self, token: _Token) -> str:
        self.need("(")
        arguments = [self.sum()]
        while self.take(","):
            arguments.append(self.sum())
        self.need(")")
        if (token.value == "abs") != (len(arguments) == 1):
            raise Fault("abs takes one value, min and max take two or more", token.position)
        return f"{FUNCTIONS[token.value]}({', '.join(arguments)})"

    def column(self, token: _Token) -> str:
        if token.value not in self.columns:
            close = difflib.get_close_matches(token.value, self.columns, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise Fault(f"unknown column {token.value}{hint}", token.position)
        self.needed.append(token.value)
        return quote(token.value)
