"""An object store on this machine (moto's S3 server) behind a door that can be shut, slowed and crowded."""

import contextlib
import http.client
import itertools
import os
import random
import socket
import socketserver
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

from tests.faults.harness import Process, free_port, wait_for

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
PIECE = 1 << 16


class Store:
    """The server and its door. `url` is where clients knock; `direct` leads past the door.

    `refuse_share` of the requests is answered with 503 SlowDown; `bytes_per_s` limits each body, either way.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.direct = f"http://127.0.0.1:{self.port}"
        server = str(Path(sys.executable).parent / "moto_server")
        command = [server, "-H", "127.0.0.1", "-p", str(self.port)]
        self.server = Process(command, folder / f"moto-{self.port}.log", dict(os.environ))
        wait_for("moto", lambda: _answers(self.port))
        self.door = free_port()
        self.url = f"http://127.0.0.1:{self.door}"
        self.refuse_share = 0.0
        self.bytes_per_s: float | None = None
        self.draw = random.Random(0)
        self.requests: Counter[str] = Counter()
        self.listener: _Door | None = None
        self.open()

    def open(self) -> None:
        """Let clients in (again)."""
        self.listener = _Door(("127.0.0.1", self.door), self)
        threading.Thread(target=self.listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def shut(self) -> None:
        """Break every connection, and refuse new ones."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.shutdown()
            listener.server_close()
            for connection in list(listener.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def env(self) -> dict[str, str]:
        """What a client needs to find the store."""
        return credentials() | {"AWS_ENDPOINT_URL": self.url}

    def stop(self) -> None:
        """End it all."""
        self.shut()
        self.server.stop()


def credentials() -> dict[str, str]:
    """Credentials that this store takes, as any."""
    return {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class _Door(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, place: tuple[str, int], store: Store) -> None:
        self.store = store
        self.connections: set[socket.socket] = set()
        super().__init__(place, _Guard)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is what this is made for."""


class _Guard(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Door
    passed_on: ClassVar[frozenset[str]] = frozenset(("transfer-encoding", "connection", "content-length"))

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def answer(self) -> None:
        store = self.server.store
        body = b"".join(self._slowly(self._body()))
        if store.draw.random() < store.refuse_share:
            store.requests["503"] += 1
            self._send(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            return
        store.requests[self.command] += 1
        inner = http.client.HTTPConnection("127.0.0.1", store.port, timeout=60)
        with contextlib.closing(inner):
            headers = {k: v for k, v in self.headers.items() if k.lower() not in self.passed_on}
            inner.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = inner.getresponse()
            data = answer.read()
            length = answer.headers["Content-Length"] if self.command == "HEAD" else None
            kept = [(k, v) for k, v in answer.getheaders() if k.lower() not in self.passed_on]
        self._send(answer.status, kept, data, length)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

    def _body(self) -> Iterator[bytes]:
        """The request's body. ConnectionError where the client goes away before its end: nothing of it is passed on."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read1(min(left, PIECE))  # type: ignore[attr-defined]
            if not piece:
                raise ConnectionError("the client went away")
            left -= len(piece)
            yield piece

    def _slowly(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            rate = self.server.store.bytes_per_s
            if rate:
                time.sleep(len(piece) / rate)
            yield piece

    def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, length: str | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", length if length is not None else str(len(data)))
        self.end_headers()
        starts = itertools.takewhile(lambda at: at < len(data), itertools.count(0, PIECE))
        for piece in self._slowly(data[at : at + PIECE] for at in starts):
            self.wfile.write(piece)
