"""A warm worker that is watched, killed, told to end, and asked for other things meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from buttercup_dagster.tags import WORKER_TAG
from task_api.task import TaskState
from tests.e2e.stack import Child, Stack
from tests.e2e.test_intake import Material, files_below
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

Success = dg.DagsterRunStatus.SUCCESS
Failure = dg.DagsterRunStatus.FAILURE
Canceled = dg.DagsterRunStatus.CANCELED


@pytest.fixture(scope="module")
def stack(warm_stack: Stack) -> Stack:
    return warm_stack


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, stack: Stack) -> Material:
    return Material(tmp_path_factory.mktemp("archives"), stack)


def process_of(slot: str) -> int:
    """Slots are called `machine/worker/process id`."""
    return int(slot.rpartition("/")[2])


def executor(stack: Stack, task_id: str) -> str:
    """The slot that prepares a task."""
    run_id = stack.registry.get(task_id).run_id
    assert run_id is not None
    slot = stack.workers.executor_of(run_id)
    assert slot is not None
    return slot


def slots_of(stack: Stack, count: int) -> list[str]:
    found: list[str] = []

    def look() -> bool:
        found[:] = stack.workers.live()
        return len(found) == count

    wait_for(look, f"{count} slots live", seconds=30)
    return found


def run_of(stack: Stack, run_id: str) -> dg.DagsterRun:
    with stack.instance() as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def test_further_tasks_become_runs_like_those_of_the_sensor(
    stack: Stack, material: Material
) -> None:
    tasks = [material.task() for _ in range(8)]
    for task in tasks:
        assert stack.post(task)[0] == 202
    runs = []
    for task in tasks:
        stack.wait_state(task["task_id"], TaskState.READY)
        runs.append(stack.wait_run(task["task_id"], Success))
        assert len(stack.runs(task["task_id"])) == 1
        assert len(stack.announced(task["task_id"])) == 1
        assert len(stack.materializations("prepared_task", task["task_id"])) == 1
    further = [run for run in runs if WORKER_TAG in run.tags]
    launched = [run for run in runs if WORKER_TAG not in run.tags]
    assert further
    assert launched
    for run in further:
        assert run.remote_job_origin == launched[0].remote_job_origin
        assert run.job_code_origin == launched[0].job_code_origin
        assert run.job_snapshot_id == launched[0].job_snapshot_id
        assert run.execution_plan_snapshot_id == launched[0].execution_plan_snapshot_id
        assert run.tags.keys() - {WORKER_TAG} == launched[0].tags.keys()
        assert run.tags["dagster/sensor_name"] == "intake_sensor"
        token = run.tags["buttercup/token"]
        assert run.tags["dagster/run_key"] == f"{run.tags['dagster/partition']}:{token}"


@pytest.mark.slow
def test_further_run_can_be_repeated_from_dagsters_pages(stack: Stack, material: Material) -> None:
    tasks = [material.task() for _ in range(6)]
    for task in tasks:
        stack.post(task)
    for task in tasks:
        stack.wait_state(task["task_id"], TaskState.READY)
    runs = [stack.wait_run(task["task_id"], Success) for task in tasks]
    further = next(run for run in runs if WORKER_TAG in run.tags)
    data = stack.graphql(
        """
        mutation($params: ReexecutionParams!) {
          launchRunReexecution(reexecutionParams: $params) {
            __typename
            ... on LaunchRunSuccess { run { runId } }
            ... on PythonError { message }
          }
        }
        """,
        params={"parentRunId": further.run_id, "strategy": "ALL_STEPS"},
    )["launchRunReexecution"]
    assert data["__typename"] == "LaunchRunSuccess", data
    again = stack.wait_run(further.tags["dagster/partition"], Success, count=2)
    assert again.parent_run_id == further.run_id
    assert len(stack.announced(further.tags["dagster/partition"])) == 1


def test_other_runs_are_executed_while_tasks_are_waiting(stack: Stack, material: Material) -> None:
    tasks = [material.task() for _ in range(40)]
    for task in tasks:
        stack.post(task)
    run_id = stack.launch("registry")
    wait_for(lambda: run_of(stack, run_id).status is Success, "the registry job has run")
    for task in tasks:
        stack.wait_state(task["task_id"], TaskState.READY, seconds=90)
    with stack.instance() as instance:
        record = instance.get_run_record_by_id(run_id)
    assert record is not None
    assert record.end_time is not None
    last = max(
        event.time_ms
        for task in tasks
        for event in stack.registry.events(task["task_id"])
        if event.kind == "ready"
    )
    assert record.end_time * 1000 < last, "the job had to wait for the last task"


def test_terminated_run_ends_as_canceled_and_its_process_goes_on(
    stack: Stack, material: Material
) -> None:
    task_id, _, gate = material.held_download()
    slot = executor(stack, task_id)
    stack.terminate_run(stack.runs(task_id)[0].run_id)
    stack.wait_run(task_id, Canceled)
    gate.set()
    assert stack.state(task_id) is TaskState.ERRORED
    assert slot in stack.workers.live()
    # The same processes take the next tasks.
    later = [material.task() for _ in range(4)]
    for task in later:
        stack.post(task)
    for task in later:
        stack.wait_state(task["task_id"], TaskState.READY)
    assert slot in stack.workers.live()


def test_killed_process_costs_its_task_only_time(stack: Stack, material: Material) -> None:
    task_id, archive, gate = material.held_download()
    slot = executor(stack, task_id)
    os.kill(process_of(slot), signal.SIGKILL)
    gate.set()
    stack.wait_state(task_id, TaskState.READY, seconds=60)
    assert files_below(stack.task_folder(task_id) / "src") == archive.files
    assert len(stack.announced(task_id)) == 1
    assert slot not in stack.workers.live()
    slots_of(stack, 2)
    # The lost run is told apart from one that goes on.
    lost = stack.runs(task_id)[-1]
    wait_for(
        lambda: run_of(stack, lost.run_id).status is Failure, "the lost run is failed", seconds=90
    )


def test_worker_that_is_told_to_end_finishes_what_it_does(stack: Stack, material: Material) -> None:
    task_id, _, gate = material.held_download()
    worker = stack.children["worker"]

    def takes_nothing() -> bool:
        status = stack.registry.status()
        return status.workers == status.occupied - status.lingering

    wait_for(lambda: not takes_nothing(), "the other slot waits for a task")
    os.kill(worker.pid, signal.SIGTERM)
    wait_for(takes_nothing, "no slot takes a task")
    waiting = material.task()
    stack.post(waiting)
    gate.set()
    wait_for(lambda: not worker.alive, "the worker has ended", seconds=60)
    assert worker.status == 0
    assert stack.state(task_id) is TaskState.READY
    stack.wait_run(task_id, Success)
    assert stack.workers.live() == []
    # Claimed for a slot that was about to end, it is claimed anew in time.
    assert stack.state(waiting["task_id"]) in {TaskState.PENDING, TaskState.SCHEDULED}
    status, text = stack.http("GET", "/status/")
    assert status == 200
    assert "no worker is running; start one with: buttercup-downloader serve" in text
    stack.start_worker()
    stack.wait_state(waiting["task_id"], TaskState.READY, seconds=60)


def restarted(stack: Stack, **settings: str) -> Child:
    """The worker, started anew with other settings."""
    stack.children["worker"].stop(60)
    wait_for(lambda: not stack.workers.live(), "no slot lives", seconds=30)
    return stack.start_worker(**settings)


@pytest.mark.slow
def test_worker_that_may_not_wait_interrupts_and_the_task_goes_on_elsewhere(
    stack: Stack, material: Material
) -> None:
    worker = restarted(stack, BUTTERCUP_DOWNLOADER_DRAIN_SECONDS="0")
    task_id, archive, gate = material.held_download()
    os.kill(worker.pid, signal.SIGTERM)
    wait_for(lambda: not worker.alive, "the worker has ended", seconds=60)
    record = stack.registry.get(task_id)
    # Perhaps claimed already for a slot that was about to end.
    assert record.state in {TaskState.PENDING, TaskState.SCHEDULED}
    assert record.failures == 0
    gate.set()
    stack.start_worker()
    stack.wait_state(task_id, TaskState.READY, seconds=60)
    assert files_below(stack.task_folder(task_id) / "src") == archive.files
    assert len(stack.announced(task_id)) == 1


@pytest.mark.slow
def test_killed_worker_takes_its_processes_along_and_the_next_one_goes_on(
    stack: Stack, material: Material
) -> None:
    task_id, _, gate = material.held_download()
    processes = [process_of(slot) for slot in slots_of(stack, 2)]
    worker = stack.children["worker"]
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: not worker.alive, "the worker has ended")
    wait_for(
        lambda: not any(Path(f"/proc/{process}").exists() for process in processes),
        "no process is left",
    )
    gate.set()
    stack.start_worker()
    stack.wait_state(task_id, TaskState.READY, seconds=60)
    assert len(stack.announced(task_id)) == 1


@pytest.mark.slow
def test_worn_processes_are_replaced_and_nothing_is_lost(stack: Stack, material: Material) -> None:
    log = stack.folder / "worker.log"
    before_bytes = log.stat().st_size
    restarted(stack, BUTTERCUP_DOWNLOADER_RUNS_PER_PROCESS="2")
    before = set(slots_of(stack, 2))
    tasks = [material.task() for _ in range(10)]
    for task in tasks:
        stack.post(task)
    for task in tasks:
        stack.wait_state(task["task_id"], TaskState.READY, seconds=90)
        stack.wait_run(task["task_id"], Success)
        assert len(stack.runs(task["task_id"])) == 1
    after = set(slots_of(stack, 2))
    assert not before & after
    said = log.read_bytes()[before_bytes:].decode()
    assert "exited prematurely" not in said
    assert "Traceback" not in said
    restarted(stack)


@pytest.mark.slow
def test_two_workers_share_a_burst(stack: Stack, material: Material) -> None:
    stack.start_worker("second", BUTTERCUP_DOWNLOADER_MAX_RUNS="1")
    try:
        slots = slots_of(stack, 3)
        tasks = [material.task() for _ in range(30)]
        for task in tasks:
            stack.post(task)
        seen: set[str] = set()

        def all_ready() -> bool:
            states = [stack.registry.get(task["task_id"]) for task in tasks]
            for record in states:
                if record.run_id and (slot := stack.workers.executor_of(record.run_id)):
                    seen.add(slot)
            return all(record.state is TaskState.READY for record in states)

        wait_for(all_ready, "all are ready", seconds=90)
        assert seen == set(slots)
        for task in tasks:
            assert len(stack.announced(task["task_id"])) == 1
    finally:
        stack.children["second"].stop(60)


@pytest.mark.slow
def test_redis_that_restarts_between_runs_is_found_again(stack: Stack, material: Material) -> None:
    stack.redis.kill()
    stack.redis.start()
    task = material.task()
    wait_for(lambda: stack.post(task)[0] == 202, "the server accepts again", seconds=30)
    stack.wait_state(task["task_id"], TaskState.READY, seconds=60)
    # The launcher's and Celery's connections work, too.
    run_id = stack.launch("registry")
    wait_for(lambda: run_of(stack, run_id).status is Success, "the registry job has run")


@pytest.mark.slow
def test_interrupt_of_one_run_hits_no_other(stack: Stack, material: Material) -> None:
    held = [material.held_download() for _ in range(2)]
    stack.terminate_run(stack.runs(held[0][0])[0].run_id)
    stack.wait_run(held[0][0], Canceled)
    for _, _, gate in held:
        gate.set()
    stack.wait_state(held[1][0], TaskState.READY)
    stack.wait_run(held[1][0], Success)


def worker_alone(env: dict[str, str], folder: Path, **changes: str) -> Any:
    """Run `serve` to its end; its status and what it said."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "buttercup-downloader"), "serve"],
        env={**env, **changes},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_serve_without_an_instance_says_what_to_do(stack: Stack, tmp_path: Path) -> None:
    env = {name: value for name, value in stack.env.items() if name != "DAGSTER_HOME"}
    status, said = worker_alone(env, tmp_path, BUTTERCUP_HOME=str(tmp_path))
    assert status == 2
    assert "DAGSTER_HOME" in said
    assert "Traceback" not in said


def test_serve_on_an_instance_with_another_launcher_says_what_to_do(
    stack: Stack, tmp_path: Path
) -> None:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    status, said = worker_alone(stack.env, tmp_path, DAGSTER_HOME=str(tmp_path))
    assert status == 2
    assert "WarmRunLauncher" in said


def test_serve_without_redis_says_so(stack: Stack, tmp_path: Path) -> None:
    url = "redis://127.0.0.1:1"
    status, said = worker_alone(stack.env, tmp_path, BUTTERCUP_REDIS_URL=url)
    assert status == 1
    assert "redis://127.0.0.1:1" in said
    assert "Traceback" not in said
