"""What a task that is gone leaves behind: nothing of its own, however many there were."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest

from buttercup_dagster.engine import Engine
from buttercup_dagster.sources.disk import (
    locked,
    names_in,
    remove_lock,
    remove_lock_if_free,
)
from buttercup_dagster.sources.prepare import Workspace, clean_staging, prepare
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import Store
from task_api.task import Task
from tests.buttercup_dagster.sources.support import DIGEST, OPTIONS, REPO, litter, new_task
from tests.support.archives import source_archive
from tests.support.faults import FaultServer, serve


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "tasks", tmp_path / "store")


def prepared(server: FaultServer, workspace: Workspace, number: int) -> Task:
    """A prepared task with an archive of its own."""
    archive = source_archive({"curl/number": b"%d" % number})
    task = new_task(server.on(f"/{number}", serve(archive)), archive)
    prepare(task, workspace, OPTIONS)
    return task


def collect_all(workspace: Workspace) -> None:
    done = Engine(workspace, "here").collect(everything=True, dry_run=False, stop=Stop())
    assert done is not None
    assert done.problems == ()


def remove(workspace: Workspace, task: Task) -> bool:
    return Engine(workspace, "here").remove(task.task_id, stop=Stop(), unwanted=lambda: True)


def left(workspace: Workspace) -> list[str]:
    """All names in the folders of the tasks and the store but those that digests share."""
    root = workspace.store.parent
    found = (path.relative_to(root) for path in root.rglob("*"))
    return sorted(str(path) for path in found if path.parts[:2] != ("store", "archives"))


def test_a_removed_task_leaves_nothing_under_its_name(
    server: FaultServer, workspace: Workspace
) -> None:
    task = prepared(server, workspace, 1)
    assert remove(workspace, task)
    assert [name for name in left(workspace) if task.task_id in name] == []
    assert names_in(workspace.store / "leases" / "tasks") == []
    assert not remove(workspace, task)
    assert [name for name in left(workspace) if task.task_id in name] == []


def test_many_removed_tasks_leave_what_a_few_leave(
    server: FaultServer, workspace: Workspace
) -> None:
    found = []
    for numbers in (range(2), range(2, 12)):
        tasks = [prepared(server, workspace, number) for number in numbers]
        assert all(remove(workspace, task) for task in tasks)
        collect_all(workspace)
        found.append(left(workspace))
    assert found[0] == found[1]
    archives = [path for path in workspace.store.rglob("archives/**/*") if path.is_file()]
    assert archives == []


def test_what_others_need_stays(server: FaultServer, workspace: Workspace) -> None:
    url = server.on("/a", serve(REPO))
    one, other = new_task(url), new_task(url)
    for task in (one, other):
        prepare(task, workspace, OPTIONS)
    assert remove(workspace, one)
    collect_all(workspace)
    store = Store(workspace.store)
    assert store.leases.in_use(DIGEST)
    assert [path.name for path in store.archives()] == [DIGEST]
    assert remove(workspace, other)
    assert not store.leases.in_use(DIGEST)


def test_what_a_folder_removed_by_hand_left_is_cleared_up(
    server: FaultServer, workspace: Workspace
) -> None:
    gone, stays = (prepared(server, workspace, number) for number in (1, 2))
    shutil.rmtree(workspace.folder(gone.task_id))
    with workspace.task_lock(gone.task_id):  # somebody may be about to publish it
        assert clean_staging(workspace) == []
    assert workspace.manifest(gone.task_id).exists()
    collect_all(workspace)
    assert [name for name in left(workspace) if gone.task_id in name] == []
    assert [path.stem for path in names_in(workspace.manifests)] == [stays.task_id]
    assert len(list(Store(workspace.store).archives())) == 1
    assert litter(workspace) == []


def test_a_lost_list_of_leases_is_made_up_for(server: FaultServer, workspace: Workspace) -> None:
    task = prepared(server, workspace, 1)
    for path in names_in(workspace.store / "leases" / "tasks"):
        path.write_bytes(b"\xff../../..\n")
    assert remove(workspace, task)
    collect_all(workspace)
    assert [name for name in left(workspace) if "leases" in name] == [
        "store/leases",
        "store/leases/tasks",
    ]


def _count_up(lock: Path, counter: Path, times: int) -> None:
    for turn in range(times):
        with locked(lock):
            counter.write_text(str(int(counter.read_text()) + 1))
            if turn % 2:
                remove_lock(lock)
        remove_lock_if_free(lock)


def test_a_lock_excludes_though_its_file_comes_and_goes(tmp_path: Path) -> None:
    lock, counter = tmp_path / "lock", tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count_up, args=(lock, counter, 60)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert counter.read_text() == "240"


def test_a_lock_that_is_held_is_not_removed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locked(lock):
        assert not remove_lock_if_free(lock)
    assert remove_lock_if_free(lock)
    assert not remove_lock_if_free(lock)
