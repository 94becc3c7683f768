"""Comparing what is on the disk with what was written there, and mending it.

Archives are judged by their digest, trees by their manifest and, in full, by their archive, tasks
by their manifest and, in full, by the trees that they are made of. Nothing is waited for: what
somebody works with at the moment is told as busy.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from buttercup_dagster.sources.archive import DEFAULT_LIMITS, ArchiveError, Limits
from buttercup_dagster.sources.disk import boot_id, locked, locked_if_free, names_in
from buttercup_dagster.sources.errors import (
    DeadlinePassed,
    DigestMismatch,
    SourceError,
    Stopped,
    StorageError,
    storing,
)
from buttercup_dagster.sources.manifest import MOST_DIFFERENCES, Manifest, Section
from buttercup_dagster.sources.options import MEBIBYTE
from buttercup_dagster.sources.prepare import MANIFESTS_NAME, Workspace, check_prepared
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import ARCHIVE_MODE, Store
from buttercup_dagster.sources.trees import Marker, StoredTree, digest_in
from task_api.task import normalize_uuid, printable

Kind = Literal["archive", "tree", "task"]

PREPARE_AGAIN: Final = "materialize its partition in Dagster, or post it under another id"
"""What puts the folder of a task in order."""

_NOT_REPAIRED: Final = "nothing was changed; run verify without --no-repair"
_NOT_COMPARED: Final = "nothing was changed; remove the cause, and run verify again"
_MADE_WHEN_NEEDED: Final = "removed; it is made again when a task needs it"
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it was written.

    Attributes:
        kind: what it is.
        name: its digest, key or task id.
        problems: where it differs, or why it cannot be compared, a line each.
        outcome: what was done about it, or what to do.
        compared: whether it was compared; False if something kept that from being done.
    """

    kind: Kind
    name: str
    problems: tuple[str, ...]
    outcome: str
    compared: bool = True


@dataclass(frozen=True, slots=True)
class Verification:
    """What one comparison found.

    Attributes:
        archives: how many were compared.
        trees: how many were compared.
        tasks: how many were compared.
        findings: what was wrong.
        busy: names of what was not compared, since somebody works with it.
        unread: keys of trees and ids of tasks whose bytes were not compared, since what they are
            made of cannot be read.
        complete: whether everything was come to; False if the work was stopped.
    """

    archives: int
    trees: int
    tasks: int
    findings: tuple[Finding, ...]
    busy: tuple[str, ...]
    unread: tuple[str, ...]
    complete: bool = True


