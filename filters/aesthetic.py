"""Looks of a clip's middle frame: the LAION aesthetic predictor, a small head over CLIP image embeddings.

No weights are shipped. Two public heads fit, both made for OpenAI's CLIP ViT-L/14 (`weights: openai`) and its
normalised 768-wide embeddings; scores are about 1 to 10, and a common floor is 4.0 (Movie Gen, middle frame only):

    sa_0_4_vit_l_14_linear.pth              LAION-Aesthetics V1: one linear layer (the default reading of the paper)
    sac+logos+ava1-l14-linearMSE.pth        LAION-Aesthetics V2: five linear layers, no activations between
"""

import io
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from curation import open_clip_model
from curation.errors import ClipError, ConfigError
from curation.stage import Source, Stage
from filters.text import note


class AestheticConfig(BaseModel):
    """Settings of the aesthetic scorer. Without a head it is not built, and `aesthetic` stays null."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "ViT-L-14"
    """open_clip's name of the CLIP model. OpenAI weights given as a file, not as the tag, need ViT-L-14-quickgelu."""
    weights: str | None = None
    """CLIP weights: one of open_clip's tags for the model (openai), a file, or hf-hub:OWNER/NAME (model is then unused)."""
    head: Path | None = None
    """A LAION head, linear or multi-layer, as a torch state dict; the keys tell which."""
    batch_size: int = Field(16, ge=1, le=1024)
    """Frames embedded at once; batches never mix sources."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where this process sees one."""
    threads: int = Field(1, ge=1, le=64)
    """Threads of torch on the CPU."""
    gpus: float = Field(0.0, ge=0.0, le=1.0)
    """Share of a GPU for each actor."""

    RESOURCES: ClassVar[frozenset[str]] = frozenset({"batch_size", "device", "threads", "gpus"})
    """Settings that say where the work runs, not what comes out."""

    @property
    def enabled(self) -> bool:
        """True where a head is named."""
        return self.head is not None


def check(config: AestheticConfig) -> None:
    """Raise ConfigError where the packages, the model's name or the weights are not there. Loads and fetches none."""
    if config.head is None:
        return
    if config.weights is None:
        raise ConfigError("aesthetic.weights: name the CLIP weights the head was made for (LAION's heads: openai)")
    if not config.head.is_file():
        raise ConfigError(f"aesthetic.head: no file {str(config.head)!r}")
    open_clip_model.check("aesthetic", config.model, config.weights)


class Predictor:
    """CLIP's image tower and the head, on one device."""

    def __init__(self, config: AestheticConfig) -> None:
        """Raises ConfigError naming the setting whose weights do not load or do not fit."""
        import torch

        assert config.weights is not None, "check() comes first"
        self._device = open_clip_model.torch_device("aesthetic", config.device, config.threads)
        self._model, self._preprocess = open_clip_model.load("aesthetic", config.model, config.weights, self._device)
        self._layers = [(w.to(self._device), b.to(self._device)) for w, b in load_head(config.head)]
        with torch.inference_mode():
            size = open_clip_model.image_size(self._model)
            width = self._model.encode_image(torch.zeros(1, 3, *size, device=self._device)).shape[1]
        if self._layers[0][0].shape[1] != width:
            takes = self._layers[0][0].shape[1]
            raise ConfigError(f"aesthetic.head: takes embeddings {takes} wide, but {config.model} gives {width}")

    def prepare(self, jpeg: bytes) -> Any:
        """One JPEG as the model's input tensor (3, H, W). Raises ClipError where it cannot be decoded."""
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(jpeg)) as image:
                return self._preprocess(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise ClipError("scorer_failed", f"a kept frame is no readable JPEG: {error}") from error

    def score(self, images: Sequence[Any]) -> list[float]:
        """Scores of prepared images. Raises ClipError where the device has no memory for them."""
        import torch

        try:
            with torch.inference_mode():
                x_ND = self._model.encode_image(torch.stack(list(images)).to(self._device))
                x_ND = torch.nn.functional.normalize(x_ND.float(), dim=-1)
                for weight, bias in self._layers:
                    x_ND = torch.nn.functional.linear(x_ND, weight, bias)
                return [float(value) for value in x_ND[:, 0].tolist()]
        except torch.OutOfMemoryError as error:
            raise ClipError("scorer_failed", f"out of memory: lower aesthetic.batch_size: {error}") from error


def load_head(path: Path | None) -> list[tuple[Any, Any]]:
    """Weights (out, in) and biases of a head's linear layers, first to last. Raises ConfigError.

    A single layer has the keys `weight` and `bias`; several are `layers.N.weight`, N in order; what stands between
    them in training is dropout, which does nothing here.
    """
    import pickle

    import torch

    assert path is not None, "check() comes first"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, pickle.UnpicklingError, EOFError) as error:
        raise ConfigError(f"aesthetic.head: {str(path)!r} is no torch state dict: {error}") from error
    if not isinstance(state, dict):
        raise ConfigError(f"aesthetic.head: {str(path)!r} holds no state dict but a {type(state).__name__}")
    if set(state) == {"weight", "bias"}:
        names = [""]
    else:
        numbers = [key.split(".")[1] for key in state if key.startswith("layers.") and key.endswith(".weight")]
        names = [f"layers.{number}." for number in sorted(numbers, key=int)]
    if not names or set(state) != {f"{name}{part}" for name in names for part in ("weight", "bias")}:
        raise ConfigError(f"aesthetic.head: {str(path)!r} is no LAION head; its keys are {sorted(state)[:6]}")
    layers = [(state[f"{name}weight"].float(), state[f"{name}bias"].float()) for name in names]
    widths = [weight.shape for weight, _ in layers]
    if widths[-1][0] != 1 or any(a[0] != b[1] for a, b in pairwise(widths)):
        raise ConfigError(f"aesthetic.head: {str(path)!r} has layers that do not chain to one score: {widths}")
    return layers


