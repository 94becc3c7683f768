"""Waiting for a condition, with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


def wait_for(
    condition: Callable[[], _T], what: str, *, seconds: float = 20.0, every: float = 0.02
) -> _T:
    """Call `condition` until it gives something true, and return that.

    Args:
        condition: what is asked again and again.
        what: the thing waited for, for the failure's message.
        seconds: the limit.
        every: pause between two calls, seconds.

    Raises:
        AssertionError: time is up.
    """
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(every)
