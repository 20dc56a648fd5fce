"""Whole jobs on made material: two cores against one, against what the nearest peer does, Ray against one process, memory.

The material is cut and scaled from the benchmark's videos with ffmpeg, and kept under build/ for the next time.
"""

import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import yaml

from bucketing.cut import EncodeConfig
from curation import storage
from jobs.config import rule_list
from tests.benchmarks.corpus import Video
from tests.benchmarks.processes import Spent, commands_cpu_s, ffmpeg, spend

BUILD = Path("build/bench")
PIECE_S = 10
STRIDE_S = 10
"""Length of the peer's clips: NeMo Curator's default fixed stride."""
FILM_FPS = 24
UNIT = 2
"""Sources a unit: so few that both cores have work to the end of a short job."""


def two_cores() -> list[int]:
    """The cores that jobs are held to."""
    return sorted(os.sched_getaffinity(0))[:2]


def pieces(videos: Sequence[Video], count: int) -> list[Path]:
    """`count` files of `PIECE_S` seconds, 720p H.264, cut from the videos in turn; a shorter video is repeated."""
    large = [v.path for v in videos if v.height >= 720] or [v.path for v in videos]
    BUILD.mkdir(parents=True, exist_ok=True)

    def make(number: int) -> Path:
        source, start_s = large[number % len(large)], number // len(large) * 1.5
        file = BUILD / f"piece-{number:03d}-{source.stem}.mp4"
        if not file.exists():
            new = file.with_name(f"_{file.name}")
            ffmpeg(
                *("-stream_loop", "-1", "-ss", f"{start_s:g}", "-i", source, "-t", str(PIECE_S), "-an"),
                *("-filter:v", "scale=1280:720:force_original_aspect_ratio=increase,crop=1280:720,setsar=1"),
                *("-c:v", "libx264", "-preset", "fast", "-crf", "20", "-threads", "1", "-pix_fmt", "yuv420p", new),
            )
            new.rename(file)
        return file

    with ThreadPoolExecutor(len(two_cores())) as pool:
        return list(pool.map(make, range(count)))


def tiny(videos: Sequence[Video]) -> list[Path]:
    """The smallest files that a job takes to its end, for each core a unit and a length: a job over them is all start-up.

    No two are equal, and none is dropped: every pool has to start for them as it has for a long job.
    """
    files = [BUILD / f"tiny-{number}.mp4" for number in range(UNIT * len(two_cores()))]
    for number, file in enumerate(files):
        if not file.exists():
            cut = ("-ss", str(number / 2), "-t", ("6", "8.5")[number % 2], "-vf", "scale=456:256")
            ffmpeg("-i", pieces(videos, 1)[0], *cut, "-c:v", "libx264", "-preset", "ultrafast", file)
    return files


def film(videos: Sequence[Video], length_s: int) -> Path:
    """A 1080p film of two varied minutes, repeated by stream copy."""
    file, segment, listing = BUILD / f"film-{length_s}.mp4", BUILD / "film-segment.mp4", BUILD / "film-pieces.txt"
    if not segment.exists():
        listing.write_text("".join(f"file '{p.resolve()}'\n" for p in pieces(videos, 120 // PIECE_S)))
        ffmpeg(
            *("-f", "concat", "-safe", "0", "-i", listing, "-vf", f"scale=1920:1080,fps={FILM_FPS}"),
            *("-c:v", "libx264", "-preset", "veryfast", "-crf", "28", "-threads", "2", segment),
        )
    if not file.exists():
        ffmpeg("-stream_loop", str(length_s // 120), "-i", segment, "-t", str(length_s), "-c", "copy", file)
    return file


def without_text() -> Path:
    """The shipped list `everyday` without its rules over text."""
    tree = rule_list("everyday").model_dump(mode="json")
    for name in ("clip_rules", "image_rules"):
        tree[name] = [rule for rule in tree[name] if "text" not in rule]
    file = BUILD / "everyday_without_text.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def job(name: str, files: Sequence[Path], cores: Sequence[int], engine: str = "ray", verb: str = "run") -> tuple[Spent, Path]:
    """Run a job without text over `files` on `cores`; what it cost, and its run folder."""
    folder, listing = BUILD / "runs" / name, BUILD / f"{name}.txt"
    shutil.rmtree(folder, ignore_errors=True)
    listing.write_text("".join(f"{file.resolve()}\n" for file in files))
    settings = [
        "text.enabled=false",
        f"subsets={without_text()}",
        f"units.size={UNIT}",
        f"engine.cpu.max_actors={len(cores)}",
    ]
    command = [str(Path(sys.executable).with_name("reelset")), verb, "--input", str(listing), "--output", str(folder)]
    command += ["--engine", engine, *(word for s in settings for word in ("--set", s))]
    return spend(command, cores), folder


def kept_share(run: Path) -> tuple[int, int]:
    """Clips kept, of how many."""
    kept = storage.read_table(str(run / "selection" / "everyday"), columns=["kept"])["kept"]
    return int(pc.sum(kept).as_py() or 0), len(kept)


@dataclass(frozen=True)
class Peer:
    """The two passes of a fixed-stride pipeline: wall seconds of each, CPU seconds of both."""

    transcode_s: float
    motion_s: float
    cpu_s: float

    @property
    def wall_s(self) -> float:
        return self.transcode_s + self.motion_s


def peer(files: Sequence[Path], cores: Sequence[int], size: tuple[int, int] | None) -> Peer:
    """What the nearest peer does: every `STRIDE_S` seconds a clip, all encoded, then each clip's codec motion vectors.

    ffmpeg throughout, one thread a process, a process a core; preset, CRF and keyframe distance as ours. `size` is that
    of the clips (width, height); None keeps the source's. The vectors are exported by the decoder, and not even read.
    """
    folder, encode = BUILD / "peer", EncodeConfig()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shape = f"scale={size[0]}:{size[1]}:flags={encode.resize}" if size else "null"

    def transcode(file: Path) -> None:
        ffmpeg(
            *("-i", file, "-an", "-filter:v", shape, "-c:v", "libx264", "-threads", "1"),
            *("-preset", encode.preset, "-crf", str(encode.crf), "-g", str(encode.keyint)),
            *("-f", "segment", "-segment_time", str(STRIDE_S), "-reset_timestamps", "1", folder / f"{file.stem}-%03d.mp4"),
        )

    def motion(clip: Path) -> None:
        ffmpeg("-flags2", "+export_mvs", "-i", clip, "-f", "null", "-")

    with ThreadPoolExecutor(len(cores)) as pool:
        began, used = time.perf_counter(), commands_cpu_s()
        list(pool.map(transcode, files))
        between = time.perf_counter()
        list(pool.map(motion, sorted(folder.glob("*.mp4"))))
        return Peer(between - began, time.perf_counter() - between, commands_cpu_s() - used)
