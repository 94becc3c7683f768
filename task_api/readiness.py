"""Whether a task that is posted now would be worked on, and what is missing if not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from task_api.records import Status

STATUS_SECONDS: Final = 2.0
"""How long `/status/` and `/readyz` wait for Redis; senders poll, it must not hang."""

NO_WORKER: Final = "no worker is running; start one with: buttercup-downloader serve"


@dataclass(frozen=True, slots=True)
class Readiness:
    """What was checked, and what is wrong.

    Attributes:
        checks: name of each check that applies, with the problem, or None where all is well.
    """

    checks: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong, each with what to do about it."""
        return {name: problem for name, problem in self.checks.items() if problem is not None}


def readiness(
    status: Status | None,
    *,
    redis_problem: str | None,
    sensor_timeout_ms: int,
    competition_problem: str | None,
    competition_configured: bool,
) -> Readiness:
    """Judge what is known.

    Args:
        status: the registry's status, or None if it could not be read.
        redis_problem: why not.
        sensor_timeout_ms: the sensor counts as gone when it was not seen for this long.
        competition_problem: what is wrong with the competition API.
        competition_configured: whether there is one.
    """
    checks: dict[str, str | None] = {"redis": redis_problem}
    if status is not None:
        checks["sensor"] = _sensor_problem(status, sensor_timeout_ms)
        if status.needs_workers:
            checks["worker"] = None if status.workers else NO_WORKER
    if competition_configured:
        checks["competition_api"] = competition_problem
    return Readiness(checks)


def _sensor_problem(status: Status, timeout_ms: int) -> str | None:
    advice = "start `dagster dev -w workspace.yaml`, and see that intake_sensor is switched on"
    if status.sensor_seen_ms is None:
        return f"no sensor has been seen yet; {advice}"
    age_ms = status.now_ms - status.sensor_seen_ms
    if age_ms > timeout_ms:
        return f"no sensor seen for {age_ms // 1000} s; {advice}"
    return None
