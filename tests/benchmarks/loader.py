"""Frames a second of the loader beside `wds.WebDataset`, time to the first batch, memory over visits, and both decoders.

    python -m tests.benchmarks.loader [--runs 7] [--check]

Shards are cut from generated films. Both loaders have the same shards, decode function, batches, workers and read-ahead,
and run in turn; each pair gives a ratio, and the median counts. `--check` exits with 1 where that is below its limit, or
memory grows. The decord column needs decord, which is no dependency of this project (`pip install decord`).
"""

import argparse
import gc
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from bucketing.buckets import Bucket, Choice
from bucketing.cut import Cut, EncodeConfig, Turn, cut_video
from bucketing.pack import Described, pack_shard, write_cuts
from tests.benchmarks.corpus import machine
from tests.bucketing.samples import LIMITS
from tests.media_samples import make_video, moving
from training_bridge import index
from training_bridge.index import Shape
from training_bridge.loader import micro_batches
from training_bridge.media import decode_video
from training_bridge.plan import Mix, Plan, tokens
from training_bridge.reader import Reader, Source
from training_bridge.view import Window

LEAST = 0.95
"""Frames a second of ours over webdataset's."""
GROWTH = 1.1
"""The workers' memory in the last visit over that in the second."""
SHARDS, PER_SHARD, BATCH, WORKERS, PREFETCH, VISITS = 4, 4, 2, 2, 2, 3
SMALL, LARGE = Bucket(256, "16x9", 128), Bucket(768, "1x1", 128)
STORED = Shape(128, 192, 336)


def clip(folder: Path, bucket: Bucket, number: int) -> Path:
    """One sample of a generated film, as `cut` makes it."""
    width, height = bucket.size
    film = make_video(folder / "film.mp4", moving(width, height, number), bucket.frames, fps=30)
    choice = Choice(bucket, "", None, (0, 0, width, height), Fraction(30), bucket.frames / 30)
    cut = Cut(f"c{number:03d}", 0, bucket.frames, np.arange(bucket.frames) / 30, bucket.frames / 30, choice)
    (made,) = cut_video(str(film), [cut], Turn(width, height, 0), EncodeConfig(), LIMITS, str(folder))
    assert made.file is not None, made.error_message
    return Path(made.file).rename(folder / f"{cut.key}.mp4")


def shards(folder: Path) -> Path:
    """A run's shards of 336x192 clips of 128 frames."""
    from bucketing.cut import Made, Shown

    facts = {"frames": 128, "fps": 30.0, "width": STORED.width, "height": STORED.height}
    made = [
        (Made(f"c{n:03d}", str(clip(folder, SMALL, n)), shown=Shown(0, 127, (0, 0, STORED.width, STORED.height), 0.0)), facts)
        for n in range(SHARDS * PER_SHARD)
    ]
    write_cuts(str(folder / "run"), "u", made)
    for shard in range(SHARDS):
        keys = [f"c{n:03d}" for n in range(shard * PER_SHARD, (shard + 1) * PER_SHARD)]
        samples = [{"clip_id": key, "unit": "u", "key": key} for key in keys]
        pack_shard(
            str(folder / "run"), "b", f"train/{SMALL.name}/shard-{shard:06d}", samples, lambda *_: Described({}, "a clip")
        )
    return folder / "run" / "shards" / "b" / "train"


def ours(folder: Path) -> Iterator[Any]:
    """Endless micro-batches of this project's loader."""
    source = Source(index.read(str(folder)))
    plan = Plan({"d": source.shown}, Mix(global_tokens=BATCH * tokens(STORED)), 0)
    reader = Reader({"d": source}, 0, cache_bytes=0)
    settings = {"micro_tokens": BATCH * tokens(STORED), "workers": WORKERS, "prefetch": PREFETCH}
    return micro_batches(plan.step, reader, start=0, **settings)  # type: ignore[arg-type]


def decoded(sample: dict[str, Any]) -> dict[str, Any]:
    return {"pixels": decode_video(sample["mp4"], STORED), "text": sample["txt"].decode(), "key": sample["__key__"]}


def webdatasets(folder: Path) -> Iterator[Any]:
    """Endless batches of webdataset over the same shards."""
    import webdataset as wds

    urls = sorted(str(path) for path in folder.rglob("*.tar"))
    pipe = wds.WebDataset(urls, shardshuffle=False, empty_check=False).map(decoded).batched(BATCH).repeat()
    return iter(wds.WebLoader(pipe, batch_size=None, num_workers=WORKERS, prefetch_factor=PREFETCH))


def workers() -> list[psutil.Process]:
    """The processes that read, and the small one that tracks their resources; not the fork server that started them."""
    return [p for p in psutil.Process().children(recursive=True) if not p.children()]


