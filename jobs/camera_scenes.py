"""Camera moves over made-up places, seen through a pinhole: what the camera classifier learns from, and is tested on.

A place is a set of textured planes (ground, walls, backdrop) and upright cards at several depths, some of which move by
themselves. The camera turns, travels, changes its focal length or shakes; that pan and truck, tilt and pedestal, zoom
and push differ by parallax then needs no telling. World axes: x right, y down, z forward; lengths in distances to what
the camera looks at, focal lengths and speeds in the picture in short sides.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

from filters.camera_series import FLOW_ERROR_PX

Array = NDArray[np.float64]
Plane = NDArray[np.uint8]

TEXTURE_PX = 256
SUPERSAMPLE = 2
"""Pictures are drawn so many times larger and then shrunk, as the small planes of a video are."""
NEAR = 0.06
"""Nothing nearer than this is drawn."""
LENS = ("zoom_in", "zoom_out", "pan_left", "pan_right", "tilt_up", "tilt_down", "static", "handheld")
"""Classes in which the camera stays in its place: a flat picture shows them too."""
PARALLAX_PX = FLOW_ERROR_PX
"""Where the camera travels, depths move against each other by this much a pair of frames and more: less than the flow errs
by shows no one that it is no move of the lens."""
STEADY, HANDHELD = (0.001, 0.02), (0.045, 0.6)
"""Tremor of a static and of a hand-held camera, in short sides a second: people call static what a steady hand holds."""
SIGNS = {"in": 1, "out": -1, "right": 1, "left": -1, "down": 1, "up": -1}


def textures(rng: np.random.Generator, count: int) -> list[Plane]:
    """Grey tiles (256, 256) that repeat without a seam: 1/f noise of several slopes, with or without things drawn in."""
    import cv2

    fx, fy = np.fft.fftfreq(TEXTURE_PX)[:, None], np.fft.rfftfreq(TEXTURE_PX)[None]
    radius = np.hypot(fx, fy)
    radius[0, 0] = 1
    out = []
    for _ in range(count):
        spectrum = np.fft.rfft2(rng.normal(size=(TEXTURE_PX, TEXTURE_PX))) / radius ** rng.uniform(0.8, 1.8)
        spectrum[0, 0] = 0
        noise = np.fft.irfft2(spectrum, (TEXTURE_PX, TEXTURE_PX))
        tile = 128 + noise / noise.std() * rng.uniform(6, 45)
        for _ in range(int(rng.choice([0, 8, 30, 80], p=[0.2, 0.2, 0.3, 0.3]))):
            corner, size, level = rng.integers(0, TEXTURE_PX, 2), rng.geometric(0.04, 2) + 2, float(rng.uniform(10, 245))
            end = corner + size
            kind = rng.integers(3)
            if kind == 0:
                cv2.rectangle(tile, corner.tolist(), end.tolist(), level, -1)
            elif kind == 1:
                cv2.ellipse(tile, corner.tolist(), size.tolist(), float(rng.uniform(0, 180)), 0, 360, level, -1)
            else:
                cv2.line(tile, corner.tolist(), (corner + rng.integers(-120, 120, 2)).tolist(), level, int(rng.integers(1, 5)))
        out.append(np.clip(tile, 0, 255).astype(np.uint8))
    return out


@dataclass
class Surface:
    """A textured plane: `origin` + s * axes[:, 0] + t * axes[:, 1], `texel` long per texture pixel. A card has a `shape`."""

    origin: Array
    axes: Array
    tile: Plane
    texel: float
    shape: Plane | None = None
    velocity: Array = field(default_factory=lambda: np.zeros(3))
    sway: Array = field(default_factory=lambda: np.zeros(4))
    """Sideways and upward amplitude, rate in Hz, and amplitude of its width, of something that lives."""
    follows: bool = False
    """Moves with the camera."""
    others: tuple[Plane, ...] = ()
    """Tiles it changes into and out of, as water and fire do."""
    rate_hz: float = 0.0

    def homography(self, time_s: float, camera: Array) -> Array:
        """(3, 3): texture pixels to world offsets from the camera's place."""
        swing = np.sin(2 * np.pi * self.sway[2] * time_s + self.sway[0] * 1000)
        origin = self.origin + self.velocity * time_s
        origin = origin + self.axes @ (self.sway[:2] * np.array([swing, abs(swing)]))
        axes = self.axes * np.array([1 + self.sway[3] * swing, 1.0]) * self.texel
        return np.column_stack([axes, (origin if self.follows else origin - camera) - axes @ np.full(2, TEXTURE_PX / 2)])

    def picture(self, time_s: float) -> Plane:
        """The tile as it is now."""
        import cv2

        if not self.others:
            return self.tile
        place = time_s * self.rate_hz
        tiles = (self.tile, *self.others)
        first, second = (tiles[int(place + i) % len(tiles)] for i in range(2))
        return cv2.addWeighted(first, 1 - place % 1, second, place % 1, 0)  # type: ignore[return-value]


