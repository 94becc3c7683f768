"""The slot of one process: its word in Redis, and the signals that reach it."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._utils.interrupts import capture_interrupts, check_captured_interrupt

from buttercup_dagster import slot as slot_module
from buttercup_dagster.slot import Ending, Slot, SlotLimits
from task_api import keys
from task_api.registry import TaskRegistry
from task_api.workers import Workers
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for

GIBIBYTE = 1024**3


@pytest.fixture
def make_slot() -> Iterator[Callable[[str], Slot]]:
    """Makes slots on a Redis; nothing of them is left afterwards, nor of their signal handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    closers: list[Callable[[], None]] = []

    def make(url: str) -> Slot:
        instance = dg.DagsterInstance.ephemeral()
        workers, registry = Workers.from_url(url), TaskRegistry.from_url(url)
        made = Slot(
            f"m/1/{uuid.uuid4()}",
            instance=instance,
            workers=workers,
            registry=registry,
            limits=SlotLimits(linger_seconds=0, runs=100, memory_bytes=64 * GIBIBYTE),
            ending=Ending(),
        )
        closers.extend([registry.close, workers.close, instance.dispose, made.close])
        return made

    yield make
    for close in reversed(closers):
        close()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def slot(make_slot: Callable[[str], Slot], registry: TaskRegistry, redis_url: str) -> Slot:
    return make_slot(redis_url)


def run_is(does: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each run do this instead, without Dagster and its handling of signals."""

    def execute_run(_: Any, __: str, ___: str) -> None:
        does()

    monkeypatch.setattr(slot_module, "execute_run", execute_run)


def wait_for_beats(registry: TaskRegistry, slot: Slot) -> None:
    """Until the slot has been announced twice by its heartbeat."""
    client = registry._redis
    for _ in range(2):
        before = client.zscore(keys.WORKERS, slot.name)
        wait_for(lambda: client.zscore(keys.WORKERS, slot.name) != before, "a heartbeat")  # noqa: B023


def test_interrupt_between_two_steps_of_a_run_does_not_end_the_slot(
    slot: Slot, registry: TaskRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while nobody listens: Dagster has not begun the run, or has just ended it."""
    run_is(lambda: os.kill(os.getpid(), signal.SIGINT), monkeypatch)
    slot.start()
    slot.execute("r1")
    wait_for_beats(registry, slot)
    status = registry.status()
    assert (status.workers, status.occupied) == (1, 0)
    assert not slot.worn


def test_interrupt_that_nobody_heard_is_repeated_soon(
    slot: Slot, registry: TaskRegistry, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> None:
        with Workers.from_url(redis_url) as launcher:
            assert launcher.stop_run("r1") == slot.name
        slot._interrupt("r1")
        with capture_interrupts():
            wait_for(check_captured_interrupt, "the next interrupt", seconds=10)

    run_is(run, monkeypatch)
    slot.start()
    slot.execute("r1")


def test_process_that_is_asked_to_end_during_a_run_is_replaced(
    slot: Slot, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_is(lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    slot.start()
    assert not slot.worn
    slot.execute("r1")
    assert slot.worn


def test_process_that_comes_up_while_redis_is_away_is_announced_later(
    make_slot: Callable[[str], Slot], own_redis: RedisServer
) -> None:
    own_redis.kill()
    slot = make_slot(own_redis.url)
    slot.start()
    own_redis.start()
    with Workers.from_url(own_redis.url) as workers:
        wait_for(lambda: workers.live() == [slot.name], "the slot lives")


def test_slot_whose_heartbeat_meets_an_error_goes_on(
    slot: Slot, registry: TaskRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    client = registry._redis
    slot.start()
    client.delete(keys.OCCUPIED)
    client.set(keys.OCCUPIED, "not a set")
    wait_for(lambda: "cannot be announced" in caplog.text, "the heartbeat fails")
    client.delete(keys.OCCUPIED)
    wait_for_beats(registry, slot)


def test_slot_that_is_taken_back_says_nothing_more(slot: Slot, registry: TaskRegistry) -> None:
    slot.start()
    slot.close()
    assert not slot._heart.is_alive()
    assert registry.status().workers == 0
