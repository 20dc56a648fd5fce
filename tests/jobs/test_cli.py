import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from curation.errors import ConfigError
from jobs import cli
from jobs.config import load, resolve

ROOT = Path(__file__).parent.parent.parent


def reelset(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    return subprocess.run([sys.executable, "-m", "jobs.cli", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_help_names_every_verb() -> None:
    done = reelset("--help")
    assert done.returncode == 0
    for verb in (
        "run",
        "analyze",
        "select",
        "shard",
        "report",
        "status",
        "inspect",
        "sql",
        "what-if",
        "search",
        "demo",
        "train",
        "sample",
    ):
        assert f" {verb} " in done.stdout


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["run", "--input", "/nowhere", "--output", "/tmp/x"], "input '/nowhere': no such folder or manifest"),
        (["run", "--input", ".", "--output", "/tmp/x", "--set", "clips.min=3"], "clips.min: Extra inputs are not permitted"),
        (["run", "--input", ".", "--output", "/tmp/x", "--set", "seed"], "write it as a.b=value"),
        (["run", "--input", ".", "--output", "/tmp/x", "--config", "/nowhere.yaml"], "/nowhere.yaml"),
        (["run", "--input", ".", "--output", "/tmp/x", "--set", "subsets=nosuch"], "neither a shipped list"),
        (["run", "--input", ".", "--output", "/tmp/x", "--set", "subsets=high_res"], "aesthetic.weights and aesthetic.head"),
        (["status", "/nowhere"], "is no run folder"),
        (["sql", "/nowhere", "select 1"], "is no run folder"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = reelset(*arguments)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not Path("/tmp/x").exists()


def test_overrides_reach_the_config(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("clips: {min_s: 2, policy: paper}\nsubsets: [everyday]\n")
    config = load(file, ["clips.min_s=3", "score_all=true", "engine.cpu.cpus=0.5"])
    assert (config.clips.min_s, config.clips.policy, config.score_all) == (3.0, "paper", True)
    assert config.engine.cpu.cpus == 0.5
    assert [s.name for s in config.subsets] == ["everyday"]
    assert resolve(config.model_dump(mode="json")) == config


def test_a_rule_list_of_ones_own_has_its_files_name(tmp_path: Path) -> None:
    rules = tmp_path / "calm.yaml"
    rules.write_text("clip_rules: ['motion_mv < 3']\n")
    assert load(None, [f"subsets={rules}"]).subsets[0].name == "calm"
    rules.write_text("clip_rules: ['motion_mw < 3']\n")
    with pytest.raises(ConfigError, match="did you mean motion_mv"):
        load(None, [f"subsets={rules}"])


def test_what_decides_a_part_is_independent_of_where_it_runs() -> None:
    base = load().decides()
    assert load(None, ["engine.kind=inline", "limits.stall_s=5", "text.threads=4"]).decides() == base
    assert load(None, ["clips.min_s=2"]).decides()["analyze"] != base["analyze"]
    assert load(None, ["encode.crf=30"]).decides()["produce"] != base["produce"]


def test_an_interrupt_that_a_library_makes_its_own_error_of_is_still_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """DuckDB asks us for rows, and hands on what we raise meanwhile in words of its own."""

    def rows() -> Iterator[pa.RecordBatch]:
        handler = signal.getsignal(signal.SIGINT)
        assert callable(handler)
        handler(signal.SIGINT, None)  # a real signal comes to the main thread, and DuckDB may ask in another
        yield pa.record_batch({"a": [1]})

    def command() -> None:
        with duckdb.connect() as connection:
            connection.register("given", pa.RecordBatchReader.from_batches(pa.schema({"a": pa.int64()}), rows()))
            connection.sql("FROM given").fetchall()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    monkeypatch.setattr(cli, "app", command)
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "Aborted.\n"