def cpu_s() -> float:
    """CPU seconds of this process and its workers, so far."""
    times = [p.cpu_times() for p in (psutil.Process(), *psutil.Process().children(recursive=True))]
    return sum(t.user + t.system for t in times)


def speed(start: Callable[[Path], Iterator[Any]], folder: Path, batches: int) -> tuple[float, float, float]:
    """(seconds to the first batch, frames a second after it, CPU milliseconds a frame)."""
    began = time.perf_counter()
    read = start(folder)
    next(read)
    first = time.perf_counter() - began
    for _ in range(2 * WORKERS * PREFETCH):  # what was read ahead while nobody looked
        next(read)
    began, cpu = time.perf_counter(), cpu_s()
    for _ in range(batches):
        next(read)
    frames = batches * BATCH * STORED.frames
    result = first, frames / (time.perf_counter() - began), (cpu_s() - cpu) / frames * 1000
    del read
    gc.collect()
    return result


def compare(folder: Path, runs: int) -> float:
    """Both loaders in turn; returns the median ratio of their frames a second."""
    found: dict[str, list[tuple[float, float, float]]] = {"ours": [], "webdataset": []}
    batches = SHARDS * PER_SHARD // BATCH * VISITS
    for _ in range(runs):
        for name, start in (("ours", ours), ("webdataset", webdatasets)):
            found[name].append(speed(start, folder, batches))
    print(f"  {'':12}{'first batch, s':>16}{'frames/s':>10}{'CPU ms a frame':>16}   medians of {runs} runs, {WORKERS} workers")
    for name, rows in found.items():
        first, rate, cpu = (median(column) for column in zip(*rows, strict=True))
        print(f"  {name:12}{first:16.2f}{rate:10.0f}{cpu:16.3f}")
    rates, cpus = ([a[n] / b[n] for a, b in zip(*found.values(), strict=True)] for n in (1, 2))
    print(f"  ours over webdataset: frames/s {median(rates):.2f} (at least {LEAST}), CPU time {median(cpus):.2f}")
    return median(rates)


def memory(folder: Path) -> float:
    """Memory of the workers in each visit of the data after the first; returns that in the last over that in the second."""
    read, sizes = ours(folder), []
    for _ in range(VISITS + 1):
        now = []
        for _ in range(SHARDS * PER_SHARD // BATCH):
            next(read)
            now.append(sum(own_bytes(p) for p in workers()) / 2**20)
        sizes.append(median(now))
    print(f"  memory of {WORKERS} workers by visit from the second on, MiB: " + ", ".join(f"{size:.0f}" for size in sizes[1:]))
    return sizes[-1] / sizes[1]


def own_bytes(process: psutil.Process) -> int:
    """Memory of a process without libraries and the batches in flight, which are in shared memory."""
    info = process.memory_info()
    return int(info.rss - info.shared)


def by_decord(data: bytes, start: int, frames: int) -> None:
    import decord

    video = decord.VideoReader(io.BytesIO(data), ctx=decord.cpu(0), num_threads=1)
    video.get_batch(range(start, start + frames)).asnumpy()


def decoders(folder: Path) -> None:
    """CPU time of one thread for whole clips and windows of 16 frames, with PyAV and, where it is there, decord."""
    try:
        import decord  # noqa: F401
    except ImportError:
        print("  decoders: decord is not installed")
        return
    print(f"  {'CPU ms, 1 thread':24}{'PyAV':>8}{'decord':>8}")
    for bucket in (SMALL, LARGE):
        data, (width, height) = clip(folder, bucket, 99).read_bytes(), bucket.size
        stored = Shape(bucket.frames, height, width)
        for what, start, frames in (("whole", 0, bucket.frames), ("frames 41 to 56", 41, 16), ("frames 0 to 15", 0, 16)):
            window = Window(start, frames, 0, 0, width, height, height, width)
            least = {"PyAV": 1e9, "decord": 1e9}
            for _ in range(5):
                for name in least:
                    began = time.process_time()
                    decode_video(data, stored, window) if name == "PyAV" else by_decord(data, start, frames)
                    least[name] = min(least[name], time.process_time() - began)
            print(f"  {f'{width}x{height} {what}':24}" + "".join(f"{s * 1000:8.0f}" for s in least.values()))


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--check", action="store_true", help=f"exit with 1 below {LEAST} or where memory grows")
    args = parser.parse_args()
    warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = shards(Path(name))
        ratio = compare(folder, args.runs)
        grown = memory(folder)
        decoders(Path(name))
    if args.check and (ratio < LEAST or grown > GROWTH):
        sys.exit(1)


if __name__ == "__main__":
    main()
