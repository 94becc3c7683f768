"""What Dagster recorded of tasks, read from its instance in the home folder."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import dagster as dg

from buttercup_dagster.partitions import tasks

PREPARED_TASK: Final = dg.AssetKey("prepared_task")
PARTITION_TAG: Final = "dagster/partition"
SUCCESS: Final = dg.DagsterRunStatus.SUCCESS.value

BATCH: Final = 200
"""So many tasks are asked for at a time."""

_UNDER_WAY: Final = [
    status
    for status in dg.DagsterRunStatus
    if status
    not in {
        dg.DagsterRunStatus.SUCCESS,
        dg.DagsterRunStatus.FAILURE,
        dg.DagsterRunStatus.CANCELED,
    }
]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What Dagster knows of one task.

    Attributes:
        runs: the status of each of its runs.
        materialized_ms: when `prepared_task` was materialized, each time, UNIX milliseconds.
    """

    runs: tuple[str, ...]
    materialized_ms: tuple[float, ...]


class DagsterRecords:
    """Reads the instance of a running `buttercup up`."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance

    @classmethod
    @contextmanager
    def of(cls, home: Path) -> Iterator[DagsterRecords]:
        """Those of a home folder, open while the block runs."""
        folder = str(home / "dagster")
        before = os.environ.get("DAGSTER_HOME")
        os.environ["DAGSTER_HOME"] = folder  # by which its storage finds its files
        try:
            with dg.DagsterInstance.from_config(folder) as instance:
                yield cls(instance)
        finally:
            if before is None:
                del os.environ["DAGSTER_HOME"]
            else:
                os.environ["DAGSTER_HOME"] = before

    def under_way(self) -> int:
        """How many runs have not ended."""
        return self._instance.get_runs_count(dg.RunsFilter(statuses=_UNDER_WAY))

    def runs(self) -> int:
        """How many runs there are, of any job."""
        return self._instance.get_runs_count()

    def of_tasks(self, task_ids: Sequence[str]) -> Mapping[str, Recorded]:
        """What is recorded of these tasks, by their ids."""
        runs: defaultdict[str, list[str]] = defaultdict(list)
        moments: defaultdict[str, list[float]] = defaultdict(list)
        for start in range(0, len(task_ids), BATCH):
            some = list(task_ids[start : start + BATCH])
            for run in self._instance.get_runs(filters=dg.RunsFilter(tags={PARTITION_TAG: some})):
                runs[run.tags[PARTITION_TAG]].append(run.status.value)
            found = self._instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=PREPARED_TASK, asset_partitions=some),
                limit=5 * BATCH,
            )
            for record in found.records:
                moments[str(record.partition_key)].append(1000 * record.timestamp)
        return {
            task_id: Recorded(tuple(runs[task_id]), tuple(moments[task_id])) for task_id in task_ids
        }

    def partitions(self) -> int:
        """How many live partitions there are."""
        return len(self._instance.get_dynamic_partitions(str(tasks.name)))

    def add_partitions(self, task_ids: Sequence[str]) -> None:
        """Add partitions without a task behind them."""
        self._instance.add_dynamic_partitions(str(tasks.name), list(task_ids))
