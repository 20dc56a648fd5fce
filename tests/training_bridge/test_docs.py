"""The examples of docs/loader.md run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training_bridge.samples import make_shards
from training_bridge.index import Shape

PAGE = Path(__file__).parents[2] / "docs" / "loader.md"
CLIPS = Shape(24, 64, 96)


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_run(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "run" / "shards" / "everyday" / "train"
    make_shards(folder, {CLIPS: 6}, per_shard=6)
    (folder / f"b-{CLIPS}").rename(folder / "v256-16x9-f128")
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[number]
    (tmp_path / "example.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": str(PAGE.parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    if number == 0:
        assert [line.split()[0] for line in lines] == list("0011223"), "two micro-batches a step"
        assert all("torch.Size([2, 3, 16, 64, 64])" in line for line in lines)
    else:
        assert [line.split()[0] for line in lines] == [f"c{n:03d}" for n in range(6)]
        assert lines[0].endswith("text of c000") and int(lines[1].split()[1]) > 1000
