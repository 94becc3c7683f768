"""The registry against a real Redis: what a caller sees of each move."""

from __future__ import annotations

import json
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Self

import pytest
import redis
from anyio.from_thread import BlockingPortal

from task_api import keys
from task_api.operations import Command, Script
from task_api.records import MAX_REASON_CHARACTERS
from task_api.registry import Submission, TaskRegistry
from task_api.task import (
    Outcome,
    Problem,
    Reason,
    RegistryUnavailable,
    SchemaMismatch,
    Source,
    SourceType,
    Task,
    TaskState,
    TransitionRefused,
    UnknownTask,
)
from tests.support.loop import RegistryInLoop
from tests.support.redis_server import RedisServer
from tests.support.tasks import make_task, now_ms, post
from tests.support.waiting import wait_for


@pytest.fixture
def client(redis_url: str) -> Any:
    return redis.Redis.from_url(redis_url, protocol=2, decode_responses=True)


def kinds(registry: TaskRegistry, task_id: str) -> list[str]:
    return [event.kind for event in registry.events(task_id)]


def started(registry: TaskRegistry, task: Task) -> int:
    """Bring a new task to downloading; its token."""
    post(registry, task)
    (claim,) = registry.claim(1)
    assert claim.task_id == task.task_id
    return registry.start(task.task_id, run_id="run", machine="host", token=claim.token).token


def made_ready(registry: TaskRegistry, task: Task) -> int:
    token = started(registry, task)
    registry.ready(task.task_id, token, path=f"/tasks/{task.task_id}", machine="host")
    return token


def ends_at_once(client: Any, task_id: str) -> None:
    """Let the lease of a task run out under the eyes of a reaper."""
    client.set(keys.REAPER, now_ms())
    client.zadd(keys.LEASES, {task_id: now_ms() - 1})


class LosingProxy:
    """A TCP proxy before Redis that can lose one answer: the script ran, the connection breaks.

    Attributes:
        port: loopback port.
        lost: how many answers were lost.
    """

    def __init__(self, redis_port: int) -> None:
        self._redis_port = redis_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._lose = False
        self.lost = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def lose_next_answer(self) -> None:
        """Lose the answer of the next script that Redis knows."""
        self._lose = True

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self._redis_port)) as server:
            script = threading.Event()

            def ask() -> None:
                with suppress(OSError):
                    while request := client.recv(1 << 20):
                        (script.set if b"EVALSHA" in request else script.clear)()
                        server.sendall(request)
                    server.shutdown(socket.SHUT_RDWR)

            threading.Thread(target=ask, daemon=True).start()
            with suppress(OSError):
                while answer := server.recv(1 << 20):
                    known = script.is_set() and not answer.startswith(b"-NOSCRIPT")
                    if self._lose and known:
                        self._lose = False
                        self.lost += 1
                        client.shutdown(socket.SHUT_RDWR)
                        return
                    client.sendall(answer)


@pytest.fixture
def proxy(redis_url: str, redis_server: RedisServer) -> Iterator[LosingProxy]:
    with LosingProxy(redis_server.port) as opened:
        yield opened


@pytest.fixture(params=["threads", "event loop"])
def connected(
    request: pytest.FixtureRequest, portal: BlockingPortal
) -> Callable[[str], TaskRegistry]:
    """Opens a registry on a URL, of either kind: both carry out the same operations."""
    if request.param == "threads":
        return TaskRegistry.from_url
    return partial(RegistryInLoop, portal=portal)


@pytest.fixture
def shaky(proxy: LosingProxy, connected: Callable[[str], TaskRegistry]) -> Iterator[TaskRegistry]:
    """The registry behind the proxy."""
    with connected(f"redis://127.0.0.1:{proxy.port}") as opened:
        yield opened


# --- intake ------------------------------------------------------------------------------------


def test_accepted_task_is_read_back_as_posted(registry: TaskRegistry) -> None:
    task = make_task()
    receipt = post(registry, task)
    assert receipt.accepted
    assert [verdict.kind for verdict in receipt.verdicts] == ["accepted"]
    record = registry.get(task.task_id)
    assert record.task == task
    assert record.state is TaskState.PENDING
    assert (record.token, record.failures) == (0, 0)
    assert kinds(registry, task.task_id) == ["accepted"]


def test_same_message_gets_its_first_answer_whatever_became_of_the_task(
    registry: TaskRegistry,
) -> None:
    task = make_task()
    submission = [Submission(task)]
    registry.accept(task.message_id, "body", submission, answer="first")
    registry.cancel(task.task_id)
    again = registry.accept(task.message_id, "body", submission, answer="second")
    assert again.accepted
    assert again.repeated
    assert again.answer == "first"
    assert kinds(registry, task.task_id) == ["accepted", "canceled"]


def test_message_id_used_again_for_another_body_loses_nothing(registry: TaskRegistry) -> None:
    first, second = make_task(), make_task()
    registry.accept(first.message_id, "one body", [Submission(first)])
    receipt = registry.accept(first.message_id, "another body", [Submission(second)])
    assert [verdict.kind for verdict in receipt.verdicts] == ["accepted"]
    assert registry.get(second.task_id).state is TaskState.PENDING


def test_same_identity_with_new_urls_is_a_duplicate_and_its_urls_come_first(
    registry: TaskRegistry,
) -> None:
    task = make_task()
    post(registry, task)
    (source,) = task.sources
    fresh = replace(source, urls=("http://files.example/repo.tar.gz?signature=2",))
    again = replace(task, sources=(fresh,), metadata={"other": True})
    assert [v.kind for v in post(registry, again).verdicts] == ["duplicate"]
    record = registry.get(task.task_id)
    assert record.task.sources[0].urls == (*fresh.urls, *source.urls)
    assert record.task.metadata == task.metadata
    assert kinds(registry, task.task_id) == ["accepted", "duplicate"]


def test_a_storm_of_duplicates_appends_one_event(registry: TaskRegistry) -> None:
    task = make_task()
    for _ in range(5):
        post(registry, task)
    assert kinds(registry, task.task_id) == ["accepted", "duplicate"]


def test_urls_of_duplicates_are_kept_up_to_a_bound(registry: TaskRegistry) -> None:
    task = make_task()
    for number in range(keys.MAX_URLS_PER_SOURCE + 3):
        source = Source(SourceType.REPO, "a" * 64, (f"http://files.example/{number}",))
        post(registry, replace(task, sources=(source,)))
    urls = registry.get(task.task_id).task.sources[0].urls
    assert len(urls) == keys.MAX_URLS_PER_SOURCE
    assert urls[0].endswith(str(keys.MAX_URLS_PER_SOURCE + 2))


def test_other_identity_under_the_same_id_is_a_conflict_with_one_event(
    registry: TaskRegistry,
) -> None:
    task = make_task()
    post(registry, task)
    other = replace(task, focus="elsewhere")
    for _ in range(3):
        receipt = post(registry, other)
        assert not receipt.accepted
        assert [v.kind for v in receipt.verdicts] == ["conflict"]
    assert registry.get(task.task_id).task == task
    assert kinds(registry, task.task_id) == ["accepted", "conflict"]


