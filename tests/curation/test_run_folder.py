import json
from pathlib import Path

import pytest

from curation import run_folder
from curation.errors import ConfigError

DECIDES = {"analyze": {"clips": {"min_s": 4.0}, "seed": 0}, "select": {"rules": ["a > 1"]}}


def test_going_on_with_other_analyze_settings_is_refused_with_the_difference(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    assert run_folder.resume(run, DECIDES) is None
    run_folder.write(run, {"seed": 0}, DECIDES)
    assert run_folder.resume(run, DECIDES) == run_folder.read(run)
    other = {**DECIDES, "analyze": {"clips": {"min_s": 2.0}, "seed": 0}}
    with pytest.raises(ConfigError, match=r"clips\.min_s: 4\.0 -> 2\.0"):
        run_folder.resume(run, other)


def test_other_rules_are_no_reason_to_refuse(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    run_folder.write(run, {"seed": 0}, DECIDES)
    assert run_folder.resume(run, {**DECIDES, "select": {"rules": ["a > 2"]}}) is not None


def test_another_format_version_is_refused_by_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_folder.write(str(run), {"seed": 0}, DECIDES)
    page = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**page, "format_version": 99}))
    with pytest.raises(ConfigError, match="format version 99"):
        run_folder.read(str(run))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is no run folder"):
        run_folder.resume(str(tmp_path), DECIDES)
    with pytest.raises(ConfigError, match=r"has no run\.json"):
        run_folder.read(str(tmp_path))
