"""The environment of processes that tests start."""

from __future__ import annotations

import os


def without_settings() -> dict[str, str]:
    """This process's environment without any setting of ours or of Dagster."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BUTTERCUP_", "DAGSTER_"))
    }
