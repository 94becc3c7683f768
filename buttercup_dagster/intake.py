"""One turn of the intake: wait for work, claim as much as there is room for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from task_api.registry import Claim, TaskRegistry
from task_api.task import RegistryUnavailable, TaskState

TURN_SECONDS: Final = 12.0
"""Length of a turn: far below the 60 s after which Dagster gives a sensor up."""

WAIT_SECONDS: Final = 2.0
"""Longest wait between two heartbeats."""

GATHER_SECONDS: Final = 0.03
"""Tasks posted together ring one by one; so long the others have to arrive."""

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
    max_runs: int,
    seconds: float | None = None,
) -> Turn:
    """Wait until something can be started, and claim it.

    Args:
        registry: the tasks.
        max_runs: how many attempts there may be at the same time. Those under way are counted in
            the registry, whose leases end: Dagster counts a run whose machine was switched off as
            one that goes on.
        seconds: how long to wait; `TURN_SECONDS` if None.

    Returns:
        The claims, or none when time is up. A Redis that is away is waited for and reported, never
        raised: a failed turn would tell people nothing more.
    """
    end = time.monotonic() + (TURN_SECONDS if seconds is None else seconds)
    while True:
        try:
            registry.reap()
            states = registry.status().states
            running = states[TaskState.SCHEDULED] + states[TaskState.DOWNLOADING]
            slots = max(0, max_runs - running)
            registry.sensor_seen(needs_workers=False, free_slots=slots)
            claims = registry.claim(slots)
            if claims:
                return Turn(claims, f"{len(claims)} claimed")
            left = end - time.monotonic()
            if left <= 0:
                return Turn((), _saw(states[TaskState.PENDING], running, max_runs))
            if slots == 0:
                time.sleep(min(BUSY_SECONDS, left))
            elif registry.wait_for_work(min(WAIT_SECONDS, left)):
                time.sleep(GATHER_SECONDS)
        except RegistryUnavailable as error:
            left = end - time.monotonic()
            if left <= 0:
                return Turn((), f"{error}; waiting for it")
            time.sleep(min(AWAY_SECONDS, left))


def _saw(waiting: int, running: int, max_runs: int) -> str:
    if running >= max_runs:
        return f"{running} of {max_runs} attempts under way, {_tasks(waiting)} waiting"
    if waiting:
        return f"{_tasks(waiting)} waiting for another try"
    return "no task pending"


def _tasks(number: int) -> str:
    return "1 task" if number == 1 else f"{number} tasks"
