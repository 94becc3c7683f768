"""One process of a warm worker: executes runs, and after a task's run goes on with the next task.

The further runs are runs like those that the sensor starts: one for each task, in this process and
thread, one after the other. So a burst costs no launch for each task. When no task comes for some
seconds, or another run waits for a worker, or the process is to end, the slot is given back.
"""

from __future__ import annotations

import logging
import mmap
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Final

import dagster as dg

from buttercup_dagster.further_runs import FurtherRuns
from buttercup_dagster.run_execution import execute_run
from task_api.records import Claim
from task_api.registry import TaskRegistry
from task_api.task import RegistryUnavailable
from task_api.workers import Workers

log = logging.getLogger(__name__)

RENEW_SECONDS: Final = 1.0
"""Pause between two announcements of a slot; its lease is ten times as long."""

LOOK_SECONDS: Final = 0.5
"""A lingering slot looks so often whether it has to go."""

INTERRUPT_AGAIN_SECONDS: Final = 30.0
"""A run that was interrupted and goes on is interrupted again after so long."""

LAST_WORD_SECONDS: Final = 2.0
"""How long a slot that is taken back waits for an announcement that is under way."""

NEVER: Final = float("-inf")


class Ending:
    """How far the end of a worker is: told by its first process, read by its slots.

    Made before the slots are forked; a byte of memory that all of them share.
    """

    GOES_ON, AFTER_THIS_RUN, NOW = range(3)

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)

    @property
    def step(self) -> int:
        """`GOES_ON`, `AFTER_THIS_RUN` or `NOW`."""
        return self._shared[0]

    def to(self, step: int) -> None:
        """Tell all slots."""
        self._shared[0] = max(step, self.step)


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """When a slot waits, and when its process makes place for a fresh one.

    Attributes:
        linger_seconds: how long it waits for another task after a run.
        runs: how many runs a process executes.
        memory_bytes: how much memory it may have held; looked at after each run.
    """

    linger_seconds: float
    runs: int
    memory_bytes: int


