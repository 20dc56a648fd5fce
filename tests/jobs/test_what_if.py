"""Other rule lists over a measured run; and a run that lives in an object store."""

from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from rich.console import Console

from curation.errors import ConfigError
from jobs import inspect
from jobs.report import write_report
from jobs.status import status
from jobs.what_if import what_if
from tests.jobs.run_samples import SUBSET, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("what-if")
    make_run(place)
    return str(place)


def text(renderable: Any) -> str:
    console = Console(width=240, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def words(shown: str, part: str) -> list[str]:
    """The words of the first line that has `part`."""
    return next(line for line in shown.splitlines() if part in line).split()


def rules(folder: Path, **settings: Any) -> str:
    place = folder / f"{settings['name']}.yaml"
    place.write_text(yaml.safe_dump(settings))
    return str(place)


def test_the_runs_own_rules_change_nothing(run: str, tmp_path: Path) -> None:
    shown = text(what_if(run, rules(tmp_path, **SUBSET)))
    assert words(shown, "border_frac < 0.02")[-5:] == ["1", "0", "3", "0.006", "60.0%"]
    assert words(shown, "text_score < 0.6")[-5:-2] == ["0", "1", "1"]
    outcome = shown.partition("All clips")[2]
    for fate, count in {"kept": "2", "dropped": "2", "unknown": "1", "error": "1"}.items():
        found = words(outcome, f" {fate} ")
        assert (found[1], found[3], found[5]) == (count, count, "+0")


def test_wider_rules(run: str, tmp_path: Path) -> None:
    wider = {**SUBSET, "name": "wider", "source_rules": ["duration_s >= 1"], "clip_rules": ["motion_mv < 20"]}
    shown = text(what_if(run, rules(tmp_path, **wider)))
    assert words(shown.partition("All clips")[2], " kept ")[1] == "5"
    assert "no selection named wider" in shown
    assert "1 sources (0.00 h) that the run stopped before decoding" in shown


def test_a_list_that_is_not_there(run: str) -> None:
    with pytest.raises(ConfigError, match="neither a shipped list"):
        what_if(run, "no_such_list")


def test_a_run_in_an_object_store(tmp_path: Path) -> None:
    make_run(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/", "/bucket/run/", recursive=True)
    memory.pipe("/bucket/secret.csv", b"a\n1\n")
    place = "memory://bucket/run"
    assert inspect.sql(place, "SELECT count(*) AS n FROM clips", csv=True) == "n\n6\n"
    assert "3 ok + 2 rejected + 2 error" in text(status(place))
    assert "6 = 2 kept + 3 dropped + 1 error" in memory.cat(write_report(place)).decode()
    with pytest.raises(ConfigError, match="Permission Error"):
        inspect.sql(place, "SELECT * FROM 'memory://bucket/secret.csv'")
