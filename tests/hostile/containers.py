"""The parts that containers are made of, and hostile files of containers other than MP4."""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MASTERS = (0x1A45DFA3, 0x18538067, 0x1549A966, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675, 0x1C53BB6B, 0xBB, 0xA0)
"""EBML elements that hold others: head, Segment, Info, Tracks, TrackEntry, Video, Cluster, Cues, CuePoint, BlockGroup."""
SEGMENT, INFO, TRACKS, ENTRY, CLUSTER = 0x18538067, 0x1549A966, 0x1654AE6B, 0xAE, 0x1F43B675
SCALE, DURATION, KIND, CODEC, PRIVATE, STEP = 0x2AD7B1, 0x4489, 0x83, 0x86, 0x63A2, 0x23E383
WIDTH, HEIGHT, DISPLAY_WIDTH, TIME, SIMPLE_BLOCK, DOCTYPE = 0xB0, 0xBA, 0x54B0, 0xE7, 0xA3, 0x4282


@dataclass(frozen=True)
class Part:
    """A piece of a file: where it begins, its size with its header, how long that header is, and its type."""

    start: int
    size: int
    header: int
    type: int | bytes = b""


def elements(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Part]:
    """All EBML elements of a Matroska file, those inside others after the one they are in."""
    end = len(data) if end is None else end
    while start < end:
        id_size = 9 - data[start].bit_length()
        at = start + id_size
        if id_size > 4 or at >= end:
            return
        size_size = 9 - data[at].bit_length()
        if size_size > 8:
            return
        header = id_size + size_size
        body = int.from_bytes(data[at : at + size_size], "big") & ((1 << 7 * size_size) - 1)
        body = max(0, min(body, end - start - header))
        kind = int.from_bytes(data[start:at], "big")
        yield Part(start, header + body, header, kind)
        if kind in MASTERS:
            yield from elements(data, start + header, start + header + body)
        start += header + body


