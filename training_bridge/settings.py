"""The settings of a training run: a tree of plain values in `config.json`, checked into dataclasses."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")
NAME = "config.json"


def checked(kind: type[T], tree: Any) -> T:
    """The settings of a tree. Raises ValueError with the path of every fault; unknown keys are faults."""
    try:
        return TypeAdapter(kind).validate_python(tree)
    except ValidationError as error:
        faults = [f"  {'.'.join(str(p) for p in e['loc']) or '(whole)'}: {e['msg']}" for e in error.errors()]
        raise ValueError("the settings are wrong:\n" + "\n".join(faults)) from error


def write(folder: Path, settings: Any) -> None:
    """Write the resolved settings of a run into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    hidden = folder / f"_{NAME}"
    hidden.write_bytes(TypeAdapter(type(settings)).dump_json(settings, indent=1))
    hidden.rename(folder / NAME)


def text(folder: Path) -> str | None:
    """The settings of a run's folder as they stand there; None where it has none."""
    place = folder / NAME
    return place.read_text() if place.exists() else None


def restore(folder: Path, before: str | None) -> None:
    """Put back what `text` gave: settings that were refused are no settings of the run."""
    if before is None:
        (folder / NAME).unlink(missing_ok=True)
    else:
        (folder / NAME).write_text(before)


def read(folder: Path, kind: type[T]) -> T:
    """The settings of a run's folder. Raises ValueError where it has none, or they will not do."""
    own = text(folder)
    if own is None:
        raise ValueError(f"{str(folder)!r} has no {NAME}: `reelset train-tae --prepare` and `reelset train --prepare` write it")
    return checked(kind, json.loads(own))
