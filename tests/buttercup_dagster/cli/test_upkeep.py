"""`buttercup-downloader verify` and `gc`: looking after what is stored."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from buttercup_dagster.sources.disk import locked
from buttercup_dagster.sources.prepare import Workspace, prepare, remove_prepared
from buttercup_dagster.sources.store import Store
from task_api.task import Task
from tests.buttercup_dagster.cli.conftest import COLUMNS, Commands, end
from tests.buttercup_dagster.sources.support import DIGEST, OPTIONS, REPO, litter, new_task, tree_of
from tests.support.disks import small_tmpfs
from tests.support.faults import FaultServer, serve
from tests.support.waiting import wait_for

PROGRAM = "buttercup-downloader"
KEY = f"{DIGEST}-1-drop"


@pytest.fixture
def workspace(home: Path) -> Workspace:
    return Workspace(home / "tasks", home / "store")


@pytest.fixture
def task(workspace: Workspace) -> Task:
    """A prepared task of hard-linked files."""
    with FaultServer() as server:
        made = new_task(server.on("/a", serve(REPO)))
        prepare(made, workspace, replace(OPTIONS, link_mode="hardlink"))
    return made


def lines(done: subprocess.CompletedProcess[str], status: int) -> list[str]:
    """What was printed, in lines that fit; nothing else may have been said."""
    assert (done.returncode, done.stderr) == (status, "")
    return done.stdout.splitlines()


def test_all_is_well(commands: Commands, task: Task) -> None:
    for flags in ([], ["--full"]):
        (line,) = lines(commands.run(PROGRAM, "verify", *flags), 0)
        assert line == "compared 1 archive, 1 tree and 1 task: all as it was written"


def test_what_is_wrong_is_named_and_mended(
    commands: Commands, task: Task, workspace: Workspace
) -> None:
    tree, _ = tree_of(Store(workspace.store))
    (tree / "curl/README").write_bytes(b"CURL\n")

    kept = lines(commands.run(PROGRAM, "verify", "--no-repair"), 1)
    assert kept[:3] == [
        f"tree {KEY}",
        "  curl/README: has another modification time",
        "  nothing was changed; run verify without --no-repair",
    ]
    mended = lines(commands.run(PROGRAM, "verify"), 1)
    assert mended == [
        f"tree {KEY}",
        "  curl/README: has another modification time",
        "  made again from its archive",
        f"task {task.task_id}",
        "  src/curl/README: has another modification time",
        "  materialize its partition in Dagster, or post it under another id",
        "compared 1 archive, 1 tree and 1 task: 2 not as it was written",
    ]
    assert max(map(len, [*kept, *mended])) <= COLUMNS
    assert lines(commands.run(PROGRAM, "verify"), 1)[0] == f"task {task.task_id}"


def test_verify_for_programs(commands: Commands, task: Task, workspace: Workspace) -> None:
    path = Store(workspace.store).archive_path(DIGEST)
    path.chmod(0o644)
    path.write_bytes(REPO[:-1] + b"\x01")
    for flags in (["verify", "--json"], ["--json", "verify", "--full"]):
        done = commands.run(PROGRAM, *flags)
        found = json.loads(done.stdout)
        assert (done.returncode == 1) is bool(found["findings"])
        assert (found["trees"], found["tasks"], found["busy"]) == (1, 1, [])
        if "--full" not in flags:
            (finding,) = found["findings"]
            assert (finding["kind"], finding["name"]) == ("archive", DIGEST)
            assert finding["outcome"].startswith("put into quarantine")
        else:
            assert found["unread"] == [KEY]


def test_what_was_not_compared_is_counted(
    commands: Commands, task: Task, workspace: Workspace
) -> None:
    store = Store(workspace.store)
    with locked(store.lock_path(DIGEST)):
        assert lines(commands.run(PROGRAM, "verify"), 0) == [
            f"{DIGEST}: busy, not compared",
            "compared 0 archives, 1 tree and 1 task: all as it was written, except 1 not compared",
        ]
    store.remove(DIGEST)
    assert lines(commands.run(PROGRAM, "verify", "--full"), 0) == [
        f"{KEY}:",
        "  what it is made of cannot be read, so its bytes were not compared",
        "compared 0 archives, 1 tree and 1 task: all as it was written, except 1 not compared",
    ]


def test_what_cannot_be_compared_is_named(
    commands: Commands, task: Task, workspace: Workspace
) -> None:
    lock = Store(workspace.store).lock_path(DIGEST)
    lock.unlink(missing_ok=True)
    lock.mkdir()
    (workspace.folder(task.task_id) / "src/curl/extra").touch()
    found = lines(commands.run(PROGRAM, "verify"), 1)
    assert found == [
        f"archive {DIGEST}",
        f"  cannot be compared: cannot open the lock ({lock}): Is a directory",
        "  nothing was changed; remove the cause, and run verify again",
        f"task {task.task_id}",
        "  src/curl/extra: is not in the manifest",
        "  materialize its partition in Dagster, or post it under another id",
        "compared 0 archives, 1 tree and 1 task: 1 not as it was written, 1 not compared",
    ]


def test_a_store_that_stays_above_its_marks(
    commands: Commands, task: Task, workspace: Workspace
) -> None:
    marks = ("--max_store_bytes", "0", "--min_free_bytes", str(2**62))
    done = lines(commands.run(PROGRAM, "gc", *marks), 0)
    above, little_free = done[-2:]
    assert above == (
        "still above --max_store_bytes (0 B): what is left is needed; remove tasks, or raise it"
    )
    assert little_free.startswith("still less than --min_free_bytes (4294967296.0 GiB) free: ")
    assert little_free.endswith("remove tasks, or free the disk of other things")
    assert json.loads(commands.run(PROGRAM, "--json", "gc", *marks).stdout)["above_marks"]
    assert not any(line.startswith("still") for line in lines(commands.run(PROGRAM, "gc"), 0))
    assert not json.loads(commands.run(PROGRAM, "--json", "gc").stdout)["above_marks"]


def test_collecting(commands: Commands, task: Task, workspace: Workspace) -> None:
    kept = lines(commands.run(PROGRAM, "gc", "--all"), 0)
    assert kept[0] == "removed: 0 things, 0 B"
    assert kept[1] == "kept: 2 things that tasks need or somebody works with"
    assert remove_prepared(task.task_id, workspace)

    would = lines(commands.run(PROGRAM, "gc", "--all", "--dry_run"), 0)
    assert [line.split()[0] for line in would[:3]] == ["KIND", "tree", "archive"]
    assert would[3].startswith("would be removed: 2 things, ")
    assert max(map(len, would)) <= COLUMNS
    assert lines(commands.run(PROGRAM, "gc"), 0)[0] == "removed: 0 things, 0 B"

    done = json.loads(commands.run(PROGRAM, "--json", "gc", "--max_store_bytes", "0").stdout)
    assert [one["kind"] for one in done["removed"]] == ["tree", "archive"]
    assert [one["name"] for one in done["removed"]] == [KEY, DIGEST]
    assert (done["after"]["store_bytes"], done["dry_run"]) == (0, False)
    assert list(Store(workspace.store).archives()) == []


def test_what_cannot_be_removed_is_told(commands: Commands, workspace: Workspace) -> None:
    broken = workspace.store / "trash" / "0"
    broken.mkdir(parents=True)
    with small_tmpfs(broken / "mounted", "size=64k"):
        done = lines(commands.run(PROGRAM, "gc"), 1)
        told = [line for line in done if "cannot remove" in line]
        assert len(told) == 1
        assert str(broken) in told[0]
        found = json.loads(commands.run(PROGRAM, "--json", "gc").stdout)
        assert [str(broken) in problem for problem in found["problems"]] == [True]
    assert json.loads(commands.run(PROGRAM, "--json", "gc").stdout)["problems"] == []
    assert not broken.exists()


def test_only_one_collects(commands: Commands, task: Task, workspace: Workspace) -> None:
    with locked(Store(workspace.store).lock_path("collector")):
        done = commands.run(PROGRAM, "gc")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"{PROGRAM}: another process is collecting; try again when it has ended\n"
    )


@pytest.mark.parametrize("command", [["verify", "--fast"], ["gc", "everything"], ["tidy"]])
def test_wrong_usage(commands: Commands, command: list[str]) -> None:
    done = commands.run(PROGRAM, *command)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--help" in done.stderr


def endless(workspace: Workspace) -> Path:
    """An archive that takes hours to read, and next to nothing of the disk."""
    path = Store(workspace.store).archive_path("ab" + "0" * 62)
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(2**42)
    path.chmod(0o444)
    return path


def test_ctrl_c_leaves_nothing_behind(commands: Commands, task: Task, workspace: Workspace) -> None:
    path = endless(workspace)
    with commands.terminal(PROGRAM, "verify", "--full") as terminal:
        terminal.shows("archive")
        terminal.press_ctrl_c()
        assert terminal.wait() == 130
        assert any("stopped; nothing half-done is left" in line for line in terminal.lines)
        assert "Traceback" not in terminal.raw
        assert max(len(line.removesuffix("^C")) for line in terminal.lines) <= COLUMNS
    path.unlink()
    assert litter(workspace) == []


def test_a_signal_ends_it_like_ctrl_c(commands: Commands, task: Task, workspace: Workspace) -> None:
    path = endless(workspace)
    process = commands.start(PROGRAM, "verify", "--full")
    wait_for(lambda: path in opened_by(process), "the archive to be read")
    status, out, err = end(process, signal.SIGTERM)
    assert (status, out) == (130, "")
    assert err == f"{PROGRAM}: stopped; nothing half-done is left\n"


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ctrl_c_tells_what_was_found_before(
    commands: Commands, task: Task, workspace: Workspace, flags: list[str]
) -> None:
    wrong = Store(workspace.store).archive_path("aa" + "0" * 62)
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"other")
    wrong.chmod(0o444)
    path = endless(workspace)
    process = commands.start(PROGRAM, "verify", "--full", *flags)
    wait_for(lambda: path in opened_by(process), "the endless archive to be read")
    status, out, err = end(process, signal.SIGINT)
    assert (status, err) == (130, f"{PROGRAM}: stopped; nothing half-done is left\n")
    assert not wrong.exists()
    if flags:
        found = json.loads(out)
        assert found["complete"] is False
        assert wrong.name in [one["name"] for one in found["findings"]]
    else:
        assert f"archive {wrong.name}" in out.splitlines()
        assert "until it was stopped: 1 not as it was written" in out.splitlines()[-1]


def opened_by(process: subprocess.Popen[str]) -> list[Path]:
    """The files that a process has open."""
    found = []
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(entry.readlink())
    return found