def riff(data: bytes, start: int = 12, end: int | None = None) -> Iterator[Part]:
    """All chunks of a RIFF file (AVI, WebP), those inside lists after their list."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size = min(int.from_bytes(data[start + 4 : start + 8], "little"), end - start - 8)
        yield Part(start, 8 + size, 8, data[start : start + 4])
        if data[start : start + 4] == b"LIST":
            yield from riff(data, start + 12, start + 8 + size)
        start += 8 + size + size % 2


def png_chunks(data: bytes) -> Iterator[Part]:
    """All chunks of a PNG file, with their checksums."""
    start = 8
    while start + 12 <= len(data):
        size = min(12 + int.from_bytes(data[start : start + 4], "big"), len(data) - start)
        yield Part(start, size, 8, data[start + 4 : start + 8])
        start += size


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file, with its checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def cut_at(data: bytes, found: Iterator[Part]) -> Iterator[bytes]:
    """Cut off before each part, and within its header."""
    for end in sorted({e for p in found for e in (p.start, p.start + p.header - 1) if 0 < e < len(data)}):
        yield data[:end]


def _filled(part: Part, value: bytes) -> bytes:
    """A value in as many bytes as a part has for it: its own end, or zeros before it."""
    room = part.size - part.header
    return value[-room:].rjust(room, b"\0") if room else b""


def _with(data: bytes, found: Callable[[bytes], Iterator[Part]], kind: int | bytes, value: bytes, offset: int = -1) -> bytes:
    """The file with the content of its parts of a kind overwritten: the whole, or from an offset on."""
    out = bytearray(data)
    parts = [p for p in found(data) if p.type == kind]
    assert parts, kind
    for part in parts:
        written = _filled(part, value) if offset < 0 else value
        place = part.start + part.header + max(offset, 0)
        out[place : place + len(written)] = written
    return bytes(out)


def _renamed(data: bytes, kind: int) -> bytes:
    """The first element of a kind made an empty one (EBML Void) of the same length."""
    part = next(p for p in elements(data) if p.type == kind)
    out = bytearray(data)
    size = part.size - 9
    if size < 0:
        out[part.start : part.start + part.size] = bytes((0xEC, 0x80 | part.size - 2)) + bytes(part.size - 2)
    else:
        out[part.start : part.start + 9] = b"\xec\x01" + size.to_bytes(7, "big")
    return bytes(out)


def _unending(data: bytes, kind: int) -> bytes:
    """Elements of a kind with a size that says: until it ends."""
    out = bytearray(data)
    for part in elements(data):
        if part.type == kind:
            width = 4 if part.type > 0xFFFFFF else 1
            size = part.header - width
            out[part.start + width : part.start + part.header] = ((1 << 7 * size + 1) - 1).to_bytes(size, "big")
    return bytes(out)


def matroska_lies(mkv: bytes) -> dict[str, bytes]:
    """Matroska headers that say what is not so."""
    tracks = next(p for p in elements(mkv) if p.type == TRACKS)
    entry = next(p for p in elements(mkv) if p.type == ENTRY)
    many = mkv[entry.start : entry.start + entry.size] * 500
    size = (1 << 56) | (tracks.size - tracks.header + len(many))
    head = mkv[: tracks.start + 4] + size.to_bytes(8, "big") + mkv[tracks.start + tracks.header : tracks.start + tracks.size]
    whole = _unending(head + many + mkv[tracks.start + tracks.size :], SEGMENT)

    def told(kind: int, value: bytes, data: bytes = mkv) -> bytes:
        return _with(data, elements, kind, value)

    last_block = [p for p in elements(mkv) if p.type == SIMPLE_BLOCK][-1]
    late = bytearray(mkv)
    late[last_block.start + last_block.header + 1 : last_block.start + last_block.header + 3] = b"\x80\x00"
    back = bytearray(mkv)
    for n, block in enumerate(p for p in elements(mkv) if p.type == SIMPLE_BLOCK):
        place = block.start + block.header + 1
        back[place : place + 2] = struct.pack(">h", -500 * n)
    return {
        "matroska 65535x65535": told(HEIGHT, b"\xff\xff", told(WIDTH, b"\xff\xff")),
        "matroska 0x0": told(HEIGHT, b"\0", told(WIDTH, b"\0")),
        "matroska scale of nothing": told(SCALE, b"\0"),
        "matroska scale of an age": told(SCALE, b"\xff" * 8),
        "matroska length without end": told(DURATION, struct.pack(">d", float("inf"))),
        "matroska length no number": told(DURATION, struct.pack(">d", float("nan"))),
        "matroska length negative": told(DURATION, struct.pack(">d", -1e12)),
        "matroska ten years": told(DURATION, struct.pack(">d", 3.2e11)),
        "matroska 1e9 frames a second": told(STEP, b"\1"),
        "matroska without extradata": _renamed(mkv, PRIVATE),
        "matroska without codec": _renamed(mkv, CODEC),
        "matroska codec unknown": told(CODEC, b"V_UNKNOWN"),
        "matroska subtitles by its own word": told(CODEC, b"S_TEXT/UTF8", told(KIND, b"\x11")),
        "matroska sound by its own word": told(KIND, b"\2"),
        "matroska doctype unknown": told(DOCTYPE, b"nonsense"),
        "matroska segment without end": _unending(mkv, SEGMENT),
        "matroska clusters without end": _unending(mkv, CLUSTER),
        "matroska cluster in an age": told(TIME, b"\x7f" + b"\xff" * 7),
        "matroska last block before the first": bytes(late),
        "matroska times run back": bytes(back),
        "matroska 500 streams": whole,
        "matroska inside itself": _unending(mkv[: next(p for p in elements(mkv) if p.type == CLUSTER).start] + mkv, SEGMENT),
    }


def avi_lies(avi: bytes) -> dict[str, bytes]:
    """AVI headers and indexes that say what is not so."""

    def told(kind: bytes, offset: int, value: bytes) -> bytes:
        return _with(avi, riff, kind, value, offset)

    index = next(p for p in riff(avi) if p.type == b"idx1")
    entries = (index.size - index.header) // 16
    lying = bytearray(avi)
    for n in range(entries):
        place = index.start + index.header + 16 * n
        lying[place + 8 : place + 16] = struct.pack("<II", 0xFFFFFFF0, 0x7FFFFFFF)
    same = bytearray(avi)
    for n in range(entries):
        place = index.start + index.header + 16 * n
        same[place + 8 : place + 12] = struct.pack("<I", 4)
    return {
        "avi index beyond the end": bytes(lying),
        "avi index of one place": bytes(same),
        "avi index larger than the file": avi[: index.start + 4] + b"\xff\xff\xff\x7f" + avi[index.start + 8 :],
        "avi rate zero": told(b"strh", 20, bytes(8)),
        "avi 1e9 frames a second": told(b"strh", 20, struct.pack("<II", 1, 1_000_000_000)),
        "avi 2^32 frames": told(b"strh", 32, b"\xff\xff\xff\xff"),
        "avi 100000x100000": told(b"strf", 4, struct.pack("<ii", 100_000, 100_000)),
        "avi negative size": told(b"strf", 4, struct.pack("<ii", -320, -192)),
        "avi codec unknown": told(b"strf", 16, b"zzzz"),
        "avi raw by its own word": told(b"strf", 16, bytes(4)),
        "avi riff of nothing": avi[:4] + bytes(4) + avi[8:],
        "avi riff of 4 GB": avi[:4] + b"\xff\xff\xff\xff" + avi[8:],
    }


def stream_lies(ts: bytes) -> dict[str, bytes]:
    """Transport streams without an end, an order or a clock."""
    packets = [ts[n : n + 188] for n in range(0, len(ts) - 187, 188)]
    turned = b"".join(packets[:3] + packets[:2:-1])
    clock = bytearray(ts)
    for n in range(0, len(ts) - 187, 188):
        if clock[n + 3] & 0x20 and clock[n + 4] >= 7 and clock[n + 5] & 0x10:  # a packet with the programme's clock
            clock[n + 6 : n + 11] = (0xFFFFFFFF - n).to_bytes(5, "big")
    return {
        "ts packets backwards": turned,
        "ts clock runs back": bytes(clock),
        "ts one packet for ever": packets[0] * 20_000,
        "ts the film 200 times": ts * 200,
        "ts packets without a beginning": b"".join(p[:1] + bytes((p[1] & ~0x40,)) + p[2:] for p in packets),
        "ts one byte too many": b"".join(p + b"\0" for p in packets),
    }


def image_bombs(png: bytes, webp: bytes, jpeg: bytes) -> dict[str, bytes]:
    """Small pictures with much in them that nobody asked for."""
    import io

    from PIL import Image

    head, rest = png[:33], png[33:]  # signature and IHDR
    much = zlib.compress(bytes(300_000_000), 9)
    frames = png_chunk(b"acTL", struct.pack(">II", 0x7FFFFFFF, 0))
    plain = io.BytesIO()
    Image.new("RGB", (16383, 16383)).save(plain, "WEBP", lossless=True, method=0, quality=0)
    scan = jpeg.index(b"\xff\xda")
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + b"\xff\xff" + b"\x01\x12\0\3\0\0\0\1\xff\xff\0\0" * 1000
    return {
        "png text of 300 MB.png": head + png_chunk(b"zTXt", b"a\0\0" + much) + rest,
        "png international text of 300 MB.png": head + png_chunk(b"iTXt", b"a\0\1\0\0\0" + much) + rest,
        "png profile of 300 MB.png": head + png_chunk(b"iCCP", b"a\0\0" + much) + rest,
        "png of 2^31 frames.png": head + frames + rest,
        "png of 300 MB in one row.png": head + png_chunk(b"IDAT", much) + png_chunk(b"IEND", b""),
        "png 2^31 wide.png": png[:8] + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 0x7FFFFFFF, 1, 8, 2, 0, 0, 0)) + rest,
        "png 0x0.png": png[:8] + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)) + rest,
        "png chunk of 2 GB.png": head + b"\x7f\xff\xff\xffIDAT" + rest,
        "webp 16383x16383.webp": plain.getvalue(),
        "webp size of nothing.webp": webp[:4] + bytes(4) + webp[8:],
        "webp size of 4 GB.webp": webp[:4] + b"\xff\xff\xff\xff" + webp[8:],
        "jpeg 2000 scans.jpg": jpeg[:scan] + jpeg[scan:-2] * 2000 + b"\xff\xd9",
        "jpeg turned 65535 ways.jpg": jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:],
        "jpeg comments only.jpg": b"\xff\xd8" + b"\xff\xfe\xff\xff" + bytes(65533) * 3,
    }