class Aesthetic(Stage):
    """Writes `aesthetic` of a source's clips: the score of the kept frame nearest the middle of the clip.

    `wanted` names the clips of a source to score; the others keep null. A clip that cannot be scored keeps null, with
    the error code `scorer_failed`.
    """

    name = "aesthetic"

    def __init__(self, config: AestheticConfig, wanted: Callable[[Source], set[str]] | None = None) -> None:
        self.config = config
        self.wanted = wanted
        self.gpus = config.gpus
        self.predictor: Predictor | None = None

    def open(self) -> None:
        """Load CLIP and the head. Raises ConfigError as `check` does."""
        check(self.config)
        self.predictor = Predictor(self.config)

    def close(self) -> None:
        """Drop the models."""
        self.predictor = None

    def one(self, source: Source) -> None:
        """Score the wanted clips in batches."""
        assert self.predictor is not None, "open() comes first"
        chosen = None if self.wanted is None else self.wanted(source)
        ready: list[tuple[dict[str, Any], Any]] = []
        for clip in source.clips:
            if clip["status"] == "ok" and (chosen is None or clip["clip_id"] in chosen):
                try:
                    ready.append((clip, self.predictor.prepare(middle_jpeg(clip, source.frames))))
                except ClipError as error:
                    note(clip, self.name, error)
            if len(ready) == self.config.batch_size:
                self._score(ready)
                ready = []
        if ready:
            self._score(ready)

    def _score(self, batch: Sequence[tuple[dict[str, Any], Any]]) -> None:
        assert self.predictor is not None
        try:
            scores = self.predictor.score([image for _, image in batch])
        except ClipError as error:
            for clip, _ in batch:
                note(clip, self.name, error)
            return
        for (clip, _), value in zip(batch, scores, strict=True):
            if math.isfinite(value):
                clip["aesthetic"] = value
            else:
                note(clip, self.name, ClipError("scorer_failed", f"the score is {value}"))


def middle_jpeg(clip: dict[str, Any], frames: Sequence[dict[str, Any]]) -> bytes:
    """The kept JPEG nearest a clip's middle, the earlier one of two as near. Raises ClipError where it has none."""
    own = sorted((f for f in frames if f["clip_id"] == clip["clip_id"]), key=lambda f: int(f["frame"]))
    if not own:
        raise ClipError("scorer_failed", "the clip has no kept frame")
    middle = (clip["start_frame"] + clip["end_frame"] - 1) / 2
    jpeg: bytes = min(own, key=lambda f: abs(f["frame"] - middle))["jpeg"]
    return jpeg