def test_refused_task_is_recorded_only_beside_an_accepted_one(registry: TaskRegistry) -> None:
    good, bad = make_task(), make_task(focus="../etc")
    problems = [Problem(("focus",), "leaves the tarball")]
    alone = registry.accept("m1", "1", [Submission(bad, problems)])
    assert not alone.accepted
    with pytest.raises(UnknownTask):
        registry.get(bad.task_id)

    mixed = registry.accept("m2", "2", [Submission(bad, problems), Submission(good)])
    assert mixed.accepted
    assert [v.kind for v in mixed.verdicts] == ["refused", "accepted"]
    record = registry.get(bad.task_id)
    assert record.state is TaskState.ERRORED
    assert record.reason == Reason("refused", "focus: leaves the tarball")
    assert registry.status().errored == 1
    with pytest.raises(TransitionRefused):
        registry.retry(bad.task_id)
    with pytest.raises(TransitionRefused):
        registry.start(bad.task_id, run_id="by hand", machine="host")


def test_refused_task_posted_anew_corrected_is_accepted(registry: TaskRegistry) -> None:
    good, bad = make_task(), make_task(focus="../etc")
    registry.accept("m", "m", [Submission(good), Submission(bad, [Problem((), "bad")])])
    corrected = replace(bad, focus="etc")
    assert post(registry, corrected).accepted
    assert registry.get(bad.task_id).state is TaskState.PENDING
    assert [record.task.task_id for record in registry.page()] == [bad.task_id, good.task_id]


def test_reason_of_a_refused_task_is_bounded(registry: TaskRegistry) -> None:
    good, many, long = make_task(), make_task(), make_task()
    problems = [Problem(("source", n, "url"), "is no URL") for n in range(1_000)]
    registry.accept(
        "m",
        "m",
        [
            Submission(good),
            Submission(many, problems),
            Submission(long, [Problem(("focus",), "x" * 10_000), *problems[:4]]),
        ],
    )
    reason = registry.get(many.task_id).reason
    assert reason is not None
    lines = reason.text.splitlines()
    assert lines[:2] == ["source[0].url: is no URL", "source[1].url: is no URL"]
    assert len(lines) == 21
    assert lines[-1] == "… and 980 more"
    reason = registry.get(long.task_id).reason
    assert reason is not None
    assert reason.text.startswith("focus: xxx")
    assert reason.text.endswith("x…\n… and 4 more")
    assert len(reason.text) < MAX_REASON_CHARACTERS + 50
    events = registry.events(long.task_id)
    assert len(events[-1].fields["text"]) < MAX_REASON_CHARACTERS + 50


def test_reasons_of_failures_cancels_and_outcomes_are_bounded(registry: TaskRegistry) -> None:
    endless = "y" * 1_000_000
    failed, again, canceled, judged = (make_task() for _ in range(4))
    registry.fail(failed.task_id, started(registry, failed), Reason("x", endless))
    token = started(registry, again)
    registry.fail(again.task_id, token, Reason("x", endless), transient=True)
    post(registry, canceled)
    registry.cancel(canceled.task_id, reason=Reason("x", endless))
    made_ready(registry, judged)
    registry.report_outcome(judged.task_id, Outcome.FAILED, endless)
    for task in (failed, again, canceled, judged):
        reason = registry.get(task.task_id).reason
        assert reason is not None
        assert reason.text == "y" * (MAX_REASON_CHARACTERS - 1) + "…"


def test_empty_message_is_accepted(registry: TaskRegistry) -> None:
    assert registry.accept("m", "m", []).accepted


def test_task_whose_cancel_came_first_stays_canceled(registry: TaskRegistry) -> None:
    task = make_task()
    assert registry.cancel(task.task_id) is False
    assert registry.cancel(task.task_id) is False
    receipt = post(registry, task)
    assert receipt.accepted
    assert [v.kind for v in receipt.verdicts] == ["canceled"]
    assert registry.get(task.task_id).state is TaskState.CANCELED
    assert registry.claim(10) == []
    assert registry.status().canceled == 1
    assert [v.kind for v in post(registry, task).verdicts] == ["duplicate"]


def test_cancel_of_an_unknown_task_is_remembered_for_seven_days(
    registry: TaskRegistry, client: Any
) -> None:
    task_id = str(uuid.uuid4())
    registry.cancel(task_id)
    left = client.pttl(keys.CANCELED_AHEAD + task_id)
    assert 0 <= keys.CANCELED_AHEAD_MS - left < 60_000


def test_sarif_is_kept_once_for_each_sarif_id(registry: TaskRegistry) -> None:
    task = make_task()
    post(registry, task)
    broadcast = {"sarif": {"runs": []}, "metadata": {"a": "b"}}
    assert registry.add_sarif(task.task_id, "s1", broadcast) is True
    assert registry.add_sarif(task.task_id, "s1", {"other": 1}) is False
    assert registry.add_sarif(task.task_id, "s2", broadcast) is True
    assert registry.sarifs(task.task_id) == {"s1": broadcast, "s2": broadcast}
    assert kinds(registry, task.task_id) == ["accepted", "sarif", "sarif"]


def test_sarif_that_comes_before_its_task_is_kept(registry: TaskRegistry, client: Any) -> None:
    task = make_task()
    registry.add_sarif(task.task_id, "s1", {"sarif": {}})
    assert client.pttl(keys.SARIF + task.task_id) > 0
    post(registry, task)
    assert client.pttl(keys.SARIF + task.task_id) == -1
    assert registry.sarifs(task.task_id) == {"s1": {"sarif": {}}}


# --- claims, leases, tokens --------------------------------------------------------------------


def test_claims_take_the_longest_waiting_and_no_more_than_asked(registry: TaskRegistry) -> None:
    tasks = [make_task() for _ in range(3)]
    for task in tasks:
        post(registry, task)
        posted = now_ms()
        while now_ms() <= posted:  # so that no two of them fall due in the same millisecond
            pass
    assert [claim.task_id for claim in registry.claim(2)] == [t.task_id for t in tasks[:2]]
    assert [claim.task_id for claim in registry.claim(2)] == [tasks[2].task_id]
    assert registry.claim(2) == []
    assert registry.claim(0) == []


def test_start_with_the_token_of_an_older_claim_is_refused(
    registry: TaskRegistry, client: Any
) -> None:
    task = make_task()
    post(registry, task)
    (old,) = registry.claim(1)
    ends_at_once(client, task.task_id)
    assert registry.reap().returned == (task.task_id,)
    (new,) = registry.claim(1)
    assert new.token > old.token
    with pytest.raises(TransitionRefused, match="another attempt has taken it over") as refusal:
        registry.start(task.task_id, run_id="late", machine="host", token=old.token)
    assert refusal.value.state is TaskState.SCHEDULED
    registry.start(task.task_id, run_id="new", machine="host", token=new.token)


def test_start_after_its_claims_lease_ran_out_takes_the_task_anew(
    registry: TaskRegistry, client: Any
) -> None:
    task = make_task()
    post(registry, task)
    (claim,) = registry.claim(1)
    ends_at_once(client, task.task_id)
    registry.reap()
    attempt = registry.start(task.task_id, run_id="late", machine="host", token=claim.token)
    assert attempt.token > claim.token
    assert registry.claim(1) == []


