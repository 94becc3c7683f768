"""Asking running work to stop, from another thread or at a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from buttercup_dagster.sources.errors import DeadlinePassed, Stopped


class Stop:
    """A request to stop that work looks at, waits on, and is woken by.

    Thread-safe. Work calls `check` between steps, waits with `wait`, and registers with
    `on_stop` what ends a call that blocks in the kernel.

    Args:
        deadline_ms: when the work must end by itself, UNIX milliseconds; None for never.
    """

    def __init__(self, deadline_ms: int | None = None) -> None:
        self.deadline_ms = deadline_ms
        self._lock = threading.Lock()
        self._requested = threading.Event()
        self._reason = ""
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._last_number = 0
        self._timer: threading.Timer | None = None

    @classmethod
    def after(cls, seconds: float) -> Self:
        """A stop whose deadline is so far from now, seconds."""
        return cls(int((time.time() + seconds) * 1000))

    @property
    def reason(self) -> str:
        """Why the stop was requested; empty while it was not."""
        return self._reason

    @property
    def stopped(self) -> bool:
        """Whether a stop was requested or the deadline has passed."""
        return self._requested.is_set() or self._remaining() <= 0

    def request(self, reason: str) -> None:
        """Ask the work to stop. Only the first reason is kept.

        Args:
            reason: why, for people.
        """
        with self._lock:
            if self._requested.is_set():
                return
            self._reason = reason
            self._requested.set()
        self._call_back()

    def check(self) -> None:
        """Return if the work may go on.

        Raises:
            Stopped: a stop was requested.
            DeadlinePassed: the deadline has passed.
        """
        if self._requested.is_set():
            raise Stopped(f"stopped: {self._reason}")
        if self._remaining() <= 0:
            raise DeadlinePassed("the deadline of the task passed before it was prepared")

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than the work may go on.

        Args:
            seconds: how long to sleep at most.

        Returns:
            Whether the work has to stop.
        """
        until = time.monotonic() + max(0.0, seconds)
        while not self.stopped:
            left = until - time.monotonic()
            if left <= 0:
                return False
            self._requested.wait(min(left, self._remaining(), threading.TIMEOUT_MAX))
        return True

    @contextmanager
    def on_stop(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call back once, if the work has to stop while the block runs.

        The callback runs in the thread that requests the stop, or in a timer's; it must neither
        block nor raise. It is called at once if the stop came before.

        Args:
            callback: what ends a blocked call, such as shutting down a socket.
        """
        with self._lock:
            self._last_number += 1
            number = self._last_number
            self._callbacks[number] = callback
            if self._timer is None and self.deadline_ms is not None:
                seconds = min(max(0.0, self._remaining()), threading.TIMEOUT_MAX)
                self._timer = threading.Timer(seconds, self._call_back)
                self._timer.daemon = True
                self._timer.start()
        if self.stopped:
            self._call_back()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.pop(number, None)
                if not self._callbacks and self._timer is not None:
                    self._timer.cancel()
                    self._timer = None

    def _remaining(self) -> float:
        if self.deadline_ms is None:
            return float("inf")
        return self.deadline_ms / 1000 - time.time()

    def _call_back(self) -> None:
        with self._lock:
            callbacks = list(self._callbacks.values())
            self._callbacks.clear()
        for callback in callbacks:
            callback()
