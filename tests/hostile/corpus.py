"""A corpus of files made to do harm: some 400 of them, each with its class and the codes that are right for it.

python -m tests.hostile.corpus FOLDER      writes it, to look at
"""

import io
import os
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.hostile.containers import (
    avi_lies,
    cut_at,
    elements,
    image_bombs,
    matroska_lies,
    png_chunk,
    png_chunks,
    riff,
    stream_lies,
)
from tests.media_samples import make_sound, make_sound_with_cover, make_video, moving

BROKEN = frozenset(("bad_header", "zero_frames", "decode_failed", "not_media", "no_video_stream", "no_decoder"))
"""What damage may come to."""
LIES = BROKEN | {"too_large", "too_long", "unsupported_format", "timeout", "memory"}
ANY = BROKEN | {None}
"""Damage that a decoder may also get over: None is no error."""


@dataclass(frozen=True)
class Hostile:
    """One file: its path in the corpus, its class, and the codes it may end with (None: none)."""

    path: str
    kind: str
    codes: frozenset[str | None]


@dataclass(frozen=True)
class Box:
    """A box of an MP4 file: where it begins, its size with header, and its type."""

    start: int
    size: int
    type: bytes


CLASSES = {
    "truncated": "cut short at every box, in Matroska, AVI and transport streams",
    "bits": "bits turned over",
    "references": "references: HLS, DASH, concat, SMIL, SVG, aliases; absolute, relative, beside and above",
    "lies": "headers that lie: size, rate, duration, time base, 500 streams, 4 GB of nothing",
    "foreign": "no film: archives, programs, documents, noise",
    "names": "names",
    "bombs": "bombs: PNG, WebP, GIF, JPEG, frames of 100 000 x 100 000",
    "sound": "sound films, to compare",
    "places": "links, FIFOs, devices, folders called films",
    "blind": "without a picture: sound, covers, subtitles",
}
"""Class -> what it holds, as docs/security.md says it."""
BESIDE = "canary beside.bin"
"""A film among the references, under a name that makes it no source: to open it is to follow one of them."""

HOLDERS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl", b"edts", b"udta"))


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """All boxes of an MP4 file, those inside others after the one they are in."""
    end = len(data) if end is None else min(end, len(data))
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        size = min(size, end - start) if size >= 8 else end - start
        yield Box(start, size, kind)
        if kind in HOLDERS:
            yield from boxes(data, start + 8, start + size)
        elif kind == b"stsd":
            yield from boxes(data, start + 16, start + size)
        elif kind == b"avc1":
            yield from boxes(data, start + 8 + 78, start + size)
        start += size


def patched(data: bytes, kind: bytes, offset: int, value: bytes, every: bool = True) -> bytes:
    """The file with `value` written at `offset` behind the header of its boxes of a kind (or of the first)."""
    out, found = bytearray(data), [b for b in boxes(data) if b.type == kind]
    assert found, kind
    for box in found if every else found[:1]:
        place = box.start + 8 + offset
        out[place : place + len(value)] = value
    return bytes(out)


def films(folder: Path) -> dict[str, bytes]:
    """Small sound films, by suffix."""
    made = {}
    for suffix, codec in ((".mp4", "libx264"), (".mkv", "libx264"), (".avi", "mpeg4"), (".ts", "libx264"), (".webm", "libvpx")):
        file = make_video(folder / f"seed{suffix}", moving(320, 192, seed=1), 30, 15, codec)
        made[suffix] = file.read_bytes()
        file.unlink()
    return made


def pictures() -> dict[str, bytes]:
    """Small sound pictures, by suffix."""
    from PIL import Image

    made = {}
    for suffix, name in ((".png", "PNG"), (".webp", "WEBP"), (".jpg", "JPEG")):
        file = io.BytesIO()
        Image.fromarray(moving(320, 192, seed=2)(0)).save(file, name)
        made[suffix] = file.getvalue()
    return made


