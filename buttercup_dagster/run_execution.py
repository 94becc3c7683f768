"""Executes a run of Dagster in this process."""

from __future__ import annotations

import logging
import os
import sys

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.events import EngineEventData, JobFailureData, RunFailureReason
from dagster._core.execution.api import execute_run_iterator
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster._utils.hosted_user_process import recon_job_from_origin

log = logging.getLogger(__name__)


def job_of(run: dg.DagsterRun) -> ReconstructableJob:
    """The job that a run is of, from this process's own definitions.

    Raises:
        ValueError: the run does not say where its job is defined.
    """
    if run.job_code_origin is None:
        raise ValueError(f"run {run.run_id} does not say where its job is defined")
    return recon_job_from_origin(run.job_code_origin)


def execute_run(instance: dg.DagsterInstance, run_id: str, executor: str) -> dg.DagsterRun | None:
    """Execute a recorded run to its end; whatever happens, Dagster learns how it ended.

    A run that has ended, or was begun elsewhere, is left as it is.

    Args:
        instance: where it is recorded.
        run_id: its id.
        executor: who executes it, for people.

    Returns:
        The run as it ended; None if it is not recorded.
    """
    run = instance.get_run_by_id(run_id)
    if run is None:
        log.warning("run %s is not recorded; it was deleted before it began", run_id)
        return None
    try:
        job = job_of(run)
        instance.report_engine_event(
            f"Executed by {executor} (process {os.getpid()})",
            run,
            EngineEventData.in_process(os.getpid()),
        )
        for _ in execute_run_iterator(job, run, instance):
            pass
    except (Exception, dg.DagsterExecutionInterruptedError, KeyboardInterrupt):
        # Most errors are recorded where they are raised; one before the first step is not.
        log.exception("run %s ended with an error", run_id)
        _record_failure(instance, run_id)
    return instance.get_run_by_id(run_id)


def _record_failure(instance: dg.DagsterInstance, run_id: str) -> None:
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished:
        return
    if run.status is dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run)
        return
    instance.report_run_failed(
        run,
        "The run could not be executed",
        JobFailureData(
            error=serializable_error_info_from_exc_info(sys.exc_info()),
            failure_reason=RunFailureReason.RUN_EXCEPTION,
        ),
    )
