"""The autoencoder's measurements run: on a GPU at full size, and small on any machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parent / "tae.py"
KINDS = {"temporal conv2d", "temporal conv3d", "encode", "decode", "training step"}


def lines(folder: Path, device: str) -> list[dict[str, Any]]:
    """What the script prints, as on a machine where the project is not installed."""
    done = subprocess.run([sys.executable, SCRIPT, "--device", device], capture_output=True, text=True, cwd=folder, check=True)
    print(done.stdout)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_runs_small_on_a_cpu(tmp_path: Path) -> None:
    found = lines(tmp_path, "cpu")
    assert {line["what"] for line in found} == KINDS
    assert all(line["seconds"] > 0 and line["tflops"] > 0 for line in found)
    assert not any("share_of_peak" in line for line in found), "a CPU has no such peak"


@pytest.mark.gpu
def test_full_size(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    found = lines(tmp_path, "cuda")
    assert {line["what"] for line in found} == KINDS
    assert all(line["peak_memory_gb"] < 75 for line in found), "it fits one 80 GB card"
