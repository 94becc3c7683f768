"""Processes that share a store, and processes that are killed while they write to it."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import re
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import pytest

from buttercup_dagster.sources import disk, links, unfinished
from buttercup_dagster.sources.collect import collect
from buttercup_dagster.sources.errors import StorageError
from buttercup_dagster.sources.prepare import Workspace, check_prepared, prepare
from buttercup_dagster.sources.store import Store
from task_api.task import Source, SourceType
from tests.buttercup_dagster.sources.conftest import QUICK
from tests.buttercup_dagster.sources.support import (
    DIGEST,
    OPTIONS,
    REPO,
    litter,
    new_task,
    partial_trees,
    tree_of,
    unfinished_tasks,
)
from tests.support.archives import source_archive
from tests.support.cases import case
from tests.support.faults import FaultServer, serve
from tests.support.waiting import wait_for

SPAWN = multiprocessing.get_context("spawn")
TASK_ID = "3f2b8c1e-0d4a-4e6b-9a7c-5d1e2f3a4b5c"
LARGE = source_archive({f"curl/{n // 100}/{n}.c": b"int x;\n" * 300 for n in range(4000)})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "tasks", tmp_path / "store")


@pytest.fixture
def started() -> Iterator[list[BaseProcess]]:
    """Processes that are killed at the end of the test, whatever happens."""
    processes: list[BaseProcess] = []
    yield processes
    for process in processes:
        process.kill()
        process.join()


# --- several processes at once ---------------------------------------------------------------


def _grow(root: Path, url: str, results: SimpleQueue[tuple[str, bool, bool, int]]) -> None:
    source = Source(SourceType.REPO, DIGEST, (url,))
    grown = Store(root).tree(source, fetch_limits=QUICK)
    assert grown.stored.manifest.differences(grown.stored.path) == []
    inode = grown.stored.path.stat().st_ino
    results.put((grown.stored.key, grown.hit, grown.obtained.cache_hit, inode))


@case("G1")
def test_processes_share_one_download_and_one_unpacking(
    server: FaultServer, tmp_path: Path, started: list[BaseProcess], case: str
) -> None:
    url = server.on("/a", serve(REPO))
    results: SimpleQueue[tuple[str, bool, bool, int]] = SPAWN.SimpleQueue()
    for _ in range(8):
        started.append(SPAWN.Process(target=_grow, args=(tmp_path, url, results)))
        started[-1].start()
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    found = [results.get() for _ in started]
    assert server.count("/a") == 1
    assert len({(key, inode) for key, _, _, inode in found}) == 1
    assert sorted(hit for _, hit, _, _ in found) == [False] + [True] * 7
    assert sorted(hit for _, _, hit, _ in found) == [False] + [True] * 7


def _prepare_without_locks(
    kind: str, barrier: Any, url: str, workspace: Workspace, failures: SimpleQueue[str]
) -> None:
    def no_lock(*_: object) -> None:
        if kind == "unsupported":
            raise OSError(errno.ENOSYS, "Function not implemented")

    fcntl.flock = no_lock
    # Such a file system is known by its type.
    disk.locks_exclude = lambda _: False  # type: ignore[assignment]
    unfinished.locks_exclude = lambda _: False  # type: ignore[assignment, attr-defined]
    task = new_task(url)
    barrier.wait()
    try:
        prepare(task, workspace, OPTIONS)
        assert check_prepared(task.task_id, workspace) == []
    except BaseException as error:
        failures.put(repr(error))
        raise


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=f"G5-{kind}") for kind in ("lying", "unsupported")]
)
def test_without_locks_work_is_done_twice_and_nothing_is_harmed(
    server: FaultServer, workspace: Workspace, started: list[BaseProcess], kind: str
) -> None:
    url = server.on("/a", serve(REPO))
    barrier = SPAWN.Barrier(3)
    failures: SimpleQueue[str] = SPAWN.SimpleQueue()
    for _ in range(3):
        arguments = (kind, barrier, url, workspace, failures)
        started.append(SPAWN.Process(target=_prepare_without_locks, args=arguments))
        started[-1].start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0, 0], failures.get()
    assert unfinished_tasks(workspace) == []
    assert partial_trees(Store(workspace.store)) == []


@case("G5-collector")
def test_nothing_of_others_is_removed_without_locks(
    server: FaultServer, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    prepare(new_task(server.on("/a", serve(REPO))), workspace, OPTIONS)
    store = Store(workspace.store)
    (store.root / "staging" / "of somebody").mkdir()
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert store.clean() == []
    with pytest.raises(StorageError, match="put the store on a disk of this machine"):
        collect(store, everything=True)
    assert (store.root / "staging" / "of somebody").is_dir()


# --- processes that are killed ---------------------------------------------------------------

STEPS = {
    "archive-before": rf"/archives/sha256/../{DIGEST}$",
    "archive-after": rf"/archives/sha256/../{DIGEST}$",
    "tree-before": r"/store/trees/[^./]+$",
    "tree-after": r"/store/trees/[^./]+$",
    "manifest-before": r"/store/trees/[^/]+\.manifest$",
    "manifest-after": r"/store/trees/[^/]+\.manifest$",
    "marker-before": r"/store/trees/[^/]+\.json$",
    "marker-after": r"/store/trees/[^/]+\.json$",
    "record-before": r"/tasks/\.manifests/",
    "publish-before": rf"/tasks/{TASK_ID}$",
    "publish-after": rf"/tasks/{TASK_ID}$",
}
"""Renames at which a process stops, before or after it, by their target."""


def _stop_here(ready: Path) -> None:
    ready.touch()
    threading.Event().wait()


def _prepare_up_to(step: str, ready: Path, url: str, workspace: Workspace) -> None:
    if step == "linking":
        links._Linking._finish = lambda *_: _stop_here(ready)  # type: ignore[method-assign]
    elif step in STEPS:
        _stop_at_rename(STEPS[step], step.endswith("-after"), ready)

    def confirm() -> None:
        if step == "confirm":
            _stop_here(ready)

    archive = LARGE if step == "unpacking" else REPO
    prepare(new_task(url, archive, task_id=TASK_ID), workspace, OPTIONS, confirm=confirm)


def _stop_at_rename(target: str, after: bool, ready: Path) -> None:
    original = os.rename

    def rename(source: Any, destination: Any, **handles: Any) -> None:
        here = re.search(target, os.fsdecode(destination)) is not None
        if here and not after:
            _stop_here(ready)
        original(source, destination, **handles)
        if here:
            _stop_here(ready)

    os.rename = rename  # type: ignore[assignment]


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, id=f"G2-{step}")
        for step in ("download", "unpacking", *STEPS, "linking", "confirm")
    ],
)
def test_the_next_call_succeeds_after_a_kill(
    server: FaultServer, workspace: Workspace, started: list[BaseProcess], step: str, tmp_path: Path
) -> None:
    archive = LARGE if step == "unpacking" else REPO
    whole = serve(archive)
    first = serve(archive, cut_after=50, then="stall", ETag='"1"') if step == "download" else whole
    url = server.on("/a", first, serve(archive, ETag='"1"'))
    ready = tmp_path / "ready"
    process = SPAWN.Process(target=_prepare_up_to, args=(step, ready, url, workspace))
    started.append(process)
    process.start()

    def arrived() -> bool:
        assert process.is_alive()
        if step == "download":
            parts = (workspace.store / "parts").glob("*.part")
            return any(path.stat().st_size == 50 for path in parts)
        if step == "unpacking":
            return any((workspace.store / "staging").glob("*/*/*/*"))
        return ready.exists()

    wait_for(arrived, step, seconds=60, every=0.002)
    process.kill()
    process.join()
    assert unfinished_tasks(workspace) == []
    assert partial_trees(Store(workspace.store)) == []

    prepare(new_task(url, archive, task_id=TASK_ID), workspace, OPTIONS)
    assert check_prepared(TASK_ID, workspace) == []
    assert partial_trees(Store(workspace.store)) == []
    collect(Store(workspace.store))
    assert litter(workspace) == []
    if step == "download":
        assert server.requests[1].fields["range"] == "bytes=50-"
    elif step not in {"archive-before", "unpacking"}:
        assert server.count("/a") == 1


@case("G2-lease")
def test_a_killed_attempt_keeps_nothing_in_the_store(
    server: FaultServer,
    workspace: Workspace,
    started: list[BaseProcess],
    tmp_path: Path,
    case: str,
) -> None:
    url, ready = server.on("/a", serve(REPO)), tmp_path / "ready"
    process = SPAWN.Process(target=_prepare_up_to, args=("confirm", ready, url, workspace))
    started.append(process)
    process.start()
    wait_for(ready.exists, "the other process")
    store = Store(workspace.store)
    kept = collect(store, everything=True)
    assert kept is not None
    assert kept.removed == ()
    process.kill()
    process.join()
    done = collect(store, everything=True)
    assert done is not None
    assert [one.kind for one in done.removed] == ["tree", "archive"]
    assert f"{DIGEST}/{TASK_ID}" in done.cleaned


# --- the machine goes down -------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage", [pytest.param(one, id=f"G3-{one}") for one in ("emptied", "lost", "none")]
)
def test_a_tree_of_another_boot_is_compared_before_it_is_used(
    server: FaultServer, workspace: Workspace, damage: str
) -> None:
    """What a power cut leaves: names whose bytes never reached the disk."""
    url = server.on("/a", serve(REPO))
    first = new_task(url)
    prepare(first, workspace, OPTIONS)
    store = Store(workspace.store)
    tree, manifest = tree_of(store)
    (key,) = store.trees.keys()
    marker = store.trees.marker_path(key)
    before = json.loads(marker.read_bytes())
    marker.write_text(json.dumps({**before, "boot_id": "an earlier one"}))
    inode = tree.stat().st_ino
    if damage == "emptied":
        os.truncate(tree / "curl/README", 0)
    elif damage == "lost":
        (tree / "curl/README").unlink()

    second = new_task(url)
    prepare(second, workspace, OPTIONS)
    assert check_prepared(second.task_id, workspace) == []
    assert (workspace.folder(second.task_id) / "src/curl/README").read_bytes() == b"curl\n"
    assert manifest.differences(tree) == []
    assert (tree.stat().st_ino == inode) is (damage == "none")
    assert json.loads(marker.read_bytes())["boot_id"] == before["boot_id"] != ""
    assert server.count("/a") == 1
