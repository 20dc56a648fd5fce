"""The shard format: what a trainer may rely on. Knows nothing of the rest of the project.

A shard is a plain tar and an index beside it. A sample has one key, the clip id, and the members

    <key>.mp4    H.264, yuv420p, the bucket's exact size, frame count and rate; no sound       (or, for an image)
    <key>.webp   the bucket's exact size
    <key>.json   everything known about the clip, with `format_version`
    <key>.txt    the caption, where there is one

Samples stand in the order of the plan. The index, written last, has one row a member.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa

FORMAT_VERSION = 1

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
    ]
)
"""`offset` and `size` are of the member's bytes in the tar, so that one range read fetches it."""


@dataclass
class TarWriter:
    """Writes a tar whose bytes depend on names and contents only: no times, owners or modes of this machine."""

    file: BinaryIO
    rows: list[dict[str, Any]] = field(default_factory=list)
    position: int = 0

    def add(self, key: str, extension: str, data: bytes, **facts: Any) -> dict[str, Any]:
        """Append one member, and return its row of the index. Keys are ASCII of at most 90 characters."""
        name = f"{key}.{extension}"
        assert name.isascii() and len(name) <= 99, "a longer name needs headers that move the offsets"
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = len(data), 0o644, 0
        header = info.tobuf(tarfile.USTAR_FORMAT)
        self.file.write(header)
        self.file.write(data)
        self.file.write(b"\0" * (-len(data) % tarfile.BLOCKSIZE))
        row = {"key": key, "member": name, "offset": self.position + len(header), "size": len(data)}
        row |= {"sha256": hashlib.sha256(data).hexdigest(), **facts}
        self.position += len(header) + len(data) + -len(data) % tarfile.BLOCKSIZE
        self.rows.append(row)
        return row

    def close(self) -> None:
        """Write the end of the archive; the file stays open."""
        self.file.write(b"\0" * (2 * tarfile.BLOCKSIZE))

    def index(self) -> pa.Table:
        """The index of what was added."""
        return pa.Table.from_pylist(self.rows, schema=INDEX)


def members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a tar in memory, in order."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for info in tar:
            file = tar.extractfile(info)
            assert file is not None, f"{info.name} is no plain file"
            yield info.name, file.read()
