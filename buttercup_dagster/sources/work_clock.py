"""A clock that stands while work waits for its turn, so that no limit counts the waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class WorkClock:
    """Seconds of work. One thread waits; any thread may look at the time."""

    def __init__(self) -> None:
        # Both in one value: another thread never sees one of them without the other.
        self._state: tuple[float, float | None] = (0.0, None)

    def now(self) -> float:
        """What `time.monotonic` says, less what was waited so far, in seconds."""
        waited, since = self._state
        return (time.monotonic() if since is None else since) - waited

    @contextmanager
    def standing(self) -> Iterator[None]:
        """Let the clock stand while the block runs."""
        waited, _ = self._state
        since = time.monotonic()
        self._state = (waited, since)
        try:
            yield
        finally:
            self._state = (waited + time.monotonic() - since, None)
