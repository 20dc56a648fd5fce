"""Make the camera classifier's parameters out of nothing but numbers, and say how good they are.

    python -m jobs.train_camera --out captioning/camera.npz

renders made clips (`camera_scenes`), passes them through the flow and the fit that real video passes, trains, calibrates
on clips kept aside, and prints the figures of docs/camera.md over a held-out set of other seeds and other textures. The
same seed gives the same clips and, on one machine, the same file.
"""

import argparse
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioning import camera
from captioning.camera import CLASSES, Classifier, features, motion_of
from curation.tables import CAMERA_PAIRS
from filters.camera_series import CameraSeries
from filters.motion import Flow
from jobs import camera_scenes
from jobs.camera_scenes import Clip, Plane

Array = NDArray[np.float64]
Example = tuple[str, Array, Array]
"""Class, pairs (P, K), their times (P,)."""

MIX = (*CLASSES, "static", "static", "tracking", "arc")
"""What is trained on, in turn: more of the classes that differ most within themselves."""
TILES = 128
TOGETHER = 40
"""Clips made by a worker at a time, and kept in one file."""
HELD_OUT = 6 << 40
"""Seeds of the held-out clips and of their textures begin here."""
ASIDE = 0.12
"""Share of the training clips that only set the temperature."""
NETWORKS = 3
HIDDEN = (72, 40)
MIRRORED = ("camera_u", "camera_v_x", "camera_u_xx", "camera_u_yy", "camera_v_xy")
"""What changes its sign in a mirror, beside the zones' u."""
SIDEWAYS = np.array([-1.0 if name in MIRRORED or "zone_u" in name else 1.0 for name in CAMERA_PAIRS])
BACKWARD = np.array([-1.0 if name.startswith(("camera_u", "camera_v", "camera_zone")) else 1.0 for name in CAMERA_PAIRS])
SWAPPED = [CAMERA_PAIRS.index(name[:-1] + str(2 - int(name[-1])) if "zone" in name else name) for name in CAMERA_PAIRS]
"""Where each number stands in a mirror: the zones of the left at the right."""
LEFT_RIGHT = {f"{kind}_{a}": f"{kind}_{b}" for kind in ("pan", "truck") for a, b in (("left", "right"), ("right", "left"))}
PAIRS = (("zoom_in", "zoom_out"), ("push_in", "pull_out"), ("tilt_up", "tilt_down"), ("pedestal_up", "pedestal_down"))
OPPOSITE = LEFT_RIGHT | dict(PAIRS) | {b: a for a, b in PAIRS}


def measured(clip: Clip, tiles: list[Plane]) -> dict[str, Any]:
    """A made clip's part of `tables.SERIES`."""
    import cv2

    cv2.setNumThreads(1)
    flow = Flow(clip.rate_hz, clip.width, clip.height)
    series = CameraSeries(clip.width, clip.height, 1, 0, 1.0)
    for i, picture in enumerate(camera_scenes.render(clip, tiles)):
        flow.push(np.ascontiguousarray(picture), 1)
        if (blocks := flow.camera_pair()) is not None:
            series.push(i, flow.span / clip.rate_hz, blocks)
    return {"time_s": np.arange(clip.count) / clip.rate_hz, **series.finish()}


def example(named: tuple[str, int], tiles: list[Plane]) -> Example | None:
    """The clip of a class and a seed, measured; None where it would get no label."""
    clip = camera_scenes.drawn(*named)
    try:
        return named[0], *motion_of(measured(clip, tiles), 0, clip.count, 0.0)
    except camera.Unlabelled:
        return None


def _some(named: Sequence[tuple[str, int]], tiles: list[Plane], kept: Path | None) -> list[Example]:
    """Some clips measured, those without texture left out; or as they were kept."""
    path = kept and kept / f"{named[0][1]}-{len(named)}.npz"
    if path and path.exists():
        with np.load(path) as file:
            ends = np.cumsum(file["length"])[:-1]
            return list(zip(file["label"].tolist(), np.split(file["pairs"], ends), np.split(file["at"], ends), strict=True))
    made = [m for m in (example(n, tiles) for n in named) if m is not None]
    if path:
        labels, pairs, at = zip(*made, strict=True)
        length = [len(t) for t in at]
        np.savez(path, label=labels, length=length, pairs=np.concatenate(pairs), at=np.concatenate(at), allow_pickle=False)
    return made


