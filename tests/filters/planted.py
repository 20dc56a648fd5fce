"""Films whose cuts and transitions are planted: self-made scenes with a moving camera and moving things, joined in
known frames, by kind of difficulty.

`FILMS` maps a kind to a function from a seed to a `Planted` film; another seed draws other scenes, other motion and
other lengths. Pictures are RGB, 180 x 320. `seen` gives the series that
the detectors take of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from filters import shots
from filters.planes import Small, factor, shrink

Rgb = NDArray[np.uint8]
Floats = NDArray[np.float32]

HEIGHT, WIDTH = 180, 320
WORLD = 2.5
"""A world is this many times as wide and high as the frame."""


@dataclass(frozen=True)
class Planted:
    """A film and its truth: `cuts` are first frames of new shots, `gradual` half-open spans with their kind."""

    pictures: list[Rgb]
    cuts: tuple[int, ...] = ()
    gradual: tuple[tuple[int, int, str], ...] = ()
    fps: float = 24.0


@dataclass(frozen=True)
class Scene:
    """One shot: a textured world under a moving camera, with a few things that move in it.

    `speed` is the camera's, in frame widths a second; `contrast` and `light` scale levels around mid grey; `grain` is
    the deviation of noise in levels. `world` and `where` let two scenes show one place from two sides.
    """

    seed: int
    speed: float = 0.05
    zoom_s: float = 0.0
    """Share by which the picture grows, a second."""
    things: int = 3
    contrast: float = 1.0
    light: float = 0.0
    grain: float = 1.5
    colour: bool = True
    world: int | None = None
    where: tuple[float, float] = (0.0, 0.0)
    path: tuple[tuple[float, float], ...] = ()
    """Extra displacement of the camera in frame widths, frame by frame; the last one holds."""

    def render(self, count: int, fps: float = 24.0) -> list[Rgb]:
        """`count` frames."""
        rng = np.random.default_rng(self.seed)
        world = _world(self.seed if self.world is None else self.world)
        angle = rng.uniform(0, 2 * np.pi)
        step = np.array([np.cos(angle), np.sin(angle)]) * self.speed * WIDTH / fps
        things = [_Thing.draw(rng) for _ in range(self.things)]
        start = np.array([WIDTH, HEIGHT]) * (WORLD - 1) / 2 + np.array(self.where) * WIDTH
        out = []
        for i in range(count):
            extra = np.array(self.path[min(i, len(self.path) - 1)] if self.path else (0.0, 0.0)) * WIDTH
            frame = _view(world, start + step * i + extra, (1 + self.zoom_s) ** (i / fps))
            for thing in things:
                thing.paint(frame, i / fps)
            frame = (frame - 128) * self.contrast + 128 + self.light
            if not self.colour:
                frame[:] = frame.mean(axis=2, keepdims=True)
            out.append(np.clip(frame + rng.normal(0, self.grain, frame.shape), 0, 255).astype(np.uint8))
        return out


@dataclass(frozen=True)
class _Thing:
    """An ellipse that drifts and turns back at the edges."""

    centre: Floats
    velocity: Floats
    axes: tuple[int, int]
    colour: tuple[float, ...]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Thing":
        size = (int(rng.integers(10, 45)), int(rng.integers(10, 45)))
        return cls(
            rng.uniform(0, 1, 2).astype(np.float32),
            rng.uniform(-0.4, 0.4, 2).astype(np.float32),
            size,
            tuple(muted(rng, 1)[0].tolist()),
        )

    def paint(self, frame: Floats, time_s: float) -> None:
        at = np.abs((self.centre + self.velocity * time_s + 1) % 2 - 1) * (WIDTH, HEIGHT)
        cv2.ellipse(frame, (int(at[0]), int(at[1])), self.axes, 30, 0, 360, self.colour, -1, cv2.LINE_AA)


def muted(rng: np.random.Generator, count: int) -> Floats:
    """Colours (count, 3) as natural pictures have them: any lightness, little saturation."""
    out: Floats = (rng.uniform(20, 235, (count, 1)) + rng.normal(0, 22, (count, 3))).astype(np.float32)
    return out


def _world(seed: int) -> Floats:
    """Cloudy detail at all sizes between the colours of a palette, with hard-edged boxes, as a place has."""
    rng = np.random.default_rng(10_000 + seed)
    height, width = int(HEIGHT * WORLD), int(WIDTH * WORLD)
    palette = muted(rng, 3)
    slope = rng.uniform(0.9, 1.4)
    layers = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 8):
        cells = 2**octave
        grid = rng.normal(0, 1, (cells, cells * 16 // 9, 3)).astype(np.float32)
        layers += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * 2.0 ** (-octave * slope)
    weights = np.exp(2.0 * layers / layers.std())
    out = (weights / weights.sum(axis=2, keepdims=True)) @ palette
    for _ in range(int(rng.integers(8, 30))):
        x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
        w, h = (int(v) for v in rng.integers(8, 120, 2))
        out[y : y + h, x : x + w] = 0.35 * out[y : y + h, x : x + w] + 0.65 * muted(rng, 1)[0]
    return out.astype(np.float32)


def _view(world: Floats, corner: NDArray[np.float64], zoom: float) -> Floats:
    """The frame whose upper left corner is there; the world is mirrored beyond its edges."""
    middle = corner + np.array([WIDTH, HEIGHT]) / 2
    matrix = np.array([[zoom, 0, WIDTH / 2 - zoom * middle[0]], [0, zoom, HEIGHT / 2 - zoom * middle[1]]])
    return cv2.warpAffine(world, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)  # type: ignore[return-value]


def join(*shots: Sequence[Rgb]) -> Planted:
    """Shots one after another, hard cuts between."""
    ends = np.cumsum([len(s) for s in shots]).tolist()
    return Planted([p for s in shots for p in s], tuple(ends[:-1]))


def cover(a: Sequence[Rgb], b: Sequence[Rgb], frames: int, kind: str, shares: Callable[[float], Floats | float]) -> Planted:
    """`a` gives way to `b` over `frames` frames: `shares` of progress (0 to 1) says how much of each pixel is `b`'s."""
    over = []
    for i, (x, y) in enumerate(zip(a[-frames:], b[:frames], strict=True)):
        share = shares((i + 1) / (frames + 1))
        over.append((x * (1 - share) + y * share).astype(np.uint8))
    start = len(a) - frames
    return Planted([*a[:start], *over, *b[frames:]], (), ((start, start + frames, kind),))


