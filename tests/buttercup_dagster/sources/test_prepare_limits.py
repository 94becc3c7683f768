"""Stores that others own, odd umasks, and stops in each phase."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from buttercup_dagster.sources import prepare as preparing
from buttercup_dagster.sources.collect import Collection, Watermarks, collect
from buttercup_dagster.sources.disk import locked, names_in
from buttercup_dagster.sources.errors import NoSpace, Stopped, StorageError
from buttercup_dagster.sources.prepare import (
    SourceEvent,
    Workspace,
    check_prepared,
    clean_staging,
    prepare,
    remove_prepared,
)
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import Store
from buttercup_dagster.sources.trees import tree_key
from tests.buttercup_dagster.sources.support import DIGEST, OPTIONS, REPO, litter, new_task
from tests.support.archives import digest, source_archive
from tests.support.cases import case
from tests.support.disks import small_tmpfs
from tests.support.faults import FaultServer, serve
from tests.support.stopping import stop_when
from tests.support.users import as_ordinary_user


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "tasks", tmp_path / "store")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="buttercup-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@case("G11-umask")
def test_the_umask_does_not_matter(server: FaultServer, workspace: Workspace, case: str) -> None:
    task = new_task(server.on("/a", serve(REPO)))
    before = os.umask(0o077)
    try:
        path = prepare(task, workspace, OPTIONS).path
        assert check_prepared(task.task_id, workspace) == []
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in path.rglob("*")} == {0o755, 0o644}
    for folder in (workspace.tasks, workspace.store, workspace.store / "archives"):
        assert folder.stat().st_mode & 0o777 == 0o755


@case("G11-other_user")
def test_the_store_of_another_user_is_refused_clearly(
    server: FaultServer, open_folder: Path, case: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be two users")
    store = open_folder / "store"
    url = server.on("/a", serve(REPO))
    prepare(new_task(url), Workspace(open_folder / "tasks", store), OPTIONS)
    before = sorted(store.rglob("*"))
    theirs = Workspace(open_folder / "theirs", store)
    with (
        as_ordinary_user(),
        pytest.raises(
            StorageError, match="Permission denied; let the user of this process write there"
        ) as caught,
    ):
        prepare(new_task(url), theirs, OPTIONS)
    assert str(store) in str(caught.value)
    assert sorted(store.rglob("*")) == before
    assert names_in(theirs.staging) == []


@case("G11-read_only")
def test_a_store_that_nobody_may_write_to_is_refused_clearly(
    server: FaultServer, open_folder: Path, case: str
) -> None:
    store = open_folder / "store"
    with as_ordinary_user():
        store.mkdir(mode=0o555)
        with pytest.raises(StorageError, match="let the user of this process write there"):
            prepare(
                new_task(server.on("/a", serve(REPO))),
                Workspace(open_folder / "tasks", store),
                OPTIONS,
            )
    assert server.requests == []
    assert list(store.iterdir()) == []


def _children() -> list[str]:
    threads = Path("/proc/self/task").iterdir()
    return [child for one in threads for child in (one / "children").read_text().split()]


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(phase, id=f"G12-{phase}")
        for phase in ("fetching", "waiting", "verified", "unpacked", "task_lock")
    ],
)
def test_a_stop_ends_each_phase_and_leaves_nothing_half_done(
    server: FaultServer, workspace: Workspace, phase: str
) -> None:
    url = server.on(
        "/a", serve(REPO, cut_after=50, then="stall") if phase == "fetching" else serve(REPO)
    )
    task = new_task(url)
    store = Store(workspace.store)
    children = _children()
    arrived: list[str] = []

    def on_event(event: SourceEvent) -> None:
        if event.phase == phase:
            arrived.append(phase)
            stop.request("the task was cancelled")

    def has_arrived() -> bool:
        if phase == "fetching":
            parts = (store.root / "parts").glob("*.part")
            return any(path.stat().st_size == 50 for path in parts)
        if phase == "waiting":
            return any((store.root / "leases" / DIGEST).glob("*"))
        if phase == "task_lock":
            return any(workspace.staging.glob("*/task/task_meta.json"))
        return bool(arrived)

    lock = {"waiting": tree_key(DIGEST, "drop"), "task_lock": f"task-{task.task_id}"}
    with (
        stop_when(has_arrived, phase) as stop,
        locked(store.lock_path(lock.get(phase, "nobody's"))),
        pytest.raises(Stopped, match="the task was cancelled"),
    ):
        prepare(task, workspace, OPTIONS, stop=stop, on_event=on_event)
    kept = [path.suffix for path in names_in(store.root / "parts")]
    assert (".part" in kept) is (phase == "fetching")
    assert [path for path in litter(workspace) if not path.endswith(".part")] == []
    assert not workspace.folder(task.task_id).exists()
    assert not store.leases.in_use(DIGEST)
    assert _children() == children

    server.on("/a", serve(REPO))
    prepare(task, workspace, OPTIONS, stop=Stop())
    assert check_prepared(task.task_id, workspace) == []


# --- full disks ------------------------------------------------------------------------------

NO_RESERVE = replace(
    OPTIONS,
    fetch_limits=replace(OPTIONS.fetch_limits, reserve_bytes=0),
    watermarks=Watermarks(10**9, 0),
)


def test_a_full_disk_waits_for_another_collector(
    server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = threading.Event()

    def watched(store: Store, **options: object) -> Collection | None:
        done = collect(store, **options)  # type: ignore[arg-type]
        if done is None:
            refused.set()
        return done

    monkeypatch.setattr(preparing, "collect", watched)
    with small_tmpfs(tmp_path / "disk", "size=64m,nr_inodes=560") as disk:
        workspace = Workspace(disk / "tasks", disk / "store")
        unneeded, wanted = (
            source_archive({f"curl/{name}{n}": b"" for n in range(200)}) for name in "ab"
        )
        task = new_task(server.on("/a", serve(unneeded)), unneeded)
        prepare(task, workspace, replace(NO_RESERVE, link_mode="copy"))
        assert remove_prepared(task.task_id, workspace)
        store = Store(workspace.store)
        locking = threading.Event()

        def collect_slowly() -> None:
            with locked(store.lock_path("collector")):
                locking.set()
                assert refused.wait(60)

        other = threading.Thread(target=collect_slowly)
        other.start()
        try:
            assert locking.wait(60)
            task = new_task(server.on("/b", serve(wanted)), wanted)
            prepare(task, workspace, replace(NO_RESERVE, link_mode="copy"))
        finally:
            refused.set()
            other.join()
        assert check_prepared(task.task_id, workspace) == []
        assert store.trees.keys() == [tree_key(digest(wanted), "drop")]
        assert litter(workspace) == []


def test_a_full_disk_of_the_tasks_does_not_empty_the_store(
    server: FaultServer, tmp_path: Path
) -> None:
    with small_tmpfs(tmp_path / "disk", "size=64m,nr_inodes=100") as disk:
        workspace = Workspace(disk / "tasks", tmp_path / "store")
        task = new_task(server.on("/a", serve(REPO)))
        prepare(task, workspace, NO_RESERVE)
        assert remove_prepared(task.task_id, workspace)
        large = source_archive({f"curl/{n}": b"" for n in range(200)})
        with pytest.raises(NoSpace, match="free disk space"):
            prepare(new_task(server.on("/b", serve(large)), large), workspace, NO_RESERVE)
        store = Store(workspace.store)
        keys = [tree_key(one, "drop") for one in (DIGEST, digest(large))]
        assert store.trees.keys() == sorted(keys)
        assert len(list(store.archives())) == 2
        assert litter(workspace) == []


def test_half_written_manifests_are_cleared_away(server: FaultServer, workspace: Workspace) -> None:
    task = new_task(server.on("/a", serve(REPO)))
    prepare(task, workspace, OPTIONS)
    half = workspace.manifest(task.task_id).with_name(f".{task.task_id}.json.0123")
    half.write_bytes(b"{")
    with workspace.task_lock(task.task_id):
        assert clean_staging(workspace) == []
    assert clean_staging(workspace) == [half.name]
    half.write_bytes(b"{")
    (workspace.staging / f"{task.task_id}.0123").mkdir()  # of the attempt that died over it
    prepare(task, workspace, OPTIONS)
    assert litter(workspace) == []
    assert check_prepared(task.task_id, workspace) == []