@dataclass
class Track:
    """The camera at each of N times: place (N, 3), yaw, pitch and roll (N, 3) in radians, focal length (N,), picture's
    shift (N, 2); and how fast it makes what it looks at move, in short sides a second."""

    place: Array
    angles: Array
    focal: Array
    shift: Array
    speed: float


@dataclass(frozen=True)
class Clip:
    """One made clip: its class, pictures a second, and how it is drawn. The seed decides all the rest."""

    label: str
    seed: int
    rate_hz: float
    count: int
    width: int
    height: int


def drawn(label: str, seed: int) -> Clip:
    """A clip of a class with a size, a rate and a length as videos have them, at the rate the flow is measured at."""
    rng = np.random.default_rng((seed, 1))
    short = int(rng.integers(54, 84))
    aspect = float(rng.choice([16 / 9, 16 / 9, 4 / 3, 1.0, 2.35]))
    width, height = round(short * aspect), short
    if rng.random() < 0.25:
        width, height = height, width
    rate = float(rng.choice([12.0, 12.5, 12.0, 15.0, 10.0, 8.0]))
    seconds = float(rng.uniform(3.5, 6.0))
    return Clip(label, seed, rate, max(10, round(seconds * rate)) + 1, width, height)


def _shake(rng: np.random.Generator, count: int, rate: float, corner_hz: float) -> Array:
    """A zero-mean path (count,) of speed 1 a second in the mean square, whose speed has no frequency far above the corner."""
    freq = np.fft.rfftfreq(count + 64, 1 / rate)
    speed = np.fft.irfft(np.fft.rfft(rng.normal(size=count + 64)) / (1 + (freq / corner_hz) ** 2), count + 64)[:count]
    speed /= np.sqrt(np.mean(speed**2)) + 1e-9
    path = np.cumsum(speed) / rate
    return np.asarray(path - path.mean())


def _progress(rng: np.random.Generator, count: int) -> Array:
    """How much of a move is done at each picture, 0 to 1: even, eased, late, or cut off; most of the clip moves."""
    t = np.linspace(0, 1, count)
    kind = rng.choice(["even", "eased", "part", "faster"], p=[0.45, 0.25, 0.15, 0.15])
    if kind == "eased":
        t = 0.5 * t + 0.5 * (t * t * (3 - 2 * t))
    elif kind == "part":
        start = rng.uniform(0, 0.25)
        t = np.clip((t - start) / (rng.uniform(0.75, 1.0) - start), 0, 1)
    elif kind == "faster":
        power = rng.uniform(0.7, 1.5)
        t = t**power
    return np.asarray(t)