def fade(a: Sequence[Rgb], b: Sequence[Rgb], frames: int, colour: float, hold: int) -> Planted:
    """`a` to an even colour, `hold` frames of it, and to `b`, `frames` each way."""
    even = [np.full_like(a[0], colour)] * frames
    out = cover(a, even, frames, "fade", float)
    back = cover(even, b, frames, "fade", float)
    start = len(a) - frames
    pictures = out.pictures + [even[0]] * hold + back.pictures
    return Planted(pictures, (), ((start, start + 2 * frames + hold, "fade"),))


_X, _Y = np.meshgrid((np.arange(WIDTH) + 0.5) / WIDTH, (np.arange(HEIGHT) + 0.5) / HEIGHT)
FRONTS: dict[str, Floats] = {
    "right": _X,
    "left": 1 - _X,
    "down": _Y,
    "up": 1 - _Y,
    "diagonal": (_X + _Y) / 2,
    "iris": np.hypot(_X - 0.5, (_Y - 0.5) * HEIGHT / WIDTH) / np.hypot(0.5, 0.5 * HEIGHT / WIDTH),
    "clock": (np.arctan2(_X - 0.5, 0.5 - _Y) / (2 * np.pi)) % 1,
    "doors": 2 * np.abs(_X - 0.5),
}
"""At which progress of a wipe each pixel changes."""


