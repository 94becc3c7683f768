"""What `verify` finds, what it mends, and what it says to do about the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from buttercup_dagster.sources.disk import locked
from buttercup_dagster.sources.errors import Stopped
from buttercup_dagster.sources.prepare import Workspace, check_prepared, prepare, rebuild
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import Store
from buttercup_dagster.sources.verify import PREPARE_AGAIN, Verification, verify
from task_api.task import Task
from tests.buttercup_dagster.sources.support import DIGEST, OPTIONS, REPO, litter, new_task, tree_of
from tests.support.faults import FaultServer, serve

AGAIN = "made again from its archive"
ASIDE = "put into quarantine; it is fetched again when a task needs it"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "tasks", tmp_path / "store")


@pytest.fixture
def task(server: FaultServer, workspace: Workspace) -> Task:
    """A prepared task, with hard-linked files where there are no clones."""
    made = new_task(server.on("/a", serve(REPO)))
    prepare(made, workspace, OPTIONS)
    return made


def outcomes(found: Verification) -> list[tuple[str, str]]:
    return [(one.kind, one.outcome) for one in found.findings]


def _flip_unseen(path: Path) -> None:
    """Change a byte, and keep size and time."""
    status = path.stat()
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(bytes([content[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("full", [False, True])
def test_what_is_right_stays_as_it_is(task: Task, workspace: Workspace, full: bool) -> None:
    steps: list[tuple[str, int, int]] = []
    found = verify(workspace, full=full, on_progress=lambda *step: steps.append(step))
    assert (found.archives, found.trees, found.tasks) == (1, 1, 1)
    assert (found.findings, found.busy, found.unread) == ((), (), ())
    kinds = ("archive", "tree", "task")
    assert steps == [(kind, done, 1) for kind in kinds for done in (0, 1)]
    assert litter(workspace) == []


def test_nothing_is_there_yet(workspace: Workspace) -> None:
    found = verify(workspace)
    assert (found.archives, found.trees, found.tasks, found.findings) == (0, 0, 0, ())


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda path: path.write_bytes(b"CURL\n"), id="G7-written"),
        pytest.param(Path.unlink, id="G7-deleted"),
        pytest.param(lambda path: path.chmod(0o600), id="G7-mode"),
        pytest.param(lambda path: (path.parent / "added").touch(), id="G7-added"),
    ],
)
def test_a_changed_tree_is_made_again(
    task: Task, workspace: Workspace, change: Callable[[Path], object]
) -> None:
    path, manifest = tree_of(Store(workspace.store))
    change(path / "curl/README")
    kept = verify(workspace, repair=False)
    assert ("tree", "nothing was changed; run verify with --repair") in outcomes(kept)
    found = verify(workspace)
    assert ("tree", AGAIN) in outcomes(found)
    assert manifest.differences(path) == []
    assert [one for one in verify(workspace).findings if one.kind != "task"] == []
    assert litter(workspace) == []


def test_bytes_that_only_reading_shows(task: Task, workspace: Workspace) -> None:
    """The tree is mended; the task, whose file was the same, is named and can be rebuilt."""
    path, _ = tree_of(Store(workspace.store))
    shared = (path / "curl/README").stat().st_nlink > 1
    _flip_unseen(path / "curl/README")
    assert verify(workspace).findings == ()
    found = verify(workspace, full=True)
    expected = [("tree", AGAIN)] + [("task", PREPARE_AGAIN)] * shared
    assert outcomes(found) == expected
    assert found.findings[0].problems == ("curl/README: holds other bytes",)
    rebuild(task, workspace, OPTIONS)
    assert verify(workspace, full=True).findings == ()


def test_a_task_that_somebody_wrote_to_is_named(task: Task, workspace: Workspace) -> None:
    made = workspace.folder(task.task_id)
    (made / "src/curl/extra").write_bytes(b"")
    (found,) = verify(workspace).findings
    assert (found.kind, found.name, found.outcome) == ("task", task.task_id, PREPARE_AGAIN)
    assert found.problems == ("src/curl/extra: is not in the manifest",)


@pytest.mark.parametrize("full", [pytest.param(one, id=f"G7-archive-{one}") for one in (0, 1)])
def test_an_archive_with_other_bytes_is_put_aside(
    task: Task, workspace: Workspace, server: FaultServer, full: int
) -> None:
    path = Store(workspace.store).archive_path(DIGEST)
    path.chmod(0o644)
    _flip_unseen(path)
    if full:
        path.chmod(0o444)
    assert outcomes(verify(workspace, full=bool(full))) == [("archive", ASIDE)]
    assert not path.exists()
    (aside,) = (workspace.store / "quarantine").iterdir()
    assert aside.name.startswith(DIGEST)
    after = verify(workspace, full=True)
    assert after.findings == ()
    assert [key.partition("-")[0] for key in after.unread] == [DIGEST]


def test_an_archive_with_another_mode_gets_it_back(task: Task, workspace: Workspace) -> None:
    path = Store(workspace.store).archive_path(DIGEST)
    path.chmod(0o664)
    (found,) = verify(workspace).findings
    assert found.outcome == "its bytes are right; the mode was put back"
    assert found.problems == ("has mode 0664 instead of 0444",)
    assert path.stat().st_mode & 0o7777 == 0o444


def test_a_tree_whose_archive_is_wrong_too(
    task: Task, workspace: Workspace, server: FaultServer
) -> None:
    store = Store(workspace.store)
    tree, _ = tree_of(store)
    _flip_unseen(store.archive_path(DIGEST))
    (tree / "curl/README").unlink()
    (found,) = (one for one in verify(workspace).findings if one.kind == "tree")
    assert found.outcome == f"removed; its archive is wrong too: {ASIDE}"
    assert not tree.exists()
    rebuild(task, workspace, OPTIONS)
    assert check_prepared(task.task_id, workspace) == []
    assert server.count("/a") == 2


def test_what_is_in_use_is_not_waited_for(task: Task, workspace: Workspace) -> None:
    store = Store(workspace.store)
    with locked(store.lock_path(DIGEST)), workspace.task_lock(task.task_id):
        found = verify(workspace)
    assert found.busy == (DIGEST, task.task_id)
    assert (found.archives, found.trees, found.tasks) == (0, 1, 0)


def test_a_stop_leaves_nothing_half_done(task: Task, workspace: Workspace) -> None:
    stop = Stop()

    def after_the_archive(*_: object) -> None:
        stop.request("Ctrl-C")

    with pytest.raises(Stopped):
        verify(workspace, full=True, stop=stop, on_progress=after_the_archive)
    assert litter(workspace) == []
    assert verify(workspace, full=True).findings == ()
