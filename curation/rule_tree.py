"""Rules as trees, and the one canonical SQL that a tree prints, valid in DuckDB and in Spark with one meaning.

A chained comparison is taken apart, `min` and `max` of several values are `least` and `greatest`, arithmetic is done in
double precision (no integer overflows, no decimal is rounded), and a division by zero is null.
"""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind = Literal["number", "text", "truth"]

FUNCTIONS = {"min": "least", "max": "greatest", "abs": "abs"}


@dataclass(frozen=True)
class Number:
    """A constant. Whole numbers of up to nine digits stay whole, all others are doubles."""

    value: float


@dataclass(frozen=True)
class Text:
    value: str


@dataclass(frozen=True)
class Truth:
    value: bool


@dataclass(frozen=True)
class Column:
    name: str
    kind: Kind
    whole: bool
    """Whether the column has integers, which arithmetic must widen first."""


@dataclass(frozen=True)
class Negative:
    of: "Node"


@dataclass(frozen=True)
class Arithmetic:
    sign: str
    left: "Node"
    right: "Node"


@dataclass(frozen=True)
class Call:
    function: str
    arguments: tuple["Node", ...]


@dataclass(frozen=True)
class Compare:
    """`terms[0] signs[0] terms[1] signs[1] terms[2] ...`, every neighbouring pair."""

    signs: tuple[str, ...]
    terms: tuple["Node", ...]


@dataclass(frozen=True)
class OneOf:
    value: "Node"
    choices: tuple["Node", ...]
    negated: bool


@dataclass(frozen=True)
class IsNull:
    column: Column
    negated: bool


@dataclass(frozen=True)
class Not:
    of: "Node"


@dataclass(frozen=True)
class Join:
    word: Literal["AND", "OR"]
    parts: tuple["Node", ...]


Node: TypeAlias = Number | Text | Truth | Column | Negative | Arithmetic | Call | Compare | OneOf | IsNull | Not | Join


def kind_of(node: Node) -> Kind:
    """What a tree's value is."""
    match node:
        case Column(_, kind, _):
            return kind
        case Number() | Negative() | Arithmetic() | Call():
            return "number"
        case Text():
            return "text"
    return "truth"


def sql_of(tree: Node, asked: frozenset[str]) -> str:
    """The canonical SQL of a tree. `asked` are the columns that may be null where the rule is decided."""
    return _Printer(asked).sql(tree)


def quote(name: str) -> str:
    """An identifier, checked; plain names need no quotes in either engine."""
    assert re.fullmatch(r"[A-Za-z_][A-Za-z_0-9]*", name, re.ASCII), name
    return name


def literal(text: str) -> str:
    """Text as SQL that both engines read alike. A doubled quote is one quote in DuckDB but none in Spark 4.0."""
    assert "\\" not in text and "${" not in text, "Spark would expand it, DuckDB would not"
    parts = [f"'{part}'" for part in text.split("'")]
    return parts[0] if len(parts) == 1 else f"concat({', chr(39), '.join(parts)})"


class _Printer:
    def __init__(self, asked: frozenset[str]) -> None:
        self.asked = asked

    def sql(self, node: Node, wide: bool = False) -> str:
        """The SQL of a part; with `wide`, whole numbers are made doubles, as all arithmetic wants them."""
        match node:
            case Number(value):
                return f"{value:.0f}" if value.is_integer() and value < 1e9 and not wide else _double(value)
            case Text(value):
                return literal(value)
            case Truth(value):
                return str(value).upper()
            case Column(name, _, whole):
                return f"CAST({quote(name)} AS DOUBLE)" if whole and wide else quote(name)
            case Negative(of):
                return f"(- {self.sql(of, wide=True)})"
            case Arithmetic("/", left, right):
                return f"({self.sql(left, wide=True)} / nullif({self.sql(right, wide=True)}, {_double(0.0)}))"
            case Arithmetic(sign, left, right):
                return f"({self.sql(left, wide=True)} {sign} {self.sql(right, wide=True)})"
            case Call(function, arguments):
                return self.call(function, arguments, wide)
            case Compare(signs, terms):
                values = [self.sql(t) for t in terms]
                pairs = [f"{values[i]} {sign} {values[i + 1]}" for i, sign in enumerate(signs)]
                return f"({' AND '.join(pairs)})"
            case OneOf(value, choices, negated):
                word = "NOT IN" if negated else "IN"
                return f"({self.sql(value)} {word} ({', '.join(self.sql(c) for c in choices)}))"
            case IsNull(column, negated):
                return f"({quote(column.name)} IS {'NOT ' if negated else ''}NULL)"
            case Not(of):
                return f"(NOT {self.sql(of)})"
            case Join(word, parts):
                return f"({f' {word} '.join(self.sql(p) for p in parts)})"

    def call(self, function: str, arguments: tuple[Node, ...], wide: bool) -> str:
        """`least` and `greatest` pass over nulls in both engines; a null argument must make the rule fail instead."""
        values = [self.sql(a, wide) for a in arguments]
        called = f"{FUNCTIONS[function]}({', '.join(values)})"
        unsure = [v for a, v in zip(arguments, values, strict=True) if self.nullable(a)]
        if function == "abs" or not unsure:
            return called
        return f"(CASE WHEN {' OR '.join(f'{v} IS NULL' for v in unsure)} THEN NULL ELSE {called} END)"

    def nullable(self, node: Node) -> bool:
        match node:
            case Column(name):
                return name in self.asked
            case Negative(of):
                return self.nullable(of)
            case Arithmetic(sign, left, right):
                return sign == "/" or self.nullable(left) or self.nullable(right)
            case Call(_, arguments):
                return any(self.nullable(a) for a in arguments)
        return False


def _double(value: float) -> str:
    """An exponent makes a literal a double in both engines; without one it would be a decimal."""
    shown = repr(value)
    return shown if "e" in shown else f"{shown}E0"
