"""What the collector removes, in which order, and what it leaves alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from buttercup_dagster.engine import Engine
from buttercup_dagster.sources import disk as disks
from buttercup_dagster.sources import links
from buttercup_dagster.sources.collect import (
    LOOK_SECONDS,
    Collection,
    Usage,
    Watermarks,
    collect,
    usage_of,
)
from buttercup_dagster.sources.disk import locked, names_in
from buttercup_dagster.sources.errors import NoSpace, StorageError, TreeChanged
from buttercup_dagster.sources.prepare import Workspace, check_prepared, prepare, remove_prepared
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import Store
from tests.buttercup_dagster.sources.support import DIGEST, OPTIONS, REPO, litter, new_task, tree_of
from tests.support.archives import digest, source_archive
from tests.support.cases import case
from tests.support.disks import small_tmpfs
from tests.support.faults import FaultServer, serve
from tests.support.users import NOBODY, as_ordinary_user
from tests.support.waiting import wait_for

NOTHING = Watermarks(max_store_bytes=0, min_free_bytes=0)
"""Marks that any store exceeds."""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "tasks", tmp_path / "store")


def collected(
    store: Store,
    marks: Watermarks = NOTHING,
    *,
    everything: bool = False,
    dry_run: bool = False,
) -> Collection:
    done = collect(store, marks, everything=everything, dry_run=dry_run)
    assert done is not None
    return done


def kinds(done: Collection) -> list[str]:
    return [one.kind for one in done.removed]


def used_and_removed(server: FaultServer, workspace: Workspace, number: int) -> str:
    """Prepare a task with an archive of its own and remove it; the archive's digest."""
    archive = source_archive({"curl/number": b"%d" % number, "curl/data": bytes(50_000)})
    task = new_task(server.on(f"/{number}", serve(archive)), archive)
    prepare(task, workspace, OPTIONS)
    assert remove_prepared(task.task_id, workspace)
    return digest(archive)


def test_nothing_goes_below_the_marks(server: FaultServer, workspace: Workspace) -> None:
    used_and_removed(server, workspace, 1)
    done = collected(Store(workspace.store), Watermarks(10**9, 0))
    assert (done.removed, done.kept, done.before) == ((), 0, done.after)


def test_trees_go_before_archives_and_only_as_many_as_needed(
    server: FaultServer, workspace: Workspace
) -> None:
    digests = [used_and_removed(server, workspace, number) for number in range(4)]
    store = Store(workspace.store)
    before = usage_of(store).store_bytes
    done = collected(store, Watermarks(before - 1, 0))
    assert [one.name.partition("-")[0] for one in done.removed] == digests[:1]
    assert kinds(done) == ["tree"]
    assert done.after.store_bytes == usage_of(store).store_bytes <= (before - 1) * 4 // 5

    done = collected(store, Watermarks(1, 0))
    assert kinds(done) == ["tree"] * 3 + ["archive"] * 4
    assert usage_of(store).store_bytes == 0
    assert litter(workspace) == []


