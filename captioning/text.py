"""The training text of a sample: put together when its shard is written, not by the model."""

from collections.abc import Mapping, Sequence
from typing import Any

from captioning.camera import CLASSES
from captioning.config import CaptionConfig

CAMERA = {name: name.replace("_", " ") for name in CLASSES} | {
    "arc": "arc shot",
    "tracking": "tracking shot",
    "static": "static shot",
    "handheld": "handheld shot",
}
"""The paper's names of camera motion."""


def training_text(
    caption: str, clip: Mapping[str, Any], fps: float | None, config: CaptionConfig, shots: Sequence[str] = ()
) -> str:
    """A caption with the frame rate token and the camera label before it, as `config.text` says.

    `fps` is the sample's own rate, whole in the token; None for an image, which has neither token nor camera. A camera
    label below `config.camera_confidence` is left out. `shots` are labels of shot types that a person gave; they follow the
    camera's.
    """
    if fps is None:
        return caption
    sure = clip["camera"] is not None and (clip["camera_confidence"] or 0.0) >= config.camera_confidence
    labels = [CAMERA[clip["camera"]]] if sure else []
    labels += [shot.replace("_", " ") for shot in shots]
    camera = f"{', '.join(labels).capitalize()}." if labels else ""
    return " ".join(config.text.format(fps=f"FPS-{round(fps)}", camera=camera, caption=caption).split())
