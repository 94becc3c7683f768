"""Keeping the store below its marks: what nobody needs goes, least recently used first.

Whether something is needed is asked of its leases, under the lock under which it would be used.
No lock is waited for: what is busy stays.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from buttercup_dagster.sources.disk import (
    locked_if_free,
    locks_hold,
    make_folder,
    names_in,
    noting,
    remove_lock,
    remove_tree,
)
from buttercup_dagster.sources.errors import SourceError, StorageError, storing
from buttercup_dagster.sources.options import GIBIBYTE
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import PARTS_NAME, Store
from buttercup_dagster.sources.trees import digest_in

Kind = Literal["quarantined", "tree", "archive"]

_ORDER: Final[tuple[Kind, ...]] = ("quarantined", "tree", "archive")
"""What goes first: a tree is made of its archive in seconds, an archive has to be fetched."""

LOOK_SECONDS: Final = 10.0
"""How long after a look at the whole store a prepared task causes no other one, at least."""

_REST: Final = 100
_LONGEST_PAUSE_SECONDS: Final = 3600


@dataclass(frozen=True, slots=True)
class Watermarks:
    """When the collector begins, and when it has done enough.

    Attributes:
        max_store_bytes: it begins when the store holds more …
        min_free_bytes: … or the disk has less free space.
    """

    max_store_bytes: int = 64 * GIBIBYTE
    min_free_bytes: int = 2 * GIBIBYTE

    def exceeded(self, usage: Usage) -> bool:
        """Whether the collector has to begin."""
        return usage.store_bytes > self.max_store_bytes or usage.free_bytes < self.min_free_bytes

    def reached(self, usage: Usage) -> bool:
        """Whether it has done enough: four fifths of the one, six fifths of the other."""
        return (
            usage.store_bytes <= self.max_store_bytes * 4 // 5
            and usage.free_bytes >= self.min_free_bytes * 6 // 5
        )


DEFAULT_WATERMARKS: Final = Watermarks()


@dataclass(frozen=True, slots=True)
class Usage:
    """How full it is.

    Attributes:
        store_bytes: archives, what is in quarantine, unfinished downloads, and about what the trees
            take on the disk.
        free_bytes: that the disk still has for this user.
    """

    store_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be removed.

    Attributes:
        kind: what it is.
        name: its digest, key, or name in the quarantine.
        bytes: about what it takes on the disk.
        last_use_ns: when it was used last; only compared.
    """

    kind: Kind
    name: str
    bytes: int
    last_use_ns: int


@dataclass(frozen=True, slots=True)
class Collection:
    """What one collection did.

    Attributes:
        before: how full it was.
        after: how full it is, or would be after a dry run.
        removed: what was, or would be, removed.
        kept: how many of the things it came to stayed: a task needs them, they were busy, or they
            could not be removed.
        cleaned: names of what a crash had left behind.
        problems: what could not be removed, and why, a line each.
    """

    before: Usage
    after: Usage
    removed: tuple[Item, ...]
    kept: int
    cleaned: tuple[str, ...]
    problems: tuple[str, ...]


def usage_of(store: Store) -> Usage:
    """How full a store and its disk are; no tree is walked.

    Raises:
        StorageError: it cannot be read.
    """
    return _look(store)[0]


def _look(store: Store) -> tuple[Usage, bool]:
    """How full a store and its disk are, and whether a crash left something of a tree."""
    stored = _parts_bytes(store)
    half_written = False
    for _, marker, unfinished in store.trees.survey():
        half_written = half_written or unfinished
        stored += marker.disk_bytes if marker is not None else 0
    for path in (*store.archives(), *names_in(store.root / "quarantine")):
        with contextlib.suppress(OSError):  # gone meanwhile
            stored += os.lstat(path).st_size
    return Usage(stored, _free_bytes(store.root)), half_written


