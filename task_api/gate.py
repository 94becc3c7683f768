"""The server's way to the registry, whose Redis may come, go and forget."""

from __future__ import annotations

import asyncio
import logging
from typing import Final, TypeVar

from task_api import operations
from task_api.async_registry import AsyncTaskRegistry
from task_api.operations import Operation
from task_api.redis_client import lost, safe_redis_url
from task_api.task import RegistryError, RegistryUnavailable

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
CHECK_SECONDS: Final = 5.0
"""Pause between two checks of a registry that is in order; so soon a Redis that was emptied is
marked with the schema again."""

PATIENCE_SECONDS: Final = 0.2
"""While somebody asks a lost Redis whether it is back, others wait for that no longer than this."""

CONNECTIONS: Final = 32
"""So many operations use Redis at a time, each over a connection of its own; others wait."""

_Result = TypeVar("_Result")


class RegistryGate:
    """Runs operations on a registry whose schema is checked; refuses at once while Redis is lost.

    A server that starts before its Redis serves at once and answers 503 until Redis is there.

    When a command meets no answer, Redis counts as lost. The next who comes asks it again, and
    everybody else is refused until that has an answer: those who wait for a Redis that hangs do
    not wait one after another. What comes back may be another Redis, or an empty one, so asking
    means to mark or check the schema. One event loop may use an instance.
    """

    def __init__(self, redis_url: str) -> None:
        self._shown_url = safe_redis_url(redis_url)
        self._registry = AsyncTaskRegistry.from_url(redis_url)
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._usable = False
        self._was_usable = False
        self._loss: RegistryUnavailable | None = None
        self._asking = asyncio.Lock()
        self._patience_until = 0.0
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look after Redis, in the background."""
        self._watching = asyncio.create_task(self._watch(), name="registry-gate")

    async def close(self) -> None:
        """Stop that, and close the registry."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self._registry.close()

    async def run(self, operation: Operation[_Result]) -> _Result:
        """Carry out an operation when it has its turn, first come, first served.

        Raises:
            RegistryUnavailable: Redis cannot be used.
            SchemaMismatch: a newer version wrote this registry.
        """
        async with self._turns:
            return await self.run_at_once(operation)

    async def run_at_once(self, operation: Operation[_Result]) -> _Result:
        """The same without waiting for a turn, for those who bound their number themselves."""
        if not self._usable:
            await self._ask_or_refuse()
        try:
            return await self._registry.run(operation)
        except RegistryUnavailable as error:
            if lost(error):
                self._lose(error)
            raise

    async def check(self) -> None:
        """Ask Redis, whatever is known of it, and mark or check the schema.

        Raises:
            RegistryUnavailable, SchemaMismatch: as for `run`.
        """
        async with self._asking:
            await self._ask()

    async def _ask_or_refuse(self) -> None:
        loss = self._loss
        # Before the first answer nothing is known, and waiting for it is right.
        patience = None if loss is None else max(0.0, self._patience_until - _now())
        try:
            async with asyncio.timeout(patience):
                await self._asking.acquire()
        except TimeoutError:
            raise RegistryUnavailable(str(loss)) from None
        try:
            if self._usable:
                return
            if self._loss is not None and self._loss is not loss:
                raise RegistryUnavailable(str(self._loss))
            await self._ask()
        finally:
            self._asking.release()

    async def _ask(self) -> None:
        self._patience_until = _now() + PATIENCE_SECONDS
        try:
            await self._registry.run(operations.initialize())
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

    async def _watch(self) -> None:
        well: bool | None = None
        while True:
            before = well
            try:
                await self.check()
                well = True
                warning = None
                if not before:
                    warning = await self._registry.run(operations.persistence_warning())
            except RegistryError as error:
                well = False
                if before is not False:
                    log.warning("%s; answering 503 until Redis can be used", error)
            except Exception:
                well = False
                if before is not False:
                    log.exception("the registry cannot be opened")
            else:
                if not before:
                    log.info("recording tasks in %s", self._shown_url)
                if warning:
                    log.warning("%s", warning)
            await asyncio.sleep(CHECK_SECONDS if well else RETRY_SECONDS)


def _now() -> float:
    return asyncio.get_running_loop().time()
