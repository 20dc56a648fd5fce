"""The language of rules: one line of text becomes a typed tree, and the tree prints one canonical SQL.

    rule     := all ("or" all)*                 all     := negation ("and" negation)*
    negation := "not" negation | test
    test     := sum (("<"|"<="|">"|">="|"="|"=="|"!="|"<>") sum)*
              | column "is" ["not"] "null" | sum ["not"] "in" "(" constant ("," constant)* ")"
    sum      := product (("+"|"-") product)*    product := unary (("*"|"/") unary)*
    unary    := "-" unary | atom                constant := ["-"] number | text
    atom     := number | text | "true" | "false" | column | ("min"|"max"|"abs") "(" sum ("," sum)* ")" | "(" rule ")"

Every part has a kind (a number, a text, true or false), checked here, so that no engine converts one to another.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa

from curation.errors import ConfigError
from curation.rule_tree import (
    FUNCTIONS,
    Arithmetic,
    Call,
    Column,
    Compare,
    IsNull,
    Join,
    Kind,
    Negative,
    Node,
    Not,
    Number,
    OneOf,
    Text,
    Truth,
    kind_of,
    sql_of,
)

COMPARISONS = {"<": "<", "<=": "<=", ">": ">", ">=": ">=", "=": "=", "==": "=", "!=": "<>", "<>": "<>"}
WORDS = frozenset(("and", "or", "not", "in", "is", "null", "true", "false"))
TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_][A-Za-z_0-9]*)|(?P<text>'(?:[^']|'')*')"
    r"|(?P<sign><=|>=|==|!=|<>|[-+*/<>=(),]))",
    re.ASCII,
)
MOST_TOKENS = 400
DEEPEST = 10
"""Brackets in brackets. Both limits keep a hostile rule from exhausting a stack, ours or an engine's, or the memory: the
middle of a chain is printed twice."""


@dataclass(frozen=True)
class Rule:
    """A rule: its text as written, its canonical SQL, its tree, and its columns.

    `columns` must be measured before the rule can be decided: all it names but those it asks `is null` of, where the
    rule's author has said what a missing value means. `mentioned` has those too.
    """

    text: str
    sql: str
    columns: tuple[str, ...]
    mentioned: tuple[str, ...]
    tree: Node


def parse(text: str, schema: pa.Schema) -> Rule:
    """Parse one rule over the columns of `schema`. Raises ConfigError that shows the place of a fault."""
    text = text.strip()
    try:
        parser = _Parser(text, schema)
        tree = parser.whole()
    except _Fault as fault:
        shown = "".join(c if c.isprintable() else "?" for c in text)
        raise ConfigError(f"rule {text!r}: {fault.message}\n  {shown}\n  {' ' * fault.position}^") from None
    mentioned = tuple(dict.fromkeys(parser.mentioned))
    columns = tuple(name for name in mentioned if name not in parser.asked)
    return Rule(text, sql_of(tree, frozenset(parser.asked)), columns, mentioned, tree)


class _Fault(Exception):
    """What is wrong with a rule's text, and where."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.message = message
        self.position = position


@dataclass(frozen=True)
class _Token:
    kind: str
    value: str
    position: int


def _tokens(text: str) -> Iterator[_Token]:
    for found in re.finditer(r"\\|\$\{|[^ -~]", text):
        if not found[0].isprintable():
            raise _Fault("a rule is one line of printable characters", found.start())
        if found[0] in ("\\", "${"):
            raise _Fault(f"{found[0]} is not allowed: Spark would expand it", found.start())
    position = 0
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            start = position + len(text[position:]) - len(text[position:].lstrip())
            raise _Fault("this text has no closing quote" if text[start] == "'" else f"cannot read {text[start]!r}", start)
        kind = str(match.lastgroup)
        value, start = match[kind], match.start(kind)
        if kind == "name" and value.lower() in WORDS:
            kind, value = "word", value.lower()
        yield _Token(kind, value, start)
        position = match.end()
    yield _Token("end", "", len(text))


