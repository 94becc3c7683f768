"""The tags that this project gives to Dagster's runs."""

from __future__ import annotations

from typing import Final

TOKEN_TAG: Final = "buttercup/token"  # noqa: S105 - a fencing token, no secret
"""The token of the claim that a run is for; a run by hand has none."""

WORKER_TAG: Final = "buttercup/worker"
"""The slot that made a run for itself."""


def run_key(task_id: str, token: int) -> str:
    """What Dagster knows the run of a claim by, so that it starts no second one."""
    return f"{task_id}:{token}"