def truncated(mp4: bytes) -> Iterator[bytes]:
    """Cut off before every box, within its header, and in its middle."""
    for box in boxes(mp4):
        for end in (box.start, box.start + 6, box.start + box.size // 2):
            if 0 < end < len(mp4):
                yield mp4[:end]


def flipped(data: bytes, seed: int, bits: int) -> bytes:
    """Some bits the other way round."""
    rng, out = np.random.default_rng(seed), bytearray(data)
    for place in rng.integers(0, len(data), bits):
        out[place] ^= 1 << int(rng.integers(8))
    return bytes(out)


def lies(mp4: bytes) -> dict[str, bytes]:
    """Headers that say what is not so."""
    moov = next(b for b in boxes(mp4) if b.type == b"moov")
    trak = next(b for b in boxes(mp4) if b.type == b"trak")
    track = mp4[trak.start : trak.start + trak.size]
    many = track * 500
    grown = bytearray(mp4[: trak.start + trak.size] + many + mp4[trak.start + trak.size :])
    grown[moov.start : moov.start + 4] = struct.pack(">I", moov.size + len(many))
    huge = struct.pack(">II", 65_535 << 16, 65_535 << 16)
    ten_years = struct.pack(">I", 0xFFFFFFFF)
    return {
        "displayed 65535x65535": patched(mp4, b"tkhd", 76, huge),
        "stored 65535x65535": patched(mp4, b"avc1", 24, b"\xff\xff\xff\xff"),
        "stored 0x0": patched(mp4, b"avc1", 24, bytes(4)),
        "zero time base": patched(mp4, b"mdhd", 12, bytes(4)),
        "zero movie time base": patched(mp4, b"mvhd", 12, bytes(4)),
        "a tick of a nanosecond": patched(mp4, b"mdhd", 12, struct.pack(">I", 1_000_000_000)),
        "ten years": patched(patched(mp4, b"mdhd", 16, ten_years), b"mvhd", 16, ten_years),
        "1e9 frames a second": patched(patched(mp4, b"mdhd", 12, struct.pack(">I", 1_000_000_000)), b"stts", 12, b"\0\0\0\1"),
        "each frame an age": patched(mp4, b"stts", 12, b"\x7f\xff\xff\xff"),
        "no step in time": patched(mp4, b"stts", 12, bytes(4)),
        "times run back": patched(mp4, b"stts", 12, b"\xff\xff\xff\x00"),
        "2^32 entries of time": patched(mp4, b"stts", 4, b"\xff\xff\xff\xff"),
        "2^32 samples": patched(mp4, b"stsz", 8, b"\xff\xff\xff\xff"),
        "samples of 4 GB": patched(mp4, b"stsz", 12, b"\xff\xff\xff\xff"),
        "chunks beyond the end": patched(mp4, b"stco", 8, b"\x7f\xff\xff\xff"),
        "2^32 chunks": patched(mp4, b"stco", 4, b"\xff\xff\xff\xff"),
        "no description": patched(mp4, b"stsd", 4, bytes(4)),
        "2^32 descriptions": patched(mp4, b"stsd", 4, b"\xff\xff\xff\xff"),
        "no extradata": patched(mp4, b"avcC", -4, b"free"),
        "empty extradata": patched(mp4, b"avcC", 0, bytes(16)),
        "an unknown codec": patched(mp4, b"avc1", -4, b"zzzz"),
        "no handler": patched(mp4, b"hdlr", 8, b"zzzz"),
        "500 streams": bytes(grown),
        "a box larger than the file": patched(mp4, b"moov", -8, b"\x7f\xff\xff\xff"),
        "a box that holds itself": patched(mp4, b"stbl", -4, b"moov"),
        "an edit list of an age": patched(mp4, b"elst", 8, b"\x7f\xff\xff\xff") if b"elst" in mp4 else mp4,
    }


def png(width: int, height: int, rows: int) -> bytes:
    """A PNG of one bit a pixel that says it is so large, with that many rows of zeros."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(width // 8 + 1)) for _ in range(rows)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")


def bombs(folder: Path) -> dict[str, bytes]:
    """Small files that would become large."""
    from PIL import Image

    large = make_video(folder / "bomb.mp4", lambda n: np.zeros((8640, 8640, 3), np.uint8), 1, 1)
    film = large.read_bytes()
    large.unlink()
    small = io.BytesIO()
    Image.new("RGB", (16, 16)).save(small, "WEBP", lossless=True)
    canvas = b"VP8X" + struct.pack("<II", 10, 0) + b"\xff\xff\xff\xff\xff\x0f"  # 16777216 x 1048576
    body = b"WEBP" + canvas + small.getvalue()[12:]
    y4m = b"YUV4MPEG2 W20000 H20000 F25:1 Ip A1:1 C420\nFRAME\n"
    return {
        "png 100000x100000, no rows.png": png(100_000, 100_000, 0),
        "png 30000x30000.png": png(30_000, 30_000, 30_000),
        "webp 16777216x1048576.webp": b"RIFF" + struct.pack("<I", len(body)) + body,
        "jpeg 65500x65500.jpg": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xdc\xff\xdc\3\1\x11\0\2\x11\0\3\x11\0\xff\xd9",
        "h264 8640x8640.mp4": film,
        "raw 20000x20000.mp4": y4m,
        "raw 100000x100000.mp4": y4m.replace(b"20000", b"100000"),
        "sound png as a film.mp4": png(20_000, 20_000, 20_000),
    }


def references(canary: Path, url: str) -> dict[str, bytes]:
    """Scripts that would read another file or an address."""
    other, line = canary.as_uri(), str(canary).encode()
    mpd = f"<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period><BaseURL>{url}/dash/</BaseURL></Period></MPD>"
    return {
        "hls file": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n".encode(),
        "hls address": f"#EXTM3U\n#EXTINF:10,\n{url}/hls.ts\n#EXT-X-ENDLIST\n".encode(),
        "hls key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{url}/key"\n#EXTINF:10,\n{other}\n'.encode(),
        "concat": b"ffconcat version 1.0\nfile '" + line + b"'\n",
        "concat address": f"ffconcat version 1.0\nfile {url}/concat.mp4\n".encode(),
        "dash": f"<?xml version='1.0'?>\n{mpd}".encode(),
        "session": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "smooth": f"<SmoothStreamingMedia MajorVersion='2'><StreamIndex Url='{url}/smooth'/></SmoothStreamingMedia>".encode(),
        "data": b"data:video/mp4;base64,AAAAIGZ0eXBpc29t",
        "hls behind blank lines": b"\n" * 600 + f"#EXTM3U\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n".encode(),
        "hls data": b"#EXTM3U\n#EXTINF:10,\ndata:video/mp4;base64,AAAAIGZ0eXBpc29t\n#EXT-X-ENDLIST\n",
        "hls subfile": f"#EXTM3U\n#EXTINF:10,\nsubfile,,start,0,end,999,,:{canary}\n#EXT-X-ENDLIST\n".encode(),
        "hls concat": f"#EXTM3U\n#EXTINF:10,\nconcat:{canary}|{url}/x\n#EXT-X-ENDLIST\n".encode(),
        "winamp list": f"[playlist]\nFile1={url}/pls\nNumberOfEntries=1\n".encode(),
        "windows media list": f"<ASX version='3.0'><ENTRY><REF HREF='{url}/asx'/></ENTRY></ASX>".encode(),
        "smil": f"<smil><body><video src='{url}/smil'/></body></smil>".encode(),
        "vobsub": b"# VobSub index file, v7 (do not modify this line!)\nid: en, index: 0\n",
        "avisynth": f'DirectShowSource("{canary}")\n'.encode(),
        "imf": f"<CompositionPlaylist xmlns='http://www.smpte-ra.org/schemas/2067-3/2016'><Id>{url}</Id>"
        f"</CompositionPlaylist>".encode(),
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{other}"/><image href="{url}/svg"/></svg>'.encode(),
    }


def beside() -> dict[str, bytes]:
    """Scripts that would read a file which stands beside them, and inside the input folder."""
    places = {
        "beside": BESIDE,
        "above": f"../references/{BESIDE}",
        "by scheme": f"file:{BESIDE}",
        "in part": f"subfile,,start,0,end,0,,:{BESIDE}",
        "joined": f"concat:{BESIDE}|{BESIDE}",
    }
    made: dict[str, bytes] = {}
    for name, place in places.items():
        film = f"<Representation id='1'><BaseURL>{place}</BaseURL></Representation>"
        made |= {
            f"hls {name}": f"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\n{place}\n#EXT-X-ENDLIST\n".encode(),
            f"hls map {name}": f'#EXTM3U\n#EXT-X-MAP:URI="{place}"\n#EXTINF:10,\n{place}\n#EXT-X-ENDLIST\n'.encode(),
            f"concat {name}": f"ffconcat version 1.0\nfile '{place}'\n".encode(),
            f"dash {name}": f"<?xml version='1.0'?>\n<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><Period><AdaptationSet>"
            f"{film}</AdaptationSet></Period></MPD>".encode(),
            f"svg {name}": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{place}"/></svg>'.encode(),
        }
    return made


def elsewhere(canary: Path) -> bytes:
    """A film without samples of its own: they lie in the canary, by an alias, the data reference that libav follows."""
    name = str(canary).encode()
    place = struct.pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2) + struct.pack(">hH", -1, 0)
    alias = bytes(150) + place  # volume, file name and dates are nothing to it
    film = canary.read_bytes()
    (dref,) = (b for b in boxes(film) if b.type == b"dref")
    (samples,) = (b for b in boxes(film) if b.type == b"mdat")
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    body = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    more, out = len(body) - dref.size, bytearray(film)
    out[samples.start + 8 : samples.start + samples.size] = bytes(samples.size - 8)
    out[dref.start : dref.start + dref.size] = body
    for box in boxes(film):
        if box.start < dref.start < box.start + box.size:
            out[box.start : box.start + 4] = struct.pack(">I", box.size + more)
    return bytes(out)


def moved(mp4: bytes, url: str) -> bytes:
    """A film that is elsewhere altogether, by QuickTime's reference movie."""

    def box(kind: bytes, *inside: bytes) -> bytes:
        body = b"".join(inside)
        return struct.pack(">I4s", 8 + len(body), kind) + body

    name = f"{url}/moved.mov".encode() + b"\0"
    reference = box(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(name)), name)
    return mp4[:32] + box(b"moov", box(b"rmra", box(b"rmda", reference)))


