"""The dashboard and the docs name the metrics that there are."""

import ast
import inspect
import json
import re
from pathlib import Path

import pytest

from jobs import metrics

ROOT = Path(__file__).parent.parent.parent


def exported() -> set[str]:
    """The names under which Ray exports what `Meters` makes."""
    made = {"Counter": "_total", "Gauge": "", "Histogram": ""}
    calls = [n for n in ast.walk(ast.parse(inspect.getsource(metrics))) if isinstance(n, ast.Call)]
    found = [(c.func.id, c.args[0]) for c in calls if isinstance(c.func, ast.Name) and c.func.id in made]
    return {f"ray_{ast.literal_eval(name)}{made[kind]}" for kind, name in found}


@pytest.mark.parametrize("file", ["docs/grafana/reelset.json", "docs/observability.md"])
def test_what_is_named_is_exported(file: str) -> None:
    text = (ROOT / file).read_text()
    named = {name.removesuffix("_bucket") for name in re.findall(r"ray_reelset_\w+", text)}
    assert named <= exported()
    if file.endswith(".md"):
        assert named == exported()


def test_the_dashboard_is_one() -> None:
    page = json.loads((ROOT / "docs/grafana/reelset.json").read_text())
    assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"]) >= 8
    assert all(target["expr"].count("(") == target["expr"].count(")") for p in page["panels"] for target in p["targets"])
