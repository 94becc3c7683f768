"""The server's way to the registry: one `TaskRegistry`, whose Redis may come later."""

from __future__ import annotations

import logging
import threading
from typing import Final

from task_api.redis_client import safe_redis_url
from task_api.registry import TaskRegistry
from task_api.task import RegistryError

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 2.0


class RegistryGate:
    """Opens one registry and checks its schema, as soon as Redis lets it.

    A server that starts before its Redis serves at once and answers 503 until Redis is there.
    """

    def __init__(self, redis_url: str) -> None:
        self._shown_url = safe_redis_url(redis_url)
        self._registry = TaskRegistry.from_url(redis_url)
        self._checked = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="registry-gate", daemon=True)

    def start(self) -> None:
        """Begin to look for Redis, in the background."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking, and close the registry."""
        self._stop.set()
        self._registry.close()

    def use(self) -> TaskRegistry:
        """The registry, its schema checked.

        Raises:
            RegistryUnavailable: Redis cannot be used.
            SchemaMismatch: a newer version wrote this registry.
        """
        if not self._checked:
            self._registry.initialize()
            self._checked = True
        return self._registry

    def _watch(self) -> None:
        told = False
        while not self._stop.is_set():
            try:
                warning = self.use().persistence_warning()
            except RegistryError as error:
                if not told:
                    log.warning("%s; answering 503 until Redis can be used", error)
                told = True
                self._stop.wait(RETRY_SECONDS)
                continue
            except Exception:
                # Closing the registry under this thread's feet ends it in one of several ways.
                if not self._stop.is_set():
                    log.exception("the registry cannot be opened")
                return
            log.info("recording tasks in %s", self._shown_url)
            if warning:
                log.warning("%s", warning)
            return
