"""Who needs what of the store: a task leases the archives that its folder is made of.

Below the store, `leases/<digest>/<task_id>` names the task's folder. Such a lease counts while an
attempt holds its lock (a `flock`, which ends with its process) or that folder exists. So a killed
attempt leases nothing any more, and nobody has to judge ages or process ids.

`leases/tasks/<task_id>` lists what the task has leased (`leased.py`).

Attempts at one task share its leases. Each says whether one of them has published: then another
that fails later leaves the lease alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from buttercup_dagster.sources.disk import (
    LOCK_POLL_SECONDS,
    leads_to,
    locks_hold,
    make_folder,
    names_in,
    noting,
    try_lock,
)
from buttercup_dagster.sources.errors import StorageError, storing
from buttercup_dagster.sources.leased import Leased
from buttercup_dagster.sources.stop import Stop

_LISTS_NAME: Final = "tasks"
_MOST_BYTES: Final = 64 * 1024
_NOT_YET: Final = b"false}"
_PUBLISHED: Final = b"true }"
"""The end of a lease; of one length, so that one write within the file changes it."""

_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class Leases:
    """The leases of one store.

    Args:
        root: their folder; made when it is needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._leased = Leased(root / _LISTS_NAME)

    @contextlib.contextmanager
    def attempt(self, task_id: str, folder: Path) -> Iterator[TaskLeases]:
        """What one attempt at a task leases, held while the block runs.

        Afterwards a lease stays if the attempt said `published`; then what the task leased before
        and needs no more is dropped. Otherwise what this attempt has added is dropped, unless
        another one has published on it. What cannot be dropped is left to `clean`.

        Args:
            task_id: of the task, a UUID.
            folder: where the task will be.
        """
        held = TaskLeases(self._root, self._leased, task_id, folder)
        try:
            yield held
        finally:
            added = held.close()
            # The work of the attempt is done, or has an error that tells more.
            with contextlib.suppress(StorageError):
                if held.was_published:
                    self._drop(task_id, lambda digest: digest not in held.digests)
                else:
                    self._drop(task_id, added.__contains__, unless=_is_published)

    def in_use(self, digest: str) -> bool:
        """Whether a task needs an archive or its tree.

        Raises:
            StorageError: the leases cannot be read.
        """
        return any(_counts(path) for path in names_in(self._root / digest))

    def folders(self, digest: str) -> list[Path]:
        """The folders of the tasks that lease a digest and exist."""
        found = (_folder_in(path) for path in names_in(self._root / digest))
        return [folder for folder in found if folder is not None and os.path.lexists(folder)]

    def drop(self, task_id: str) -> None:
        """Drop what a task leases, whose folder was removed; a running attempt keeps its own.

        Raises:
            StorageError: a lease cannot be removed.
        """
        self._drop(task_id, lambda _: True)

    def clean(self, problems: list[StorageError] | None = None) -> list[str]:
        """Remove the leases that no longer count.

        Args:
            problems: what cannot be removed is noted here; without it, the first such error is
                raised after everything else was removed.

        Returns:
            `<digest>/<task_id>` of each.

        Raises:
            StorageError: one of them cannot be removed.
        """
        failures: list[StorageError] = []
        removed: list[str] = []
        if not self._root.is_dir() or not locks_hold(self._root):
            return removed
        for folder in names_in(self._root):
            if folder.name == _LISTS_NAME:
                continue
            paths: list[Path] = []
            with noting(failures, "cannot read the leases", folder):
                paths = names_in(folder)
            for path in paths:
                with noting(failures, "cannot remove the lease", path):
                    if not _counts(path) and _remove(path, unless=_leads_to_a_folder):
                        removed.append(f"{folder.name}/{path.name}")
            _remove_if_empty(folder)
        for task_id in self._leased.task_ids():
            with noting(failures, "cannot clear the list of leases", Path(task_id)):
                self._leased.settle(task_id, partial(self._is_left, task_id))
        if problems is not None:
            problems += failures
        elif failures:
            raise failures[0]
        return removed

    def _drop(
        self,
        task_id: str,
        unneeded: Callable[[str], bool],
        *,
        unless: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """Drop those leases of a task that are not needed and not held.

        Args:
            task_id: of the task.
            unneeded: whether the lease of a digest is not needed.
            unless: what its content, by its handle, may have against it.
        """

        def is_left(digest: str) -> bool:
            if unneeded(digest):
                path = self._root / digest / task_id
                _remove(path, unless=unless)
                _remove_if_empty(path.parent)
            return self._is_left(task_id, digest)

        self._leased.settle(task_id, is_left)

    def _is_left(self, task_id: str, digest: str) -> bool:
        return os.path.lexists(self._root / digest / task_id)


class TaskLeases:
    """The leases that one attempt holds; thread-safe.

    Attributes:
        digests: what is leased.
        was_published: whether the task's folder stands on it now.
    """

    def __init__(self, root: Path, leased: Leased, task_id: str, folder: Path) -> None:
        self._root = root
        self._leased = leased
        self._task_id = task_id
        self._content = json.dumps({"folder": str(folder), "published": False}).encode()
        self._lock = threading.Lock()
        self._handles: dict[str, int] = {}
        self._added: set[str] = set()
        self.was_published = False

    @property
    def digests(self) -> frozenset[str]:
        """What is leased, by digest."""
        return frozenset(self._handles)

    def take(self, digest: str, stop: Stop) -> None:
        """Lease an archive and its tree. From then on the collector leaves both alone.

        Call it before looking whether they are there.

        Raises:
            StorageError: the lease cannot be written.
            Stopped, DeadlinePassed: while waiting for a collector that looks at the lease.
        """
        with self._lock:
            if digest in self._handles:
                return
            path = self._root / digest / self._task_id
            with storing("cannot write the lease", path):
                handle, added = self._open(path, stop)
                if added:
                    self._added.add(digest)
                # Only a lease that is written counts: on a full disk it may stay empty.
                try:
                    self._write(handle)
                    self._leased.add(self._task_id, digest)
                except BaseException:
                    os.close(handle)
                    raise
                self._handles[digest] = handle

    def published(self) -> None:
        """Say that the task's folder stands in its place and needs all that is leased."""
        self.was_published = True
        with self._lock:
            for handle in self._handles.values():
                # The task is ready; a lease counts without this too, since its folder exists.
                with contextlib.suppress(OSError):
                    os.pwrite(handle, _PUBLISHED, len(self._content) - len(_NOT_YET))

    def close(self) -> set[str]:
        """Let go of the locks; the digests whose leases this attempt has added."""
        with self._lock:
            for handle in self._handles.values():
                os.close(handle)
        return self._added

    def _write(self, handle: int) -> None:
        size = len(self._content)
        found = os.pread(handle, _MOST_BYTES, 0)
        published = self._content.removesuffix(_NOT_YET) + _PUBLISHED
        if found in {self._content, published}:
            return
        if os.pwrite(handle, self._content, 0) != size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(handle, size)

    def _open(self, path: Path, stop: Stop) -> tuple[int, bool]:
        while True:
            make_folder(path.parent)
            try:
                added = not path.exists()
                handle = os.open(path, _FLAGS | os.O_CREAT, 0o644)
            except FileNotFoundError:  # a collector removed the folder, which was empty
                continue
            try:
                while not try_lock(handle, shared=True):
                    stop.wait(LOCK_POLL_SECONDS)
                    stop.check()
                if leads_to(path, handle):
                    return handle, added
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)


