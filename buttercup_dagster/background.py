"""Work in a thread of its own, so that a signal ends it in an orderly way.

Dagster and Ctrl-C raise an exception in the main thread at whatever line it stands. Here that line
only waits: the work is asked to stop, cleans up, and then the exception goes on.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from buttercup_dagster.sources.stop import Stop

CLEAN_UP_SECONDS: Final = 30.0
"""How long an interrupted piece of work may take to clean up."""

_T = TypeVar("_T")
Log = Callable[[str], None]


def in_thread(work: Callable[[Log], _T], *, stop: Stop, log: Log) -> _T:
    """Do work in a thread and pass on what it logs, returns or raises.

    Args:
        work: gets a function that takes lines for people, from any thread.
        stop: what the work looks at; requested when the calling thread is interrupted.
        log: gets those lines, in the calling thread.

    Raises:
        BaseException: whatever the work raised, or interrupted the calling thread.
    """
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    results: list[_T] = []
    errors: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            results.append(work(lines.put))
        except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
            errors.append(error)
        finally:
            done.set()
            lines.put(None)

    worker = threading.Thread(target=run, name="work", daemon=True)
    try:
        worker.start()
        while (line := lines.get()) is not None:
            log(line)
    except BaseException as error:
        stop.request("the run was interrupted")
        # Interrupted within `start`, the thread may be about to begin all the same.
        if worker.ident is not None or not isinstance(error, RuntimeError):
            _wait_for_clean_up(done)
        raise
    worker.join()
    if errors:
        raise errors[0]
    return results[0]


def _wait_for_clean_up(done: threading.Event) -> None:
    end = time.monotonic() + CLEAN_UP_SECONDS
    while not done.is_set() and time.monotonic() < end:
        # A second signal must not cut the clean-up short.
        with suppress(BaseException):
            done.wait(0.2)
