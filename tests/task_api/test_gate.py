"""The way to a Redis that hangs, goes, comes back, or comes back empty."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from task_api.gate import RegistryGate
from task_api.records import TaskRecord
from task_api.task import RegistryUnavailable, SchemaMismatch
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for

SCHEMA_KEY = "buttercup:schema"


@pytest.fixture
def gate(own_redis: RedisServer) -> Iterator[RegistryGate]:
    """A gate to a Redis of the test's own; nothing looks after it in the background."""
    opened = RegistryGate(own_redis.url)
    yield opened
    opened.close()


@pytest.fixture
def watched(gate: RegistryGate, monkeypatch: pytest.MonkeyPatch) -> RegistryGate:
    """The same with its background thread, which looks more often than usual."""
    monkeypatch.setattr("task_api.gate.CHECK_SECONDS", 0.02)
    monkeypatch.setattr("task_api.gate.RETRY_SECONDS", 0.02)
    gate.start()
    return gate


def page(gate: RegistryGate) -> list[TaskRecord]:
    with gate.use() as registry:
        return registry.page()


def usable(gate: RegistryGate) -> bool:
    try:
        page(gate)
    except RegistryUnavailable:
        return False
    return True


def mark(server: RedisServer) -> bytes | None:
    with server.client as client:
        return cast(bytes | None, client.get(SCHEMA_KEY))


def test_while_one_asks_a_lost_redis_the_others_are_refused(
    own_redis: RedisServer, gate: RegistryGate
) -> None:
    page(gate)
    own_redis.kill()
    with pytest.raises(RegistryUnavailable):
        page(gate)
    own_redis.start()
    own_redis.pause()
    with ThreadPoolExecutor(1) as other:
        try:
            asking = other.submit(page, gate)
            wait_for(gate._asking.locked, "somebody who asks")
            for _ in range(50):
                with pytest.raises(RegistryUnavailable, match="Redis cannot be used"):
                    page(gate)
            assert not asking.done()
        finally:
            own_redis.resume()
        assert asking.result() == []
    assert page(gate) == []


def test_before_the_first_answer_everybody_waits(
    own_redis: RedisServer, gate: RegistryGate
) -> None:
    own_redis.pause()
    with ThreadPoolExecutor(5) as callers:
        try:
            pages = [callers.submit(page, gate) for _ in range(5)]
            wait_for(gate._asking.locked, "somebody who asks")
        finally:
            own_redis.resume()
        assert [one.result() for one in pages] == [[]] * 5


def test_what_one_has_found_out_the_waiting_are_told(
    own_redis: RedisServer, gate: RegistryGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not ask one after another, each for as long as a time-out takes."""
    asked = []
    initialize = gate._registry.initialize

    def counted() -> None:
        asked.append(1)
        initialize()

    monkeypatch.setattr(gate._registry, "initialize", counted)
    own_redis.pause()
    try:
        with ThreadPoolExecutor(5) as callers:
            found = [one.result() for one in [callers.submit(usable, gate) for _ in range(5)]]
    finally:
        own_redis.resume()
    assert found == [False] * 5
    assert len(asked) == 1
    assert usable(gate)


def test_redis_is_found_by_the_next_who_comes(own_redis: RedisServer, gate: RegistryGate) -> None:
    page(gate)
    own_redis.kill()
    assert not usable(gate)
    assert not usable(gate)
    own_redis.start()
    assert usable(gate)


def test_a_redis_that_comes_back_empty_is_marked_first(
    own_redis: RedisServer, gate: RegistryGate
) -> None:
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


def test_a_redis_that_is_emptied_is_marked_again(
    own_redis: RedisServer, watched: RegistryGate
) -> None:
    wait_for(lambda: mark(own_redis), "the mark")
    with own_redis.client as client:
        client.flushall()
        wait_for(lambda: client.hget("buttercup:counters", "since"), "the beginning of the count")
    assert mark(own_redis) == b"1"


def test_a_newer_version_that_takes_over_is_noticed(
    own_redis: RedisServer, watched: RegistryGate
) -> None:
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


def test_a_full_redis_can_be_read_after_it_was_away(
    own_redis: RedisServer, gate: RegistryGate
) -> None:
    page(gate)
    own_redis.kill()
    assert not usable(gate)
    own_redis.start()
    with own_redis.client as client:
        client.delete(SCHEMA_KEY)
        client.config_set("maxmemory", "1")
        assert page(gate) == []
        with pytest.raises(RegistryUnavailable), gate.use() as registry:
            registry.sensor_seen(needs_workers=False, free_slots=1)
        assert page(gate) == []


def test_going_and_coming_are_told_once(
    own_redis: RedisServer, watched: RegistryGate, caplog: pytest.LogCaptureFixture
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