class Slot:
    """The slot of this process. Everything but its heartbeat happens in the main thread.

    Args:
        name: unique among all machines.
        instance: Dagster's instance, kept for the life of the process.
        workers: where the slot is announced.
        registry: where further tasks are claimed.
        limits: see there.
        ending: told by the worker's first process.
    """

    def __init__(
        self,
        name: str,
        *,
        instance: dg.DagsterInstance,
        workers: Workers,
        registry: TaskRegistry,
        limits: SlotLimits,
        ending: Ending,
    ) -> None:
        self.name = name
        self._instance = instance
        self._workers = workers
        self._registry = registry
        self._limits = limits
        self._ending = ending
        self._further: FurtherRuns | None = None
        self._executed = 0
        self._told_to_end = False
        self._occupied = False
        # What the heartbeat interrupts; changed under the lock, so that it never hits another run.
        self._lock = threading.Lock()
        self._run_id: str | None = None
        self._interrupted_at = NEVER
        # Held while the slot is announced, so that no older word arrives last.
        self._saying = threading.Lock()
        self._heart_stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="slot", daemon=True)

    def start(self) -> None:
        """Announce the slot, now and from now on."""
        # Dagster gives SIGTERM, after each run, the handler that SIGINT has.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        with suppress(RegistryUnavailable):  # said again by the heartbeat, when Redis is back
            self._say()
        self._heart.start()

    def close(self) -> None:
        """Take the slot back."""
        self._heart_stop.set()
        if self._heart.is_alive():
            self._heart.join(LAST_WORD_SECONDS)
        with suppress(RegistryUnavailable):
            self._workers.gone(self.name)

    @property
    def worn(self) -> bool:
        """Whether a fresh process should take the place of this one."""
        return (
            self._told_to_end
            or self._executed >= self._limits.runs
            or peak_memory_bytes() > self._limits.memory_bytes
        )

    def execute(self, run_id: str) -> None:
        """Execute a run; after the run of a task also those of further tasks.

        Args:
            run_id: a run that was handed to this worker.
        """
        self._occupied = True
        try:
            run = self._execute(run_id)
            if run is not None and FurtherRuns.can_follow(run):
                self._further = self._further or FurtherRuns(self._instance, run)
                for claim in self._claims():
                    further = self._further.create(claim.task_id, claim.token, self.name)
                    self._execute(further.run_id)
        finally:
            self._occupied = False
            with suppress(RegistryUnavailable):
                self._say()

    # --- further tasks -----------------------------------------------------------------------

    def _claims(self) -> Iterator[Claim]:
        """Tasks to go on with, each claimed when it is asked for."""
        while not self.worn:
            claim = self._next_claim()
            if claim is None:
                return
            yield claim

    def _next_claim(self) -> Claim | None:
        """The next task; waits for one as long as the slot lingers."""
        end = time.monotonic() + self._limits.linger_seconds
        try:
            self._registry.reap()
            while True:
                if self._ends():
                    # Wakened by a task that is for others to take.
                    self._workers.gone(self.name)
                    return None
                left = end - time.monotonic()
                found = self._workers.claim_next(self.name, linger=left > 0)
                if isinstance(found, Claim):
                    return found
                if not found or left <= 0:
                    return None
                self._workers.wait(min(LOOK_SECONDS, left))
        except RegistryUnavailable as error:
            # What was claimed by a call without an answer is pending again after its lease.
            log.warning("%s; the slot waits for Celery", error)
            return None

    def _ends(self) -> bool:
        return self._told_to_end or self._ending.step != Ending.GOES_ON

    # --- one run -----------------------------------------------------------------------------

    def _execute(self, run_id: str) -> dg.DagsterRun | None:
        """The run, once it has ended; None if it must not begin or is unknown."""
        try:
            if self._say(run_id):
                log.info("run %s was stopped before it began", run_id)
                return None
        except RegistryUnavailable as error:
            log.warning("%s; run %s begins all the same", error, run_id)
        began = time.monotonic()
        with self._current(run_id):
            run = execute_run(self._instance, run_id, self.name)
        self._executed += 1
        with suppress(RegistryUnavailable):
            self._workers.finished(run_id)
        if run is not None:
            log.info(
                "%s %s: %s in %.2f s",
                run.job_name,
                run.tags.get("dagster/partition", run_id),
                run.status.value.lower(),
                time.monotonic() - began,
            )
        return run

    @contextmanager
    def _current(self, run_id: str) -> Iterator[None]:
        with self._lock:
            self._run_id, self._interrupted_at = run_id, NEVER
        try:
            yield
        finally:
            with self._lock:
                self._run_id = None

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """Outside of runs; within them Dagster interrupts the run."""
        if number == signal.SIGINT:
            # The heartbeat's, for a run that Dagster has not begun, or has just ended; it looks
            # again. With Ctrl-C the worker's first process tells its slots to end.
            self._interrupted_at = NEVER
        elif self._occupied:
            self._told_to_end = True
        else:
            # Nothing to finish: end by the signal, as the worker expects it of its processes.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    # --- the heartbeat, in a thread of its own ------------------------------------------------

    def _beat(self) -> None:
        while not self._heart_stop.wait(RENEW_SECONDS):
            run_id = self._run_id
            try:
                stopping = self._say(run_id)
            except RegistryUnavailable:
                stopping = False
            except Exception:
                # Without a heartbeat the slot would count as dead, and still execute runs.
                log.exception("the slot cannot be announced; it will be tried again")
                stopping = False
            if run_id is not None and (stopping or self._ending.step == Ending.NOW):
                self._interrupt(run_id)

    def _say(self, run_id: str | None = None) -> bool:
        """Announce the slot as it is now; whether that run is to end."""
        with self._saying:
            # One that ends takes no more runs, also when it has nothing to do.
            occupied = self._occupied or self._ends()
            return self._workers.announce(self.name, occupied=occupied, run_id=run_id)

    def _interrupt(self, run_id: str) -> None:
        """Raise in the main thread, if it is still at that run."""
        with self._lock:
            now = time.monotonic()
            if self._run_id != run_id or now - self._interrupted_at < INTERRUPT_AGAIN_SECONDS:
                return
            self._interrupted_at = now
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def peak_memory_bytes() -> int:
    """The most memory that this process has held at a time, without that of its children."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
