"""The task registry for the task server: the same operations, without a thread for each."""

from __future__ import annotations

import asyncio
from typing import Any, Self, TypeVar

import redis
import redis.asyncio

from task_api.operations import Command, Operation, Script
from task_api.records import decoded
from task_api.redis_client import COMMAND_TIMEOUT_SECONDS, Scripts, connect_async, translated

_Result = TypeVar("_Result")


class AsyncTaskRegistry:
    """Runs operations on the tasks of one Redis, each request over a connection of its own.

    An operation may raise what the method of `TaskRegistry` with its name raises, and
    `RegistryUnavailable`. What is said there of broken connections holds here too. As many
    connections are opened as requests are under way at a time; whoever may be asked by many has to
    bound that. One event loop may use an instance.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._scripts = Scripts(client)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """A registry on a client of its own; nothing is connected before the first request."""
        return cls(connect_async(url))

    async def close(self) -> None:
        """Give back the connections."""
        await self._redis.aclose()

    async def run(self, operation: Operation[_Result]) -> _Result:
        """Carry out an operation.

        When the caller is cancelled meanwhile, the connection is closed: an answer that comes late
        is read by nobody.
        """
        try:
            request = next(operation)
            while True:
                try:
                    reply = await self._send(request)
                except Exception as error:  # noqa: BLE001 - the operation's to judge
                    request = operation.throw(error)
                else:
                    request = operation.send(reply)
        except StopIteration as done:
            result: _Result = done.value
            return result

    async def _send(self, request: Script | Command) -> Any:
        with translated():
            try:
                async with asyncio.timeout(COMMAND_TIMEOUT_SECONDS):
                    if isinstance(request, Script):
                        return decoded(await self._scripts[request.name](args=request.arguments))
                    # The client has no types for it.
                    return await self._redis.execute_command(  # type: ignore[no-untyped-call]
                        *request.arguments
                    )
            except TimeoutError:
                raise redis.TimeoutError(
                    f"no answer within {COMMAND_TIMEOUT_SECONDS:.0f} s"
                ) from None
