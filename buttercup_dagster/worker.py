"""A warm worker: Celery's pool of forked processes, each of which is a slot for runs.

Of Celery the worker uses the pool and the queue on Redis. Whether a run is alive, who may work on
a task and what is tried again is told by the registry.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
import threading
from contextlib import suppress
from typing import Any, Final

import dagster as dg
from celery import signals
from celery.apps.worker import Worker as CeleryWorker

from buttercup_dagster.engine import Engine
from buttercup_dagster.housekeeping import Housekeeping
from buttercup_dagster.launcher import EXECUTE_RUN, WarmRunLauncher
from buttercup_dagster.settings import DownloaderSettings
from buttercup_dagster.slot import Ending, Slot, SlotLimits
from buttercup_dagster.warming import warm
from task_api import keys
from task_api.registry import TaskRegistry
from task_api.task import RegistryUnavailable
from task_api.workers import Workers

log = logging.getLogger(__name__)

START_SECONDS: Final = 60.0
"""How long a process may take to come up; the machine may be busy."""


class WarmWorker:
    """The worker of this machine.

    Args:
        settings: of the downloader.
        launcher: of Dagster's instance; it says which Redis hands out the runs.
    """

    def __init__(self, settings: DownloaderSettings, launcher: WarmRunLauncher) -> None:
        self._settings = settings
        self._launcher = launcher
        self._app = launcher.celery
        self._ending = Ending()
        # In a forked process.
        self._slot: Slot | None = None
        self._housekeeping: Housekeeping | None = None
        self._name = f"{settings.machine}/{os.getpid()}-{secrets.token_hex(3)}"

    def serve(self) -> int:
        """Warm up, fork, and execute runs until a signal.

        SIGTERM lets runs go on for `drain_seconds`, then interrupts them; their tasks go on at once
        with the next worker.

        Returns:
            The exit status.
        """
        self._app.task(name=EXECUTE_RUN)(self._execute)
        # Strong references: Celery keeps weak ones.
        signals.worker_process_init.connect(self._process_begins, weak=False)
        signals.worker_process_shutdown.connect(self._process_ends, weak=False)
        signals.worker_shutting_down.connect(self._worker_ends, weak=False)
        signals.setup_logging.connect(_leave_logging_alone, weak=False)
        self._app.conf.worker_proc_alive_timeout = START_SECONDS
        warm()
        worker: Any = CeleryWorker(
            app=self._app,
            hostname=f"{self._settings.machine}-{os.getpid()}",
            concurrency=self._settings.max_runs,
            pool="prefork",
            queues=[keys.RUN_QUEUE],
            optimization="fair",
            loglevel=logging.WARNING,
            quiet=True,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            # Looked at after each Celery task; the slot has it look at a larger figure when its
            # process is worn for another reason.
            max_memory_per_child=self._settings.process_bytes // 1024,
        )
        worker.start()
        return int(worker.exitcode or 0)

    # --- in a forked process -----------------------------------------------------------------

    def _process_begins(self, **_: object) -> None:
        try:
            self._slot = Slot(
                f"{self._name}/{os.getpid()}",
                instance=dg.DagsterInstance.get(),
                workers=Workers.from_url(self._launcher.redis_url),
                registry=TaskRegistry.from_url(self._settings.redis_url),
                limits=SlotLimits(
                    self._settings.linger_seconds,
                    self._settings.runs_per_process,
                    self._settings.process_bytes,
                ),
                ending=self._ending,
            )
            self._slot.start()
            self._housekeeping = Housekeeping(
                TaskRegistry.from_url(self._settings.redis_url),
                Engine.from_settings(self._settings),
            )
            self._housekeeping.start()
        except Exception:
            # Celery would go on with a process that can do nothing.
            log.exception("a process of the worker cannot be set up")
            os._exit(1)

    def _process_ends(self, **_: object) -> None:
        if self._housekeeping is not None:
            self._housekeeping.close()
        if self._slot is not None:
            self._slot.close()

    def _execute(self, run_id: str) -> None:
        slot = self._slot
        if slot is None:
            raise RuntimeError("this process has no slot")
        slot.execute(run_id)
        if slot.worn:
            _replace_this_process()

    # --- in the first process ----------------------------------------------------------------

    def _worker_ends(self, **_: object) -> None:
        """In a signal handler of Celery: let runs finish, but not for ever."""
        self._ending.to(Ending.AFTER_THIS_RUN)
        threading.Thread(target=self._take_slots_back, daemon=True).start()
        timer = threading.Timer(self._settings.drain_seconds, self._ending.to, args=(Ending.NOW,))
        timer.daemon = True
        timer.start()

    def _take_slots_back(self) -> None:
        """At once: what the sensor claims for them would have to wait for its lease to end."""
        with suppress(RegistryUnavailable), Workers.from_url(self._launcher.redis_url) as workers:
            workers.gone(self._name)


def _replace_this_process() -> None:
    """Have billiard end this process after the present task, and fork a fresh one.

    It does so where more memory is used than allowed, and asks for that after each task.
    """
    from billiard import pool  # noqa: PLC0415

    pool.mem_rss = lambda: sys.maxsize


def _leave_logging_alone(**_: object) -> None:
    """Keep Celery from setting up logging; whoever is connected to its signal does."""
