"""Files, wherever they are: a folder on disk or an `fsspec` URL. A file becomes visible whole or not at all.

Locally a commit is a temporary name beginning with `_`, then a rename; on an object store it is one completed PUT.
A store that does not answer is asked again until it has been silent for `OUTAGE_S`; what it then raises is an OSError.
Paths that came from a disk may hold bytes that are no UTF-8: they travel escaped (`escape`), and are undone on opening.
"""

import atexit
import contextlib
import errno
import fcntl
import io
import logging
import os
import random
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from curation.errors import ConfigError, SourceError, StageError

if TYPE_CHECKING:
    import duckdb
    import fsspec

T = TypeVar("T")
REMOTE = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)

OUTAGE_S = 60.0
"""An object store that has not answered this process for so long is down: the work ends, and a later run goes on."""

BUSY = frozenset((errno.EBUSY, errno.EREMOTEIO, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT))
"""What an answer of "not now" has become by the time fsspec hands it on: 503 SlowDown is EBUSY, 500 is EREMOTEIO."""

FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS))
"""The place that is written to is at fault, and what is being worked on is not."""


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


_silent_since: dict[str, float] = {}


def _asked(url: str, ask: Callable[[], T], within_s: float = OUTAGE_S) -> T:
    """What a store answers. It is asked again, ever more slowly, while it is busy or out of reach.

    Raises TimeoutError once the store has been silent for `OUTAGE_S` or has not answered this for `within_s`, whatever
    else it answered; and at once what asking again would not mend: its own OSError (FileNotFoundError, PermissionError,
    ...), or ConfigError where its client cannot ask at all.
    """
    place = url.split("/", 3)[2]
    wait, began = 0.2, time.monotonic()
    while True:
        try:
            answer = ask()
            _silent_since.pop(place, None)
            return answer
        except _not_now() as error:
            if isinstance(error, OSError) and not isinstance(error, _passing()) and error.errno not in BUSY:
                raise
            now = time.monotonic()
            silent_s = now - _silent_since.setdefault(place, now)
            if silent_s + wait > OUTAGE_S or now - began + wait > within_s:
                asked_s = max(silent_s, now - began)
                raise TimeoutError(f"{url}: the store did not answer for {asked_s:.0f} s: {error}") from error
            logging.getLogger(__name__).warning("%s: the store does not answer: %s", url, error)
        except _unable() as error:
            raise ConfigError(f"{url}: {error}") from error
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2 * wait, 8.0)


@lru_cache(maxsize=1)
def _passing() -> tuple[type[Exception], ...]:
    """What says "not now" and no more: a connection refused, broken or too slow, in the words of the clients installed."""
    found: list[type[Exception]] = [TimeoutError, ConnectionError]
    with contextlib.suppress(ImportError):
        from aiohttp import ClientConnectionError, ClientPayloadError

        found += [ClientConnectionError, ClientPayloadError]
    with contextlib.suppress(ImportError):
        from botocore import exceptions, parsers

        found += [exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError]
        found += [parsers.ResponseParserError]
    return tuple(found)


def _not_now() -> tuple[type[Exception], ...]:
    return (*_passing(), OSError)


@lru_cache(maxsize=1)
def _unable() -> tuple[type[Exception], ...]:
    """What a client raises that cannot ask at all: no credentials, no region, a setting that it refuses."""
    with contextlib.suppress(ImportError):
        from botocore.exceptions import BotoCoreError

        return (BotoCoreError,)
    return ()


def join(url: str, *parts: str) -> str:
    """`url/part/...`, for paths and URLs alike."""
    return "/".join([url.rstrip("/"), *parts])


def exists(url: str) -> bool:
    """Whether a file or folder is there."""
    if is_remote(url):
        fs, path = _remote(url)
        fs.invalidate_cache()
        return _asked(url, lambda: bool(fs.exists(path)))
    return local_path(url).exists()


def names(folder: str, suffix: str = "") -> list[str]:
    """Sorted names of the finished files right below `folder` (temporary names begin with `_`); [] where it is absent."""
    if is_remote(folder):
        if not exists(folder):
            return []
        fs, path = _remote(folder)
        found = [str(p).rsplit("/", 1)[-1] for p in _asked(folder, lambda: fs.ls(path, detail=False))]
    else:
        place = local_path(folder)
        found = [p.name for p in place.iterdir()] if place.is_dir() else []
    return sorted(n for n in found if n.endswith(suffix) and n and not n.startswith(("_", ".")))