def _log(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def track(clip: Clip, rng: np.random.Generator, flat: bool) -> Track:
    """The camera's way. The subject of an arc and of tracking is at (0, 0, 1); in a flat place moves are of the lens alone."""
    n, seconds = clip.count, (clip.count - 1) / clip.rate_hz
    done = _progress(rng, n)
    times = np.linspace(0, 1, n) - 0.5
    place, angles, shift = np.zeros((n, 3)), np.zeros((n, 3)), np.zeros((n, 2))
    focal0 = _log(rng, 0.75, 2.6)
    focal = np.full(n, focal0)
    kind, _, way = clip.label.partition("_")
    sign = SIGNS.get(way, 1)
    middle = done - 0.5
    speed = 0.0  # in the picture
    if kind in ("pan", "tilt"):
        speed = _log(rng, 0.08, 1.3)
        angle = min(speed * seconds / focal0, 1.2 if kind == "pan" else 0.8)
        speed = angle * focal0 / seconds
        if flat:
            shift[:, 0 if kind == "pan" else 1] = -sign * angle * focal0 * middle
        else:
            angles[:, 0 if kind == "pan" else 1] = sign * angle * middle
    elif kind in ("truck", "pedestal"):
        speed = _log(rng, 0.16, 1.0)
        way_long = min(speed * seconds, 2.5 if kind == "truck" else 0.9) / focal0
        speed = way_long * focal0 / seconds
        place[:, 0 if kind == "truck" else 1] = sign * way_long * middle
    elif kind == "zoom":
        total = np.clip(_log(rng, 0.05, 0.5) * seconds, 0.1, 1.1)
        speed = total / seconds * 0.4
        focal = focal0 * np.exp(sign * total * middle)
    elif kind in ("push", "pull"):
        total = np.clip(_log(rng, 0.09, 0.5) * seconds, 0.18, 0.65)
        speed = total / seconds * 0.4
        place[:, 2] = sign * total * (done if sign > 0 else done - 1)
    elif kind == "arc":
        angle = np.clip(_log(rng, 0.16, 0.9) * seconds / focal0, 0.2, 1.6)
        speed = angle * focal0 / seconds
        turned = rng.choice([-1, 1]) * angle * middle + rng.normal(0, 0.2)
        distance = 1 + rng.normal(0, 0.06) * middle
        above = rng.uniform(0, 1.0) if rng.random() < 0.5 else rng.uniform(0, 0.2)
        place[:, 0], place[:, 2] = np.sin(turned) * np.cos(above) * distance, 1 - np.cos(turned) * np.cos(above) * distance
        place[:, 1] = -np.sin(above) * distance
        angles[:, 0], angles[:, 1] = -turned, above
    elif kind == "tracking":
        speed = _log(rng, 0.24, 1.1)
        heading = rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2], p=[0.3, 0.3, 0.2, 0.2]) + rng.normal(0, 0.12)
        way_long = min(speed * seconds, 4.0) / focal0
        angles[:, 1] = rng.uniform(0, 0.15)
        speed = way_long * focal0 / seconds * float(np.hypot(np.cos(heading), 0.4 * np.sin(heading)))
        place[:, 0], place[:, 2] = way_long * np.cos(heading) * middle, way_long * np.sin(heading) * middle
    if kind == "handheld":
        _hand(rng, clip, _log(rng, *HANDHELD), focal0, place, angles)
        drift = rng.normal(0, 0.012, 2) / focal0 * seconds
        angles[:, :2] += times[:, None] * drift
    elif kind == "static":
        if rng.random() < 0.35:
            _hand(rng, clip, _log(rng, *STEADY), focal0, place, angles)
    elif rng.random() < 0.5:
        # Who zooms, walks or goes round by hand shakes as fast as the picture grows or turns, or faster.
        most = {"zoom": 2.5, "push": 2.5, "pull": 2.5, "arc": 1.0}.get(kind)
        tremor = _log(rng, 0.005, most * speed) if most else speed * rng.uniform(0.02, 0.35)
        _hand(rng, clip, min(0.25, tremor), focal0, place, angles)
        if rng.random() < 0.5:
            angles[:, :2] += times[:, None] * rng.normal(0, 0.03, 2) * speed * seconds / focal0
    return Track(place, angles, focal, shift, float(speed))


def _hand(rng: np.random.Generator, clip: Clip, speed: float, focal: float, place: Array, angles: Array) -> None:
    """Add a hand's tremor of so much speed in the picture: mostly turning, 0.5 to 4 Hz."""
    corner = _log(rng, 0.5, 4.0)
    for axis, share in enumerate((0.65, 0.65, 0.25)):
        angles[:, axis] += share * speed / focal * _shake(rng, clip.count, clip.rate_hz, corner)
    for axis in range(3):
        place[:, axis] += 0.3 * speed / focal * _shake(rng, clip.count, clip.rate_hz, corner)


def _card_shape(rng: np.random.Generator) -> Plane:
    """The outline of a thing (256, 256), 0 or 255: a few ellipses or a box."""
    import cv2

    shape = np.zeros((TEXTURE_PX, TEXTURE_PX), np.uint8)
    if rng.random() < 0.25:
        half = rng.integers(40, 120, 2)
        shape[128 - half[0] : 128 + half[0], 128 - half[1] : 128 + half[1]] = 255
        return shape
    for _ in range(rng.integers(2, 6)):
        centre, size = rng.normal(128, 30, 2).astype(int), rng.integers(20, 70, 2)
        cv2.ellipse(shape, centre.tolist(), size.tolist(), float(rng.uniform(0, 180)), 0, 360, 255, -1)
    return shape


