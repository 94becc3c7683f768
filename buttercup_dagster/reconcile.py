"""Bringing folders and Dagster in line with what the registry says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from buttercup_dagster.by_hand import ANNOUNCED
from buttercup_dagster.engine import Engine
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.unwanted import remove_unwanted
from task_api.registry import TaskRecord, TaskRegistry

UNCONFIRMED_MS: Final = 60_000
"""A run has this long to confirm its materialization by itself, milliseconds."""

MOST_MISSING: Final = 50
"""Materializations added at once."""

REMOVAL_SECONDS: Final = 15.0
"""No further folder is begun after this, and no lock waited for: a sensor has 60 s in all."""


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
        engine: this machine's; other machines remove their folders themselves.
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
            (record,) = registry.get_many([entry.task_id])
            if record is None or record.state not in ANNOUNCED:
                registry.materialized(entry.task_id)
            else:
                result.missing.append(record)


def _remove_unwanted(registry: TaskRegistry, engine: Engine, result: Reconciled) -> None:
    removal = remove_unwanted(registry, engine, stop=Stop.after(REMOVAL_SECONDS))
    result.removed = removal.tasks
    result.problems += removal.problems