def collect(
    store: Store,
    marks: Watermarks = DEFAULT_WATERMARKS,
    *,
    everything: bool = False,
    unused_seconds: float | None = None,
    dry_run: bool = False,
    stop: Stop | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Collection | None:
    """Clear up after crashes, and remove what nobody needs if the marks are exceeded.

    Args:
        store: what to collect in.
        marks: when to begin and when to end.
        everything: remove all that no task needs, whatever the marks say, and unfinished downloads
            that nobody writes, whatever their age.
        unused_seconds: remove also what no task needs and none has used for so long.
        dry_run: remove nothing, and tell what would be.
        stop: ends the work between two things.
        on_progress: called with how many things were looked at and how many there are.

    Returns:
        What was done; None if another process is collecting.

    Raises:
        StorageError: the store cannot be read, or locks keep nobody out on this file system.
        Stopped, DeadlinePassed: by `stop`.
    """
    stop = stop or Stop()
    make_folder(store.root)
    if not locks_hold(store.root):
        raise StorageError(
            f"locks keep nobody out in {store.root}, so nothing is removed there; put the store "
            "on a disk of this machine",
            code="no_locks",
        )
    with locked_if_free(store.lock_path("collector")) as mine:
        if not mine:
            return None
        problems: list[StorageError] = []
        cleaned = () if dry_run else tuple(_clear_up(store, problems, young_parts=everything))
        work = _Collecting(
            store,
            marks,
            everything=everything,
            unused_since_ns=None if unused_seconds is None else _ago_ns(unused_seconds),
            dry_run=dry_run,
        )
        return work.run(cleaned, problems, stop, on_progress)


def collect_if_needed(store: Store, marks: Watermarks, stop: Stop) -> Collection | None:
    """Collect if the marks are exceeded, or a crash left a tree, and no other process does.

    The free space is looked at each time, the whole store at most every `LOOK_SECONDS`, and so
    rarely that looking takes a hundredth of the time. What goes wrong is left to the next time: the
    caller has done its work already.
    """
    with contextlib.suppress(SourceError, OSError), _note(store) as note:
        pause = _pause_seconds(note)
        # A time to come is of a clock that went back since.
        is_due = not 0 <= time.time() - os.fstat(note).st_mtime < pause
        if _free_bytes(store.root) >= marks.min_free_bytes and not is_due:
            return None
        os.utime(note)  # first, so that no other process looks at the same time
        started = time.monotonic()
        usage, half_written = _look(store)
        pause = max(LOOK_SECONDS, _REST * (time.monotonic() - started))
        with contextlib.suppress(OSError):  # on a full disk all the more has to be done now
            os.pwrite(note, b"%8d" % min(pause, _LONGEST_PAUSE_SECONDS), 0)
        if marks.exceeded(usage) or half_written:
            return collect(store, marks, stop=stop)
    return None


@contextlib.contextmanager
def _note(store: Store) -> Iterator[int]:
    """The file whose time is that of the last look at the whole store."""
    path = store.lock_path("collector").with_suffix(".looked")
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        handle = os.open(path, flags | os.O_CREAT, 0o644)
        os.utime(handle, (0, 0))
    try:
        yield handle
    finally:
        os.close(handle)


def _pause_seconds(note: int) -> float:
    """How long after a look there need not be another one."""
    written = os.pread(note, 8, 0).strip()
    return float(written) if written.isdigit() else LOOK_SECONDS


class _Collecting:
    """One collection."""

    def __init__(
        self,
        store: Store,
        marks: Watermarks,
        *,
        everything: bool,
        unused_since_ns: int | None,
        dry_run: bool,
    ) -> None:
        self._store = store
        self._marks = marks
        self._everything = everything
        self._unused_since_ns = unused_since_ns
        self._dry_run = dry_run

    def run(
        self,
        cleaned: tuple[str, ...],
        problems: list[StorageError],
        stop: Stop,
        on_progress: Callable[[int, int], None] | None,
    ) -> Collection:
        items = sorted(
            _items(self._store), key=lambda one: (_ORDER.index(one.kind), one.last_use_ns)
        )
        store_bytes = sum(item.bytes for item in items) + _parts_bytes(self._store)
        before = usage = Usage(store_bytes, _free_bytes(self._store.root))
        removed: list[Item] = []
        kept = 0
        too_full = self._marks.exceeded(before)
        for number, item in enumerate(items, 1):
            too_full = too_full and not self._marks.reached(usage)
            if not (too_full or self._everything or self._is_long_unused(item)):
                continue
            stop.check()
            gone = False
            with noting(problems, f"cannot remove the {item.kind}", Path(item.name)):
                gone = _remove(self._store, item, dry_run=self._dry_run)
            if gone:
                removed.append(item)
                usage = self._without(item, usage)
            else:
                kept += 1
            if on_progress is not None:
                on_progress(number, len(items))
        said = tuple(str(problem) for problem in problems)
        return Collection(before, usage, tuple(removed), kept, cleaned, said)

    def _is_long_unused(self, item: Item) -> bool:
        return self._unused_since_ns is not None and item.last_use_ns <= self._unused_since_ns

    def _without(self, item: Item, usage: Usage) -> Usage:
        left = usage.store_bytes - item.bytes
        if self._dry_run:
            return Usage(left, usage.free_bytes + item.bytes)
        return Usage(left, _free_bytes(self._store.root))


def _items(store: Store) -> Iterator[Item]:
    for path in names_in(store.root / "quarantine"):
        yield from _item("quarantined", path.name, path)
    for key, marker, _ in store.trees.survey():
        if marker is not None:
            yield from _item("tree", key, store.trees.marker_path(key), marker.disk_bytes)
    for path in store.archives():
        yield from _item("archive", path.name, path)


def _item(kind: Kind, name: str, path: Path, size: int | None = None) -> Iterator[Item]:
    try:
        status = path.lstat()
    except OSError:  # gone meanwhile
        return
    yield Item(kind, name, status.st_size if size is None else size, status.st_mtime_ns)


def _parts_bytes(store: Store) -> int:
    size = 0
    for path in names_in(store.root / PARTS_NAME):
        with contextlib.suppress(OSError):  # gone meanwhile
            size += path.lstat().st_size
    return size


def _ago_ns(seconds: float) -> int:
    return time.time_ns() - int(seconds * 1_000_000_000)


def _free_bytes(root: Path) -> int:
    make_folder(root)
    with storing("cannot read the free space of", root):
        disk = os.statvfs(root)
    return disk.f_bavail * disk.f_frsize


def _remove(store: Store, item: Item, *, dry_run: bool) -> bool:
    """Remove one thing unless somebody needs it or is at it."""
    if item.kind == "quarantined":
        if not dry_run:
            remove_tree(store.root / "quarantine" / item.name)
        return True
    # Most of what is needed is so for long; asking first spares the trash folder.
    if store.leases.in_use(digest_in(item.name)):
        return False
    lock = store.lock_path(item.name)
    with store.trash(item.name) as trash, locked_if_free(lock) as mine:
        # Who needs it has leased it before it takes this lock, so nobody comes in between.
        if not mine or store.leases.in_use(digest_in(item.name)):
            return False
        if dry_run:
            return True
        removed = _withdraw(store, item, trash)
        remove_lock(lock)
        return removed


def _withdraw(store: Store, item: Item, trash: Path) -> bool:
    """Move a tree or an archive, whose lock is held, into the trash."""
    if item.kind == "tree":
        return store.trees.withdraw(item.name, trash)
    path = store.archive_path(item.name)
    with storing("cannot remove", path):
        try:
            path.rename(trash / item.name)
        except FileNotFoundError:
            return False
    return True


def _clear_up(store: Store, problems: list[StorageError], *, young_parts: bool) -> Iterator[str]:
    """Remove what crashes left behind, as far as locks show that nobody is at it.

    What cannot be removed is noted and keeps nothing else.
    """
    yield from store.clean(problems, young_parts=young_parts)
    yield from store.leases.clean(problems)
    for key in store.trees.half_written():
        cleared = False
        with (
            noting(problems, "cannot clear up the tree", Path(key)),
            store.trash(key) as trash,
            locked_if_free(store.lock_path(key)) as mine,
        ):
            cleared = mine and store.trees.clear(key, trash)
        if cleared:
            yield key
    store.clean_locks(problems)
