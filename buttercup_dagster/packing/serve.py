"""Serving a few files over HTTP to whoever knows their URLs, for as long as a task needs them.

A URL's path tells which file it is and its query holds the secret, as in the signed URLs of object
stores: everything that reads such URLs shows the path and treats the query as a credential.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import secrets
import socket
import socketserver
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, BinaryIO, Final, Self
from urllib.parse import quote

from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.sources.options import MEBIBYTE
from task_api.task import printable, safe_url, split_url

LOOPBACK: Final = "127.0.0.1"
IDLE_SECONDS: Final = 60.0
"""How long a client may send nothing, or take nothing, before it is hung up on."""

CLOSE_SECONDS: Final = 5.0
"""How long the end of the server waits for its connections to notice it."""

_SECRET_BYTES: Final = 32
_PIECE_BYTES: Final = MEBIBYTE
_RANGE: Final = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Served:
    """One file: its key, where it is, and the query that its URL has."""

    name: str
    path: Path
    query: str


class SourceServer:
    """Serves files by GET and HEAD, whole or one range of them; everything else is a 404.

    A context manager: it serves from entering to leaving, which ends what is under way. Nothing is
    logged.

    Args:
        files: the files by a name of the caller's choice, which stands in the URL.
        address: the address to bind to, IPv4 or IPv6, without a scope.
        advertised: the host that stands in the URLs, if it is another one, as it has to be for
            an address such as 0.0.0.0.

    Raises:
        PackingError: on entering: the address is not one of this machine.
    """

    def __init__(
        self, files: Mapping[str, Path], *, address: str = LOOPBACK, advertised: str | None = None
    ) -> None:
        self._address = address
        self._host = advertised or address
        self._files: dict[str, _Served] = {}
        for name, path in files.items():
            query = f"token={secrets.token_urlsafe(_SECRET_BYTES)}"
            self._files[f"/{quote(name, safe='')}"] = _Served(name, path, query)
        self._sent = dict.fromkeys(files, 0)
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        try:
            self._server = _Server(self._address, self)
        except OSError as error:
            raise PackingError(
                f"the archives cannot be served on {printable(self._address)}: {error.strerror}; "
                "choose an address of this machine that the workers reach"
            ) from error
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.stop()

    @property
    def port(self) -> int:
        """The port that was free.

        Raises:
            RuntimeError: it does not serve yet.
        """
        if self._server is None:
            raise RuntimeError("the server has a port only once it has been entered")
        return int(self._server.server_address[1])

    def url(self, name: str) -> str:
        """The URL of a file. Its query is the secret.

        Raises:
            KeyError: no file has this name.
            RuntimeError: it does not serve yet.
        """
        path = f"/{quote(name, safe='')}"
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}{path}?{self._files[path].query}"

    def sent(self) -> dict[str, int]:
        """Bytes of content sent so far, by name.

        What is sent again counts again, so it may grow beyond the size of the file.
        """
        with self._lock:
            return dict(self._sent)

    def find(self, target: str) -> _Served | None:
        """The file that a request's target asks for, if the secret in it is right."""
        path, _, query = target.partition("?")
        served = self._files.get(path)
        if served is None:
            return None
        right = secrets.compare_digest(query.encode("latin-1", "replace"), served.query.encode())
        return served if right else None

    def count(self, name: str, sent: int) -> None:
        """Note that so many bytes of a file went out."""
        with self._lock:
            self._sent[name] += sent


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One thread for each connection, all of which can be ended."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, sources: SourceServer) -> None:
        self.sources = sources
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._connections: set[Any] = set()
        self._changed = threading.Condition()
        self._thread = threading.Thread(
            target=self.serve_forever, args=(0.05,), name="source-server", daemon=True
        )
        super().__init__((address, 0), _Handler)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        with self._changed:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._connections, CLOSE_SECONDS)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._changed:
            self._connections.discard(request)
            self._changed.notify_all()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none of the person's business."""


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def version_string(self) -> str:
        return "buttercup"

    def log_message(self, *_: object) -> None:
        """Nothing: the target of a request holds the secret."""

    def send_error(self, code: int, *_: object, **__: object) -> None:
        """Answer without a body. The standard library calls this for methods it does not know."""
        status = HTTPStatus.NOT_FOUND if code == HTTPStatus.NOT_IMPLEMENTED else HTTPStatus(code)
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def _answer(self) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body that nobody reads would be the next request
        served = self.server.sources.find(self.path)
        if served is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            file = served.path.open("rb")
        except OSError:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        with file:
            found = os.fstat(file.fileno())
            size = found.st_size
            etag = f'"{size:x}-{found.st_mtime_ns:x}"'
            part = None
            if self.command == "GET" and self.headers.get("If-Range", etag) == etag:
                part = requested_part(self.headers.get("Range", ""), size)
            if part is None:
                part = range(size)
                self.send_response(HTTPStatus.OK)
            elif part:
                self.send_response(HTTPStatus.PARTIAL_CONTENT)
                self.send_header("Content-Range", f"bytes {part.start}-{part.stop - 1}/{size}")
            else:
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", etag)
            self.end_headers()
            if self.command == "GET":
                self._send(served.name, file, part)

    def _send(self, name: str, file: BinaryIO, part: range) -> None:
        for start in range(part.start, part.stop, _PIECE_BYTES):
            wanted = min(_PIECE_BYTES, part.stop - start)
            sent = self.connection.sendfile(file, start, wanted)
            self.server.sources.count(name, sent)
            if sent < wanted:  # the file has become shorter, so the answer cannot be completed
                self.close_connection = True
                return


def requested_part(field: str, size: int) -> range | None:
    """Which bytes of a file a Range field asks for.

    Args:
        field: its value; empty if there is none.
        size: of the file, in bytes.

    Returns:
        The bytes; empty if the file has none of them; None if the field is not one range of
        bytes, in which case the whole file is to be sent (RFC 9110, section 14.2).
    """
    found = _RANGE.match(field.strip())
    if found is None:
        return None
    first, last, length = found.groups()
    if length is not None:
        return range(max(size - int(length), 0), size)
    start = int(first)
    if last is None:
        return range(min(start, size), size)
    if int(last) < start:
        return None
    return range(min(start, size), min(int(last) + 1, size))


def reachable_address(url: str) -> str:
    """The address of this machine that the host of a URL sees when this machine calls it.

    No packet is sent: the kernel's routing table tells.

    Args:
        url: of the server to reach.

    Returns:
        An IPv4 or IPv6 address; 127.0.0.1 if the host is this machine's loopback.

    Raises:
        PackingError: the URL names no host, one that is not known, or one without a route to it.
    """
    parts = split_url(url)
    if parts is None or not parts.hostname:
        raise PackingError(f"{safe_url(url)} names no host; give a URL like http://host:8000")
    try:
        # UnicodeError: a name that cannot be one in the domain name system.
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise PackingError(
            f"the host of {safe_url(url)} is not known on this machine; check its name"
        ) from error
    reason = "no address"
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(address)
                own = str(probe.getsockname()[0])
        except OSError as error:
            reason = error.strerror or str(error)
            continue
        return LOOPBACK if ipaddress.ip_address(own).is_loopback else own
    raise PackingError(
        f"this machine has no way to the host of {safe_url(url)}: {reason}; check the network"
    )
