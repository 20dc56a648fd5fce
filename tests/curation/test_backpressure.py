"""Items that carry pixels between two pools, through an object store that is smaller than what passes through it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
STORE_MB = 100

CODE = """
import json, sys, time
import ray
from pathlib import Path
from curation.engine import EngineConfig, PoolConfig, Step, run

place, count, megabytes, pause_s, store_mb = Path(sys.argv[1]), *map(float, sys.argv[2:])


class Make:
    name = "make"

    def open(self): pass

    def close(self): pass

    def __call__(self, item):
        (place / f"made-{item['n']}").touch()
        return item | {"pixels": item["n"].to_bytes(4, "big") * int(megabytes * 2**20 / 4)}


class Take(Make):
    name = "take"

    def __call__(self, item):
        ahead = len(list(place.glob("made-*"))) - len(list(place.glob("taken-*")))
        time.sleep(pause_s)
        (place / f"taken-{item['n']}").touch()
        right = item["pixels"] == item["n"].to_bytes(4, "big") * (len(item["pixels"]) // 4)
        return {"n": item["n"], "ahead": ahead, "right": right}


ray.init(num_cpus=2, object_store_memory=int(store_mb * 2**20), include_dashboard=False, log_to_driver=False)
steps = [Step(Make(), PoolConfig(cpus=1, max_actors=1)), Step(Take(), PoolConfig(cpus=1, max_actors=1))]
results = list(run([{"n": n} for n in range(int(count))], steps, EngineConfig(kind="ray")))
print(json.dumps(results))
"""


@pytest.mark.parametrize(
    ("count", "megabytes", "pause_s"),
    [
        pytest.param(60, 10, 0.2, id="six times the store, the second pool slow"),
        pytest.param(4, 150, 0.0, id="each item larger than the store"),
    ],
)
@pytest.mark.slow
def test_what_passes_through_the_object_store_is_held_back(tmp_path: Path, count: int, megabytes: int, pause_s: float) -> None:
    command = [sys.executable, "-c", CODE, tmp_path, count, megabytes, pause_s, STORE_MB]
    done = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert sorted(r["n"] for r in results) == list(range(count))
    assert all(r["right"] for r in results)
    if pause_s:
        assert max(r["ahead"] for r in results) * megabytes <= STORE_MB, "the first pool ran ahead of the store's limit"