class VerificationStopped(Stopped):
    """The comparison was asked to stop.

    Attributes:
        so_far: what it had found.
    """

    def __init__(self, text: str, so_far: Verification) -> None:
        super().__init__(text)
        self.so_far = so_far


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

    What cannot be compared or mended is a finding, and the work goes on with the next.

    Args:
        workspace: where tasks, archives and trees are kept.
        full: read every byte, instead of names, types, modes, sizes, times and link texts only.
        repair: put wrong archives into quarantine, and make wrong trees again. Tasks are only
            named.
        limits: how much an archive may hold.
        stop: ends the work.
        on_progress: called with how many of a kind were compared and how many there are.

    Raises:
        VerificationStopped, DeadlinePassed: by `stop`; nothing half-done is left.
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
        self._counts: dict[Kind, int] = {"archive": 0, "tree": 0, "task": 0}
        self._sizes: dict[str, set[int]] = {}
        self._trees: dict[bytes, StoredTree] = {}

    def run(self, on_progress: Callable[[Kind, int, int], None] | None) -> Verification:
        try:
            self._compare_all(on_progress)
        except Stopped as error:
            raise VerificationStopped(str(error), self._found(complete=False)) from error
        return self._found(complete=True)

    def _compare_all(self, on_progress: Callable[[Kind, int, int], None] | None) -> None:
        archives = self._listed("archive", (path.name for path in self._store.archives()))
        keys = self._listed("tree", self._complete_keys())
        tasks = self._listed("task", self._task_ids())
        # Trees before tasks: the tasks are compared with the trees as they are then.
        steps: tuple[tuple[Kind, list[str], Callable[[str], bool]], ...] = (
            ("archive", archives, self._check_archive),
            ("tree", keys, self._check_tree),
            ("task", tasks, self._check_task),
        )
        for kind, names, check in steps:
            for number, name in enumerate(names):
                self._stop.check()
                if on_progress is not None:
                    on_progress(kind, number, len(names))
                try:
                    self._counts[kind] += check(name)
                except (Stopped, DeadlinePassed):
                    raise
                except (SourceError, OSError) as error:
                    outcome = PREPARE_AGAIN if kind == "task" else _NOT_COMPARED
                    self._note_failure(kind, name, error, outcome)
            if on_progress is not None and names:
                on_progress(kind, len(names), len(names))

    def _listed(self, kind: Kind, names: Iterable[str]) -> list[str]:
        """The names of a kind, as far as their folders can be read."""
        found: list[str] = []
        try:
            for name in names:
                found.append(name)  # noqa: PERF402 - those before a failure count
        except SourceError as error:
            self._note_failure(kind, f"{kind}s", error, _NOT_COMPARED)
        return found

    def _complete_keys(self) -> Iterator[str]:
        """The keys of the trees that have a marker; what these say of archives is kept."""
        for key in self._store.trees.keys():  # noqa: SIM118 - no mapping
            marker = self._store.trees.marker(key)
            if marker is not None:
                self._sizes.setdefault(digest_in(key), set()).add(marker.archive_bytes)
                yield key

    def _found(self, *, complete: bool) -> Verification:
        return Verification(
            archives=self._counts["archive"],
            trees=self._counts["tree"],
            tasks=self._counts["task"],
            findings=tuple(self._findings),
            busy=tuple(self._busy),
            unread=tuple(self._unread),
            complete=complete,
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

    def _note_failure(self, kind: Kind, name: str, error: Exception, outcome: str) -> None:
        problem = f"cannot be compared: {_said(error)}"
        self._findings.append(Finding(kind, name, (problem,), outcome, compared=False))

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
        sizes = self._sizes.get(digest)
        if sizes and status.st_size not in sizes:
            problems.append(f"has {status.st_size} bytes instead of {min(sizes)}")
        return problems

    def _put_mode_back(self, path: Path) -> str:
        if not self._repair:
            return f"its bytes are right; {_NOT_REPAIRED}"
        try:
            path.chmod(ARCHIVE_MODE)
        except OSError as error:
            return f"its bytes are right; the mode cannot be put back: {_said(error)}"
        return "its bytes are right; the mode was put back"

    def _put_aside(self, digest: str) -> str:
        if not self._repair:
            return _NOT_REPAIRED
        try:
            aside = self._store.quarantine(digest)
        except StorageError as error:
            return str(error)
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
                problems = self._differences(tree)
                if not problems and self._full:
                    problems = self._differing_bytes(tree)
            if tree is not None and not problems:
                self._trust(tree)
                self._know(tree)
                return True
            outcome = _NOT_REPAIRED
            try:
                if self._repair:
                    outcome = _MADE_WHEN_NEEDED
                    outcome = self._mend_tree(key, marker, trash)
            finally:  # also when it is stopped: the tree is gone then
                self._note("tree", key, problems, outcome)
            return True

    @staticmethod
    def _differences(tree: StoredTree) -> list[str]:
        try:
            return tree.manifest.differences(tree.path)
        except StorageError as error:
            # What cannot be read cannot be used either, so it is made again like a changed one.
            return [str(error)]

    def _trust(self, tree: StoredTree) -> None:
        """Note under which boot a tree was compared, if that says something new."""
        now = boot_id()
        if self._repair and now and tree.marker.boot_id != now:
            with self._last_use_kept(tree.key):
                self._store.trees.trust(tree)

    @contextmanager
    def _last_use_kept(self, key: str) -> Iterator[None]:
        """Leave the time of last use as it is: to be compared is no use."""
        path = self._store.trees.marker_path(key)
        before = path.stat().st_mtime_ns
        yield
        os.utime(path, ns=(before, before), follow_symlinks=False)

    def _mend_tree(self, key: str, marker: Marker, trash: Path) -> str:
        try:
            with self._last_use_kept(key):
                self._store.trees.withdraw(key, trash)
                self._know(self._grown(key, marker))
        except (Stopped, DeadlinePassed):
            raise
        except FileNotFoundError:
            return _MADE_WHEN_NEEDED
        except DigestMismatch:
            with locked(self._store.lock_path(marker.digest), self._stop):
                outcome = self._put_aside(marker.digest)
            return f"removed; its archive is wrong too: {outcome}"
        except (SourceError, OSError) as error:
            if self._store.trees.marker(key) is not None:
                return f"it cannot be removed: {_said(error)}"
            return f"removed; it cannot be made again now: {_said(error)}"
        return "made again from its archive"

    def _grown(self, key: str, marker: Marker) -> StoredTree:
        archive = self._store.unread(marker.digest, marker.archive_bytes)
        return self._store.grow(key, archive, self._limits, self._stop)

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
            self._trees[hashlib.sha256(section.rows).digest()] = tree

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
        complete = True
        for section in manifest.sections:
            if not section.folder:  # not of a tree: the task's own description and folders
                continue
            differing = self._differing_from_tree(section, folder)
            complete = complete and differing is not None
            found += differing or []
        if not complete:
            self._unread.append(task_id)
        return found

    def _differing_from_tree(self, section: Section, folder: Path) -> list[str] | None:
        """Where a part of a task differs from its tree; None if that is gone or in use."""
        tree = self._trees.get(hashlib.sha256(section.rows).digest())
        if tree is None:
            return None
        # Under its lock, so that the collector does not remove it meanwhile.
        with locked_if_free(self._store.lock_path(tree.key)) as mine:
            if not mine or self._store.trees.marker(tree.key) is None:
                return None
            return self._compare(section, folder / section.folder, tree.path)

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


def _said(error: Exception) -> str:
    """What an error says, for people."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)


def _is_task_id(name: str) -> bool:
    try:
        return normalize_uuid(name) == name
    except ValueError:
        return False
