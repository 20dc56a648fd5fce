"""The script for GPU machines runs, here at a tiny size on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from training_bridge.dit.model import config_of, parameters_of

ROOT = Path(__file__).parent.parent.parent.parent
TINY = ["--size", "tiny", "--layers", "1", "--grid", "2", "4", "4", "--text", "32", "--steps", "2", "--device", "cpu"]


def test_the_script_measures_a_step(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    command = [sys.executable, "tests/gpu/dit.py", *TINY, "--no-compile", "--profile", str(trace)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["tokens"] == 32 and found["kernels"] == {"self": "flash_attention_for_cpu", "cross": "flash_attention_for_cpu"}
    assert found["parameters"] == parameters_of(config_of("tiny", layers=1, lengths=(32, 96, 96)))
    assert found["tokens_per_s"] == pytest.approx(32 / found["step_s"], rel=0.05) and 0 < found["mfu"] < 1
    assert found["loss"][1] < found["loss"][0]
    assert trace.stat().st_size > 1000


def test_the_script_needs_torch_and_nothing_else() -> None:
    code = (
        "import sys, runpy; sys.modules.update(dict.fromkeys(('numpy', 'pyarrow', 'pydantic', 'transformers', 'fsspec')))\n"
        "runpy.run_path('tests/gpu/dit.py'); import training_bridge.dit.sample, training_bridge.exchange; print('ready')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "ready", done.stderr
