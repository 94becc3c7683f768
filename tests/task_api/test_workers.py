"""The slots of warm workers in a real Redis: who lives, who claims, who steps back."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from task_api import keys
from task_api.records import Claim
from task_api.registry import TaskRegistry
from task_api.task import TaskState
from task_api.workers import Workers
from tests.support.tasks import make_task, now_ms, post
from tests.support.waiting import wait_for


@pytest.fixture
def client(registry: TaskRegistry) -> Any:
    return registry._redis


@pytest.fixture
def workers(registry: TaskRegistry) -> Workers:
    return Workers(registry._redis)


def test_slots_count_while_their_lease_lasts(
    registry: TaskRegistry, workers: Workers, client: Any
) -> None:
    workers.announce("m/1", occupied=False)
    workers.announce("m/2", occupied=True)
    workers.announce("m/3", occupied=True)
    client.zadd(keys.WORKERS, {"m/3": now_ms() - 1})
    client.zadd(keys.OCCUPIED, {"m/3": now_ms() - 1})
    status = registry.status()
    assert (status.workers, status.occupied, status.lingering) == (2, 1, 0)
    assert workers.live() == ["m/1", "m/2"]
    workers.announce("m/2", occupied=False)
    assert registry.status().occupied == 0
    workers.gone("m/2")
    assert workers.live() == ["m/1"]


def test_slots_that_died_are_forgotten(workers: Workers, client: Any) -> None:
    for key in (keys.WORKERS, keys.OCCUPIED, keys.LINGERING):
        client.zadd(key, {"m/1": now_ms() - 1})
    workers.announce("m/2", occupied=False)
    assert client.zrange(keys.WORKERS, 0, -1) == [b"m/2"]
    assert not client.exists(keys.OCCUPIED, keys.LINGERING)


def test_run_is_executed_by_the_slot_that_began_it(workers: Workers, client: Any) -> None:
    assert workers.executor_of("r1") is None
    assert workers.announce("m/1", occupied=True, run_id="r1") is False
    assert workers.executor_of("r1") == "m/1"
    assert 0 < client.pttl(keys.EXECUTING + "r1") <= keys.RUNNING_LEASE_MS
    workers.finished("r1")
    assert workers.executor_of("r1") is None


def test_run_is_told_to_stop_by_its_slots_next_word(workers: Workers, client: Any) -> None:
    workers.announce("m/1", occupied=True, run_id="r1")
    assert workers.stop_run("r1") == "m/1"
    assert workers.announce("m/1", occupied=True, run_id="r1") is True
    assert workers.executor_of("r1") == "m/1"
    workers.finished("r1")
    assert not client.exists(keys.STOPPING + "r1")


def test_run_that_is_stopped_before_it_begins_does_not_begin(workers: Workers) -> None:
    assert workers.stop_run("r1") is None
    assert workers.announce("m/1", occupied=True, run_id="r1") is True
    assert workers.executor_of("r1") is None


def test_slot_takes_the_task_that_waits_longest(registry: TaskRegistry, workers: Workers) -> None:
    tasks = [make_task() for _ in range(2)]
    for task in tasks:
        post(registry, task)
    claim = workers.claim_next("m/1", linger=True)
    assert isinstance(claim, Claim)
    record = registry.get(claim.task_id)
    assert (record.state, record.token) == (TaskState.SCHEDULED, claim.token)
    assert record.lease_until_ms is not None
    assert 0 < record.lease_until_ms - now_ms() <= keys.WARM_LEASE_MS
    assert registry.status().lingering == 0


def test_slot_steps_back_while_a_run_waits_for_a_worker(
    registry: TaskRegistry, workers: Workers, client: Any
) -> None:
    task = make_task()
    post(registry, task)
    client.delete(keys.DOORBELL)
    client.rpush(keys.RUN_QUEUE, "a message of Celery")
    assert workers.claim_next("m/1", linger=True) is False
    assert registry.get(task.task_id).state is TaskState.PENDING
    # Somebody else has to see to the task now.
    assert client.llen(keys.DOORBELL) == 1


def test_slot_leaves_only_when_nothing_is_due(registry: TaskRegistry, workers: Workers) -> None:
    assert workers.claim_next("m/1", linger=True) is True
    assert registry.status().lingering == 1
    post(registry, make_task())
    assert isinstance(workers.claim_next("m/1", linger=False), Claim)
    assert workers.claim_next("m/1", linger=False) is True
    assert registry.status().lingering == 0


def test_lingering_slot_is_woken_instead_of_the_sensor(
    registry: TaskRegistry, workers: Workers, client: Any
) -> None:
    workers.claim_next("m/1", linger=True)
    post(registry, make_task())
    assert (client.llen(keys.WORKER_BELL), client.llen(keys.DOORBELL)) == (1, 0)
    # One slot cannot take two: the second wakes the sensor.
    post(registry, make_task())
    assert (client.llen(keys.WORKER_BELL), client.llen(keys.DOORBELL)) == (1, 1)


def test_slot_that_waits_is_woken_by_a_task(registry: TaskRegistry, workers: Workers) -> None:
    workers.claim_next("m/1", linger=True)
    woken = threading.Event()

    def wait() -> None:
        workers.wait(30)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    post(registry, make_task())
    wait_for(woken.is_set, "the slot is woken", seconds=2.5)
    thread.join()


def test_slot_that_died_lingering_is_counted_on_no_more(
    registry: TaskRegistry, workers: Workers, client: Any
) -> None:
    workers.claim_next("m/1", linger=True)
    client.zadd(keys.LINGERING, {"m/1": now_ms() - 1})
    post(registry, make_task())
    assert client.llen(keys.DOORBELL) == 1
    assert registry.status().lingering == 0


def test_status_tells_what_is_due(registry: TaskRegistry, client: Any) -> None:
    tasks = [make_task() for _ in range(2)]
    post(registry, *tasks)
    client.zadd(keys.DUE, {tasks[0].task_id: now_ms() + 60_000})
    status = registry.status()
    assert status.due == 1
    assert status.states[TaskState.PENDING] == 2


@pytest.fixture
def claims_of_two(registry: TaskRegistry, workers: Workers) -> list[Claim]:
    """What two slots take that claim at the same time until nothing is left."""
    post(registry, *[make_task() for _ in range(20)])
    taken: list[Claim] = []

    def take(slot: str) -> None:
        while isinstance(claim := workers.claim_next(slot, linger=False), Claim):
            taken.append(claim)

    threads = [threading.Thread(target=take, args=(f"m/{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return taken


def test_no_task_is_taken_twice(claims_of_two: list[Claim]) -> None:
    assert len({claim.task_id for claim in claims_of_two}) == len(claims_of_two) == 20
