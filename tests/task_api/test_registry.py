"""The registry against a real Redis: what a caller sees of each move."""

from __future__ import annotations

import threading
import uuid
from dataclasses import replace
from typing import Any

import pytest
import redis

from task_api import keys
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
    registry.announce_worker("w1")
    registry.announce_worker("w2")
    client.zadd(keys.WORKERS, {"w2": now_ms() - 1})
    status = registry.status()
    assert status.needs_workers is True
    assert status.workers == 1
    assert status.sensor_seen_ms is not None
    assert abs(status.sensor_seen_ms - status.now_ms) < 60_000
    registry.retire_worker("w1")
    assert registry.status().workers == 0


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


# --- Redis in trouble --------------------------------------------------------------------------


def test_registry_of_a_newer_version_is_left_alone(registry: TaskRegistry, client: Any) -> None:
    client.set(keys.SCHEMA, keys.SCHEMA_VERSION + 1)
    with pytest.raises(SchemaMismatch, match="update buttercup-orchestrator"):
        registry.initialize()


def test_redis_away_is_said_and_everything_is_there_again_after_a_crash(
    own_redis: RedisServer,
) -> None:
    with TaskRegistry.from_url(own_redis.url) as registry:
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
    registry: TaskRegistry, client: Any
) -> None:
    client.config_set("maxmemory", "1")
    task = make_task()
    try:
        with pytest.raises(RegistryUnavailable):
            post(registry, task)
    finally:
        client.config_set("maxmemory", "0")
    with pytest.raises(UnknownTask):
        registry.get(task.task_id)
    assert client.exists(keys.SEQUENCE) == 0


def test_scripts_are_sent_again_when_redis_forgot_them(registry: TaskRegistry, client: Any) -> None:
    post(registry, make_task())
    client.script_flush()
    assert post(registry, make_task()).accepted


def test_redis_that_may_forget_is_warned_about(own_redis: RedisServer) -> None:
    with TaskRegistry.from_url(own_redis.url) as registry, own_redis.client as client:
        assert registry.persistence_warning() is None
        client.config_set("appendfsync", "everysec")
        assert "last second" in str(registry.persistence_warning())
        client.config_set("appendonly", "no")
        assert "append-only" in str(registry.persistence_warning())