def wipe(a: Sequence[Rgb], b: Sequence[Rgb], frames: int, front: str, soft: float = 0.0) -> Planted:
    """A front passes over the picture; `soft` is the width of its edge as a share of the way."""
    order = FRONTS[front][..., None].astype(np.float32)
    soft = max(soft, 1e-3)
    return cover(a, b, frames, "wipe", lambda p: np.clip((p * (1 + soft) - order) / soft, 0, 1))


def _seeds(seed: int, kind: str) -> np.random.Generator:
    return np.random.default_rng([seed, *kind.encode()])


@dataclass(frozen=True)
class _Draw:
    """Random choices of one film."""

    rng: np.random.Generator
    fps: float = 24.0
    style: dict[str, float] = field(default_factory=dict)

    def scene(self, **style: object) -> Scene:
        given = {"speed": float(self.rng.uniform(0, 0.15)), **self.style, **style}
        return replace(Scene(int(self.rng.integers(1 << 30))), **given)  # type: ignore[arg-type]

    def frames(self, low_s: float = 0.8, high_s: float = 2.5) -> int:
        return int(self.rng.uniform(low_s, high_s) * self.fps)

    def shots(self, count: int = 5, **style: object) -> list[list[Rgb]]:
        return [self.scene(**style).render(self.frames(), self.fps) for _ in range(count)]

    def pair(self, seconds: float = 2.5, **style: object) -> tuple[list[Rgb], list[Rgb]]:
        count = int(seconds * self.fps)
        return self.scene(**style).render(count, self.fps), self.scene(**style).render(count, self.fps)


def _cuts(**style: object) -> Callable[[_Draw], Planted]:
    return lambda d: join(*d.shots(**style))


def _short(d: _Draw) -> Planted:
    return join(*(d.scene().render(int(d.rng.integers(4, 12)), d.fps) for _ in range(12)))


def _one_place(d: _Draw) -> Planted:
    """Views of one world from places half a frame and more apart: shot and reverse shot."""
    world = int(d.rng.integers(1 << 30))
    places = [(-0.6, -0.3), (0.5, 0.3), (-0.5, 0.35), (0.6, -0.25), (0.0, 0.0)]
    return join(*(d.scene(world=world, where=place).render(d.frames(), d.fps) for place in places))


def _punch_in(d: _Draw) -> Planted:
    """The same view, cut in by a factor of 1.5 and back."""
    scene = d.scene(things=1)
    shots = []
    for i in range(4):
        pictures = scene.render(d.frames(), d.fps)
        shots.append([_zoomed(p, 1.5) if i % 2 else p for p in pictures])
    return join(*shots)


def _zoomed(picture: Rgb, by: float) -> Rgb:
    matrix = np.array([[by, 0, (1 - by) * WIDTH / 2], [0, by, (1 - by) * HEIGHT / 2]])
    return cv2.warpAffine(picture, matrix, (WIDTH, HEIGHT))  # type: ignore[return-value]


def _flash(d: _Draw) -> Planted:
    """Flashes of 1 to 5 frames, full and part, in one shot."""
    pictures = d.scene().render(120, d.fps)
    for at in (20, 45, 70, 95):
        strength = d.rng.uniform(0.5, 1.0)
        for i in range(at, at + int(d.rng.integers(1, 6))):
            pictures[i] = (pictures[i] * (1 - strength) + 250 * strength).astype(np.uint8)
    return Planted(pictures)


def _exposure(d: _Draw) -> Planted:
    """Steps of exposure, as an automatic camera and a lamp make them."""
    pictures = d.scene(contrast=0.8).render(120, d.fps)
    for at, gain in ((30, d.rng.uniform(0.4, 0.7)), (75, d.rng.uniform(1.3, 1.9))):
        pictures[at:] = [np.clip(p * gain, 0, 255).astype(np.uint8) for p in pictures[at:]]
    return Planted(pictures)


