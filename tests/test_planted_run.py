"""Two thousand planted films through the commands: copies found, concepts balanced, the same bytes however they are run."""

import hashlib
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from scipy.stats import chisquare

from curation import storage
from curation.resample import expected
from tests.planted import Planted, plant

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parent.parent
KEPT = 600
COMPARED = ("index", "duplicates", "concepts", "clusters", "selection")
SETTINGS = {
    "text": {"enabled": False},
    "clips": {"min_s": 0.5},
    "units": {"size": 25},
    "index": {"block_clips": 300},
    "engine": {"cpu": {"cpus": 0.5}},
}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "jobs.cli", *map(str, arguments)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has measured and embedded the films, which stand beside it with their truth."""
    folder = tmp_path_factory.mktemp("planted")
    plant(folder / "films")
    balanced = {"clip_rules": ["duration_s > 0"], "resample": {"count": KEPT}, "validation_share": 0.05}
    (folder / "balanced.yaml").write_text(yaml.safe_dump(balanced))
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({**SETTINGS, "subsets": [str(folder / "balanced.yaml")]}))
    done = subprocess.run(command("analyze", "-i", folder / "films", "-o", folder / "run", "-c", config), cwd=ROOT, check=False)
    assert done.returncode == 0
    return folder / "run"


@pytest.fixture(scope="module")
def selected(measured: Path) -> Path:
    return select(measured, workers=2)


def select(measured: Path, workers: int, kill_after: int | None = None) -> Path:
    """A copy of the run, selected by so many actors; killed and run again where `kill_after` pairs of blocks were compared."""
    run = measured.with_name(f"run-{workers}-{kill_after}")
    shutil.copytree(measured, run)
    whole = command("select", run, "--set", f"engine.cpu.max_actors={workers}")
    if kill_after is not None:
        driver = subprocess.Popen(whole, cwd=ROOT, start_new_session=True)
        while driver.poll() is None and len(list((run / "index").glob("pairs/*.parquet"))) < kill_after:
            time.sleep(0.02)
        assert driver.poll() is None, "it was killed before its end"
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert subprocess.run(whole, cwd=ROOT, check=False).returncode == 0
    return run


def truth(run: Path) -> dict[str, Planted]:
    """clip_id -> what was planted."""
    from tests.planted import truth as planted

    films = {film.path: film for film in planted(2000, 0)}
    return {clip["clip_id"]: films[clip["path"]] for clip in storage.read_table(str(run / "clips")).to_pylist()}


def test_copies_are_found_and_nothing_else(selected: Path) -> None:
    films = truth(selected)
    assert len(films) == 2000, "one clip a film"
    head = {clip: film.copy_of or film.path for clip, film in films.items()}
    rows = storage.read_table(str(selected / "duplicates")).to_pylist()
    right = sum(head[row["clip_id"]] == head[row["duplicate_of"]] for row in rows)
    copies = sum(film.copy_of is not None for film in films.values())
    print(f"\n{len(rows)} duplicates: precision {right / len(rows):.4f}, recall {right / copies:.4f}")
    missed = Counter(f.how for c, f in films.items() if f.copy_of and c not in {r["clip_id"] for r in rows})
    print(f"not marked, by kind (an original may be marked instead): {dict(missed)}")
    assert right >= 0.98 * len(rows)
    assert right >= 0.95 * copies


def test_what_is_kept_of_a_concept_follows_the_root_of_its_size(selected: Path) -> None:
    films = truth(selected)
    rows = storage.read_table(str(selected / "selection" / "balanced")).to_pylist()
    left = [row for row in rows if row["reason"] in ("kept", "resampled_out")]
    assert sum(row["kept"] for row in left) == KEPT
    for name, concept in (("cluster", lambda row: row["cluster"]), ("planted", lambda row: films[row["clip_id"]].concept)):
        sizes, kept = Counter(map(concept, left)), Counter(concept(row) for row in left if row["kept"])
        concepts = sorted(sizes)
        wanted = expected([(sizes[c], sizes[c]) for c in concepts], KEPT)
        by_root = chisquare([kept[c] for c in concepts], [w * KEPT / math.fsum(wanted) for w in wanted])
        by_size = chisquare([kept[c] for c in concepts], [sizes[c] * KEPT / len(left) for c in concepts])
        print(f"\nby {name}: {len(concepts)} concepts, chi-square to the root {by_root.statistic:.1f} (p {by_root.pvalue:.3f})")
        print(f"chi-square to the size {by_size.statistic:.1f} (p {by_size.pvalue:.1e})")
        assert by_root.pvalue > 0.05
        assert by_size.pvalue < 1e-6, "the test can tell the root from the size"


@pytest.mark.parametrize(("workers", "kill_after"), [(1, None), (4, None), (2, 1), (2, 9), (4, 20)])
def test_the_same_bytes_with_other_workers_and_after_a_kill(
    measured: Path, selected: Path, workers: int, kill_after: int | None
) -> None:
    run = select(measured, workers, kill_after)
    assert digests(run) == digests(selected)


def digests(run: Path) -> dict[str, str]:
    files = [path for table in COMPARED for path in (run / table).rglob("*") if path.is_file()]
    assert len(files) > 40
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
