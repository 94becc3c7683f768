"""What Dagster's instance knows of materializations."""

from __future__ import annotations

import dagster as dg


def latest_materialization(
    instance: dg.DagsterInstance, key: dg.AssetKey, task_id: str
) -> dg.EventLogRecord | None:
    """The last materialization of an asset for a task, or None."""
    filters = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[task_id])
    records = instance.fetch_materializations(filters, limit=1).records
    return records[0] if records else None
