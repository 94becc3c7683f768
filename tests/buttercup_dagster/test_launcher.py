"""The launcher of warm workers, and what dagster-celery's own one does instead."""

from __future__ import annotations

import inspect
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.instance import InstanceRef
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._serdes import deserialize_value, serialize_value
from dagster_celery.launcher import CeleryRunLauncher

from buttercup_dagster import launcher as launcher_module
from buttercup_dagster.launcher import EXECUTE_RUN, WarmRunLauncher
from task_api import keys
from task_api.workers import Workers
from tests.support.redis_server import RedisServer


@pytest.fixture
def instance(tmp_path: Path, redis_url: str) -> Iterator[dg.DagsterInstance]:
    settings = {
        "telemetry": {"enabled": False},
        "run_launcher": {
            "module": "buttercup_dagster.launcher",
            "class": "WarmRunLauncher",
            "config": {"redis_url": redis_url},
        },
    }
    (tmp_path / "dagster.yaml").write_text(json.dumps(settings), "utf-8")
    with dg.DagsterInstance.from_config(str(tmp_path)) as opened:
        yield opened


@pytest.fixture
def launcher(instance: dg.DagsterInstance) -> WarmRunLauncher:
    found = instance.run_launcher
    assert isinstance(found, WarmRunLauncher)
    return found


@pytest.fixture
def workers(redis_url: str, registry: Any) -> Iterator[Workers]:
    with Workers.from_url(redis_url) as opened:
        yield opened


