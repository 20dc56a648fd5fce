"""Files, wherever they are: a folder on disk or an `fsspec` URL. A file becomes visible whole or not at all.

Locally a commit is a temporary name beginning with `_`, then a rename; on an object store it is one completed PUT.
Paths that came from a disk may hold bytes that are no UTF-8: they travel escaped (`escape`), and are undone on opening.
"""

import atexit
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import ConfigError, SourceError

if TYPE_CHECKING:
    import fsspec

REMOTE = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def escape(path: str) -> str:
    """A file name as valid UTF-8: a byte that is none becomes `\\xNN`, a backslash becomes two. `unescape` undoes it."""
    raw = path.replace("\\", "\\\\").encode("utf-8", "surrogateescape")
    return raw.decode("utf-8", "backslashreplace")


def unescape(path: str) -> str:
    """The file name that `escape` was given."""

    def back(match: re.Match[str]) -> str:
        return "\\" if match[0] == "\\\\" else os.fsdecode(bytes([int(match[1], 16)]))

    return re.sub(r"\\\\|\\x([0-9a-f]{2})", back, path)


def is_remote(url: str) -> bool:
    """True for a URL that is no plain path and no `file://`."""
    return bool(REMOTE.match(url)) and not url.startswith("file://")


def local_path(url: str) -> Path:
    """The path of a local `url` (a plain path or `file://...`)."""
    return Path(url.removeprefix("file://"))


@lru_cache(maxsize=16)
def _filesystem(protocol: str) -> "fsspec.AbstractFileSystem":
    import fsspec

    try:
        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{protocol}:// needs a package for that storage: {error}") from error


def _remote(url: str) -> tuple["fsspec.AbstractFileSystem", str]:
    return _filesystem(url.split("://", 1)[0]), url


def join(url: str, *parts: str) -> str:
    """`url/part/...`, for paths and URLs alike."""
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    if is_remote(url):
        fs, path = _remote(url)
        fs.invalidate_cache()
        return bool(fs.exists(path))
    return local_path(url).exists()


def names(folder: str, suffix: str = "") -> list[str]:
    """Sorted names of the finished files right below `folder` (temporary names begin with `_`); [] where it is absent."""
    if is_remote(folder):
        fs, path = _remote(folder)
        fs.invalidate_cache()
        if not fs.exists(path):
            return []
        found = [str(p).rsplit("/", 1)[-1] for p in fs.ls(path, detail=False)]
    else:
        place = local_path(folder)
        found = [p.name for p in place.iterdir()] if place.is_dir() else []
    return sorted(n for n in found if n.endswith(suffix) and n and not n.startswith(("_", ".")))


def walk(folder: str, suffix: str = "") -> list[str]:
    """Sorted URLs of all finished files below `folder`, at any depth."""
    if is_remote(folder):
        fs, path = _remote(folder)
        fs.invalidate_cache()
        protocol = folder.split("://", 1)[0]
        found = [f"{protocol}://{str(p).lstrip('/')}" for p in fs.find(path)] if fs.exists(path) else []
    else:
        found = [str(p) for p in local_path(folder).rglob(f"*{suffix}") if p.is_file()]
    return sorted(f for f in found if f.endswith(suffix) and not f.rsplit("/", 1)[-1].startswith(("_", ".")))


@contextlib.contextmanager
def committed(url: str) -> Iterator[BinaryIO]:
    """A binary file to write; it appears under `url` when the block ends without an error, and never before."""
    if is_remote(url):
        fs, path = _remote(url)
        with tempfile.TemporaryFile() as spool:
            yield spool
            spool.seek(0)
            with fs.open(path, "wb") as out:
                shutil.copyfileobj(spool, out, 1 << 20)
        return
    place = local_path(url)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"_{place.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(url: str, data: bytes) -> None:
    """Commit `data` under `url`."""
    with committed(url) as out:
        out.write(data)


def create(url: str, data: bytes) -> bool:
    """Commit `data` under the URL of an object store where nothing is there yet; False where something is."""
    fs, path = _remote(url)
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    return True


