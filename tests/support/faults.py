"""An HTTP server on loopback that misbehaves as it is told."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import ssl
import struct
import termios
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.support.waiting import wait_for


@dataclass(frozen=True)
class Request:
    """What a client asked for; field names are lower-case."""

    path: str
    query: str
    fields: Mapping[str, str]


Behaviour = Callable[["FaultServer", Request, socket.socket], None]


class FaultServer:
    """Answers each request to a path with the next behaviour scripted for it; the last repeats.

    Attributes:
        requests: what was asked for, in order.
        connections: how many there were.

    Args:
        tls: what to speak TLS with; None for plain HTTP.
        host: loopback address to listen on.
        port: port to listen on; 0 for any free one.
        greeting: what to send before anything was asked.
    """

    def __init__(
        self,
        tls: ssl.SSLContext | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        greeting: bytes = b"",
    ) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.host = host
        self.closing = threading.Event()
        self._tls = tls
        self._greeting = greeting
        self._scripts: dict[str, list[Behaviour]] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server((host, port), backlog=64)
        self._threads: list[threading.Thread] = []
        self._opened: list[socket.socket] = []

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        self._threads.append(thread)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            opened = list(self._opened)
        for connection in opened:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def on(self, path: str, *behaviours: Behaviour) -> str:
        """Script a path; returns its URL."""
        self._scripts[path] = list(behaviours)
        return self.url(path)

    def url(self, path: str) -> str:
        scheme = "https" if self._tls else "http"
        return f"{scheme}://{self.host}:{self.port}{path}"

    def count(self, path: str) -> int:
        """How many requests a path had."""
        return sum(request.path == path for request in self.requests)

    def wait_for_request(self, path: str) -> None:
        wait_for(lambda: self.count(path), f"a request for {path}")

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            with self._lock:
                self.connections += 1
                self._opened.append(connection)
                self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                stack.callback(connection.close)
            if self._greeting:
                connection.sendall(self._greeting)
            request = self._read(connection)
            if request is None:
                return
            with self._lock:
                self.requests.append(request)
                script = self._scripts.get(request.path) or [reply(404)]
                behaviour = script.pop(0) if len(script) > 1 else script[0]
            behaviour(self, request, connection)

    @staticmethod
    def _read(connection: socket.socket) -> Request | None:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return None
            data += piece
        first, *lines = data.decode("latin-1").partition("\r\n\r\n")[0].split("\r\n")
        path, _, query = first.split(" ")[1].partition("?")
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        return Request(path, query, fields)


def _head(status: int, fields: Mapping[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1")


def reply(status: int, body: bytes = b"", **fields: str) -> Behaviour:
    """A plain answer; `Retry_After="3"` makes a Retry-After field."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}

    def behave(_server: FaultServer, _request: Request, connection: socket.socket) -> None:
        connection.sendall(_head(status, {"Content-Length": str(len(body)), **named}) + body)

    return behave


def raw(data: bytes) -> Behaviour:
    """Any bytes, then the end of the connection."""

    def behave(_server: FaultServer, _request: Request, connection: socket.socket) -> None:
        connection.sendall(data)

    return behave


def serve(
    data: bytes,
    *,
    etag: str = '"v1"',
    ranges: bool = True,
    cut_after: int | None = None,
    then: str = "close",
    content_range: str | None = None,
    **fields: str,
) -> Behaviour:
    """A file, with Range and If-Range.

    Args:
        data: the file.
        etag: its validator; empty for none.
        ranges: whether Range is honoured.
        cut_after: send only so many bytes of this answer, then do what `then` says.
        then: "close", "reset", "stall" (until the client or the server goes away).
        content_range: a Content-Range to send instead of the right one; empty for none at all.
        fields: further fields, with `_` for `-`.
    """
    named = {name.replace("_", "-"): value for name, value in fields.items()}

    def behave(server: FaultServer, request: Request, connection: socket.socket) -> None:
        start = 0
        status = 200
        head = dict(named)
        if etag:
            head["ETag"] = etag
        wanted = request.fields.get("range", "")
        if ranges and wanted and request.fields.get("if-range", etag) == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                reply(416, Content_Range=f"bytes */{len(data)}")(server, request, connection)
                return
            status = 206
            if content_range is None:
                head["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            elif content_range:
                head["Content-Range"] = content_range
        body = data[start:]
        head.setdefault("Content-Length", str(len(body)))
        connection.sendall(_head(status, head) + body[:cut_after])
        if cut_after is not None and cut_after < len(body):
            _end(server, connection, then)

    return behave


def _end(server: FaultServer, connection: socket.socket, then: str) -> None:
    if then == "reset":
        # A reset overtakes what was not sent yet.
        wait_for(lambda: not _unsent(connection), "the client to take what was sent")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif then == "stall":
        connection.settimeout(30)
        connection.recv(1)


def _unsent(connection: socket.socket) -> int:
    (size,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    return int(size)


def multipart(data: bytes) -> Behaviour:
    """The range that was asked for, wrapped as the only one of several."""

    def behave(server: FaultServer, request: Request, connection: socket.socket) -> None:
        start = int(request.fields["range"].removeprefix("bytes=").removesuffix("-"))
        place = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = (
            f"--xyz\r\nContent-Range: {place}\r\n\r\n".encode() + data[start:] + b"\r\n--xyz--\r\n"
        )
        answer = reply(206, body, Content_Type="multipart/byteranges; boundary=xyz")
        answer(server, request, connection)

    return behave


def chunked(data: bytes, *, last: bool = True, status: int = 200, **fields: str) -> Behaviour:
    """A chunked body; without its last chunk it is cut. Fields are named as in `reply`."""
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    head = _head(status, {"Transfer-Encoding": "chunked", **named})
    body = b"%x\r\n%s\r\n" % (len(data), data) + (b"0\r\n\r\n" if last else b"")
    return raw(head + body)


def endless(piece: bytes = bytes(65536)) -> Behaviour:
    """A body without length that does not end."""

    def behave(server: FaultServer, _request: Request, connection: socket.socket) -> None:
        connection.sendall(_head(200, {}))
        while not server.closing.is_set():
            connection.sendall(piece)

    return behave


def drip(head_only: bool = False, every: float = 0.05) -> Behaviour:
    """One byte at a time, of the header or of the body."""

    def behave(server: FaultServer, _request: Request, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n" if head_only else _head(200, {}))
        while not server.closing.wait(every):
            connection.sendall(b"x")

    return behave


def silent() -> Behaviour:
    """No answer at all, for as long as the client waits."""

    def behave(server: FaultServer, _request: Request, connection: socket.socket) -> None:
        _end(server, connection, "stall")

    return behave


def redirect(location: str, status: int = 302) -> Behaviour:
    """A redirect."""
    return reply(status, Location=location)