def recorded(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    run = dg.DagsterRun(job_name="ingest", run_id=str(uuid.uuid4()), status=status)
    return instance.add_run(run)


def status_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def test_celery_task_has_the_id_of_the_run_and_no_tag_is_written(
    instance: dg.DagsterInstance, launcher: WarmRunLauncher, registry: Any
) -> None:
    run = recorded(instance, dg.DagsterRunStatus.STARTING)
    launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    (message,) = registry._redis.lrange(keys.RUN_QUEUE, 0, -1)
    headers = json.loads(message)["headers"]
    assert (headers["id"], headers["task"]) == (run.run_id, EXECUTE_RUN)
    stored = instance.get_run_by_id(run.run_id)
    assert stored is not None
    assert stored.tags == run.tags


def test_run_is_queued_also_when_redis_has_forgotten_the_queue(
    instance: dg.DagsterInstance, launcher: WarmRunLauncher, registry: Any
) -> None:
    """Celery tells Redis of a queue once for each connection."""
    for _ in range(2):
        registry._redis.flushall()
        run = recorded(instance, dg.DagsterRunStatus.STARTING)
        launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
        assert registry._redis.llen(keys.RUN_QUEUE) == 1


def test_message_holds_no_settings_of_the_instance(
    instance: dg.DagsterInstance, launcher: WarmRunLauncher, registry: Any
) -> None:
    run = recorded(instance, dg.DagsterRunStatus.STARTING)
    launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    (message,) = registry._redis.lrange(keys.RUN_QUEUE, 0, -1)
    assert b"dagster.yaml" not in message
    assert launcher.redis_url.encode() not in message


def test_launch_without_redis_fails_and_says_so(tmp_path: Path) -> None:
    with RedisServer() as server:
        url = server.url
    settings = {
        "telemetry": {"enabled": False},
        "run_launcher": {
            "module": "buttercup_dagster.launcher",
            "class": "WarmRunLauncher",
            "config": {"redis_url": url},
        },
    }
    (tmp_path / "dagster.yaml").write_text(json.dumps(settings), "utf-8")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        run = recorded(instance, dg.DagsterRunStatus.STARTING)
        context = LaunchRunContext(dagster_run=run, workspace=None)
        with pytest.raises(Exception, match="refused"):
            instance.run_launcher.launch_run(context)


def test_terminated_run_that_a_worker_executes_is_canceling_and_the_worker_is_told(
    instance: dg.DagsterInstance, launcher: WarmRunLauncher, workers: Workers
) -> None:
    run = recorded(instance, dg.DagsterRunStatus.STARTED)
    workers.announce("m/1", occupied=True, run_id=run.run_id)
    assert launcher.terminate(run.run_id) is True
    assert status_of(instance, run) is dg.DagsterRunStatus.CANCELING
    assert workers.announce("m/1", occupied=True, run_id=run.run_id) is True


@pytest.mark.parametrize(
    "status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED], ids=str
)
def test_terminated_run_that_nobody_executes_is_canceled_at_once_and_never_begun(
    instance: dg.DagsterInstance,
    launcher: WarmRunLauncher,
    workers: Workers,
    status: dg.DagsterRunStatus,
) -> None:
    run = recorded(instance, status)
    assert launcher.terminate(run.run_id) is True
    assert status_of(instance, run) is dg.DagsterRunStatus.CANCELED
    assert workers.announce("m/1", occupied=True, run_id=run.run_id) is True
    assert workers.executor_of(run.run_id) is None


def test_terminate_of_what_has_ended_changes_nothing(
    instance: dg.DagsterInstance, launcher: WarmRunLauncher
) -> None:
    run = recorded(instance, dg.DagsterRunStatus.SUCCESS)
    assert launcher.terminate(run.run_id) is False
    assert launcher.terminate(str(uuid.uuid4())) is False
    assert status_of(instance, run) is dg.DagsterRunStatus.SUCCESS


def test_run_of_a_live_worker_is_healthy(
    instance: dg.DagsterInstance, launcher: WarmRunLauncher, workers: Workers
) -> None:
    run = recorded(instance, dg.DagsterRunStatus.STARTED)
    workers.announce("m/1", occupied=True, run_id=run.run_id)
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_run_whose_machine_is_gone_is_failed_at_the_second_look(
    instance: dg.DagsterInstance,
    launcher: WarmRunLauncher,
    registry: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = recorded(instance, dg.DagsterRunStatus.STARTED)
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    monkeypatch.setattr(launcher_module, "GONE_SECONDS", 0.0)
    health = launcher.check_run_worker_health(run)
    assert health.status is WorkerStatus.FAILED
    assert "gone" in (health.msg or "")


def test_worker_that_comes_back_after_an_outage_keeps_its_run(
    instance: dg.DagsterInstance,
    launcher: WarmRunLauncher,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = recorded(instance, dg.DagsterRunStatus.STARTED)
    launcher.check_run_worker_health(run)
    workers.announce("m/1", occupied=True, run_id=run.run_id)
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    workers.finished(run.run_id)
    # It is looked for anew, not from the first time on.
    assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_nothing_is_said_against_a_run_while_redis_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher_module, "GONE_SECONDS", 0.0)
    with RedisServer() as server:
        url = server.url
    launcher = WarmRunLauncher(url)
    run = dg.DagsterRun(job_name="ingest", run_id=str(uuid.uuid4()))
    for _ in range(2):
        assert launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
    assert "Redis" in (launcher.get_run_worker_debug_info(run) or "")
    launcher.dispose()


def test_who_executes_a_run_is_told_to_people(
    instance: dg.DagsterInstance, launcher: WarmRunLauncher, workers: Workers
) -> None:
    run = recorded(instance, dg.DagsterRunStatus.STARTED)
    assert launcher.get_run_worker_debug_info(run) == (
        "no live worker executes it; live workers: none"
    )
    workers.announce("m/1", occupied=True, run_id=run.run_id)
    assert launcher.get_run_worker_debug_info(run) == ("it is executed by m/1; live workers: m/1")


def test_launcher_is_made_by_the_instance_and_survives_the_way_to_another_process(
    instance: dg.DagsterInstance, launcher: WarmRunLauncher
) -> None:
    packed = deserialize_value(serialize_value(instance.get_ref()), InstanceRef)
    again = dg.DagsterInstance.from_ref(packed)
    with again:
        assert isinstance(again.run_launcher, WarmRunLauncher)
        assert again.run_launcher.redis_url == launcher.redis_url


class TestStockLauncher:
    """What dagster-celery's launcher does, for which ours exists; a test that fails here tells that
    a part of ours may go."""

    def test_it_gives_celery_an_id_of_its_own_and_writes_a_tag(self) -> None:
        launching = inspect.getsource(CeleryRunLauncher._launch_celery_task_run)
        assert "task_id=" not in launching.replace("result.task_id", "")
        assert "add_run_tags" in launching

    def test_its_terminate_does_not_say_that_the_run_is_canceled(self) -> None:
        assert "report_run_cancel" not in inspect.getsource(CeleryRunLauncher.terminate)

    def test_it_promises_to_resume_and_cannot(self) -> None:
        stock = CeleryRunLauncher(default_queue="q", broker="memory://", backend="disabled://")
        assert stock.supports_resume_run is True
        assert WarmRunLauncher.supports_resume_run.fget is not None  # type: ignore[attr-defined]
        resuming = inspect.getsource(CeleryRunLauncher.resume_run)
        assert "execute_job_args_packed" in resuming
        assert "resume_job_args_packed" not in resuming

    def test_its_health_check_believes_a_result_that_nobody_takes_back(self) -> None:
        checking = inspect.getsource(CeleryRunLauncher.check_run_worker_health)
        assert '"STARTED"' in checking
        assert "ping" not in checking

    def test_what_ours_takes_from_it_is_there(self) -> None:
        accepted = inspect.signature(CeleryRunLauncher.__init__).parameters
        assert {"default_queue", "broker", "config_source", "inst_data"} <= accepted.keys()


def test_ours_does_not_resume(launcher: WarmRunLauncher) -> None:
    assert launcher.supports_resume_run is False
    assert launcher.supports_check_run_worker_health is True
