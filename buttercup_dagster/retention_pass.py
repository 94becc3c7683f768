"""One pass over what is kept for a time only: in the registry, in Dagster, and on the disk."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import dagster as dg

from buttercup_dagster import history, history_storage, retention
from buttercup_dagster.engine import Engine
from buttercup_dagster.sources.errors import SourceError
from buttercup_dagster.sources.stop import Stop
from task_api.registry import TaskRegistry

MOST_DUE: Final = 100_000
"""So many tasks a dry run looks at."""


@dataclass
class Pass:
    """What one pass removed, or would remove.

    Attributes:
        tasks: records of tasks.
        folders: retired tasks of which this machine has nothing any more.
        runs: Dagster runs.
        partitions: partitions.
        files: files and folders of runs.
        sources: archives and trees that no task needs and none has used for so long.
        bytes: what those took on the disk, and what files of Dagster gave back.
        problems: what could not be removed.
        complete: whether there was time for everything.
    """

    tasks: int = 0
    folders: int = 0
    runs: int = 0
    partitions: int = 0
    files: int = 0
    sources: int = 0
    bytes: int = 0
    problems: tuple[str, ...] = ()
    complete: bool = True


def run_pass(
    registry: TaskRegistry,
    engine: Engine,
    instance: dg.DagsterInstance,
    *,
    older_than_ms: int,
    stop: Stop,
) -> Pass:
    """Remove what belongs to tasks that ended so long ago, and runs of no task of that age.

    Every step may be repeated, and finds what the former pass has left, wherever it ended.

    Args:
        registry: the tasks.
        engine: this machine's; other machines remove their folders themselves.
        instance: whose runs and partitions.
        older_than_ms: age since the end, milliseconds.
        stop: ends the pass between two steps.

    Raises:
        RegistryUnavailable: Redis is away.
    """
    seconds = older_than_ms / 1000
    done = Pass()
    done.tasks = retention.retire_tasks(registry, older_than_ms=older_than_ms, stop=stop)
    removal = retention.remove_folders(registry, engine, stop=stop)
    done.folders, done.problems = removal.tasks, tuple(removal.problems)
    done.runs = len(
        history.remove_runs(instance, registry.known, older_than_seconds=seconds, stop=stop)
    )
    done.partitions = history.remove_partitions(
        instance, registry.known, older_than_seconds=seconds, stop=stop
    )
    if not stop.stopped:
        done.files = history_storage.remove_files(instance)
        done.bytes += history_storage.compact(instance)
        registry.trim_streams(older_than_ms=older_than_ms)
        _collect(engine, done, seconds, stop, dry_run=False)
    done.complete = not stop.stopped
    return done


def preview(
    registry: TaskRegistry,
    engine: Engine,
    instance: dg.DagsterInstance,
    *,
    older_than_ms: int,
    stop: Stop,
) -> Pass:
    """What a pass would remove, if it began now and had time enough; arguments as `run_pass`.

    Of the sources, those are counted that no task needs now.
    """
    seconds = older_than_ms / 1000
    due = set(registry.ended(older_than_ms=older_than_ms, limit=MOST_DUE))

    def known(task_ids: Sequence[str]) -> Collection[str]:
        return registry.known(task_ids) - due

    done = Pass(tasks=len(due))
    done.folders = len(registry.retired_folders(engine.machine, limit=MOST_DUE))
    runs = history.remove_runs(instance, known, older_than_seconds=seconds, stop=stop, dry_run=True)
    done.runs = len(runs)
    done.partitions = history.remove_partitions(
        instance,
        known,
        older_than_seconds=seconds,
        stop=stop,
        without_runs=runs,
        dry_run=True,
    )
    _collect(engine, done, seconds, stop, dry_run=True)
    done.complete = not stop.stopped
    return done


def _collect(engine: Engine, done: Pass, seconds: float, stop: Stop, *, dry_run: bool) -> None:
    try:
        found = engine.collect(everything=False, unused_seconds=seconds, dry_run=dry_run, stop=stop)
    except SourceError as error:
        if not stop.stopped:
            done.problems += (str(error),)
        return
    if found is not None:
        done.sources = len(found.removed)
        done.bytes += sum(item.bytes for item in found.removed)
        done.problems += found.problems


def described(done: Pass, *, dry_run: bool) -> str:
    """One line for people."""
    verb = "would remove" if dry_run else "removed"
    more = "" if done.complete else "; there is more, the next pass goes on"
    return (
        f"{verb} {done.tasks} tasks, {done.folders} folders of retired tasks, {done.runs} runs, "
        f"{done.partitions} partitions, {done.sources} archives and trees{more}"
    )


def metadata_of(done: Pass, *, days: float, dry_run: bool) -> dict[str, Any]:
    """What Dagster shows of a pass."""
    return {
        "older_than_days": days,
        "dry_run": dry_run,
        "tasks": done.tasks,
        "folders": done.folders,
        "runs": done.runs,
        "partitions": done.partitions,
        "files_of_runs": done.files,
        "archives_and_trees": done.sources,
        "bytes": done.bytes,
        "problems": len(done.problems),
        "complete": done.complete,
    }
