"""What a worker does once before its processes are forked, so that no first run pays for it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Final

import dagster as dg

from buttercup_dagster.attempt import Run, Withdrawn
from buttercup_dagster.definitions import defs
from buttercup_dagster.jobs import JOB_NAME
from buttercup_dagster.partitions import tasks
from buttercup_dagster.sources import warm as engine
from buttercup_dagster.sources.prepare import Prepared
from task_api.registry import TaskRecord

_QUIET: Final = {
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
    "python_logs": {"python_log_level": "CRITICAL"},
    "compute_logs": {
        "module": "dagster._core.storage.noop_compute_log_manager",
        "class": "NoOpComputeLogManager",
    },
}
"""Settings of the instance on which nothing is done."""

_TASK_ID: Final = "00000000-0000-0000-0000-000000000000"


class _NothingToPrepare:
    """A preparer whose task was withdrawn: the run takes every step and makes nothing."""

    def prepare(self, task_id: str, run: Run) -> Prepared | TaskRecord:  # noqa: ARG002
        """Nothing can be prepared."""
        raise Withdrawn("there is no task; the worker warms up")

    def materialized(self, task_id: str) -> None:
        """Nothing is."""


def warm() -> None:
    """Execute the job once, on a storage that is thrown away.

    What is imported late, compiled or cached at a first run is then in the memory that the forked
    processes share. Nothing is left open: neither threads nor connections nor files.
    """
    engine.warm()
    with tempfile.TemporaryDirectory(prefix="buttercup-warm-") as folder:
        (Path(folder) / "dagster.yaml").write_text(json.dumps(_QUIET), "utf-8")
        with dg.DagsterInstance.from_config(folder) as instance:
            _run(instance)


def _run(instance: dg.DagsterInstance) -> None:
    instance.add_dynamic_partitions(tasks.name or "", [_TASK_ID])
    defs.resolve_job_def(JOB_NAME).execute_in_process(
        instance=instance,
        partition_key=_TASK_ID,
        resources={"preparer": _NothingToPrepare()},
        raise_on_error=False,
    )
