"""Moving pictures out of numbers: textured landscapes seen by a moving camera, for a corpus whose truth is known.

A picture is a stack of layers (sky, far ridge, near ridge) of 1/f noise, the spectrum of natural images, which pass at
different speeds behind a few moving things. Frames are uint8 (height, width, 3) in BGR, as OpenCV draws them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

MARGIN = 0.3
"""Share of the frame's height that every canvas has to spare above and below, for tilts and zooms out."""


@dataclass(frozen=True)
class World:
    """The look of one place: colour ramps (dark to light, BGR) for sky, far and near ground, and moving things."""

    sky: tuple[Colour, ...]
    far: tuple[Colour, ...]
    near: tuple[Colour, ...]
    things: tuple[Colour, ...]
    roughness: float = 1.35
    horizon: float = 0.42


WORLDS: dict[str, World] = {
    "meadow": World(
        sky=((200, 150, 90), (235, 200, 150), (250, 245, 235)),
        far=((60, 85, 60), (90, 130, 95), (140, 170, 140)),
        near=((15, 60, 20), (40, 130, 60), (90, 200, 150)),
        things=((30, 30, 200), (240, 240, 245)),
    ),
    "desert": World(
        sky=((140, 90, 150), (150, 150, 235), (170, 210, 255)),
        far=((40, 60, 120), (60, 100, 180), (90, 140, 210)),
        near=((30, 70, 140), (70, 140, 215), (150, 205, 250)),
        things=((90, 40, 20), (40, 40, 40)),
        roughness=1.5,
    ),
    "reef": World(
        sky=((90, 40, 0), (150, 90, 10), (200, 160, 60)),
        far=((90, 60, 30), (120, 90, 40), (150, 130, 60)),
        near=((60, 20, 60), (90, 60, 190), (140, 170, 255)),
        things=((20, 200, 250), (40, 120, 255), (230, 230, 120)),
        horizon=0.55,
    ),
    "dusk": World(
        sky=((50, 15, 25), (90, 40, 70), (80, 110, 200)),
        far=((40, 22, 25), (65, 40, 45), (90, 60, 70)),
        near=((14, 12, 10), (35, 32, 30), (70, 75, 90)),
        things=((120, 230, 255), (200, 200, 250)),
    ),
    "snow": World(
        sky=((180, 170, 165), (215, 210, 205), (245, 240, 238)),
        far=((120, 105, 95), (175, 165, 160), (225, 220, 218)),
        near=((150, 120, 105), (225, 215, 210), (252, 250, 250)),
        things=((40, 40, 190), (120, 60, 20)),
        roughness=1.2,
    ),
    "forest": World(
        sky=((70, 110, 60), (110, 160, 110), (190, 225, 210)),
        far=((25, 50, 25), (45, 85, 45), (80, 130, 90)),
        near=((8, 25, 15), (25, 65, 50), (50, 120, 120)),
        things=((60, 140, 230), (220, 220, 230)),
        roughness=1.2,
        horizon=0.3,
    ),
}


@dataclass(frozen=True)
class Camera:
    """How the view moves, in pixels per frame of the near ground; `zoom` is the growth per frame (0.002 = 0.2 %)."""

    pan: float = 0.0
    tilt: float = 0.0
    zoom: float = 0.0
    sway_px: float = 0.0
    """A slow hand-held drift of this size."""
    shake_px: float = 0.0
    """Violent: a new random offset of up to this size at every frame."""


@dataclass(frozen=True)
class Shot:
    """`frames` frames of one world by one camera; `freeze` repeats the first picture, as a photograph on film."""

    world: str
    frames: int
    camera: Camera = field(default_factory=Camera)
    seed: int = 0
    things: int = 5
    freeze: bool = False


def texture(rng: np.random.Generator, height: int, width: int, roughness: float) -> npt.NDArray[np.float32]:
    """Periodic 1/f^roughness noise, mean 0.5 and standard deviation 0.22, clipped to 0..1."""
    spectrum = np.fft.rfft2(rng.standard_normal((height, width), dtype=np.float32))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    # below four periods a canvas the noise would only be a slope across the picture
    noise = np.fft.irfft2(spectrum / np.maximum(radius, 4 / height) ** roughness, s=(height, width))
    noise -= noise.mean()
    clipped: npt.NDArray[np.float32] = np.clip(0.5 + 0.22 * noise / noise.std(), 0, 1).astype(np.float32)
    return clipped


def ramp(values: npt.NDArray[np.float32], colours: tuple[Colour, ...]) -> Frame:
    """Colours for values of 0..1, from dark to light."""
    import cv2

    stops = np.linspace(0, 1, len(colours))
    table = np.stack([np.interp(np.linspace(0, 1, 256), stops, [c[i] for c in colours]) for i in range(3)], axis=-1)
    return cv2.applyColorMap((values * 255).astype(np.uint8), np.rint(table).astype(np.uint8)[:, None])  # type: ignore[return-value]