def blind(folder: Path) -> dict[str, bytes]:
    """Sound media without a moving picture."""
    made = {}
    for name, make in (("sound alone.mp4", make_sound), ("sound with a cover.mp4", make_sound_with_cover)):
        file = make(folder / name)
        made[name] = file.read_bytes()
        file.unlink()
    return made | {
        "subtitles.mp4": b"1\n00:00:01,000 --> 00:00:02,000\nHello\n",
        "subtitles.webm": b"WEBVTT\n\n00:01.000 --> 00:02.000\nHello\n",
        "styled subtitles.mkv": b"[Script Info]\nScriptType: v4.00+\n\n[Events]\nDialogue: 0,0:00:01.00,0:00:02.00,,,,,,,Hi\n",
    }


def foreign(mp4: bytes) -> dict[str, bytes]:
    """What is no film at all."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../film.mp4", bytes(50_000_000))
    return {
        "one byte": b"\0",
        "zeros": bytes(100_000),
        "noise": np.random.default_rng(0).bytes(100_000),
        "text": b"The quick brown fox.\n" * 100,
        "page": b"<html><script>alert(1)</script></html>",
        "zip": packed.getvalue(),
        "gzip": zlib.compress(bytes(10_000_000)),
        "program": b"\x7fELF\2\1\1" + bytes(500),
        "document": b"%PDF-1.7\n" + bytes(500),
        "ebml": b"\x1aE\xdf\xa3\x01\xff\xff\xff\xff\xff\xff\xff" + bytes(500),
        "riff": b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xffhdrl" + bytes(500),
        "ogg": b"OggS" + bytes(500),
        "flv": b"FLV\1\5\0\0\0\x09" + bytes(500),
        "ts without tables": (b"\x47\x1f\xff\x10" + bytes(184)) * 500,
        "head alone": mp4[:32],
    }


NAMES = (
    b"two\nlines.mp4",
    b"'; DROP TABLE sources; --.mp4",
    b'"quoted".mp4',
    b"..mp4",
    b".. up.mp4",
    b"%2e%2e%2fetc.mp4",
    b"%s%n%03d.mp4",
    b"<script>alert(1)</script>.mp4".replace(b"/", b"\xe2\x88\x95"),
    b"<img src=x onerror=alert(1)>.mp4",
    b"&amp;lt;.mp4",
    b"-i.mp4",
    b"--output=x.mp4",
    b"caf\xe9 \xff\xfe.mp4",
    b"\xe2\x80\xaegnp.mp4",
    b"\xe2\x80\x8fmark\xe2\x80\x8e and \xd8\x9cmark.mp4",
    b"\x1b[2J\x1b[31mred\x07.mp4",
    b"tab\tand\rreturn.mp4",
    b"=cmd()|'x'!A1.mp4",
    b"back\\slash\\x41.mp4",
    b"glob*?[a].mp4",
    b"hash#and?query=1.mp4",
    b"http:a.mp4",
    b"concat:a|b.mp4",
    b"{brace} $HOME `id`.mp4",
    b"\xf0\x9f\x8e\xac \xe6\x98\xa0\xe7\x94\xbb.mp4",
    b"n" * 251 + b".mp4",
    b"_hidden.mp4",
)


def write(folder: Path, canary: Path, url: str) -> list[Hostile]:
    """Make the corpus in an empty folder. `canary` is a film outside it, `url` an address: neither may be touched."""
    made: list[Hostile] = []
    sound, stills = films(folder), pictures()
    mp4 = sound[".mp4"]

    def add(kind: str, name: str, data: bytes, codes: frozenset[str | None]) -> None:
        path = folder / kind / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        made.append(Hostile(f"{kind}/{name}", kind, codes))

    def many(kind: str, codes: frozenset[str | None], contents: dict[str, bytes]) -> None:
        for name, data in contents.items():
            add(kind, name, data, codes)

    many("sound", frozenset((None,)), {f"a{s}": d for s, d in (sound | stills).items()})
    many("truncated", ANY, {f"{n:03d}.mp4": data for n, data in enumerate(truncated(mp4))})
    for suffix, data in (sound | stills).items():
        shares = (1, 10, 100, 1000, len(data) // 2, len(data) - 1)
        many("truncated", ANY, {f"{n}{suffix}": data[:n] for n in shares})
        flips = {f"{bits} bits, {seed}{suffix}": flipped(data, seed, bits) for bits in (1, 8, 64, 512) for seed in range(4)}
        many("bits", ANY | LIES, flips)
    for suffix, found in ((".webm", elements), (".avi", riff), (".png", png_chunks)):
        whole = (sound | stills)[suffix]
        many("truncated", ANY, {f"part {n}{suffix}": data for n, data in enumerate(cut_at(whole, found(whole)))})
    many("lies", LIES | {None}, {f"{name}.mp4": data for name, data in lies(mp4).items()})
    for suffix, told in ((".mkv", matroska_lies), (".avi", avi_lies), (".ts", stream_lies)):
        many("lies", LIES | {None}, {f"{name}{suffix}": data for name, data in told(sound[suffix]).items()})
    many("blind", frozenset(("no_video_stream", "not_media")), blind(folder))
    many("bombs", frozenset(("too_large", "bad_header", "decode_failed", "zero_frames", "not_media")), bombs(folder))
    many("bombs", BROKEN | {"too_large", None}, image_bombs(stills[".png"], stills[".webp"], stills[".jpg"]))
    refused = BROKEN | {"unsupported_format"}
    for suffix in (".mp4", ".mkv", ".ts", ".jpg"):
        many("references", refused, {f"{name}{suffix}": data for name, data in references(canary, url).items()})
        many("references", refused, {f"{name}{suffix}": data for name, data in beside().items()})
    (folder / "references" / BESIDE).write_bytes(canary.read_bytes())
    add("references", "moved.mov", moved(mp4, url), LIES)
    add("references", "elsewhere.mov", elsewhere(canary), LIES)
    for suffix in (".mp4", ".webm", ".png"):
        many("foreign", refused, {f"{name}{suffix}": data for name, data in foreign(mp4).items()})
    add("foreign", "empty.mp4", b"", frozenset(("empty",)))
    places = _places(folder / "places", canary, mp4)
    made += [Hostile(f"places/{name}", "places", frozenset((code,))) for name, code in places.items()]
    (folder / "names").mkdir()
    for number, name in enumerate(NAMES):
        (folder / "names" / os.fsdecode(name)).write_bytes(mp4 + struct.pack(">I4sI", 12, b"free", number))  # no two alike
        made.append(Hostile(f"names/{os.fsdecode(name)}", "names", frozenset((None,))))
    with (folder / "lies" / "4 GB with nothing in it.mp4").open("wb") as sparse:
        sparse.write(mp4[:32])
        sparse.truncate(4 << 30)
    made.append(Hostile("lies/4 GB with nothing in it.mp4", "lies", LIES))
    return made


def _places(folder: Path, canary: Path, mp4: bytes) -> dict[str, str | None]:
    """Names that are no ordinary file; where this user may not make one, it is left out."""
    folder.mkdir()
    (folder / "out.mp4").symlink_to(canary)
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "nowhere.mp4").symlink_to("nothing.mp4")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "a folder.mp4").mkdir()
    (folder / "a folder.mp4" / "in it.mp4").write_bytes(mp4)
    found: dict[str, str | None] = {"out.mp4": "unreadable", "loop.mp4": "unreadable", "nowhere.mp4": "missing"}
    found |= {"pipe.mp4": "unreadable", "a folder.mp4/in it.mp4": None}
    if os.geteuid() == 0:
        os.mknod(folder / "zero.mp4", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        found["zero.mp4"] = "unreadable"
    return found


def main() -> None:
    """Write the corpus, and say what is in it."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True)
    canary = folder.with_name("canary.mp4")
    say: Callable[[object], None] = print
    say(len(write(folder, canary, "http://127.0.0.1:9")))


if __name__ == "__main__":
    main()
