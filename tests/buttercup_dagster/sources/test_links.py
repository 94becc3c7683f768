"""Trees made of stored ones: each mode, what replaces it, and what writing to them does."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buttercup_dagster.sources import links
from buttercup_dagster.sources.archive import unpack
from buttercup_dagster.sources.errors import NoSpace, StorageError, TreeChanged
from buttercup_dagster.sources.links import LinkMode, link_tree
from buttercup_dagster.sources.manifest import Manifest
from buttercup_dagster.sources.prepare import PrepareOptions, Workspace, check_prepared, prepare
from buttercup_dagster.sources.store import Store
from task_api.task import SourceType
from tests.buttercup_dagster.sources.support import OPTIONS, REPO, new_task, tree_of
from tests.support.cases import case
from tests.support.disks import disk_with_clones, small_tmpfs
from tests.support.faults import FaultServer, serve
from tests.support.trees import difference
from tests.support.users import as_ordinary_user

Unpacked = tuple[Path, Manifest]


@pytest.fixture
def tree(tmp_path: Path) -> Unpacked:
    return unpacked(tmp_path)


def unpacked(folder: Path) -> Unpacked:
    (folder / "archive").write_bytes(REPO)
    return folder / "tree", unpack(folder / "archive", folder / "tree")


def without(mode: str, monkeypatch: pytest.MonkeyPatch, error: int, path: bytes = b"") -> None:
    """Let hard links or clones fail; of one path only, if one is given."""

    def link(source: bytes, *arguments: Any, **options: Any) -> None:
        if not path or source == path:
            raise OSError(error, os.strerror(error))
        original(source, *arguments, **options)

    def fail(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    original = os.link
    if mode == "hardlink":
        monkeypatch.setattr(os, "link", link)
    else:
        monkeypatch.setattr(links, "_clone_bytes", fail)


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize("mode", ["auto", "clone", "hardlink", "copy"])
def test_the_new_tree_equals_the_stored_one(
    tree: Unpacked, tmp_path: Path, mode: LinkMode, umask: int
) -> None:
    made = tmp_path / "made"
    before = os.umask(umask)
    try:
        used = link_tree(*tree, made, mode)
    finally:
        os.umask(before)
    assert difference(tree[0], made) == []
    assert tree[1].differences(made) == []
    assert made.stat().st_mode & 0o7777 == 0o755
    assert int((made / "curl/src").stat().st_mtime) == 1_600_000_000
    shared = (made / "curl/README").samefile(tree[0] / "curl/README")
    assert shared is (used == "hardlink")
    assert used in links.MODES[mode]
    # ext4 and tmpfs have no clones; a clone is not replaced by what cannot be written to.
    assert (mode, used) not in {("clone", "hardlink"), ("copy", "hardlink")}


@case("G9-device")
def test_to_another_file_system_everything_is_copied(
    tree: Unpacked, tmp_path: Path, case: str
) -> None:
    with small_tmpfs(tmp_path / "other", "size=4m") as other:
        assert link_tree(*tree, other / "made", "auto") == "copy"
        assert difference(tree[0], other / "made") == []


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        pytest.param("auto", errno.EOPNOTSUPP, id="G9-no_clones"),
        pytest.param("auto", errno.EXDEV, id="G9-clone_across"),
        pytest.param("clone", errno.EOPNOTSUPP, id="G9-clone_or_copy"),
    ],
)
def test_what_replaces_clones(
    tree: Unpacked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: LinkMode,
    error: int,
) -> None:
    without("clone", monkeypatch, error)
    used = link_tree(*tree, tmp_path / "made", mode)
    assert used == ("hardlink" if mode == "auto" else "copy")
    assert difference(tree[0], tmp_path / "made") == []


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV])
@case("G9-no_links")
def test_what_replaces_hard_links(
    tree: Unpacked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, case: str
) -> None:
    original = os.link

    def link(source: bytes, target: bytes, **options: Any) -> None:
        if options["src_dir_fd"] != options["dst_dir_fd"]:
            raise OSError(error, os.strerror(error))
        original(source, target, **options)  # further names of one file, in the new tree

    monkeypatch.setattr(os, "link", link)
    assert link_tree(*tree, tmp_path / "made", "hardlink") == "copy"
    assert difference(tree[0], tmp_path / "made") == []


@pytest.mark.parametrize("path", [b"curl/README", b"curl/src/main.c"])
@case("G9-EMLINK")
def test_a_file_with_too_many_names_is_copied(
    tree: Unpacked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: bytes, case: str
) -> None:
    """ext4 allows 65,000 names of a file."""
    original = os.link
    stored = (tree[0] / os.fsdecode(path)).stat().st_ino

    def link(source: bytes, target: bytes, **options: Any) -> None:
        inode = os.stat(source, dir_fd=options["src_dir_fd"]).st_ino
        # The last name that the stored file may have is the first one of the new tree.
        if inode == stored and (source == target) is (path == b"curl/README"):
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        original(source, target, **options)

    monkeypatch.setattr(os, "link", link)
    made = tmp_path / "made"
    # Somebody who writes to it would still write into the store.
    assert link_tree(*tree, made, "hardlink") == "hardlink"
    assert difference(tree[0], made) == []
    assert not (made / os.fsdecode(path)).samefile(tree[0] / os.fsdecode(path))
    assert (made / "curl/configure").samefile(tree[0] / "curl/configure")


@pytest.mark.parametrize("mode", ["hardlink", "clone"])
@case("G9-ENOSPC")
def test_a_full_disk_is_not_filled_further(
    tree: Unpacked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: LinkMode, case: str
) -> None:
    def copy(*_: object) -> int:
        raise AssertionError("copied")

    without(mode, monkeypatch, errno.ENOSPC)
    monkeypatch.setattr(links, "_copy_some", copy)
    with pytest.raises(NoSpace, match="free disk space"):
        link_tree(*tree, tmp_path / "made", mode)


@case("G9-full")
def test_copies_that_do_not_fit(tree: Unpacked, tmp_path: Path, case: str) -> None:
    with (
        small_tmpfs(tmp_path / "other", "size=64k,nr_inodes=6") as other,
        pytest.raises(NoSpace, match="free disk space"),
    ):
        link_tree(*tree, other / "made", "copy")


@case("G9-protected")
def test_files_of_another_user_are_copied(tmp_path_factory: Any, case: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be two users")
    if Path("/proc/sys/fs/protected_hardlinks").read_text().strip() != "1":
        pytest.skip("needs fs.protected_hardlinks=1")
    with small_tmpfs(Path("/run") / f"buttercup-{os.getpid()}", "size=4m,mode=1777") as place:
        tree = unpacked(place)
        with as_ordinary_user():
            assert link_tree(*tree, place / "made", "hardlink") == "copy"
        assert difference(tree[0], place / "made") == []
    Path("/run", f"buttercup-{os.getpid()}").rmdir()


@pytest.mark.parametrize(
    "kind", [pytest.param(k, id=f"G10-{k}") for k in ("empty", "full", "link")]
)
def test_a_destination_that_is_there_is_refused(tree: Unpacked, tmp_path: Path, kind: str) -> None:
    made, elsewhere = tmp_path / "made", tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "link":
        made.symlink_to(elsewhere)
    else:
        made.mkdir()
        if kind == "full":
            (made / "mine").write_text("kept")
    before = sorted(made.rglob("*"))
    with pytest.raises(StorageError, match="File exists"):
        link_tree(*tree, made)
    assert sorted(made.rglob("*")) == before
    assert list(elsewhere.iterdir()) == []


def _flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[::-1] + b"more")


def _retarget(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _part(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o644)
    os.utime(path, (1_700_000_000, 1_700_000_000))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param("curl/README", _flip, id="G7-bytes"),
        pytest.param("curl/README", Path.unlink, id="G7-deleted"),
        pytest.param("curl/README", lambda path: path.chmod(0o666), id="G7-mode"),
        pytest.param("curl/README", lambda path: os.utime(path, (0, 0)), id="G7-time"),
        pytest.param("curl/README", _retarget, id="G7-type"),
        pytest.param("curl/link", _retarget, id="G7-link"),
        pytest.param("curl/src/again.c", _part, id="G7-other_file"),
        pytest.param("curl/src", lambda path: path.chmod(0o777), id="G7-folder"),
        pytest.param("curl", lambda path: path.rename(path.with_name("x")), id="G7-moved"),
        pytest.param(
            "curl/src",
            lambda path: (path.rename(path.parent.parent / "y"), path.symlink_to("../y")),
            id="G7-folder_link",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["hardlink", "copy"])
def test_a_changed_tree_is_noticed_while_it_is_linked(
    tree: Unpacked, tmp_path: Path, name: str, change: Callable[[Path], object], mode: LinkMode
) -> None:
    change(tree[0] / name)
    with pytest.raises(TreeChanged, match="curl"):
        link_tree(*tree, tmp_path / "made", mode)


# --- consumers that write --------------------------------------------------------------------


def _write_in_place(path: Path) -> None:
    path.write_bytes(b"CURL\n")


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more\n")


def _replace_with_sed(path: Path) -> None:
    subprocess.run(["sed", "-i", "s/curl/CURL/", str(path)], check=True)


def _patch(path: Path) -> None:
    text = "--- a/README\n+++ b/README\n@@ -1 +1 @@\n-curl\n+CURL\n"
    subprocess.run(["git", "apply", "-p1", "-"], input=text, text=True, cwd=path.parent, check=True)


WRITERS = {
    "in_place": _write_in_place,
    "append": _append,
    "sed": _replace_with_sed,
    "patch": _patch,
}


def _written_task(
    server: FaultServer, folder: Path, mode: LinkMode, writer: str
) -> tuple[Workspace, str, str]:
    """A task whose consumer has written to a file, and the mode its files were made by."""
    workspace = Workspace(folder / "tasks", folder / "store")
    task = new_task(server.on("/a", serve(REPO)))
    options = _with_mode(mode)
    prepared = prepare(task, workspace, options)
    readme = prepared.path / "src/curl/README"
    WRITERS[writer](readme)
    assert readme.read_bytes() != b"curl\n"
    return workspace, task.sources[0].urls[0], prepared.sources[SourceType.REPO].link_mode


def _with_mode(mode: LinkMode) -> PrepareOptions:
    return replace(OPTIONS, link_mode=mode)


@pytest.mark.parametrize("writer", [pytest.param(one, id=f"G8-copy-{one}") for one in WRITERS])
def test_writing_to_copies_leaves_the_store_alone(
    server: FaultServer, tmp_path: Path, writer: str
) -> None:
    workspace, _, used = _written_task(server, tmp_path, "copy", writer)
    assert used == "copy"
    path, manifest = tree_of(Store(workspace.store))
    assert manifest.differences(path) == []
    assert (path / "curl/README").read_bytes() == b"curl\n"


@pytest.mark.parametrize("writer", [pytest.param(one, id=f"G8-clone-{one}") for one in WRITERS])
def test_writing_to_clones_leaves_the_store_alone(
    server: FaultServer, tmp_path: Path, writer: str
) -> None:
    with disk_with_clones(tmp_path) as disk:
        workspace, _, used = _written_task(server, disk, "auto", writer)
        assert used == "clone"
        path, manifest = tree_of(Store(workspace.store))
        assert manifest.differences(path) == []
        assert (path / "curl/README").read_bytes() == b"curl\n"


@pytest.mark.parametrize("writer", [pytest.param(one, id=f"G8-hardlink-{one}") for one in WRITERS])
def test_writing_to_hard_links_is_noticed_by_the_next_task(
    server: FaultServer, tmp_path: Path, writer: str
) -> None:
    """Hard links are for readers; who writes all the same harms no later task."""
    workspace, url, used = _written_task(server, tmp_path, "hardlink", writer)
    assert used == "hardlink"
    second = new_task(url)
    prepared = prepare(second, workspace, _with_mode("hardlink"))
    assert (prepared.path / "src/curl/README").read_bytes() == b"curl\n"
    assert check_prepared(second.task_id, workspace) == []
    path, manifest = tree_of(Store(workspace.store))
    assert manifest.differences(path) == []
    assert server.count("/a") == 1
