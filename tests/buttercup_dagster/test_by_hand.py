"""Pressing Materialize in Dagster's UI, for a task in each of its states."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from task_api.task import Outcome, Reason, SourceType, TaskState
from tests.buttercup_dagster.conftest import FOCUS, Bench, failure_text


def test_pending_task_is_claimed_and_prepared(bench: Bench) -> None:
    task_id = bench.post(bench.task())
    assert bench.execute(task_id).success
    assert bench.registry.get(task_id).state is TaskState.READY
    assert bench.announced(task_id) == 1


def test_errored_task_is_prepared_again(bench: Bench) -> None:
    repo = bench.repo()
    broken = replace(bench.source(SourceType.REPO, repo, refusals=[404]))
    task = bench.task(broken)
    assert not bench.prepare(task).success
    assert bench.registry.get(task.task_id).state is TaskState.ERRORED
    assert bench.execute(task.task_id).success
    assert bench.registry.get(task.task_id).state is TaskState.READY


@pytest.mark.parametrize("outcome", [None, Outcome.SUCCEEDED, Outcome.FAILED])
def test_announced_task_is_mended_and_not_announced_again(
    bench: Bench, outcome: Outcome | None
) -> None:
    task = bench.task()
    task_id = task.task_id
    bench.prepare(task)
    if outcome is not None:
        bench.registry.report_outcome(task_id, outcome)
    state = bench.registry.get(task_id).state
    file = bench.tree(task_id) / "src" / FOCUS / "main.c"
    before = file.read_bytes()
    file.unlink()
    assert bench.execute(task_id).success
    assert file.read_bytes() == before
    assert bench.registry.get(task_id).state is state
    assert bench.announced(task_id) == 1


def test_intact_folder_stays_where_it_is(bench: Bench) -> None:
    task = bench.task()
    bench.prepare(task)
    inode = bench.tree(task.task_id).stat().st_ino
    result = bench.execute(task.task_id)
    assert result.success
    assert bench.tree(task.task_id).stat().st_ino == inode
    (event,) = [
        event
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None and event.asset_key.path == ["repo"]
    ]
    metadata = event.materialization.metadata
    assert metadata["checked"].value == "compared with what was prepared: no difference"
    # What the first run measured is still shown.
    assert metadata["files"].value == 2


def test_re_execution_of_a_finished_run_is_by_hand(bench: Bench) -> None:
    """Dagster copies the tags of a run, the claim's token among them, to its re-execution."""
    task = bench.task()
    task_id = bench.post(task)
    token = bench.claim(task_id)
    first = bench.execute(task_id, token)
    again = bench.execute(
        task_id,
        token,
        **{"dagster/parent_run_id": first.run_id, "dagster/root_run_id": first.run_id},
    )
    assert again.success
    assert len(bench.instance.get_runs()) == 2
    assert again.get_asset_materialization_events()


def test_task_under_way_is_left_to_its_run(bench: Bench) -> None:
    task_id = bench.post(bench.task())
    bench.registry.start(
        task_id, run_id="run-of-somebody", machine="here", token=bench.claim(task_id)
    )
    result = bench.execute(task_id)
    assert not result.success
    assert failure_text(result) == "attempt of run run-of-somebody is under way"
    assert bench.registry.get(task_id).state is TaskState.DOWNLOADING


def test_claimed_task_is_left_to_its_run(bench: Bench) -> None:
    task_id = bench.post(bench.task())
    bench.claim(task_id)
    result = bench.execute(task_id)
    assert not result.success
    assert "is about to start" in failure_text(result)


def test_cancelled_task_fails_with_the_reason(bench: Bench) -> None:
    task_id = bench.post(bench.task())
    bench.registry.cancel(task_id, reason=Reason("canceled", "not needed any more"))
    result = bench.execute(task_id)
    assert not result.success
    assert "is canceled (not needed any more)" in failure_text(result)


def test_unknown_task_fails_with_the_reason(bench: Bench) -> None:
    task_id = str(uuid.uuid4())
    result = bench.execute(task_id)
    assert not result.success
    assert f"no task {task_id} is recorded" in failure_text(result)


def test_partition_that_is_no_task_id_fails_with_the_reason(bench: Bench) -> None:
    result = bench.execute("made-in-the-ui")
    assert not result.success
    assert "no task made-in-the-ui is recorded" in failure_text(result)


def test_folder_that_cannot_be_read_is_told(bench: Bench) -> None:
    task = bench.task()
    bench.prepare(task)
    (bench.home / "tasks" / ".manifests" / f"{task.task_id}.json").write_text("{")
    file = bench.tree(task.task_id) / "src" / FOCUS / "main.c"
    file.write_text("changed")
    # A damaged manifest proves nothing, so the folder is built again.
    assert bench.execute(task.task_id).success
    assert file.read_text() != "changed"


def test_folder_on_another_machine_is_not_touched(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = bench.task()
    bench.prepare(task)
    monkeypatch.setenv("BUTTERCUP_DOWNLOADER_MACHINE", "another")
    result = bench.execute(task.task_id)
    assert not result.success
    assert "run this there" in failure_text(result)
