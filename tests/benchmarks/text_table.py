"""What the text filter misses and mistakes: overlaid lines and signs of known truth over real frames.

    python -m tests.benchmarks.text_table VIDEOS [--each 20]

Lines are laid over three frames of the first shot of every video that the folder's truth.csv labels as without text. A
line is Latin, strong, outlined, in the lower third and shown throughout, but for the one thing that a table varies.
"""

import argparse
import csv
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from filters.text import Reader, TextConfig, score
from tests.filters.text_cases import (
    CAMERAS,
    CONTRASTS,
    LINES,
    PLACES,
    SEEN,
    SHOWN,
    STYLES,
    Line,
    Rgb,
    fonts,
    jpegs,
    overlay,
    sign,
)

HEIGHTS = (0.02, 0.03, 0.05, 0.08)
FACTORS: dict[str, Sequence[str]] = {
    "script": [*LINES],
    "contrast": [*CONTRASTS],
    "style": STYLES,
    "place": [*PLACES],
    "shown": [*SHOWN],
}
LONGEST_S = 10.0
"""Of a real shot at most so much is taken as one clip."""
FLAT_LEVELS = 8
"""Pictures that vary less than this are no place to lay text over."""


def real_clips(folder: Path) -> dict[str, list[Rgb]]:
    """Three frames of the first shot of every video that is without text, at a sixth, a half and five sixths."""
    with (folder / "truth.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["text"] == "no" and not row["file"].startswith("derived_")]
    found = {row["file"]: _frames(folder / row["file"], row["cut_frames"]) for row in rows}
    return {name: frames for name, frames in found.items() if len(frames) == 3 and frames[1].std() > FLAT_LEVELS}


def _frames(path: Path, cut_frames: str) -> list[Rgb]:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = float(stream.average_rate or 25)
        end = int(LONGEST_S * rate)
        if cut_frames not in ("", "none"):
            end = min(end, int(cut_frames.split(";")[0]))
        elif stream.frames:
            end = min(end, stream.frames)
        wanted = {int(end * share / 6) for share in (1, 3, 5)} if end >= rate else set()
        frames: list[Rgb] = []
        try:
            for index, frame in enumerate(container.decode(stream)):
                if index in wanted:
                    frames.append(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))
                if len(frames) == len(wanted):
                    break
        except av.error.FFmpegError:
            return []
    return frames


def overlays(clips: Sequence[list[Rgb]], each: int, reader: Reader, rng: random.Random) -> None:
    """Print the share of missed lines: a table a factor, a row a value, a column a font height."""
    side = TextConfig().side_px
    for factor, values in FACTORS.items():
        print(f"| {factor} | " + " | ".join(f"{h:.0%}" for h in HEIGHTS) + " |\n|---" + "|---" * len(HEIGHTS) + "|")
        for value in values:
            cells = []
            for height in HEIGHTS:
                missed = 0
                for _ in range(each):
                    line = replace(Line("", height), **{factor: value})  # type: ignore[arg-type]
                    line = replace(line, words=rng.choice(LINES[line.script]), font=rng.choice(fonts(line.script)))
                    missed += score(jpegs(overlay(rng.choice(clips), line)), reader, side)["text_score"] < SEEN
                cells.append(f"{missed / each:.0%}")
            print(f"| {value} | " + " | ".join(cells) + " |", flush=True)
        print()


def signs(clips: Sequence[list[Rgb]], each: int, reader: Reader, rng: random.Random) -> str:
    """Signs of the scene under every camera: how many are taken for an overlay, and how many are found as scene text."""
    side = TextConfig().side_px
    rows = [f"{'camera':18}{'as overlay':>12}{'as scene':>10}{'signs':>7}"]
    for name, camera in CAMERAS.items():
        found = []
        for _ in range(each):
            words, height = (
                rng.choice(("BAKERY", "Grand Hotel", "EXIT 24", "Open daily", "coffee & tea")),
                rng.choice((0.04, 0.06, 0.09)),
            )
            place = sign(rng.choice(clips)[1], words, height, rng, rng.choice(fonts("latin")))
            found.append(score(jpegs(camera.views(place)), reader, side))
        overlays = np.mean([f["text_score"] >= SEEN for f in found])
        scenes = np.mean([f["text_scene_score"] >= SEEN for f in found])
        rows.append(f"{name:18}{overlays:12.0%}{scenes:10.0%}{each:7}")
    return "\n".join(rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path)
    parser.add_argument("--each", type=int, default=20, help="lines of each kind and height")
    args = parser.parse_args()
    lacking = [script for script in LINES if not fonts(script)]
    if lacking:
        raise SystemExit(f"no font installed for {', '.join(lacking)}")
    rng, reader = random.Random(0), Reader(TextConfig())
    clips = list(real_clips(args.videos).values())
    print(f"{len(clips)} clips, {args.each} lines a cell; missed:\n")
    overlays(clips, args.each, reader, rng)
    print(signs(clips, args.each, reader, rng))
    plain = [score(jpegs(frames), reader, TextConfig().side_px)["text_score"] >= SEEN for frames in clips]
    print(f"\nclips without a line said to carry one: {sum(plain)} of {len(plain)}")


if __name__ == "__main__":
    main()
