"""What `verify` finds, what it mends, and what it says to do about the rest."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from buttercup_dagster.sources.collect import Watermarks, collect, usage_of
from buttercup_dagster.sources.disk import boot_id, locked
from buttercup_dagster.sources.prepare import (
    Workspace,
    check_prepared,
    prepare,
    rebuild,
    remove_prepared,
)
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import Store
from buttercup_dagster.sources.trees import tree_key
from buttercup_dagster.sources.verify import (
    PREPARE_AGAIN,
    Verification,
    VerificationStopped,
    verify,
)
from task_api.task import Task
from tests.buttercup_dagster.sources.support import DIGEST, OPTIONS, REPO, litter, new_task, tree_of
from tests.support.archives import digest, source_archive
from tests.support.disks import small_tmpfs
from tests.support.faults import FaultServer, serve
from tests.support.users import NOBODY, as_ordinary_user

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
    assert ("tree", "nothing was changed; run verify without --no-repair") in outcomes(kept)
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

    with pytest.raises(VerificationStopped):
        verify(workspace, full=True, stop=stop, on_progress=after_the_archive)
    assert litter(workspace) == []
    assert verify(workspace, full=True).findings == ()


def test_what_was_found_before_a_stop_is_told(task: Task, workspace: Workspace) -> None:
    Store(workspace.store).archive_path(DIGEST).chmod(0o600)
    stop = Stop()

    def after_the_archive(kind: str, number: int, total: int) -> None:
        if number == total:
            stop.request("Ctrl-C")

    with pytest.raises(VerificationStopped) as caught:
        verify(workspace, stop=stop, on_progress=after_the_archive)
    so_far = caught.value.so_far
    assert outcomes(so_far) == [("archive", "its bytes are right; the mode was put back")]
    assert (so_far.complete, so_far.archives, so_far.trees, so_far.tasks) == (False, 1, 0, 0)


# --- what cannot be compared -----------------------------------------------------------------


@pytest.fixture
def shared_workspace() -> Iterator[Workspace]:
    """Folders that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="buttercup-test-") as name:
        Path(name).chmod(0o777)
        yield Workspace(Path(name) / "tasks", Path(name) / "store")


def test_what_cannot_be_read_does_not_hide_the_rest(
    server: FaultServer, shared_workspace: Workspace
) -> None:
    workspace, store = shared_workspace, Store(shared_workspace.store)
    other = source_archive({"curl/other": b"other"})
    tasks = [
        new_task(server.on(f"/{number}", serve(archive)), archive)
        for number, archive in enumerate((REPO, other))
    ]
    for one in tasks:
        prepare(one, workspace, replace(OPTIONS, link_mode="copy"))
    key = tree_key(digest(other), "drop")
    store.archive_path(DIGEST).chmod(0)
    (store.trees.path(key) / "curl").chmod(0)
    (workspace.folder(tasks[0].task_id) / "src/curl/src").chmod(0)
    if os.geteuid() == 0:
        for path in (workspace.tasks, workspace.store):
            for name in (path, *path.rglob("*")):
                os.chown(name, NOBODY, NOBODY, follow_symlinks=False)
    with as_ordinary_user():
        found = verify(workspace, repair=False)
    assert (found.archives, found.trees, found.tasks) == (1, 2, 1)
    archive, tree, task = found.findings
    assert (archive.name, archive.compared) == (DIGEST, False)
    assert archive.problems[0].startswith("cannot be compared: cannot read the archive")
    assert "remove the cause, and run verify again" in archive.outcome
    assert (tree.kind, tree.name, tree.compared) == ("tree", key, True)
    assert "cannot read the tree" in tree.problems[0]
    assert (task.name, task.outcome, task.compared) == (tasks[0].task_id, PREPARE_AGAIN, False)
    assert "cannot read the tree" in task.problems[0]
    assert litter(workspace) == []