def examples(classes: Sequence[str], count: int, first_seed: int, workers: int, kept: Path | None) -> list[Example]:
    """`count` made clips of the classes in turn, less those without texture; measured once where there is a folder `kept`."""
    tiles = camera_scenes.textures(np.random.default_rng(first_seed), TILES)
    named = [(classes[i % len(classes)], first_seed + i) for i in range(count)]
    with ProcessPoolExecutor(workers) as pool:
        made = pool.map(partial(_some, tiles=tiles, kept=kept), [named[i : i + TOGETHER] for i in range(0, count, TOGETHER)])
        return [m for some in made for m in some]


def variants(made: Example) -> Iterable[Example]:
    """A clip as it is, mirrored, run backward, both: a motion's numbers change sign, its class changes sides."""
    label, pairs, at = made
    for mirrored in (False, True):
        for backward in (False, True):
            name, numbers, times = label, pairs, at
            if mirrored:
                name, numbers = LEFT_RIGHT.get(name, name), (numbers * SIDEWAYS)[:, SWAPPED]
            if backward:
                name, numbers, times = OPPOSITE.get(name, name), (numbers * BACKWARD)[::-1], at[-1] + at[0] - at[::-1]
            yield name, numbers, times


def _part(made: Example, rng: np.random.Generator) -> Example:
    """A stretch of a clip, 60 to 100 % of it."""
    label, pairs, at = made
    length = int(rng.integers(max(camera.LEAST_PAIRS, len(at) * 6 // 10), len(at) + 1))
    start = int(rng.integers(len(at) - length + 1))
    return label, pairs[start : start + length], at[start : start + length]


def table(made: Sequence[Example]) -> tuple[Array, NDArray[np.int64]]:
    """Features (N, F) and classes (N,)."""
    return np.stack([features(p, t) for _, p, t in made]), np.array([CLASSES.index(name) for name, _, _ in made])


def train(made: Sequence[Example], seed: int, epochs: int) -> dict[str, Array]:
    """The parameters of a `Classifier`: trained on most clips, its temperature fitted on the rest."""
    import torch

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(made))
    aside = max(1, round(len(made) * ASIDE))
    whole = [v for i in order[aside:] for v in variants(made[i])]
    x, y = table([*whole, *(_part(v, rng) for v in whole)])
    shift, scale = x.mean(axis=0), x.std(axis=0) + 1e-3
    inputs = torch.tensor(np.clip((x - shift) / scale, -5, 5), dtype=torch.float32)
    truth = torch.tensor(y)
    found: list[list[Array]] = []
    for network in range(NETWORKS):
        torch.manual_seed(seed * NETWORKS + network)
        sizes = (x.shape[1], *HIDDEN, len(CLASSES))
        layers = [torch.nn.Linear(a, b) for a, b in pairwise(sizes)]
        model = torch.nn.Sequential(
            torch.nn.Dropout(0.2), layers[0], torch.nn.ReLU(), torch.nn.Dropout(0.3), layers[1], torch.nn.ReLU(), layers[2]
        )
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
        batches = max(1, len(inputs) // 256)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * batches)
        for _ in range(epochs):
            for batch in torch.randperm(len(inputs)).tensor_split(batches):
                loss = torch.nn.functional.cross_entropy(model(inputs[batch]), truth[batch], label_smoothing=0.03)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        found.append([p.detach().numpy().T.astype(np.float16) for layer in layers for p in (layer.weight, layer.bias)])
    parameters = {f"{'wb'[j % 2]}{j // 2}": np.stack([network[j] for network in found]) for j in range(2 * len(layers))}
    parameters |= {"shift": shift.astype(np.float32), "scale": scale.astype(np.float32), "temperature": np.ones(1, np.float32)}
    return parameters | {"temperature": _temperature(parameters, *table([made[i] for i in order[:aside]]))}


def _temperature(parameters: dict[str, Array], x: Array, y: NDArray[np.int64]) -> Array:
    """The temperature under which the truth is likeliest."""
    grid = np.exp(np.linspace(np.log(0.3), np.log(3), 60))
    plain = np.log(np.maximum(Classifier(parameters)(x), 1e-12))
    scaled = plain[None] / grid[:, None, None]
    scaled -= np.log(np.exp(scaled).sum(axis=2, keepdims=True))
    return np.array([grid[int(scaled[:, np.arange(len(y)), y].mean(axis=1).argmax())]], np.float32)


def figures(odds: Array, truth: NDArray[np.int64]) -> str:
    """Accuracy, confusions, reliability, and precision by threshold, as docs/camera.md shows them."""
    best, sure = odds.argmax(axis=1), odds.max(axis=1)
    right = best == truth
    lines = [f"{len(truth)} held-out clips, {right.mean():.3f} right", ""]
    lines += ["| truth | n | right | taken for |", "|---|---|---|---|"]
    for i, name in enumerate(CLASSES):
        of = best[truth == i]
        others = [(int((of == j).sum()), CLASSES[j]) for j in range(len(CLASSES)) if j != i]
        wrong = ", ".join(f"{other} {n}" for n, other in sorted(others, key=lambda o: (-o[0], o[1])) if n)
        lines.append(f"| `{name}` | {len(of)} | {(of == i).mean():.3f} | {wrong} |")
    lines += ["", "| confidence | clips | mean confidence | right |", "|---|---|---|---|"]
    bins = reliability(odds, truth)
    lines += [f"| {low:.2f} to {high:.2f} | {n} | {mean:.3f} | {hit:.3f} |" for low, high, n, mean, hit in bins]
    error = sum(n * abs(mean - hit) for _, _, n, mean, hit in bins) / len(truth)
    lines += ["", f"expected calibration error {error:.3f}", "", "| threshold | labelled | right of these |", "|---|---|---|"]
    for threshold in (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        kept = sure >= threshold
        if kept.any():
            lines.append(f"| {threshold:.2f} | {kept.mean():.3f} | {right[kept].mean():.3f} |")
    return "\n".join(lines)


def reliability(odds: Array, truth: NDArray[np.int64]) -> list[tuple[float, float, int, float, float]]:
    """Of each range of confidence with clips in it: its ends, how many clips, their mean confidence, the share right."""
    sure, right = odds.max(axis=1), odds.argmax(axis=1) == truth
    bins = []
    for low, high in pairwise((0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)):
        inside = (sure >= low) & ((sure < high) | (high == 1))
        if inside.any():
            bins.append((low, high, int(inside.sum()), float(sure[inside].mean()), float(right[inside].mean())))
    return bins


def draw(bins: Sequence[tuple[float, float, int, float, float]], path: Path) -> None:
    """The reliability as a picture: the share right over the confidence, with two standard errors of so many clips."""
    import matplotlib
    from matplotlib.figure import Figure

    _, _, count, mean, hit = (np.array(column) for column in zip(*bins, strict=True))
    with matplotlib.rc_context({"svg.hashsalt": "camera", "svg.fonttype": "none"}):
        figure = Figure(figsize=(4.2, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="0.7", linestyle="--")
        axes.errorbar(mean, hit, 2 * np.sqrt(mean * (1 - mean) / count), marker="o", capsize=3)
        for x, y, n in zip(mean, hit, count, strict=True):
            axes.annotate(str(n), (x, y), (6, -10), textcoords="offset points", fontsize=8)
        axes.set(xlabel="mean confidence", ylabel="share right", xlim=(0, 1.03), ylim=(0, 1.03))
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--clips", type=int, default=6000, help="made clips to train on")
    parser.add_argument("--held-out", type=int, default=960, help="made clips to test on")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--picture", type=Path, help="an .svg file to draw the reliability into")
    parser.add_argument("--kept", type=Path, help="a folder for the measured clips: the next time none is rendered again")
    given = parser.parse_args()
    made = examples(MIX, given.clips, given.seed * (1 << 20), given.workers, given.kept)
    np.savez_compressed(given.out, allow_pickle=False, **train(made, given.seed, given.epochs))
    x, truth = table(examples(CLASSES, given.held_out, HELD_OUT, given.workers, given.kept))
    odds = Classifier.read(given.out)(x)
    print(figures(odds, truth))
    if given.picture:
        draw(reliability(odds, truth), given.picture)


if __name__ == "__main__":
    main()
