"""One driver at a time on a run folder: a file lock on a disk, a lease on an object store.

Two drivers could not spoil each other's files, which are committed whole and the same from either; they would do all
work twice and remove each other's temporary files. So the second is refused.
"""

import contextlib
import fcntl
import json
import logging
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
MARGIN_S = 5.0
"""So long before the lease's end its owner stops: hosts' clocks differ, and a request under way takes its time."""


@contextlib.contextmanager
def hold(run: str) -> Iterator[None]:
    """Hold a run folder's lock for the length of a block, in the main thread.

    Raises ConfigError that names the owner where another process has it, and StageError lock_lost, out of the block,
    where a lease was not renewed in time, and another process took it over or may do so.
    """
    lock = Lease(run) if storage.is_remote(run) else FileLock(run)
    lock.acquire()
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if ignored:  # a script started us in the background: what has to end the work would be ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except BaseException:  # the interrupt that says so may have become another error on its way
        if not lock.lost:
            raise
        raise StageError("lock_lost", f"the lease on {run!r} was not renewed in time: another process may have it") from None
    finally:
        if ignored:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
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
            except BlockingIOError:
                with file:
                    file.seek(0)
                    raise self.refused(_owner(file.read())) from None
            except OSError as error:
                file.close()
                raise ConfigError(f"{self.run!r} cannot be locked on its file system: {error.strerror}") from error
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
    """An object that is put only where there is none or only in place of what was read (conditional PUTs), and renewed
    while its owner lives. Before it runs out nobody else touches it; the hosts' clocks must agree to within `MARGIN_S`.
    """

    def __init__(self, run: str) -> None:
        super().__init__(run)
        self.until = 0.0
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._renew, self._watch)]

    def acquire(self) -> None:
        if not self._put(None):
            old = self._page()
            owner = _owner(old or b"")
            if time.time() < owner.get("until", 0.0) or not self._put(old):
                raise self.refused(_owner(self._page() or b""))
        for thread in self.threads:
            thread.start()

    def release(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(LEASE_S)
        if not self.lost and time.time() < self.until - MARGIN_S:
            storage.remove(self.place)

    def _put(self, old: bytes | None) -> bool:
        """Put a page of ours in place of `old`; False where another's stands there."""
        until = time.time() + LEASE_S
        page = json.dumps({**self.me, "until": until}).encode()
        if not storage.swap(self.place, old, page, LEASE_S / 3):
            return False
        self.until = until
        return True

    def _page(self) -> bytes | None:
        try:
            return storage.read_bytes(self.place)
        except FileNotFoundError:
            return None

    def _renew(self) -> None:
        while not self.lost and not self.stop.wait(LEASE_S / 3):
            try:
                page = self._page()  # ours: it may be newer than the last of which an answer came
                if page is None or _owner(page).get("token") != self.me["token"] or not self._put(page):
                    self.lost = True
            except Exception as error:  # whatever it is: asked again, until the lease runs out
                logging.getLogger(__name__).warning("the lease on %r was not renewed: %s", self.run, error)

    def _watch(self) -> None:
        """Ends the main thread's work as soon as the lease is another's, or could be."""
        while not self.stop.wait(LEASE_S / 60):
            if self.lost or time.time() > self.until - MARGIN_S:
                self.lost = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return


def _owner(page: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        return dict(json.loads(page))
    return {}
