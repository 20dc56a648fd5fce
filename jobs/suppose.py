"""Supposed rules: a list with some of its rules changed, and the thresholds that a rule could have had instead."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from curation.errors import ConfigError
from curation.rule_tree import Compare, Negative, Node, Number, sql_of
from curation.rules import Rule, SubsetConfig, clip_rule, source_rule

LISTS = ("source_rules", "clip_rules", "image_rules")


def changed(base: SubsetConfig, rules: Sequence[str], name: str) -> SubsetConfig:
    """`base` with these rules, under another name.

    A rule takes the place of the list's own over the same columns, in each of its lists that has one; a bound from one side
    leaves one from the other side as it is. A rule that takes no place is added to those for video clips, or to those for
    sources where no clip has such columns. Raises ConfigError for a rule that cannot be read or a name that is none.
    """
    lists = {part: list(getattr(base, part)) for part in LISTS}
    for text in rules:
        over = parsed(text)
        places = [part for part in LISTS if _table(part) in over and _same(lists[part], part, over[_table(part)])]
        for part in places:
            first, *others = _same(lists[part], part, over[_table(part)])
            lists[part][first] = text
            lists[part] = [rule for place, rule in enumerate(lists[part]) if place not in others]
        if not places:
            lists["clip_rules" if "clips" in over else "source_rules"].append(text)
    about = f"{base.name} with {'; '.join(rules)}" if rules else base.about
    try:
        return SubsetConfig.model_validate({**base.model_dump(), **lists, "name": name, "about": about})
    except ValidationError as error:
        raise ConfigError("; ".join(f"{name!r}: {fault['msg']}" for fault in error.errors())) from error


def parsed(text: str) -> dict[str, Rule]:
    """A rule over `clips`, over `sources`, or over either. Raises ConfigError where it is neither."""
    found, faults = {}, []
    for table, parse in (("clips", clip_rule), ("sources", source_rule)):
        try:
            found[table] = parse(text)
        except ConfigError as fault:
            faults.append(fault)
    if not found:
        raise ConfigError("\nor, over sources: ".join(dict.fromkeys(str(fault) for fault in faults)))
    return found


def _table(part: str) -> str:
    return "sources" if part == "source_rules" else "clips"


def _same(texts: Sequence[str], part: str, rule: Rule) -> list[int]:
    """Places of the rules over the columns of `rule`, but those that are bounds from the other side."""
    own = list(map(source_rule if part == "source_rules" else clip_rule, texts))
    return [i for i, o in enumerate(own) if set(o.mentioned) == set(rule.mentioned) and _sides(o) & _sides(rule)]


def _sides(rule: Rule) -> set[str]:
    """From where a rule bounds what it compares; from both sides where it does not compare with a number."""
    return {side for bound in bounds(rule) for side in bound.sides} or {"below", "above"}


def replaced(base: SubsetConfig, new: SubsetConfig) -> list[str]:
    """The rules of `base` that `new` has not."""
    return list(dict.fromkeys(rule for part in LISTS for rule in getattr(base, part) if rule not in getattr(new, part)))


@dataclass(frozen=True)
class Bound:
    """A number that a rule compares something with, and what would be asked were it another."""

    rule: Rule
    place: int
    value: float

    @property
    def tree(self) -> Compare:
        assert isinstance(self.rule.tree, Compare), "a rule that compares"
        return self.rule.tree

    @property
    def measured_sql(self) -> str:
        """What is compared with the number."""
        terms = self.tree.terms
        other = terms[self.place - 1] if self.place else terms[1]
        return sql_of(other, self._asked)

    def rule_sql(self, value: float) -> str:
        """The whole rule with this number in the place of its own."""
        number = Number(value) if value >= 0 else Negative(Number(-value))
        terms = (*self.tree.terms[: self.place], number, *self.tree.terms[self.place + 1 :])
        return sql_of(replace(self.tree, terms=terms), self._asked)

    @property
    def label(self) -> str:
        """The comparison, as `column > threshold`."""
        if self.place:
            return f"... {self.tree.signs[self.place - 1]} threshold"
        return f"threshold {self.tree.signs[0]} ..."

    @property
    def sides(self) -> tuple[str, ...]:
        """From where the number bounds what it is compared with: `> 3` from below, `< 3` from above, `= 3` from both."""
        sign = self.tree.signs[max(self.place - 1, 0)][0]
        if sign not in "<>":
            return ("below", "above")
        return ("below",) if (sign == ">") == bool(self.place) else ("above",)

    @property
    def _asked(self) -> frozenset[str]:
        return frozenset(self.rule.mentioned) - frozenset(self.rule.columns)


def bounds(rule: Rule) -> Iterator[Bound]:
    """The numbers of a rule that is a comparison: of `0.5 < motion_mv < 7` both."""
    if not isinstance(rule.tree, Compare):
        return
    values = [_value(term) for term in rule.tree.terms]
    for place, value in enumerate(values):
        other = values[place - 1] if place else values[1]
        if value is not None and other is None:
            yield Bound(rule, place, value)


def _value(node: Node) -> float | None:
    match node:
        case Number(value):
            return value
        case Negative(Number(value)):
            return -value
    return None
