"""What ends a command: Ctrl-C, and the signals with which others ask for it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final

INTERRUPTED: Final = 130
"""Status of a command that Ctrl-C or a signal has ended, as shells know it."""

ENDING: Final = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let a process that is told to end clean up as after Ctrl-C."""

    def interrupt(_number: int, frame: FrameType | None) -> None:
        # While a run is under way Dagster handles Ctrl-C in its own way.
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    with _handled(ENDING, interrupt):
        yield


@contextmanager
def stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """A question that is answered with true once this process is told to end, or by Ctrl-C."""
    stop = threading.Event()
    with _handled((signal.SIGINT, *ENDING), lambda *_: stop.set()):
        yield stop.is_set


@contextmanager
def _handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    former = {
        number: signal.signal(number, handler)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup wants it
    }
    try:
        yield
    finally:
        for number, before in former.items():
            signal.signal(number, before)
