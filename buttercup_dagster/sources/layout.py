"""Where each source stands in a task's folder (contract for prepared tasks on disk)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from buttercup_dagster.sources.disk import make_folder
from buttercup_dagster.sources.errors import LayoutError, storing
from buttercup_dagster.sources.manifest import DIRECTORY, FILE, Entry, Manifest
from task_api.task import SourceType, Task

META_NAME: Final = "task_meta.json"
FOLDERS: Final = {
    SourceType.REPO: "src",
    SourceType.FUZZ_TOOLING: "fuzz-tooling",
    SourceType.DIFF: "diff",
}
"""Folder of each source type below the task's folder."""

_FOLDER_MODE: Final = 0o755
_FILE_MODE: Final = 0o644


@dataclass(frozen=True, slots=True)
class Placed:
    """One source in its place.

    Attributes:
        folder: its one top-level folder relative to the task's folder, such as "src/curl"; "src"
            where a repo has several.
        manifest: what was placed, seen from the task's folder.
    """

    folder: str
    manifest: Manifest


def place(
    source_type: SourceType, tree: Path, manifest: Manifest, focus: str, task_folder: Path
) -> Placed:
    """Move an unpacked tree into a task's folder.

    A tree with exactly one top-level folder and nothing else is taken as it is. Any other is put
    into one: a repo into the first part of its focus, unless that folder is already among what it
    holds, fuzzing tooling into `fuzz-tooling`, a diff into `diff`. Consumers read the first entry
    of `fuzz-tooling/` and `diff/`.

    Args:
        source_type: the role of the tree.
        tree: its root, on the same file system; it is moved away.
        manifest: what it holds.
        focus: the focus of the task.
        task_folder: the folder that the task is put together in.

    Raises:
        LayoutError: the tree is empty.
        StorageError: it cannot be moved.
    """
    names = manifest.top_level
    first_of_focus = focus.split("/", maxsplit=1)[0]
    if not names:
        raise LayoutError(
            f"the archive of type '{source_type}' is empty; send one with a folder in it",
            code="empty_archive",
        )
    home = FOLDERS[source_type]
    if _stands_as_it_is(source_type, manifest, first_of_focus):
        with storing("cannot lay out the task"):
            tree.chmod(_FOLDER_MODE)
            tree.rename(task_folder / home)
        folders = {home: Entry(DIRECTORY, mode=_FOLDER_MODE)}
        folder = f"{home}/{names[0]}" if len(names) == 1 else home
        return Placed(folder, _with(folders, manifest.below(home)))
    wrapper = first_of_focus if source_type is SourceType.REPO else str(source_type)
    folder = f"{home}/{wrapper}"
    make_folder(task_folder / home)
    with storing("cannot lay out the task"):
        tree.chmod(_FOLDER_MODE)
        tree.rename(task_folder / folder)
    folders = {path: Entry(DIRECTORY, mode=_FOLDER_MODE) for path in (home, folder)}
    return Placed(folder, _with(folders, manifest.below(folder)))


def _stands_as_it_is(source_type: SourceType, manifest: Manifest, first_of_focus: str) -> bool:
    names = manifest.top_level
    if len(names) == 1 and manifest.has_directory(names[0]):
        return True
    return source_type is SourceType.REPO and manifest.has_directory(first_of_focus)


def _with(folders: dict[str, Entry], manifest: Manifest) -> Manifest:
    return Manifest.joined([Manifest.of(folders), manifest])


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
