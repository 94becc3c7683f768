from __future__ import annotations

import errno
import json
import multiprocessing
import os
import stat
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buttercup_dagster.sources import disk
from buttercup_dagster.sources.archive import ArchiveError
from buttercup_dagster.sources.errors import (
    DeadlinePassed,
    HttpStatus,
    LayoutError,
    SourceError,
    SpecError,
    Stopped,
    StorageError,
)
from buttercup_dagster.sources.fetch import FetchPolicy
from buttercup_dagster.sources.layout import inside_git_work_tree
from buttercup_dagster.sources.prepare import (
    PrepareOptions,
    SourceEvent,
    Workspace,
    check_prepared,
    clean_staging,
    prepare,
    rebuild,
    remove_prepared,
)
from buttercup_dagster.sources.stop import Stop
from task_api.task import Source, SourceType, Task, TaskType
from tests.buttercup_dagster.sources.conftest import QUICK
from tests.support.archives import digest, file, folder, packed, source_archive, symlink
from tests.support.faults import FaultServer, reply, serve
from tests.support.waiting import wait_for

TASK_ID = "3f2b8c1e-0d4a-4e6b-9a7c-5d1e2f3a4b5c"
REPO = source_archive({"curl/README": b"curl\n", "curl/src/main.c": b"int main;\n"})
TOOLING = source_archive(
    {"oss-fuzz/infra/helper.py": b"", "oss-fuzz/projects/curl/project.yaml": b"language: c\n"}
)
DIFF = source_archive({"diff/ref.diff": b"--- a\n+++ b\n"})
METADATA: dict[str, Any] = {"round.id": "final", "nested": {"ä": [1, 2.5, None, True]}}

OPTIONS = PrepareOptions(fetch_limits=QUICK)


class Refused(Exception):
    pass


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home" / "tasks", tmp_path / "home" / "store")


def task_of(server: FaultServer, focus: str = "curl", **archives: bytes) -> Task:
    types = {"repo": SourceType.REPO, "tooling": SourceType.FUZZ_TOOLING, "diff": SourceType.DIFF}
    sources = tuple(
        Source(types[name], digest(data), (server.on(f"/{name}.tar.gz", serve(data)),))
        for name, data in archives.items()
    )
    return Task(TASK_ID, TaskType.FULL, "curl", focus, 2**42, sources, METADATA)


