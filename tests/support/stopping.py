"""Stopping work while it runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from buttercup_dagster.sources.stop import Stop
from tests.support.waiting import wait_for


@contextlib.contextmanager
def stop_when(condition: Callable[[], object], what: str) -> Iterator[Stop]:
    """A stop that is requested by another thread once something is the case."""
    stop = Stop()

    def ask() -> None:
        wait_for(condition, what)
        stop.request("the task was cancelled")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield stop
    finally:
        thread.join()
