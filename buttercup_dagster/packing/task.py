"""Packing a whole task: the archives of its sources, its type and its focus."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.packing.folder import FolderContent
from buttercup_dagster.packing.git import GitRepository, is_repository, open_repository
from buttercup_dagster.packing.tarball import (
    Content,
    Entry,
    LeftOut,
    MemoryContent,
    Tarball,
    shown,
    write_tarball,
)
from task_api.task import (
    MAX_NAME_BYTES,
    SourceType,
    Task,
    TaskType,
    printable,
    problems_of,
)

TOOLING_FOLDER: Final = "fuzz-tooling"
DIFF_FOLDER: Final = "diff"
DIFF_FILE: Final = "ref.diff"

_NAMES_IN_NOTE: Final = 3
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f\\/\ud800-\udfff]")

OnProgress = Callable[[SourceType, int], None]
"""Called now and then with the bytes of a source's content packed so far."""


@dataclass(frozen=True, slots=True)
class PackedTask:
    """The archives of a task.

    Attributes:
        type: delta if there is a diff, else full.
        focus: the one top-level folder of the repo archive.
        sources: the archives by their role.
        notes: what the person should know, each one line: what was not packed, what is missing.
    """

    type: TaskType
    focus: str
    sources: Mapping[SourceType, Tarball]
    notes: tuple[str, ...]


def pack_task(
    path: Path,
    *,
    project_name: str,
    focus: str | None = None,
    fuzz_tooling: Path | None = None,
    base: str | None = None,
    into: Path,
    on_progress: OnProgress | None = None,
) -> PackedTask:
    """Pack a folder or a git repository, and the tooling for it, into the archives of a task.

    Of a git repository (a work tree or a bare one, not a folder inside) the commit HEAD is
    packed; of any other folder what is in it. The same goes for the tooling.

    Args:
        path: what is to be analysed.
        project_name: OSS-Fuzz project name.
        focus: name of the top-level folder; by default the folder's own, made safe.
        fuzz_tooling: a folder like OSS-Fuzz's, with `infra/` and `projects/`.
        base: name of a commit; makes a delta task, whose repo is the tree of this commit and
            whose diff leads from it to HEAD.
        into: the folder to write the archives into; made if it is not there, must not lie in
            what is packed.
        on_progress: told of each source's progress.

    Raises:
        PackingError: something is not as it has to be; the text says what to do.
    """
    for folder in (path, fuzz_tooling) if fuzz_tooling else (path,):
        _check_folder(folder, into)
    if base is not None and not is_repository(path):
        raise PackingError(
            f"{_shown(path)} is not a git repository, so there is no commit "
            f"'{printable(base)}' in it; give the folder that has the .git, or pack without a base"
        )
    focus = default_focus(path, project_name) if focus is None else focus
    _check_names(focus, project_name)
    work = _Packing(into, on_progress)
    if not is_repository(path):
        work.pack_repo(FolderContent(path), focus, path)
    else:
        with open_repository(path) as repository:
            work.pack_commits(repository, focus, path, base)
    if fuzz_tooling is not None:
        work.pack_tooling(fuzz_tooling, project_name)
    return PackedTask(
        TaskType.FULL if base is None else TaskType.DELTA, focus, work.sources, tuple(work.notes)
    )


def default_focus(path: Path, project_name: str) -> str:
    """A focus named like a folder, or like the project where the folder's name has nothing safe.

    Args:
        path: the folder; need not exist.
        project_name: OSS-Fuzz project name.
    """
    name = os.path.basename(os.path.abspath(path)).removesuffix(".git")  # noqa: PTH100, PTH119
    safe = _UNSAFE.sub("_", name).encode()[:MAX_NAME_BYTES].decode("utf-8", "ignore")
    return safe if safe.strip("._ ") else project_name


def _check_folder(path: Path, into: Path) -> None:
    if not path.is_dir():
        what = "is not a folder" if os.path.lexists(path) else "does not exist"
        raise PackingError(
            f"{_shown(path)} {what}; give a folder or a git repository (unpack an archive first)"
        )
    inside = Path(os.path.realpath(into))
    if inside.is_relative_to(os.path.realpath(path)):
        raise PackingError(
            f"the archives of {_shown(path)} would be written into it ({_shown(into)}); choose a "
            "folder outside of it for them"
        )