def test_start_sent_twice_by_one_run_is_one_start(registry: TaskRegistry) -> None:
    task = make_task()
    token = started(registry, task)
    again = registry.start(task.task_id, run_id="run", machine="host", token=token)
    assert again.token == token
    assert kinds(registry, task.task_id) == ["accepted", "claimed", "started"]


def test_start_by_hand_takes_pending_and_errored_and_nothing_else(registry: TaskRegistry) -> None:
    task = make_task()
    post(registry, task)
    token = registry.start(task.task_id, run_id="hand", machine="host").token
    with pytest.raises(TransitionRefused) as refusal:
        registry.start(task.task_id, run_id="other", machine="host")
    assert refusal.value.run_id == "hand"
    registry.fail(task.task_id, token, Reason("digest_mismatch", "wrong digest"))
    attempt = registry.start(task.task_id, run_id="again", machine="host")
    assert attempt.token > token
    registry.cancel(task.task_id)
    with pytest.raises(TransitionRefused, match="it is canceled"):
        registry.start(task.task_id, run_id="late", machine="host")


def test_lost_worker_counts_a_failure_and_its_task_comes_back_after_a_pause(
    registry: TaskRegistry, client: Any
) -> None:
    task = make_task()
    token = started(registry, task)
    ends_at_once(client, task.task_id)
    assert registry.reap().returned == (task.task_id,)
    record = registry.get(task.task_id)
    assert (record.state, record.failures) == (TaskState.PENDING, 1)
    assert record.reason is not None
    assert record.reason.code == "worker_lost"
    assert record.not_before_ms is not None
    assert 1_000 < record.not_before_ms - now_ms() <= keys.FIRST_BACKOFF_MS
    for late in (
        lambda: registry.renew(task.task_id, token),
        lambda: registry.confirm(task.task_id, token),
        lambda: registry.ready(task.task_id, token, path="/x", machine="host"),
        lambda: registry.fail(task.task_id, token, Reason("x", "x")),
    ):
        with pytest.raises(TransitionRefused):
            late()
    assert registry.claim(1) == []


def test_claim_that_never_started_counts_no_failure(registry: TaskRegistry, client: Any) -> None:
    task = make_task()
    post(registry, task)
    registry.claim(1)
    ends_at_once(client, task.task_id)
    registry.reap()
    assert registry.get(task.task_id).failures == 0
    assert len(registry.claim(1)) == 1


def test_lease_that_ran_out_unwatched_is_extended_once(registry: TaskRegistry, client: Any) -> None:
    task = make_task()
    token = started(registry, task)
    client.zadd(keys.LEASES, {task.task_id: now_ms() - 1})
    client.set(keys.REAPER, now_ms() - keys.REAPER_GAP_MS - 1)
    assert registry.reap().returned == ()
    registry.renew(task.task_id, token)
    ends_at_once(client, task.task_id)
    assert registry.reap().returned == (task.task_id,)


def test_lease_that_would_end_before_its_holder_comes_back_is_made_whole_after_a_gap(
    registry: TaskRegistry, client: Any
) -> None:
    soon, later = make_task(), make_task()
    token = started(registry, soon)
    registry.renew(soon.task_id, started(registry, later) and token, lease_ms=500)
    registry.renew(later.task_id, registry.get(later.task_id).token, lease_ms=60_000)
    client.set(keys.REAPER, now_ms() - keys.REAPER_GAP_MS - 1)
    registry.reap()
    until = registry.get(soon.task_id).lease_until_ms
    assert until is not None
    assert until > now_ms() + keys.RENEWAL_MS
    until = registry.get(later.task_id).lease_until_ms
    assert until is not None
    assert until > now_ms() + 2 * keys.RUNNING_LEASE_MS


def test_all_leases_are_made_whole_after_a_gap_however_many(
    registry: TaskRegistry, client: Any
) -> None:
    tasks = [make_task() for _ in range(450)]
    post(registry, *tasks)
    while registry.claim(200, lease_ms=-1):
        pass
    client.set(keys.REAPER, now_ms() - keys.REAPER_GAP_MS - 1)
    assert registry.reap().returned == ()
    assert registry.status().states[TaskState.SCHEDULED] == 450
    assert client.zcount(keys.LEASES, "-inf", now_ms()) == 0


def test_frozen_redis_costs_no_healthy_attempt_its_lease(own_redis: RedisServer) -> None:
    """A lease runs out while Redis is frozen, and the reaper is the first to come back."""
    with TaskRegistry.from_url(own_redis.url) as registry:
        registry.reap()
        task = make_task()
        token = started(registry, task)
        registry.renew(task.task_id, token, lease_ms=4_200)
        registry.reap()
        lease_until = registry.get(task.task_id).lease_until_ms
        assert lease_until is not None
        own_redis.pause()
        wait_for(lambda: now_ms() > lease_until, "the end of the lease")
        own_redis.resume()
        assert registry.reap().returned == ()
        registry.renew(task.task_id, token)
        record = registry.get(task.task_id)
        assert (record.state, record.failures) == (TaskState.DOWNLOADING, 0)


def test_renewals_of_others_show_that_a_lease_ran_out_by_its_holders_fault(
    registry: TaskRegistry, client: Any
) -> None:
    """An intake that is late does not keep the task of a dead worker for ever."""
    registry.reap()
    healthy, dead = make_task(), make_task()
    token = started(registry, healthy)
    started(registry, dead)
    marked = now_ms() - keys.REAPER_GAP_MS + 1_000
    client.set(keys.REAPER, marked)
    client.zadd(keys.LEASES, {dead.task_id: now_ms() - 1})

    def gone() -> bool:
        registry.renew(healthy.task_id, token)
        return now_ms() > marked + keys.REAPER_GAP_MS

    wait_for(gone, "the time after which nobody would have looked")
    assert registry.reap().returned == (dead.task_id,)


def test_renewal_after_a_gap_does_not_hide_it_from_the_reaper(
    registry: TaskRegistry, client: Any
) -> None:
    registry.reap()
    quick, slow = make_task(), make_task()
    token = started(registry, quick)
    started(registry, slow)
    client.set(keys.REAPER, now_ms() - keys.REAPER_GAP_MS - 1)
    client.zadd(keys.LEASES, {slow.task_id: now_ms() - 1})
    registry.renew(quick.task_id, token)
    registry.wait_for_work(0.01)
    assert registry.reap().returned == ()
    assert registry.get(slow.task_id).state is TaskState.DOWNLOADING


def test_fifth_failure_ends_the_task(registry: TaskRegistry, client: Any) -> None:
    task = make_task()
    post(registry, task)
    for number in range(1, 6):
        client.zadd(keys.DUE, {task.task_id: 0})
        (claim,) = registry.claim(1)
        token = registry.start(
            task.task_id, run_id=f"run {number}", machine="host", token=claim.token
        ).token
        state = registry.fail(task.task_id, token, Reason("offline", "no answer"), transient=True)
        assert state is (TaskState.ERRORED if number == 5 else TaskState.PENDING)
    record = registry.get(task.task_id)
    assert record.failures == 5
    assert record.reason == Reason("offline", "no answer; 5 attempts have failed")
    registry.retry(task.task_id)
    assert registry.get(task.task_id).failures == 0