@pytest.mark.parametrize("changed", [False, True])
def test_a_full_disk_does_not_hide_the_rest(
    server: FaultServer, tmp_path: Path, changed: bool
) -> None:
    large = source_archive({"curl/data": random.Random(1).randbytes(2 * 1024**2)})
    with small_tmpfs(tmp_path / "disk", "size=16m") as disk:
        workspace = Workspace(disk / "tasks", disk / "store")
        limits = replace(OPTIONS.fetch_limits, reserve_bytes=0)
        options = replace(OPTIONS, fetch_limits=limits, watermarks=Watermarks(10**9, 0))
        tasks = [
            new_task(server.on(f"/{number}", serve(archive)), archive)
            for number, archive in enumerate((REPO, large))
        ]
        for one in tasks:
            prepare(one, workspace, replace(options, link_mode="copy"))
        key = tree_key(digest(large), "drop")
        if changed:
            (Store(workspace.store).trees.path(key) / "curl/data").chmod(0o600)
        verify(workspace, repair=False)  # makes the lock files
        filler = disk / "filler"
        disk_left = os.statvfs(disk)
        filler.write_bytes(bytes(disk_left.f_bavail * disk_left.f_frsize - 1024**2))

        found = verify(workspace, full=True)
        assert (found.archives, found.tasks) == (2, 2)
        (tree,) = found.findings
        assert (tree.kind, tree.name, tree.compared) == ("tree", key, changed)
        assert found.unread == (tasks[1].task_id,)
        if changed:
            assert tree.problems == ("curl/data: has mode 0600 instead of 0644",)
            assert tree.outcome.startswith("removed; it cannot be made again now: ")
            assert "free disk space" in tree.outcome
        else:
            assert tree.problems[0].startswith("cannot be compared: ")
            assert "free disk space" in tree.problems[0]
        filler.unlink()
        again = verify(workspace, full=True)
        assert again.findings == ()
        assert litter(workspace) == []


def test_bytes_of_a_task_without_its_tree_count_as_unread(task: Task, workspace: Workspace) -> None:
    store = Store(workspace.store)
    with locked(store.lock_path(tree_key(DIGEST, "drop"))):
        found = verify(workspace, full=True)
    assert (found.busy, found.unread) == ((tree_key(DIGEST, "drop"),), (task.task_id,))
    assert found.findings == ()


# --- the order of use ------------------------------------------------------------------------


def _of_another_boot(store: Store, key: str) -> int:
    """Let a marker name another boot; the time of last use that it has then."""
    marker = store.trees.marker(key)
    assert marker is not None
    path = store.trees.marker_path(key)
    path.write_bytes(replace(marker, boot_id="another").to_json())
    os.utime(path, ns=(10**18, 10**18))
    return path.stat().st_mtime_ns


@pytest.mark.parametrize("repair", [False, True])
def test_to_be_compared_is_no_use(task: Task, workspace: Workspace, repair: bool) -> None:
    store = Store(workspace.store)
    key = tree_key(DIGEST, "drop")
    before = _of_another_boot(store, key)
    assert verify(workspace, repair=repair).findings == ()
    marker = store.trees.marker(key)
    assert marker is not None
    assert marker.boot_id == (boot_id() if repair else "another")
    assert store.trees.marker_path(key).stat().st_mtime_ns == before


def test_a_tree_of_this_boot_is_not_written_to(task: Task, workspace: Workspace) -> None:
    path = Store(workspace.store).trees.marker_path(tree_key(DIGEST, "drop"))
    before = path.stat()
    assert verify(workspace).findings == ()
    after = path.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("changed", [False, True])
def test_the_collector_still_takes_the_least_recently_used(
    server: FaultServer, workspace: Workspace, changed: bool
) -> None:
    archives = [source_archive({"curl/data": b"%d" % number * 50_000}) for number in range(3)]
    # Verify goes by the order of names, so the one used first is the last that it comes to.
    archives.sort(key=digest, reverse=True)
    for number, archive in enumerate(archives):
        task = new_task(server.on(f"/{number}", serve(archive)), archive)
        prepare(task, workspace, OPTIONS)
        assert remove_prepared(task.task_id, workspace)
    store = Store(workspace.store)
    first = tree_key(digest(archives[0]), "drop")
    if changed:
        (store.trees.path(first) / "curl/data").unlink()
    assert outcomes(verify(workspace)) == [("tree", AGAIN)] * changed
    done = collect(store, Watermarks(usage_of(store).store_bytes - 1, 0))
    assert done is not None
    assert done.removed[0].name == first
