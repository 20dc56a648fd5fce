"""What camera motion costs, against bare decode: flow and fit inside the decode, and the label of a clip.

python -m tests.benchmarks.camera_cost VIDEO...
"""

import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from captioning.camera import Unlabelled, label, shipped
from curation.clips import ClipConfig
from curation.media import MediaLimits, probe
from curation.tables import SOURCES
from filters.measure import MeasureConfig, Measured, measure
from filters.motion import Flow
from tests.benchmarks.cost import bare_decode

ROUNDS = 2


def analysed(path: Path) -> Measured:
    """The whole one decode of a file."""
    row: dict[str, Any] = dict.fromkeys(SOURCES.names) | {"source_id": path.name, "path": path.name, "status": "ok"}
    row |= probe(str(path), MediaLimits())
    return measure(str(path), row, MeasureConfig(clips=ClipConfig(min_s=1)), MediaLimits())


def labels(found: Measured) -> int:
    """Label every clip; how many there are."""
    for clip in found.clips:
        try:
            label(found.series or {}, clip["start_frame"], clip["end_frame"], shipped(), 0.7)
        except Unlabelled:
            continue
    return len(found.clips)


def main(paths: list[Path]) -> None:
    """Least CPU seconds of `ROUNDS`, with and without the camera in turn, summed over the files."""
    total = dict.fromkeys(("decode", "without", "with", "label"), 0.0)
    clips = 0
    shipped()
    for path in paths:
        best = dict.fromkeys(total, float("inf"))
        for _ in range(ROUNDS):
            for name in total:
                began = time.process_time()
                if name == "decode":
                    bare_decode(path)
                elif name == "without":
                    with mock.patch.object(Flow, "camera_pair", return_value=None):
                        analysed(path)
                elif name == "with":
                    found = analysed(path)
                else:
                    count = labels(found)
                best[name] = min(best[name], time.process_time() - began)
        clips += count
        for name, seconds in best.items():
            total[name] += seconds
    decode = total["decode"]
    print(f"{len(paths)} files, {clips} clips: bare decode {decode:.2f} CPU-s")
    print(f"one decode without the camera {total['without'] / decode:.2f} of it, with {total['with'] / decode:.2f}")
    more = total["with"] - total["without"]
    print(f"camera {more / max(clips, 1):.4f} CPU-s a clip ({more / decode:.3f}), label {total['label'] / max(clips, 1):.4f}")


if __name__ == "__main__":
    main([Path(p) for p in sys.argv[1:]])
