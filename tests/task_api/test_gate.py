"""The way to a Redis that hangs, goes, comes back, or comes back empty."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, TypeVar, cast

import pytest
from anyio.from_thread import BlockingPortal

from task_api import operations
from task_api.gate import CONNECTIONS, RegistryGate
from task_api.operations import Operation
from task_api.records import Submission, TaskRecord
from task_api.task import RegistryUnavailable, SchemaMismatch
from tests.support.redis_server import RedisServer
from tests.support.tasks import make_task
from tests.support.waiting import wait_for

SCHEMA_KEY = "buttercup:schema"
_Result = TypeVar("_Result")


class Gate:
    """A gate in an event loop of its own, to be called from a test.

    Attributes:
        inner: the gate.
    """

    def __init__(self, url: str, portal: BlockingPortal) -> None:
        self.inner = RegistryGate(url)
        self._portal = portal

    def start(self) -> None:
        self._portal.call(self.inner.start)

    def close(self) -> None:
        self._portal.call(self.inner.close)

    def run(self, operation: Operation[_Result]) -> _Result:
        return self._portal.call(self.inner.run, operation)

    def submit(self, operation: Operation[_Result]) -> Future[_Result]:
        return self._portal.start_task_soon(self.inner.run, operation)

    def somebody_asks(self) -> None:
        wait_for(self.inner._asking.locked, "somebody who asks")


@pytest.fixture
def gate(own_redis: RedisServer, portal: BlockingPortal) -> Iterator[Gate]:
    """A gate to a Redis of the test's own; nothing looks after it in the background."""
    opened = Gate(own_redis.url, portal)
    yield opened
    opened.close()


