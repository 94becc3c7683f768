"""A worker removes from its own machine what nobody wants there any more."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from buttercup_dagster import housekeeping
from buttercup_dagster.housekeeping import Housekeeping
from task_api.registry import TaskRegistry
from task_api.task import Outcome
from tests.buttercup_dagster.conftest import Bench
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for


@pytest.fixture
def keeping(bench: Bench, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The housekeeping of this machine, which looks far more often than it would."""
    monkeypatch.setattr(housekeeping, "PAUSE_SECONDS", 0.02)
    with TaskRegistry.from_url(redis_url) as registry:
        running = Housekeeping(registry, bench.engine())
        running.start()
        yield
        running.close()


def ready(bench: Bench) -> str:
    task = bench.task()
    assert bench.prepare(task).success
    return task.task_id


@pytest.mark.usefixtures("keeping")
def test_folders_of_cancelled_and_retired_tasks_go(bench: Bench) -> None:
    kept, canceled, judged = ready(bench), ready(bench), ready(bench)
    bench.registry.cancel(canceled)
    wait_for(lambda: not bench.tree(canceled).exists(), "the cancelled task's folder goes")
    wait_for(lambda: not bench.registry.removals(), "it is struck off the list")
    bench.registry.report_outcome(judged, Outcome.SUCCEEDED)
    assert set(bench.registry.retire(older_than_ms=0)) == {canceled, judged}
    wait_for(lambda: not bench.tree(judged).exists(), "the retired task's folder goes")
    assert bench.tree(kept).exists()
    assert bench.engine().check(kept) == []


def test_folders_on_another_machine_are_left_to_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    elsewhere = ready(bench)
    bench.registry.cancel(elsewhere)
    monkeypatch.setenv("BUTTERCUP_DOWNLOADER_MACHINE", "another")
    request.getfixturevalue("keeping")
    here = ready(bench)
    bench.registry.cancel(here)
    wait_for(lambda: bench.registry.removals() == [elsewhere], "this machine's folder goes")
    assert bench.tree(elsewhere).exists()


@pytest.mark.usefixtures("keeping")
def test_what_cannot_be_removed_is_told_once_and_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    task_id = ready(bench)
    in_the_way = bench.home / "tasks" / ".staging"
    in_the_way.rmdir()
    in_the_way.write_text("not a folder")
    bench.registry.cancel(task_id)
    wait_for(lambda: "it will be tried again" in caplog.text, "the problem is told")
    in_the_way.unlink()
    wait_for(lambda: not bench.tree(task_id).exists(), "the folder goes")
    told = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(told) == 1
    assert task_id in told[0].getMessage()


def test_redis_that_is_away_is_waited_for(
    bench: Bench, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "PAUSE_SECONDS", 0.02)
    bench.registry = TaskRegistry.from_url(own_redis.url)
    bench.registry.initialize()
    monkeypatch.setenv("BUTTERCUP_REDIS_URL", own_redis.url)
    with bench.registry, TaskRegistry.from_url(own_redis.url) as registry:
        task_id = ready(bench)
        bench.registry.cancel(task_id)
        own_redis.stop()
        running = Housekeeping(registry, bench.engine())
        running.start()
        own_redis.start()
        wait_for(lambda: not bench.tree(task_id).exists(), "the folder goes")
        running.close()
