"""Shot detectors compared: precision, recall and F1 of hard cuts at two frames, and milliseconds of CPU a frame.

    python -m tests.benchmarks.shot_detectors FOLDER [--cache DIR]     labelled files: FOLDER has a truth.csv
    python -m tests.benchmarks.shot_detectors --planted N [--cache DIR]    N self-made films of every kind
    python -m tests.benchmarks.shot_detectors --picture OUT.png       what remains wrong on self-made films, as a picture

truth.csv has the columns `file`, `cut_frames` (first frames of new shots, `;` between, or `none`; empty: not labelled) and
`gradual_transitions` (spans `a-b`, in which a cut counts neither way). PySceneDetect's detectors are run as shipped, with
their own decode and resize; ours look at the series of one decode. With `--cache`, what a file gave is kept and read again.
"""

import argparse
import csv
import itertools
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from curation.media import MediaLimits, decode, probe
from filters import shots
from filters.meter import DEFAULT_FPS
from filters.planes import Small, factor, planes, small
from filters.shots import ShotConfig
from filters.transnet import ShotNet
from tests.filters import planted
from tests.filters.synthetic import write

TOLERANCE = 2
LIMITS = MediaLimits()
Zones = list[tuple[int, int]]
Series = dict[str, NDArray[np.float32]]


@dataclass
class Film:
    """A labelled file, the series of it, what the shipped detectors found in it, and CPU seconds by part."""

    name: str
    group: str
    fps: float
    cuts: list[int]
    neutral: Zones
    series: Series
    shipped: dict[str, list[int]]
    seconds: dict[str, float]

    @property
    def frames(self) -> int:
        return len(self.series["cut_score"])


# What a detector finds in a film.
Detector = Callable[[Film], list[int]]


def ours(film: Film, **settings: Any) -> list[int]:
    """The cuts of our own detectors."""
    return shots.boundaries(film.series, film.fps, ShotConfig(**settings))[0]


def confirmed(film: Film, least: float = 0.1) -> list[int]:
    """Cuts of the default detector near which the network sees at least something."""
    seen = film.series["shot_probability"]
    return [c for c in ours(film) if seen[max(0, c - 1 - TOLERANCE) : c + TOLERANCE].max() >= least]


def either(film: Film, least: float = 0.9) -> list[int]:
    """Cuts of the default detector, and those of which the network is all but sure."""
    cuts = ours(film)
    sure = ours(film, detector="transnetv2", threshold=least)
    return sorted(cuts + [c for c in sure if all(abs(c - other) > TOLERANCE for other in cuts)])


NO_CHECK: dict[str, Any] = {"min_picture_change": 0.0, "wipe_roughness": 0.0, "blend_residual": 0.0}
DETECTORS: dict[str, tuple[Detector, tuple[str, ...]]] = {
    "PySceneDetect ContentDetector": (lambda f: f.shipped["content"], ("content",)),
    "PySceneDetect AdaptiveDetector": (lambda f: f.shipped["adaptive"], ("adaptive",)),
    "TransNetV2 (profile `transnetv2`)": (partial(ours, detector="transnetv2"), ("decode", "network", "pictures")),
    "`content`": (partial(ours, detector="content"), ("decode", "score", "pictures")),
    "`adaptive`, cuts alone": (partial(ours, detector="adaptive", **NO_CHECK), ("decode", "score")),
    "`adaptive`": (partial(ours, detector="adaptive"), ("decode", "score", "pictures")),
    "`pictures`, step alone": (partial(ours, **NO_CHECK), ("decode", "pictures")),
    "`pictures` (default)": (ours, ("decode", "pictures")),
    "default and TransNetV2 >= 0.1": (confirmed, ("decode", "pictures", "network")),
    "default or TransNetV2 >= 0.9": (either, ("decode", "pictures", "network")),
}
"""Detector -> how it decides, and the parts of `Film.seconds` that it takes."""


def shipped(path: Path, film: Film) -> None:
    """Run PySceneDetect's detectors on a file, each with its own decode."""
    from scenedetect import AdaptiveDetector, ContentDetector, detect

    for name, kind in (("content", ContentDetector), ("adaptive", AdaptiveDetector)):
        start = time.process_time()
        scenes = detect(str(path), kind())
        film.seconds[name] = time.process_time() - start
        film.shipped[name] = [scene[0].frame_num for scene in scenes[1:]]


