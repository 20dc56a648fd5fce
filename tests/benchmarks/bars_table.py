"""Bars on self-made films: of every kind and width, and pictures that only look as if they had some.

    python -m tests.benchmarks.bars_table [--films N] [--seed FIRST] [--picture OUT.png]

Six frames of a moving shot, 640x360, through x264 at CRF 28, as `look` and `agree` see them in a job. The table has a line
a kind: films whose four sides are all right within 3 pixels, films where a bar was missed or is of another width, and films
where one was found on a side that has none. The picture shows the first film that is wrong, of each kind that has one.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from filters.border import Bars, agree, look
from tests.filters.planted import Scene
from tests.filters.synthetic import write

HEIGHT, WIDTH = 360, 640
FRAMES, FPS = 6, 2.0
WITHIN_PX = 3
WIDTHS = (4, 8, 12, 24, 48, 80, 140)
Rgb = NDArray[np.uint8]
Make = Callable[[list[Rgb], np.random.Generator], tuple[list[Rgb], Bars]]


def shot(seed: int, **style: float) -> list[Rgb]:
    """Frames of one moving shot, half a second apart."""
    frames = Scene(seed, speed=0.1, **style).render(FRAMES, FPS)  # type: ignore[arg-type]
    return [np.asarray(cv2.resize(f, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), np.uint8) for f in frames]


def inside(picture: Rgb, ground: Rgb, bars: Bars) -> Rgb:
    """The picture scaled into what the bars leave of the ground."""
    out = ground.copy()
    size = (WIDTH - bars.left - bars.right, HEIGHT - bars.top - bars.bottom)
    out[bars.top : HEIGHT - bars.bottom, bars.left : WIDTH - bars.right] = cv2.resize(
        picture, size, interpolation=cv2.INTER_AREA
    )
    return out


def draw_bars(rng: np.random.Generator, sides: str) -> Bars:
    """A width by chance on the sides asked for: `v`ertical pair, `h`orizontal pair, `vh` both, `one`."""
    high, wide = (min(int(rng.choice(WIDTHS)), limit) for limit in (HEIGHT // 4, WIDTH // 3))
    if sides == "one":
        return [Bars(top=max(16, high)), Bars(bottom=max(16, high)), Bars(left=max(24, wide)), Bars(right=max(24, wide))][
            rng.integers(4)
        ]
    return Bars(high * ("v" in sides), high * ("v" in sides), wide * ("h" in sides), wide * ("h" in sides))


def plain(sides: str, colour: Callable[[np.random.Generator], list[int]], dim: float = 1.0) -> Make:
    """Bars of one colour."""

    def make(frames: list[Rgb], rng: np.random.Generator) -> tuple[list[Rgb], Bars]:
        bars, ground = draw_bars(rng, sides), np.full((HEIGHT, WIDTH, 3), colour(rng), np.uint8)
        return [inside((f * dim).astype(np.uint8), ground, bars) for f in frames], bars

    return make


def blurred(frames: list[Rgb], rng: np.random.Generator) -> tuple[list[Rgb], Bars]:
    """An upright picture before an enlarged, blurred and darkened copy of itself."""
    wide = int(rng.integers(WIDTH // 8, WIDTH // 3))
    bars, light = Bars(left=wide, right=wide), float(rng.uniform(0.5, 1))
    out = []
    for frame in frames:
        picture = frame[:, wide : WIDTH - wide]
        grown = cv2.resize(picture, (WIDTH, round(HEIGHT * WIDTH / picture.shape[1])))
        top = (grown.shape[0] - HEIGHT) // 2
        ground = light * cv2.GaussianBlur(grown[top : top + HEIGHT].astype(np.float32), (0, 0), 14)
        out.append(inside(picture, ground.astype(np.uint8), bars))
    return out, bars


def subtitled(frames: list[Rgb], rng: np.random.Generator) -> tuple[list[Rgb], Bars]:
    """A letterbox with a line of writing in its lower bar in two frames of three."""
    high = int(rng.integers(40, 70))
    bars = Bars(high, high)
    out = [inside(f, np.zeros_like(f), bars) for f in frames]
    for frame in (f for i, f in enumerate(out) if i % 3):
        cv2.putText(frame, "and then they met again", (150, HEIGHT - 16), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (255, 255, 255), 2)
    return out, bars


def changed(change: Callable[[Rgb, int, np.random.Generator], NDArray[np.float32]]) -> Make:
    """A picture without bars, changed frame by frame."""

    def make(frames: list[Rgb], rng: np.random.Generator) -> tuple[list[Rgb], Bars]:
        seed = int(rng.integers(1 << 30))
        return [
            np.clip(change(f, i, np.random.default_rng(seed)), 0, 255).astype(np.uint8) for i, f in enumerate(frames)
        ], Bars()

    return make


_Y, _X = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)


def wall(frame: Rgb, index: int, rng: np.random.Generator, lean: float, swing: float) -> NDArray[np.float32]:
    """A shaded wall at the left edge, leaning, in a camera that sways."""
    edge = rng.uniform(20, WIDTH / 3) + rng.uniform(-1, 1) * lean * (_Y - HEIGHT / 2) + swing * np.sin(1.7 * index)
    shade = rng.uniform(30, 180) + rng.uniform(15, 50) * _Y / HEIGHT
    return np.where((edge > _X)[..., None], shade[..., None], frame)


def roofs(frame: Rgb, _: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A night sky over an uneven line of roofs."""
    line = HEIGHT * rng.uniform(0.2, 0.45) + np.cumsum(rng.normal(0, 1.5, WIDTH))
    return np.where((line[None] > _Y)[..., None], 6.0, frame).astype(np.float32)


