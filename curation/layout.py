"""`layout`: a global descriptor of a picture that needs no weights, for near-duplicates and for concepts in the rough.

A picture without its bars is shrunk to 64 x 64 and taken to CIELAB. What is described is how colour and edges lie in it,
not how light or colourful it is:

    colour    8 x 8 cells of (L - mean L) / (std L + 3), (a - mean a) / 20 and (b - mean b) / 20
    gradient  4 x 4 cells of 8 unsigned orientations: the square root of the mean Sobel magnitude of L as above, less its mean

A mirrored picture should be the same one: each part x and its mirror image x' become (x + x') / 2 and |x - x'| / 2, of which
the left half says all. The two parts, each of unit length, are one vector of 320 numbers, of unit length again.
"""

import numpy as np
from numpy.typing import NDArray

from curation.picture import Picture

Vector = NDArray[np.float32]

SIDE, COLOUR_CELLS, GRADIENT_CELLS, ORIENTATIONS = 64, 8, 4, 8
WIDTH = COLOUR_CELLS * COLOUR_CELLS * 3 + GRADIENT_CELLS * GRADIENT_CELLS * ORIENTATIONS
FLAT = 1 / 255
"""Shrunk pictures in which no channel spans more than this are of one colour: they have no layout."""


def describe(picture: Picture) -> Vector | None:
    """The descriptor (WIDTH,) of an RGB picture (height, width, 3), of unit length; None for a picture of one colour."""
    import cv2

    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    if np.ptp(small, axis=(0, 1)).max() <= FLAT:
        return None
    lab: Vector = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2Lab), np.float32)
    lab -= lab.mean(axis=(0, 1))
    lab /= (lab[..., 0].std() + 3, 20, 20)
    colour: Vector = np.asarray(cv2.resize(lab, (COLOUR_CELLS, COLOUR_CELLS), interpolation=cv2.INTER_AREA), np.float32)
    parts = [_unmirrored(colour, colour[:, ::-1])]
    gradient = _gradient(lab[..., 0])
    parts.append(_unmirrored(gradient, gradient[:, ::-1, ::-1]))  # a mirror turns orientation k into the last but k
    vector = np.concatenate([part / max(float(np.linalg.norm(part)), 1e-6) for part in parts])
    unit: Vector = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def _gradient(light: Vector) -> Vector:
    """Square roots of the mean edge strength in each cell by orientation (cells, cells, ORIENTATIONS), less their mean."""
    import cv2

    dx, dy = (cv2.Sobel(light, cv2.CV_32F, *axis, ksize=3) for axis in ((1, 0), (0, 1)))
    strength, angle = cv2.cartToPolar(dx, dy)
    turn = np.minimum((angle % np.pi) * (ORIENTATIONS / np.pi), ORIENTATIONS - 1).astype(np.int64)
    cell = SIDE // GRADIENT_CELLS
    row, column = np.indices((SIDE, SIDE)) // cell
    place = (row * GRADIENT_CELLS + column) * ORIENTATIONS + turn
    sums = np.bincount(place.ravel(), strength.ravel(), GRADIENT_CELLS * GRADIENT_CELLS * ORIENTATIONS)
    roots: Vector = np.sqrt(sums / cell**2).astype(np.float32).reshape(GRADIENT_CELLS, GRADIENT_CELLS, ORIENTATIONS)
    roots -= roots.mean()
    return roots


def _unmirrored(x: Vector, mirrored: Vector) -> Vector:
    """What a part and its mirror image have in common."""
    half = x.shape[1] // 2
    return np.concatenate([((x + mirrored) / 2)[:, :half].ravel(), np.abs((x - mirrored) / 2)[:, :half].ravel()])
