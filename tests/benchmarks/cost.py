"""CPU time of analysis on one thread: against bare decoding, and against the tools that measure one thing each."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
from av.filter import Graph

from curation.media import MediaLimits, probe
from filters.measure import MeasureConfig, measure
from tests.benchmarks.corpus import HEIGHTS, Video
from tests.benchmarks.processes import commands_cpu_s, ffmpeg

REPEATS = 3
"""The least of so many times counts: a neighbour on the machine only ever adds."""
LIMITS = MediaLimits()


def bare_decode(path: Path) -> None:
    """Decode every frame with PyAV on one thread."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for _ in container.decode(stream):
            pass


def analysis(path: Path) -> None:
    """All measures of the one decode: everything but text, faces and aesthetics."""
    row = {"source_id": "0" * 16, "path": path.name} | probe(str(path), LIMITS)
    measure(str(path), row, MeasureConfig(), LIMITS)


def content_detector(path: Path) -> None:
    """PySceneDetect as shipped."""
    from scenedetect import ContentDetector, detect

    detect(str(path), ContentDetector())


def vmaf_motion(path: Path) -> None:
    """FFmpeg's filter vmafmotion with its own decode, one thread. PyAV's build takes a third less than Debian's ffmpeg."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        graph = Graph()
        graph.threads = 1
        graph.link_nodes(graph.add_buffer(template=stream), graph.add("vmafmotion"), graph.add("buffersink")).configure()
        for frame in container.decode(stream):
            graph.push(frame)
            graph.pull()


def crop_detect(path: Path) -> None:
    """FFmpeg's filter cropdetect with its own decode, one thread; PyAV is built without it."""
    ffmpeg("-i", path, "-an", "-filter:v", "cropdetect", "-f", "null", "-")


TOOLS = (content_detector, vmaf_motion, crop_detect)


def cpu_s(function: Callable[[Path], None], path: Path) -> float:
    """CPU seconds of this process, its threads and the commands it ran."""
    began = time.process_time() + commands_cpu_s()
    function(path)
    return time.process_time() + commands_cpu_s() - began


def measure_costs(videos: Sequence[Video]) -> dict[str, dict[int, float]]:
    """CPU seconds by function and height, summed over the videos; each is the least of `REPEATS`, taken in turn."""
    functions = (bare_decode, analysis, *TOOLS)
    for function in functions:
        function(videos[0].path)  # imports and first calls
    total: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for video in videos:
        seconds = np.array([[cpu_s(f, video.path) for f in functions] for _ in range(REPEATS)])
        for function, least in zip(functions, seconds.min(axis=0), strict=True):
            total[function.__name__][video.height] += float(least)
    return total


def say_costs(total: dict[str, dict[int, float]]) -> None:
    """Print the sums by height."""
    heights = [h for h in HEIGHTS if h in total["analysis"]]
    print(f"  {'CPU seconds':20}" + "".join(f"{f'{h}p':>9}" for h in heights) + f"{'all':>9}")
    for name, by_height in total.items():
        row = [by_height[h] for h in heights]
        print(f"  {name:20}" + "".join(f"{s:9.2f}" for s in (*row, sum(row))))
    ratios = [total["analysis"][h] / total["bare_decode"][h] for h in heights]
    print(f"  {'analysis over decode':20}" + "".join(f"{r:9.2f}" for r in ratios))