def test_pause_between_attempts_doubles_and_keeps_to_retry_after(
    registry: TaskRegistry, client: Any
) -> None:
    task = make_task()
    post(registry, task)
    pauses = []
    for number in range(3):
        client.zadd(keys.DUE, {task.task_id: 0})
        (claim,) = registry.claim(1)
        token = registry.start(
            task.task_id, run_id=str(number), machine="host", token=claim.token
        ).token
        registry.fail(
            task.task_id,
            token,
            Reason("http_status", "503"),
            transient=True,
            retry_after_ms=90_000 if number == 2 else 0,
        )
        not_before = registry.get(task.task_id).not_before_ms
        assert not_before is not None
        pauses.append(not_before - now_ms())
    assert 1_000 < pauses[0] <= 5_000
    assert 4_000 < pauses[1] <= 10_000
    assert 85_000 < pauses[2] <= 90_000


def test_failure_whose_pause_would_outlast_the_deadline_is_final(registry: TaskRegistry) -> None:
    task = make_task()
    token = started(registry, task)
    reason = Reason("http_status", "503")
    state = registry.fail(
        task.task_id, token, reason, transient=True, retry_until_ms=now_ms() + 500
    )
    assert state is TaskState.ERRORED
    soon = make_task(deadline_ms=now_ms() + 60_000)
    token = started(registry, soon)
    state = registry.fail(soon.task_id, token, reason, transient=True, retry_after_ms=120_000)
    assert state is TaskState.ERRORED


# --- ready, outcomes, cancels, expiry ----------------------------------------------------------


def test_ready_announces_once_with_all_that_a_consumer_needs(
    registry: TaskRegistry, client: Any
) -> None:
    task = make_task()
    token = made_ready(registry, task)
    registry.ready(task.task_id, token, path=f"/tasks/{task.task_id}", machine="host")
    ((_, entry),) = client.xrange(keys.READY)
    metadata = entry.pop("metadata")
    assert entry == {
        "task_id": task.task_id,
        "path": f"/tasks/{task.task_id}",
        "machine": "host",
        "deadline_ms": str(task.deadline_ms),
        "type": "full",
        "project_name": "libpng",
        "focus": "libpng",
    }
    assert metadata == '{"task.id": "1", "nested": {"kept": [1, 2.5, null, "\\u00e9\\u2028"]}}'
    assert [u.task_id for u in registry.unmaterialized(older_than_ms=-1_000)] == [task.task_id]
    assert registry.unmaterialized(older_than_ms=60_000) == []
    registry.materialized(task.task_id)
    assert registry.unmaterialized(older_than_ms=-1_000) == []


def test_no_ready_follows_a_cancel(registry: TaskRegistry, client: Any) -> None:
    task = make_task()
    token = started(registry, task)
    registry.cancel(task.task_id, reason=Reason("by_person", "not wanted"))
    registry.cancel(task.task_id)
    with pytest.raises(TransitionRefused, match=r"it is canceled .*not wanted"):
        registry.ready(task.task_id, token, path="/x", machine="host")
    assert client.xlen(keys.READY) == 0
    assert client.xlen(keys.CANCELED) == 1
    assert registry.status().canceled == 1


def test_cancel_of_a_ready_task_asks_for_its_folder_to_be_removed(registry: TaskRegistry) -> None:
    task = make_task()
    made_ready(registry, task)
    registry.cancel(task.task_id)
    assert registry.removals() == [task.task_id]
    registry.removed(task.task_id)
    assert registry.removals() == []


def expires(registry: TaskRegistry, client: Any, task: Task) -> None:
    client.zadd(keys.DEADLINES, {task.task_id: now_ms() - 1})
    assert registry.reap().expired == (task.task_id,)


def errs(registry: TaskRegistry, client: Any, task: Task) -> None:
    token = registry.get(task.task_id).token
    registry.fail(task.task_id, token, Reason("digest_mismatch", "wrong digest"))


def cancels(registry: TaskRegistry, client: Any, task: Task) -> None:
    registry.cancel(task.task_id)


@pytest.mark.parametrize("end", [cancels, expires, errs])
def test_folder_that_an_attempt_may_have_left_is_listed_for_removal(
    registry: TaskRegistry, client: Any, end: Callable[[TaskRegistry, Any, Task], None]
) -> None:
    """An attempt may die between the renaming of the folder and its announcement."""
    task = make_task()
    started(registry, task)
    ends_at_once(client, task.task_id)
    registry.reap()
    client.zadd(keys.DUE, {task.task_id: 0})
    registry.claim(1)
    assert registry.removals() == []
    end(registry, client, task)
    assert registry.removals() == [task.task_id]
    assert registry.get(task.task_id).machine == "host"


@pytest.mark.parametrize("end", [cancels, expires, errs])
def test_task_that_no_attempt_was_made_at_has_no_folder_to_remove(
    registry: TaskRegistry, client: Any, end: Callable[[TaskRegistry, Any, Task], None]
) -> None:
    task = make_task()
    post(registry, task)
    registry.claim(1)
    end(registry, client, task)
    assert registry.removals() == []


def test_folder_of_an_announced_task_outlasts_its_expiry_and_its_outcome(
    registry: TaskRegistry, client: Any
) -> None:
    expired, errored = make_task(), make_task()
    made_ready(registry, expired)
    made_ready(registry, errored)
    expires(registry, client, expired)
    registry.report_outcome(errored.task_id, Outcome.ERRORED)
    assert registry.removals() == []


@pytest.mark.parametrize("by_hand", [False, True])
def test_folder_of_a_task_that_is_prepared_again_is_not_removed(
    registry: TaskRegistry, client: Any, by_hand: bool
) -> None:
    task = make_task()
    errored = started(registry, task)
    registry.fail(task.task_id, errored, Reason("x", "x"))
    assert registry.removals() == [task.task_id]
    if by_hand:
        registry.start(task.task_id, run_id="hand", machine="host")
    else:
        registry.retry(task.task_id)
    assert registry.removals() == []


def test_cancel_all_takes_every_live_task_and_leaves_the_ended(registry: TaskRegistry) -> None:
    ready, errored = make_task(), make_task()
    made_ready(registry, ready)
    registry.fail(errored.task_id, started(registry, errored), Reason("x", "x"))
    pending = [make_task() for _ in range(450)]
    post(registry, *pending)
    assert registry.cancel_all() == 451
    status = registry.status()
    assert status.canceled == 451
    assert status.states[TaskState.CANCELED] == 451
    assert registry.get(errored.task_id).state is TaskState.ERRORED
    assert registry.cancel_all() == 0


