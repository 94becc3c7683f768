"""What Dagster keeps of tasks that the registry no longer knows: runs and partitions.

Nothing has to be handed over from the registry's side: whatever belongs to a task that the registry
does not know is found again by the next call, whichever way this one ended.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG

from buttercup_dagster import history_storage
from buttercup_dagster.partitions import tasks
from buttercup_dagster.sources.stop import Stop

Known = Callable[[Sequence[str]], Collection[str]]
"""Which of these task ids the registry knows."""

ENDED: Final = (
    dg.DagsterRunStatus.SUCCESS,
    dg.DagsterRunStatus.FAILURE,
    dg.DagsterRunStatus.CANCELED,
)
UNDER_WAY: Final = tuple(
    status
    for status in dg.DagsterRunStatus
    if status not in {*ENDED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.MANAGED}
)
NEVER_LAUNCHED_SECONDS: Final = 86_400.0
"""After this long nobody will launch a run whose daemon died between recording and launching it."""

BATCH: Final = 50
"""Runs that are deleted together."""


def remove_runs(
    instance: dg.DagsterInstance,
    known: Known,
    *,
    older_than_seconds: float,
    stop: Stop,
    dry_run: bool = False,
) -> list[str]:
    """Delete the runs that ended so long ago and belong to no task that is known.

    That includes runs of no task at all, such as those of the `registry` job. A run that has not
    ended is never deleted, save one that was recorded and never launched.

    Args:
        instance: whose runs.
        known: asks the registry.
        older_than_seconds: age since they were last written to.
        stop: ends the work between two batches; the next call goes on.
        dry_run: delete nothing.

    Returns:
        The runs that were, or would be, deleted.
    """
    age = timedelta(seconds=older_than_seconds)
    longer = max(age, timedelta(seconds=NEVER_LAUNCHED_SECONDS))
    now = datetime.now(UTC)
    deleted: list[str] = []
    for filters in (
        dg.RunsFilter(statuses=ENDED, updated_before=now - age),
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED], updated_before=now - longer),
    ):
        for run_ids in _of_unknown_tasks(instance, filters, known, stays=dry_run):
            if stop.stopped:
                return deleted
            if not dry_run:
                history_storage.delete_runs(instance, run_ids)
            deleted += run_ids
    return deleted


def _of_unknown_tasks(
    instance: dg.DagsterInstance, filters: dg.RunsFilter, known: Known, *, stays: bool
) -> Iterator[list[str]]:
    """Ids of such runs in batches, the oldest first; unless it stays, each is deleted meanwhile."""
    last: str | None = None
    while records := instance.get_run_records(filters, limit=BATCH, cursor=last, ascending=True):
        runs = {
            record.dagster_run.run_id: record.dagster_run.tags.get(PARTITION_NAME_TAG)
            for record in records
        }
        kept = known([task_id for task_id in runs.values() if task_id is not None])
        unknown = [run_id for run_id, task_id in runs.items() if task_id not in kept]
        if unknown:
            yield unknown
        # The next page begins after a run that is still there.
        for run_id in runs:
            if stays or run_id not in unknown:
                last = run_id


def remove_partitions(
    instance: dg.DagsterInstance,
    known: Known,
    *,
    older_than_seconds: float,
    stop: Stop,
    without_runs: Collection[str] = (),
    dry_run: bool = False,
) -> int:
    """Delete the partitions of that age whose task is not known and has no run any more.

    Materializations that belong to no run go with them. A partition that a person has just added
    stays.

    Args:
        instance: whose partitions.
        known: asks the registry.
        older_than_seconds: age since they were added.
        stop: ends the work between two batches; the next call goes on.
        without_runs: runs that count as deleted, for a dry run.
        dry_run: delete nothing.

    Returns:
        How many were, or would be, deleted.
    """
    gone = set(without_runs)
    name = str(tasks.name)
    partitions = history_storage.partitions_of_age(
        instance, name, older_than_seconds=older_than_seconds
    )
    number = 0
    for start in range(0, len(partitions), BATCH):
        if stop.stopped:
            break
        part = partitions[start : start + BATCH]
        kept = known(part)
        unknown = [key for key in part if key not in kept]
        if unknown:
            with_runs = _with_runs(instance, unknown, gone)
            unknown = [key for key in unknown if key not in with_runs]
        number += len(unknown)
        if unknown and not dry_run:
            history_storage.delete_runless_events(instance, unknown)
            for key in unknown:
                instance.delete_dynamic_partition(name, key)
            # A task that was posted anew in this very moment needs its partition.
            if back := known(unknown):
                instance.add_dynamic_partitions(name, list(back))
    return number


def _with_runs(instance: dg.DagsterInstance, task_ids: list[str], gone: set[str]) -> set[str]:
    """Those of the tasks that have a run."""
    runs = instance.get_runs(dg.RunsFilter(tags={PARTITION_NAME_TAG: task_ids}))
    return {run.tags[PARTITION_NAME_TAG] for run in runs if run.run_id not in gone}
