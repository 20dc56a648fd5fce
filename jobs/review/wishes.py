"""What reviewers ask for: which candidates, in which order, and which concepts the set shall have."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt, TypeAdapter, ValidationError

from curation.errors import ConfigError
from curation.rules import clip_rule
from curation.tables import CLIPS

UNSORTED = ("status", "error_code", "error_message")
"""Columns that are the same in all candidates."""
SORTS = ("draw", *(name for name in CLIPS.names if name not in UNSORTED), "cluster", "caption")
VERDICTS = ("not_reviewed", "kept", "rejected", "conflict")


class Target(BaseModel):
    """A concept that the set shall have, and how much of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    quota: PositiveInt
    text: str | None = None
    """Looked for in words while there is no seed; needs an open_clip embedding."""
    seeds: tuple[str, ...] = ()
    """Clips to begin with. Accepted clips of the concept are seeds too."""


@dataclass(frozen=True)
class Wish:
    """Which candidates, in which order."""

    verdict: str | None = "not_reviewed"
    words: str = ""
    rule: str = ""
    """A rule over the columns of `clips`, in the words of the rule lists."""
    concept: str = ""
    """A target concept, or the name of a search (`Candidates.find`)."""
    sort: str = "draw"
    """A column of SORTS, or `similarity` within a concept; `-` before it: the largest first."""

    @property
    def column(self) -> str:
        """The column of the order. Raises ConfigError for another than those offered."""
        name = self.sort.removeprefix("-")
        if name not in (*SORTS, *(["similarity"] if self.concept else [])):
            raise ConfigError(f"no order by {name!r}; there are {', '.join(SORTS)}")
        return name

    @property
    def where(self) -> tuple[str, list[Any]]:
        """SQL over the table of candidates, and its values. Raises ConfigError for a rule that is none."""
        parts, values = ["TRUE"], list[Any]()
        if self.verdict:
            parts.append("c.verdict = ?")
            values.append(self.verdict)
        for word in self.words.lower().split():
            parts.append("instr(c.words, ?) > 0")
            values.append(word)
        if self.rule.strip():
            parts.append(clip_rule(self.rule.strip()).sql)
        return " AND ".join(parts), values


def targets(file: Path) -> list[Target]:
    """Target concepts of a YAML file, a list of `{name, quota, text, seeds}`. Raises ConfigError with its faults."""
    try:
        found = TypeAdapter(list[Target]).validate_python(yaml.safe_load(file.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"concepts {str(file)!r}: {error}") from error
    if len({target.name for target in found}) < len(found):
        raise ConfigError(f"concepts {str(file)!r}: two have one name")
    return found