def _occlusion(d: _Draw) -> Planted:
    """Something large and close passes through the whole picture, there and back."""
    pictures = d.scene().render(120, d.fps)
    body = d.scene(speed=0, things=0).render(1)[0]
    for start, frames in ((25, int(d.rng.integers(8, 16))), (70, int(d.rng.integers(14, 30)))):
        for i in range(frames):
            left = int(-1.3 * WIDTH + 2.6 * WIDTH * (i + 1) / (frames + 1))
            low, high = max(0, left), min(WIDTH, left + int(1.3 * WIDTH))
            if low < high:
                pictures[start + i][:, low:high] = body[:, [x % WIDTH for x in range(low - left, high - left)]]
    return Planted(pictures)


def _whip(d: _Draw) -> Planted:
    """A pan by one and a half frame widths in a third of a second, blurred as a shutter blurs it."""
    frames, length = 8, 1.3 * float(d.rng.choice([-1, 1]))
    ease = (1 - np.cos(np.linspace(0, np.pi, frames + 1))) / 2
    path = [(0.0, 0.0)] * 40 + [(length * (e - 0.5) + length / 2, 0.0) for e in ease]
    scene = d.scene(where=(-length / 2, 0.0), path=tuple(path), things=0)
    pictures = scene.render(100, d.fps)
    for i in range(40, 40 + frames):
        width = max(1, int(abs(ease[i - 39] - ease[i - 40]) * abs(length) * WIDTH * 0.6))
        pictures[i] = cv2.blur(pictures[i], (width, 1))  # type: ignore[assignment]
    return Planted(pictures)


def _jerk(d: _Draw) -> Planted:
    """A knock against the camera: 6 to 15 % of the frame away within one frame, and back within some."""
    path: list[tuple[float, float]] = [(0.0, 0.0)] * 100
    for at in (25, 60):
        size, angle = d.rng.uniform(0.06, 0.15), d.rng.uniform(0, 2 * np.pi)
        for i in range(8):
            swing = size * np.exp(-i / 3) * np.cos(i * 1.5)
            path[at + i] = (float(swing * np.cos(angle)), float(swing * np.sin(angle)))
    return Planted(d.scene(path=tuple(path)).render(100, d.fps))


def _shake(d: _Draw) -> Planted:
    """A camera held by hand while running: 2 % of the frame, every frame another way."""
    path = tuple((float(x), float(y)) for x, y in d.rng.normal(0, 0.02, (100, 2)))
    return Planted(d.scene(path=path).render(100, d.fps))


def _one(**style: object) -> Callable[[_Draw], Planted]:
    return lambda d: Planted(d.scene(**style).render(100, d.fps))


def _dissolve(seconds: float, **style: object) -> Callable[[_Draw], Planted]:
    return lambda d: cover(*d.pair(seconds + 1.5, **style), round(seconds * d.fps), "dissolve", float)


def _wipe(fronts: Sequence[str], soft: float = 0.0, **style: object) -> Callable[[_Draw], Planted]:
    def draw(d: _Draw) -> Planted:
        seconds = d.rng.uniform(0.4, 1.2)
        return wipe(*d.pair(seconds + 1.5, **style), round(seconds * d.fps), str(d.rng.choice(list(fronts))), soft)

    return draw


def _fade(low: float, high: float) -> Callable[[_Draw], Planted]:
    def draw(d: _Draw) -> Planted:
        return fade(*d.pair(), d.frames(0.3, 1.0), d.rng.uniform(low, high), int(d.rng.integers(0, 12)))

    return draw


def repeated(film: Planted, times: Sequence[int]) -> Planted:
    """The film with its frames stored so many times each, in turn."""
    stored = [i for i in range(len(film.pictures)) for _ in range(times[i % len(times)])]
    return Planted([film.pictures[i] for i in stored], tuple(stored.index(c) for c in film.cuts))


