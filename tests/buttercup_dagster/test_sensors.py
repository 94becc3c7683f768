"""The intake sensor and the reconciler, each ticked as the daemon ticks them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from buttercup_dagster import intake, reconcile
from buttercup_dagster.definitions import defs
from buttercup_dagster.intake import take_turn
from buttercup_dagster.resources import Downloader
from buttercup_dagster.sensors import intake_sensor, reconcile_sensor
from buttercup_dagster.sources.stop import Stop
from task_api.registry import TaskRegistry
from task_api.task import TaskState
from task_api.workers import Workers
from tests.buttercup_dagster.conftest import Bench
from tests.support.redis_server import RedisServer
from tests.support.tasks import make_task, post
from tests.support.waiting import wait_for


def tick(bench: Bench, sensor: Any) -> Any:
    context = dg.build_sensor_context(
        instance=bench.instance,
        instance_ref=bench.instance.get_ref(),
        definitions=defs,
        resources={"downloader": Downloader()},
    )
    with context:
        return sensor.evaluate_tick(context)


@pytest.fixture
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that finds nothing ends after half a second."""
    monkeypatch.setattr(intake, "TURN_SECONDS", 0.5)


def test_sensors_run_without_a_click() -> None:
    for sensor in (intake_sensor, reconcile_sensor):
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    assert intake.TURN_SECONDS < 20


def test_pending_tasks_become_runs_up_to_the_limit(bench: Bench) -> None:
    ids = [bench.post(bench.task()) for _ in range(3)]
    result = tick(bench, intake_sensor)
    claimed = [request.partition_key for request in result.run_requests]
    # Tasks that came within the same millisecond are claimed in any order.
    (left,) = set(ids) - set(claimed)
    assert len(claimed) == 2
    for request in result.run_requests:
        token = bench.registry.get(request.partition_key).token
        assert request.run_key == f"{request.partition_key}:{token}"
        assert request.tags["buttercup/token"] == str(token)
    (added,) = result.dynamic_partitions_requests
    assert list(added.partition_keys) == claimed
    assert bench.registry.get(left).state is TaskState.PENDING
    # The instance is the daemon's to change, after the tick.
    assert bench.instance.get_dynamic_partitions("tasks") == []


def test_no_run_is_started_above_the_limit(bench: Bench, short_turns: None) -> None:
    for _ in range(3):
        bench.post(bench.task())
    assert len(bench.registry.claim(2)) == 2
    result = tick(bench, intake_sensor)
    assert not result.run_requests
    assert result.skip_message == "2 of 2 attempts under way, 1 task waiting"


def test_run_that_died_with_its_machine_keeps_no_task_waiting(bench: Bench) -> None:
    """Dagster shows such a run as started until its longest runtime is over."""
    job = defs.resolve_job_def("ingest")
    for _ in range(2):
        bench.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    task_id = bench.post(bench.task())
    result = tick(bench, intake_sensor)
    assert [request.partition_key for request in result.run_requests] == [task_id]


def test_tasks_folder_in_a_git_work_tree_stops_the_intake(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / ".git").mkdir(parents=True)
    monkeypatch.setenv("BUTTERCUP_DOWNLOADER_TASKS_DIR", str(tmp_path / "project" / "tasks"))
    task_id = bench.post(bench.task())
    message = tick(bench, intake_sensor).skip_message
    assert f"lies in the git work tree {tmp_path / 'project'}" in message
    assert "BUTTERCUP_DOWNLOADER_TASKS_DIR" in message
    assert bench.registry.get(task_id).state is TaskState.PENDING


def test_idle_tick_says_so_and_is_seen(bench: Bench, short_turns: None) -> None:
    assert bench.registry.status().sensor_seen_ms is None
    assert tick(bench, intake_sensor).skip_message == "no task pending"
    assert bench.registry.status().sensor_seen_ms is not None


def test_task_posted_during_a_turn_is_claimed_at_once(bench: Bench) -> None:
    turns: list[intake.Turn] = []

    def turn() -> None:
        turns.append(take_turn(bench.registry, max_runs=2, seconds=20))

    thread = threading.Thread(target=turn)
    thread.start()
    wait_for(lambda: bench.registry.status().sensor_seen_ms, "the turn has begun")
    task_id = bench.post(bench.task())
    thread.join(20)
    assert [claim.task_id for claim in turns[0].claims] == [task_id]


