"""A file server on loopback that costs as little as one can: a process of its own, and sendfile.

`python -m benchmarks.server FILE...` serves each file under its position in the list, prints its
port, and ends when its standard input does, so that it never outlives who started it.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from benchmarks.inputs import ROOT
from benchmarks.programs import Failed

_MOST_REQUEST_BYTES: Final = 64 * 1024
_SILENCE_SECONDS: Final = 60.0


@contextlib.contextmanager
def serving(files: Sequence[Path]) -> Iterator[list[str]]:
    """Serve files while the block runs.

    Yields:
        The URL of each.

    Raises:
        Failed: the server does not start.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.server", *map(str, files)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,  # Ctrl-C is for the one who started it
    ) as server:
        try:
            assert server.stdout is not None  # noqa: S101
            port = server.stdout.readline().strip()
            if not port:
                raise Failed("the file server does not start")
            yield [f"http://127.0.0.1:{port}/{number}" for number in range(len(files))]
        finally:
            server.kill()


def main(files: Sequence[Path]) -> None:
    """Serve until the standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    threading.Thread(target=_accept, args=(listener, files), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()


def _accept(listener: socket.socket, files: Sequence[Path]) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_answer, args=(connection, files), daemon=True).start()


def _answer(connection: socket.socket, files: Sequence[Path]) -> None:
    # A client that goes away has had enough.
    with connection, contextlib.suppress(OSError):
        connection.settimeout(_SILENCE_SECONDS)
        request = b""
        while b"\r\n\r\n" not in request:
            piece = connection.recv(_MOST_REQUEST_BYTES)
            request += piece
            if not piece or len(request) > _MOST_REQUEST_BYTES:
                return
        method, _, rest = request.partition(b" ")
        number = rest.partition(b" ")[0].removeprefix(b"/")
        if method != b"GET" or not number.isdigit() or int(number) >= len(files):
            connection.sendall(
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
            return
        path = files[int(number)]
        with path.open("rb") as file:
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/gzip\r\n"
                b"Content-Length: %d\r\nConnection: close\r\n\r\n" % path.stat().st_size
            )
            connection.sendfile(file)


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
