"""Where each source stands in a task's folder (contract for prepared tasks on disk)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from buttercup_dagster.sources.disk import make_folder, remove_tree
from buttercup_dagster.sources.errors import LayoutError, storing
from buttercup_dagster.sources.links import LinkMode, UsedMode, link_tree
from buttercup_dagster.sources.manifest import DIRECTORY, FILE, Entry, Manifest
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.unpacking.extract import FOLDER_MODE
from task_api.task import SourceType, Task

META_NAME: Final = "task_meta.json"
FOLDERS: Final = {
    SourceType.REPO: "src",
    SourceType.FUZZ_TOOLING: "fuzz-tooling",
    SourceType.DIFF: "diff",
}
"""Folder of each source type below the task's folder."""

_FILE_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class Placed:
    """One source in its place.

    Attributes:
        folder: its one top-level folder relative to the task's folder, such as "src/curl"; "src"
            where a repo has several.
        manifest: what was placed, seen from the task's folder.
        link_mode: how its files were made; of several modes the one that promises least.
    """

    folder: str
    manifest: Manifest
    link_mode: UsedMode


def place(
    source_type: SourceType,
    tree: Path,
    manifest: Manifest,
    focus: str,
    task_folder: Path,
    *,
    link_mode: LinkMode = "auto",
    stop: Stop | None = None,
) -> Placed:
    """Lay out a stored tree in a task's folder.

    A tree with exactly one top-level folder and nothing else is taken as it is. Any other is put
    into one: a repo into the first part of its focus, unless that folder is already among what it
    holds, fuzzing tooling into `fuzz-tooling`, a diff into `diff`. Consumers read the first entry
    of `fuzz-tooling/` and `diff/`.

    Args:
        source_type: the role of the tree.
        tree: its root in the store; it stays as it is.
        manifest: what it holds.
        focus: the focus of the task.
        task_folder: the folder that the task is put together in.
        link_mode: how its files are made; see `links.py`.
        stop: ends the work.

    Raises:
        LayoutError: the tree is empty.
        TreeChanged: the tree is not what its manifest says.
        StorageError: the disk is full or fails.
        Stopped, DeadlinePassed: by `stop`.

    After an error nothing of the source is left in the task's folder.
    """
    names = manifest.top_level
    first_of_focus = focus.split("/", maxsplit=1)[0]
    if not names:
        raise LayoutError(
            f"the archive of type '{source_type}' is empty; send one with a folder in it",
            code="empty_archive",
        )
    home = FOLDERS[source_type]
    parents = {home: Entry(DIRECTORY, mode=FOLDER_MODE)}
    if _stands_as_it_is(source_type, names, manifest, first_of_focus):
        root = home
        folder = f"{home}/{names[0]}" if len(names) == 1 else home
    else:
        root = folder = (
            f"{home}/{first_of_focus if source_type is SourceType.REPO else source_type}"
        )
        parents[root] = Entry(DIRECTORY, mode=FOLDER_MODE)
        make_folder(task_folder / home)
    try:
        used = link_tree(tree, manifest, task_folder / root, link_mode, stop)
    except BaseException:
        remove_tree(task_folder / home)
        raise
    return Placed(folder, Manifest.joined([Manifest.of(parents), manifest.below(root)]), used)


def _stands_as_it_is(
    source_type: SourceType, names: Sequence[str], manifest: Manifest, first_of_focus: str
) -> bool:
    if len(names) == 1 and manifest.has_directory(names[0]):
        return True
    return source_type is SourceType.REPO and manifest.has_directory(first_of_focus)


def write_meta(task: Task, task_folder: Path) -> Manifest:
    """Write `task_meta.json`: exactly the four keys that its readers accept.

    Returns:
        The manifest of that one file.

    Raises:
        StorageError: it cannot be written.
    """
    content = json.dumps(
        {
            "project_name": task.project_name,
            "focus": task.focus,
            "task_id": task.task_id,
            "metadata": dict(task.metadata),
        }
    ).encode("ascii")
    path = task_folder / META_NAME
    with storing("cannot write the file", path):
        path.write_bytes(content)
        path.chmod(_FILE_MODE)
    return Manifest.of({META_NAME: Entry(FILE, len(content), None, _FILE_MODE)})


def inside_git_work_tree(path: Path) -> Path | None:
    """The root of the git work tree that a folder lies in, or None.

    Inside one, `git apply` on a task's sources silently does nothing: keep tasks out of it.

    Args:
        path: the folder; it need not exist yet.
    """
    path = path.resolve()
    for folder in (path, *path.parents):
        if (folder / ".git").exists():
            return folder
    return None
