"""Sends tasks at set times, whatever becomes of the earlier ones."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.system.archives import Sources
from task_api.auth import Credentials
from task_api.client import TaskServerClient
from task_api.task import ButtercupError

CONNECTIONS: Final = 8
"""Senders at most; each posts one task at a time."""

DEADLINE_MS: Final = 24 * 3_600_000
"""How far ahead the deadlines lie, milliseconds."""


@dataclass(frozen=True, slots=True)
class Post:
    """A task that was sent.

    Attributes:
        task_id: its id.
        posted_ms: when the request was begun, UNIX milliseconds; if it had to wait until a sender
            was free, when it was due. Otherwise a slow server would shorten what it is judged by.
        error: why it was not accepted, or None.
    """

    task_id: str
    posted_ms: float
    error: str | None = None


class Sending:
    """Tasks on their way, each in a message of its own.

    Args:
        url: of the task server.
        key: for it.
        sources: of each task, in the order in which they are sent.
        offsets: when to send each, seconds from the start, ascending; 0 for as soon as a sender is
            free.
    """

    def __init__(
        self, url: str, key: Credentials, sources: Sequence[Sources], offsets: Sequence[float]
    ) -> None:
        self._url = url
        self._key = key
        self._tasks: Iterator[tuple[float, dict[str, Any]]] = iter(
            list(zip(offsets, map(task_of, sources), strict=True))
        )
        self._lock = threading.Lock()
        self._posts: list[Post] = []
        self._stopped = threading.Event()
        senders = min(CONNECTIONS, len(sources))
        self._start = threading.Barrier(senders)
        self._began = self._began_ms = 0.0
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(senders)]
        for thread in self._threads:
            thread.start()

    @property
    def posts(self) -> list[Post]:
        """What was sent so far."""
        with self._lock:
            return list(self._posts)

    def stop(self) -> None:
        """Send nothing more."""
        self._stopped.set()

    def _send(self) -> None:
        with TaskServerClient(self._url, self._key.key_id, self._key.token) as client:
            if self._start.wait() == 0:
                self._began, self._began_ms = time.monotonic(), time.time_ns() / 1e6
            self._start.wait()
            while (due := self._next()) is not None:
                offset, task = due
                if self._stopped.wait(max(0.0, self._began + offset - time.monotonic())):
                    return
                error = None
                posted_ms = time.time_ns() / 1e6
                if offset:
                    posted_ms = min(posted_ms, self._began_ms + 1000 * offset)
                try:
                    client.submit(task)
                except ButtercupError as refused:
                    error = str(refused)
                with self._lock:
                    self._posts.append(Post(task["task_id"], posted_ms, error))

    def _next(self) -> tuple[float, dict[str, Any]] | None:
        with self._lock:
            return next(self._tasks, None)


def task_of(sources: Sources) -> dict[str, Any]:
    """A valid task with an id of its own (CRS API, `TaskDetail`)."""
    return {
        "task_id": str(uuid.uuid4()),
        "type": "full",
        "project_name": "benchmark",
        "focus": sources.focus,
        "deadline": time.time_ns() // 1_000_000 + DEADLINE_MS,
        "harnesses_included": True,
        "metadata": {"round.id": "benchmark"},
        "source": [
            {"type": "repo", "url": sources.repo.url, "sha256": sources.repo.sha256},
            {"type": "fuzz-tooling", "url": sources.tooling.url, "sha256": sources.tooling.sha256},
        ],
    }
