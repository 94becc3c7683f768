"""What a run that a person started does, depending on where the task stands.

A task that waits or was given up is claimed and prepared. A task that was announced is looked
after: its folder is compared with what was prepared, built again beside and swapped in if it
differs, and announced to nobody. Everything else is refused with the reason.
"""

from __future__ import annotations

from buttercup_dagster.attempt import (
    Attempt,
    AttemptFailed,
    Redis,
    Run,
    Withdrawn,
    described_error,
)
from buttercup_dagster.background import Log, in_thread
from buttercup_dagster.engine import Engine
from buttercup_dagster.sources.errors import SourceError, Stopped
from buttercup_dagster.sources.prepare import Prepared
from buttercup_dagster.sources.stop import Stop
from task_api.registry import TaskRecord, TaskRegistry
from task_api.task import RegistryUnavailable, TaskState, TransitionRefused, UnknownTask

ANNOUNCED = (TaskState.READY, TaskState.SUCCEEDED, TaskState.FAILED)


def run_by_hand(
    registry: TaskRegistry, engine: Engine, task_id: str, run: Run
) -> Prepared | TaskRecord:
    """Prepare a task, or mend its folder, because a person asked for it.

    Args:
        registry: where the task stands.
        engine: what prepares it.
        task_id: the task.
        run: the run that the person started; without a token.

    Returns:
        What was prepared; or the record of a task whose folder is as it was announced.

    Raises:
        AttemptFailed: it cannot be done; the text says why, and what to do.
        Withdrawn: the task was cancelled or taken over meanwhile.
    """
    try:
        record = registry.get(task_id)
    except UnknownTask:
        raise AttemptFailed(
            "unknown", f"no task {task_id} is recorded; post it to the task server"
        ) from None
    except RegistryUnavailable as error:
        raise AttemptFailed("no_redis", f"{error}; try again when Redis answers") from None
    if record.state in {TaskState.PENDING, TaskState.ERRORED}:
        try:
            return Attempt(registry, engine, task_id, run).run()
        except Withdrawn as error:
            if registry.get(task_id).run_id == run.run_id:
                raise
            raise AttemptFailed("refused", str(error)) from None
    if record.state in ANNOUNCED:
        return _Mending(registry, engine, record, run).run()
    raise AttemptFailed("refused", _why_not(record))


def _why_not(record: TaskRecord) -> str:
    task_id = record.task.task_id
    if record.state is TaskState.DOWNLOADING:
        return f"attempt of run {record.run_id} is under way"
    if record.state is TaskState.SCHEDULED:
        return (
            f"an attempt of task {task_id} is about to start; wait for its run, or for the claim "
            "to lapse within three minutes"
        )
    reason = f" ({record.reason.text})" if record.reason else ""
    return f"task {task_id} is {record.state}{reason}; it will not be prepared"


class _Mending:
    """Compares the folder of an announced task, and builds it again where it differs."""

    def __init__(
        self, registry: TaskRegistry, engine: Engine, record: TaskRecord, run: Run
    ) -> None:
        self._registry = registry
        self._engine = engine
        self._record = record
        self._run = run
        self._stop = Stop()

    def run(self) -> Prepared | TaskRecord:
        """The folder that was built again, or the record if it did not have to be."""
        record = self._record
        if record.machine not in {None, self._engine.machine}:
            raise AttemptFailed(
                "other_machine",
                f"the folder of task {record.task.task_id} is on {record.machine}, and this is "
                f"{self._engine.machine}; run this there",
            )
        return in_thread(self._mend, stop=self._stop, log=self._run.log)

    def _mend(self, log: Log) -> Prepared | TaskRecord:
        task = self._record.task
        redis = Redis(self._stop, log)
        try:
            differences = self._engine.check(task.task_id)
            if not differences:
                return self._record
            log(f"the folder is built again: {'; '.join(differences[:10])}")
            return self._engine.rebuild(
                task, stop=self._stop, confirm=lambda: redis.call(self._check_state)
            )
        except (TransitionRefused, UnknownTask, Stopped, RegistryUnavailable) as error:
            raise Withdrawn(str(error)) from None
        except SourceError as error:
            raise AttemptFailed(error.code, described_error(error)) from None

    def _check_state(self) -> None:
        record = self._registry.get(self._record.task.task_id)
        if record.state not in ANNOUNCED:
            raise TransitionRefused(
                record.task.task_id,
                "mended",
                state=record.state,
                token=record.token,
                reason=record.reason,
            )
