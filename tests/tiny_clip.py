"""A CLIP of a few thousand weights, drawn at random, that open_clip loads as it does a real one."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NAME = "tiny-with-text"
needs_open_clip = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("torch", "torchvision", "open_clip")), reason="open_clip is not installed"
)


def tiny_clip(folder: Path, width: int = 16) -> tuple[Any, dict[str, Any]]:
    """A model whose vectors have `width` numbers, and the settings of an embedding that loads it from `folder`."""
    from curation.open_clip_model import import_package

    open_clip = import_package("embeddings.clip")
    import torch

    towers = {
        "embed_dim": width,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }
    (folder / f"{NAME}.json").write_text(json.dumps(towers))
    open_clip.add_model_config(folder)
    torch.manual_seed(5)
    made = open_clip.create_model(NAME).eval()
    torch.save(made.state_dict(), folder / "clip.pt")
    settings = {"name": "clip", "kind": "open_clip", "model": NAME, "device": "cpu", "batch_size": 2}
    return made, {**settings, "weights": str(folder / "clip.pt")}
