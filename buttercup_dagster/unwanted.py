"""Removing the folders of tasks that were cancelled, expired or cannot be prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from buttercup_dagster.engine import Engine
from buttercup_dagster.sources.errors import DeadlinePassed, SourceError, Stopped
from buttercup_dagster.sources.stop import Stop
from task_api.operations import BATCH
from task_api.registry import TaskRegistry
from task_api.task import TaskState

UNWANTED: Final = (TaskState.CANCELED, TaskState.EXPIRED, TaskState.ERRORED)
"""States in which nobody reads the folder of a task that is listed for removal."""


@dataclass
class Removal:
    """What a machine removed.

    Attributes:
        tasks: how many tasks had something here that is gone now.
        problems: what could not be removed, for people.
    """

    tasks: int = 0
    problems: list[str] = field(default_factory=list)


class Question:
    """Whether nobody wants the folder of a task.

    Attributes:
        task_id: the task.
        answer: the latest answer.
    """

    def __init__(self, task_id: str, ask: Callable[[], bool]) -> None:
        self.task_id = task_id
        self.answer = True
        self._ask = ask

    def __call__(self) -> bool:
        """Ask, under the lock under which the folder is published."""
        self.answer = self._ask()
        return self.answer


def remove_each(
    engine: Engine, questions: Iterable[Question], done: Removal, *, stop: Stop
) -> Iterator[tuple[Question, bool]]:
    """Remove what this machine has of tasks, one after the other.

    Args:
        engine: this machine's.
        questions: of the tasks.
        done: gets what cannot be removed.
        stop: ends the work between two tasks, and while a lock is waited for.

    Yields:
        Each task of which nothing unwanted is left, and whether there was a folder.
    """
    for question in questions:
        if stop.stopped:
            return
        try:
            removed = engine.remove(question.task_id, stop=stop, unwanted=question)
        except (Stopped, DeadlinePassed):
            return
        except SourceError as error:
            done.problems.append(f"task {question.task_id}: {error}")
        else:
            yield question, removed


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
    for question, removed in remove_each(engine, _listed(registry, engine), done, stop=stop):
        # What is wanted again was taken off the list when its task moved; perhaps it is on the
        # list anew.
        if question.answer:
            registry.removed(question.task_id)
        done.tasks += removed
    return done


def _listed(registry: TaskRegistry, engine: Engine) -> Iterator[Question]:
    """What is listed for removal, without the tasks of other machines."""
    listed = registry.removals()
    for start in range(0, len(listed), BATCH):
        part = listed[start : start + BATCH]
        for task_id, record in zip(part, registry.get_many(part), strict=True):
            if record is None or record.machine in {None, engine.machine}:
                yield Question(task_id, partial(_is_unwanted, registry, task_id))


def _is_unwanted(registry: TaskRegistry, task_id: str) -> bool:
    """One that is prepared again publishes over it."""
    (record,) = registry.get_many([task_id])
    return record is None or record.state in UNWANTED