def test_cancel_all_takes_a_task_that_goes_back_to_pending_meanwhile(
    registry: TaskRegistry, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_api.operations.BATCH", 2)
    task, others = make_task(), [make_task() for _ in range(5)]
    token = started(registry, task)
    post(registry, *others)
    send = registry._send

    def failing_meanwhile(request: Script | Command) -> Any:
        answer = send(request)
        nothing_found = (
            isinstance(request, Script) and request.name == "cancel_all" and not int(answer)
        )
        if nothing_found and registry.get(task.task_id).state is TaskState.DOWNLOADING:
            registry.fail(task.task_id, token, Reason("offline", "no answer"), transient=True)
        return answer

    monkeypatch.setattr(registry, "_send", failing_meanwhile)
    assert registry.cancel_all() == 6
    assert {record.state for record in registry.page()} == {TaskState.CANCELED}


def test_attempt_that_is_given_back_counts_no_failure_and_may_go_on_at_once(
    registry: TaskRegistry,
) -> None:
    task = make_task()
    post(registry, task)
    token = 0
    for number in range(6):
        (claim,) = registry.claim(1)
        token = claim.token
        registry.start(task.task_id, run_id=f"r{number}", machine="m", token=token)
        registry.give_back(task.task_id, token, Reason("interrupted", "stopped"))
        record = registry.get(task.task_id)
        assert (record.state, record.failures) == (TaskState.PENDING, 0)
    with pytest.raises(TransitionRefused):
        registry.ready(task.task_id, token, path="/x", machine="m")


def test_cancel_all_ends_while_tasks_move_and_come(registry: TaskRegistry, redis_url: str) -> None:
    tasks = [make_task() for _ in range(300)]
    post(registry, *tasks)
    ended = threading.Event()
    later: list[str] = []

    def work() -> None:
        with TaskRegistry.from_url(redis_url) as other:
            while not ended.is_set():
                for claim in other.claim(5):
                    with suppress(TransitionRefused):
                        other.fail(claim.task_id, claim.token, Reason("x", "x"), transient=True)
                task = make_task()
                post(other, task)
                later.append(task.task_id)

    worker = threading.Thread(target=work)
    worker.start()
    wait_for(lambda: len(later) > 3, "tasks that move")
    try:
        assert registry.cancel_all() >= len(tasks)
    finally:
        ended.set()
        worker.join(20)
    records = registry.get_many([task.task_id for task in tasks])
    assert {record.state for record in records if record} == {TaskState.CANCELED}


def test_cancel_of_an_ended_task_is_refused(registry: TaskRegistry) -> None:
    task = make_task()
    made_ready(registry, task)
    registry.report_outcome(task.task_id, Outcome.SUCCEEDED)
    with pytest.raises(TransitionRefused, match="it is succeeded"):
        registry.cancel(task.task_id)


def test_outcomes_count_once_and_another_one_is_refused(registry: TaskRegistry) -> None:
    task = make_task()
    with pytest.raises(UnknownTask):
        registry.report_outcome(task.task_id, Outcome.SUCCEEDED)
    made_ready(registry, task)
    for _ in range(2):
        registry.report_outcome(task.task_id, Outcome.WAITING)
        assert registry.status().waiting == 1
    for _ in range(2):
        registry.report_outcome(task.task_id, Outcome.FAILED, "no patch found")
    status = registry.status()
    assert (status.waiting, status.failed) == (0, 1)
    assert registry.get(task.task_id).reason == Reason("outcome", "no patch found")
    with pytest.raises(TransitionRefused):
        registry.report_outcome(task.task_id, Outcome.SUCCEEDED)


def test_failed_task_is_prepared_and_announced_again_on_retry(
    registry: TaskRegistry, client: Any
) -> None:
    task = make_task()
    made_ready(registry, task)
    registry.report_outcome(task.task_id, Outcome.FAILED)
    registry.retry(task.task_id)
    (claim,) = registry.claim(1)
    token = registry.start(task.task_id, run_id="2", machine="host", token=claim.token).token
    registry.ready(task.task_id, token, path="/tasks/x", machine="host")
    assert client.xlen(keys.READY) == 2


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.ERRORED])
def test_retry_announces_anew_exactly_once_and_asks_for_no_materialization_before(
    registry: TaskRegistry, client: Any, outcome: Outcome
) -> None:
    task = make_task()
    made_ready(registry, task)
    registry.report_outcome(task.task_id, outcome)
    registry.retry(task.task_id)
    assert registry.unmaterialized(older_than_ms=-60_000) == []
    (claim,) = registry.claim(1)
    token = registry.start(task.task_id, run_id="2", machine="host", token=claim.token).token
    for _ in range(3):
        registry.ready(task.task_id, token, path="/tasks/x", machine="host")
    assert [entry["task_id"] for _, entry in client.xrange(keys.READY)] == [task.task_id] * 2
    assert [entry.task_id for entry in registry.unmaterialized(older_than_ms=-60_000)] == [
        task.task_id
    ]


def test_start_by_hand_asks_for_no_materialization_before_the_task_is_ready(
    registry: TaskRegistry,
) -> None:
    task = make_task()
    made_ready(registry, task)
    registry.report_outcome(task.task_id, Outcome.ERRORED)
    registry.start(task.task_id, run_id="hand", machine="host")
    assert registry.unmaterialized(older_than_ms=-60_000) == []


def test_expiry_counts_as_errored_before_ready_and_as_failed_after(
    registry: TaskRegistry, client: Any
) -> None:
    early, late = make_task(), make_task()
    token = started(registry, early)
    made_ready(registry, late)
    for task in (early, late):
        client.zadd(keys.DEADLINES, {task.task_id: now_ms() - 1})
    assert set(registry.reap().expired) == {early.task_id, late.task_id}
    status = registry.status()
    assert (status.errored, status.failed) == (1, 1)
    assert status.states[TaskState.EXPIRED] == 2
    with pytest.raises(TransitionRefused):
        registry.renew(early.task_id, token)
    with pytest.raises(TransitionRefused):
        registry.retry(early.task_id)


def test_retry_past_the_deadline_is_refused_with_that_reason(registry: TaskRegistry) -> None:
    task = make_task(deadline_ms=now_ms() + 300)
    registry.fail(task.task_id, started(registry, task), Reason("x", "x"))

    def refused_for_its_deadline() -> bool:
        try:
            registry.retry(task.task_id)
        except TransitionRefused as refusal:
            return refusal.reason == Reason("deadline_passed", "its deadline has passed")
        registry.fail(task.task_id, registry.claim(1)[0].token, Reason("x", "x"))
        return False

    assert wait_for(refused_for_its_deadline, "a refusal for the deadline")


@pytest.mark.parametrize("errored", [False, True])
def test_start_by_hand_past_the_deadline_is_refused_with_that_reason(
    registry: TaskRegistry, errored: bool
) -> None:
    task = make_task(deadline_ms=now_ms() + 300)
    if errored:
        registry.fail(task.task_id, started(registry, task), Reason("x", "x"))
    else:
        post(registry, task)
    wait_for(lambda: now_ms() > task.deadline_ms, "the deadline")
    with pytest.raises(TransitionRefused, match="its deadline has passed") as refusal:
        registry.start(task.task_id, run_id="hand", machine="host")
    assert refusal.value.reason == Reason("deadline_passed", "its deadline has passed")
    state = TaskState.ERRORED if errored else TaskState.PENDING
    assert registry.get(task.task_id).state is state


