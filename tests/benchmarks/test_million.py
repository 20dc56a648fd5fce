"""The simulation of a million sources, at two hundred: every step of it works on what the ones before it made."""

from pathlib import Path

import pytest

from jobs import analyze
from tests.benchmarks import million


def test_every_step_of_the_simulation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyze, "stages", analyze.stages)  # the simulation puts its own there: not for other tests
    run = million.set_up(tmp_path, 200, 16)
    said = {name: million.measured(name, run, 16)["said"] for name in million.STEPS}
    assert said["list and plan"] == "200 sources in 13 units" and said["analyze"] == "13 units"
    assert said["plan again"].endswith("13 done") and said["outcome"] == "exit 0"
    assert all("clips kept" in said[name] for name in million.SELECTS)
    assert "0 shards to pack" not in said["missing"]