@pytest.fixture
def watched(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """The same with its background task, which looks more often than usual."""
    monkeypatch.setattr("task_api.gate.CHECK_SECONDS", 0.02)
    monkeypatch.setattr("task_api.gate.RETRY_SECONDS", 0.02)
    gate.start()
    return gate


def page(gate: Gate) -> list[TaskRecord]:
    return gate.run(operations.page())


def usable(gate: Gate) -> bool:
    try:
        page(gate)
    except RegistryUnavailable:
        return False
    return True


def mark(server: RedisServer) -> bytes | None:
    with server.client as client:
        return cast(bytes | None, client.get(SCHEMA_KEY))


def test_while_one_asks_a_lost_redis_the_others_are_refused(
    own_redis: RedisServer, gate: Gate
) -> None:
    page(gate)
    own_redis.kill()
    with pytest.raises(RegistryUnavailable):
        page(gate)
    own_redis.start()
    own_redis.pause()
    try:
        asking = gate.submit(operations.page())
        gate.somebody_asks()
        for _ in range(50):
            with pytest.raises(RegistryUnavailable, match="Redis cannot be used"):
                page(gate)
        assert not asking.done()
    finally:
        own_redis.resume()
    assert asking.result() == []
    assert page(gate) == []


def test_before_the_first_answer_everybody_waits(own_redis: RedisServer, gate: Gate) -> None:
    own_redis.pause()
    try:
        pages = [gate.submit(operations.page()) for _ in range(5)]
        gate.somebody_asks()
    finally:
        own_redis.resume()
    assert [one.result() for one in pages] == [[]] * 5


def test_what_one_has_found_out_the_waiting_are_told(
    own_redis: RedisServer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not ask one after another, each for as long as a time-out takes."""
    asked = []
    initialize = operations.initialize

    def counted() -> Operation[None]:
        asked.append(1)
        return initialize()

    monkeypatch.setattr(operations, "initialize", counted)
    own_redis.pause()
    try:
        pages = [gate.submit(operations.page()) for _ in range(2 * CONNECTIONS)]
        errors = [one.exception() for one in pages]
    finally:
        own_redis.resume()
    assert all(isinstance(error, RegistryUnavailable) for error in errors)
    # The background asks too, at a moment of its own.
    assert len(asked) <= 2
    assert usable(gate)


def test_whoever_waits_for_a_turn_is_refused_once_redis_is_lost(
    own_redis: RedisServer, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: only those who had their turn have waited for Redis."""
    page(gate)
    sent: list[Any] = []
    run = gate.inner._registry.run

    async def counted(operation: Operation[Any]) -> Any:
        sent.append(operation)
        return await run(operation)

    monkeypatch.setattr(gate.inner._registry, "run", counted)
    own_redis.pause()
    try:
        pages = [gate.submit(operations.page()) for _ in range(500)]
        errors = [one.exception() for one in pages]
    finally:
        own_redis.resume()
    assert all(isinstance(error, RegistryUnavailable) for error in errors)
    # Some of those who come next ask whether it is back, one at a time.
    assert CONNECTIONS <= len(sent) < 2 * CONNECTIONS


def test_a_thousand_at_once_share_a_few_connections(own_redis: RedisServer, gate: Gate) -> None:
    tasks = [make_task() for _ in range(1000)]
    posted = [
        gate.submit(operations.accept(task.message_id, "", [Submission(task)])) for task in tasks
    ]
    assert all(one.result().accepted for one in posted)
    with own_redis.client as client:
        assert len(client.client_list()) <= CONNECTIONS + 1
        assert client.zcard("buttercup:index:pending") == 1000


def test_redis_is_found_by_the_next_who_comes(own_redis: RedisServer, gate: Gate) -> None:
    page(gate)
    own_redis.kill()
    assert not usable(gate)
    assert not usable(gate)
    own_redis.start()
    assert usable(gate)


def test_a_redis_that_comes_back_empty_is_marked_first(own_redis: RedisServer, gate: Gate) -> None:
    page(gate)
    assert mark(own_redis) == b"1"
    own_redis.kill()
    assert not usable(gate)
    for entry in own_redis.folder.glob("appendonly*"):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    own_redis.start()
    assert mark(own_redis) is None
    assert usable(gate)
    assert mark(own_redis) == b"1"


def test_a_redis_that_is_emptied_is_marked_again(own_redis: RedisServer, watched: Gate) -> None:
    wait_for(lambda: mark(own_redis), "the mark")
    with own_redis.client as client:
        client.flushall()
        wait_for(lambda: client.hget("buttercup:counters", "since"), "the beginning of the count")
    assert mark(own_redis) == b"1"


def test_a_newer_version_that_takes_over_is_noticed(own_redis: RedisServer, watched: Gate) -> None:
    page(watched)
    with own_redis.client as client:
        client.set(SCHEMA_KEY, "99")

        def refused() -> bool:
            try:
                page(watched)
            except SchemaMismatch as error:
                return "schema version 99" in str(error)
            return False

        wait_for(refused, "the refusal")
        client.set(SCHEMA_KEY, "1")
    wait_for(lambda: usable(watched) if not refused() else False, "the return")


def test_a_full_redis_can_be_read_after_it_was_away(own_redis: RedisServer, gate: Gate) -> None:
    page(gate)
    own_redis.kill()
    assert not usable(gate)
    own_redis.start()
    with own_redis.client as client:
        client.delete(SCHEMA_KEY)
        client.config_set("maxmemory", "1")
        assert page(gate) == []
        with pytest.raises(RegistryUnavailable):
            gate.run(operations.accept("m", "", [Submission(make_task())]))
        assert page(gate) == []


def test_going_and_coming_are_told_once(
    own_redis: RedisServer, watched: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "task_api.gate")

    def told(part: str) -> int:
        return sum(part in message for message in caplog.messages)

    wait_for(lambda: usable(watched), "the first answer")
    own_redis.kill()
    wait_for(lambda: told("answering 503 until Redis can be used") == 1, "the loss in the log")
    before = told("recording tasks in")
    own_redis.start()
    wait_for(lambda: told("recording tasks in") == before + 1, "the return in the log")
    assert told("answering 503") == 1
