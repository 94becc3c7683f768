"""An event loop in a thread, and a registry whose operations run in it."""

from __future__ import annotations

from typing import TypeVar

from anyio.from_thread import BlockingPortal

from task_api.async_registry import AsyncTaskRegistry
from task_api.operations import Operation
from task_api.redis_client import connect
from task_api.registry import TaskRegistry

_Result = TypeVar("_Result")


class RegistryInLoop(TaskRegistry):
    """The methods of `TaskRegistry` over the connections of an `AsyncTaskRegistry`."""

    def __init__(self, url: str, portal: BlockingPortal) -> None:
        super().__init__(connect(url))
        self._portal = portal
        self._inner = AsyncTaskRegistry.from_url(url)

    def run(self, operation: Operation[_Result]) -> _Result:
        return self._portal.call(self._inner.run, operation)

    def close(self) -> None:
        self._portal.call(self._inner.close)
        super().close()
