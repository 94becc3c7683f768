"""Bringing folders and Dagster in line with what the registry says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from buttercup_dagster.engine import Engine
from buttercup_dagster.sources.errors import SourceError
from task_api.registry import TaskRecord, TaskRegistry
from task_api.task import TaskState, UnknownTask

UNCONFIRMED_MS: Final = 60_000
"""A run has this long to confirm its materialization by itself, milliseconds."""

MOST_MISSING: Final = 50
"""Materializations added at once."""


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
    registry: TaskRegistry,
    engine: Engine,
    *,
    materialized: Callable[[str, int], bool],
    in_flight: Callable[[str], bool],
) -> Reconciled:
    """Confirm materializations, find missing ones, and remove folders that nobody wants.

    Args:
        registry: the tasks.
        engine: this machine's; only folders on this machine are removed.
        materialized: whether Dagster has a materialization of a task from after a moment, UNIX
            milliseconds.
        in_flight: whether a run of a task is under way, which will add its materialization.

    Raises:
        RegistryUnavailable: Redis is away.
    """
    result = Reconciled()
    for entry in registry.unmaterialized(older_than_ms=UNCONFIRMED_MS):
        if materialized(entry.task_id, entry.ready_ms):
            registry.materialized(entry.task_id)
            result.confirmed += 1
        elif not in_flight(entry.task_id) and len(result.missing) < MOST_MISSING:
            record = _record(registry, entry.task_id)
            if record is None:
                registry.materialized(entry.task_id)
            else:
                result.missing.append(record)
    for task_id in registry.removals():
        record = _record(registry, task_id)
        if record is None or record.state is not TaskState.CANCELED:
            # A task that is being prepared again publishes over what stands there.
            registry.removed(task_id)
        elif record.machine in {None, engine.machine}:
            try:
                engine.remove(task_id)
            except SourceError as error:
                result.problems.append(str(error))
            else:
                registry.removed(task_id)
                result.removed += 1
    return result


def _record(registry: TaskRegistry, task_id: str) -> TaskRecord | None:
    try:
        return registry.get(task_id)
    except UnknownTask:
        return None