def smalls(path: Path) -> list[Small]:
    """Every frame of a file as the detectors see it."""
    out, shape, by = [], (0, 0), 1
    with decode(str(path), LIMITS) as frames:
        for frame in frames:
            picture = frame.picture
            if not out:
                shape, by = (picture.height, picture.width), factor(picture.width, picture.height)
            elif (picture.height, picture.width) != shape:
                picture = picture.reformat(width=shape[1], height=shape[0])
            out.append(small(*planes(picture), by))
    return out


def timed(film: Film, part: str, work: Callable[[], Any]) -> Any:
    """What `work` gives; its CPU seconds are noted."""
    start = time.process_time()
    out = work()
    film.seconds[part] = time.process_time() - start
    return out


def watch(path: Path, film: Film) -> None:
    """Decode a file once and fill the film's series."""

    def scores() -> list[float]:
        pictures = [shots.hsv(p) for p in reduced]
        return [0.0, *(shots.content_score(a, b) for a, b in itertools.pairwise(pictures))]

    def through(taker: shots.Pictures | ShotNet) -> Any:
        for picture in reduced:
            taker.push(picture)
        return taker.finish()

    reduced = timed(film, "decode", lambda: smalls(path))
    film.series["cut_score"] = np.array(timed(film, "score", scores), np.float32)
    film.series["luma_std"] = np.array([p.y.std() for p in reduced], np.float32)
    film.series |= timed(film, "pictures", lambda: through(shots.Pictures(film.fps)))
    film.series["shot_probability"] = timed(film, "network", lambda: through(ShotNet()))


def look(path: Path, row: dict[str, str], group: str, cache: Path | None) -> Film:
    """Everything a comparison needs of one file."""
    cuts = [] if row["cut_frames"] == "none" else [int(c) for c in row["cut_frames"].split(";")]
    neutral = [(int(a), int(b)) for a, b in re.findall(r"(\d+)-(\d+)", row["gradual_transitions"])]
    film = Film(path.name, group, 0.0, cuts, neutral, {}, {}, {})
    kept = cache / f"{path.name}.npz" if cache else None
    if kept and kept.exists():
        data = np.load(kept)
        film.fps = float(data["fps"])
        for name in data.files:
            kind, _, rest = name.partition("/")
            if kind == "series":
                film.series[rest] = data[name]
            elif kind == "shipped":
                film.shipped[rest] = data[name].tolist()
            elif kind == "seconds":
                film.seconds[rest] = float(data[name])
        return film
    film.fps = probe(str(path), LIMITS)["fps"] or DEFAULT_FPS
    watch(path, film)
    shipped(path, film)
    if kept:
        parts: dict[str, dict[str, Any]] = {"series": film.series, "shipped": film.shipped, "seconds": film.seconds}
        np.savez(kept, fps=film.fps, **{f"{kind}/{k}": v for kind, values in parts.items() for k, v in values.items()})  # type: ignore[arg-type]
    return film


def groups(rows: Sequence[dict[str, str]]) -> dict[str, str]:
    """File -> the first file of all that show the same material; what was derived from several is one group."""
    parent = {r["file"]: r["file"] for r in rows}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for row in rows:
        origin = row.get("near_duplicate_of") or ("derived_" if row["file"].startswith("derived_") else "")
        if origin == "derived_":
            origin = next(r["file"] for r in rows if r["file"].startswith("derived_") and not r.get("near_duplicate_of"))
        if origin in parent:
            parent[root(row["file"])] = root(origin)
    return {name: root(name) for name in parent}


def labelled(folder: Path, cache: Path | None) -> list[Film]:
    """The films of a folder whose cuts are labelled."""
    with (folder / "truth.csv").open() as file:
        rows = list(csv.DictReader(file))
    group = groups(rows)
    return [look(folder / r["file"], r, group[r["file"]], cache) for r in rows if r["cut_frames"]]


def match(found: Iterable[int], truth: Sequence[int], neutral: Zones) -> NDArray[np.int_]:
    """(right, wrong, missed) cuts at two frames of tolerance; in `neutral` spans a cut counts neither way."""
    left, right, wrong = list(truth), 0, 0
    for cut in sorted(found):
        near = [t for t in left if abs(t - cut) <= TOLERANCE]
        if near:
            left.remove(min(near, key=lambda t: abs(t - cut)))
            right += 1
        elif not any(a - TOLERANCE <= cut <= b + TOLERANCE for a, b in neutral):
            wrong += 1
    return np.array([right, wrong, len(left)])


