"""A corpus of short films whose concepts and copies are known because they are planted here.

    python -m tests.planted FOLDER [COUNT] [SEED] [WORKERS]

A film is what its concept looks like, blended with a pattern of its own: films of one concept are neighbours in `layout`
space and yet no near-duplicates. Some films are copies of others, made in the ways that copies are made on the web.
"""

import csv
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

WIDTH, HEIGHT, FPS, OTHER_FPS = 352, 200, 24, 30
PAN_PX = 24
"""How far the view moves in the course of a film, at most."""
CONCEPTS, RANK_SHIFT, RANK_POWER = 20, 8, 3.25
"""Concept r has a share in proportion to (r + RANK_SHIFT) ** -RANK_POWER: the first 24 %, the last 0.6 %."""
COPY_SHARE, LARGEST_GROUP = 0.15, 5
CONCEPT_WEIGHT = 0.42
"""Share of a picture's variance that its concept decides; the rest is the film's own."""
KINDS = ("low_quality", "resized", "letterbox", "watermark", "mirror", "light", "excerpt", "frame_rate", "vp9", "mpeg4")
SUFFIX = {"vp9": "mkv", "mpeg4": "avi"}


@dataclass(frozen=True)
class Planted:
    """The truth of one file."""

    path: str
    """Relative to the corpus."""
    concept: int
    copy_of: str | None = None
    """The path of the original."""
    how: str | None = None
    """One of KINDS, for a copy."""


