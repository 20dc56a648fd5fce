"""Everything but pixels at scale: a simulated corpus through listing, planning, select, plan, report and status.

    python -m tests.benchmarks.million [--sources 10000 100000 1000000] [--unit 64] [--folder build/million]
    python -m tests.benchmarks.million --requests      what each step asks of an object store, counted

Sources live on a file system that only this file knows: it has sizes and no bytes to speak of. A stage that decodes
nothing fills their rows with draws that look like a mixed web corpus, through the real `analyze` code; every step after
that is the real one. Each runs in a process of its own, which says its wall and CPU time and its largest resident size.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from curation import run_folder, storage
from curation.errors import SourceError
from curation.sources import list_input, plan_units, source_id
from curation.stage import Source, Stage
from curation.tables import PRODUCED, SELECTION
from jobs.config import Config, resolve, shipped_lists

CLIPS_A_SOURCE = (1, 2, 3, 4)
CLIP_WEIGHTS = (40, 28, 20, 12)
SHAPES = ((1920, 1080), (1280, 720), (1080, 1920), (854, 480), (640, 360), (3840, 2160), (1440, 1080), (400, 224))
SHAPE_WEIGHTS = (38, 24, 12, 9, 6, 5, 4, 2)
ERROR_SHARE, SHORT_SHARE, IMAGE_SHARE, COPY_SHARE = 0.02, 0.05, 0.08, 0.001
COPY_BYTES = 200_000
SYNTHETIC, COUNTED = "synthetic", "counted"


class Synthetic(fsspec.AbstractFileSystem):
    """Files with a size drawn from their name, and bytes that are drawn when read. Copies have equal bytes."""

    protocol = SYNTHETIC

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "size": size_of(self._strip_protocol(path)), "type": "file"}

    def _open(self, path: str, mode: str = "rb", **_: Any) -> io.BytesIO:
        name = self._strip_protocol(path)
        if is_copy(name):
            return io.BytesIO(b"c" * size_of(name))
        return io.BytesIO(name.encode().ljust(256, b"\0") + bytes(min(size_of(name), 1 << 20)))


def is_copy(path: str) -> bool:
    """Whether a file has the bytes of many others."""
    return random.Random(f"copy {path}").random() < COPY_SHARE


def size_of(path: str) -> int:
    """Bytes of a file: 1 to 100 MB, copies apart."""
    draw = random.Random(f"size {path}").random()
    return COPY_BYTES + int(1000 * draw) if is_copy(path) else int(10 ** (6 + 2 * draw))


class Counted(DirFileSystem):
    """A folder of this disk that counts what an object store would be asked."""

    protocol = COUNTED
    calls: ClassVar[Counter[str]] = Counter()

    def __init__(self, **_: Any) -> None:
        super().__init__(path="/", fs=LocalFileSystem(auto_mkdir=True))

    def info(self, path: str, **more: Any) -> Any:
        self.calls["HEAD"] += 1
        return super().info(path, **more)

    def exists(self, path: str, **more: Any) -> Any:
        self.calls["HEAD"] += 1
        return super().exists(path, **more)

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        found = super().ls(path, detail=detail, **more)
        self.calls["LIST"] += 1 + len(found) // 1000
        return found

    def glob(self, path: str, **more: Any) -> Any:
        found = super().glob(path, **more)
        self.calls["LIST"] += 1 + len(found) // 1000
        return found

    def find(self, path: str, **more: Any) -> Any:
        found = super().find(path, **more)
        self.calls["LIST"] += 1 + len(found) // 1000
        return found

    def open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        self.calls["PUT" if "w" in mode else "GET"] += 1
        return super().open(path, mode, **more)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> Any:
        self.calls["GET"] += 1
        return super().cat_file(path, start, end, **more)

    def put_file(self, lpath: str, rpath: str, **more: Any) -> None:
        self.calls["PUT"] += 1
        super().put_file(lpath, rpath, **more)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        self.calls["PUT"] += 1
        super().pipe_file(path, value, mode=mode, **more)

    def rm(self, path: str, *more: Any, **other: Any) -> None:
        self.calls["DELETE"] += 1
        super().rm(path, *more, **other)


fsspec.register_implementation(SYNTHETIC, Synthetic, clobber=True)
fsspec.register_implementation(COUNTED, Counted, clobber=True)


class NoDecode(Stage):
    """Stands for *probe*, *measure* and the scorers: looks at nothing, and fills a source's row and clips with draws."""

    name = "no_decode"

    def one(self, source: Source) -> None:
        draw = random.Random(source.row["path"])
        content = f"{draw.getrandbits(128):032x}"
        source.row |= {"content_id": content, "source_id": source_id(source.row["path"], source.row["bytes"], content)}
        if draw.random() < ERROR_SHARE:
            raise SourceError("decode_failed", "drawn")
        width, height = draw.choices(SHAPES, SHAPE_WEIGHTS)[0]
        source.row |= {"width": width, "height": height, "rotation": 0, "pixel_aspect": 1.0}
        source.row |= {"interlaced": draw.random() < 0.02, "hdr": draw.random() < 0.01, "decode_errors": 0}
        if source.row["kind"] == "image":
            source.row |= {"container": "image", "frames": 1}
            return self.clips(source, draw, [(0.0, 0.0)], 0.0)
        fps = draw.choice((23.976, 24.0, 25.0, 29.97, 30.0, 60.0))
        seconds = draw.uniform(1, 4) if draw.random() < SHORT_SHARE else 4 + draw.expovariate(1 / 20)
        source.row |= {"container": "mp4", "video_codec": draw.choice(("h264", "hevc", "vp9", "av1")), "fps": fps}
        source.row |= {"duration_s": seconds, "frames": int(seconds * fps), "cut_frames": [], "cut_times_s": [], "gradual": []}
        if seconds < 4:
            source.skip = True
            source.row |= {"status": "rejected", "reason": "rule:duration_s >= 4"}
            return None
        count = min(draw.choices(CLIPS_A_SOURCE, CLIP_WEIGHTS)[0], int(seconds // 4))
        length = min(seconds / count, 16.0)
        return self.clips(source, draw, [(i * length, (i + 1) * length) for i in range(count)], fps)

    def clips(self, source: Source, draw: random.Random, spans: Sequence[tuple[float, float]], fps: float) -> None:
        """Give the source clips with these spans (s)."""
        row = source.row
        for start, end in spans:
            first, last = int(start * fps), max(int(start * fps) + 1, int(end * fps))
            clip: dict[str, Any] = {k: row[k] for k in ("source_id", "path", "kind", "width", "height")}
            clip |= {"clip_id": f"{row['source_id']}_{first:08d}_{last:08d}", "status": "ok", "fps": fps or None}
            clip |= {"start_s": start, "end_s": end, "start_frame": first, "end_frame": last, "frames": last - first}
            clip |= {"duration_s": end - start} | still_scores(draw, row["height"])
            if fps:
                clip |= moving_scores(draw)
            source.clips.append(clip)
            source.frames.append({"clip_id": clip["clip_id"], "source_id": row["source_id"], "frame": first, "jpeg": JPEG})


def still_scores(draw: random.Random, height: int) -> dict[str, float]:
    """Scores that an image has too."""
    bar = float(int(draw.uniform(0.02, 0.12) * height)) if draw.random() < 0.3 else 0.0
    text = draw.uniform(0.6, 1) if draw.random() < 0.35 else draw.uniform(0, 0.5)
    return {
        **{"border_top_px": bar, "border_bottom_px": bar, "border_left_px": 0.0, "border_right_px": 0.0},
        **{"border_frac": 2 * bar / height, "text_score": text, "text_scene_score": draw.random(), "text_area_frac": text / 9},
        **{"aesthetic": draw.gauss(4.8, 0.8), "quality_sharpness": draw.random(), "quality_exposure": draw.uniform(0.3, 1)},
        **{"quality_colorfulness": draw.random(), "quality_blockiness": draw.random()},
    }


def moving_scores(draw: random.Random) -> dict[str, float]:
    """Scores of video: a tenth stands still, a tenth shakes, a twentieth is a slideshow."""
    motion = draw.lognormvariate(0.3, 1.3)
    return {
        **{"motion_mv": motion, "motion_vmaf": motion * draw.uniform(0.8, 2.5)},
        "motion_static_frac": draw.uniform(0.9, 1) if draw.random() < 0.1 else draw.uniform(0, 0.7),
        "jitter_shots_per_s": draw.expovariate(1 / 0.4),
        "slideshow_score": draw.uniform(0.5, 1) if draw.random() < 0.05 else draw.uniform(0, 0.3),
    }


def _jpeg() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (64, 36), (90, 120, 60)).save(out, "JPEG")
    return out.getvalue()


JPEG = _jpeg()


def make_config(unit: int) -> Config:
    """All shipped lists, in units of this many sources. One picture stands for all: nothing is embedded."""
    settings = {"subsets": shipped_lists(), "units": {"size": unit}, "engine": {"kind": "inline"}, "embeddings": []}
    return resolve(settings)


# The steps. Each takes the run folder and the config, and returns what to say of its result.


def start(run: str, config: Config) -> str:
    """What a process is before it does anything."""
    from jobs import pipeline

    return pipeline.__name__


def listing(run: str, config: Config) -> str:
    """List the input and plan its units."""
    found = list_input(manifest(run))
    return f"{len(found.sources)} sources in {len(plan_units(run, found, config.units))} units"


def make(run: str, config: Config) -> str:
    """*Analyze* as a job does it, with its log and its count of outcomes; a stage that decodes nothing stands for all."""
    from jobs import analyze, pipeline
    from jobs.events import log

    analyze.stages = lambda _: [NoDecode()]
    with log(run) as events:
        pipeline.follow(run, config, events, ("analyze",), [n[:-8] for n in storage.names(storage.join(run, "units"))])
    return f"{len(analyze.done_units(run))} units"


def again(run: str, config: Config) -> str:
    """What a second driver does before it works: list, plan, and look which units are done."""
    from jobs import analyze

    said = listing(run, config)
    return f"{said}, {len(analyze.done_units(run))} done"


def choose(name: str) -> Callable[[str, Config], str]:
    """A step that selects with a shipped list."""

    def step(run: str, config: Config) -> str:
        from jobs import selecting

        return selecting.select(run, config, next(s for s in config.subsets if s.name == name))

    return step


def half(run: str, config: Config) -> str:
    """Pretend that every other planned shard was written."""
    for subset in config.subsets:
        chosen = storage.read_table(storage.join(run, "selection", subset.name), SELECTION)
        shards = chosen.filter(chosen["shard"].is_valid()).sort_by([("shard", "ascending"), ("position", "ascending")])
        names = shards["shard"].unique().to_pylist()
        for shard in names[::2]:
            write_shard(run, subset.name, shard, shards.filter(pc.equal(shards["shard"], shard)))
    return "every other shard"


def write_shard(run: str, subset: str, shard: str, samples: pa.Table) -> None:
    """The tables of one packed shard, without its tar."""
    from bucketing.shard_format import INDEX

    keys = samples["clip_id"].to_pylist()
    fixed = {"status": "ok", "fps": 24.0, "frames": 128, "offset": 512, "bytes": 1_000_000, "sha256": "0" * 64}
    said = [{"clip_id": key, "shard": shard, "bucket": shard.split("/")[1], **fixed} for key in keys]
    index = [{"key": key, "member": f"{key}.mp4", "offset": 512, "size": 1_000_000, "frames": 128} for key in keys]
    produced = storage.join(run, "produced", subset, f"{shard.replace('/', '--')}.parquet")
    storage.write_table(produced, storage.rows_table(said, PRODUCED))
    storage.write_table(storage.join(run, "shards", subset, f"{shard}.parquet"), storage.rows_table(index, INDEX))


def missing(run: str, config: Config) -> str:
    """What *produce* still has to do."""
    from jobs import produce

    plan = produce.missing(run, config)
    samples = sum(len(shard["samples"]) for shard in plan.shards)
    return f"{len(plan.cuts)} units to cut, {len(plan.shards)} shards to pack, {samples} samples"


def status(run: str, config: Config) -> str:
    """`reelset status`."""
    from rich.console import Console

    from jobs.status import status as shown

    with Path(os.devnull).open("w") as nowhere:
        Console(file=nowhere).print(shown(run))
    return ""


def report(run: str, config: Config) -> str:
    """`reelset report`."""
    from jobs.report import write_report

    return f"{storage.size(write_report(run)) / 2**20:.1f} MiB"


def outcome(run: str, config: Config) -> str:
    """The count of sources at a job's end."""
    from jobs import pipeline
    from jobs.events import Events

    return f"exit {pipeline.outcome(run, config, Events(run))}"


SELECTS = {f"select {name}": choose(name) for name in shipped_lists()}
STEPS: dict[str, Callable[[str, Config], str]] = {
    "start": start,
    "list and plan": listing,
    "analyze": make,
    "plan again": again,
    **SELECTS,
    "half": half,
    "missing": missing,
    "outcome": outcome,
    "status": status,
    "report": report,
}


def manifest(run: str) -> str:
    """Where a run's input stands: beside it."""
    return f"{run.removeprefix(f'{COUNTED}://')}.txt"


def set_up(folder: Path, sources: int, unit: int) -> str:
    """The manifest and the front page of a run, where they are not there yet."""
    run = folder / f"{sources}-{unit}"
    if not run.exists():
        run.mkdir(parents=True)
        with Path(manifest(str(run))).open("w") as out:
            for n in range(sources):
                kind = "jpg" if random.Random(n).random() < IMAGE_SHARE else "mp4"
                out.write(f"{SYNTHETIC}://corpus/{n * 7919 % 1000:03d}/{n:08d}.{kind}\n")
        config = make_config(unit)
        run_folder.write(str(run), {"input": manifest(str(run)), **config.model_dump(mode="json")}, config.decides())
    return str(run)


def measured(name: str, run: str, unit: int) -> dict[str, Any]:
    """Run one step here and say what it took."""
    config = make_config(unit)
    wall = time.perf_counter()
    said = STEPS[name](run, config)
    page = Path("/proc/self/status").read_text()
    peak = int(page.split("VmHWM:")[1].split()[0]) / 1024
    used = os.times()
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": used.user + used.system,
        "peak_mb": peak,
        "said": said,
        "calls": dict(Counted.calls),
    }


