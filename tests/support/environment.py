"""The environment of this process, and of those that tests start."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from unittest import mock


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Have these variables for a moment, beside those that there are."""
    with mock.patch.dict(os.environ, variables):
        yield


def without_settings() -> dict[str, str]:
    """This process's environment without any setting of ours or of Dagster."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BUTTERCUP_", "DAGSTER_"))
    }