UPRIGHT = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
LYING = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
SIDE = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])


def _place(
    clip: Clip, rng: np.random.Generator, tiles: list[Plane], focal: float, flat: bool
) -> tuple[list[Surface], list[Surface]]:
    """The planes and the cards of a place."""
    short = min(clip.width, clip.height) * SUPERSAMPLE

    def tile() -> Plane:
        chosen = tiles[rng.integers(len(tiles))].astype(np.float32)
        contrast = rng.uniform(0.4, 1.6) if rng.random() < 0.9 else rng.uniform(0.1, 0.4)
        return np.asarray(np.clip((chosen - 128) * contrast + rng.uniform(50, 205), 0, 255), np.uint8)

    def texel(depth: float) -> float:
        return depth / (focal * short) * _log(rng, 0.8, 2.2)

    def plane(origin: list[float], axes: Array, depth: float) -> Surface:
        return Surface(np.array(origin), axes, tile(), texel(depth))

    def card(where: Array, size: float, **life: object) -> Surface:
        lively = {"others": tuple(tile() for _ in range(3)), "rate_hz": _log(rng, 1, 6)} if rng.random() < 0.12 else {}
        return Surface(where, UPRIGHT, tile(), size / TEXTURE_PX, _card_shape(rng), **life, **lively)  # type: ignore[arg-type]

    if flat:
        planes = [plane([0, 0, 1.0], UPRIGHT, 1.0)]
    else:
        deep = clip.label not in LENS
        far, floor, wall = _log(rng, 2.0 if deep else 1.6, 9), rng.uniform(0.25, 0.9), rng.uniform(0.4, 1.4)
        planes = [plane([0, 0, far], UPRIGHT, far)]
        if deep or rng.random() < 0.85:
            planes.append(plane([0, floor, 1], LYING, 1.0))
        if rng.random() < 0.25:
            planes.append(plane([0, -rng.uniform(0.4, 1.2), 1], LYING, 1.0))
        planes += [plane([side * wall, 0, 1], SIDE, 1.0) for side in (-1, 1) if rng.random() < 0.3]
        if rng.random() < 0.12:  # sky
            planes[0].tile = np.full_like(planes[0].tile, int(rng.uniform(120, 250)))
        if rng.random() < (0.2 if clip.label == "static" else 0.05):  # water
            planes[-1].others, planes[-1].rate_hz = (tile(), tile(), tile()), _log(rng, 0.5, 4)
    reach = 0.5 / focal
    cards = []
    span = 3.0 if clip.label.startswith(("truck", "tracking", "pan", "arc")) else 1.6
    for _ in range(0 if flat else rng.integers(4, 14)):
        depth = _log(rng, 0.5, 3.5)
        where = np.array([rng.normal(0, span) * depth * reach, rng.normal(0.1, 0.7) * depth * reach, depth])
        cards.append(card(where, depth * reach * _log(rng, 0.25, 1.8)))
    if clip.label == "arc":
        for _ in range(rng.integers(4, 10)):
            spread = rng.normal(0, 0.22, 3) * (1, 0.8, 1)
            cards.append(card(np.array([0, 0, 1.0]) + spread * min(1.0, 2 * reach), reach * _log(rng, 0.4, 1.2)))
    if clip.label == "tracking":
        size = reach * _log(rng, 0.9, 2.4)
        for _ in range(rng.integers(1, 4)):
            life = np.array([_log(rng, 0.005, 0.06), _log(rng, 0.005, 0.05), _log(rng, 0.7, 3), rng.uniform(0, 0.1)])
            spot = np.array([0, 0, 1.0]) + rng.normal(0, 0.16, 3) * (size, size, 0.01)
            cards.append(card(spot, size * rng.uniform(0.6, 1.1), follows=True, sway=life))
    movers = rng.integers(0, 7) if clip.label == "static" else rng.choice([0, 1, 2, 3], p=[0.4, 0.3, 0.2, 0.1])
    for _ in range(int(movers)):
        depth = _log(rng, 0.6, 2.0)
        largest = 4.0 if clip.label in ("static", "handheld") else 1.2
        pace = rng.normal(0, 0.5, 3) * (1, 0.2, 0.3) * reach * (rng.random() < 0.5)
        life = np.array([rng.uniform(0.005, 0.15), rng.uniform(0, 0.1), _log(rng, 0.3, 3), rng.uniform(0, 0.15)])
        where = np.array([rng.normal(0, 0.8) * depth * reach, rng.normal(0.1, 0.5) * depth * reach, depth])
        cards.append(card(where, depth * reach * _log(rng, 0.4, largest), velocity=pace, sway=life))
    return planes, cards


