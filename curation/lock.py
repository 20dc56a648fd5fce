"""One driver at a time on a run folder: a file lock on a disk, a lease on an object store.

Two drivers could not spoil each other's files, which are committed whole and the same from either; they would do all
work twice and remove each other's temporary files. So the second is refused.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO

from curation import storage
from curation.errors import ConfigError, StageError

NAME = ".lock"
LEASE_S = 60.0
"""A lease on an object store that was not renewed for so long has lost its owner. It is renewed three times as often."""


@contextlib.contextmanager
def hold(run: str) -> Iterator[None]:
    """Hold a run folder's lock for the length of a block, in the main thread.

    Raises ConfigError that names the owner where another process has it, and StageError lock_lost, out of the block,
    where another took a lease over because this process could not renew it in time.
    """
    lock = Lease(run) if storage.is_remote(run) else FileLock(run)
    lock.acquire()
    try:
        yield
    except BaseException:  # the interrupt that says so may have become another error on its way
        if not lock.lost:
            raise
        raise StageError("lock_lost", f"another process took over {run!r}: this one ends") from None
    finally:
        lock.release()


class Lock:
    """What both kinds share."""

    lost = False

    def __init__(self, run: str) -> None:
        self.run = run
        self.place = storage.join(run, NAME)
        self.me = {"host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}

    def acquire(self) -> None:
        raise NotImplementedError

    def release(self) -> None:
        raise NotImplementedError

    def refused(self, owner: dict[str, Any]) -> ConfigError:
        left_s = owner.get("until", 0.0) - time.time()
        dead = f" (should it be dead: its lease ends in {left_s:.0f} s)" if left_s > 0 else ""
        return ConfigError(
            f"{self.run!r} is being worked on by process {owner.get('pid', '?')} on {owner.get('host', '?')}: "
            f"wait for it{dead}, or give another output folder"
        )


class FileLock(Lock):
    """`flock` on a file of the run folder: the kernel frees it when the process ends, however it ends."""

    file: BinaryIO | None = None

    def acquire(self) -> None:
        path = storage.local_path(self.place)
        path.parent.mkdir(parents=True, exist_ok=True)
        while self.file is None:
            file = path.open("a+b")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                with file:
                    file.seek(0)
                    raise self.refused(_owner(file.read())) from None
            # Whoever held it before removes the file: a lock on a removed file is none.
            if path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                self.file = file
            else:
                file.close()
        self.file.truncate(0)
        self.file.write(json.dumps(self.me).encode())
        self.file.flush()

    def release(self) -> None:
        if self.file is not None:
            storage.local_path(self.place).unlink(missing_ok=True)
            self.file.close()
            self.file = None


class Lease(Lock):
    """An object created only where there is none (a conditional PUT), renewed while its owner lives."""

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.stop = threading.Event()
        self.renewer = threading.Thread(target=self._renew, daemon=True)

    def acquire(self) -> None:
        if not storage.create(self.place, self._page()):
            owner = self._owner()
            if time.time() < owner.get("until", 0.0):
                raise self.refused(owner)
            storage.remove(self.place)
            if not storage.create(self.place, self._page()):
                raise self.refused(self._owner())
        self.renewer.start()

    def release(self) -> None:
        self.stop.set()
        self.renewer.join(LEASE_S)
        if not self.lost:
            storage.remove(self.place)

    def _renew(self) -> None:
        while not self.stop.wait(LEASE_S / 3):
            # A store that does not answer now is asked again: only another owner's name ends this one.
            with contextlib.suppress(OSError):
                if self._owner().get("token", self.me["token"]) != self.me["token"]:
                    self.lost = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                    return
                storage.write_bytes(self.place, self._page())

    def _page(self) -> bytes:
        return json.dumps({**self.me, "until": time.time() + LEASE_S}).encode()

    def _owner(self) -> dict[str, Any]:
        try:
            return _owner(storage.read_bytes(self.place))
        except FileNotFoundError:
            return {}


def _owner(page: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        return dict(json.loads(page))
    return {}