def test_a_full_disk_begins_a_collection_too(server: FaultServer, workspace: Workspace) -> None:
    used_and_removed(server, workspace, 1)
    store = Store(workspace.store)
    free = usage_of(store).free_bytes
    assert not Watermarks(10**9, free // 2).exceeded(Usage(0, free))
    assert kinds(collected(store, Watermarks(10**9, free * 2))) == ["tree", "archive"]


def test_what_was_not_used_for_long_goes_below_the_marks_too(
    server: FaultServer, workspace: Workspace
) -> None:
    old, young = (used_and_removed(server, workspace, number) for number in range(2))
    archive = source_archive({"curl/needed": b"1"})
    prepare(new_task(server.on("/needed", serve(archive)), archive), workspace, OPTIONS)
    store = Store(workspace.store)
    hour_ago_ns = time.time_ns() - 3_600_000_000_000
    for digest_ in (old, digest(archive)):
        (tree,) = (key for key in store.trees.keys() if key.startswith(digest_))  # noqa: SIM118
        for path in (store.archive_path(digest_), store.trees.marker_path(tree)):
            os.utime(path, ns=(hour_ago_ns, hour_ago_ns))

    def unused(seconds: float, *, dry_run: bool = False) -> list[tuple[str, str]]:
        done = collect(store, Watermarks(10**9, 0), unused_seconds=seconds, dry_run=dry_run)
        assert done is not None
        return [(one.kind, one.name.partition("-")[0]) for one in done.removed]

    assert unused(7200) == []
    assert unused(1800, dry_run=True) == [("tree", old), ("archive", old)]
    assert unused(1800) == [("tree", old), ("archive", old)]
    assert unused(0) == [("tree", young), ("archive", young)]
    assert store.archive_path(digest(archive)).exists()


def test_a_dry_run_removes_nothing(server: FaultServer, workspace: Workspace) -> None:
    used_and_removed(server, workspace, 1)
    store = Store(workspace.store)
    would = collected(store, everything=True, dry_run=True)
    assert kinds(would) == ["tree", "archive"]
    assert would.after.store_bytes == 0
    assert usage_of(store).store_bytes == would.before.store_bytes > 0
    assert collected(store, everything=True).removed == would.removed


def test_a_prepare_collects_when_it_leaves_too_much(
    server: FaultServer, workspace: Workspace
) -> None:
    used = used_and_removed(server, workspace, 1)
    store = Store(workspace.store)
    full = replace(OPTIONS, watermarks=NOTHING)
    task = new_task(server.on("/a", serve(REPO)))
    prepare(task, workspace, full)
    # Somebody looked at the whole store a moment ago.
    assert [path.name for path in store.archives()] == sorted([used, DIGEST])
    no_look_for(store, LOOK_SECONDS)
    prepare(task, workspace, full)
    assert [path.name for path in store.archives()] == [DIGEST]
    assert check_prepared(task.task_id, workspace) == []


def test_a_disk_without_free_space_is_noticed_by_each_prepare(
    server: FaultServer, workspace: Workspace
) -> None:
    used_and_removed(server, workspace, 1)
    store = Store(workspace.store)
    free = usage_of(store).free_bytes
    task = new_task(server.on("/a", serve(REPO)))
    prepare(task, workspace, replace(OPTIONS, watermarks=Watermarks(10**12, free * 2)))
    assert [path.name for path in store.archives()] == [DIGEST]


def no_look_for(store: Store, seconds: float) -> None:
    """Make the last look at the whole store so old."""
    note = store.lock_path("collector").with_suffix(".looked")
    then = note.stat().st_mtime - seconds
    os.utime(note, (then, then))


@pytest.mark.parametrize("back", [pytest.param(0, id="G13-runs"), pytest.param(1, id="G13-back")])
def test_the_order_of_use_outlives_a_clock_that_jumps_back(
    server: FaultServer, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, back: int
) -> None:
    first = used_and_removed(server, workspace, 1)
    now, year = time.time_ns(), 365 * 86_400 * 10**9
    clock = (now - year * back + step for step in range(10**6))
    monkeypatch.setattr("buttercup_dagster.sources.store.time.time_ns", lambda: next(clock))
    second = used_and_removed(server, workspace, 2)
    used_and_removed(server, workspace, 1)
    done = collected(Store(workspace.store))
    assert [one.name.partition("-")[0] for one in done.removed if one.kind == "tree"] == [
        second,
        first,
    ]


def test_what_was_used_last_goes_last_after_the_clock_was_set_back(
    server: FaultServer, workspace: Workspace
) -> None:
    store = Store(workspace.store)
    first = used_and_removed(server, workspace, 1)
    ahead = time.time_ns() + 3600 * 10**9
    (key,) = store.trees.keys()
    for path in (store.clock_path, store.trees.marker_path(key), store.archive_path(first)):
        os.utime(path, ns=(ahead, ahead))
    second = used_and_removed(server, workspace, 2)
    done = collected(store)
    used = [one.name.partition("-")[0] for one in done.removed if one.kind == "tree"]
    assert used == [first, second]


def test_the_clock_leads_nowhere_else(tmp_path: Path) -> None:
    store, elsewhere = Store(tmp_path / "store"), tmp_path / "elsewhere"
    elsewhere.touch()
    os.utime(elsewhere, (1, 1))
    store.clock_path.symlink_to(elsewhere)
    store.touch(tmp_path)
    assert elsewhere.stat().st_mtime == 1


# --- what stays ------------------------------------------------------------------------------


@case("G6-reader")
def test_what_a_prepared_task_is_made_of_stays(
    server: FaultServer, workspace: Workspace, case: str
) -> None:
    task = new_task(server.on("/a", serve(REPO)))
    prepare(task, workspace, OPTIONS)
    store = Store(workspace.store)
    done = collected(store, everything=True)
    assert (done.removed, done.kept) == ((), 2)
    assert store.leases.folders(DIGEST) == [workspace.folder(task.task_id)]
    assert remove_prepared(task.task_id, workspace)
    assert kinds(collected(store, everything=True)) == ["tree", "archive"]


@case("G6-starting")
def test_what_a_starting_task_needs_stays(
    server: FaultServer, workspace: Workspace, case: str
) -> None:
    used_and_removed(server, workspace, 1)
    store = Store(workspace.store)
    (archive,) = store.archives()
    with store.leases.attempt("a-task", workspace.tasks / "a-task") as leases:
        leases.take(archive.name, Stop())
        assert collected(store, everything=True).kept == 2
    assert kinds(collected(store, everything=True)) == ["tree", "archive"]


def _link_slowly(url: str, workspace: Workspace, ready: Path, task_id: str) -> None:
    original = links._Linking._finish

    def wait(*arguments: object) -> None:
        links._Linking._finish = original  # type: ignore[method-assign]
        ready.touch()
        wait_for(lambda: not ready.exists(), "the collector to have passed")
        original(*arguments)  # type: ignore[arg-type]

    links._Linking._finish = wait  # type: ignore[assignment,method-assign]
    prepare(new_task(url, task_id=task_id), workspace, OPTIONS)


@case("G6-linking")
def test_a_tree_that_is_being_linked_stays(
    server: FaultServer, workspace: Workspace, tmp_path: Path, case: str
) -> None:
    ready = tmp_path / "ready"
    url = server.on("/a", serve(REPO))
    task_id = new_task(url).task_id
    process = multiprocessing.get_context("spawn").Process(
        target=_link_slowly, args=(url, workspace, ready, task_id)
    )
    process.start()
    wait_for(ready.exists, "the other process")
    done = collected(Store(workspace.store), everything=True)
    assert (done.removed, done.cleaned) == ((), ())
    ready.unlink()
    process.join(30)
    assert process.exitcode == 0
    assert check_prepared(task_id, workspace) == []


@case("G6-busy")
def test_a_lock_is_not_waited_for(server: FaultServer, workspace: Workspace, case: str) -> None:
    used_and_removed(server, workspace, 1)
    store = Store(workspace.store)
    (archive,) = store.archives()
    with locked(store.lock_path(archive.name)):
        assert kinds(collected(store, everything=True)) == ["tree"]
    with locked(store.lock_path("collector")):
        assert collect(store, everything=True) is None
    assert kinds(collected(store, everything=True)) == ["archive"]


def test_a_failed_attempt_leases_nothing_more_than_before(
    server: FaultServer, workspace: Workspace
) -> None:
    task = new_task(server.on("/a", serve(REPO)))
    prepare(task, workspace, OPTIONS)
    other = source_archive({"curl/other": b""})

    def refuse() -> None:
        raise RuntimeError

    failing = new_task(server.on("/b", serve(other)), other, task_id=task.task_id)
    with pytest.raises(RuntimeError):
        prepare(failing, workspace, OPTIONS, confirm=refuse)
    store = Store(workspace.store)
    assert (store.leases.in_use(DIGEST), store.leases.in_use(digest(other))) == (True, False)
    prepare(failing, workspace, OPTIONS)
    assert (store.leases.in_use(DIGEST), store.leases.in_use(digest(other))) == (False, True)


@pytest.mark.parametrize("what", ["tree", "half", "lease", "trash", "part"])
def test_what_crashes_left_is_cleared_up(
    server: FaultServer, workspace: Workspace, what: str
) -> None:
    store = Store(workspace.store)
    used_and_removed(server, workspace, 1)
    (key,) = store.trees.keys()
    if what == "tree":
        store.trees.marker_path(key).unlink()
    elif what == "half":
        (store.root / "trees" / f".{key}.json.0123").write_bytes(b"{")
    elif what == "lease":
        (store.root / "leases" / DIGEST).mkdir()
        (store.root / "leases" / DIGEST / "some-task").write_bytes(b"")
    elif what == "trash":
        (store.root / "trash" / "old" / "inside").mkdir(parents=True)
    else:
        part = store.root / "parts" / f"{DIGEST}.{'0' * 16}.part"
        part.write_bytes(b"x")
        os.utime(part, (1, 1))
    done = collected(store, Watermarks(10**9, 0))
    assert len(done.cleaned) == 1
    assert done.removed == ()
    assert litter(workspace) == []
    assert list((store.root / "leases").glob("*/*")) == []


def test_when_the_disk_is_full_what_nobody_needs_makes_room(
    server: FaultServer, tmp_path: Path
) -> None:
    with small_tmpfs(tmp_path / "disk", "size=64m,nr_inodes=560") as disk:
        workspace = Workspace(disk / "tasks", disk / "store")
        limits = replace(OPTIONS.fetch_limits, reserve_bytes=0)
        options = replace(OPTIONS, fetch_limits=limits, watermarks=Watermarks(10**9, 0))

        def made(name: str, files: int) -> Callable[[], None]:
            archive = source_archive({f"curl/{name}{n}": b"" for n in range(files)})
            task = new_task(server.on(f"/{name}", serve(archive)), archive)

            def run() -> None:
                prepare(task, workspace, options)
                assert check_prepared(task.task_id, workspace) == []
                remove_prepared(task.task_id, workspace)

            return run

        made("a", 200)()
        made("b", 200)()
        keys = Store(workspace.store).trees.keys()
        assert len(keys) == 1
        with pytest.raises(NoSpace):
            made("c", 600)()
        assert litter(workspace) == []


@pytest.mark.parametrize("place", ["trash", "quarantine", "staging"])
def test_what_cannot_be_removed_is_told_and_keeps_nothing_else(
    server: FaultServer, workspace: Workspace, place: str
) -> None:
    store = Store(workspace.store)
    used_and_removed(server, workspace, 1)
    broken = {
        "trash": store.root / "trash" / "0",
        "quarantine": store.root / "quarantine" / "0",
        "staging": workspace.staging / "0",
    }[place]
    broken.mkdir(parents=True)
    (store.root / "trash" / "1").mkdir()
    engine = Engine(workspace, "here")
    with small_tmpfs(broken / "mounted", "size=64k"):
        done = engine.collect(everything=True, dry_run=False, stop=Stop())
        assert done is not None
        assert "1" in done.cleaned
        assert list(store.archives()) == []
        assert kinds(done) == ["tree", "archive"]
        (problem,) = done.problems
        assert "cannot remove" in problem
        assert str(broken) in problem
        assert done.kept == (place == "quarantine")
    done = engine.collect(everything=True, dry_run=False, stop=Stop())
    assert done is not None
    assert done.problems == ()
    assert not broken.exists()
    assert litter(workspace) == []


def test_a_task_is_ready_even_if_its_staging_folder_cannot_be_removed(
    server: FaultServer, workspace: Workspace
) -> None:
    task = new_task(server.on("/a", serve(REPO)))
    with contextlib.ExitStack() as stack:

        def announce(_path: Path) -> None:
            (staging,) = workspace.staging.iterdir()
            stack.enter_context(small_tmpfs(staging / "mounted", "size=64k"))

        prepare(task, workspace, OPTIONS, announce=announce)
        assert check_prepared(task.task_id, workspace) == []
        # The next attempt is not kept from its work either.
        prepare(new_task(server.url("/a")), workspace, OPTIONS)
    prepare(new_task(server.url("/a")), workspace, OPTIONS)
    assert litter(workspace) == []


def test_nothing_is_removed_where_locks_may_hold_on_this_machine_only(
    server: FaultServer, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    used_and_removed(server, workspace, 1)
    monkeypatch.setattr(disks, "_LOCAL", frozenset())
    with pytest.raises(StorageError, match="put the store on a disk of this machine"):
        collect(Store(workspace.store), everything=True)
    assert len(list(Store(workspace.store).archives())) == 1


def test_unfinished_downloads_count_and_go_when_everything_goes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    part = tmp_path / "parts" / f"{DIGEST}.{'0' * 16}.part"
    part.parent.mkdir()
    part.write_bytes(bytes(5000))
    assert usage_of(store).store_bytes == 5000
    done = collected(store, Watermarks(1000, 0))
    assert (done.cleaned, done.after.store_bytes) == ((), 5000)
    assert collected(store, everything=True, dry_run=True).cleaned == ()
    done = collected(store, everything=True)
    assert (done.cleaned, done.after.store_bytes) == ((part.name,), 0)


def test_a_prepare_clears_up_the_tree_that_a_crash_left(
    server: FaultServer, workspace: Workspace
) -> None:
    used_and_removed(server, workspace, 1)
    store = Store(workspace.store)
    (key,) = store.trees.keys()
    store.trees.marker_path(key).unlink()
    no_look_for(store, LOOK_SECONDS)
    prepare(new_task(server.on("/a", serve(REPO))), workspace, OPTIONS)
    assert [one.partition("-")[0] for one in store.trees.keys()] == [DIGEST]  # noqa: SIM118


def test_a_look_that_took_long_is_not_repeated_soon(
    server: FaultServer, workspace: Workspace
) -> None:
    used = used_and_removed(server, workspace, 1)
    store = Store(workspace.store)
    note = store.lock_path("collector").with_suffix(".looked")
    note.write_bytes(b"%8d" % (10 * LOOK_SECONDS))
    task, full = new_task(server.on("/a", serve(REPO))), replace(OPTIONS, watermarks=NOTHING)
    no_look_for(store, 2 * LOOK_SECONDS)
    prepare(task, workspace, full)
    assert used in {path.name for path in store.archives()}
    no_look_for(store, 10 * LOOK_SECONDS)
    prepare(task, workspace, full)
    assert [path.name for path in store.archives()] == [DIGEST]


def test_what_is_leased_makes_no_trash(server: FaultServer, workspace: Workspace) -> None:
    prepare(new_task(server.on("/a", serve(REPO))), workspace, OPTIONS)
    store = Store(workspace.store)
    trash = store.root / "trash"
    before = trash.stat().st_mtime_ns
    assert collected(store, everything=True).kept == 2
    assert trash.stat().st_mtime_ns == before


def test_a_look_that_fails_leaves_the_task_ready(server: FaultServer, workspace: Workspace) -> None:
    note = Store(workspace.store).lock_path("collector").with_suffix(".looked")
    note.symlink_to(note)  # to open it gives a plain error of the system
    os.utime(note, (1, 1), follow_symlinks=False)
    task = new_task(server.on("/a", serve(REPO)))
    prepare(task, workspace, OPTIONS)
    assert check_prepared(task.task_id, workspace) == []


@pytest.mark.parametrize("closed", ["", "curl/src"])
def test_a_tree_that_cannot_be_read_is_made_again(
    server: FaultServer, tmp_path: Path, closed: str
) -> None:
    """A folder of it lost its permissions; root would not notice."""
    with tempfile.TemporaryDirectory(prefix="buttercup-test-") as name:
        Path(name).chmod(0o777)
        workspace = Workspace(tmp_path / "tasks", Path(name) / "store")
        url = server.on("/a", serve(REPO))
        prepare(new_task(url), workspace, OPTIONS)
        store = Store(workspace.store)
        tree, manifest = tree_of(store)
        (tree / closed).chmod(0)
        if os.geteuid() == 0:
            for path in (workspace.store, *workspace.store.rglob("*")):
                os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        with as_ordinary_user():
            with pytest.raises(TreeChanged):
                links.link_tree(tree, manifest, Path(name) / "linked", "copy")
            assert store.drop_changed(f"{DIGEST}-1-drop")
            assert names_in(store.root / "trees") == names_in(store.root / "trash") == []
        task = new_task(url)
        prepare(task, workspace, OPTIONS)
        assert check_prepared(task.task_id, workspace) == []