def _rotation(yaw: float, pitch: float, roll: float) -> Array:
    """World to camera; positive yaw looks right, positive pitch down, positive roll clockwise."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    turn = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    return np.asarray(np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]]) @ nod @ turn)


def _view(clip: Clip, way: Track, index: int, scale: int) -> Array:
    """(3, 3): offsets from the camera's place in the world to pixels of a picture so many times larger."""
    short = min(clip.width, clip.height) * scale
    f = way.focal[index] * short
    across, down = np.array([clip.width, clip.height]) * scale / 2 + way.shift[index] * short
    return np.asarray(np.array([[f, 0, across], [0, f, down], [0, 0, 1]]) @ _rotation(*way.angles[index]))


def _depths(clip: Clip, way: Track, surfaces: list[Surface]) -> Array:
    """Inverse depths (N,) all over the middle picture, 0 for what goes along with the camera: what its travel moves by."""
    index = clip.count // 2
    view, time_s = _view(clip, way, index, 1), index / clip.rate_hz
    grid = (np.indices((24, 24)).reshape(2, -1) + 0.5) / 24
    points = np.stack([grid[1] * clip.width, grid[0] * clip.height, np.ones(24 * 24)])
    nearest, moves = np.full(24 * 24, 1e-3), np.zeros(24 * 24)
    for surface in surfaces:
        *spot, depth = np.linalg.pinv(view @ surface.homography(time_s, way.place[index])) @ points  # inverse depth
        hit = (depth > nearest) & (depth < 1 / NEAR)
        if surface.shape is not None:
            column, row = (np.where(hit, s / np.where(hit, depth, 1), -1) for s in spot)
            hit &= (np.minimum(column, row) >= 0) & (np.maximum(column, row) < TEXTURE_PX)
            hit[hit] = surface.shape[row[hit].astype(int), column[hit].astype(int)] > 127
        nearest[hit], moves[hit] = depth[hit], 0 if surface.follows else depth[hit]
    return moves


def scene(clip: Clip, tiles: list[Plane]) -> tuple[Track, list[Surface], list[Surface]]:
    """The camera's way, the planes and the cards: the first drawn whose parallax, where there must be some, can be seen."""
    for attempt in count():
        rng = np.random.default_rng((clip.seed, 2, attempt))
        flat = clip.label in LENS and rng.random() < 0.08
        way = track(clip, rng, flat)
        planes, cards = _place(clip, rng, tiles, float(np.median(way.focal)), flat)
        if clip.label in LENS:
            break
        pair_px = way.speed * min(clip.width, clip.height) / clip.rate_hz
        if pair_px * _depths(clip, way, planes + cards).std() >= PARALLAX_PX:
            break
    return way, planes, cards


def render(clip: Clip, tiles: list[Plane]) -> Iterator[Plane]:
    """The clip's grey pictures (height, width), uint8, as a small luma plane shows them."""
    import cv2

    way, planes, cards = scene(clip, tiles)
    size = (clip.width * SUPERSAMPLE, clip.height * SUPERSAMPLE)
    across, down = (np.arange(side, dtype=np.float32) for side in size)
    film = _Film(clip)
    for i in range(clip.count):
        time_s = i / clip.rate_hz
        view = _view(clip, way, i, SUPERSAMPLE)
        canvas = np.zeros(size[::-1], np.uint8)
        nearest = np.full(size[::-1], 1e-3, np.float32)
        for surface in planes:
            shown = view @ surface.homography(time_s, way.place[i])
            if abs(np.linalg.det(shown)) < 1e-12:
                continue
            back = np.linalg.inv(shown)
            row, column = back[2, 0].astype(np.float32) * across, (back[2, 1] * down + back[2, 2]).astype(np.float32)
            depth = row[None] + column[:, None]  # inverse depth
            wins = (depth > nearest) & (depth < 1 / NEAR)
            if wins.any():
                picture = cv2.warpPerspective(
                    surface.picture(time_s),
                    back,
                    size,
                    flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                    borderMode=cv2.BORDER_WRAP,
                )
                cv2.copyTo(picture, wins.view(np.uint8), canvas)
                cv2.copyTo(depth, wins.view(np.uint8), nearest)
        placed = sorted(((view @ c.homography(time_s, way.place[i]), c) for c in cards), key=lambda p: -_depth(p[0]))
        for shown, surface in placed:
            _paint(canvas, shown, surface, time_s)
        yield film.expose(cv2.resize(canvas, (clip.width, clip.height), interpolation=cv2.INTER_AREA))  # type: ignore[arg-type]


