"""How much overlaid text the text filter misses, by size, script, contrast, place, duration and style.

    python -m tests.benchmarks.text_sizes RUN [--each 30]

Takes the kept frames of a run's clips that carry no overlaid text, lays a line of known truth over them in many ways,
and scores them as the job does. Also says how often frames without any line are said to carry one. Scripts whose fonts
are not installed (`fc-match`) are left out and named.
"""

import argparse
import io
import random
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from filters.text import Reader, TextConfig, score
from jobs.inspect import connect, rows

SEEN = 0.6
"""The score from which on a clip counts as carrying text: the shipped lists' threshold."""
LINES = {
    "latin": ("en", ["breaking news at nine", "Watch until the end", "@kitchen.stories", "CHAPTER TWO"]),
    "cyrillic": ("ru", ["последние новости", "Смотрите до конца", "ГЛАВА ВТОРАЯ"]),
    "greek": ("el", ["τελευταία νέα", "Δείτε μέχρι το τέλος", "ΚΕΦΑΛΑΙΟ ΔΥΟ"]),
    "chinese": ("zh", ["今晚九点新闻", "请看到最后", "第二章开始"]),
}
READ = ("latin", "chinese")
"""Scripts that the bundled recogniser reads; the others are drawn at one size only, for the table of scripts."""
SIZES = (0.02, 0.03, 0.04, 0.05, 0.07, 0.10)
"""Height of capital letters' line (font size) as a share of the frame's height."""
PLACES = {"lower third": (0.5, 0.85), "top": (0.5, 0.1), "corner": (0.18, 0.1), "middle": (0.5, 0.5)}
CONTRASTS = {"white on dark edge": 255, "light grey": 200, "half transparent": 128}
STYLES = ("plain", "outline", "box")
SHOWN = {"all kept frames": 3, "two of three": 2, "one of three": 1}


@dataclass(frozen=True)
class Case:
    """One way to lay a line over a clip."""

    size: float
    script: str
    contrast: str
    place: str
    style: str
    shown: str


def clips(run: str) -> list[list[bytes]]:
    """Kept frames of the run's clips without overlaid text, in order of time."""
    query = """SELECT f.clip_id, f.jpeg FROM frames f JOIN clips c USING (clip_id)
               WHERE c.text_score < 0.3 AND c.kind = 'video' ORDER BY f.clip_id, f.frame"""
    found: dict[str, list[bytes]] = defaultdict(list)
    with connect(run) as connection:
        for row in rows(connection, query):
            found[row["clip_id"]].append(row["jpeg"])
    return [frames for frames in found.values() if len(frames) == 3]


def scripts() -> tuple[list[str], list[str]]:
    """Scripts with a font on this machine, and those without."""
    have = [name for name, (language, _) in LINES.items() if _font_file(language)]
    return have, [name for name in LINES if name not in have]


@lru_cache
def _font_file(language: str) -> Path | None:
    found = subprocess.run(["fc-list", f":lang={language}:style=Bold", "file"], capture_output=True, text=True).stdout
    found += subprocess.run(["fc-list", f":lang={language}", "file"], capture_output=True, text=True).stdout
    paths = [Path(line.rstrip(": ")) for line in found.splitlines()]
    return next((p for p in paths if p.suffix in (".ttf", ".ttc", ".otf") and "Mono" not in p.name), None)


def lay(jpegs: list[bytes], case: Case, words: str) -> list[bytes]:
    """The frames with the line over as many of them as the case shows it."""
    shown = SHOWN[case.shown]
    return [_drawn(jpeg, case, words) if i < shown else jpeg for i, jpeg in enumerate(jpegs)]


def _drawn(jpeg: bytes, case: Case, words: str) -> bytes:
    picture = Image.open(io.BytesIO(jpeg)).convert("RGBA")
    width, height = picture.size
    font = ImageFont.truetype(str(_font_file(LINES[case.script][0])), max(6, round(case.size * height)))
    x, y = PLACES[case.place]
    layer = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(layer)
    level = CONTRASTS[case.contrast]
    alpha = 128 if case.contrast == "half transparent" else 255
    fill = (255, 255, 255, alpha) if level != 200 else (200, 200, 200, 255)
    box = draw.textbbox((x * width, y * height), words, font, anchor="mm")
    left = max(4.0, min(box[0], width - 4 - (box[2] - box[0])))
    at = (left + (box[2] - box[0]) / 2, y * height)
    if case.style == "box":
        box = draw.textbbox(at, words, font, anchor="mm")
        draw.rectangle((box[0] - 6, box[1] - 4, box[2] + 6, box[3] + 4), (0, 0, 0, 160))
    stroke = max(1, round(case.size * height / 16)) if case.style == "outline" else 0
    draw.text(at, words, fill, font, anchor="mm", stroke_width=stroke, stroke_fill=(0, 0, 0, alpha))
    out = io.BytesIO()
    Image.alpha_composite(picture, layer).convert("RGB").save(out, "JPEG", quality=90)
    return out.getvalue()


def main() -> None:
    """Print the false rate and a table of miss rates for every factor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--each", type=int, default=30, help="lines of each size and duration")
    args = parser.parse_args()
    config = TextConfig()
    reader = Reader(config)
    films = clips(args.run)
    have, without = scripts()
    print(f"{len(films)} clips; scripts: {', '.join(have)}; no font for: {', '.join(without) or 'none'}")
    draws = random.Random(0)
    missed: dict[tuple[str, str], list[bool]] = defaultdict(list)

    def try_line(size: float, script: str, shown: str, factors: Sequence[str]) -> None:
        place, contrast, style = draws.choice(list(PLACES)), draws.choice(list(CONTRASTS)), draws.choice(STYLES)
        case = Case(size, script, contrast, place, style, shown)
        words = draws.choice(LINES[script][1])
        seen = score(lay(draws.choice(films), case, words), reader, config.side_px)["text_score"] >= SEEN
        for factor in factors:
            missed[factor, str(getattr(case, factor))].append(not seen)

    for shown in SHOWN:
        for size in SIZES:
            for _ in range(args.each):
                try_line(size, draws.choice([s for s in READ if s in have]), shown, ("shown", "contrast", "place", "style"))
                missed[f"size, {shown}", f"{size:.0%}"].append(missed["shown", shown][-1])
    for script in have:
        for _ in range(2 * args.each):
            try_line(0.05, script, "all kept frames", ("script",))
    print(f"{'factor':24} {'value':20} {'lines':>5} {'missed':>7}")
    for (factor, value), outcomes in sorted(missed.items()):
        print(f"{factor:24} {value:20} {len(outcomes):5} {sum(outcomes) / len(outcomes):7.0%}")
    plain = [score(frames, reader, config.side_px)["text_score"] >= SEEN for frames in films]
    print(f"without a line: {sum(plain)} of {len(plain)} clips said to carry one")


if __name__ == "__main__":
    main()
