"""The registry of the event loop: callers that give up, and a Redis that hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from anyio.from_thread import BlockingPortal

from task_api import operations
from task_api.async_registry import AsyncTaskRegistry
from task_api.registry import TaskRegistry
from task_api.task import RegistryUnavailable, UnknownTask
from tests.support.redis_server import RedisServer
from tests.support.tasks import make_task, post


@pytest.fixture
def registry(own_redis: RedisServer, portal: BlockingPortal) -> Iterator[AsyncTaskRegistry]:
    opened = AsyncTaskRegistry.from_url(own_redis.url)
    yield opened
    portal.call(opened.close)


def test_who_gives_up_leaves_its_answer_to_nobody(
    own_redis: RedisServer, registry: AsyncTaskRegistry, portal: BlockingPortal
) -> None:
    """A connection on which an answer is still to come is not used again."""
    tasks = [make_task() for _ in range(10)]
    with TaskRegistry.from_url(own_redis.url) as other:
        post(other, *tasks)

    async def give_up() -> None:
        readers = [
            asyncio.create_task(registry.run(operations.get(task.task_id))) for task in tasks
        ]
        _, waiting = await asyncio.wait(readers, timeout=0.3)
        assert waiting == set(readers)
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
        assert all(reader.cancelled() for reader in readers)

    portal.call(registry.run, operations.initialize())
    own_redis.pause()
    try:
        portal.call(give_up)
    finally:
        own_redis.resume()
    for task in reversed(tasks):
        assert portal.call(registry.run, operations.get(task.task_id)).task == task
    with pytest.raises(UnknownTask):
        portal.call(registry.run, operations.get(make_task().task_id))


def test_a_redis_that_hangs_is_given_up(
    own_redis: RedisServer,
    registry: AsyncTaskRegistry,
    portal: BlockingPortal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("task_api.async_registry.COMMAND_TIMEOUT_SECONDS", 0.2)
    portal.call(registry.run, operations.initialize())
    own_redis.pause()
    try:
        with pytest.raises(RegistryUnavailable, match="Redis cannot be used: no answer within"):
            portal.call(registry.run, operations.status())
    finally:
        own_redis.resume()
    monkeypatch.undo()
    assert portal.call(registry.run, operations.status()).waiting == 0


def test_an_error_of_redis_reaches_the_operation(
    registry: AsyncTaskRegistry, portal: BlockingPortal
) -> None:
    with pytest.raises(Exception, match="unknown command"):
        portal.call(registry.run, wrong())


def wrong() -> operations.Operation[None]:
    yield operations.Command(("NONSENSE",))