@dataclass(frozen=True)
class Layer:
    """One canvas, periodic to the right; `speed` is its share of the near ground's movement."""

    colour: Frame
    cover: Frame | None
    """Opacity 0..255 in one channel; None covers everything."""
    speed: float


class Scene:
    """One world, grown from a seed for one frame size; `at` looks at it."""

    def __init__(self, world: World, seed: int, width: int, height: int) -> None:
        rng = np.random.default_rng(seed)
        self.width, self.height = width, height
        # about 1.6 by 2 frames, in sizes that a fast Fourier transform likes
        self.canvas = (64 * round(height * (1 + 2 * MARGIN) / 64), 64 * round(2 * width / 64))
        horizon = self.canvas[0] * (MARGIN + world.horizon) / (1 + 2 * MARGIN)
        sky = 0.45 * texture(rng, *self.canvas, world.roughness + 0.3)
        sky += 0.6 * np.linspace(0, 1, self.canvas[0], dtype=np.float32)[:, None] ** 0.8
        self.layers = [
            Layer(self._unroll(ramp(np.clip(sky, 0, 1), world.sky)), None, 0.3),
            self._ground(rng, world, world.far, horizon, 0.55),
            self._ground(rng, world, world.near, horizon + 0.28 * height, 1.0),
        ]
        self.things = [_thing(rng, c, int(height * rng.uniform(0.08, 0.2))) for c in world.things for _ in range(3)]

    def _ground(self, rng: np.random.Generator, world: World, colours: tuple[Colour, ...], top: float, speed: float) -> Layer:
        import cv2

        rows, columns = self.canvas
        light = texture(rng, rows, columns, world.roughness)
        crest = top + _profile(rng, columns) * 0.14 * self.height
        cover = (np.arange(rows)[:, None] > crest[None, :]).astype(np.uint8) * 255
        colour = ramp(light, colours)
        for _ in range(36):  # boulders and bushes: edges and shadows, as real ground has
            x, size = int(rng.integers(columns)), int(self.height * rng.uniform(0.02, 0.08))
            y = int(min(crest[x] + rng.uniform(0, 0.8) * self.height * speed, rows - 1))
            shade = np.array(colours[int(rng.integers(3))]) * rng.uniform(0.5, 1.1)
            axes, tilt = (size, int(size * rng.uniform(0.5, 1.3))), float(rng.uniform(-25, 25))
            for part in (1.0, 0.7, 0.4):
                tone = tuple(int(min(v * (1.35 - 0.4 * part), 255)) for v in shade)
                centre, reach = (x, int(y - size * 0.3 * (1 - part))), (int(axes[0] * part), int(axes[1] * part))
                cv2.ellipse(cover, centre, reach, tilt, 0, 360, 255, -1, cv2.LINE_AA)
                cv2.ellipse(colour, centre, reach, tilt, 0, 360, tone, -1, cv2.LINE_AA)
        grain = (light * 0.8 + 0.6)[..., None]
        colour = np.clip(colour * grain, 0, 255).astype(np.uint8)
        cover = cv2.GaussianBlur(cover, (3, 3), 0)  # type: ignore[assignment]
        premultiplied = cv2.multiply(colour, cv2.cvtColor(cover, cv2.COLOR_GRAY2BGR), scale=1 / 255)
        return Layer(self._unroll(premultiplied), self._unroll(cover), speed)  # type: ignore[arg-type]

    def _unroll(self, canvas: Frame) -> Frame:
        """The canvas and enough of its repetition that no view within one period reaches the end."""
        return np.ascontiguousarray(np.hstack([canvas, canvas[:, : int(1.7 * self.width)]]))

    def at(self, x: float, y: float, zoom: float) -> Frame:
        """The view with its centre moved by (x, y) canvas pixels, magnified by `zoom`."""
        import cv2

        sky, *grounds = self.layers
        picture = self._warp(sky.colour, x * sky.speed, y * sky.speed, zoom)
        for layer in grounds:
            assert layer.cover is not None
            shift = (x * layer.speed, y * layer.speed)
            cover = cv2.cvtColor(self._warp(layer.cover, *shift, zoom), cv2.COLOR_GRAY2BGR)
            picture = _over(picture, self._warp(layer.colour, *shift, zoom), cover)  # type: ignore[arg-type]
        return picture

    def _warp(self, canvas: Frame, x: float, y: float, zoom: float) -> Frame:
        import cv2

        step = 1 / zoom
        left = (self.canvas[1] / 2 + x - self.width / 2 * step) % self.canvas[1]
        top = self.canvas[0] / 2 + y - self.height / 2 * step
        if zoom == 1:
            return self._shift(canvas, left, top)
        view = np.array([[step, 0, left], [0, step, top]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size = (self.width, self.height)
        return cv2.warpAffine(canvas, view, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[return-value]

    def _shift(self, canvas: Frame, left: float, top: float) -> Frame:
        """What `warpAffine` gives without a change of size, in a fifth of the time."""
        import cv2

        top = float(np.clip(top, 0, self.canvas[0] - self.height - 1))
        x, y = int(left), int(top)
        window = canvas[y : y + self.height + 1, x : x + self.width + 1]
        part = left - x
        across = window[:, :-1] if part == 0 else cv2.addWeighted(window[:, :-1], 1 - part, window[:, 1:], part, 0)
        part = top - y
        both = across[:-1] if part == 0 else cv2.addWeighted(across[:-1], 1 - part, across[1:], part, 0)
        return np.ascontiguousarray(both)


def _profile(rng: np.random.Generator, width: int) -> npt.NDArray[np.float64]:
    """The outline of a ridge: periodic 1/f^1.5 noise, mean 0 and standard deviation 1."""
    spectrum = np.fft.rfft(rng.standard_normal(width))
    line = np.fft.irfft(spectrum / np.maximum(np.fft.rfftfreq(width), 3 / width) ** 1.5, n=width)
    outline: npt.NDArray[np.float64] = (line - line.mean()) / line.std()
    return outline


def _over(below: Frame, above: Frame, cover: Frame) -> Frame:
    """Premultiplied `above` over `below`; `cover` has three channels."""
    import cv2

    return cv2.add(cv2.multiply(below, cv2.bitwise_not(cover), scale=1 / 255), above)  # type: ignore[return-value]


def _thing(rng: np.random.Generator, colour: Colour, size: int) -> tuple[Frame, Frame]:
    """A shaded, spotted body of about `size` pixels: premultiplied colour and cover."""
    import cv2

    side = 2 * size + 4
    cover = np.zeros((side, side, 3), np.uint8)
    axes = (size, int(size * rng.uniform(0.45, 0.9)))
    cv2.ellipse(cover, (side // 2, side // 2), axes, float(rng.uniform(-40, 40)), 0, 360, (255, 255, 255), -1, cv2.LINE_AA)
    light = 0.55 + 0.9 * texture(rng, side, side, 1.2) * np.linspace(1.2, 0.5, side, dtype=np.float32)[:, None]
    body = np.clip(np.array(colour, np.float32) * light[..., None], 0, 255).astype(np.uint8)
    return cv2.multiply(body, cover, scale=1 / 255), cover  # type: ignore[return-value]


def _paste(picture: Frame, thing: tuple[Frame, Frame], x: int, y: int) -> None:
    """Draw a thing with its corner at (x, y), in place; what is outside the picture is cut off."""
    body, cover = thing
    height, width = picture.shape[:2]
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + body.shape[1], width), min(y + body.shape[0], height)
    if left < right and top < bottom:
        part = np.s_[top - y : bottom - y, left - x : right - x]
        picture[top:bottom, left:right] = _over(picture[top:bottom, left:right], body[part], cover[part])


def render(shot: Shot, width: int, height: int) -> Iterator[Frame]:
    """The frames of one shot."""
    scene = Scene(WORLDS[shot.world], shot.seed, width, height)
    rng = np.random.default_rng(shot.seed + 1)
    paths = [_Path(rng, width, height) for _ in range(shot.things)]
    still: Frame | None = None
    for t in range(shot.frames):
        if still is None:
            picture = scene.at(*_view(shot.camera, t, shot.frames, rng))
            for i, path in enumerate(paths):
                _paste(picture, scene.things[i % len(scene.things)], *path.at(t))
            still = picture if shot.freeze else None
        yield picture if still is None else still.copy()


def _view(camera: Camera, t: int, frames: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """Centre (x, y) and zoom at frame `t`; tilts and zooms pass through their middle at half time."""
    middle = t - frames / 2
    x = camera.pan * t + camera.sway_px * np.sin(t / 11.0) + camera.sway_px * 0.6 * np.sin(t / 4.7 + 1)
    y = camera.tilt * middle + camera.sway_px * 0.5 * np.sin(t / 8.3 + 2)
    zoom = float(np.exp(camera.zoom * (t if camera.zoom > 0 else t - frames)))
    if camera.shake_px:
        x, y = x + rng.uniform(-1, 1) * camera.shake_px, y + rng.uniform(-0.45, 0.45) * camera.shake_px
    return float(x), float(y), zoom


class _Path:
    """A smooth way through the picture: two slow sine waves, seldom in step."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.middle = rng.uniform(0.2, 0.8, 2) * (width, height)
        self.reach = rng.uniform(0.2, 0.45, 2) * (width, height)
        self.rate = rng.uniform(0.015, 0.04, 2)
        self.phase = rng.uniform(0, 6.28, 2)

    def at(self, t: int) -> tuple[int, int]:
        x, y = self.middle + self.reach * np.sin(self.rate * t + self.phase)
        return int(x), int(y)