def apart(name: str, run: str, unit: int) -> dict[str, Any]:
    """Run one step in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.million", "--step", name, "--run", run, "--unit", str(unit)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def files(run: str) -> str:
    """Count and size of each table's files."""
    lines = []
    for table in ("units", "sources", "clips", "series", "frames", "costs", "selection", "produced", "shards"):
        sizes = [Path(url).stat().st_size for url in storage.walk(storage.join(run, table), ".parquet")]
        if sizes:
            mean = sum(sizes) / len(sizes) / 1024
            lines.append(f"  {table:10} {len(sizes):8,} files, mean {mean:8.1f} KiB, all {sum(sizes) / 2**20:9.1f} MiB")
    return "\n".join(lines)


def table(results: dict[int, dict[str, dict[str, Any]]]) -> str:
    """A line a step: CPU seconds, wall seconds and peak MiB at every size, and the growth of memory over the last tenfold."""
    sizes = sorted(results)
    heads = "".join(f"{f'{n:,}':>30}" for n in sizes)
    lines = [
        f"{'step':22}{heads}",
        f"{'':22}" + f"{'cpu s':>10}{'wall s':>10}{'peak MiB':>10}" * len(sizes) + f"{'B/source':>10}",
    ]
    for step in results[sizes[-1]]:
        cells = [results[n][step] for n in sizes]
        shown = "".join(f"{c['cpu_s']:10.1f}{c['wall_s']:10.1f}{c['peak_mb']:10.0f}" for c in cells)
        more = ""
        if len(sizes) > 1:
            more = f"{(cells[-1]['peak_mb'] - cells[-2]['peak_mb']) * 2**20 / (sizes[-1] - sizes[-2]):10.0f}"
        lines.append(f"{step:22}{shown}{more}   {cells[-1]['said']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--unit", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path("build/million"))
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), help="only these, on a folder that has the others")
    parser.add_argument("--requests", action="store_true", help="through a file system that counts requests")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(measured(given.step, given.run, given.unit)))
        return
    results: dict[int, dict[str, dict[str, Any]]] = {}
    for sources in given.sources:
        run = set_up(given.folder.resolve(), sources, given.unit)
        place = f"{COUNTED}://{run}" if given.requests else run
        results[sources] = {}
        for name in given.steps or STEPS:
            results[sources][name] = found = apart(name, place, given.unit)
            calls = ", ".join(f"{n} {verb}" for verb, n in sorted(found["calls"].items()))
            print(
                f"{sources:9,} {name:22} cpu {found['cpu_s']:8.1f} s  wall {found['wall_s']:8.1f} s  "
                f"peak {found['peak_mb']:7.0f} MiB  {found['said']}  {calls}",
                flush=True,
            )
        print(files(run), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
