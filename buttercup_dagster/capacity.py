"""What Dagster's instance knows: runs in flight, and materializations."""

from __future__ import annotations

from typing import Final

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG

JOB_NAME: Final = "ingest"

IN_FLIGHT: Final = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def runs_in_flight(instance: dg.DagsterInstance) -> int:
    """How many runs of the ingest job are under way or about to be."""
    return instance.get_runs_count(dg.RunsFilter(job_name=JOB_NAME, statuses=IN_FLIGHT))


def in_flight(instance: dg.DagsterInstance, task_id: str) -> bool:
    """Whether any run of a task's partition is under way or about to be."""
    filters = dg.RunsFilter(tags={PARTITION_NAME_TAG: task_id}, statuses=IN_FLIGHT)
    return instance.get_runs_count(filters) > 0


def latest_materialization(
    instance: dg.DagsterInstance, key: dg.AssetKey, task_id: str
) -> dg.EventLogRecord | None:
    """The last materialization of an asset for a task, or None."""
    filters = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[task_id])
    records = instance.fetch_materializations(filters, limit=1).records
    return records[0] if records else None
