"""Removing the folders of tasks that were cancelled, expired or cannot be prepared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from buttercup_dagster.engine import Engine
from buttercup_dagster.sources.errors import DeadlinePassed, SourceError, Stopped
from buttercup_dagster.sources.stop import Stop
from task_api.registry import TaskRecord, TaskRegistry
from task_api.task import TaskState, UnknownTask

UNWANTED: Final = (TaskState.CANCELED, TaskState.EXPIRED, TaskState.ERRORED)
"""States in which nobody reads the folder of a task that is listed for removal."""

AT_ONCE: Final = 200
"""So many tasks are asked for in one round trip."""


@dataclass
class Removal:
    """What a machine removed.

    Attributes:
        tasks: how many tasks had something here that is gone now.
        problems: what could not be removed, for people.
    """

    tasks: int = 0
    problems: list[str] = field(default_factory=list)


def remove_unwanted(registry: TaskRegistry, engine: Engine, *, stop: Stop) -> Removal:
    """Remove the folders on this machine that the registry lists for removal.

    Each machine has to call it for itself. Several may do so at the same time.

    Args:
        registry: the tasks.
        engine: this machine's.
        stop: ends the work between two folders; the next call goes on.

    Raises:
        RegistryUnavailable: Redis is away.
    """
    done = Removal()
    listed = registry.removals()
    for start in range(0, len(listed), AT_ONCE):
        part = listed[start : start + AT_ONCE]
        for task_id, record in zip(part, registry.get_many(part), strict=True):
            if record is not None and record.machine not in {None, engine.machine}:
                continue
            if stop.stopped:
                return done
            asked = _Asked(registry, task_id)
            try:
                removed = engine.remove(task_id, stop=stop, unwanted=asked.unwanted)
            except (Stopped, DeadlinePassed):
                return done
            except SourceError as error:
                done.problems.append(f"task {task_id}: {error}")
                continue
            # What is wanted again was taken off the list when its task moved; perhaps it is on the
            # list anew.
            if asked.answer:
                registry.removed(task_id)
            done.tasks += removed
    return done


@dataclass
class _Asked:
    """Whether nobody reads the folder of a task; one that is prepared again publishes over it."""

    registry: TaskRegistry
    task_id: str
    answer: bool = True

    def unwanted(self) -> bool:
        record: TaskRecord | None
        try:
            record = self.registry.get(self.task_id)
        except UnknownTask:
            record = None
        self.answer = record is None or record.state in UNWANTED
        return self.answer
