"""Changes to media files: of their bytes, and of the parts their containers are made of."""

import struct
import zlib
from collections.abc import Callable, Sequence

import numpy as np

from tests.hostile.containers import Part, elements, png_chunks, riff
from tests.hostile.corpus import boxes

NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    100_000,
    1_000_000_000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)
TS_PACKET = 188


def parts(data: bytes) -> list[Part]:
    """What a container is made of: boxes, EBML elements, RIFF or PNG chunks, TS packets; else slices of equal size."""
    if data[4:8] in (b"ftyp", b"moov", b"free", b"wide", b"mdat"):
        found = [Part(b.start, b.size, 8) for b in boxes(data)]
    elif data.startswith(b"\x1aE\xdf\xa3"):
        found = list(elements(data))
    elif data.startswith(b"RIFF"):
        found = list(riff(data))
    elif data.startswith(b"\x89PNG"):
        found = list(png_chunks(data))
    elif data[:1] == b"\x47" and len(data) > TS_PACKET:
        found = [Part(n, TS_PACKET, 4) for n in range(0, len(data) - TS_PACKET + 1, TS_PACKET)]
    else:
        found = []
    step = max(16, len(data) // 64)
    return found or [Part(n, min(step, len(data) - n), min(8, step)) for n in range(0, len(data), step)]


def mended(data: bytes) -> bytes:
    """The checksums of a PNG's chunks made right again, so that a change goes deeper than them."""
    if not data.startswith(b"\x89PNG"):
        return data
    out = bytearray(data)
    for part in png_chunks(data):
        body = data[part.start + 4 : part.start + part.size - 4]
        out[part.start + part.size - 4 : part.start + part.size] = struct.pack(">I", zlib.crc32(body))
    return bytes(out)


Change = Callable[[bytes, np.random.Generator, Sequence[bytes]], bytes]


def _part(data: bytes, rng: np.random.Generator) -> Part:
    """A part by chance; small ones, which are headers, as often as large ones."""
    found = parts(data)
    return found[int(rng.integers(len(found)))]


def _place(data: bytes, rng: np.random.Generator) -> int:
    """A byte by chance: half the time one of a part's first bytes, else any."""
    if rng.random() < 0.5:
        return int(rng.integers(len(data)))
    part = _part(data, rng)
    return min(len(data) - 1, part.start + int(rng.integers(min(part.size, 128) or 1)))


def flip(data: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    out = bytearray(data)
    for _n in range(int(rng.integers(1, 9))):
        out[_place(data, rng)] ^= 1 << int(rng.integers(8))
    return bytes(out)


def number(data: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    """Write a telling number of one, two, four or eight bytes somewhere."""
    size = int(rng.choice((1, 2, 4, 8)))
    value = int(rng.choice(NUMBERS)) & ((1 << 8 * size) - 1)
    place = _place(data, rng)
    written = value.to_bytes(size, "big" if rng.random() < 0.7 else "little")
    return data[:place] + written + data[place + size :]


def nudge(data: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    """Add a little to a byte, or take it away."""
    out = bytearray(data)
    place = _place(data, rng)
    out[place] = (out[place] + int(rng.integers(-16, 17))) % 256
    return bytes(out)


def cut(data: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    return data[: int(rng.integers(1, len(data) + 1))]


def drop(data: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    part = _part(data, rng)
    return data[: part.start] + data[part.start + part.size :]


def double(data: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    """A part again, some times, behind itself."""
    part = _part(data, rng)
    end = part.start + part.size
    times = min(int(rng.integers(1, 9)), 1 + (1 << 20) // max(1, part.size))
    return data[:end] + data[part.start : end] * times + data[end:]


def swap(data: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    """A part where another one is."""
    one, two = _part(data, rng), _part(data, rng)
    return data[: one.start] + data[two.start : two.start + two.size] + data[one.start + one.size :]


def rename(data: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    """The type of one part for another's."""
    one, two = _part(data, rng), _part(data, rng)
    out = bytearray(data)
    out[one.start : one.start + one.header] = data[two.start : two.start + one.header]
    return bytes(out)


def resize(data: bytes, rng: np.random.Generator, _: Sequence[bytes]) -> bytes:
    """Bytes put into a part or taken out, its size in its header as it was."""
    part = _part(data, rng)
    place = part.start + min(part.header, part.size)
    if rng.random() < 0.5:
        return data[:place] + rng.bytes(int(rng.integers(1, 64))) + data[place:]
    return data[:place] + data[place + int(rng.integers(1, 1 + max(1, part.size - part.header))) :]


def splice(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """The beginning of this one, the end of another."""
    other = others[int(rng.integers(len(others)))]
    return data[: _place(data, rng)] + other[_place(other, rng) :]


def graft(data: bytes, rng: np.random.Generator, others: Sequence[bytes]) -> bytes:
    """A part of another file among this one's."""
    other = others[int(rng.integers(len(others)))]
    part, place = _part(other, rng), _part(data, rng).start
    return data[:place] + other[part.start : part.start + part.size] + data[place:]


CHANGES: tuple[Change, ...] = (flip, number, number, number, nudge, cut, drop, double, swap, rename, resize, splice, graft)


def mutated(data: bytes, rng: np.random.Generator, others: Sequence[bytes], largest: int) -> bytes:
    """One to four changes by chance; never empty, never longer than `largest` bytes."""
    for _ in range(1 + int(rng.geometric(0.5)) % 4):
        change = CHANGES[int(rng.integers(len(CHANGES)))]
        data = change(data, rng, others)[:largest] or b"\0"
    return mended(data) if rng.random() < 0.9 else data
