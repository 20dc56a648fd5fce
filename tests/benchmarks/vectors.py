"""Near-duplicates, concepts and resampling of synthetic vectors, against plain FAISS calls on arrays in memory.

    python -m tests.benchmarks.vectors [--clips 1000000] [--width 512] [--growth] [--engine ray]

Vectors lie around 1 000 concepts whose sizes are skewed; one in ten is a copy of an earlier one. Prints seconds of each part,
memory, precision and recall of the copies, and the ratio to a script that makes the same FAISS calls with as many
threads; with `--growth` the same at an eighth, a quarter and a half, and the exponents.
"""

import argparse
import math
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from curation import clusters, duplicates, storage, vectors
from curation.embedding import schema
from curation.engine import start_ray
from curation.tables import CLIPS, CONCEPTS, SOURCES
from jobs import content, selecting
from jobs.config import Config, resolve
from jobs.content import Content

UNIT = 1000
CONCEPT_COUNT = 1000
COPIES = 0.1
NOISE = 0.66


def synthetic(count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (count, width), and for each the number of its original (its own where it is none's copy)."""
    rng = np.random.default_rng(0)
    concepts = _unit(rng.standard_normal((CONCEPT_COUNT, width), np.float32))
    share = 1 / np.arange(1, CONCEPT_COUNT + 1) ** 0.8
    of = rng.choice(CONCEPT_COUNT, count, p=share / share.sum())
    found = np.empty((count, width), np.float32)
    for start in range(0, count, 50_000):
        part = slice(start, min(start + 50_000, count))
        noise = _unit(rng.standard_normal((part.stop - start, width), np.float32))
        found[part] = _unit(0.75 * concepts[of[part]] + NOISE * noise)
    original = np.arange(count)
    for n in np.sort(rng.choice(np.arange(1, count), int(COPIES * count), replace=False)):
        original[n] = original[int(rng.integers(n))]
        cosine = rng.uniform(0.992, 1.0)
        away = rng.standard_normal(width, np.float32)
        away -= found[original[n]] * (away @ found[original[n]])
        found[n] = cosine * found[original[n]] + math.sqrt(1 - cosine**2) * away / np.linalg.norm(away)
    return found, original


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def write_run(folder: str, found: np.ndarray) -> list[str]:
    """A run folder that was measured and embedded, of one clip a source; returns its units."""
    units = []
    for start in range(0, len(found), UNIT):
        unit, rows = f"unit-{start // UNIT:06d}", range(start, min(start + UNIT, len(found)))
        ids = [f"c{n:09d}" for n in rows]
        common = {"source_id": ids, "kind": ["video"] * len(ids), "status": ["ok"] * len(ids), "duration_s": [10.0] * len(ids)}
        shape = {"width": [640] * len(ids), "height": [360] * len(ids), "frames": [300] * len(ids), "fps": [30.0] * len(ids)}
        _write(folder, "clips", unit, CLIPS, {**common, **shape, "clip_id": ids})
        _write(folder, "sources", unit, SOURCES, {**common, **shape, "unit": [unit] * len(ids), "bytes": [1] * len(ids)})
        vector = schema(found.shape[1])
        values = pa.FixedSizeListArray.from_arrays(pa.array(found[rows.start : rows.stop].ravel()), found.shape[1])
        table = pa.table([pa.array(ids), values], schema=vector)
        storage.write_table(storage.join(folder, "embeddings", "copies", f"{unit}.parquet"), table)
        units.append(unit)
    return units


def _write(folder: str, name: str, unit: str, whole: pa.Schema, columns: dict[str, list[Any]]) -> None:
    count = len(next(iter(columns.values())))
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(count, f.type) for f in whole]
    storage.write_table(storage.join(folder, name, f"{unit}.parquet"), pa.table(arrays, schema=whole))


def settings(engine: str) -> Config:
    subset = {"name": "balanced", "resample": {"share": 0.8}, "validation_share": 0.0}
    return resolve(
        {
            "embeddings": [{"name": "copies", "kind": "torchscript", "weights": "none"}],
            "subsets": [subset],
            "engine": {"kind": engine},
        }
    )


@contextmanager
def watched(said: dict[str, float], name: str) -> Iterator[None]:
    """Wall seconds, and the most memory (unique to each process, GB) of the largest process of ours and of all."""
    ended, most = threading.Event(), [0.0, 0.0]

    def look() -> None:
        while not ended.wait(0.5):
            sizes = []
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    if "raylet" not in process.name() and "gcs" not in process.name():
                        sizes.append(process.memory_full_info().uss / 1e9)
                except psutil.Error:
                    continue
            most[0], most[1] = max(most[0], *sizes), max(most[1], sum(sizes))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    began = time.perf_counter()
    yield
    said[name] = time.perf_counter() - began
    ended.set()
    thread.join()
    said[f"{name}: largest process, GB"], said[f"{name}: all, GB"] = most


def ours(folder: str, config: Config, units: list[str]) -> dict[str, float]:
    """What the job does, part by part."""
    said: dict[str, float] = {}
    whole, marks = Content(folder, config), storage.join(folder, "attempts")
    if config.engine.kind == "ray":
        start_ray(config.engine)

    def each(items: list[Any], worker: type[content.Worker]) -> None:
        for _ in whole.work(worker, items, marks):
            pass

    with watched(said, "duplicates"):
        each(whole.unindexed(units), content.Index)
        each(whole.uncompared(), content.Compare)
        print(whole.group(units))
    with watched(said, "k-means"):
        print(whole.train())
    with watched(said, "assignment"):
        each(whole.unassigned(), content.Assign)
        whole.describe()
    with watched(said, "resampling"):
        print(selecting.select(folder, config, config.subsets[0]))
    return said


def plain(found: np.ndarray, config: Config) -> dict[str, float]:
    """The same FAISS calls on the same blocks, and nothing else: neither files nor filters, groups or tables."""
    import faiss

    said: dict[str, float] = {}
    faiss.omp_set_num_threads(2)
    size = config.index.block_clips
    parts = [found[start : start + size] for start in range(0, len(found), size)]
    with watched(said, "duplicates"):
        indexes = [vectors.build(pa.array([f"c{n:09d}" for n in range(len(part))]), part, config.index) for part in parts]
        for place, part in enumerate(parts):
            for index in indexes[: place + 1]:
                for start in range(0, len(part), duplicates.QUERIES[1]):
                    index.range_search(part[start : start + duplicates.QUERIES[1]], 0.99 - duplicates.SLACK)
    number = clusters.number(config.clusters, len(found))
    with watched(said, "k-means"):
        sample = found[np.random.default_rng(0).permutation(len(found))[: clusters.SAMPLE * number]]
        centroids = clusters.train(sample, number, 1.0, 0).vectors
    with watched(said, "assignment"):
        flat = faiss.IndexFlatIP(found.shape[1])
        flat.add(centroids)
        flat.search(found, 1)
    return said


def measure(count: int, width: int, engine: str) -> dict[str, float]:
    folder = tempfile.mkdtemp(prefix="reelset-vectors-")
    config = settings(engine)
    try:
        found, original = synthetic(count, width)
        units = write_run(folder, found)
        base = plain(found, config)
        del found
        said = ours(folder, config, units)
        table = storage.read_table(storage.join(folder, "duplicates"))
        print(quality(table, original))
        concepts = storage.read_table(storage.join(folder, "concepts"), CONCEPTS)
        assert concepts.num_rows == count, f"{concepts.num_rows} of {count} clips have a concept"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{count} clips of {width} numbers, {engine}")
    for part in ("duplicates", "k-means", "assignment", "resampling"):
        ratio = f"{said[part] / base[part]:.2f} times plain FAISS ({base[part]:.1f} s)" if part in base else ""
        memory = f"{said[f'{part}: largest process, GB']:.2f} GB, all {said[f'{part}: all, GB']:.2f} GB"
        print(f"  {part:12} {said[part]:8.1f} s  {memory}  {ratio}")
    three = ("duplicates", "k-means", "assignment")
    print(f"  together {sum(said[p] for p in three) / sum(base[p] for p in three):.2f} times plain FAISS", flush=True)
    return said


def quality(table: pa.Table, original: np.ndarray) -> str:
    """Precision and recall of what is marked a copy."""
    pairs = [
        (int(a[1:]), int(b[1:])) for a, b in zip(*(table[c].to_pylist() for c in ("clip_id", "duplicate_of")), strict=True)
    ]
    right = sum(original[a] == original[b] for a, b in pairs)
    copies = int((original != np.arange(len(original))).sum())
    return f"copies: {len(pairs)} found, precision {right / max(1, len(pairs)):.4f}, recall {right / copies:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--engine", default="ray")
    given = parser.parse_args()
    counts = [given.clips // 8, given.clips // 4, given.clips // 2, given.clips] if given.growth else [given.clips]
    said = [measure(count, given.width, given.engine) for count in counts]
    if given.growth:
        for part in ("duplicates", "k-means", "assignment", "resampling"):
            slope = np.polyfit(np.log(counts), np.log([s[part] for s in said]), 1)[0]
            print(f"{part}: grows as n^{slope:.2f}")


if __name__ == "__main__":
    main()
