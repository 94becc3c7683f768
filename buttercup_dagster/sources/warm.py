"""What a process does once before it forks, so that no first task pays for it."""

from __future__ import annotations

import importlib
from typing import Final

from buttercup_dagster.sources.tls import tls_context

_TAKEN_LATE: Final = (
    "buttercup_dagster.sources.prepare",
    "encodings.ascii",
    "encodings.idna",
    "encodings.unicode_escape",
    "isal",
)


def warm() -> None:
    """Import and read what the first task would have to.

    No thread, socket, file or lock is left behind.
    """
    for name in _TAKEN_LATE:
        importlib.import_module(name)
    tls_context()
