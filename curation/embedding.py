"""Clip embeddings: one unit vector a clip and model, from the kept frames.

Three kinds of model. `layout` needs no weights (`curation.layout`). `open_clip` is a CLIP-like model of that package, by name
or file, whose text tower serves retrieval. `torchscript` is a copy-detection network as SSCD is published: a TorchScript file
that maps pictures (N, 3, H, W), normalised as ImageNet's, to vectors.

A clip's vector is the mean of its frames' unit vectors, brought to unit length, so that a dot product is a cosine.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from curation import layout, open_clip_model
from curation.errors import ConfigError
from curation.layout import Vector
from curation.picture import Picture

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BARS = ("border_top_px", "border_bottom_px", "border_left_px", "border_right_px")
SMALLEST = 8
"""Pixels of a side that bars must leave; else they are not taken off."""


class EmbeddingConfig(BaseModel):
    """One embedding model. Its vectors stand in `embeddings/<name>/`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    kind: Literal["layout", "open_clip", "torchscript"]
    model: str | None = None
    """open_clip's name of the model; not used with weights from hf-hub:OWNER/NAME."""
    weights: str | None = None
    """open_clip: a tag of the model, a file, or hf-hub:OWNER/NAME. torchscript: a file."""
    size: int = Field(320, ge=16, le=2048)
    """torchscript: pictures are squeezed to this many pixels square (SSCD's own choice)."""
    batch_size: int = Field(32, ge=1, le=4096)
    """Frames embedded at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1, le=64)
    """Threads of torch on the CPU."""
    gpus: float = Field(0.0, ge=0.0, le=1.0)
    """Share of a GPU for each actor."""

    RESOURCES: ClassVar[frozenset[str]] = frozenset({"batch_size", "device", "threads", "gpus"})
    """Settings that say where the work runs, not what comes out."""

    @model_validator(mode="after")
    def _complete(self) -> "EmbeddingConfig":
        needs = {"layout": (), "open_clip": ("weights",), "torchscript": ("weights",)}[self.kind]
        missing = [name for name in needs if getattr(self, name) is None]
        if self.kind == "open_clip" and self.model is None and not (self.weights or "").startswith(open_clip_model.HUB):
            missing.append("model")
        if missing:
            raise ValueError(f"{self.kind} needs {' and '.join(missing)}")
        return self

    def decides(self) -> dict[str, Any]:
        """The settings that decide what comes out."""
        return self.model_dump(mode="json", exclude=set(self.RESOURCES))


class Model(Protocol):
    """Maps pictures to vectors."""

    batch_size: int
    width: int

    def __call__(self, pictures: Sequence[Picture]) -> list[Vector | None]:
        """A vector (width,) of any length for each RGB picture (H, W, 3), or None where there is nothing in it."""
        ...


def check(config: EmbeddingConfig, setting: str) -> None:
    """Raise ConfigError where packages, names or weights are not there, before any work. Loads and fetches none."""
    if config.kind == "open_clip":
        assert config.weights is not None, "the config is complete"
        open_clip_model.check(setting, config.model or "", config.weights)
    if config.kind == "torchscript" and not Path(config.weights or "").is_file():
        raise ConfigError(f"{setting}.weights: no file {config.weights!r}")


def load(config: EmbeddingConfig, setting: str) -> Model:
    """The model, ready. Raises ConfigError that names the setting whose weights do not load."""
    check(config, setting)
    kinds: dict[str, type[Layout] | type[OpenClip] | type[TorchScript]]
    kinds = {"layout": Layout, "open_clip": OpenClip, "torchscript": TorchScript}
    return kinds[config.kind](config, setting)


class Layout:
    """`curation.layout`, one picture at a time."""

    def __init__(self, config: EmbeddingConfig, setting: str) -> None:
        self.batch_size, self.width = config.batch_size, layout.WIDTH

    def __call__(self, pictures: Sequence[Picture]) -> list[Vector | None]:
        return [layout.describe(picture) for picture in pictures]


class OpenClip:
    """The image tower of a CLIP-like model, and its text tower."""

    def __init__(self, config: EmbeddingConfig, setting: str) -> None:
        import torch

        assert config.weights is not None, "the config is complete"
        self.batch_size = config.batch_size
        self.setting = setting
        self.name = config.weights if config.weights.startswith(open_clip_model.HUB) else config.model
        self.device = open_clip_model.torch_device(setting, config.device, config.threads)
        self.model, self.preprocess = open_clip_model.load(setting, config.model or "", config.weights, self.device)
        with torch.inference_mode():
            blank = torch.zeros(1, 3, *open_clip_model.image_size(self.model), device=self.device)
            self.width = int(self.model.encode_image(blank).shape[1])

    def __call__(self, pictures: Sequence[Picture]) -> list[Vector | None]:
        import torch
        from PIL import Image

        batch = torch.stack([self.preprocess(Image.fromarray(picture)) for picture in pictures])
        with torch.inference_mode():
            return list(self.model.encode_image(batch.to(self.device)).float().cpu().numpy())

    def text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (N, D) of texts, comparable with those of pictures."""
        import torch

        tokenize = open_clip_model.import_package(self.setting).get_tokenizer(self.name)
        with torch.inference_mode():
            found = self.model.encode_text(tokenize(list(texts)).to(self.device)).float()
            vectors: NDArray[np.float32] = torch.nn.functional.normalize(found, dim=-1).cpu().numpy()
        return vectors


