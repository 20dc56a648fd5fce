"""Where the time of analysis goes: milliseconds of CPU a frame of each component, at 480p, 720p and 1080p.

    python -m tests.benchmarks.time_profile [FOLDER]

The real `measure` runs on one thread over the benchmark's videos, with a clock around each component, so that caches
are as warm as they are in a job. A component's time is its own: what another component takes inside it is left out.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from curation import media
from curation.media import MediaLimits
from filters import border, measure, meter, motion, shots
from filters.frames import Spill
from filters.measure import MeasureConfig
from tests.benchmarks.corpus import HEIGHTS, Video, machine, videos

PARTS: dict[str, list[tuple[Any, str]]] = {
    "planes and shrinking": [(meter, "planes"), (meter, "small")],
    "HSV of the small picture": [(shots, "hsv")],
    "cut score": [(shots, "content_score")],
    "luma motion (vmaf)": [(motion.LumaMotion, "push")],
    "flow": [(motion.Flow, "push")],
    "visible change": [(motion.Change, "push")],
    "thumbnails": [(shots.Pictures, "push"), (shots.Pictures, "finish")],
    "bars": [(border, "look")],
    "quality": [(meter, "quality")],
    "kept picture": [(meter, "kept_picture")],
    "JPEG": [(Spill, "add")],
    "rest of a frame": [(meter.Meter, "push"), (meter.Meter, "_measure_waiting")],
    "shots, clips, scores": [(measure, "_conclude")],
}
"""Label -> the functions that make it up, where their callers look them up."""
DECODING = "decode"


@dataclass
class Clock:
    """CPU seconds by label; a timed call inside another is taken out of the outer one."""

    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    inner: list[float] = field(default_factory=lambda: [0.0])

    def around(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self.inner.append(0.0)
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                took = time.thread_time() - began
                self.spent[label] += took - self.inner.pop()
                self.inner[-1] += took

        return timed


@contextmanager
def clocked() -> Iterator[Clock]:
    """A clock around every part of `measure` while the block runs."""
    clock = Clock()
    with ExitStack() as patches:
        for label, places in PARTS.items():
            for owner, name in places:
                patches.enter_context(patch.object(owner, name, clock.around(label, getattr(owner, name))))
        yield clock


def profile(video: Video) -> tuple[dict[str, float], int]:
    """CPU seconds of each part over one video, and its frames."""
    limits = MediaLimits()
    row = {"source_id": "0" * 16, "path": video.path.name} | media.probe(str(video.path), limits)
    with clocked() as clock:
        began = time.thread_time()
        found = measure.measure(str(video.path), row, MeasureConfig(), limits)
        total = time.thread_time() - began
    return {DECODING: total - sum(clock.spent.values()), **clock.spent}, found.row_updates["frames"]


def main() -> None:
    """Print a column of milliseconds a frame for each height."""
    folder, chosen = videos(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(machine())
    spent: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    frames: dict[int, int] = defaultdict(int)
    profile(chosen[0])  # imports and first calls
    for video in chosen:
        parts, count = profile(video)
        frames[video.height] += count
        for label, seconds in parts.items():
            spent[label][video.height] += seconds
    heights = [h for h in HEIGHTS if frames[h]]
    print(f"{len(chosen)} files of {folder}; ms of CPU a frame, one thread")
    print(f"{'':26}" + "".join(f"{f'{h}p':>9}" for h in heights))
    rows = [(label, [spent[label][h] / frames[h] * 1000 for h in heights]) for label in (DECODING, *PARTS)]
    analysis = [sum(column) for column in zip(*(values for _, values in rows), strict=True)]
    for label, values in rows:
        print(f"{label:26}" + "".join(f"{v:9.3f}" for v in values))
    print(f"{'sum':26}" + "".join(f"{v:9.3f}" for v in analysis))
    print(f"{'sum over decode':26}" + "".join(f"{v / d:9.2f}" for v, d in zip(analysis, rows[0][1], strict=True)))


if __name__ == "__main__":
    main()