def test_turn_claims_no_more_than_can_be_started_in_time(bench: Bench, redis_url: str) -> None:
    with Workers.from_url(redis_url) as workers:
        for number in range(intake.MOST_CLAIMS + 2):
            workers.announce(f"m/{number}", occupied=False)
    post(bench.registry, *[make_task() for _ in range(intake.MOST_CLAIMS + 1)])
    turn = take_turn(bench.registry, max_runs=None, seconds=1)
    assert len(turn.claims) == intake.MOST_CLAIMS
    assert len(take_turn(bench.registry, max_runs=None, seconds=1).claims) == 1


def test_lapsed_claim_is_claimed_again(bench: Bench) -> None:
    task_id = bench.post(bench.task())
    bench.registry.reap()
    (first,) = bench.registry.claim(1, lease_ms=1)
    turn = take_turn(bench.registry, max_runs=1, seconds=30)
    (second,) = turn.claims
    assert second.task_id == task_id
    assert second.token > first.token


def test_turn_without_redis_ends_in_time_and_says_why(bench: Bench, own_redis: RedisServer) -> None:
    with TaskRegistry.from_url(own_redis.url) as registry:
        own_redis.kill()
        turn = take_turn(registry, max_runs=2, seconds=1)
        assert not turn.claims
        assert "Redis cannot be used" in turn.saw
        assert turn.saw.endswith("waiting for it")


def test_tick_without_redis_is_skipped_not_failed(
    bench: Bench, own_redis: RedisServer, short_turns: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_redis.kill()
    monkeypatch.setenv("BUTTERCUP_REDIS_URL", own_redis.url)
    for sensor in (intake_sensor, reconcile_sensor):
        assert "waiting for it" in tick(bench, sensor).skip_message


# --- the reconciler --------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has not confirmed its materialization by now will not do it."""
    monkeypatch.setattr(reconcile, "UNCONFIRMED_MS", -1000)


def make_ready(bench: Bench) -> str:
    """A task whose run announced it and died before Dagster learnt of it."""
    task = bench.task()
    task_id = bench.post(task)
    token = bench.claim(task_id)
    attempt = bench.registry.start(
        task_id, run_id="gone", machine=bench.engine().machine, token=token
    )
    bench.engine().prepare(
        task,
        stop=Stop(),
        announce=lambda path: bench.registry.ready(
            task_id, attempt.token, path=str(path), machine=bench.engine().machine
        ),
    )
    return task_id


def test_missing_materialization_is_added(bench: Bench, at_once: None) -> None:
    task_id = make_ready(bench)
    result = tick(bench, reconcile_sensor)
    (added,) = result.dynamic_partitions_requests
    assert list(added.partition_keys) == [task_id]
    assert {event.asset_key.to_user_string() for event in result.asset_events} == {
        "repo",
        "prepared_task",
    }
    # What the daemon does with the result.
    bench.instance.add_dynamic_partitions("tasks", [task_id])
    for event in result.asset_events:
        bench.instance.report_runless_asset_event(event)
    assert bench.materialized("prepared_task") == {task_id}
    # The next tick finds it and asks no more.
    assert tick(bench, reconcile_sensor).skip_message == "materializations confirmed: 1"
    assert tick(bench, reconcile_sensor).skip_message == "everything in line"


def test_run_that_just_announced_is_left_to_add_its_materialization(bench: Bench) -> None:
    task_id = make_ready(bench)
    assert tick(bench, reconcile_sensor).skip_message == "everything in line"
    assert [entry.task_id for entry in bench.registry.unmaterialized(older_than_ms=-1000)] == [
        task_id
    ]


def test_folder_of_a_task_cancelled_after_ready_is_removed(bench: Bench) -> None:
    task = bench.task()
    bench.prepare(task)
    bench.registry.cancel(task.task_id)
    assert tick(bench, reconcile_sensor).skip_message == "folders removed: 1"
    assert not bench.tree(task.task_id).exists()
    assert bench.registry.removals() == []


def test_folder_on_another_machine_is_left_to_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = bench.task()
    bench.prepare(task)
    bench.registry.cancel(task.task_id)
    monkeypatch.setenv("BUTTERCUP_DOWNLOADER_MACHINE", "another")
    tick(bench, reconcile_sensor)
    assert bench.tree(task.task_id).exists()
    assert bench.registry.removals() == [task.task_id]
