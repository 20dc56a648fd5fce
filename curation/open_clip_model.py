"""Models of the open_clip package: whether one is there, and loading it."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from curation.errors import ConfigError

HUB = "hf-hub:"
INSTALL = "pip install torch torchvision open_clip_torch"
WEIGHT_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".safetensors"}


def check(setting: str, model: str, weights: str) -> None:
    """Raise ConfigError where the package, the model's name or the weights are not there. Loads and fetches none.

    `setting` is the group of settings that the message names, with `model` and `weights` in it.
    """
    looks_like_path = Path(weights).suffix in WEIGHT_SUFFIXES or weights.startswith(("/", ".", "~"))
    if looks_like_path and not Path(weights).is_file():
        raise ConfigError(f"{setting}.weights: no file {weights!r}")
    open_clip = import_package(setting)
    if weights.startswith(HUB):
        return
    if open_clip.get_model_config(model) is None:
        raise ConfigError(f"{setting}.model: open_clip has no model {model!r}")
    if not Path(weights).is_file():
        tags = open_clip.list_pretrained_tags_by_model(model)
        if weights not in tags:
            raise ConfigError(f"{setting}.weights: {weights!r} is no file, and no tag of {model}: {tags}")


_operators: list[Any] = []  # a torch Library takes its operators along when it is collected


def import_package(setting: str) -> Any:
    """The open_clip module. Raises ConfigError where it, or a package it needs, is missing.

    A torchvision built for another torch (a CUDA build beside a CPU torch) fails on import because its compiled
    operators did not load; its Python part, all that open_clip uses, works once their signatures are declared.
    """
    try:
        try:
            import_module("torchvision")
        except RuntimeError as error:
            if "operator torchvision::nms does not exist" not in str(error):
                raise ConfigError(f"{setting}: torchvision does not load: {error}: {INSTALL}") from error
            _declare_operators()
        return import_module("open_clip")
    except ImportError as error:
        raise ConfigError(f"{setting}: needs packages ({error}): {INSTALL}") from error


def _declare_operators() -> None:
    import torch

    make: Any = torch.library.Library
    library = make("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.append(library)


def torch_device(setting: str, device: Literal["auto", "cpu", "cuda"], threads: int) -> Any:
    """Where torch is to work; sets its threads. Raises ConfigError for a GPU that is not there."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{setting}.device: no GPU is visible to torch: set auto or cpu")
    torch.set_num_threads(threads)
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def load(setting: str, model: str, weights: str, device: Any) -> tuple[Any, Callable[[Any], Any]]:
    """The model in evaluation mode and its preprocessing of a PIL image. Raises ConfigError where it does not load."""
    import pickle

    open_clip = import_package(setting)
    name, pretrained = (weights, None) if weights.startswith(HUB) else (model, weights)
    try:
        made, _, preprocess = open_clip.create_model_and_transforms(
            name, pretrained=pretrained, device=device, weights_only=True
        )
    except (RuntimeError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{setting}.weights: {weights!r} does not load: {error}") from error
    return made.eval(), preprocess


def image_size(model: Any) -> tuple[int, int]:
    """Height and width of the pictures that a model takes."""
    size = model.visual.image_size
    return (size, size) if isinstance(size, int) else (size[0], size[1])
