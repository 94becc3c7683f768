"""What tasks leave that ended long ago: their records and their folders.

A task is retired in two steps, so that a crash at any moment leaves something to go on from. First
its record goes, in one step of the registry, which lists at the same time the machines that may
have its folder. From then on its id is unknown: nobody can retry it, mend its folder or make it
ready. Then each machine removes what it has, and says so. Neither step waits for the other, and
each may be repeated.
"""

from __future__ import annotations

from functools import partial

from buttercup_dagster.engine import Engine
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.unwanted import Question, Removal, remove_each
from task_api.registry import TaskRegistry


def retire_tasks(registry: TaskRegistry, *, older_than_ms: int, stop: Stop) -> int:
    """Retire every task that ended at least so long ago.

    Args:
        registry: the tasks.
        older_than_ms: age since they ended, milliseconds.
        stop: ends the work between two steps; the next call goes on.

    Returns:
        How many were retired.

    Raises:
        RegistryUnavailable: Redis is away.
    """
    registry.reap()
    registry.ended(older_than_ms=older_than_ms, limit=1)  # lists those that an old version ended
    number = 0
    while not stop.stopped:
        retired = registry.retire(older_than_ms=older_than_ms)
        number += len(retired)
        if not retired:
            break
    return number


def remove_folders(registry: TaskRegistry, engine: Engine, *, stop: Stop) -> Removal:
    """Remove what this machine has of retired tasks. Each machine has to call it for itself.

    A task with the same id that was posted since keeps its folder.

    Args:
        registry: the tasks.
        engine: this machine's.
        stop: ends the work between two tasks; the next call goes on.

    Raises:
        RegistryUnavailable: Redis is away.
    """
    done = Removal()
    while not stop.stopped:
        listed = registry.retired_folders(engine.machine, skip=len(done.problems))
        if not listed:
            break
        questions = (
            Question(task_id, partial(_is_unwanted, registry, engine, task_id))
            for task_id in listed
        )
        for question, _ in remove_each(engine, questions, done, stop=stop):
            registry.retired_folder_removed(engine.machine, question.task_id)
            done.tasks += 1
    return done


def _is_unwanted(registry: TaskRegistry, engine: Engine, task_id: str) -> bool:
    """Whether what stands there is of the retired task, and not of one posted since."""
    (record,) = registry.get_many([task_id])
    if record is None:
        return True
    # The new one has begun here, and so its own end takes care of the folder.
    begun_here = record.machine == engine.machine
    return not (begun_here and (record.state.live or record.path is not None))