# --- waiting, status, listings -----------------------------------------------------------------


def test_waiting_ends_when_a_task_is_posted(registry: TaskRegistry, redis_url: str) -> None:
    woken: list[bool] = []

    def wait() -> None:
        with TaskRegistry.from_url(redis_url) as other:
            woken.append(other.wait_for_work(20))

    waiter = threading.Thread(target=wait)
    waiter.start()
    post(registry, make_task())
    waiter.join(10)
    assert woken == [True]


def test_waiting_ends_by_itself_and_when_a_retry_falls_due(
    registry: TaskRegistry, client: Any
) -> None:
    assert registry.wait_for_work(0.05) is False
    task = make_task()
    token = started(registry, task)
    registry.fail(task.task_id, token, Reason("x", "x"), transient=True)
    client.delete(keys.DOORBELL)
    client.zadd(keys.DUE, {task.task_id: now_ms() + 200})
    client.zrem(keys.DEADLINES, task.task_id)
    wait_for(lambda: registry.wait_for_work(5) and registry.claim(1), "the task that fell due")


def test_what_one_claim_leaves_wakes_the_next_waiter(registry: TaskRegistry) -> None:
    post(registry, make_task(), make_task())
    assert registry.wait_for_work(1)
    registry.claim(1)
    assert registry.wait_for_work(1)
    assert len(registry.claim(1)) == 1


def test_status_counts_states_and_heartbeats(registry: TaskRegistry, client: Any) -> None:
    status = registry.status()
    assert status.sensor_seen_ms is None
    assert status.workers == 0
    registry.sensor_seen(needs_workers=True, free_slots=2)
    status = registry.status()
    assert status.needs_workers is True
    assert status.sensor_seen_ms is not None
    assert abs(status.sensor_seen_ms - status.now_ms) < 60_000


def test_reset_sets_the_counters_to_zero_and_since_to_now(
    registry: TaskRegistry, client: Any
) -> None:
    client.hset(keys.COUNTERS, "since", "1000")
    task = make_task()
    post(registry, task)
    registry.cancel(task.task_id)
    assert registry.status().since_ms == 1000
    registry.reset_counters()
    status = registry.status()
    assert status.canceled == 0
    assert status.now_ms - status.since_ms < 60_000
    assert status.states[TaskState.CANCELED] == 1


def test_pages_are_newest_first_and_go_on_after_a_task_that_changed_its_state(
    registry: TaskRegistry,
) -> None:
    tasks = [make_task() for _ in range(5)]
    for task in tasks:
        post(registry, task)
    newest_first = [task.task_id for task in reversed(tasks)]
    first = registry.page(limit=2)
    assert [record.task.task_id for record in first] == newest_first[:2]
    registry.cancel(newest_first[1])
    rest = registry.page(state=TaskState.PENDING, limit=10, after=newest_first[1])
    assert [record.task.task_id for record in rest] == newest_first[2:]
    everything = registry.page()
    assert [record.task.task_id for record in everything] == newest_first
    with pytest.raises(UnknownTask):
        registry.page(after=str(uuid.uuid4()))


@pytest.mark.parametrize("limit", [1, 2, 7, 30, 50])
def test_pages_over_states_of_different_lengths_are_newest_first(
    registry: TaskRegistry, limit: int
) -> None:
    tasks = [make_task() for _ in range(50)]
    for position, task in enumerate(tasks):
        post(registry, task)
        # One state holds the newest tasks, one the oldest, and one every fifth of the others.
        if position >= 35 or (position > 10 and position % 5 == 0):
            registry.cancel(task.task_id)
    for claim in registry.claim(10):
        if claim.task_id in {task.task_id for task in tasks[:5]}:
            registry.start(claim.task_id, token=claim.token, run_id="run", machine="here")
    found: list[str] = []
    while page := registry.page(limit=limit, after=found[-1] if found else None):
        assert len(page) == min(limit, len(tasks) - len(found))
        found += [record.task.task_id for record in page]
    assert found == [task.task_id for task in reversed(tasks)]


def test_page_holds_each_task_once_and_in_the_state_asked_for_while_tasks_move(
    registry: TaskRegistry, redis_url: str, client: Any
) -> None:
    tasks = [make_task() for _ in range(20)]
    post(registry, *tasks)
    ended = threading.Event()
    moves: list[str] = []

    def move() -> None:
        with TaskRegistry.from_url(redis_url) as other:
            while not ended.is_set():
                for claim in other.claim(20):
                    moves.append(claim.task_id)
                    client.set(keys.REAPER, now_ms())
                    client.zadd(keys.LEASES, {claim.task_id: 0})
                    other.reap()

    mover = threading.Thread(target=move)
    mover.start()
    try:
        for _ in range(150):
            everything = [record.task.task_id for record in registry.page()]
            assert everything == [task.task_id for task in reversed(tasks)]
            pending = registry.page(state=TaskState.PENDING)
            assert {record.state for record in pending} <= {TaskState.PENDING}
    finally:
        ended.set()
        mover.join(20)
    assert moves


