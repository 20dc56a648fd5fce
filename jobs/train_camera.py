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

MIX = (*CLASSES, "static", "static", "tracking")
"""What is trained on, in turn: more of the classes that differ most within themselves."""
TILES = 128
HELD_OUT = 1 << 40
"""Seeds of the held-out clips and of their textures begin here."""
ASIDE = 0.12
"""Share of the training clips that only set the temperature."""
NETWORKS = 3
HIDDEN = (72, 40)
MIRRORED = ("pair_u", "pair_v_x", "pair_u_xx", "pair_u_yy", "pair_v_xy")
"""What changes its sign in a mirror, beside the zones' u."""
SIDEWAYS = np.array([-1.0 if name in MIRRORED or "zone_u" in name else 1.0 for name in CAMERA_PAIRS])
BACKWARD = np.array([-1.0 if name.startswith(("pair_u", "pair_v", "pair_zone")) else 1.0 for name in CAMERA_PAIRS])
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
        if i and flow.blocks is not None:
            series.push(i, 1 / clip.rate_hz, flow.blocks)
    return {"time_s": np.arange(clip.count) / clip.rate_hz, **series.finish()}


def example(named: tuple[str, int], tiles: list[Plane]) -> Example | None:
    """The clip of a class and a seed, measured; None where it would get no label."""
    clip = camera_scenes.drawn(*named)
    try:
        return named[0], *motion_of(measured(clip, tiles), 0, clip.count, 0.0)
    except camera.Unlabelled:
        return None


def examples(classes: Sequence[str], count: int, first_seed: int, workers: int) -> list[Example]:
    """`count` made clips of the classes in turn, less those without texture."""
    tiles = camera_scenes.textures(np.random.default_rng(first_seed), TILES)
    named = [(classes[i % len(classes)], first_seed + i) for i in range(count)]
    with ProcessPoolExecutor(workers) as pool:
        made = pool.map(partial(example, tiles=tiles), named, chunksize=16)
        return [m for m in made if m is not None]


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


def figures(classifier: Classifier, made: Sequence[Example]) -> str:
    """Accuracy, confusions, reliability, and precision by threshold, as docs/camera.md shows them."""
    x, y = table(made)
    odds = classifier(x)
    best, sure = odds.argmax(axis=1), odds.max(axis=1)
    right = best == y
    lines = [f"{len(y)} held-out clips, {right.mean():.3f} right", "", "| truth | n | right | taken for |", "|---|---|---|---|"]
    for i, name in enumerate(CLASSES):
        of = best[y == i]
        others = [(int((of == j).sum()), CLASSES[j]) for j in range(len(CLASSES)) if j != i]
        wrong = ", ".join(f"{other} {n}" for n, other in sorted(others, key=lambda o: (-o[0], o[1])) if n)
        lines.append(f"| `{name}` | {len(of)} | {(of == i).mean():.3f} | {wrong} |")
    lines += ["", "| confidence | clips | mean confidence | right |", "|---|---|---|---|"]
    edges = (0.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0 + 1e-9)
    error = 0.0
    for low, high in pairwise(edges):
        inside = (sure >= low) & (sure < high)
        if inside.any():
            error += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
            lines.append(
                f"| {low:.2f} to {min(high, 1):.2f} | {inside.sum()} | {sure[inside].mean():.3f} | {right[inside].mean():.3f} |"
            )
    lines += ["", f"expected calibration error {error:.3f}", "", "| threshold | labelled | right of these |", "|---|---|---|"]
    for threshold in (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        kept = sure >= threshold
        if kept.any():
            lines.append(f"| {threshold:.2f} | {kept.mean():.3f} | {right[kept].mean():.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write")
    parser.add_argument("--clips", type=int, default=4400, help="made clips to train on")
    parser.add_argument("--held-out", type=int, default=960, help="made clips to test on")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    given = parser.parse_args()
    made = examples(MIX, given.clips, given.seed * (1 << 20), given.workers)
    np.savez_compressed(given.out, allow_pickle=False, **train(made, given.seed, given.epochs))
    print(figures(Classifier.read(given.out), examples(CLASSES, given.held_out, HELD_OUT, given.workers)))


if __name__ == "__main__":
    main()
