"""Hands runs to warm workers through Celery, on the Redis of the registry.

dagster-celery's launcher, mended where it loses track of a run: the Celery task has the run's id,
so no tag has to be written that a fast worker overwrites; the end of a run is asked for through the
registry and leaves the worker's process alive; and whether a run is alive is told by its worker's
lease, which ends with its machine, not by a result that nobody would take back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self

import dagster as dg
from celery import Celery
from dagster._core.events import EngineEventData
from dagster._core.launcher import (
    CheckRunHealthResult,
    LaunchRunContext,
    ResumeRunContext,
    WorkerStatus,
)
from dagster._serdes import ConfigurableClassData
from dagster_celery.launcher import CeleryRunLauncher
from kombu import Queue

from buttercup_dagster.settings import DownloaderSettings
from task_api import keys
from task_api.task import RegistryUnavailable
from task_api.workers import SLOT_LEASE_MS, Workers

if TYPE_CHECKING:
    from dagster._config import UserConfigSchema

EXECUTE_RUN: Final = "buttercup.execute_run"
"""Name of the Celery task that executes a run; its argument is the run's id."""

GONE_SECONDS: Final = SLOT_LEASE_MS / 1000
"""A run without a live worker is looked at again after so long before it counts as lost: when Redis
was away, workers need a moment to announce themselves anew."""


class WarmRunLauncher(CeleryRunLauncher):
    """Launches runs on `buttercup-downloader serve`.

    Args:
        redis_url: the Redis of the registry; without one that of the downloader's settings.
        inst_data: given by Dagster.
    """

    def __init__(
        self, redis_url: str | None = None, inst_data: ConfigurableClassData | None = None
    ) -> None:
        self.redis_url = redis_url or DownloaderSettings().redis_url
        super().__init__(
            default_queue=keys.RUN_QUEUE,
            broker=self.redis_url,
            config_source=celery_settings(),
            inst_data=inst_data,
        )
        _route(self.celery)
        self._workers = Workers.from_url(self.redis_url)
        self._unattended: dict[str, float] = {}

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """The options of `dagster.yaml`."""
        return {
            "redis_url": dg.Field(
                dg.Noneable(dg.StringSource),
                is_required=False,
                description="URL of the Redis of the registry; without one that of the "
                "downloader's settings.",
            )
        }

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> Self:
        """Made by Dagster from `dagster.yaml`."""
        return cls(inst_data=inst_data, **config_value)

    def dispose(self) -> None:
        """Give back the connections."""
        self._workers.close()
        self.celery.close()

    def launch_run(self, context: LaunchRunContext) -> None:
        """Put a run into the queue of the warm workers.

        Raises:
            kombu.exceptions.OperationalError: Redis is away; Dagster marks the run as failed, and
                its task becomes pending again when the claim's lease ends.
        """
        run = context.dagster_run
        self._instance.report_engine_event(
            "Handing the run to the warm workers",
            run,
            EngineEventData({"Celery task": run.run_id, "queue": keys.RUN_QUEUE}),
            cls=self.__class__,
        )
        self.celery.send_task(
            EXECUTE_RUN, args=[run.run_id], task_id=run.run_id, queue=keys.RUN_QUEUE
        )

    def terminate(self, run_id: str) -> bool:
        """Ask for the end of a run; it ends as canceled, and its worker's process goes on.

        A run that no worker has begun is canceled at once, and none will begin it.

        Returns:
            Whether it will end; False for one that is unknown or has ended.

        Raises:
            RegistryUnavailable: Redis is away, so no worker can be told; the run goes on.
        """
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        # Asked for its error: a run that is said to end has to be told so.
        self._workers.executor_of(run_id)
        if run.status is not dg.DagsterRunStatus.CANCELING:
            self._instance.report_run_canceling(run)
        slot = self._workers.stop_run(run_id)
        if slot is None:
            run = self._instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                return False
            self._instance.report_run_canceled(run, "No worker executes the run any more.")
        return True

    @property
    def supports_resume_run(self) -> bool:
        """False: a task goes on in a new run, which takes up what the former one has stored."""
        return False

    def resume_run(self, context: ResumeRunContext) -> None:
        """Not supported.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a run is not resumed; its task is tried again in a new run")

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether a live slot executes a run that has begun.

        While Redis is away nothing is known, and nothing is said against the run.
        """
        try:
            slot = self._workers.executor_of(run.run_id)
        except RegistryUnavailable as error:
            return CheckRunHealthResult(WorkerStatus.RUNNING, f"not known: {error}")
        now = time.monotonic()
        if slot is not None:
            self._unattended.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        # Runs that end meanwhile are asked for no more.
        self._unattended = {
            one: since for one, since in self._unattended.items() if now - since < 60 * GONE_SECONDS
        }
        since = self._unattended.setdefault(run.run_id, now)
        if now - since < GONE_SECONDS:
            return CheckRunHealthResult(WorkerStatus.RUNNING, "its worker is looked for")
        return CheckRunHealthResult(
            WorkerStatus.FAILED, "its worker, or the machine of that, is gone"
        )

    def get_run_worker_debug_info(
        self,
        run: dg.DagsterRun,
        include_container_logs: bool | None = True,  # noqa: ARG002 - asked for by Dagster
    ) -> str | None:
        """Which worker executes the run, and which others there are, for people."""
        try:
            slot = self._workers.executor_of(run.run_id)
            live = self._workers.live()
        except RegistryUnavailable as error:
            return str(error)
        who = f"it is executed by {slot}" if slot else "no live worker executes it"
        return f"{who}; live workers: {', '.join(live) or 'none'}"


def celery_settings() -> dict[str, Any]:
    """Settings of the Celery application, of the side that sends and of the one that executes."""
    return {
        # Kept by the registry: what became of a task is not asked of Celery.
        "task_ignore_result": True,
        "result_backend": "disabled://",
        # A message is acknowledged before its run begins, so it is never delivered twice; a run
        # whose worker dies is given up by its lease.
        "task_acks_late": False,
        # A message stays in the list until a process is free, so its length tells who waits.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "broker_transport_options": {
            # One list for the queue, whatever the priority of a message.
            "priority_steps": [0],
            "visibility_timeout": 300,
            # Not the common names: with those it would put messages of other applications on this
            # Redis back into their queues, whose tasks may run for longer.
            "unacked_key": keys.RUNS_TAKEN,
            "unacked_index_key": keys.RUNS_TAKEN_INDEX,
            "unacked_mutex_key": keys.RUNS_TAKEN_LOCK,
            # Redis may be away for a moment: not for ever in Dagster's daemon.
            "socket_timeout": 5.0,
            "socket_connect_timeout": 2.0,
            "socket_keepalive": True,
            "health_check_interval": 15,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "task_publish_retry": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": False,
    }


def _route(app: Celery) -> None:
    """Replace dagster-celery's queues and routes by the one queue of this project."""
    app.conf.task_queues = [Queue(keys.RUN_QUEUE, routing_key=keys.RUN_QUEUE)]
    app.conf.task_routes = {}
    app.conf.task_default_queue = keys.RUN_QUEUE
    app.conf.task_queue_max_priority = None
    app.conf.task_default_priority = None
