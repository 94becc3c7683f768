"""Runs that a warm worker makes for itself, like those that the sensor starts."""

from __future__ import annotations

from typing import Final

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.storage.tags import (
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    ROOT_RUN_ID_TAG,
    RUN_KEY_TAG,
)
from dagster._core.utils import make_new_run_id

from buttercup_dagster.partitions import tasks
from buttercup_dagster.run_execution import job_of
from buttercup_dagster.tags import TOKEN_TAG, WORKER_TAG, run_key

_OF_ONE_RUN: Final = (PARTITION_NAME_TAG, RUN_KEY_TAG, TOKEN_TAG, WORKER_TAG)


class FurtherRuns:
    """Makes runs after the pattern of one that the sensor started.

    They have its origins, its snapshots and its tags, so that Dagster's pages show and repeat them
    like any other; what is of one task only is that of theirs.

    Args:
        instance: where they are recorded.
        pattern: a run for which `can_follow` is true.
    """

    def __init__(self, instance: dg.DagsterInstance, pattern: dg.DagsterRun) -> None:
        self._instance = instance
        self._pattern = pattern
        self._tags = {
            name: value for name, value in pattern.tags.items() if name not in _OF_ONE_RUN
        }
        job: ReconstructableJob = job_of(pattern)
        repository = job.get_repository_definition()
        assert repository is not None  # noqa: S101 - told to the type checker
        self._asset_graph = repository.asset_graph
        self._job_snapshot = instance.get_job_snapshot(pattern.job_snapshot_id or "")
        self._plan_snapshot = instance.get_execution_plan_snapshot(
            pattern.execution_plan_snapshot_id or ""
        )

    @staticmethod
    def can_follow(run: dg.DagsterRun) -> bool:
        """Whether a run is one that the sensor started, or one after its pattern."""
        return (
            TOKEN_TAG in run.tags
            and PARTITION_NAME_TAG in run.tags
            and not {PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG} & run.tags.keys()
            and run.job_snapshot_id is not None
            and run.execution_plan_snapshot_id is not None
            and run.asset_selection is None
        )

    def create(self, task_id: str, token: int, slot: str) -> dg.DagsterRun:
        """Record a run for a claimed task, with the partition if that is new.

        Args:
            task_id: the task.
            token: of the claim.
            slot: the slot that will execute it.
        """
        self._instance.add_dynamic_partitions(tasks.name or "", [task_id])
        return self._instance.create_run(
            job_name=self._pattern.job_name,
            run_id=make_new_run_id(),
            run_config=self._pattern.run_config,
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags={
                **self._tags,
                PARTITION_NAME_TAG: task_id,
                RUN_KEY_TAG: run_key(task_id, token),
                TOKEN_TAG: str(token),
                WORKER_TAG: slot,
            },
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=None,
            execution_plan_snapshot=self._plan_snapshot,
            job_snapshot=self._job_snapshot,
            parent_job_snapshot=None,
            asset_selection=None,
            asset_check_selection=self._pattern.asset_check_selection,
            resolved_op_selection=self._pattern.resolved_op_selection,
            op_selection=self._pattern.op_selection,
            remote_job_origin=self._pattern.remote_job_origin,
            job_code_origin=self._pattern.job_code_origin,
            asset_graph=self._asset_graph,
        )
