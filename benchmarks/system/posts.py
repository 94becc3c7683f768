"""How many tasks a task server accepts per second, and how long a sender waits for the answer.

A closed loop: each connection posts one task, waits for the answer, and posts the next. The sender
is a single thread on plain sockets, so that it takes little of the machine that it measures.

    python -m benchmarks.system.posts http://127.0.0.1:8000 --seconds 10

posts with the key of the credentials file and prints the figures as JSON. The tasks stay pending:
measure against a registry that no sensor and no worker looks at.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import selectors
import socket
import sys
import time
import uuid
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from benchmarks.system.figures import percentile
from task_api.auth import CREDENTIALS, read_credentials
from task_api.settings import DEFAULT_HOME

DEADLINE_MS: Final = 30 * 86_400_000
"""How far ahead the deadlines lie, milliseconds."""

ANSWER_SECONDS: Final = 30.0
"""A connection that is not answered for so long has failed."""

RECEIVE_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class PostFigures:
    """What was measured.

    Attributes:
        accepted: posts answered with 202.
        failed: posts answered otherwise, cut off, or not answered.
        seconds: from the first post to the last answer.
        per_second: accepted posts per second.
        p50_ms, p99_ms, max_ms: from the first byte sent to the last byte received of an accepted
            post, milliseconds.
        failures: how often each way of failing was met, such as `status 503`.
    """

    accepted: int
    failed: int
    seconds: float
    per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    failures: dict[str, int]


def measure_posts(
    url: str,
    key_id: str,
    token: str,
    *,
    connections: int = 16,
    seconds: float = 10.0,
    warm_up_seconds: float = 1.0,
) -> PostFigures:
    """Post one new task per message over so many connections for so long.

    Each task is valid, has an id of its own, two sources, and a deadline that is far off.

    Args:
        url: of the task server, such as http://127.0.0.1:8000.
        key_id: the key's id.
        token: the key's token.
        connections: how many posts are under way at a time.
        seconds: how long new posts are sent.
        warm_up_seconds: how long to post before that without measuring, so that connections are
            open, the key is known, and code is warm.

    Raises:
        OSError: the server cannot be reached, or not any more.
    """
    parts = urlsplit(url)
    sender = _Sender((parts.hostname or "127.0.0.1", parts.port or 80), key_id, token)
    try:
        sender.open(connections)
        if warm_up_seconds > 0:
            sender.post_for(warm_up_seconds)
        return sender.post_for(seconds)
    finally:
        sender.close()


class _Sender:
    """The connections, and what is under way on each of them."""

    def __init__(self, address: tuple[str, int], key_id: str, token: str) -> None:
        self._address = address
        credentials = b64encode(f"{key_id}:{token}".encode()).decode()
        self._head = (
            f"POST /v1/task/ HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\n"
            f"Authorization: Basic {credentials}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self._selector = selectors.DefaultSelector()

    def open(self, connections: int) -> None:
        for _ in range(connections):
            self._connect()

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.data.socket.close()
        self._selector.close()

    def post_for(self, seconds: float) -> PostFigures:
        """Post until time is up, and wait for the answers that are still to come."""
        latencies: list[float] = []
        failures: dict[str, int] = {}
        begin = last = time.perf_counter()
        end = begin + seconds
        busy: set[_Connection] = set()
        for key in list(self._selector.get_map().values()):
            self._post(key.data)
            busy.add(key.data)
        while busy:
            ready = self._selector.select(ANSWER_SECONDS)
            if not ready:
                failures["not answered"] = len(busy)
                break
            for key, _ in ready:
                connection: _Connection = key.data
                status = connection.receive()
                if status is None:
                    continue
                last = time.perf_counter()
                if status == 202:
                    latencies.append(last - connection.posted)
                else:
                    kind = f"status {status}" if status else "cut off"
                    failures[kind] = failures.get(kind, 0) + 1
                if connection.ended:
                    busy.discard(connection)
                    self._selector.unregister(connection.socket)
                    connection.socket.close()
                    connection = self._connect()
                if last < end:
                    self._post(connection)
                    busy.add(connection)
                else:
                    busy.discard(connection)
        taken = last - begin
        milliseconds = [1000 * one for one in latencies] or [0.0]
        return PostFigures(
            accepted=len(latencies),
            failed=sum(failures.values()),
            seconds=taken,
            per_second=len(latencies) / taken if taken else 0.0,
            p50_ms=percentile(milliseconds, 50),
            p99_ms=percentile(milliseconds, 99),
            max_ms=max(milliseconds),
            failures=failures,
        )

    def _connect(self) -> _Connection:
        connection = _Connection(socket.create_connection(self._address, ANSWER_SECONDS))
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)
        return connection

    def _post(self, connection: _Connection) -> None:
        body = _message()
        connection.posted = time.perf_counter()
        connection.socket.sendall(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))


class _Connection:
    """One connection and the part of an answer that has come.

    Attributes:
        posted: when the post that is under way was sent, by `time.perf_counter`.
        ended: whether the server closed, or will close, the connection.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = connected
        self.posted = 0.0
        self.ended = False
        self._received = b""

    def receive(self) -> int | None:
        """The status of the answer if it is whole, 0 if it never will be, or None."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            self.ended = True
            return 0
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        lower = head.lower()
        length = lower.partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) < int(length or 0):
            return None
        self._received = b""
        self.ended = b"connection: close" in lower
        return int(head[9:12])


def _message() -> bytes:
    """A message with one new task."""
    now_ms = time.time_ns() // 1_000_000
    return _TEMPLATE % (
        str(uuid.uuid4()).encode(),
        now_ms,
        str(uuid.uuid4()).encode(),
        now_ms + DEADLINE_MS,
    )


_TEMPLATE: Final = (
    b'{"message_id": "%b", "message_time": %d, "tasks": [{"task_id": "%b", "type": "full", '
    b'"deadline": %d, "project_name": "libpng", "focus": "libpng", "harnesses_included": true, '
    b'"metadata": {"round.id": "bench", "task.id": "posts"}, "source": [{"type": "repo", '
    b'"sha256": "' + b"a" * 64 + b'", "url": '
    b'"https://archives.example/libpng.tar.gz?signature=' + b"s" * 64 + b'"}, '
    b'{"type": "fuzz-tooling", "sha256": "' + b"b" * 64 + b'", "url": '
    b'"https://archives.example/fuzz-tooling.tar.gz?signature=' + b"s" * 64 + b'"}]}]}'
)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the figures as JSON.

    Returns:
        0; 1 if a post failed.
    """
    parser = argparse.ArgumentParser(description="Post tasks and print the figures as JSON.")
    parser.add_argument("url", help="of the task server, such as http://127.0.0.1:8000")
    parser.add_argument(
        "--credentials",
        type=Path,
        default=DEFAULT_HOME.expanduser() / CREDENTIALS,
        help="file with the key (default: %(default)s)",
    )
    parser.add_argument("--connections", type=int, default=16, help="(default: 16)")
    parser.add_argument("--seconds", type=float, default=10.0, help="(default: 10)")
    chosen = parser.parse_args(argv)
    key = read_credentials(chosen.credentials)
    figures = measure_posts(
        chosen.url,
        key.key_id,
        key.token,
        connections=chosen.connections,
        seconds=chosen.seconds,
    )
    print(json.dumps(dataclasses.asdict(figures)))
    return 1 if figures.failed else 0


if __name__ == "__main__":
    sys.exit(main())