def _depth(shown: Array) -> float:
    """Depth of a card's middle."""
    return float(shown[2] @ (TEXTURE_PX / 2, TEXTURE_PX / 2, 1))


def _paint(canvas: Plane, shown: Array, card: Surface, time_s: float) -> None:
    """Draw a card where it falls into the picture."""
    import cv2

    assert card.shape is not None
    corners = shown @ np.array([[0, 0, 1], [TEXTURE_PX, 0, 1], [0, TEXTURE_PX, 1], [TEXTURE_PX, TEXTURE_PX, 1]], float).T
    if corners[2].min() < NEAR or corners[2].max() > 50:
        return
    across, down = corners[:2] / corners[2]
    left, right = max(0, int(across.min())), min(canvas.shape[1], int(across.max()) + 2)
    top, bottom = max(0, int(down.min())), min(canvas.shape[0], int(down.max()) + 2)
    if right - left < 2 or bottom - top < 2:
        return
    moved = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]]) @ shown
    size = (right - left, bottom - top)
    part = canvas[top:bottom, left:right]
    shape = cv2.threshold(cv2.warpPerspective(card.shape, moved, size), 127, 255, cv2.THRESH_BINARY)[1]
    cv2.copyTo(cv2.warpPerspective(card.picture(time_s), moved, size), shape, part)


class _Film:
    """What happens to a picture after the lens: light, blur, grain, bars, an inset, and a codec that repeats still blocks."""

    def __init__(self, clip: Clip) -> None:
        self.rng = rng = np.random.default_rng((clip.seed, 3))
        self.gain, self.lift = rng.uniform(0.5, 1.1), rng.uniform(0, 25)
        self.flicker = rng.uniform(0.005, 0.05) if rng.random() < 0.2 else 0.0
        self.grain = _log(rng, 0.3, 4.0) if rng.random() < 0.5 else 0.0
        self.blur = rng.uniform(0.5, 1.6) if rng.random() < 0.3 else 0.0
        self.hold = _log(rng, 0.3, 2.5) if rng.random() < 0.6 else 0.0
        self.bars = (0, 0)
        if rng.random() < 0.15:
            width = int(rng.uniform(0.05, 0.2) * min(clip.width, clip.height))
            self.bars = (width, 0) if rng.random() < 0.6 else (0, width)
        self.inset: tuple[slice, slice] | None = None
        if rng.random() < 0.15:
            h, w = int(rng.integers(4, clip.height // 5)), int(rng.integers(6, clip.width // 2))
            top, left = int(rng.integers(0, clip.height - h)), int(rng.integers(0, clip.width - w))
            self.inset = slice(top, top + h), slice(left, left + w)
            self.writing = np.where(rng.random((h, w)) < 0.4, 235, 20)
        self.before: Plane | None = None

    def expose(self, picture: Plane) -> Plane:
        """The next picture as it comes out of a decoder."""
        import cv2

        if self.blur:
            picture = cv2.GaussianBlur(picture, (0, 0), self.blur)  # type: ignore[assignment]
        seen = picture * (self.gain * (1 + self.flicker * self.rng.normal())) + self.lift
        if self.grain:
            seen = seen + self.rng.normal(0, self.grain, picture.shape)
        if self.inset:
            seen[self.inset] = self.writing
        down, across = self.bars
        seen[:down] = seen[seen.shape[0] - down :] = 16
        seen[:, :across] = seen[:, seen.shape[1] - across :] = 16
        out: Plane = np.clip(seen, 0, 255).astype(np.uint8)
        if self.hold and self.before is not None:
            small = ((out.shape[1] + 3) // 4, (out.shape[0] + 3) // 4)
            change = cv2.resize(cv2.absdiff(out, self.before).astype(np.float32), small, interpolation=cv2.INTER_AREA)
            still = cv2.resize(
                (change < self.hold).astype(np.uint8), (out.shape[1], out.shape[0]), interpolation=cv2.INTER_NEAREST
            )
            out = np.where(still > 0, self.before, out)
        self.before = out
        return out