def vignette(frame: Rgb, _: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Darkness that grows towards two edges."""
    reach = rng.uniform(0.05, 0.3)
    at = _X / WIDTH
    return frame * np.clip(np.minimum(at, 1 - at) / reach, 0, 1)[..., None]


def portrait(frame: Rgb, _: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Sharp in the middle, out of focus around it."""
    sharp = np.exp(-(((_X - WIDTH / 2) / (rng.uniform(0.15, 0.3) * WIDTH)) ** 4))[..., None]
    return frame * sharp + cv2.GaussianBlur(frame.astype(np.float32), (0, 0), 10) * (1 - sharp)


KINDS: dict[str, Make] = {
    "letterbox, black": plain("v", lambda r: [0, 0, 0]),
    "pillars, black": plain("h", lambda r: [0, 0, 0]),
    "all around, black": plain("vh", lambda r: [0, 0, 0]),
    "one side, black": plain("one", lambda r: [0, 0, 0]),
    "grey": plain("h", lambda r: [int(r.integers(40, 200))] * 3),
    "white": plain("v", lambda r: [255, 255, 255]),
    "coloured": plain("h", lambda r: r.integers(0, 255, 3).tolist()),
    "pillars of blurred picture": blurred,
    "black, dark scene": plain("v", lambda r: [0, 0, 0], dim=0.25),
    "letterbox with subtitles": subtitled,
    "none": changed(lambda f, i, r: f.astype(np.float32)),
    "none, dark scene": changed(lambda f, i, r: f * np.float32(0.15)),
    "none, darker towards the edges": changed(vignette),
    "none, night sky over roofs": changed(roofs),
    "none, leaning wall": changed(lambda f, i, r: wall(f, i, r, 0.03, 0.0)),
    "none, upright wall, hand-held": changed(lambda f, i, r: wall(f, i, r, 0.0, 5.0)),
    "none, shallow focus": changed(portrait),
}


def found(frames: list[Rgb], folder: Path) -> Bars:
    """What the filter says of the frames after an encoder."""
    file = folder / "film.mp4"
    write(file, frames, FPS, crf=28)
    with av.open(str(file)) as container:
        lumas = [np.ascontiguousarray(f.to_ndarray(format="yuv420p")[:HEIGHT]) for f in container.decode(video=0)]
    samples = [look(luma) for luma in lumas]
    return agree(samples, HEIGHT, WIDTH, agree(samples, HEIGHT, WIDTH))


def verdict(truth: Bars, said: Bars) -> str:
    """right, wrong (missed, or another width) or false (where none is)."""
    off = [abs(a - b) > WITHIN_PX for a, b in zip(truth, said, strict=True)]
    if not any(off):
        return "right"
    return "wrong" if any(o and t for o, t in zip(off, truth, strict=True)) else "false"


def strip(frames: list[Rgb], kind: str, truth: Bars, said: Bars) -> Rgb:
    """Four frames and what is wrong with them, as a picture."""
    row = np.concatenate([cv2.resize(f, (240, 135), interpolation=cv2.INTER_AREA) for f in frames[:4]], axis=1)
    image = Image.new("RGB", (row.shape[1], 160), "white")
    image.paste(Image.fromarray(row), (0, 22))
    text = f"{kind}: top, bottom, left, right are {tuple(truth)}, found {tuple(said)}"
    ImageDraw.Draw(image).text((4, 3), text, "black", ImageFont.load_default(13))
    return np.asarray(image)


def main() -> None:
    """Print the table; save the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first film")
    parser.add_argument("--picture", type=Path, metavar="OUT.png")
    args = parser.parse_args()
    strips = []
    print("| kind | right | wrong | false |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kind, make in KINDS.items():
            counts, shown = dict.fromkeys(("right", "wrong", "false"), 0), False
            for seed in range(args.seed, args.seed + args.films):
                frames, truth = make(shot(seed), np.random.default_rng([seed, *kind.encode()]))
                said = found(frames, Path(folder))
                counts[verdict(truth, said)] += 1
                if verdict(truth, said) != "right" and not shown:
                    shown = True
                    strips.append(strip(frames, kind, truth, said))
            print(f"| {kind} | " + " | ".join(map(str, counts.values())) + " |", flush=True)
    if args.picture and strips:
        Image.fromarray(np.concatenate(strips)).quantize(256).save(args.picture, optimize=True)


if __name__ == "__main__":
    main()