class TorchScript:
    """A copy-detection network as a TorchScript file."""

    def __init__(self, config: EmbeddingConfig, setting: str) -> None:
        try:
            import torch
        except ImportError as error:
            raise ConfigError(f"{setting}: needs packages ({error}): pip install torch") from error
        self.batch_size, self.size = config.batch_size, config.size
        self.device = open_clip_model.torch_device(setting, config.device, config.threads)
        try:
            self.model = torch.jit.load(str(config.weights), map_location=self.device).eval()  # type: ignore[no-untyped-call]
            with torch.inference_mode():
                found = self.model(torch.zeros(1, 3, self.size, self.size, device=self.device))
        except (RuntimeError, ValueError, TypeError) as error:
            raise ConfigError(f"{setting}.weights: {config.weights!r} is no TorchScript model of pictures: {error}") from error
        if not isinstance(found, torch.Tensor) or found.ndim != 2 or found.shape[0] != 1:
            raise ConfigError(f"{setting}.weights: {config.weights!r} maps a picture to no vector")
        self.width = int(found.shape[1])

    def __call__(self, pictures: Sequence[Picture]) -> list[Vector | None]:
        import cv2
        import torch

        small = [cv2.resize(p, (self.size, self.size), interpolation=cv2.INTER_AREA) for p in pictures]
        batch = (np.stack(small).astype(np.float32) / 255 - IMAGENET_MEAN) / IMAGENET_STD
        with torch.inference_mode():
            given = torch.from_numpy(batch.astype(np.float32).transpose(0, 3, 1, 2).copy())
            return list(self.model(given.to(self.device)).float().cpu().numpy())


def schema(width: int) -> pa.Schema:
    """The table of a model whose vectors have `width` numbers; a clip in which it found nothing has null."""
    return pa.schema([("clip_id", pa.string()), ("vector", pa.list_(pa.float32(), width))])


def embed(model: Model, clips: Sequence[Mapping[str, Any]], frames: Sequence[Mapping[str, Any]]) -> dict[str, Vector | None]:
    """clip_id -> unit vector, the mean of its frames' unit vectors; None for a clip without one.

    `clips` are rows of `clips`, `frames` rows of `frames`; those of other clips are passed over. Frames go through the model
    in batches whatever clip they are of. A frame that is no readable JPEG, and a vector that is zero or not finite, count
    for nothing.
    """
    by_id = {clip["clip_id"]: clip for clip in clips}
    pictures = ((f["clip_id"], _picture(f["jpeg"], by_id[f["clip_id"]])) for f in frames if f["clip_id"] in by_id)
    ready = ((clip_id, picture) for clip_id, picture in pictures if picture is not None)
    sums: dict[str, Vector] = {}
    for batch in _batched(ready, model.batch_size):
        for (clip_id, _), vector in zip(batch, model([picture for _, picture in batch]), strict=True):
            unit = None if vector is None else _unit(vector)
            if unit is not None:
                sums[clip_id] = sums[clip_id] + unit if clip_id in sums else unit
    return {clip_id: _unit(sums[clip_id]) if clip_id in sums else None for clip_id in by_id}


def _picture(jpeg: bytes, clip: Mapping[str, Any]) -> Picture | None:
    """A kept frame without its bars as RGB; None where it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(jpeg)) as image:
            whole = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError):
        return None
    height, width = whole.shape[:2]
    top, bottom, left, right = (clip[name] or 0.0 for name in BARS)
    down, across = height / clip["height"], width / clip["width"]
    inside = whole[int(np.ceil(top * down)) : height - int(np.ceil(bottom * down))]
    inside = inside[:, int(np.ceil(left * across)) : width - int(np.ceil(right * across))]
    return inside if min(inside.shape[:2]) >= SMALLEST else whole


def _unit(vector: Vector) -> Vector | None:
    length = float(np.linalg.norm(vector))
    return (vector / length).astype(np.float32) if np.isfinite(length) and length > 1e-6 else None


def _batched(items: Iterator[tuple[str, Picture]], size: int) -> Iterator[list[tuple[str, Picture]]]:
    while batch := list(islice(items, size)):
        yield batch