def _check_names(focus: str, project_name: str) -> None:
    if "/" in focus:
        raise PackingError(
            f"focus: '{printable(focus)}' holds a '/'; give the name of one folder, which the "
            "packed files are put into"
        )
    task = Task("", TaskType.FULL, project_name, focus, deadline_ms=0, sources=())
    for problem in problems_of(task, now_ms=0):
        if problem.path[0] in {"focus", "project_name"}:
            raise PackingError(str(problem))


class _Packing:
    """The archives of one task as they come."""

    def __init__(self, into: Path, on_progress: OnProgress | None) -> None:
        self.sources: dict[SourceType, Tarball] = {}
        self.notes: list[str] = []
        self._into = into
        self._on_progress = on_progress
        try:
            into.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise PackingError(
                f"the folder {_shown(into)} cannot be made: {error.strerror}; choose another one"
            ) from error

    def pack_repo(self, content: Content, focus: str, path: Path) -> None:
        if not self._pack(SourceType.REPO, content, focus).files:
            raise PackingError(
                f"there is no file in {_shown(path)} to pack; give the folder with the sources"
            )

    def pack_commits(
        self, repository: GitRepository, focus: str, path: Path, base: str | None
    ) -> None:
        head = repository.commit("HEAD")
        start = head if base is None else repository.commit(base)
        self._note_uncommitted(repository, path, head)
        tree = repository.tree(start)
        self.pack_repo(tree, focus, path)
        if base is None:
            return
        diff = repository.diff(start, head, without=tree.left_out_names)
        self._pack(SourceType.DIFF, MemoryContent({DIFF_FILE.encode(): diff}), DIFF_FOLDER)
        before, after = repository.submodules(start), repository.submodules(head)
        changed = [
            name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
        ]
        if changed:
            names = _listed([shown(name) for name in sorted(changed)])
            self.notes.append(f"the diff does not have the changes of submodules: {names}")

    def pack_tooling(self, path: Path, project_name: str) -> None:
        wanted = (b"infra/helper.py", f"projects/{project_name}/project.yaml".encode())
        if is_repository(path):
            with open_repository(path) as repository:
                head = repository.commit("HEAD")
                self._note_uncommitted(repository, path, head)
                watched = _Watched(repository.tree(head), wanted)
                self._pack(SourceType.FUZZ_TOOLING, watched, TOOLING_FOLDER)
        else:
            watched = _Watched(FolderContent(path), wanted)
            self._pack(SourceType.FUZZ_TOOLING, watched, TOOLING_FOLDER)
        missing = [name.decode() for name in wanted if name not in watched.seen]
        if missing:
            self.notes.append(
                f"the fuzz tooling lacks {' and '.join(missing)}, which consumers need; check "
                f"{_shown(path)} and the project name"
            )

    def _pack(self, source_type: SourceType, content: Content, top: str) -> Tarball:
        told = self._on_progress
        tarball = write_tarball(
            content,
            top,
            self._into / f"{source_type}.tar.gz",
            on_progress=None if told is None else lambda packed: told(source_type, packed),
        )
        if tarball.left_out:
            names = _listed([str(left_out) for left_out in tarball.left_out])
            self.notes.append(f"left out of the {source_type} archive: {names}")
        self.sources[source_type] = tarball
        return tarball

    def _note_uncommitted(self, repository: GitRepository, path: Path, head: str) -> None:
        if repository.has_uncommitted_changes():
            self.notes.append(
                f"{_shown(path)} has uncommitted changes, which are not packed; the commit "
                f"{head[:12]} is"
            )


class _Watched:
    """A content that remembers which of some names it had."""

    def __init__(self, content: Content, names: Collection[bytes]) -> None:
        self.seen: set[bytes] = set()
        self._content = content
        self._names = names

    @property
    def left_out(self) -> Sequence[LeftOut]:
        return self._content.left_out

    def entries(self) -> Generator[Entry, None, None]:
        for entry in self._content.entries():
            if entry.name in self._names:
                self.seen.add(entry.name)
            yield entry


def _shown(path: Path) -> str:
    return shown(os.fsencode(path))


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_IN_NOTE
    return ", ".join(names[:_NAMES_IN_NOTE]) + (f" and {more} more" if more > 0 else "")
