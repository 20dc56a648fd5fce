"""CPU time of the text filter per 10 s of clip, on one thread.

    python -m tests.benchmarks.text_cost [FOLDER] [--min-s 4] [--check]

Every readable video of the folder (REELSET_VIDEOS, or ../shared/videos) is cut into clips as the shipped default does;
the text filter then reads their kept frames as in a job. `--check` exits with 1 above the limit.
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from curation.clips import ClipConfig
from curation.errors import SourceError
from curation.media import MediaLimits, probe
from curation.stage import Source
from filters.measure import MeasureConfig, measure
from filters.text import ReadText, TextConfig
from tests.benchmarks.corpus import SUFFIXES, machine

LIMIT_S = 1.5
"""CPU seconds per 10 s of clip."""
LENGTHS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Edges of the classes of clip length that the table shows."""


def sources(folder: Path, config: MeasureConfig) -> Iterator[Source]:
    """The folder's videos with their clips and kept frames; what cannot be decoded is passed over."""
    limits = MediaLimits()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES):
        try:
            row = {"source_id": "0" * 16, "path": path.name, "status": "ok"} | probe(str(path), limits)
            found = measure(str(path), row, config, limits)
        except SourceError:
            continue
        yield Source("unit", str(path), row, clips=found.clips, frames=found.frames)


def main() -> None:
    """Print CPU seconds per 10 s, by length of clip and over all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(os.environ.get("REELSET_VIDEOS", "../shared/videos")))
    parser.add_argument("--min-s", type=float, default=ClipConfig().min_s, help="clips.min_s")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 above {LIMIT_S} CPU-s per 10 s")
    args = parser.parse_args()
    stage = ReadText(TextConfig())
    stage.open()
    spent: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for source in sources(args.folder, MeasureConfig(clips=ClipConfig(min_s=args.min_s))):
        clips, frames = source.clips, source.frames
        for clip in clips:  # one at a time, so that each has a time of its own
            source.clips, source.frames = [clip], [f for f in frames if f["clip_id"] == clip["clip_id"]]
            source.costs.clear()
            next(stage.rows(iter([source])))
            spent[max(edge for edge in (0.0, *LENGTHS_S) if edge <= clip["duration_s"])].append(
                (clip["duration_s"], source.costs["text"].cpu_s)
            )
    print(machine())
    print(f"{'clips of':>10}{'clips':>8}{'seconds':>9}{'CPU-s a clip':>14}{'CPU-s per 10 s':>16}")
    for edge, rows in sorted(spent.items()):
        print(f"{f'{edge:g} s up':>10}" + _line(rows))
    every = [row for rows in spent.values() for row in rows]
    print(f"{'all':>10}" + _line(every) + f"   limit {LIMIT_S}")
    if args.check and _per_10_s(every) > LIMIT_S:
        sys.exit(1)


def _line(rows: list[tuple[float, float]]) -> str:
    seconds, cpu = np.array(rows).sum(axis=0)
    return f"{len(rows):8}{seconds:9.0f}{cpu / len(rows):14.2f}{_per_10_s(rows):16.2f}"


def _per_10_s(rows: list[tuple[float, float]]) -> float:
    seconds, cpu = np.array(rows).sum(axis=0)
    return float(cpu / seconds * 10)


if __name__ == "__main__":
    main()
