"""CPU time of analysis against bare decoding at one thread, and the agreement of `motion_vmaf` with FFmpeg's own filter.

    REELSET_VIDEOS=folder python tests/benchmarks/analysis_cost.py [FILE ...]

Everything is measured in one run on the same files, and ratios are printed: absolute figures drift with the machine.
"""

import os
import platform
import sys
import time
from pathlib import Path

import av
from av.filter import Graph

from curation.media import MediaLimits, probe
from curation.sources import VIDEO
from filters.measure import MeasureConfig, measure
from filters.motion import motion_vmaf

LIMITS = MediaLimits()
FILES = 12


def bare_decode_s(path: Path) -> float:
    """CPU seconds of decoding every frame with PyAV, one thread, nothing else."""
    start = time.process_time()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for _ in container.decode(stream):
            pass
    return time.process_time() - start


def analysis(path: Path) -> tuple[float, float | None, int]:
    """CPU seconds of `measure`, the whole file's `motion_vmaf`, and the frame count."""
    row = {"source_id": "0" * 16, "path": path.name} | probe(str(path), LIMITS)
    start = time.process_time()
    found = measure(str(path), row, MeasureConfig(), LIMITS)
    cpu_s = time.process_time() - start
    assert found.series is not None
    pairs = found.series["motion_vmaf"]
    return cpu_s, motion_vmaf(pairs, 0, len(pairs)), len(pairs)


def ffmpeg_vmaf_motion(path: Path) -> float:
    """The mean of FFmpeg's `vmafmotion` over a whole file."""
    scores = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = Graph()
        source = graph.add_buffer(template=stream)
        motion, sink = graph.add("vmafmotion"), graph.add("buffersink")
        source.link_to(motion)
        motion.link_to(sink)
        graph.configure()
        for frame in container.decode(stream):
            graph.push(frame)
            scores.append(float(graph.pull().metadata["lavfi.vmafmotion.score"]))
    return sum(scores) / len(scores)


def main() -> None:
    """Print a line a file and the ratio of sums."""
    given = [Path(p) for p in sys.argv[1:]]
    folder = Path(os.environ.get("REELSET_VIDEOS", "../shared/videos"))
    files = (
        given or sorted(p for p in folder.glob("*") if p.suffix in VIDEO and p.stat().st_size > 700_000)[:: max(1, 60 // FILES)]
    )
    if not files:
        sys.exit(f"no videos in {folder}: set REELSET_VIDEOS")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{'file':32} {'frames':>6} {'decode':>8} {'analysis':>8} {'ratio':>6} {'vmaf':>8} {'ffmpeg':>8} {'apart':>7}")
    decode_sum = analysis_sum = worst = 0.0
    for path in files[:FILES]:
        decode_s = bare_decode_s(path)
        analysis_s, ours, frames = analysis(path)
        theirs = ffmpeg_vmaf_motion(path)
        apart = abs((ours or 0.0) - theirs) / max(theirs, 0.05)
        decode_sum, analysis_sum, worst = decode_sum + decode_s, analysis_sum + analysis_s, max(worst, apart)
        times = f"{frames:6} {decode_s:8.2f} {analysis_s:8.2f} {analysis_s / decode_s:6.2f}"
        print(f"{path.name:32.32} {times} {ours or 0.0:8.3f} {theirs:8.3f} {apart:7.2%}")
    print(f"analysis over bare decoding, ratio of sums: {analysis_sum / decode_sum:.2f}")
    print(f"motion_vmaf against FFmpeg's vmafmotion, worst relative difference: {worst:.2%}")


if __name__ == "__main__":
    main()