def _counts(path: Path) -> bool:
    try:
        handle = os.open(path, _FLAGS)
    except FileNotFoundError:
        return False
    except OSError:  # not ours to judge
        return True
    try:
        return not try_lock(handle) or _leads_to_a_folder(handle)
    finally:
        os.close(handle)


def _remove(path: Path, *, unless: Callable[[int], bool] = lambda _: False) -> bool:
    """Remove a lease unless somebody holds it, or its content, by its handle, speaks against it."""
    with storing("cannot remove the lease", path):
        try:
            handle = os.open(path, _FLAGS)
        except FileNotFoundError:
            return False
        try:
            if not try_lock(handle) or not leads_to(path, handle):
                return False
            if unless(handle):
                return False
            path.unlink()
        finally:
            os.close(handle)
    return True


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()


def _leads_to_a_folder(handle: int) -> bool:
    folder = _parsed(os.pread(handle, _MOST_BYTES, 0))
    if folder is None:
        return False
    try:
        folder.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:  # it may be on a disk that is away
        return True
    return True


def _is_published(handle: int) -> bool:
    """Whether an attempt has published on a lease and what it made exists."""
    content = os.pread(handle, _MOST_BYTES, 0)
    return content.endswith(_PUBLISHED) and _leads_to_a_folder(handle)


def _folder_in(path: Path) -> Path | None:
    try:
        return _parsed(path.read_bytes()[:_MOST_BYTES])
    except OSError:
        return None


def _parsed(content: bytes) -> Path | None:
    """The folder that a lease names; None for one that was cut short by a crash."""
    try:
        return Path(json.loads(content)["folder"])
    except (ValueError, KeyError, TypeError):
        return None
