"""Comparing what is on the disk with what was written there, and mending it.

Archives are judged by their digest, trees by their manifest and, in full, by their archive, tasks
by their manifest and, in full, by the trees that they are made of. Nothing is waited for: what
somebody works with at the moment is told as busy.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from buttercup_dagster.sources.archive import DEFAULT_LIMITS, ArchiveError, Limits
from buttercup_dagster.sources.disk import locked_if_free, names_in
from buttercup_dagster.sources.errors import DigestMismatch, storing
from buttercup_dagster.sources.manifest import MOST_DIFFERENCES, Manifest, Section
from buttercup_dagster.sources.options import MEBIBYTE
from buttercup_dagster.sources.prepare import MANIFESTS_NAME, Workspace, check_prepared
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import ARCHIVE_MODE, Store
from buttercup_dagster.sources.trees import StoredTree, digest_in
from task_api.task import normalize_uuid, printable

Kind = Literal["archive", "tree", "task"]

PREPARE_AGAIN: Final = "materialize its partition in Dagster, or post the task again"
"""What puts the folder of a task in order."""

_NOT_REPAIRED: Final = "nothing was changed; run verify with --repair"
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was written.

    Attributes:
        kind: what it is.
        name: its digest, key or task id.
        problems: where it differs, a line each.
        outcome: what was done about it, or what to do.
    """

    kind: Kind
    name: str
    problems: tuple[str, ...]
    outcome: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What one comparison found.

    Attributes:
        archives: how many were compared.
        trees: how many were compared.
        tasks: how many were compared.
        findings: what was wrong.
        busy: names of what was not compared, since somebody works with it.
        unread: keys of trees whose bytes were not compared, since their archives cannot be read.
    """

    archives: int
    trees: int
    tasks: int
    findings: tuple[Finding, ...]
    busy: tuple[str, ...]
    unread: tuple[str, ...]


def verify(
    workspace: Workspace,
    *,
    full: bool = False,
    repair: bool = True,
    limits: Limits = DEFAULT_LIMITS,
    stop: Stop | None = None,
    on_progress: Callable[[Kind, int, int], None] | None = None,
) -> Verification:
    """Compare everything with what was written.

    Args:
        workspace: where tasks, archives and trees are kept.
        full: read every byte, instead of names, types, modes, sizes, times and link texts only.
        repair: put wrong archives into quarantine, and make wrong trees again. Tasks are only
            named.
        limits: how much an archive may hold.
        stop: ends the work.
        on_progress: called with how many of a kind were compared and how many there are.

    Raises:
        StorageError: something cannot be read or mended.
        Stopped, DeadlinePassed: by `stop`; nothing half-done is left.
    """
    work = _Verifying(workspace, full=full, repair=repair, limits=limits, stop=stop or Stop())
    return work.run(on_progress)


class _Verifying:
    def __init__(
        self, workspace: Workspace, *, full: bool, repair: bool, limits: Limits, stop: Stop
    ) -> None:
        self._workspace = workspace
        self._store = Store(workspace.store)
        self._full = full
        self._repair = repair
        self._limits = limits
        self._stop = stop
        self._findings: list[Finding] = []
        self._busy: list[str] = []
        self._unread: list[str] = []
        self._trees: dict[bytes, Path] = {}

    def run(self, on_progress: Callable[[Kind, int, int], None] | None) -> Verification:
        store = self._store
        archives = [path.name for path in store.archives()]
        keys = [key for key in store.trees.keys() if store.trees.marker(key)]  # noqa: SIM118
        tasks = self._task_ids()
        # Trees before tasks: the tasks are compared with the trees as they are then.
        steps: tuple[tuple[Kind, list[str], Callable[[str], bool]], ...] = (
            ("archive", archives, self._check_archive),
            ("tree", keys, self._check_tree),
            ("task", tasks, self._check_task),
        )
        counts: dict[Kind, int] = {}
        for kind, names, check in steps:
            count = 0
            for number, name in enumerate(names):
                self._stop.check()
                if on_progress is not None:
                    on_progress(kind, number, len(names))
                count += check(name)
            if on_progress is not None and names:
                on_progress(kind, len(names), len(names))
            counts[kind] = count
        return Verification(
            archives=counts["archive"],
            trees=counts["tree"],
            tasks=counts["task"],
            findings=tuple(self._findings),
            busy=tuple(self._busy),
            unread=tuple(self._unread),
        )

    @contextmanager
    def _at(self, name: str, lock: str) -> Iterator[bool]:
        """Hold a lock for the block, if nobody else does."""
        with locked_if_free(self._store.lock_path(lock)) as mine:
            if not mine:
                self._busy.append(name)
            yield mine

    def _note(self, kind: Kind, name: str, problems: list[str], outcome: str) -> None:
        shown = tuple(problems[:MOST_DIFFERENCES])
        self._findings.append(Finding(kind, name, shown, outcome))

    # --- archives ----------------------------------------------------------------------------

    def _check_archive(self, digest: str) -> bool:
        path = self._store.archive_path(digest)
        with self._at(digest, digest) as mine:
            if not mine:
                return False
            try:
                status = path.lstat()
            except FileNotFoundError:  # collected meanwhile
                return False
            problems = self._archive_problems(digest, status)
            regular = stat.S_ISREG(status.st_mode)
            if regular and (self._full or problems) and self._hash(path) != digest:
                problems.append("its bytes are not those of its digest")
            elif problems and regular:
                self._note("archive", digest, problems, self._put_mode_back(path))
                return True
            if problems:
                self._note("archive", digest, problems, self._put_aside(digest))
            return True

    def _archive_problems(self, digest: str, status: os.stat_result) -> list[str]:
        if not stat.S_ISREG(status.st_mode):
            return ["is no regular file"]
        problems = []
        mode = stat.S_IMODE(status.st_mode)
        if mode != ARCHIVE_MODE:
            problems.append(f"has mode {mode:04o} instead of {ARCHIVE_MODE:04o}")
        sizes = {
            marker.archive_bytes
            for key in self._store.trees.keys()  # noqa: SIM118 - no mapping
            if digest_in(key) == digest and (marker := self._store.trees.marker(key))
        }
        if sizes and status.st_size not in sizes:
            problems.append(f"has {status.st_size} bytes instead of {min(sizes)}")
        return problems

    def _put_mode_back(self, path: Path) -> str:
        if not self._repair:
            return f"its bytes are right; {_NOT_REPAIRED}"
        with storing("cannot set the mode of", path):
            path.chmod(ARCHIVE_MODE)
        return "its bytes are right; the mode was put back"

    def _put_aside(self, digest: str) -> str:
        if not self._repair:
            return _NOT_REPAIRED
        aside = self._store.quarantine(digest)
        what = "gone" if aside is None else "put into quarantine"
        return f"{what}; it is fetched again when a task needs it"

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with storing("cannot read the archive", path), path.open("rb", buffering=0) as file:
            while data := file.read(MEBIBYTE):
                self._stop.check()
                digest.update(data)
        return digest.hexdigest()

    # --- trees -------------------------------------------------------------------------------

    def _check_tree(self, key: str) -> bool:
        trees = self._store.trees
        with self._store.trash(key) as trash, self._at(key, key) as mine:
            marker = trees.marker(key)
            if not mine or marker is None:
                return False
            tree = trees.complete(key)
            if tree is None:
                problems = ["its manifest or its folder is missing or damaged"]
            else:
                problems = tree.manifest.differences(tree.path)
                if not problems and self._full:
                    problems = self._differing_bytes(tree)
            if tree is not None and not problems:
                trees.trust(tree)
                self._know(tree)
                return True
            outcome = _NOT_REPAIRED
            if self._repair:
                trees.withdraw(key, trash)
                outcome = self._make_again(key, marker.digest, marker.archive_bytes)
            self._note("tree", key, problems, outcome)
            return True

    def _make_again(self, key: str, digest: str, size: int) -> str:
        archive = self._store.unread(digest, size)
        try:
            self._know(self._store.grow(key, archive, self._limits, self._stop))
        except FileNotFoundError:
            return "removed; it is made again when a task needs it"
        except DigestMismatch:
            return f"removed; its archive is wrong too: {self._put_aside(digest)}"
        return "made again from its archive"

    def _differing_bytes(self, tree: StoredTree) -> list[str]:
        """Where a tree's bytes differ from what its archive gives."""
        archive = self._store.unread(tree.marker.digest, tree.marker.archive_bytes)
        with self._store.staging(tree.key) as folder:
            beside = folder / "tree"
            try:
                manifest = self._store.unpack(archive, beside, tree.key, self._limits, self._stop)
            except (FileNotFoundError, DigestMismatch, ArchiveError):
                self._unread.append(tree.key)
                return []
            if manifest.sections != tree.manifest.sections:
                return ["its manifest is not that of its archive"]
            return [
                difference
                for section in tree.manifest.sections
                for difference in self._compare(section, tree.path, beside)
            ]

    def _know(self, tree: StoredTree) -> None:
        for section in tree.manifest.sections:
            self._trees[hashlib.sha256(section.rows).digest()] = tree.path

    # --- tasks -------------------------------------------------------------------------------

    def _task_ids(self) -> list[str]:
        tasks = self._workspace.tasks
        names = [path.name for path in names_in(tasks)]
        names += [path.stem for path in names_in(tasks / MANIFESTS_NAME)]
        return sorted({name for name in names if _is_task_id(name)})

    def _check_task(self, task_id: str) -> bool:
        with self._at(task_id, f"task-{task_id}") as mine:
            if not mine:
                return False
            problems = check_prepared(task_id, self._workspace)
            if not problems and self._full:
                problems = self._foreign_bytes(task_id)
            if problems:
                self._note("task", task_id, problems, PREPARE_AGAIN)
            return True

    def _foreign_bytes(self, task_id: str) -> list[str]:
        """Where a task's bytes differ from those of the trees that it is made of."""
        manifest = Manifest.load(self._workspace.manifest(task_id))
        folder = self._workspace.folder(task_id)
        found: list[str] = []
        for section in manifest.sections:
            tree = self._trees.get(hashlib.sha256(section.rows).digest())
            if tree is not None:
                found += self._compare(section, folder / section.folder, tree)
        return found

    def _compare(self, section: Section, one: Path, other: Path) -> list[str]:
        """Paths of a section whose files hold other bytes below two folders."""
        found: list[str] = []
        handles: list[int] = []
        with storing("cannot read the tree", one):
            try:
                handles = [os.open(folder, _FOLDER) for folder in (one, other)]
                for row in section.rows.split(b"\n"):
                    if not row.startswith(b"f"):
                        continue
                    path = row.split(b"\t")[4]
                    if not self._same(path, *handles):
                        shown = printable(os.fsdecode(path), limit=300)
                        found.append(f"{shown}: holds other bytes")
                        if len(found) == MOST_DIFFERENCES:
                            break
            finally:
                for handle in handles:
                    os.close(handle)
        return found

    def _same(self, path: bytes, one: int, other: int) -> bool:
        first = os.open(path, _READ, dir_fd=one)
        try:
            second = os.open(path, _READ, dir_fd=other)
            try:
                if os.path.samestat(os.fstat(first), os.fstat(second)):
                    return True
                while True:
                    self._stop.check()
                    data = os.read(first, MEBIBYTE)
                    if data != os.read(second, MEBIBYTE):
                        return False
                    if not data:
                        return True
            finally:
                os.close(second)
        finally:
            os.close(first)


def _is_task_id(name: str) -> bool:
    try:
        return normalize_uuid(name) == name
    except ValueError:
        return False