def test_pages_longer_than_a_batch_are_whole(
    registry: TaskRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_api.operations.BATCH", 3)
    tasks = [make_task() for _ in range(10)]
    for number, task in enumerate(tasks):
        post(registry, task)
        if number % 3 == 0:
            registry.cancel(task.task_id)
    newest_first = [task.task_id for task in reversed(tasks)]
    for limit in (0, 1, 3, 4, 9, 10, 50):
        page = registry.page(limit=limit)
        assert [record.task.task_id for record in page] == newest_first[:limit]


def unreadable(registry: TaskRegistry, client: Any) -> Task:
    """A pending task whose metadata are nested beyond what Python reads."""
    task = make_task()
    post(registry, task)
    spec = client.hget(keys.TASK + task.task_id, "spec")
    deep = "[" * 100_000 + "]" * 100_000
    broken = spec.replace(json.dumps(dict(task.metadata)), '{"a": ' + deep + "}")
    assert deep in broken
    client.hset(keys.TASK + task.task_id, "spec", broken)
    return task


def test_record_that_cannot_be_read_is_shown_as_such_and_can_be_cancelled(
    registry: TaskRegistry, client: Any
) -> None:
    before, deep, after = make_task(), unreadable(registry, client), make_task()
    post(registry, before)
    post(registry, after)
    garbled = make_task()
    post(registry, garbled)
    client.hset(keys.TASK + garbled.task_id, "spec", "{}")
    lost = make_task()
    post(registry, lost)
    client.delete(keys.TASK + lost.task_id)
    no_text = make_task()
    post(registry, no_text)
    client.hset(keys.TASK + no_text.task_id, "machine", b"host-\xff")
    page = {record.task.task_id: record for record in registry.page()}
    assert set(page) == {one.task_id for one in (before, deep, after, garbled, no_text)}
    assert page[no_text.task_id].machine == "host-\\xff"
    assert page[before.task_id].defect is None
    assert page[before.task_id].task == before
    shown = page[deep.task_id]
    assert shown.defect == "its metadata is nested too deeply to be read"
    assert shown == registry.get(deep.task_id)
    assert shown.state is TaskState.PENDING
    assert shown.task.project_name == deep.project_name
    assert shown.task.deadline_ms == deep.deadline_ms
    assert page[garbled.task_id].defect == "its content cannot be read: KeyError"
    assert registry.cancel(deep.task_id) is True
    assert registry.get(deep.task_id).state is TaskState.CANCELED


def test_task_that_cannot_be_read_is_not_begun_and_says_why(
    registry: TaskRegistry, client: Any
) -> None:
    task = unreadable(registry, client)
    (claim,) = registry.claim(1)
    with pytest.raises(TransitionRefused, match="nested too deeply") as refusal:
        registry.start(task.task_id, run_id="run", machine="host", token=claim.token)
    assert refusal.value.state is TaskState.ERRORED
    record = registry.get(task.task_id)
    assert record.state is TaskState.ERRORED
    assert record.reason is not None
    assert record.reason.code == "unreadable"
    assert registry.claim(1) == []


def test_events_of_all_tasks_can_be_followed(registry: TaskRegistry) -> None:
    assert registry.last_event_id() == "0-0"
    task = make_task()
    post(registry, task)
    last = registry.last_event_id()
    registry.cancel(task.task_id)
    (event,) = registry.follow(last)
    assert (event.task_id, event.kind) == (task.task_id, "canceled")
    assert event.fields["from"] == "pending"
    assert registry.follow(event.id, block_seconds=0.01) == []


def test_reports_of_sources_show_in_the_record(registry: TaskRegistry) -> None:
    task = make_task()
    token = started(registry, task)
    registry.report_source(
        task.task_id, token, SourceType.REPO, "verified", sha256="a" * 64, bytes_=12, cache_hit=True
    )
    (report,) = registry.get(task.task_id).sources
    assert (report.state, report.bytes, report.cache_hit, report.hosts) == (
        "verified",
        12,
        True,
        ("files.example",),
    )


def test_no_event_and_no_stream_holds_a_urls_query(registry: TaskRegistry, client: Any) -> None:
    task = make_task()
    made_ready(registry, task)
    post(registry, task)
    registry.cancel(task.task_id)
    for key in client.scan_iter(match=keys.PREFIX + "*", _type="stream"):
        assert "signature" not in str(client.xrange(key))


# --- commands that arrive twice ----------------------------------------------------------------
#
# The client sends a command again when its connection broke; it may have been carried out.


def scheduled(registry: TaskRegistry, task: Task) -> int:
    post(registry, task)
    (claim,) = registry.claim(1)
    return claim.token


def errored(registry: TaskRegistry, task: Task) -> int:
    token = started(registry, task)
    registry.fail(task.task_id, token, Reason("x", "x"))
    return token


def posted(registry: TaskRegistry, task: Task) -> int:
    post(registry, task)
    return 0


def lapsed(registry: TaskRegistry, task: Task) -> int:
    registry.reap()
    token = started(registry, task)
    registry.renew(task.task_id, token, lease_ms=-1)
    return token


Prepare = Callable[[TaskRegistry, Task], int]
Call = Callable[[TaskRegistry, Task, int], Any]

CALLS: dict[str, tuple[Prepare, Call]] = {
    "accept": (lambda *_: 0, lambda r, task, _: post(r, task).accepted),
    "cancel": (posted, lambda r, task, _: r.cancel(task.task_id)),
    "cancel unknown": (lambda *_: 0, lambda r, task, _: r.cancel(task.task_id)),
    "cancel_all": (made_ready, lambda r, *_: r.cancel_all()),
    "claim": (posted, lambda r, *_: len(r.claim(1))),
    "start": (
        scheduled,
        lambda r, task, token: (
            r.start(task.task_id, run_id="run", machine="host", token=token).token
        ),
    ),
    "start by hand": (
        errored,
        lambda r, task, _: r.start(task.task_id, run_id="hand", machine="host").token,
    ),
    "renew": (started, lambda r, task, token: r.renew(task.task_id, token)),
    "confirm": (started, lambda r, task, token: r.confirm(task.task_id, token)),
    "report_source": (
        started,
        lambda r, task, token: r.report_source(
            task.task_id, token, SourceType.REPO, "verified", sha256="a" * 64, bytes_=12
        ),
    ),
    "ready": (
        started,
        lambda r, task, token: r.ready(task.task_id, token, path="/tasks/x", machine="host"),
    ),
    "fail": (started, lambda r, task, token: r.fail(task.task_id, token, Reason("x", "no"))),
    "fail for a while": (
        started,
        lambda r, task, token: r.fail(task.task_id, token, Reason("x", "no"), transient=True),
    ),
    "give_back": (
        started,
        lambda r, task, token: r.give_back(task.task_id, token, Reason("x", "told to end")),
    ),
    "retry": (errored, lambda r, task, _: r.retry(task.task_id)),
    "waiting": (made_ready, lambda r, task, _: r.report_outcome(task.task_id, Outcome.WAITING)),
    "succeeded": (
        made_ready,
        lambda r, task, _: r.report_outcome(task.task_id, Outcome.SUCCEEDED, "patched"),
    ),
    "errored": (made_ready, lambda r, task, _: r.report_outcome(task.task_id, Outcome.ERRORED)),
    "retire": (errored, lambda r, *_: len(r.retire(older_than_ms=0))),
    "trim_streams": (errored, lambda r, *_: r.trim_streams(older_than_ms=0)),
    "reap": (lapsed, lambda r, *_: len(r.reap().returned)),
    "sarif": (posted, lambda r, task, _: r.add_sarif(task.task_id, "s1", {"sarif": {}})),
    "reset_counters": (errored, lambda r, *_: r.reset_counters()),
    "sensor_seen": (
        lambda *_: 0,
        lambda r, *_: r.sensor_seen(needs_workers=True, free_slots=1),
    ),
    "initialize": (lambda *_: 0, lambda r, *_: r.initialize()),
}


def seen(registry: TaskRegistry, client: Any, task: Task) -> dict[str, Any]:
    """All that is recorded, but for times."""
    status = registry.status()
    record = registry.get_many([task.task_id])[0]
    return {
        "record": record
        and (record.state, record.token, record.failures, record.reason, record.run_id),
        "kinds": kinds(registry, task.task_id),
        "sizes": {state: size for state, size in status.states.items() if size},
        "counted": (status.succeeded, status.failed, status.errored, status.canceled),
        "waiting": (status.waiting, status.workers, status.needs_workers),
        "ready": client.xlen(keys.READY),
        "canceled": client.xlen(keys.CANCELED),
        "lists": (registry.removals(), client.zcard(keys.UNMATERIALIZED)),
        "timers": [client.zcard(key) for key in (keys.DUE, keys.LEASES, keys.DEADLINES)],
    }


@pytest.mark.parametrize("name", CALLS)
def test_call_whose_answer_is_lost_answers_and_changes_as_if_it_were_not(
    name: str, registry: TaskRegistry, shaky: TaskRegistry, proxy: LosingProxy, client: Any
) -> None:
    prepare, call = CALLS[name]
    task = make_task()
    expected_answer = call(registry, task, prepare(registry, task))
    expected = seen(registry, client, task)
    client.flushall()
    registry.initialize()

    token = prepare(registry, task)
    proxy.lose_next_answer()
    assert call(shaky, task, token) == expected_answer
    assert proxy.lost == 1
    assert seen(registry, client, task) == expected


def test_claim_whose_answer_is_lost_gives_what_it_took(
    registry: TaskRegistry, shaky: TaskRegistry, proxy: LosingProxy
) -> None:
    tasks = [make_task() for _ in range(3)]
    post(registry, *tasks)
    proxy.lose_next_answer()
    claims = shaky.claim(2)
    assert proxy.lost == 1
    assert len(claims) == 2
    for claim in claims:
        registry.start(claim.task_id, run_id="run", machine="host", token=claim.token)
    assert len(registry.claim(2)) == 1


def test_claim_that_a_frozen_redis_answers_too_late_is_given_by_the_next_call(
    own_redis: RedisServer,
) -> None:
    impatient = redis.Redis.from_url(own_redis.url, protocol=2, socket_timeout=0.3)
    with TaskRegistry(impatient) as registry, TaskRegistry.from_url(own_redis.url) as other:
        assert registry.claim(1) == []
        task = make_task()
        post(registry, task)
        own_redis.pause()
        with pytest.raises(RegistryUnavailable):
            registry.claim(1)
        own_redis.resume()
        wait_for(
            lambda: other.get(task.task_id).state is TaskState.SCHEDULED, "the claim that was late"
        )
        (claim,) = registry.claim(0)
        assert claim.task_id == task.task_id
        other.start(task.task_id, run_id="run", machine="host", token=claim.token)
        assert registry.claim(1) == []


def test_claim_that_comes_twice_gives_nothing_that_was_taken_away(
    registry: TaskRegistry, client: Any
) -> None:
    kept, canceled, returned = (make_task() for _ in range(3))
    post(registry, kept, canceled, returned)
    first = registry._run("claim", "request", 3, 60_000)
    assert len(first) == 6
    registry.cancel(canceled.task_id)
    ends_at_once(client, returned.task_id)
    registry.reap()
    assert registry._run("claim", "request", 3, 60_000) == [kept.task_id, "1"]
    assert registry.get(returned.task_id).state is TaskState.PENDING


def test_failure_may_be_told_again_whatever_became_of_the_task(
    registry: TaskRegistry, client: Any
) -> None:
    task = make_task()
    token = started(registry, task)
    reason = Reason("offline", "no answer")
    for _ in range(2):
        state = registry.fail(task.task_id, token, reason, transient=True)
        assert state is TaskState.PENDING
    client.zadd(keys.DUE, {task.task_id: 0})
    (claim,) = registry.claim(1)
    assert registry.fail(task.task_id, token, reason, transient=True) is TaskState.PENDING
    record = registry.get(task.task_id)
    assert (record.state, record.token, record.failures) == (TaskState.SCHEDULED, claim.token, 1)


def test_ready_may_be_told_again_when_a_consumer_was_quicker(
    registry: TaskRegistry, client: Any
) -> None:
    task = make_task()
    token = made_ready(registry, task)
    registry.report_outcome(task.task_id, Outcome.SUCCEEDED)
    registry.ready(task.task_id, token, path=f"/tasks/{task.task_id}", machine="host")
    assert registry.get(task.task_id).state is TaskState.SUCCEEDED
    assert client.xlen(keys.READY) == 1


def test_second_retry_of_a_person_is_refused(registry: TaskRegistry) -> None:
    task = make_task()
    errored(registry, task)
    registry.retry(task.task_id)
    with pytest.raises(TransitionRefused, match="it is pending"):
        registry.retry(task.task_id)


def test_same_report_of_another_attempt_is_another_event(
    registry: TaskRegistry, client: Any
) -> None:
    task = make_task()
    token = started(registry, task)
    registry.report_source(task.task_id, token, SourceType.REPO, "verified", bytes_=12)
    registry.fail(task.task_id, token, Reason("x", "x"), transient=True)
    client.zadd(keys.DUE, {task.task_id: 0})
    (claim,) = registry.claim(1)
    registry.start(task.task_id, run_id="2", machine="host", token=claim.token)
    registry.report_source(task.task_id, claim.token, SourceType.REPO, "verified", bytes_=12)
    assert kinds(registry, task.task_id).count("verified") == 2


# --- Redis in trouble --------------------------------------------------------------------------


def test_registry_of_a_newer_version_is_left_alone(registry: TaskRegistry, client: Any) -> None:
    client.set(keys.SCHEMA, keys.SCHEMA_VERSION + 1)
    with pytest.raises(SchemaMismatch, match="update buttercup-orchestrator"):
        registry.initialize()


def test_redis_away_is_said_and_everything_is_there_again_after_a_crash(
    own_redis: RedisServer, connected: Callable[[str], TaskRegistry]
) -> None:
    with connected(own_redis.url) as registry:
        registry.initialize()
        task = make_task()
        post(registry, task)
        own_redis.kill()
        with pytest.raises(RegistryUnavailable):
            registry.get(task.task_id)
        with pytest.raises(RegistryUnavailable):
            post(registry, make_task())
        own_redis.start()
        assert registry.get(task.task_id).task == task
        assert len(registry.claim(1)) == 1


def test_redis_that_refuses_writes_is_unavailable_and_nothing_is_half_done(
    registry: TaskRegistry,
    redis_url: str,
    client: Any,
    connected: Callable[[str], TaskRegistry],
) -> None:
    client.config_set("maxmemory", "1")
    task = make_task()
    try:
        with connected(redis_url) as refused, pytest.raises(RegistryUnavailable):
            post(refused, task)
    finally:
        client.config_set("maxmemory", "0")
    with pytest.raises(UnknownTask):
        registry.get(task.task_id)
    assert client.exists(keys.SEQUENCE) == 0


def test_scripts_are_sent_again_when_redis_forgot_them(
    redis_url: str, client: Any, connected: Callable[[str], TaskRegistry]
) -> None:
    with connected(redis_url) as registry:
        post(registry, make_task())
        client.script_flush()
        assert post(registry, make_task()).accepted


def test_redis_that_may_forget_is_warned_about(
    own_redis: RedisServer, connected: Callable[[str], TaskRegistry]
) -> None:
    with connected(own_redis.url) as registry, own_redis.client as client:
        assert registry.persistence_warning() is None
        client.config_set("appendfsync", "everysec")
        assert "last second" in str(registry.persistence_warning())
        client.config_set("appendonly", "no")
        assert "append-only" in str(registry.persistence_warning())


def test_managed_redis_that_refuses_config_is_not_warned_about(
    own_redis: RedisServer, connected: Callable[[str], TaskRegistry]
) -> None:
    with own_redis.client as client:
        client.acl_setuser(
            "tenant", enabled=True, passwords=["+pw"], commands=["+@all", "-config"], keys=["*"]
        )
    url = own_redis.url.replace("redis://", "redis://tenant:pw@")
    with connected(url) as registry:
        registry.initialize()
        assert registry.persistence_warning() is None
