"""The shard format: what a trainer may rely on. Knows nothing of the rest of the project.

A shard is a plain tar and an index beside it. A sample has one key, the clip id, and the members

    <key>.mp4    H.264, yuv420p, BT.709 limited range, progressive; the bucket's exact size and frame count at an exact
                 rational rate; closed groups of pictures; no sound                  (or, for an image)
    <key>.webp   the bucket's exact size
    <key>.json   everything known about the clip, with `format_version` and `audio: dropped`
    <key>.txt    the caption, where there is one

Samples stand in the order of the plan, their members side by side. The index has one row a member; it is written
last: a tar without one is no shard.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

FORMAT_VERSION = 1
"""Rises when a reader of older shards would err. Every sample's `.json` and every index carries it."""

VIDEO, IMAGE, STORY, CAPTION = "mp4", "webp", "json", "txt"
"""Extensions of the members of a sample."""

KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
"""A key is a plain name: no dot (readers split at the first one), no separator that could leave a folder."""

VERSION_KEY = b"reelset_shard_format"

INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("frames", pa.int32()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ],
    metadata={VERSION_KEY: str(FORMAT_VERSION).encode()},
)
"""`offset` and `size` are of the member's bytes in the tar, so that one range read fetches it. `fps` is null for images."""


@dataclass(frozen=True)
class Facts:
    """The shape of a sample, repeated on the row of each of its members."""

    frames: int
    fps: float | None
    width: int
    height: int


@dataclass
class TarWriter:
    """Writes a tar whose bytes depend on names and contents only: no times, owners or modes of this machine."""

    file: BinaryIO
    rows: list[dict[str, Any]] = field(default_factory=list)
    position: int = 0

    def add(self, key: str, extension: str, data: bytes, facts: Facts) -> dict[str, Any]:
        """Append one member, and return its row of the index. Raises ValueError for a key that is no plain name."""
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key: letters, digits, _ and -, at most 90")
        info = tarfile.TarInfo(f"{key}.{extension}")
        info.size, info.mode, info.mtime = len(data), 0o644, 0
        header = info.tobuf(tarfile.USTAR_FORMAT)
        padding = -len(data) % tarfile.BLOCKSIZE
        for part in (header, data, b"\0" * padding):
            self.file.write(part)
        row = {"key": key, "member": info.name, "offset": self.position + len(header), "size": len(data)}
        row |= {"sha256": hashlib.sha256(data).hexdigest(), **vars(facts)}
        self.position += len(header) + len(data) + padding
        self.rows.append(row)
        return row

    def close(self) -> None:
        """Write the end of the archive; the file stays open."""
        self.file.write(b"\0" * (2 * tarfile.BLOCKSIZE))

    def index(self) -> pa.Table:
        """The index of what was added."""
        return pa.Table.from_pylist(self.rows, schema=INDEX)


def story(known: Mapping[str, Any], sample: Mapping[str, Any]) -> bytes:
    """The `.json` of a sample: what is known of the clip, and how the sample was made. The same facts, the same bytes."""
    page = {**known, "format_version": FORMAT_VERSION, "audio": "dropped", "sample": dict(sample)}
    return json.dumps(page, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def read_index(source: str | Path | BinaryIO) -> pa.Table:
    """A shard's index. Raises ValueError where it is of another format version."""
    table = pq.read_table(source)
    version = (table.schema.metadata or {}).get(VERSION_KEY, b"none").decode()
    if version != str(FORMAT_VERSION):
        raise ValueError(f"shard index of format version {version}; this reelset reads {FORMAT_VERSION}")
    return table


def read_member(tar: BinaryIO, row: Mapping[str, Any]) -> bytes:
    """The bytes of one member by its row of the index. Raises ValueError where they are not the ones it speaks of."""
    tar.seek(row["offset"])
    data = tar.read(row["size"])
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise ValueError(f"{row['member']}: the tar holds other bytes than its index says")
    return data
