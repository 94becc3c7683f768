"""Bringing folders and Dagster in line with what the registry says."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from buttercup_dagster.by_hand import ANNOUNCED
from buttercup_dagster.engine import Engine
from buttercup_dagster.sources.errors import SourceError
from buttercup_dagster.sources.stop import Stop
from task_api.registry import TaskRecord, TaskRegistry
from task_api.task import TaskState, UnknownTask

UNCONFIRMED_MS: Final = 60_000
"""A run has this long to confirm its materialization by itself, milliseconds."""

MOST_MISSING: Final = 50
"""Materializations added at once."""

REMOVAL_SECONDS: Final = 15.0
"""No further folder is begun after this, and no lock waited for: a sensor has 60 s in all."""

UNWANTED: Final = (TaskState.CANCELED, TaskState.EXPIRED, TaskState.ERRORED)
"""States in which nobody reads the folder of a task that is listed for removal."""


@dataclass
class Reconciled:
    """What was brought in line.

    Attributes:
        missing: announced tasks whose materialization Dagster lacks.
        confirmed: how many had it.
        removed: how many folders were removed.
        problems: what could not be done, for people.
    """

    missing: list[TaskRecord] = field(default_factory=list)
    confirmed: int = 0
    removed: int = 0
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """One line for people."""
        parts = [
            f"materializations added: {len(self.missing)}" if self.missing else "",
            f"materializations confirmed: {self.confirmed}" if self.confirmed else "",
            f"folders removed: {self.removed}" if self.removed else "",
            *self.problems,
        ]
        return "; ".join(part for part in parts if part) or "everything in line"


def reconcile(
    registry: TaskRegistry, engine: Engine, *, materialized: Callable[[str, int], bool]
) -> Reconciled:
    """Confirm materializations, find missing ones, and remove folders that nobody wants.

    Args:
        registry: the tasks.
        engine: this machine's; only folders on this machine are removed.
        materialized: whether Dagster has a materialization of a task from after a moment, UNIX
            milliseconds.

    Raises:
        RegistryUnavailable: Redis is away.
    """
    result = Reconciled()
    _find_missing(registry, result, materialized)
    _remove_unwanted(registry, engine, result)
    return result


def _find_missing(
    registry: TaskRegistry, result: Reconciled, materialized: Callable[[str, int], bool]
) -> None:
    for entry in registry.unmaterialized(older_than_ms=UNCONFIRMED_MS):
        if materialized(entry.task_id, entry.ready_ms):
            registry.materialized(entry.task_id)
            result.confirmed += 1
        elif len(result.missing) < MOST_MISSING:
            record = _record(registry, entry.task_id)
            if record is None or record.state not in ANNOUNCED:
                registry.materialized(entry.task_id)
            else:
                result.missing.append(record)


def _remove_unwanted(registry: TaskRegistry, engine: Engine, result: Reconciled) -> None:
    end = time.monotonic() + REMOVAL_SECONDS
    for task_id in registry.removals():
        if time.monotonic() > end:
            return
        record = _record(registry, task_id)
        if record is not None and record.machine not in {None, engine.machine}:
            continue
        left_ms = int(1000 * (end - time.monotonic()))
        asked = _Asked(registry, task_id)
        try:
            removed = engine.remove(
                task_id, stop=Stop(int(time.time() * 1000) + left_ms), unwanted=asked.unwanted
            )
        except SourceError as error:
            result.problems.append(str(error))
            continue
        # What is wanted again was taken off the list when its task moved; and may be on it anew.
        if asked.answer:
            registry.removed(task_id)
        result.removed += removed


@dataclass
class _Asked:
    """Whether nobody reads the folder of a task; one that is prepared again publishes over it."""

    registry: TaskRegistry
    task_id: str
    answer: bool = True

    def unwanted(self) -> bool:
        record = _record(self.registry, self.task_id)
        self.answer = record is None or record.state in UNWANTED
        return self.answer


def _record(registry: TaskRegistry, task_id: str) -> TaskRecord | None:
    try:
        return registry.get(task_id)
    except UnknownTask:
        return None