def walk(folder: str, suffix: str = "") -> list[str]:
    """Sorted URLs of all finished files below `folder`, at any depth."""
    if is_remote(folder):
        if not exists(folder):
            return []
        fs, path = _remote(folder)
        protocol = folder.split("://", 1)[0]
        found = [f"{protocol}://{str(p).lstrip('/')}" for p in _asked(folder, lambda: fs.find(path))]
    else:
        found = [str(p) for p in local_path(folder).rglob(f"*{suffix}") if p.is_file()]
    return sorted(f for f in found if f.endswith(suffix) and not f.rsplit("/", 1)[-1].startswith(("_", ".")))


def sizes(folder: str) -> tuple[str, dict[str, int | None]]:
    """The folder of a URL as its store names it, and the bytes of every file below it by such a name."""
    fs, path = _remote(folder)
    base = str(fs._strip_protocol(path)).rstrip("/")
    found = _asked(folder, lambda: fs.find(base, detail=True))
    return base, {str(name): info.get("size") for name, info in found.items()}


@contextlib.contextmanager
def committed(url: str) -> Iterator[BinaryIO]:
    """A binary file to write; it appears under `url` when the block ends without an error, and never before."""
    if is_remote(url):
        fs, path = _remote(url)
        with tempfile.NamedTemporaryFile(dir=scratch()) as spool:
            yield spool  # type: ignore[misc]
            spool.flush()
            # Not `fs.open(path, "wb")`: closed after an error, it completes an upload of which parts are missing.
            _asked(url, lambda: fs.put_file(spool.name, path))
        return
    place = local_path(url)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"_{place.name}.{uuid.uuid4().hex[:12]}")
    try:
        with temporary.open("wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(place)
    except BaseException:
        with contextlib.suppress(OSError):  # a place that became read-only keeps it until the next run's sweep
            temporary.unlink(missing_ok=True)
        raise


def write_bytes(url: str, data: bytes) -> None:
    """Commit `data` under `url`."""
    with committed(url) as out:
        out.write(data)


def swap(url: str, old: bytes | None, new: bytes, within_s: float = OUTAGE_S) -> bool:
    """Put `new` in the place of `old` (None: of nothing) on an object store; False where something else is there.

    One conditional PUT: creation everywhere, replacement on S3 alone. Another store's client has no such replacement:
    there, what is put between a look and this PUT is lost.
    """
    fs, path = _remote(url)

    def put() -> bool:
        condition = {"mode": "create"} if old is None else {}
        if old is not None:
            fs.invalidate_cache()
            tag = fs.info(path).get("ETag")
            if bytes(fs.cat_file(path)) != old:
                return False
            condition = {"IfMatch": tag} if "s3" in fs.protocol else {}
        try:
            fs.pipe_file(path, new, **condition)
        except OSError as error:
            if not _refused(error):
                raise
            return False
        return True

    try:
        # An answer that was lost on its way is asked for again: then it is our own bytes that are there.
        return _asked(url, put, within_s) or read_bytes(url) == new
    except FileNotFoundError:
        return False


def _refused(error: OSError) -> bool:
    """Whether a conditional PUT found another state than its condition."""
    answer = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
    return isinstance(error, FileExistsError) or answer in ("PreconditionFailed", "ConditionalRequestConflict")


def read_bytes(url: str, offset: int = 0, size: int | None = None) -> bytes:
    """A file's content, or `size` bytes of it from `offset`."""
    if is_remote(url):
        fs, path = _remote(url)
        until = None if size is None else offset + size
        return _asked(url, lambda: bytes(fs.cat_file(path, start=offset or None, end=until)))
    with local_path(url).open("rb") as file:
        file.seek(offset)
        return file.read() if size is None else file.read(size)


def open_read(url: str) -> BinaryIO:
    """Open for reading, seekable. An object is fetched whole, in one request: tables are small."""
    return io.BytesIO(read_bytes(url)) if is_remote(url) else local_path(url).open("rb")


def size(url: str) -> int:
    """Bytes of a file."""
    if is_remote(url):
        fs, path = _remote(url)
        return _asked(url, lambda: int(fs.size(path)))
    return local_path(url).stat().st_size


def remove(url: str) -> None:
    """Remove a file or a whole folder; absent is fine."""
    if is_remote(url):
        fs, path = _remote(url)
        if exists(url):
            with contextlib.suppress(FileNotFoundError):
                _asked(url, lambda: fs.rm(path, recursive=True))
        return
    path_ = local_path(url)
    if path_.is_dir():
        shutil.rmtree(path_, onerror=_unless_gone)
    else:
        path_.unlink(missing_ok=True)


def _unless_gone(_function: object, _path: object, error: Any) -> None:
    """What stays although it was to be removed must be said: a later reader would take it for good."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]


def sweep(folder: str) -> None:
    """Remove what killed processes left: temporary files below a run folder, and scratch folders on this machine.

    The caller holds the run folder's lock. A worker that outlived its driver may lose the file it is writing: nobody
    waits for it. On S3 the temporary files are the parts of uploads that were never completed: invisible, and paid for.
    """
    _sweep_scratch()
    if is_remote(folder):
        _sweep_uploads(folder)
    else:
        for path in local_path(folder).rglob("_*"):
            if path.is_file():
                path.unlink(missing_ok=True)


def _sweep_uploads(folder: str) -> None:
    fs, path = _remote(folder)
    if "s3" not in fs.protocol:
        return
    bucket, key, _ = fs.split_path(path)
    page: dict[str, Any] = {}
    try:
        while True:
            ask = {"Bucket": bucket, "Prefix": f"{key.rstrip('/')}/", **page}
            found = _asked(folder, lambda ask=ask: fs.call_s3("list_multipart_uploads", **ask))  # type: ignore[misc]
            for upload in found.get("Uploads", []):
                with contextlib.suppress(FileNotFoundError):  # completed or aborted by now
                    _asked(folder, lambda upload=upload: fs.abort_mpu(bucket, upload["Key"], upload["UploadId"]))  # type: ignore[misc]
            if not found.get("IsTruncated"):
                return
            page = {"KeyMarker": found["NextKeyMarker"], "UploadIdMarker": found["NextUploadIdMarker"]}
    except (PermissionError, NotImplementedError) as error:
        logging.getLogger(__name__).warning("%s: unfinished uploads are left to the bucket's own rules: %s", folder, error)


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

    Raises SourceError missing, unreadable or read_failed, and StageError read_failed or disk where not the source but its
    store or this machine is at fault: another run reads it.
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
    fs, path = _remote(url)
    try:
        target = scratch() / f"source{Path(url).suffix}"
        _asked(url, lambda: fs.get_file(path, str(target)))
    except FileNotFoundError as error:
        raise SourceError("missing", f"{url}: no such object") from error
    except PermissionError as error:
        raise SourceError("unreadable", f"{url}: {error}") from error
    except TimeoutError as error:
        raise StageError("read_failed", str(error)) from error
    except OSError as error:
        if error.errno in FULL:
            raise StageError("disk", f"{tempfile.gettempdir()}: {error.strerror}") from error
        raise SourceError("read_failed", f"{url}: {error}") from error
    return target


def database(memory: str = "4GB") -> "duckdb.DuckDBPyConnection":
    """DuckDB in this process, with `memory` before it spills to a temporary file."""
    import duckdb

    spill = tempfile.mkdtemp(prefix="duckdb-", dir=scratch())  # its own: two databases would write one file
    return duckdb.connect(config={"memory_limit": memory, "temp_directory": spill})


SCRATCH = "reelset-scratch-"


@lru_cache(maxsize=1)
def scratch() -> Path:
    """This process's folder for temporary files. It goes with the process, or with the next one on this machine.

    A lock on the folder says that its owner lives: a process id would mean nothing to another container's processes.
    """
    _sweep_scratch()
    while True:
        mine = Path(tempfile.mkdtemp(prefix=SCRATCH))
        handle = os.open(mine, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if mine.exists():  # a sweep may have come between its making and its lock
            atexit.register(shutil.rmtree, mine, ignore_errors=True)
            return mine
        os.close(handle)


def _sweep_scratch() -> None:
    for old in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):  # locked by its owner, another user's, or gone by now
            handle = os.open(old, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old)
            finally:
                os.close(handle)