def _on_threes(d: _Draw) -> Planted:
    """Drawn eight times a second, as animation is, under a quick pan."""
    drawn = replace(d, fps=8.0)
    return repeated(join(*drawn.shots(4, speed=0.4)), [3])


CALM = {"speed": 0.02, "things": 1}
_KINDS: dict[str, tuple[Callable[[_Draw], Planted], float]] = {
    "cut": (_cuts(), 24),
    "cut, fast motion": (_cuts(speed=1.0, things=6), 24),
    "cut, dark": (_cuts(contrast=0.16, light=-95), 24),
    "cut, low contrast": (_cuts(contrast=0.25), 24),
    "cut, grain": (_cuts(grain=14.0), 24),
    "cut, no colour": (_cuts(colour=False), 24),
    "cut, short shots": (_short, 24),
    "cut, one place": (_one_place, 24),
    "cut, punch-in": (_punch_in, 24),
    "cut, 12 fps": (_cuts(), 12),
    "cut, 60 fps": (_cuts(), 60),
    "cut, 24 as 60 fps": (lambda d: repeated(join(*replace(d, fps=24.0).shots(4)), [3, 2]), 60),
    "cut, 12 as 60 fps": (lambda d: repeated(join(*replace(d, fps=12.0).shots(4, speed=0.4)), [5]), 60),
    "cut, 8 as 24 fps": (_on_threes, 24),
    "flash": (_flash, 24),
    "exposure step": (_exposure, 24),
    "occlusion": (_occlusion, 24),
    "whip pan": (_whip, 24),
    "jerk": (_jerk, 24),
    "shake": (_shake, 24),
    "fast pan": (_one(speed=1.2), 24),
    "fast things": (_one(things=14), 24),
    "zoom": (_one(zoom_s=0.6), 24),
    "grain": (_one(grain=25.0), 24),
    "fade, black": (_fade(0, 16), 24),
    "fade, grey": (_fade(90, 170), 24),
    "fade, white": (_fade(235, 255), 24),
    "dissolve, 0.4 s": (_dissolve(0.4, **CALM), 24),
    "dissolve, 1 s": (_dissolve(1.0, **CALM), 24),
    "dissolve, 2 s": (_dissolve(2.0, **CALM), 24),
    "dissolve, moving": (_dissolve(1.0), 24),
    "wipe, straight": (_wipe(("left", "right", "up", "down")), 24),
    "wipe, shaped": (_wipe(("diagonal", "iris", "clock", "doors")), 24),
    "wipe, soft": (_wipe(("left", "right", "iris"), soft=0.2), 24),
    "wipe, moving": (_wipe(("left", "right"), speed=0.3), 24),
}
KINDS = tuple(_KINDS)


def film(kind: str, seed: int) -> Planted:
    """A film of one of `KINDS`."""
    draw, fps = _KINDS[kind]
    return replace(draw(_Draw(_seeds(seed, kind), fps)), fps=fps)


def seen(pictures: Sequence[Rgb], fps: float, block: int = 256) -> dict[str, Floats]:
    """The series that shots are decided from, of RGB pictures."""
    window, before, scores, deviations = shots.Pictures(fps, block), None, [], []
    for picture in pictures:
        reduced = reduce(picture)
        hsv = shots.hsv(reduced)
        scores.append(0.0 if before is None else shots.content_score(before, hsv))
        deviations.append(reduced.y.std())
        before = hsv
        window.push(reduced)
    numbers = {"cut_score": np.array(scores, np.float32), "luma_std": np.array(deviations, np.float32)}
    return numbers | window.finish()


def reduce(picture: Rgb) -> Small:
    """A picture as small as the detectors see it."""
    by = factor(picture.shape[1], picture.shape[0])
    y, v, u = (shrink(p, by) for p in cv2.split(cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb)))  # type: ignore[arg-type]
    return Small(np.ascontiguousarray(y), u, v, by)
