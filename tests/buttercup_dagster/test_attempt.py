"""A claimed task from its claim to its end, with a real registry and real downloads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from buttercup_dagster.attempt import Attempt, AttemptFailed, Run, Withdrawn
from buttercup_dagster.engine import Engine
from task_api.registry import TaskRegistry
from task_api.task import RegistryUnavailable, Source, SourceType, TaskState
from tests.buttercup_dagster.conftest import FOCUS, Bench, failure_text
from tests.e2e.source_server import SIGNATURE
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for


def with_one_try(engine: Engine) -> Engine:
    """The same engine, that asks no server twice."""
    limits = replace(engine.options.fetch_limits, attempts=1)
    return replace(engine, options=replace(engine.options, fetch_limits=limits))


def run_of(token: int | None, lines: list[str] | None = None) -> Run:
    log = lines if lines is not None else []
    return Run(run_id="run-1", token=token, terminated=lambda: False, log=log.append)


def test_claimed_task_becomes_ready_and_materialized(bench: Bench) -> None:
    repo = bench.repo()
    task = bench.task(
        bench.source(SourceType.REPO, repo),
        bench.source(SourceType.FUZZ_TOOLING, bench.tooling()),
        bench.source(SourceType.DIFF, bench.diff(repo)),
    )
    assert bench.prepare(task).success
    record = bench.registry.get(task.task_id)
    assert record.state is TaskState.READY
    assert record.path == str(bench.tree(task.task_id))
    assert bench.announced(task.task_id) == 1
    for asset in ("repo", "fuzz_tooling", "diff", "prepared_task"):
        assert bench.materialized(asset) == {task.task_id}
    assert (bench.tree(task.task_id) / "src" / FOCUS / "main.c").is_file()
    assert bench.registry.unmaterialized(older_than_ms=-1000) == []
    assert bench.leftovers() == []


def test_absent_sources_give_no_materialization(bench: Bench) -> None:
    task = bench.task()
    assert bench.prepare(task).success
    assert bench.materialized("repo") == {task.task_id}
    assert bench.materialized("fuzz_tooling") == set()
    assert bench.materialized("diff") == set()


def test_metadata_shows_the_source_but_no_signature(bench: Bench) -> None:
    repo = bench.repo()
    result = bench.prepare(bench.task(bench.source(SourceType.REPO, repo)))
    (event,) = [
        event
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None and event.asset_key.path == ["repo"]
    ]
    materialization = event.materialization
    shown = {name: value.value for name, value in materialization.metadata.items()}
    assert shown["url_host"] == "127.0.0.1"
    assert shown["archive_bytes"] == repo.path.stat().st_size
    assert shown["files"] == len(repo.files)
    assert shown["cache_hit"] is False
    assert f"src/{FOCUS}/main.c" in str(shown["names"])
    assert {"fetch_seconds", "unpack_seconds", "link_seconds", "link_mode", "path"} <= set(shown)
    assert materialization.tags is not None
    assert materialization.tags["dagster/data_version"] == repo.sha256
    log = [str(entry) for entry in bench.instance.all_logs(result.run_id)]
    assert not any(SIGNATURE in line for line in log)


def test_second_task_with_the_same_source_hits_the_store(bench: Bench) -> None:
    source = bench.source(SourceType.REPO, bench.repo())
    bench.prepare(bench.task(source))
    result = bench.prepare(bench.task(source))
    assert result.success
    events = result.get_asset_materialization_events()
    (hit,) = {
        e.materialization.metadata["cache_hit"].value
        for e in events
        if e.asset_key is not None and e.asset_key.path == ["repo"]
    }
    assert hit is True
    assert sum(bench.sources.requests.values()) == 1


def test_wrong_digest_fails_the_run_and_errors_the_task(bench: Bench) -> None:
    source = replace(bench.source(SourceType.REPO, bench.repo()), sha256="0" * 64)
    task = bench.task(source)
    result = bench.prepare(task)
    assert not result.success
    text = failure_text(result)
    assert text.startswith("repo: ")
    assert "0" * 64 in text
    assert SIGNATURE not in text
    record = bench.registry.get(task.task_id)
    assert record.state is TaskState.ERRORED
    assert record.reason is not None
    assert (record.reason.code, record.reason.text) == ("digest_mismatch", text)
    assert bench.materialized("repo") == set()
    assert bench.leftovers() == []


def test_transient_failure_is_tried_again_later(bench: Bench) -> None:
    source = Source(SourceType.REPO, "1" * 64, ("http://127.0.0.1:9/repo.tar.gz?sig=x",))
    task = bench.task(source)
    task_id = bench.post(task)
    token = bench.claim(task_id)
    engine = bench.engine()
    engine = with_one_try(engine)
    with pytest.raises(AttemptFailed) as failure:
        Attempt(bench.registry, engine, task_id, run_of(token)).run()
    assert str(failure.value).endswith("the task will be tried again")
    record = bench.registry.get(task_id)
    assert record.state is TaskState.PENDING
    assert record.failures == 1
    assert record.not_before_ms is not None
    assert bench.registry.claim(1) == []


def test_urls_that_expire_before_another_try_end_the_task(bench: Bench) -> None:
    expires = int(time.time()) + 2
    url = f"http://127.0.0.1:9/repo.tar.gz?Expires={expires}&Signature=x"
    task_id = bench.post(bench.task(Source(SourceType.REPO, "1" * 64, (url,))))
    engine = bench.engine()
    engine = with_one_try(engine)
    with pytest.raises(AttemptFailed) as failure:
        Attempt(bench.registry, engine, task_id, run_of(bench.claim(task_id))).run()
    assert str(failure.value).endswith("the task will not be tried again")
    record = bench.registry.get(task_id)
    assert record.state is TaskState.ERRORED
    assert record.reason is not None
    assert record.reason.text.endswith(
        "expire before another try; post it with fresh ones, then retry"
    )


def test_timeline_tells_what_was_unpacked(bench: Bench) -> None:
    repo = bench.repo()
    task = bench.task(bench.source(SourceType.REPO, repo))
    bench.prepare(task)
    (source,) = bench.registry.get(task.task_id).sources
    assert (source.state, source.files) == ("unpacked", len(repo.files))
    assert source.bytes == repo.path.stat().st_size


def test_cancel_stops_a_download(bench: Bench) -> None:
    gate = threading.Event()
    repo = bench.repo(big=b"x" * 300_000)
    task = bench.task(bench.source(SourceType.REPO, repo, gate=gate))
    task_id = bench.post(task)
    token = bench.claim(task_id)
    ended = threading.Event()

    def execute() -> None:
        with pytest.raises(Withdrawn, match="canceled"):
            Attempt(bench.registry, bench.engine(), task_id, run_of(token)).run()
        ended.set()

    thread = threading.Thread(target=execute)
    thread.start()
    assert bench.sources.waiting.wait(10)
    bench.registry.cancel(task_id)
    # The server still holds back the rest.
    assert ended.wait(10)
    thread.join()
    assert bench.leftovers() == []
    assert not bench.tree(task_id).exists()
    assert bench.registry.get(task_id).state is TaskState.CANCELED
    assert bench.announced(task_id) == 0


def test_run_of_a_cancelled_task_ends_without_outputs(bench: Bench) -> None:
    task_id = bench.post(bench.task())
    token = bench.claim(task_id)
    bench.registry.cancel(task_id)
    result = bench.execute(task_id, token)
    assert result.success
    assert bench.materialized("prepared_task") == set()
    log = "\n".join(entry.user_message for entry in bench.instance.all_logs(result.run_id))
    assert "nothing to prepare" in log
    assert "canceled" in log


def test_stale_token_prepares_nothing(bench: Bench) -> None:
    task_id = bench.post(bench.task())
    token = bench.claim(task_id)
    result = bench.execute(task_id, token - 1)
    assert result.success
    assert bench.registry.get(task_id).state is TaskState.SCHEDULED
    assert not bench.tree(task_id).exists()


def test_deadline_ends_a_download(bench: Bench) -> None:
    gate = threading.Event()
    source = bench.source(SourceType.REPO, bench.repo(), gate=gate)
    task_id = bench.post(bench.task(source, seconds=2.5))
    result = bench.execute(task_id, bench.claim(task_id))
    assert result.success
    wait_for(
        lambda: (
            bench.registry.reap() is not None
            and bench.registry.get(task_id).state is TaskState.EXPIRED
        ),
        "expired",
    )
    assert not bench.tree(task_id).exists()


def test_redis_away_during_the_download_costs_only_time(
    bench: Bench, own_redis: RedisServer
) -> None:
    gate = threading.Event()
    source = bench.source(SourceType.REPO, bench.repo(big=b"y" * 200_000), gate=gate)
    task = bench.task(source)
    lines: list[str] = []
    with TaskRegistry.from_url(own_redis.url) as registry:
        registry.initialize()
        bench.registry = registry
        task_id = bench.post(task)
        token = bench.claim(task_id)
        results: list[object] = []
        attempt = Attempt(registry, bench.engine(), task_id, run_of(token, lines))
        thread = threading.Thread(target=lambda: results.append(attempt.run()))
        thread.start()
        assert bench.sources.waiting.wait(10)
        own_redis.kill()
        gate.set()
        wait_for(lambda: any("waiting for it" in line for line in lines), "the wait is logged")
        own_redis.start()
        thread.join(30)
        assert results
        assert registry.get(task_id).state is TaskState.READY
    assert "Redis answers again" in lines
    assert bench.tree(task_id).is_dir()


def test_redis_away_does_not_hold_up_the_other_sources(
    bench: Bench, own_redis: RedisServer
) -> None:
    """While one source waits to be reported, another one goes on and is unpacked."""
    gate = threading.Event()
    repo = bench.repo(big=b"y" * 200_000)
    task = bench.task(
        bench.source(SourceType.REPO, repo, gate=gate),
        bench.source(SourceType.FUZZ_TOOLING, bench.tooling()),
    )
    lines: list[str] = []
    with TaskRegistry.from_url(own_redis.url) as registry:
        registry.initialize()
        bench.registry = registry
        task_id = bench.post(task)
        attempt = Attempt(registry, bench.engine(), task_id, run_of(bench.claim(task_id), lines))
        thread = threading.Thread(target=attempt.run)
        thread.start()
        assert bench.sources.waiting.wait(10)
        own_redis.kill()
        gate.set()
        wait_for(
            lambda: any(line.startswith("repo: unpacked") for line in lines),
            "the repo is unpacked without Redis",
        )
        assert not bench.tree(task_id).exists()
        own_redis.start()
        thread.join(30)
        assert registry.get(task_id).state is TaskState.READY
        states = {source.type: source.state for source in registry.get(task_id).sources}
        assert set(states.values()) == {"unpacked"}


class LosesReplies:
    """A registry whose `ready` is carried out, and whose answer never arrives."""

    def __init__(self, registry: TaskRegistry, then: Callable[[str], object]) -> None:
        self._registry = registry
        self._then = then

    def __getattr__(self, name: str) -> Any:
        return getattr(self._registry, name)

    def ready(self, task_id: str, token: int, **where: Any) -> None:
        self._registry.ready(task_id, token, **where)
        self._then(task_id)
        raise RegistryUnavailable("Redis cannot be used: the reply is lost")


def test_announcement_whose_reply_is_lost_counts(bench: Bench) -> None:
    task_id = bench.post(bench.task())
    registry: Any = LosesReplies(bench.registry, lambda _: None)
    Attempt(registry, bench.engine(), task_id, run_of(bench.claim(task_id))).run()
    assert bench.registry.get(task_id).state is TaskState.READY
    assert bench.announced(task_id) == 1
    assert bench.tree(task_id).is_dir()


def test_cancel_while_the_reply_is_lost_removes_the_folder(bench: Bench) -> None:
    task_id = bench.post(bench.task())
    registry: Any = LosesReplies(bench.registry, bench.registry.cancel)
    with pytest.raises(Withdrawn, match="canceled"):
        Attempt(registry, bench.engine(), task_id, run_of(bench.claim(task_id))).run()
    assert not bench.tree(task_id).exists()


def test_second_attempt_after_a_lost_worker_wins(bench: Bench) -> None:
    """A worker that was thought dead publishes nothing once its task was taken over."""
    gate = threading.Event()
    repo = bench.repo(big=b"z" * 200_000)
    task_id = bench.post(bench.task(bench.source(SourceType.REPO, repo, gate=gate)))
    token = bench.claim(task_id)
    errors: list[BaseException] = []

    def first() -> None:
        try:
            Attempt(bench.registry, bench.engine(), task_id, run_of(token)).run()
        except Withdrawn as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    assert bench.sources.waiting.wait(10)
    # What the reaper and the next claim do to a task whose lease ran out.
    bench.registry._redis.hincrby(f"buttercup:task:{task_id}", "token", 1)
    thread.join(10)
    assert errors
    assert bench.announced(task_id) == 0
    assert not bench.tree(task_id).exists()
