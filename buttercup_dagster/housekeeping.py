"""What a machine does for its own folders, whatever runs where: it removes those nobody wants."""

from __future__ import annotations

import logging
import random
import threading
from typing import Final

from buttercup_dagster.engine import Engine
from buttercup_dagster.retention import remove_folders
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.unwanted import remove_unwanted
from task_api.registry import TaskRegistry
from task_api.task import RegistryUnavailable

log = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 20.0
"""Shortest pause between two passes; the longest is twice as long, so that the slots of a machine
look at different moments."""

PASS_SECONDS: Final = 60.0
"""A pass begins nothing more after so long; the next one goes on."""

LAST_PASS_SECONDS: Final = 2.0
"""How long the end of a process waits for a pass; what is half removed is found by the next one."""


class Housekeeping:
    """Removes folders of cancelled and retired tasks from this machine, in a thread of a slot.

    Dagster's sensor and job do so on the machine on which they happen to run. All slots of a
    machine do it; what one of them removes the others do not find.

    Args:
        registry: the tasks, over connections of the thread's own.
        engine: this machine's.
    """

    def __init__(self, registry: TaskRegistry, engine: Engine) -> None:
        self._registry = registry
        self._engine = engine
        self._ending = threading.Event()
        self._stop = Stop()
        self._told: set[str] = set()
        self._thread = threading.Thread(target=self._keep, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Look from now on."""
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._ending.set()
        self._stop.request("the worker ends")
        if self._thread.is_alive():
            self._thread.join(LAST_PASS_SECONDS)

    def _keep(self) -> None:
        while not self._ending.wait(PAUSE_SECONDS * random.uniform(1, 2)):  # noqa: S311
            self._stop = stop = Stop.after(PASS_SECONDS)
            if self._ending.is_set():  # told before the new stop could be requested
                return
            try:
                self._make_pass(stop)
            except RegistryUnavailable as error:
                log.debug("%s; folders are looked after when it is back", error)
            except Exception:
                # Without this thread the disk would fill up.
                log.exception("folders cannot be looked after; it will be tried again")

    def _make_pass(self, stop: Stop) -> None:
        unwanted = remove_unwanted(self._registry, self._engine, stop=stop)
        retired = remove_folders(self._registry, self._engine, stop=stop)
        if unwanted.tasks or retired.tasks:
            log.info(
                "folders removed: %d that nobody wants, those of %d retired tasks",
                unwanted.tasks,
                retired.tasks,
            )
        problems = {*unwanted.problems, *retired.problems}
        for problem in sorted(problems - self._told):
            log.warning("%s; it will be tried again", problem)
        self._told = problems