def plant(folder: Path, count: int = 2000, seed: int = 0, workers: int = 2) -> list[Planted]:
    """Write `count` films into `folder`, by `workers` processes, and their truth into a CSV file beside it."""
    films = truth(count, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(partial(_write, folder, seed), films, chunksize=8))
    with folder.with_name(f"{folder.name}_truth.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["path", "concept", "copy_of", "how"])
        table.writeheader()
        table.writerows(asdict(film) for film in films)
    return films


def truth(count: int, seed: int) -> list[Planted]:
    """What `plant` writes, in the order of the paths."""
    rng = np.random.default_rng(seed)
    copies = round(count * COPY_SHARE)
    share = (np.arange(CONCEPTS) + 1.0 + RANK_SHIFT) ** -RANK_POWER
    ends = np.rint(np.cumsum(share) / share.sum() * (count - copies)).astype(int)
    concepts = rng.permutation(np.searchsorted(ends, np.arange(count - copies), side="right"))
    numbers = rng.permutation(count)
    films = [Planted(f"{n:06d}.mp4", int(c)) for n, c in zip(numbers, concepts, strict=False)]
    originals = np.repeat(np.arange(count - copies), rng.integers(1, LARGEST_GROUP, count - copies))[:copies]
    for i, (n, original) in enumerate(zip(numbers[count - copies :], originals, strict=True)):
        how = KINDS[i % len(KINDS)]
        films.append(Planted(f"{n:06d}.{SUFFIX.get(how, 'mp4')}", films[original].concept, films[original].path, how))
    return sorted(films, key=lambda film: film.path)


def frames(film: Planted, seed: int) -> Frames:
    """The pictures (T, H, W, 3) of a film, in RGB, before they are encoded."""
    number = int(Path(film.copy_of or film.path).stem)
    rng = np.random.default_rng([seed, 1, number])
    concept = _composition(np.random.default_rng([seed, 2, film.concept]), symmetric=True)
    own = _composition(rng, symmetric=False)
    canvas = 128 + 42 * (np.sqrt(CONCEPT_WEIGHT) * concept + np.sqrt(1 - CONCEPT_WEIGHT) * own)
    pictures = _filmed(np.clip(canvas, 16, 240).astype(np.uint8), rng)
    of_copy = np.random.default_rng([seed, 3, int(Path(film.path).stem)])
    return pictures if film.how is None else _changed(pictures, film.how, of_copy)


def _composition(rng: np.random.Generator, symmetric: bool) -> NDArray[np.float32]:
    """A colour field and large shapes in front of it (HEIGHT, WIDTH + PAN_PX, 3), each channel of mean 0 and variance 1."""
    import cv2

    size = (WIDTH + PAN_PX, HEIGHT)
    picture = cv2.resize(rng.standard_normal((6, 8, 3)), size, interpolation=cv2.INTER_CUBIC)
    for _ in range(10):
        corners = rng.uniform(-0.1, 1.1, 2) * size + rng.uniform(-0.25, 0.25, (5, 2)) * size[0]
        cv2.fillConvexPoly(picture, cv2.convexHull(corners.astype(np.int32)), rng.normal(0, 1.2, 3).tolist(), cv2.LINE_AA)
    if symmetric:  # what a picture and its mirror image have in common tells more than how they differ
        picture = picture + picture[:, ::-1]
    picture = picture - picture.mean(axis=(0, 1))
    composition: NDArray[np.float32] = (picture / picture.std(axis=(0, 1))).astype(np.float32)
    return composition


def _filmed(canvas: Frames, rng: np.random.Generator) -> Frames:
    """A pan over the canvas, while a disc crosses the picture."""
    import cv2

    count = int(rng.integers(130, 161))
    lefts = np.linspace(0, PAN_PX, count)[:: int(rng.choice([-1, 1]))]
    pictures = np.stack([cv2.getRectSubPix(canvas, (WIDTH, HEIGHT), (x + (WIDTH - 1) / 2, (HEIGHT - 1) / 2)) for x in lefts])
    start, end = rng.uniform(0.2, 0.8, (2, 2)) * (WIDTH, HEIGHT)
    colour = rng.integers(30, 225, 3).tolist()
    for picture, part in zip(pictures, np.linspace(0, 1, count), strict=True):
        x, y = start + (end - start) * part
        cv2.circle(picture, (round(x), round(y)), 8, colour, -1, cv2.LINE_AA)
    return pictures.astype(np.uint8)


def _changed(pictures: Frames, how: str, rng: np.random.Generator) -> Frames:
    """What a copy shows. Low quality and other codecs show the same and come with the encoding."""
    import cv2

    if how == "resized":
        scale = rng.uniform(0.5, 0.8)
        size = (2 * round(WIDTH * scale / 2), 2 * round(HEIGHT * scale / 2))
        return np.stack([cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in pictures])
    if how == "letterbox":  # the picture as it was, in a higher frame
        bar = 2 * round(HEIGHT * rng.uniform(0.10, 0.14) / (1 - 2 * 0.12) / 2)
        return np.pad(pictures, ((0, 0), (bar, bar), (0, 0), (0, 0)), constant_values=16)
    if how == "watermark":
        return _watermarked(pictures, rng)
    if how == "mirror":
        return pictures[:, :, ::-1].copy()
    if how == "light":
        gain, lift = rng.uniform(0.85, 1.15), rng.uniform(-15, 15)
        lit: Frames = np.clip((pictures.astype(np.float32) - 128) * gain + 128 + lift, 0, 255).astype(np.uint8)
        return lit
    if how == "excerpt":
        length = round(len(pictures) * rng.uniform(0.6, 0.9))
        first = int(rng.integers(len(pictures) - length + 1))
        return pictures[first : first + length]
    if how == "frame_rate":  # the same seconds: some pictures are shown twice
        return pictures[np.arange(len(pictures) * OTHER_FPS // FPS) * FPS // OTHER_FPS]
    return pictures


def _watermarked(pictures: Frames, rng: np.random.Generator) -> Frames:
    """A plate with letters, half transparent, in a corner: 2 to 5 % of the picture."""
    import cv2

    height = round(np.sqrt(rng.uniform(0.02, 0.05) * WIDTH * HEIGHT / 3))
    plate = np.full((height, 3 * height, 3), 240, np.uint8)
    letters = (round(0.2 * height), round(0.75 * height))
    cv2.putText(plate, "LOGO", letters, cv2.FONT_HERSHEY_DUPLEX, height / 32, (20, 20, 20), 1, cv2.LINE_AA)
    top, left = (4, HEIGHT - height - 4)[rng.integers(2)], (4, WIDTH - 3 * height - 4)[rng.integers(2)]
    marked = pictures.copy()
    corner = marked[:, top : top + height, left : left + 3 * height]
    corner[:] = 0.4 * corner + 0.6 * plate
    return marked


def _write(folder: Path, seed: int, film: Planted) -> None:
    import av

    pictures = frames(film, seed)
    codec, options = "libx264", {"preset": "ultrafast", "crf": "35" if film.how == "low_quality" else "20"}
    if film.how == "vp9":
        codec, options = "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "35", "b": "0"}
    if film.how == "mpeg4":
        codec, options = "mpeg4", {"qmin": "6", "qmax": "6"}
    with av.open(str(folder / film.path), "w") as container:
        stream = container.add_stream(codec, rate=OTHER_FPS if film.how == "frame_rate" else FPS, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    plant(Path(sys.argv[1]), *map(int, sys.argv[2:]))
