"""Small runs of the flow model on shards with latents beside them.

python -m tests.training_bridge.dit.runs FOLDER ...     one rank of several runs, one after the other
"""

import sys
from pathlib import Path
from typing import Any

from tests.training_bridge.samples import TinyLatents, TinyTexts, encode_shards, make_shards
from training_bridge.dit import recipe
from training_bridge.index import Shape

FILM, IMAGE = Shape(16, 32, 64), Shape(1, 32, 64)
BACKBONE = {"layers": 2, "width": 32, "heads": 4, "ffn": 48, "channels": 3, "lengths": [2, 4, 4]}
LETTERS = {"name": "bytes", "kind": "bytes", "width": 16, "limit": 24, "layers": 1}
FROZEN = {"name": "letters", "kind": "t5", "path": "none", "width": 2, "limit": 24}


def shards(folder: Path) -> Path:
    """Six films and eight images to train on, two films held out, with latents and texts encoded."""
    make_shards(folder / "train", {FILM: 6, IMAGE: 8})
    make_shards(folder / "validation", {FILM: 2})
    for split in ("train", "validation"):
        for encoder in (TinyLatents(), TinyTexts()):
            encode_shards(folder / split, encoder)
    return folder


def settings(folder: Path, **loop: Any) -> dict[str, Any]:
    """A run over them: four films or eight images a step, in micro-batches of two films."""
    train, held_out = ({"clips": {"path": str(folder / split)}} for split in ("train", "validation"))
    data = {"train": train, "held_out": held_out, "held_out_steps": 1, "images": 1, "videos": 2}
    data |= {"global_tokens": 64, "micro_tokens": 32, "workers": 0}
    steps = {"steps": 8, "lr": 1e-3, "warmup_steps": 2, "validate_every": 4, "checkpoint_every": 4, "precision": "fp32", **loop}
    return {"loop": steps, "data": data, "dit": {"backbone": BACKBONE, "text": [LETTERS, FROZEN]}}


if __name__ == "__main__":
    sys.exit(max(recipe.train(Path(folder)) for folder in sys.argv[1:]))
