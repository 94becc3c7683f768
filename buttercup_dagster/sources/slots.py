"""How many downloads run at once on a machine: from each host, and in all.

A slot is a lock file, of which there are as many as downloads may run. So all processes that share
a folder share the slots, and one that is killed gives its slots back.

A slot of the host and one of all are taken together or not at all, and whoever has them waits for
no lock until they are given back. So nobody waits in a circle, whatever else is locked by those
who wait. Whoever asks first after a slot is given back gets it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from buttercup_dagster.sources.disk import take_lock
from buttercup_dagster.sources.options import FetchLimits
from buttercup_dagster.sources.stop import Stop

FIRST_PAUSE_SECONDS: Final = 0.005
LONGEST_PAUSE_SECONDS: Final = 0.04
"""Pauses between two looks for a free slot: short for small archives, then without any load."""

_HOST_DIGITS: Final = 16


class Slots:
    """The slots of one folder.

    Args:
        folder: of the lock files; it must exist.
        limits: how many downloads may run.
    """

    def __init__(self, folder: Path, limits: FetchLimits) -> None:
        self._folder = folder
        self._per_host = limits.downloads_per_host
        self._in_all = limits.downloads

    @contextmanager
    def taken(self, host: str, stop: Stop) -> Iterator[None]:
        """Hold a slot while the block runs; wait for it as long as it takes.

        Args:
            host: name or address, as it is dialled.
            stop: ends the wait.

        Raises:
            Stopped, DeadlinePassed: while waiting.
            StorageError: a lock file cannot be made or locked.
        """
        # A name may be longer than that of a file, and hold anything.
        name = hashlib.sha256(host.encode("utf-8", "surrogateescape")).hexdigest()[:_HOST_DIGITS]
        pause = FIRST_PAUSE_SECONDS
        while True:
            with ExitStack() as held:
                if self._take(f"host-{name}", self._per_host, held) and self._take(
                    "download", self._in_all, held
                ):
                    yield
                    return
            stop.wait(pause)
            stop.check()
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _take(self, kind: str, count: int, held: ExitStack) -> bool:
        for number in range(count):
            handle = take_lock(self._folder / f"{kind}-{number}.lock")
            if handle is not None:
                held.callback(os.close, handle)
                return True
        return False
