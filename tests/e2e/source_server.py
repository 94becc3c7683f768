"""An HTTP server that hands out source archives the way a signed object store does, or badly."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

SIGNATURE = "S1gnatureThatNobodyMaySee"
"""Stands in the query of every URL; a test looks for it where it must not be."""


@dataclass
class Behaviour:
    """How one path answers.

    Attributes:
        file: what it serves.
        refusals: statuses to answer with first, one for each request.
        gate: sends half of the body, then waits until this is set.
    """

    file: Path
    refusals: list[int] = field(default_factory=list)
    gate: threading.Event | None = None


class SourceServer:
    """A server on a free loopback port; a context manager."""

    def __init__(self) -> None:
        self._paths: dict[str, Behaviour] = {}
        self.requests: Counter[str] = Counter()
        self.waiting = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for behaviour in self._paths.values():
            if behaviour.gate is not None:
                behaviour.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def url(
        self,
        file: Path,
        name: str | None = None,
        *,
        refusals: list[int] | None = None,
        gate: threading.Event | None = None,
    ) -> str:
        """Serve a file and return its signed URL."""
        path = f"/bucket/{name or file.name}"
        self._paths[path] = Behaviour(file, refusals or [], gate)
        port = self._server.server_address[1]
        return f"http://127.0.0.1:{port}{path}?X-Amz-Expires=300&X-Amz-Signature={SIGNATURE}"

    def missing_url(self, name: str) -> str:
        """A signed URL that answers 404."""
        port = self._server.server_address[1]
        return f"http://127.0.0.1:{port}/bucket/{name}?X-Amz-Signature={SIGNATURE}"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        self.requests[parts.path] += 1
        behaviour = self._paths.get(parts.path)
        if behaviour is None or parse_qs(parts.query).get("X-Amz-Signature") != [SIGNATURE]:
            self._refuse(request, 404 if behaviour is None else 403)
            return
        if behaviour.refusals:
            self._refuse(request, behaviour.refusals.pop(0))
            return
        body = behaviour.file.read_bytes()
        request.send_response(200)
        request.send_header("Content-Type", "application/gzip")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        try:
            if behaviour.gate is not None:
                half = len(body) // 2
                request.wfile.write(body[:half])
                request.wfile.flush()
                self.waiting.set()
                behaviour.gate.wait(60)
                body = body[half:]
            request.wfile.write(body)
        except OSError:  # the client hung up, as it does when a task is cancelled
            request.close_connection = True

    @staticmethod
    def _refuse(request: BaseHTTPRequestHandler, status: int) -> None:
        request.send_response(status)
        request.send_header("Content-Length", "0")
        request.end_headers()