def names(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*") if not p.is_dir()}


def left_over(workspace: Workspace) -> list[str]:
    """What a failed attempt left where only finished work may be."""
    staging = list(workspace.staging.iterdir()) if workspace.staging.exists() else []
    tasks = [p for p in workspace.tasks.iterdir() if not p.name.startswith(".")]
    manifests = list((workspace.tasks / ".manifests").iterdir())
    private = [p for name in ("staging", "trash") for p in (workspace.store / name).glob("*")]
    return [str(p) for p in (*staging, *tasks, *manifests, *private)]


def test_task_is_laid_out_as_its_readers_expect(server: FaultServer, workspace: Workspace) -> None:
    task = task_of(server, repo=REPO, tooling=TOOLING, diff=DIFF)
    steps: list[str] = []
    events: list[SourceEvent] = []
    path = workspace.tasks / TASK_ID

    def confirm() -> None:
        assert not path.exists()
        steps.append("confirm")

    def announce(published: Path) -> None:
        assert published == path
        assert (path / "task_meta.json").exists()
        assert check_prepared(TASK_ID, workspace) == []
        steps.append("announce")

    before = os.umask(0o077)
    try:
        prepared = prepare(
            task,
            workspace,
            OPTIONS,
            confirm=confirm,
            announce=announce,
            on_event=events.append,
        )
    finally:
        os.umask(before)
    assert steps == ["confirm", "announce"]
    assert names(path) == {
        "task_meta.json",
        "src/curl/README",
        "src/curl/src/main.c",
        "fuzz-tooling/oss-fuzz/infra/helper.py",
        "fuzz-tooling/oss-fuzz/projects/curl/project.yaml",
        "diff/diff/ref.diff",
    }
    assert json.loads((path / "task_meta.json").read_text()) == {
        "project_name": "curl",
        "focus": "curl",
        "task_id": TASK_ID,
        "metadata": METADATA,
    }
    for entry in (path, *path.rglob("*")):
        mode = stat.S_IMODE(entry.stat().st_mode)
        assert mode == (0o755 if entry.is_dir() else 0o644), entry
    assert list(workspace.staging.iterdir()) == []

    repo = prepared.sources[SourceType.REPO]
    assert prepared.path == path
    assert (repo.sha256, repo.host, repo.bytes) == (digest(REPO), "127.0.0.1", len(REPO))
    assert (repo.files, repo.tree_bytes, repo.cache_hit) == (2, 15, False)
    assert repo.path == path / "src" / "curl"
    assert "src/curl/README" in repo.names
    for kind in SourceType:
        phases = [event.phase for event in events if event.source_type == kind]
        assert phases[0] == "fetching"
        assert phases[-2:] == ["verified", "unpacked"]

    again = prepare(replace(task, task_id=TASK_ID.upper()), workspace, OPTIONS)
    assert again.sources[SourceType.REPO].cache_hit
    assert json.loads((path / "task_meta.json").read_text())["task_id"] == TASK_ID
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("focus", "archive", "expected"),
    [
        ("curl", {"README": b"", "src/a.c": b""}, {"src/curl/README", "src/curl/src/a.c"}),
        ("curl/lib", {"README": b"", "x": b""}, {"src/curl/README", "src/curl/x"}),
        ("curl", {"curl/a": b"", "extra": b""}, {"src/curl/a", "src/extra"}),
        ("curl/lib", {"curl/lib/a": b"", "o/b": b""}, {"src/curl/lib/a", "src/o/b"}),
        ("curl", {"curl": b"a file"}, {"src/curl/curl"}),
        ("curl", {"other/a": b""}, {"src/other/a"}),
    ],
)
def test_repo_gets_its_top_level_folder(
    server: FaultServer,
    workspace: Workspace,
    focus: str,
    archive: dict[str, bytes],
    expected: set[str],
) -> None:
    prepared = prepare(task_of(server, focus, repo=source_archive(archive)), workspace)
    assert names(prepared.path) - {"task_meta.json"} == expected
    assert check_prepared(TASK_ID, workspace) == []
    assert prepared.sources[SourceType.REPO].path.is_dir()


def test_tooling_and_diff_get_exactly_one_folder(server: FaultServer, workspace: Workspace) -> None:
    task = task_of(
        server,
        repo=REPO,
        tooling=source_archive({"infra/helper.py": b"", "projects/curl/project.yaml": b""}),
        diff=source_archive({"ref.diff": b"", "second.diff": b""}),
    )
    path = prepare(task, workspace).path
    assert [p.name for p in (path / "fuzz-tooling").iterdir()] == ["fuzz-tooling"]
    assert [p.name for p in (path / "diff").iterdir()] == ["diff"]
    assert (path / "fuzz-tooling/fuzz-tooling/infra/helper.py").exists()
    assert (path / "diff/diff/ref.diff").exists()
    assert check_prepared(TASK_ID, workspace) == []


def test_empty_archive_is_refused(server: FaultServer, workspace: Workspace) -> None:
    with pytest.raises(LayoutError, match="is empty") as caught:
        prepare(task_of(server, repo=packed()), workspace)
    assert caught.value.source_type is SourceType.REPO
    assert left_over(workspace) == []