def f1(counts: NDArray[np.int_]) -> float:
    """F1 of (right, wrong, missed); 1 where there is nothing to find and nothing found."""
    right, wrong, missed = (int(c) for c in counts)
    return 2 * right / (2 * right + wrong + missed) if right + wrong + missed else 1.0


def score(films: Iterable[Film], detector: Detector) -> NDArray[np.int_]:
    """Counts over films."""
    return sum((match(detector(f), f.cuts, f.neutral) for f in films), np.zeros(3, int))


def table(films: Sequence[Film]) -> None:
    """Print a line a detector."""
    frames = sum(f.frames for f in films)
    print(f"{len(films)} files, {frames} frames, {sum(len(f.cuts) for f in films)} cuts\n")
    print("| detector | right | wrong | missed | precision | recall | F1 | ms a frame, decode included |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (detector, parts) in DETECTORS.items():
        counts = score(films, detector)
        right, wrong, missed = (int(c) for c in counts)
        ms = 1000 * sum(f.seconds[p] for f in films for p in parts) / frames
        ratios = f"{right / max(1, right + wrong):.3f} | {right / max(1, right + missed):.3f} | {f1(counts):.3f}"
        print(f"| {name} | {right} | {wrong} | {missed} | {ratios} | {ms:.2f} |")


GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "pictures": {
        "threshold": (2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
        "min_step": (0.5, 1.0, 1.5, 2.0),
        "min_picture_change": (0.1, 0.15, 0.2, 0.25, 0.3),
    },
    "adaptive": {
        "threshold": (2.0, 2.5, 3.0, 3.5, 4.0),
        "min_content": (5.0, 10.0, 15.0, 20.0, 25.0),
        "min_picture_change": (0.1, 0.15, 0.2, 0.25, 0.3),
    },
    "transnetv2": {"threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)},
}


def cross_validate(films: Sequence[Film], name: str) -> None:
    """Print the F1 of thresholds chosen without the held-out source: of the best on the rest, the middle one."""
    grid = GRIDS[name]
    settings: list[dict[str, Any]] = [dict(zip(grid, v, strict=True)) for v in itertools.product(*grid.values())]
    by_group: dict[str, list[Film]] = {}
    for film in films:
        by_group.setdefault(film.group, []).append(film)
    counts = np.array([[score(g, partial(ours, detector=name, **s)) for g in by_group.values()] for s in settings])
    total = counts.sum(axis=1)
    held_out, chosen = np.zeros(3, int), set()
    for i in range(len(by_group)):
        rest = np.array([f1(c) for c in total - counts[:, i]])
        best = np.flatnonzero(rest >= rest.max() - 1e-9)
        pick = int(best[len(best) // 2])
        chosen.add(tuple(settings[pick].values()))
        held_out += counts[pick, i]
    every = [f1(c) for c in total]
    spread = f"all {len(settings)} settings {min(every):.3f} to {max(every):.3f}, median {np.median(every):.3f}"
    print(f"{name}: leave one of {len(by_group)} sources out: {held_out.tolist()} F1 {f1(held_out):.3f}; {spread}")
    print(f"    chosen: {sorted(chosen)}")


def spans_found(film: Film, truth: Zones) -> NDArray[np.int_]:
    """(found, wrong, missed) gradual spans; one is found where half of it is covered."""
    found = [(g["start"], g["end"]) for g in shots.boundaries(film.series, film.fps, ShotConfig())[1]]
    hit = {i for a, b in truth for i, (s, e) in enumerate(found) if min(b, e) - max(a, s) >= 0.5 * (b - a)}
    right = sum(any(min(b, e) - max(a, s) >= 0.5 * (b - a) for s, e in found) for a, b in truth)
    return np.array([right, len(found) - len(hit), len(truth) - right])


def make_planted(folder: Path, count: int) -> None:
    """Write `count` films of every kind, and their truth.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "truth.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "cut_frames", "gradual_transitions"])
        for kind, seed in itertools.product(planted.KINDS, range(count)):
            film = planted.film(kind, seed)
            name = f"{kind}_{seed}.mp4"
            if not (folder / name).exists():
                write(folder / name, film.pictures, film.fps, crf=23)
            cuts = ";".join(map(str, film.cuts)) or "none"
            rows.writerow([name, cuts, " ".join(f"{a}-{b}" for a, b, _ in film.gradual)])


def by_kind(films: Sequence[Film]) -> None:
    """Print right/wrong/missed cuts of some detectors and of gradual spans, by kind of film."""
    columns = ["PySceneDetect AdaptiveDetector", "TransNetV2 (profile `transnetv2`)", "`adaptive`", "`pictures` (default)"]
    print("| kind | " + " | ".join(columns) + " | gradual spans |")
    print("|---" * (len(columns) + 2) + "|")
    for kind in planted.KINDS:
        ones = [f for f in films if f.name.startswith(f"{kind}_")]
        cells = ["/".join(map(str, score(ones, DETECTORS[c][0]))) for c in columns]
        cells.append("/".join(map(str, sum((spans_found(f, f.neutral) for f in ones), np.zeros(3, int)))))
        print(f"| {kind} | " + " | ".join(cells) + " |")


STRIP = 10
"""Frames of a film strip."""


def errors(film: planted.Planted) -> list[tuple[int, int, str]]:
    """(start, end, what is wrong) of a film that the default detector does not get right, in frames."""
    cuts, spans = shots.boundaries(planted.seen(film.pictures, film.fps), film.fps, ShotConfig())
    out = [(c, c + 1, "not a cut") for c in cuts if c not in film.cuts]
    out += [(c, c + 1, "a cut, missed") for c in film.cuts if c not in cuts]
    over = [(a, b) for a, b, _ in film.gradual]
    out += [
        (a, b, f"a {kind}, missed") for a, b, kind in film.gradual if not _meets(a, b, [(g["start"], g["end"]) for g in spans])
    ]
    out += [(g["start"], g["end"], f"reported as a {g['kind']}") for g in spans if not _meets(g["start"], g["end"], over)]
    return out


def _meets(start: int, end: int, spans: Zones) -> bool:
    return any(min(end, b) > max(start, a) for a, b in spans)


def picture(out: Path, kinds: Sequence[str], films: int = 10) -> None:
    """A film strip of the first thing that is wrong in films of each kind."""
    strips = []
    for kind in kinds:
        for film in (planted.film(kind, seed) for seed in range(films)):
            wrong = errors(film)
            if wrong:
                strips.append(strip(film, *wrong[0], kind))
                break
        else:
            print(f"nothing is wrong in {films} films of {kind}")
    Image.fromarray(np.concatenate(strips)).quantize(256).save(out, optimize=True)


def strip(film: planted.Planted, start: int, end: int, what: str, kind: str) -> NDArray[np.uint8]:
    """`STRIP` frames from shortly before the error to shortly after it, their numbers and what is wrong."""
    margin = max(STRIP // 2, (end - start) // 4)
    shown = np.linspace(max(0, start - margin), min(len(film.pictures), end + margin) - 1, STRIP).round().astype(int)
    row = np.concatenate([cv2.resize(film.pictures[i], (160, 90), interpolation=cv2.INTER_AREA) for i in shown], axis=1)
    image = Image.new("RGB", (row.shape[1], 128), "white")
    image.paste(Image.fromarray(row), (0, 22))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    draw.text((4, 3), f"{kind}: frames {start} to {end - 1}, {what}", "black", font)
    for place, number in enumerate(shown):
        draw.text((160 * place + 4, 112), str(number), "black", font)
    return np.asarray(image)


def main() -> None:
    """Run one of the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--planted", type=int, metavar="N")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--picture", type=Path, metavar="OUT.png")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    if args.cache:
        args.cache.mkdir(parents=True, exist_ok=True)
    if args.folder:
        films = labelled(args.folder, args.cache)
        table(films)
        print()
        for name in GRIDS:
            cross_validate(films, name)
    if args.planted:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (args.cache or Path(scratch)) / "films"
            make_planted(folder, args.planted)
            films = labelled(folder, args.cache)
        table(films)
        print()
        by_kind(films)
    if args.picture:
        picture(args.picture, ("cut, punch-in", "dissolve, moving", "wipe, shaped", "occlusion", "whip pan"))


if __name__ == "__main__":
    main()
