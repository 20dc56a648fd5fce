"""The input: a folder, a manifest or a URL becomes a sorted list of sources, and that list becomes units of work."""

import csv
import hashlib
import os
import stat
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, PositiveInt

from curation import storage
from curation.child import beat
from curation.errors import ConfigError, SourceError
from curation.tables import SOURCES

VIDEO = frozenset(
    ".mp4 .m4v .mov .qt .mkv .webm .avi .mpg .mpeg .mpe .m2v .vob .ts .m2ts .mts .flv .f4v .wmv .asf .3gp .3g2 .ogv .mxf"  # noqa: SIM905
    " .y4m .ivf .divx .dv .rm .rmvb .h264 .hevc".split()
)
IMAGE = frozenset((".jpg", ".jpeg", ".png", ".webp"))
PATH_COLUMNS = ("path", "file", "url", "video", "file_name")
LOOKS = 32
"""Files that are looked at side by side: each look waits for a store or a network disk."""
HASH_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
"""Files of one size are read whole only where so many first bytes agree: by chance, sizes agree often."""

Row: TypeAlias = dict[str, Any]

UNITS = pa.schema(
    [
        ("unit", pa.string()),
        ("path", pa.string()),
        ("url", pa.string()),
        ("bytes", pa.int64()),
        ("kind", pa.string()),
        ("exact_copy_of", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]
)
"""The work list, `units/*.parquet`: one file a unit, one row a source; the manifest's extra columns follow."""


class UnitConfig(BaseModel):
    """How the sorted source list is cut into units, the atoms of work, commit and resume."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: PositiveInt = 8
    """Sources a unit. Small units resume finely and spread well; large ones make fewer files."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One source as the listing knows it, before it is opened. `path` and `url` are escaped (`storage.escape`)."""

    path: str
    url: str
    bytes: int | None
    kind: str
    error_code: str | None = None
    error_message: str | None = None
    extra: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """All sources of an input, sorted by path, and how many files with other extensions were passed over, by extension."""

    sources: list[Listed]
    skipped: dict[str, int]


def kind_of(name: str) -> str | None:
    """`video`, `image`, or None for an extension that is neither."""
    suffix = Path(name).suffix.lower()
    return "video" if suffix in VIDEO else "image" if suffix in IMAGE else None


def list_input(location: str) -> Listing:
    """List a folder (recursive), a manifest (.txt, .csv, .parquet) or an fsspec URL of either.

    Raises ConfigError where nothing is there or the manifest has no column that names the file.
    """
    suffix = Path(location).suffix.lower()
    if suffix in (".txt", ".csv", ".parquet", ".tsv") and not storage.local_path(location).is_dir():
        listing = _manifest(location, suffix)
    elif storage.is_remote(location):
        listing = _remote_folder(location)
    else:
        listing = _folder(storage.local_path(location))
    if not listing.sources:
        skipped = sum(listing.skipped.values())
        raise ConfigError(f"input {location!r} holds no video or image ({skipped} files with other extensions)")
    return replace(listing, sources=sorted(listing.sources, key=lambda s: s.path))


def first(listing: Listing, limit: int) -> Listing:
    """The first `limit` sources of a listing."""
    return replace(listing, sources=listing.sources[:limit])


def _folder(root: Path) -> Listing:
    if not root.is_dir():
        raise ConfigError(f"input {str(root)!r}: no such folder or manifest")
    root = root.resolve()
    found: list[Listed] = []
    skipped: dict[str, int] = defaultdict(int)

    def refuse(error: OSError) -> None:
        place = Path(str(error.filename))
        if place == root:
            raise ConfigError(f"input {str(root)!r}: {error.strerror}")
        found.append(_local(root, place, None, "video", "unreadable", f"folder: {error.strerror}"))

    for folder, _, names in os.walk(root, onerror=refuse):
        for name in names:
            kind = kind_of(name)
            if kind is None:
                skipped[Path(name).suffix.lower() or "(none)"] += 1
            else:
                found.append(_entry(root, Path(folder) / name, kind))
    return Listing(found, dict(skipped))


def _entry(root: Path, file: Path, kind: str) -> Listed:
    """One file of a folder; a link that leaves the corpus and anything that is no plain file become error rows."""
    try:
        # Not `Path.resolve`: it raises RuntimeError on links in a circle.
        if file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(root):
            return _local(root, file, None, kind, "unreadable", "a symbolic link that leaves the corpus")
    except OSError as error:
        return _local(root, file, None, kind, "unreadable", str(error.strerror))
    size, code, why = _size(file)
    return _local(root, file, size, kind, code, why)


def _size(file: Path) -> tuple[int | None, str | None, str | None]:
    """Bytes of a plain file, or the error code and the reason: to open a pipe or a device may wait for ever."""
    try:
        info = file.stat()
    except OSError as error:
        return None, "missing" if isinstance(error, FileNotFoundError) else "unreadable", str(error.strerror)
    return (info.st_size, None, None) if stat.S_ISREG(info.st_mode) else (None, "unreadable", "not a regular file")


def _local(root: Path, file: Path, size: int | None, kind: str, code: str | None = None, why: str | None = None) -> Listed:
    relative = storage.escape(str(file.relative_to(root)))
    return Listed(relative, storage.escape(str(file)), size, kind, code, why and storage.escape(why))


def _remote_folder(url: str) -> Listing:
    protocol, base, sizes = url.split("://", 1)[0], *storage.sizes(url)
    found: list[Listed] = []
    skipped: dict[str, int] = defaultdict(int)
    for path, size in sizes.items():
        kind = kind_of(path)
        if kind is None:
            skipped[Path(path).suffix.lower() or "(none)"] += 1
        else:
            relative = storage.escape(path[len(base) :].lstrip("/"))
            found.append(Listed(relative, storage.escape(f"{protocol}://{path.lstrip('/')}"), size, kind))
    return Listing(found, dict(skipped))


def _manifest(location: str, suffix: str) -> Listing:
    if not storage.exists(location):
        raise ConfigError(f"input {location!r}: no such manifest")
    rows = _manifest_rows(location, suffix)
    top = next(rows, None)
    if top is None:
        raise ConfigError(f"manifest {location!r} is empty")
    column = next((c for c in PATH_COLUMNS if c in top), None)
    if column is None:
        raise ConfigError(f"manifest {location!r} needs a column {' or '.join(PATH_COLUMNS)}; it has {', '.join(top)}")
    root = location.rsplit("/", 1)[0] if "/" in location else "."
    root = root if storage.is_remote(root) else str(storage.local_path(root).resolve())
    found: dict[str, Listed] = {}
    skipped: dict[str, int] = defaultdict(int)
    for row, named, listed in _looked_at(root, column, chain([top], rows)):
        if listed is None:
            skipped[Path(named).suffix.lower() or "(none)"] += 1
        else:
            extra = {_extra_name(k): v for k, v in row.items() if k not in (column, None)}
            found[listed.path] = replace(listed, extra=extra) if extra else listed
    return Listing(list(found.values()), dict(skipped))


def _looked_at(root: str, column: str, rows: Iterator[Row]) -> Iterator[tuple[Row, str, Listed | None]]:
    """Each row of a manifest with the name it gives and the file's listing, None where it is no video or image.

    A store answers in some 30 ms, so many are asked at once.
    """

    def look(row: Row) -> tuple[Row, str, Listed | None]:
        named = (row[column] or "").strip()
        kind = kind_of(named)
        return row, named, None if kind is None else _named(root, named, kind)

    with ThreadPoolExecutor(LOOKS) as pool:
        while some := list(islice(rows, 100 * LOOKS)):
            yield from pool.map(look, some)


def _manifest_rows(location: str, suffix: str) -> Iterator[Row]:
    if suffix == ".parquet":
        with storage.open_read(location) as file:
            for batch in pq.ParquetFile(file).iter_batches():
                yield from ({k: None if v is None else str(v) for k, v in row.items()} for row in batch.to_pylist())
        return
    text = storage.read_bytes(location).decode("utf-8-sig", "surrogateescape")
    if suffix == ".txt":
        yield from ({"path": line} for line in text.splitlines() if line.strip() and not line.startswith("#"))
    else:
        yield from csv.DictReader(text.splitlines(keepends=True), delimiter="\t" if suffix == ".tsv" else ",")


def _named(root: str, named: str, kind: str) -> Listed:
    """A file a manifest names: relative to the manifest's folder, an absolute path, or a URL."""
    url = named if storage.is_remote(named) else storage.join(root, named)
    if not storage.is_remote(url):
        file = Path(root) / storage.local_path(named)
        path = str(file.relative_to(root)) if file.is_relative_to(root) else str(file)
        size, code, why = _size(file)
        return Listed(storage.escape(path), storage.escape(str(file)), size, kind, code, why)
    path = url.removeprefix(root).lstrip("/") if url.startswith(root) else url
    try:
        return Listed(storage.escape(path), storage.escape(url), storage.size(url), kind)
    except FileNotFoundError:
        return Listed(storage.escape(path), storage.escape(url), None, kind, "missing", "no such object")


def _extra_name(column: str) -> str:
    """A manifest column's name in `sources`; one that would hide a column of ours is kept under `manifest_...`."""
    return f"manifest_{column}" if column in SOURCES.names or column in UNITS.names else column


def content_hash(path: Path) -> str:
    """`content_id`: BLAKE2b-128 of the whole file, 32 hexadecimal digits.

    Raises SourceError missing, unreadable (no plain file: a pipe or a device has no end) or read_failed.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        # Not to wait for a writer, should a pipe have taken the file's place since it was listed.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SourceError("unreadable", f"{path.name}: not a regular file")
            while block := file.read(HASH_BYTES):
                digest.update(block)
                beat()
    except FileNotFoundError as error:
        raise SourceError("missing", f"{path.name}: no such file") from error
    except PermissionError as error:
        raise SourceError("unreadable", f"{path.name}: {error.strerror}") from error
    except OSError as error:
        raise SourceError("read_failed", f"{path.name}: {error.strerror}") from error
    return digest.hexdigest()


def source_id(path: str, size: int | None, content_id: str | None) -> str:
    """16 hexadecimal digits from the relative path, the size and the content."""
    return hashlib.sha256(f"{path}\0{size}\0{content_id}".encode()).hexdigest()[:16]


def plan_units(run: str, listing: Listing, config: UnitConfig, max_bytes: int = sys.maxsize) -> list[str]:
    """Write `units/` for every source that no unit names yet, and return the names of all units, in order.

    Existing units never change: later additions to the input become new units. A file whose size changed since it was
    listed keeps its old row. Exact copies are found here: files of equal size are hashed, and all but the first by
    path say whose copy they are. Files above `max_bytes` are not read.
    """
    folder = storage.join(run, "units")
    old = storage.read_table(folder, UNITS, ["path", "url", "bytes"])
    first = len(storage.names(folder, ".parquet"))
    known = set(old["path"].to_pylist())
    new = [s for s in listing.sources if s.path not in known]
    copies = _exact_copies(old, [s for s in new if (s.bytes or 0) <= max_bytes])
    extras = sorted({name for s in new for name in s.extra})
    schema = pa.schema([*UNITS, *(pa.field(name, pa.string()) for name in extras)])
    for start in range(0, len(new), config.size):
        unit = f"unit-{first + start // config.size:06d}"
        rows = [_unit_row(unit, s, copies.get(s.path)) for s in new[start : start + config.size]]
        storage.write_table(storage.join(folder, f"{unit}.parquet"), storage.rows_table(rows, schema))
    return [name.removesuffix(".parquet") for name in storage.names(folder, ".parquet")]


def _unit_row(unit: str, s: Listed, copy_of: str | None) -> dict[str, Any]:
    return {
        **{k: v if v is None else v.encode("utf-8", "backslashreplace").decode() for k, v in s.extra.items()},
        "unit": unit,
        "path": s.path,
        "url": s.url,
        "bytes": s.bytes,
        "kind": s.kind,
        "exact_copy_of": copy_of,
        "error_code": s.error_code,
        "error_message": s.error_message,
    }


def _exact_copies(old: pa.Table, new: Sequence[Listed]) -> dict[str, str]:
    """Path of each new exact copy -> `source_id` of its original.

    Files whose size another one has are looked at, and those that begin alike are read whole.
    """
    times = Counter(s.bytes for s in new)
    times.update(size for size in old["bytes"].to_pylist() if size in times)
    sizes = pa.array([size for size, count in times.items() if size and count > 1], pa.int64())
    earlier = old.filter(pc.is_in(old["bytes"], sizes)).to_pylist()
    alike = [(r["path"], r["url"], r["bytes"]) for r in earlier]
    alike += [(s.path, s.url, s.bytes) for s in new if s.bytes and times[s.bytes] > 1]
    groups: dict[tuple[int, bytes | None], list[tuple[str, str]]] = defaultdict(list)
    with ThreadPoolExecutor(LOOKS) as pool:
        for (path, url, size), head in zip(alike, pool.map(_head_or_none, [url for _, url, _ in alike]), strict=True):
            groups[size, head].append((path, url))
    fresh = {s.path for s in new}
    copies: dict[str, str] = {}
    for (size, head), group in groups.items():
        if head is None or len(group) < 2 or not any(path in fresh for path, _ in group):
            continue
        first: dict[str, str] = {}
        for path, url in group:
            digest = _hash_or_none(url)
            if digest in first and path in fresh:
                copies[path] = source_id(first[digest], size, digest)
            elif digest is not None:
                first.setdefault(digest, path)
    return copies


def _head_or_none(url: str) -> bytes | None:
    """A digest of a file's first bytes, or None where it cannot be read. Raises TimeoutError where its store is down."""
    try:
        head = storage.read_bytes(storage.unescape(url), 0, HEAD_BYTES)
    except TimeoutError:
        raise
    except OSError:
        return None
    return hashlib.blake2b(head, digest_size=16).digest()


def _hash_or_none(url: str) -> str | None:
    """The content hash, or None where the file cannot be read now: *analyze* will record why."""
    try:
        with storage.local_copy(url) as path:
            return content_hash(path)
    except (OSError, SourceError):
        return None
