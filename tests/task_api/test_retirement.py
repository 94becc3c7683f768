"""Tasks that ended long ago leave the registry; nothing else does."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest
import redis

from task_api import keys
from task_api.registry import Submission, TaskRegistry
from task_api.task import (
    Outcome,
    Reason,
    RegistryUnavailable,
    Task,
    TaskState,
    TransitionRefused,
    UnknownTask,
)
from tests.support.redis_server import RedisServer
from tests.support.tasks import make_task, now_ms, post

HOUR_MS = 3_600_000
WEEK_MS = 7 * 24 * HOUR_MS


@pytest.fixture
def client(redis_url: str) -> Any:
    return redis.Redis.from_url(redis_url, protocol=2, decode_responses=True)


def started(registry: TaskRegistry, task: Task, machine: str = "host") -> int:
    """Bring a new task to downloading; its token."""
    post(registry, task)
    (claim,) = registry.claim(1)
    assert claim.task_id == task.task_id
    return registry.start(task.task_id, run_id="run", machine=machine, token=claim.token).token


def made_ready(registry: TaskRegistry, task: Task) -> None:
    token = started(registry, task)
    registry.ready(task.task_id, token, path=f"/tasks/{task.task_id}", machine="host")


def errored(registry: TaskRegistry) -> Task:
    task = make_task()
    token = started(registry, task)
    registry.fail(task.task_id, token, Reason("http_404", "gone"))
    return task


def ended_long_ago(client: Any, task_id: str, ms: int = WEEK_MS) -> None:
    client.zincrby(keys.ENDED, -ms, task_id)


def mentions(client: Any, task_id: str) -> list[str]:
    """The keys that are named after a task or hold its id."""
    found = []
    for key in client.keys("*"):
        read = {
            "string": client.get,
            "hash": client.hgetall,
            "set": client.smembers,
            "zset": lambda name: client.zrange(name, 0, -1),
            "list": lambda name: client.lrange(name, 0, -1),
            "stream": client.xrange,
        }[client.type(key)]
        # Remembered answers end by themselves after three minutes.
        if not key.startswith(keys.ANSWER) and (task_id in key or task_id in str(read(key))):
            found.append(key)
    return sorted(found)


def test_retired_task_leaves_an_event_and_its_machine(registry: TaskRegistry, client: Any) -> None:
    task = make_task()
    made_ready(registry, task)
    registry.add_sarif(task.task_id, str(uuid.uuid4()), {"runs": []})
    registry.report_outcome(task.task_id, Outcome.SUCCEEDED)
    before = registry.last_event_id()
    assert registry.retire(older_than_ms=0) == [task.task_id]
    with pytest.raises(UnknownTask):
        registry.get(task.task_id)
    (event,) = registry.follow(before)
    assert (event.kind, event.task_id) == ("retired", task.task_id)
    assert event.fields == {"from": "succeeded"}
    assert registry.retired_folders("host") == [task.task_id]
    registry.retired_folder_removed("host", task.task_id)
    registry.trim_streams(older_than_ms=-1)
    assert mentions(client, task.task_id) == []
    assert registry.retire(older_than_ms=0) == []


@pytest.mark.parametrize("state", [state for state in TaskState if state.live])
def test_live_task_is_never_retired(registry: TaskRegistry, client: Any, state: TaskState) -> None:
    task = make_task()
    if state is TaskState.READY:
        made_ready(registry, task)
    elif state is TaskState.DOWNLOADING:
        started(registry, task)
    else:
        post(registry, task)
        if state is TaskState.SCHEDULED:
            registry.claim(1)
    # Not even if something lists it.
    client.zadd(keys.ENDED, {task.task_id: 0})
    assert registry.retire(older_than_ms=0) == []
    assert registry.get(task.task_id).state is state
    assert registry.ended(older_than_ms=0) == []


def test_damaged_record_keeps_no_other(registry: TaskRegistry, client: Any) -> None:
    damaged, sound = errored(registry), errored(registry)
    client.hdel(keys.TASK + damaged.task_id, "token")
    # Those that ended within the same millisecond come in any order.
    ended = sorted([damaged.task_id, sound.task_id])
    assert sorted(registry.retire(older_than_ms=0)) == ended
    assert sorted(registry.retired_folders("host")) == ended


def test_age_decides(registry: TaskRegistry, client: Any) -> None:
    old, young = errored(registry), errored(registry)
    ended_long_ago(client, old.task_id)
    assert registry.ended(older_than_ms=HOUR_MS) == [old.task_id]
    assert registry.retire(older_than_ms=HOUR_MS) == [old.task_id]
    assert registry.get(young.task_id).state is TaskState.ERRORED


@pytest.mark.parametrize("end", ["succeeded", "failed", "errored", "canceled", "expired"])
def test_every_end_is_an_end(registry: TaskRegistry, client: Any, end: str) -> None:
    task = make_task()
    made_ready(registry, task)
    if end == "canceled":
        registry.cancel(task.task_id)
    elif end == "expired":
        client.zadd(keys.DEADLINES, {task.task_id: now_ms() - 1})
        registry.reap()
    else:
        registry.report_outcome(task.task_id, Outcome(end))
    assert registry.get(task.task_id).state == end
    assert registry.retire(older_than_ms=0) == [task.task_id]
    assert registry.status().states[TaskState(end)] == 0
    assert registry.removals() == []


def test_retry_takes_a_task_out(registry: TaskRegistry, client: Any) -> None:
    task = errored(registry)
    ended_long_ago(client, task.task_id)
    registry.retry(task.task_id)
    assert registry.retire(older_than_ms=0) == []
    assert registry.get(task.task_id).state is TaskState.PENDING


def test_of_retry_and_retirement_one_wins(registry: TaskRegistry, redis_url: str) -> None:
    tasks = [errored(registry) for _ in range(60)]
    retried: list[str] = []

    def retry() -> None:
        with TaskRegistry.from_url(redis_url) as other:
            for task in tasks:
                try:
                    other.retry(task.task_id)
                except UnknownTask:
                    continue
                retried.append(task.task_id)

    retired: list[str] = []
    thread = threading.Thread(target=retry)
    thread.start()
    while thread.is_alive():
        retired += registry.retire(older_than_ms=0, limit=1)
    thread.join()
    retired += registry.retire(older_than_ms=0)
    assert sorted(retired + retried) == sorted(task.task_id for task in tasks)
    assert registry.known([task.task_id for task in tasks]) == set(retried)
    assert {claim.task_id for claim in registry.claim(100)} == set(retried)


def test_two_that_retire_share_the_work(registry: TaskRegistry, redis_url: str) -> None:
    ids = [errored(registry).task_id for _ in range(30)]
    found: list[str] = []

    def retire() -> None:
        with TaskRegistry.from_url(redis_url) as own:
            while batch := own.retire(older_than_ms=0, limit=3):
                found.extend(batch)

    threads = [threading.Thread(target=retire) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(ids)


def test_repeated_message_still_gets_its_answer(registry: TaskRegistry) -> None:
    task = make_task()
    message = str(uuid.uuid4())
    registry.accept(message, "fingerprint", [Submission(task)], answer="taken")
    registry.cancel(task.task_id)
    registry.retire(older_than_ms=0)
    receipt = registry.accept(message, "fingerprint", [Submission(task)], answer="another")
    assert (receipt.repeated, receipt.answer) == (True, "taken")
    assert registry.known([task.task_id]) == set()


def test_task_posted_anew_is_another_one(registry: TaskRegistry) -> None:
    task = make_task()
    old = started(registry, task)
    registry.cancel(task.task_id)
    registry.retire(older_than_ms=0)
    assert started(registry, task) > old
    assert registry.events(task.task_id)[0].kind == "accepted"
    # What is left of the former attempt can do nothing to the new one.
    with pytest.raises(TransitionRefused):
        registry.ready(task.task_id, old, path="/old", machine="host")


def test_attempt_of_a_retired_task_is_over(registry: TaskRegistry) -> None:
    task = make_task()
    token = started(registry, task)
    registry.cancel(task.task_id)
    registry.retire(older_than_ms=0)
    for move in (registry.renew, registry.confirm):
        with pytest.raises(UnknownTask):
            move(task.task_id, token)
    with pytest.raises(UnknownTask):
        registry.retry(task.task_id)


def test_every_machine_of_an_attempt_is_told(registry: TaskRegistry, client: Any) -> None:
    task = make_task()
    token = started(registry, task, "first")
    registry.fail(task.task_id, token, Reason("timeout", "too slow"), transient=True)
    client.zadd(keys.DUE, {task.task_id: 0})
    (claim,) = registry.claim(1)
    registry.start(task.task_id, run_id="run", machine="second", token=claim.token)
    registry.cancel(task.task_id)
    registry.retire(older_than_ms=0)
    for machine in ("first", "second"):
        assert registry.retired_folders(machine) == [task.task_id]
        # A machine that never comes back must not fill Redis.
        assert 0 < client.pttl(keys.RETIRED_FOLDERS + machine) <= keys.RETIRED_FOLDERS_MS
    assert registry.retired_folders("third") == []


def test_task_that_no_attempt_began_has_no_folder(registry: TaskRegistry, client: Any) -> None:
    task = make_task()
    post(registry, task)
    registry.cancel(task.task_id)
    registry.retire(older_than_ms=0)
    assert client.keys(keys.RETIRED_FOLDERS + "*") == []


def test_consumer_that_lags_finds_every_task_that_is_kept(
    registry: TaskRegistry, client: Any
) -> None:
    done, waiting = make_task(), make_task()
    made_ready(registry, done)
    made_ready(registry, waiting)
    client.xgroup_create(keys.READY, "consumers", id="0")
    registry.report_outcome(done.task_id, Outcome.SUCCEEDED)
    registry.retire(older_than_ms=0)
    registry.trim_streams(older_than_ms=HOUR_MS)
    assert client.xlen(keys.READY) == 2  # younger than that
    registry.trim_streams(older_than_ms=0)
    ((_, entries),) = client.xreadgroup("consumers", "one", {keys.READY: ">"})
    assert [fields["task_id"] for _, fields in entries] == [waiting.task_id]


def test_streams_end_with_their_tasks(registry: TaskRegistry, client: Any) -> None:
    for _ in range(25):
        task = make_task()
        made_ready(registry, task)
        registry.cancel(task.task_id)
    assert client.xlen(keys.CANCELED) == client.xlen(keys.READY) == 25
    registry.retire(older_than_ms=0)
    registry.trim_streams(older_than_ms=-1)
    for stream in (keys.CANCELED, keys.READY, keys.RECENT_EVENTS):
        assert client.xlen(stream) == 0


def test_tasks_of_an_older_version_are_found(registry: TaskRegistry, client: Any) -> None:
    """It kept no list of ends."""
    tasks = [errored(registry) for _ in range(5)]
    live = make_task()
    post(registry, live)
    ended_ms = now_ms() - WEEK_MS
    client.hset(keys.TASK + tasks[0].task_id, "updated_ms", ended_ms)
    client.delete(keys.ENDED)
    assert registry.ended(older_than_ms=HOUR_MS) == [tasks[0].task_id]
    assert len(registry.ended(older_than_ms=0)) == 5


def test_full_redis_can_still_retire(own_redis: RedisServer) -> None:
    with TaskRegistry.from_url(own_redis.url) as registry, own_redis.client as client:
        registry.initialize()
        ids = [errored(registry).task_id for _ in range(3)]
        client.config_set("maxmemory", "1")
        with pytest.raises(RegistryUnavailable):
            post(registry, make_task())
        assert sorted(registry.retire(older_than_ms=0)) == sorted(ids)
        assert registry.retire(older_than_ms=0) == []
        client.config_set("maxmemory", "0")
        post(registry, make_task())


def test_registry_does_not_grow_with_what_was_retired(registry: TaskRegistry, client: Any) -> None:
    def left_after(number: int) -> dict[str, int]:
        for _ in range(number):
            registry.report_outcome(_ready_id(registry), Outcome.SUCCEEDED)
        while registry.retire(older_than_ms=0):
            pass
        for task_id in registry.retired_folders("host"):
            registry.retired_folder_removed("host", task_id)
        registry.trim_streams(older_than_ms=-1)
        return {key: client.memory_usage(key) for key in client.keys("*") if client.ttl(key) < 0}

    few, many = left_after(3), left_after(120)
    assert set(few) == set(many)
    assert sum(many.values()) <= sum(few.values()) + 1024


def _ready_id(registry: TaskRegistry) -> str:
    task = make_task()
    made_ready(registry, task)
    return task.task_id