def test_dropped_links_are_counted(server: FaultServer, workspace: Workspace) -> None:
    archive = packed(folder(b"curl/"), file(b"curl/a"), symlink(b"curl/out", b"/etc"))
    prepared = prepare(task_of(server, repo=archive), workspace)
    assert prepared.sources[SourceType.REPO].dropped_links == 1


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"task_id": "../../etc"}, "not a UUID"),
        ({"task_id": ""}, "not a UUID"),
        ({"focus": "../up"}, "focus"),
        ({"focus": "/absolute"}, "focus"),
        ({"focus": ""}, "focus"),
        ({"sources": ()}, "no source of type 'repo'"),
        ({"sources": (Source(SourceType.REPO, "0" * 64, ()),)}, "no URL"),
        ({"sources": (Source(SourceType.REPO, "0" * 64, ()),) * 2}, "two sources"),
    ],
)
def test_unusable_task_is_refused(
    server: FaultServer, workspace: Workspace, changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(SpecError, match=text):
        prepare(replace(task_of(server, repo=REPO), **changes), workspace)
    assert server.requests == []


def test_first_error_stops_the_others(server: FaultServer, workspace: Workspace) -> None:
    task = task_of(server, repo=REPO, tooling=TOOLING)
    server.on("/repo.tar.gz", serve(REPO, cut_after=10, then="stall"))
    server.on("/tooling.tar.gz", reply(404))
    with pytest.raises(HttpStatus) as caught:
        prepare(task, workspace)
    assert caught.value.source_type is SourceType.FUZZ_TOOLING
    assert left_over(workspace) == []


def test_bad_archive_names_its_source(server: FaultServer, workspace: Workspace) -> None:
    task = task_of(server, repo=REPO, tooling=packed(file(b"../evil")))
    with pytest.raises(ArchiveError) as caught:
        prepare(task, workspace)
    assert caught.value.source_type is SourceType.FUZZ_TOOLING
    assert left_over(workspace) == []


@pytest.mark.parametrize("where", ["confirm", "announce"])
def test_refusal_leaves_nothing(server: FaultServer, workspace: Workspace, where: str) -> None:
    def refuse(*_: object) -> None:
        raise Refused

    hooks: dict[str, Any] = {where: refuse}
    with pytest.raises(Refused):
        prepare(task_of(server, repo=REPO), workspace, **hooks)
    assert left_over(workspace) == []
    with pytest.raises(Refused):
        prepare(task_of(server, repo=REPO), workspace, **hooks)
    assert server.count("/repo.tar.gz") == 1


def test_stale_attempt_leaves_the_published_folder_alone(
    server: FaultServer, workspace: Workspace
) -> None:
    def refuse() -> None:
        raise Refused

    task = task_of(server, repo=REPO)
    prepare(task, workspace)
    with pytest.raises(Refused):
        prepare(task, workspace, confirm=refuse)
    assert check_prepared(TASK_ID, workspace) == []


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_leftover_of_a_dead_attempt_is_replaced(
    server: FaultServer, workspace: Workspace, kind: str, tmp_path: Path
) -> None:
    workspace.tasks.mkdir(parents=True)
    leftover = workspace.tasks / TASK_ID
    if kind == "folder":
        (leftover / "src").mkdir(parents=True)
        (leftover / "src" / "stale").touch()
        (leftover / "src").chmod(0)
    elif kind == "file":
        leftover.touch()
    else:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "file").touch()
        leftover.symlink_to(tmp_path / "kept")
    prepare(task_of(server, repo=REPO), workspace)
    assert check_prepared(TASK_ID, workspace) == []
    assert not leftover.is_symlink()
    assert kind != "link" or (tmp_path / "kept" / "file").exists()
    assert list(workspace.staging.iterdir()) == []


@pytest.mark.parametrize("by", ["request", "deadline"])
def test_cancel_in_the_middle_leaves_nothing(
    server: FaultServer, workspace: Workspace, by: str
) -> None:
    task = task_of(server, repo=REPO, tooling=TOOLING)
    server.on("/repo.tar.gz", serve(REPO, cut_after=10, then="stall"))
    stop = Stop(int(time.time() * 1000) + 500 if by == "deadline" else None)

    def ask() -> None:
        server.wait_for_request("/repo.tar.gz")
        stop.request("the task was cancelled")

    thread = threading.Thread(target=ask)
    if by == "request":
        thread.start()
    with pytest.raises(Stopped if by == "request" else DeadlinePassed):
        prepare(task, workspace, stop=stop)
    assert left_over(workspace) == []
    if by == "request":
        thread.join()


def test_change_is_noticed_and_rebuilt(server: FaultServer, workspace: Workspace) -> None:
    assert check_prepared(TASK_ID, workspace) == ["the manifest of the task is missing"]
    task = task_of(server, repo=REPO)
    path = prepare(task, workspace).path
    (path / "src/curl/README").write_text("changed")
    (path / "src/curl/extra").touch()
    found = "\n".join(check_prepared(TASK_ID, workspace))
    assert "src/curl/README" in found
    assert "src/curl/extra: is not in the manifest" in found
    rebuilt = rebuild(task, workspace)
    assert rebuilt.sources[SourceType.REPO].cache_hit
    assert check_prepared(TASK_ID, workspace) == []
    assert (path / "src/curl/README").read_text() == "curl\n"
    subprocess.run(["rm", "-r", path], check=True)
    assert check_prepared(TASK_ID, workspace) == ["the folder of the task is missing"]