def read_bytes(url: str, offset: int = 0, size: int | None = None) -> bytes:
    """A file's content, or `size` bytes of it from `offset`."""
    with open_read(url) as file:
        file.seek(offset)
        return file.read() if size is None else file.read(size)


def open_read(url: str) -> BinaryIO:
    """Open for reading, seekable."""
    if is_remote(url):
        fs, path = _remote(url)
        return fs.open(path, "rb")  # type: ignore[no-any-return]
    return local_path(url).open("rb")


def size(url: str) -> int:
    """Bytes of a file."""
    if is_remote(url):
        fs, path = _remote(url)
        return int(fs.size(path))
    return local_path(url).stat().st_size


def remove(url: str) -> None:
    """Remove a file or a whole folder; absent is fine."""
    if is_remote(url):
        fs, path = _remote(url)
        fs.invalidate_cache()
        if fs.exists(path):
            fs.rm(path, recursive=True)
        return
    path_ = local_path(url)
    if path_.is_dir():
        shutil.rmtree(path_, ignore_errors=True)
    else:
        path_.unlink(missing_ok=True)


def sweep(folder: str) -> None:
    """Remove temporary files that a killed process left below a local run folder."""
    if not is_remote(folder):
        for path in local_path(folder).rglob("_*"):
            owner = path.name.rsplit(".", 1)[-1]
            if path.is_file() and not (owner.isdigit() and Path(f"/proc/{owner}").exists()):
                path.unlink(missing_ok=True)


def write_table(url: str, table: pa.Table) -> None:
    """Commit a Parquet file: zstd, no statistics of time or host, so that the same rows give the same bytes."""
    with committed(url) as out:
        pq.write_table(table, out, compression="zstd", store_schema=True)


def read_table(folder: str, schema: pa.Schema | None = None, columns: list[str] | None = None) -> pa.Table:
    """All rows of all Parquet files right below `folder`, in the order of their names; missing columns become null."""
    tables = []
    for name in names(folder, ".parquet"):
        with open_read(join(folder, name)) as file:
            tables.append(pq.read_table(file, columns=columns))
    if not tables:
        return (schema or pa.schema([])).empty_table()
    return pa.concat_tables(tables, promote_options="default")


def rows_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as a table of `schema`; absent keys are null, a key outside the schema is our own mistake."""
    known = set(schema.names)
    for row in rows:
        assert set(row) <= known, f"columns outside the schema: {sorted(set(row) - known)}"
    return pa.Table.from_pylist(rows, schema=schema)


_fetched: dict[str, Path] = {}


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """A local path with the source's bytes: the file itself, or one download, kept until another source is asked for.

    Raises `SourceError` missing, unreadable, read_failed or disk.
    """
    url = unescape(url)
    if not is_remote(url):
        yield local_path(url)
        return
    if url not in _fetched:
        for old in _fetched.values():
            old.unlink(missing_ok=True)
        _fetched.clear()
        _fetched[url] = _download(url)
    yield _fetched[url]


def _download(url: str) -> Path:
    target = _scratch() / f"source{Path(url).suffix}"
    fs, path = _remote(url)
    try:
        with fs.open(path, "rb") as remote, target.open("wb") as out:
            shutil.copyfileobj(remote, out, 1 << 20)
    except FileNotFoundError as error:
        raise SourceError("missing", f"{url}: no such object") from error
    except PermissionError as error:
        raise SourceError("unreadable", f"{url}: {error}") from error
    except OSError as error:
        code = "disk" if error.errno in (28, 30) else "read_failed"
        raise SourceError(code, f"{url}: {error}") from error
    return target


@lru_cache(maxsize=1)
def _scratch() -> Path:
    """This process's folder for downloads; folders of dead processes are removed on the way."""
    root = Path(tempfile.gettempdir())
    for old in root.glob("reelset-fetch-*"):
        if not Path(f"/proc/{old.name.rsplit('-', 1)[-1]}").exists():
            shutil.rmtree(old, ignore_errors=True)
    mine = root / f"reelset-fetch-{os.getpid()}"
    mine.mkdir(mode=0o700, exist_ok=True)
    atexit.register(shutil.rmtree, mine, ignore_errors=True)
    return mine