class _Parser:
    """Recursive descent over the grammar of the module's docstring; each method returns the tree of its part."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        self.tokens = list(_tokens(text))
        if len(self.tokens) > MOST_TOKENS:
            raise _Fault(f"a rule has at most {MOST_TOKENS} words and signs", self.tokens[MOST_TOKENS].position)
        self.schema = schema
        self.mentioned: list[str] = []
        self.asked: set[str] = set()
        self.depth = 0
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
            raise _Fault(f"expected {value!r}, found {self.now.value or 'the end'!r}", self.now.position)

    def typed(self, node: Node, kind: Kind, position: int) -> Node:
        """The node, if it is of the wanted kind."""
        if kind_of(node) != kind:
            names = {"number": "a number", "text": "a text", "truth": "true or false"}
            raise _Fault(f"expected {names[kind]}, but this is {names[kind_of(node)]}", position)
        return node

    def whole(self) -> Node:
        tree = self.typed(self.either(), "truth", 0)
        if self.now.kind != "end":
            raise _Fault(f"did not expect {self.now.value!r}", self.now.position)
        return tree

    def either(self) -> Node:
        start, first = self.now.position, self.both()
        parts = [first]
        while self.take("or"):
            self.typed(first, "truth", start)
            position = self.now.position
            parts.append(self.typed(self.both(), "truth", position))
        return first if len(parts) == 1 else Join("OR", tuple(parts))

    def both(self) -> Node:
        start, first = self.now.position, self.negation()
        parts = [first]
        while self.take("and"):
            self.typed(first, "truth", start)
            position = self.now.position
            parts.append(self.typed(self.negation(), "truth", position))
        return first if len(parts) == 1 else Join("AND", tuple(parts))

    def negation(self) -> Node:
        if not self.take("not"):
            return self.test()
        position = self.now.position
        return Not(self.typed(self.negation(), "truth", position))

    def test(self) -> Node:
        start, left = self.now, self.sum()
        if self.take("is"):
            negated = self.take("not") is not None
            self.need("null")
            if not isinstance(left, Column):
                raise _Fault("only a column can be asked whether it is null", start.position)
            self.asked.add(left.name)
            return IsNull(left, negated)
        negated = self.take("not") is not None
        if negated:
            self.need("in")
        if negated or self.take("in"):
            return OneOf(left, self.choices(kind_of(left)), negated)
        return self.chain(left, start.position)

    def chain(self, first: Node, start: int) -> Node:
        signs: list[str] = []
        terms = [first]
        while self.now.kind == "sign" and self.now.value in COMPARISONS:
            token = self.now
            self.at += 1
            if kind_of(first) == "truth" and COMPARISONS[token.value] not in ("=", "<>"):
                raise _Fault("true and false have no order", start)
            position = self.now.position
            signs.append(COMPARISONS[token.value])
            terms.append(self.typed(self.sum(), kind_of(first), position))
        return Compare(tuple(signs), tuple(terms)) if signs else first

    def choices(self, kind: Kind) -> tuple[Node, ...]:
        self.need("(")
        found = [self.constant(kind)]
        while self.take(","):
            found.append(self.constant(kind))
        self.need(")")
        return tuple(found)

    def constant(self, kind: Kind) -> Node:
        position = self.now.position
        negative = self.take("-") is not None
        if self.now.kind not in ("number", "text"):
            raise _Fault("expected a number or a 'text'", position)
        node = self.typed(self.atom(), kind, position)
        return Negative(self.typed(node, "number", position)) if negative else node

    def sum(self) -> Node:
        start, node = self.now.position, self.product()
        while sign := self.take("+", "-"):
            self.typed(node, "number", start)
            position = self.now.position
            node = Arithmetic(sign, node, self.typed(self.product(), "number", position))
        return node

    def product(self) -> Node:
        start, node = self.now.position, self.unary()
        while sign := self.take("*", "/"):
            self.typed(node, "number", start)
            position = self.now.position
            node = Arithmetic(sign, node, self.typed(self.unary(), "number", position))
        return node

    def unary(self) -> Node:
        if not self.take("-"):
            return self.atom()
        position = self.now.position
        return Negative(self.typed(self.unary(), "number", position))

    def atom(self) -> Node:
        token = self.now
        if self.take("("):
            return self.bracket(token)
        if self.take("true", "false"):
            return Truth(token.value == "true")
        self.at += 1
        match token.kind:
            case "number":
                return _number(token)
            case "text":
                return Text(token.value[1:-1].replace("''", "'"))
            case "name":
                return self.call(token) if self.take("(") else self.column(token)
        raise _Fault(f"expected a value, found {token.value or 'the end'!r}", token.position)

    def bracket(self, token: _Token) -> Node:
        self.deeper(token)
        node = self.either()
        self.need(")")
        self.depth -= 1
        return node

    def call(self, token: _Token) -> Node:
        if token.value not in FUNCTIONS:
            raise _Fault(f"unknown function {token.value}; there are {', '.join(FUNCTIONS)}", token.position)
        self.deeper(token)
        arguments = [self.argument()]
        while self.take(","):
            arguments.append(self.argument())
        self.need(")")
        self.depth -= 1
        if (token.value == "abs") != (len(arguments) == 1):
            raise _Fault("abs takes one value, min and max take two or more", token.position)
        return Call(token.value, tuple(arguments))

    def argument(self) -> Node:
        position = self.now.position
        return self.typed(self.sum(), "number", position)

    def deeper(self, token: _Token) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Fault(f"more than {DEEPEST} brackets in one another", token.position)

    def column(self, token: _Token) -> Column:
        if token.value not in self.schema.names:
            self.unknown(token)
        kind = self.schema.field(token.value).type
        self.mentioned.append(token.value)
        if pa.types.is_boolean(kind):
            return Column(token.value, "truth", False)
        if pa.types.is_string(kind):
            return Column(token.value, "text", False)
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            return Column(token.value, "number", pa.types.is_integer(kind))
        raise _Fault(f"{token.value} is a list: rules are about single values", token.position)

    def unknown(self, token: _Token) -> NoReturn:
        close = difflib.get_close_matches(token.value.lower(), self.schema.names, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(self.schema.names)}"
        raise _Fault(f"unknown column {token.value}{hint}", token.position)


def _number(token: _Token) -> Number:
    value = float(token.value)
    if value == float("inf"):
        raise _Fault("this number is too large", token.position)
    return Number(value)