def test_remove(server: FaultServer, workspace: Workspace) -> None:
    assert not remove_prepared(TASK_ID, workspace)
    prepare(task_of(server, repo=REPO), workspace)
    assert remove_prepared(TASK_ID.upper(), workspace)
    assert left_over(workspace) == []
    assert not remove_prepared(TASK_ID, workspace)
    with pytest.raises(SpecError):
        remove_prepared("..", workspace)
    with pytest.raises(SpecError):
        check_prepared("../x", workspace)


def test_local_files_without_digest(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "repo.tar.gz").write_bytes(REPO)
    source = Source(SourceType.REPO, "", ((tmp_path / "repo.tar.gz").as_uri(),))
    task = Task(TASK_ID, TaskType.FULL, "curl", "curl", 2**42, (source,))
    with pytest.raises(SourceError, match="not allowed"):
        prepare(task, workspace)
    prepared = prepare(task, workspace, PrepareOptions(policy=FetchPolicy(allow_file=True)))
    assert prepared.sources[SourceType.REPO].sha256 == digest(REPO)
    assert prepared.sources[SourceType.REPO].host == "local file"


def _prepare_and_hang(url: str, tasks: Path, store: Path, where: str, ready: Path) -> None:
    def hang(*_: object) -> None:
        ready.touch()
        threading.Event().wait()

    sources = (Source(SourceType.REPO, digest(REPO), (url,)),)
    task = Task(TASK_ID, TaskType.FULL, "curl", "curl", 2**42, sources)
    hooks: dict[str, Any] = {"confirm" if where == "download" else where: hang}
    prepare(task, Workspace(tasks, store), **hooks)


@pytest.mark.parametrize("where", ["download", "confirm", "announce"])
def test_killed_attempt_is_cleared_by_the_next(
    server: FaultServer, workspace: Workspace, where: str, tmp_path: Path
) -> None:
    task = task_of(server, repo=REPO)
    if where == "download":
        server.on("/repo.tar.gz", serve(REPO, cut_after=10, then="stall"), serve(REPO))
    ready = tmp_path / "ready"
    process = multiprocessing.get_context("spawn").Process(
        target=_prepare_and_hang,
        args=(server.url("/repo.tar.gz"), workspace.tasks, workspace.store, where, ready),
    )
    process.start()
    if where == "download":
        server.wait_for_request("/repo.tar.gz")
    else:
        wait_for(ready.exists, "the other process")
    wait_for(lambda: list(workspace.staging.iterdir()), "the staging folder")
    assert clean_staging(workspace) == []
    process.kill()
    process.join()
    assert len(list(workspace.staging.iterdir())) == 1
    prepare(task, workspace)
    assert list(workspace.staging.iterdir()) == []
    assert list((workspace.store / "parts").iterdir()) == []
    assert check_prepared(TASK_ID, workspace) == []


def test_git_work_tree_is_found(tmp_path: Path) -> None:
    assert inside_git_work_tree(tmp_path / "a/b") is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".git").write_text("gitdir: elsewhere")
    assert inside_git_work_tree(tmp_path / "a" / "b" / "c") == (tmp_path / "a").resolve()


def test_failed_rebuild_leaves_the_old_folder(
    server: FaultServer, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(server, repo=REPO)
    prepared = prepare(task, workspace)
    before = workspace.manifest(TASK_ID).read_bytes()
    inode = prepared.path.stat().st_ino
    broken = [True]

    def sync(path: Path) -> None:
        if broken.pop():
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("buttercup_dagster.sources.publish.sync_folder", sync)
    with pytest.raises(StorageError, match="Input/output error"):
        rebuild(task, workspace)
    assert prepared.path.stat().st_ino == inode
    assert workspace.manifest(TASK_ID).read_bytes() == before
    assert check_prepared(TASK_ID, workspace) == []
    assert list(workspace.staging.iterdir()) == []


@pytest.mark.parametrize("in_one_step", [True, False])
def test_exchange_swaps_two_folders(tmp_path: Path, in_one_step: bool) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for made in (one, other):
        made.mkdir()
        (made / made.name).touch()
    (disk.exchange if in_one_step else disk._exchange_in_steps)(one, other)
    assert [path.name for path in one.iterdir()] == ["other"]
    assert [path.name for path in other.iterdir()] == ["one"]
    with pytest.raises(FileNotFoundError):
        disk.exchange(one, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"]
