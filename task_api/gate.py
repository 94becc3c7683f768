"""The server's way to the registry: one `TaskRegistry`, whose Redis may come, go and forget."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from task_api.redis_client import connect, lost, safe_redis_url
from task_api.registry import TaskRegistry
from task_api.task import RegistryError, RegistryUnavailable

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 5.0
"""Pause between two checks of a registry that is in order; so soon a Redis that was emptied is
marked with the schema again."""

PATIENCE_SECONDS: Final = 0.2
"""While somebody asks a lost Redis whether it is back, others wait for that no longer than this."""

CLOSE_SECONDS: Final = 1.0
"""How long a check that is under way may take before its connection is closed."""


class RegistryGate:
    """Lends one registry whose schema is checked, and refuses at once while Redis is known lost.

    A server that starts before its Redis serves at once and answers 503 until Redis is there.

    When a command meets no answer, Redis counts as lost. The next who comes asks it again, and
    everybody else is refused until that has an answer: a Redis that hangs keeps one thread, not
    all of them. What comes back may be another Redis, or an empty one, so asking means to mark or
    check the schema. May be shared by threads.
    """

    def __init__(self, redis_url: str) -> None:
        self._shown_url = safe_redis_url(redis_url)
        self._registry = TaskRegistry(connect(redis_url))
        self._usable = False
        self._was_usable = False
        self._loss: RegistryUnavailable | None = None
        self._asking = threading.Lock()
        self._patience_until = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry-gate", daemon=True)

    def start(self) -> None:
        """Begin to look after Redis, in the background."""
        self._thread.start()

    def close(self) -> None:
        """Stop that, and close the registry."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)
        self._registry.close()

    @contextmanager
    def use(self) -> Iterator[TaskRegistry]:
        """Lend the registry, its schema checked.

        Raises:
            RegistryUnavailable: Redis cannot be used.
            SchemaMismatch: a newer version wrote this registry.
        """
        if not self._usable:
            self._ask_or_refuse()
        try:
            yield self._registry
        except RegistryUnavailable as error:
            if lost(error):
                self._lose(error)
            raise

    def check(self) -> None:
        """Ask Redis, whatever is known of it, and mark or check the schema.

        Raises:
            RegistryUnavailable, SchemaMismatch: as for `use`.
        """
        with self._asking:
            self._ask()

    def _ask_or_refuse(self) -> None:
        loss = self._loss
        # Before the first answer nothing is known, and waiting for it is right.
        patience = -1 if loss is None else max(0.0, self._patience_until - time.monotonic())
        if not self._asking.acquire(timeout=patience):
            raise RegistryUnavailable(str(loss))
        try:
            if self._usable:
                return
            if self._loss is not None and self._loss is not loss:
                raise RegistryUnavailable(str(self._loss))
            self._ask()
        finally:
            self._asking.release()

    def _ask(self) -> None:
        self._patience_until = time.monotonic() + PATIENCE_SECONDS
        try:
            self._registry.initialize()
        except RegistryUnavailable as error:
            # A full or read-only Redis cannot be marked, but what is in it can be read.
            if lost(error) or not self._was_usable:
                self._lose(error)
                raise
        except RegistryError:
            self._usable = False
            raise
        self._usable = self._was_usable = True
        self._loss = None

    def _lose(self, error: RegistryUnavailable) -> None:
        self._loss = error
        self._usable = False

    def _watch(self) -> None:
        well: bool | None = None
        while not self._stop.is_set():
            before = well
            try:
                self.check()
                well = True
                warning = None if before else self._registry.persistence_warning()
            except RegistryError as error:
                well = False
                if before is not False:
                    log.warning("%s; answering 503 until Redis can be used", error)
            except Exception:
                # Closing the registry under this thread's feet ends it in one of several ways.
                if self._stop.is_set():
                    return
                well = False
                if before is not False:
                    log.exception("the registry cannot be opened")
            else:
                if not before:
                    log.info("recording tasks in %s", self._shown_url)
                if warning:
                    log.warning("%s", warning)
            self._stop.wait(CHECK_SECONDS if well else RETRY_SECONDS)
