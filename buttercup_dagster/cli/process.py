"""Prepares the one task of a command line as a Dagster run in this process, without Redis."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from buttercup_dagster.assets import prepare_task
from buttercup_dagster.attempt import AttemptFailed, described_error, without_queries
from buttercup_dagster.background import in_thread
from buttercup_dagster.checks import task_warnings
from buttercup_dagster.engine import Engine
from buttercup_dagster.partitions import tasks
from buttercup_dagster.sources.errors import SourceError
from buttercup_dagster.sources.prepare import Prepared, SourceEvent
from buttercup_dagster.sources.stop import Stop
from task_api.task import ButtercupError, Task, printable

if TYPE_CHECKING:
    from buttercup_dagster.attempt import Run

LONGEST_TEXT: Final = 500


class InstanceUnusable(ButtercupError):
    """The Dagster instance of DAGSTER_HOME cannot be opened."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        prepared: the folder, or None if there is none.
        replaced: what the folder replaced, for people; empty if there was none.
        problem: why there is no folder, or why Dagster has no record of it; empty if all is well.
        warnings: what its consumers would stumble over.
        interrupted: whether Ctrl-C or a signal ended the run.
    """

    prepared: Prepared | None
    replaced: str
    problem: str
    warnings: tuple[str, ...]
    interrupted: bool


def process(
    task: Task, engine: Engine, on_event: Callable[[SourceEvent], None], *, dagster_log: bool
) -> Outcome:
    """Prepare a task as a run of the instance of DAGSTER_HOME, or of one that is forgotten.

    Args:
        task: a valid task; a digest may be empty.
        engine: what prepares it.
        on_event: told how far each source is, from any thread.
        dagster_log: whether Dagster's log goes to standard error.

    Raises:
        InstanceUnusable: DAGSTER_HOME is set to something else than an instance.
    """
    preparer = OneTask(engine, task, on_event)
    level = "DEBUG" if dagster_log else "CRITICAL"
    result: dg.ExecuteInProcessResult | None = None
    problem = ""
    with _instance() as instance:
        try:
            instance.add_dynamic_partitions(str(tasks.name), [task.task_id])
            result = dg.materialize(
                [prepare_task, task_warnings],
                instance=instance,
                partition_key=task.task_id,
                resources={"preparer": preparer},
                run_config={"loggers": {"console": {"config": {"log_level": level}}}},
                raise_on_error=False,
            )
        except Exception as error:  # noqa: BLE001 - its storages fail each in their own way
            problem = f"Dagster cannot record the run: {_text(error)}"
    if result is not None and not result.success:
        problem = f"the run failed in Dagster: {_first_failure(result)}"
    return Outcome(
        prepared=preparer.prepared,
        replaced=preparer.replaced,
        problem=preparer.problem or problem,
        warnings=() if result is None else tuple(_warnings(result)),
        interrupted=preparer.interrupted or (result is not None and _interrupted(result)),
    )


class OneTask:
    """Prepares the one task; no registry knows of it.

    Attributes:
        prepared: the result, or None.
        replaced: what the new folder replaced, for people; empty if there was none.
        problem: why there is no result.
        interrupted: whether a signal ended it.
    """

    def __init__(self, engine: Engine, task: Task, on_event: Callable[[SourceEvent], None]) -> None:
        self._engine = engine
        self._task = task
        self._on_event = on_event
        self.prepared: Prepared | None = None
        self.replaced = ""
        self.problem = ""
        self.interrupted = False

    def prepare(self, task_id: str, run: Run) -> Prepared:  # noqa: ARG002
        """Make the folder; one that is there is replaced.

        Raises:
            AttemptFailed: it cannot be made.
        """
        stop = Stop(self._task.deadline_ms)
        there = self._engine.workspace.folder(self._task.task_id).is_dir()
        former = self._manifest()
        try:
            self.prepared = in_thread(
                lambda _: self._engine.prepare(self._task, stop=stop, on_event=self._on_event),
                stop=stop,
                log=run.log,
            )
        except SourceError as error:
            self.problem = described_error(error)
            raise AttemptFailed(error.code, self.problem) from None
        except Exception as error:  # noqa: BLE001 - its text may hold a URL, which Dagster would log
            self.problem = f"unexpected error: {_text(error)}"
            raise AttemptFailed("internal", self.problem) from None
        except BaseException:
            self.interrupted = True
            raise
        if there:
            same = former is not None and former == self._manifest()
            self.replaced = "the folder was there already and was replaced, " + (
                "with the same content" if same else "with other content"
            )
        return self.prepared

    def materialized(self, task_id: str) -> None:
        """Nobody has to be told."""

    def _manifest(self) -> bytes | None:
        try:
            return self._engine.workspace.manifest(self._task.task_id).read_bytes()
        except OSError:
            return None


@contextmanager
def _instance() -> Iterator[dg.DagsterInstance]:
    if not os.environ.get("DAGSTER_HOME"):
        with dg.DagsterInstance.ephemeral() as instance:
            yield instance
        return
    try:
        opened = dg.DagsterInstance.get()
    except Exception as error:
        raise InstanceUnusable(f"DAGSTER_HOME cannot be used: {_text(error)}") from error
    with opened as instance:
        yield instance


def _text(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return printable(without_queries(text), limit=LONGEST_TEXT)


def _first_failure(result: dg.ExecuteInProcessResult) -> str:
    for event in result.all_events:
        data: Any = event.event_specific_data
        if event.is_failure and getattr(data, "error", None) is not None:
            return printable(" ".join(data.error.message.split()), limit=LONGEST_TEXT)
    return "no reason is given; --log_level debug shows its log"


def _interrupted(result: dg.ExecuteInProcessResult) -> bool:
    return any(
        event.is_failure
        and getattr(getattr(event.event_specific_data, "failure_reason", None), "name", "")
        == "UNEXPECTED_TERMINATION"
        for event in result.all_events
    )


def _warnings(result: dg.ExecuteInProcessResult) -> Iterator[str]:
    for evaluation in result.get_asset_check_evaluations():
        if not evaluation.passed:
            yield evaluation.description or evaluation.check_name
