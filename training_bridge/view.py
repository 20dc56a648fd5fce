"""Views: smaller pieces of stored samples, drawn anew at each visit."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from numpy.random import Generator

from training_bridge.index import Shape


@dataclass(frozen=True)
class Window:
    """Which frames and which rectangle of a stored sample, and how large it is to be."""

    start: int
    frames: int
    x: int
    y: int
    across: int
    down: int
    """The rectangle in stored pixels, all even: two pixels share a colour."""
    height: int
    width: int

    @classmethod
    def whole(cls, stored: Shape) -> "Window":
        """All of a sample, as it is."""
        return cls(0, stored.frames, 0, 0, stored.width, stored.height, stored.height, stored.width)


@dataclass(frozen=True)
class View:
    """What to show of each sample: so many frames in a row, and a rectangle of the view's ratio at the view's size."""

    frames: int
    """Of videos; images have one."""
    height: int
    width: int
    scale: Literal["random", "fit", "native"] = "random"
    """The rectangle's size: the largest that there is (`fit`), the view's own size (`native`), or between (log-uniform)."""
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        """Raises ValueError for what cannot be shown."""
        if min(self.frames, self.height, self.width) < 1 or self.height % 2 or self.width % 2:
            raise ValueError(f"a view has at least one frame and even sides, not {self.frames}x{self.height}x{self.width}")

    def shape_of(self, stored: Shape) -> Shape | None:
        """What it makes of a stored sample; None where that is too short or too small: nothing is repeated or enlarged."""
        frames = 1 if stored.frames == 1 else self.frames
        if stored.frames < frames or stored.height < self.height or stored.width < self.width:
            return None
        return Shape(frames, self.height, self.width)

    def draw(self, stored: Shape, rng: Generator) -> Window:
        """A window into a sample that is large enough: first frame, size and place, each uniform (the size's logarithm)."""
        shape = self.shape_of(stored)
        assert shape is not None, f"{self} of {stored}"
        start = int(rng.integers(stored.frames - shape.frames + 1))
        most = min(stored.height / self.height, stored.width / self.width)
        enlarged = {"random": math.exp(rng.uniform(0.0, math.log(most))), "fit": most, "native": 1.0}[self.scale]
        across, down = _even(self.width * enlarged, stored.width), _even(self.height * enlarged, stored.height)
        x, y = _place(stored.width - across, rng), _place(stored.height - down, rng)
        return Window(start, shape.frames, x, y, across, down, self.height, self.width)


def _even(value: float, most: int) -> int:
    """The nearest even number, at most `most`."""
    return min(2 * round(value / 2), most // 2 * 2)


def _place(room: int, rng: Generator) -> int:
    """An even place, each that there is room for as likely."""
    return 2 * int(rng.integers(room // 2 + 1))
