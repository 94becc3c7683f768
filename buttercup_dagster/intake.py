"""One turn of the intake: wait for work, claim as much as there is room for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from task_api import keys
from task_api.readiness import NO_WORKER
from task_api.records import Status
from task_api.registry import Claim, TaskRegistry
from task_api.task import RegistryUnavailable, TaskState

TURN_SECONDS: Final = 12.0
"""Length of a turn: far below the 60 s after which Dagster gives a sensor up."""

WAIT_SECONDS: Final = 2.0
"""Longest wait between two heartbeats."""

GATHER_SECONDS: Final = 0.03
"""Tasks posted together ring one by one; so long the others have to arrive."""

MOST_CLAIMS: Final = 32
"""Dagster starts the runs of a turn one after the other, and the last one has to be started before
the lease of its claim ends; warm workers that are done go on by themselves."""

BUSY_SECONDS: Final = 0.25
AWAY_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn brought.

    Attributes:
        claims: tasks to start runs for.
        saw: what it saw, for people.
    """

    claims: Sequence[Claim]
    saw: str


def take_turn(
    registry: TaskRegistry,
    *,
    max_runs: int | None,
    seconds: float | None = None,
) -> Turn:
    """Wait until something can be started, and claim it.

    Args:
        registry: the tasks.
        max_runs: how many attempts there may be at the same time; None where warm workers say how
            many runs they take. Attempts under way are counted in the registry, whose leases end:
            Dagster counts a run whose machine was switched off as one that goes on.
        seconds: how long to wait; `TURN_SECONDS` if None.

    Returns:
        The claims, or none when time is up. A Redis that is away is waited for and reported, never
        raised: a failed turn would tell people nothing more.
    """
    end = time.monotonic() + (TURN_SECONDS if seconds is None else seconds)
    lease_ms = keys.SCHEDULED_LEASE_MS if max_runs is not None else keys.WARM_LEASE_MS
    while True:
        try:
            registry.reap()
            status = registry.status()
            slots = free_slots(status, max_runs)
            registry.sensor_seen(needs_workers=max_runs is None, free_slots=slots)
            # What workers that linger will take is left to them: they are there already.
            wanted = min(slots, status.due - status.lingering, MOST_CLAIMS)
            claims = registry.claim(wanted, lease_ms=lease_ms)
            if claims:
                return Turn(claims, f"{len(claims)} claimed")
            left = end - time.monotonic()
            if left <= 0:
                return Turn((), _saw(status, max_runs))
            if slots == 0:
                time.sleep(min(BUSY_SECONDS, left))
            elif registry.wait_for_work(min(WAIT_SECONDS, left)):
                time.sleep(GATHER_SECONDS)
        except RegistryUnavailable as error:
            left = end - time.monotonic()
            if left <= 0:
                return Turn((), f"{error}; waiting for it")
            time.sleep(min(AWAY_SECONDS, left))


def free_slots(status: Status, max_runs: int | None) -> int:
    """How many runs may be started now.

    Args:
        status: of the registry.
        max_runs: as for `take_turn`.
    """
    claimed = status.states[TaskState.SCHEDULED]
    if max_runs is None:
        return max(0, status.workers - status.occupied - claimed)
    return max(0, max_runs - claimed - status.states[TaskState.DOWNLOADING])


def _saw(status: Status, max_runs: int | None) -> str:
    waiting = status.states[TaskState.PENDING]
    running = status.states[TaskState.SCHEDULED] + status.states[TaskState.DOWNLOADING]
    if max_runs is None and not status.workers:
        return f"{_tasks(waiting)} waiting, {NO_WORKER}" if waiting else NO_WORKER
    limit = status.workers if max_runs is None else max_runs
    if running >= limit:
        return f"{running} of {limit} attempts under way, {_tasks(waiting)} waiting"
    if waiting:
        return f"{_tasks(waiting)} waiting for another try"
    return "no task pending"


def _tasks(number: int) -> str:
    return "1 task" if number == 1 else f"{number} tasks"
