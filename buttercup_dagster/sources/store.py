"""Every archive once and its unpacked tree once, however many tasks and processes ask for them."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from buttercup_dagster.sources.archive import DEFAULT_LIMITS, EscapingLinks, Limits, unpack
from buttercup_dagster.sources.disk import (
    clean_private_folders,
    listed,
    locked,
    locks_hold,
    make_folder,
    names_in,
    noting,
    private_folder,
    remove_lock_if_free,
    remove_tree,
    sync_folder,
)
from buttercup_dagster.sources.errors import (
    DigestMismatch,
    SourceError,
    SpecError,
    StorageError,
    storing,
)
from buttercup_dagster.sources.fetch import Fetched, FetchLimits, FetchPolicy, Progress, fetch
from buttercup_dagster.sources.leases import Leases
from buttercup_dagster.sources.manifest import Manifest
from buttercup_dagster.sources.options import DEFAULT_FETCH_LIMITS, DEFAULT_POLICY
from buttercup_dagster.sources.slots import Slots
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.trees import (
    StoredTree,
    Trees,
    digest_in,
    escaping_links_in,
    tree_key,
)
from buttercup_dagster.sources.unfinished import DAY_SECONDS, clean_parts
from task_api.task import Source, is_digest, printable

CACHE: Final = "store"
"""What stands for a host where an archive was not fetched but here already."""

PARTS_NAME: Final = "parts"
ARCHIVE_MODE: Final = 0o444


class Lease(Protocol):
    """What is told which archive a task needs; see `leases.TaskLeases`."""

    def take(self, digest: str, stop: Stop) -> None:
        """Keep the collector away from an archive and its tree."""


@dataclass(frozen=True, slots=True)
class Obtained:
    """An archive of the store.

    Attributes:
        path: where it is, or was when its tree was made; read-only.
        sha256: its digest, 64 lower-case hex digits.
        bytes: its size.
        cache_hit: whether it, or its tree, was in the store already.
        seconds: of fetching, in which it is hashed; 0 for a cache hit.
        host: host that gave it; "store" for a cache hit.
        attempts: requests made.
        condemned: hosts that gave other bytes than those of the digest.
    """

    path: Path
    sha256: str
    bytes: int
    cache_hit: bool
    seconds: float
    host: str
    attempts: int = 0
    condemned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grown:
    """The tree of a source.

    Attributes:
        stored: the tree.
        obtained: the archive that it was made of.
        hit: whether the tree was in the store already; then its archive was not read.
        seconds: of unpacking, in which the archive is hashed once more; 0 for a hit.
    """

    stored: StoredTree
    obtained: Obtained
    hit: bool
    seconds: float


def _tell_nobody(_obtained: Obtained) -> None:
    return


class Store:
    """The archives and trees of this machine.

    Below the root:
        archives/sha256/<first two digits>/<digest>   an archive, read-only
        trees/<key>/                                  its tree (see `trees.py`)
        parts/                                        unfinished downloads (see `unfinished.py`)
        staging/                                      trees that are being unpacked
        leases/<digest>/<task_id>                     who needs an archive (see `leases.py`)
        leases/tasks/<task_id>                        what a task needs (see `leased.py`)
        locks/                                        of digests, keys, tasks, the collector, and
                                                      slots for downloads (see `slots.py`)
        quarantine/                                   archives whose bytes turned out to be wrong
        trash/                                        what is being deleted

    Args:
        root: folder on one file system; made when it is needed.

    Attributes:
        leases: who needs what.
        trees: the unpacked trees.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.leases = Leases(root / "leases")
        self.trees = Trees(root / "trees")

    def archive_path(self, digest: str) -> Path:
        """Where the archive of a digest is, or would be.

        Raises:
            SpecError: it is no digest.
        """
        digest = _checked(digest)
        return self.root / "archives" / "sha256" / digest[:2] / digest

    def archives(self) -> Iterator[Path]:
        """The stored archives, whatever state they are in.

        Raises:
            StorageError: their folders cannot be read.
        """
        for folder in names_in(self.root / "archives" / "sha256"):
            for name in listed(folder):
                if is_digest(name) and name.startswith(folder.name):
                    yield folder / name

    def lock_path(self, name: str) -> Path:
        """The lock file of a digest, a key, or `task-<task_id>`; its folder is made."""
        return self._locks / f"{name}.lock"

    @property
    def clock_path(self) -> Path:
        """The file whose time is that of the last use of anything here; its folder is made."""
        # No lock file: those are removed when nobody holds them.
        return self._locks / "clock"

    # --- archives ----------------------------------------------------------------------------

    def obtain(
        self,
        source: Source,
        *,
        limits: FetchLimits = DEFAULT_FETCH_LIMITS,
        policy: FetchPolicy = DEFAULT_POLICY,
        stop: Stop | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        lease: Lease | None = None,
    ) -> Obtained:
        """The archive of a source: from the store if it is there, else fetched into it.

        Processes that ask for one digest at the same time share one download. What is fetched is
        hashed while it arrives. What is there already is not read: `tree` hashes the very bytes
        that are unpacked.

        Args:
            source: its digest may be empty: then whatever its URLs give is taken and filed under
                the digest that it turns out to have.
            limits: how much, how long, how often.
            policy: from where.
            stop: ends the wait for another process and the download.
            on_progress: called a few times a second during a download.
            lease: told the digest before the archive is looked at or filed.

        Raises:
            SourceError: as `fetch` does.
        """
        stop = stop or Stop()

        def download(destination: Path, sha256: str | None) -> Fetched:
            make_folder(destination.parent)
            make_folder(self.root / PARTS_NAME, 0o700)
            return fetch(
                source.urls,
                destination,
                sha256=sha256,
                limits=limits,
                policy=policy,
                stop=stop,
                on_progress=on_progress,
                parts=self.root / PARTS_NAME,
                slots=Slots(self._locks, limits),
            )

        if not source.sha256:
            with self.staging("any") as folder:
                fetched = download(folder / "archive", None)
                if lease is not None:
                    lease.take(fetched.sha256, stop)
                with locked(self.lock_path(fetched.sha256), stop):
                    return self._file(fetched)
        digest = _checked(source.sha256)
        if lease is not None:
            lease.take(digest, stop)
        with locked(self.lock_path(digest), stop):
            if found := self._found(digest):
                return found
            path = self.archive_path(digest)
            remove_tree(path)
            return self._filed(download(path, digest))

    def unread(self, digest: str, size: int) -> Obtained:
        """An archive as its tree's marker describes it; it may not be here any more.

        Args:
            digest: of the archive.
            size: of the archive, bytes.
        """
        path = self.archive_path(digest)
        return Obtained(path, path.name, size, cache_hit=True, seconds=0.0, host=CACHE)

    def remove(self, digest: str) -> bool:
        """Remove an archive; its tree stays.

        Returns:
            Whether there was one.

        Raises:
            StorageError: it cannot be removed.
        """
        path = self.archive_path(digest)
        with locked(self.lock_path(path.name)), storing("cannot remove", path):
            try:
                path.unlink()
            except FileNotFoundError:
                return False
        return True

    def quarantine(self, digest: str, inode: int | None = None) -> Path | None:
        """Put an archive aside whose bytes are not those of its digest.

        The lock of the digest must be held, or somebody else's new archive may be put aside.

        Args:
            digest: of the archive.
            inode: of the file that was read; one that has taken its place meanwhile stays.

        Returns:
            Where it is now; None if what was read is gone.

        Raises:
            StorageError: it cannot be moved.
        """
        path = self.archive_path(digest)
        aside = self.root / "quarantine" / f"{path.name}.{secrets.token_hex(4)}"
        make_folder(aside.parent, 0o700)
        with storing("cannot put the archive aside", path):
            try:
                if inode is not None and path.lstat().st_ino != inode:
                    return None
                path.rename(aside)
            except FileNotFoundError:
                return None
        return aside

    # --- trees -------------------------------------------------------------------------------

    def tree(
        self,
        source: Source,
        *,
        limits: Limits = DEFAULT_LIMITS,
        fetch_limits: FetchLimits = DEFAULT_FETCH_LIMITS,
        policy: FetchPolicy = DEFAULT_POLICY,
        escaping_links: EscapingLinks = "drop",
        stop: Stop | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        on_obtained: Callable[[Obtained], None] = _tell_nobody,
        lease: Lease | None = None,
    ) -> Grown:
        """The unpacked tree of a source: from the store if it is there, else made.

        Processes that ask for one tree at the same time share one download and one unpacking. An
        archive of the store whose bytes are wrong is put into quarantine and fetched again.

        Args:
            source: as for `obtain`.
            limits: how much the archive may hold; a tree that is there was within those of its
                time.
            fetch_limits: how much, how long and how often to download.
            policy: from where.
            escaping_links: what to do with symbolic links that lead out of the tree.
            stop: ends the waiting and the work.
            on_progress: called a few times a second during a download.
            on_obtained: called once the archive is known to be the right one.
            lease: as for `obtain`; without one the collector may remove the tree at any moment.

        Raises:
            SourceError: as `fetch` and `unpack` do.
        """
        stop = stop or Stop()

        def obtain(digest: str) -> Obtained:
            return self.obtain(
                replace(source, sha256=digest),
                limits=fetch_limits,
                policy=policy,
                stop=stop,
                on_progress=on_progress,
                lease=lease,
            )

        obtained = None if source.sha256 else obtain("")
        digest = _checked(source.sha256) if obtained is None else obtained.sha256
        if lease is not None:
            lease.take(digest, stop)
        key = tree_key(digest, escaping_links)
        with locked(self.lock_path(key), stop):
            if found := self._grown(key, obtained, on_obtained):
                return found
        with self.trash(key) as trash, locked(self.lock_path(key), stop):
            failure = ""
            for last in (False, False, True):
                if found := self._grown(key, obtained, on_obtained):
                    return found
                self.trees.withdraw(key, trash)
                obtained = obtained or obtain(digest)
                if not obtained.cache_hit:
                    on_obtained(obtained)
                started = time.monotonic()
                read = _inode(obtained.path)
                try:
                    stored = self.grow(key, obtained, limits, stop)
                except DigestMismatch:
                    # The other tree of this archive is made under another lock.
                    with locked(self.lock_path(digest), stop):
                        self.quarantine(digest, read)
                    failure = f"the archive {digest} does not keep its bytes; check the disk"
                except FileNotFoundError:
                    failure = f"the archive {digest} was removed while it was unpacked; try again"
                except StorageError:
                    # Somebody else stores the same tree where locks keep nobody out.
                    if last or locks_hold(self.root):
                        raise
                    continue
                else:
                    if obtained.cache_hit:
                        on_obtained(obtained)
                    seconds = time.monotonic() - started
                    return Grown(stored, obtained, hit=False, seconds=seconds)
                obtained = None
        raise StorageError(failure)

    def grow(self, key: str, obtained: Obtained, limits: Limits, stop: Stop) -> StoredTree:
        """Unpack a stored archive into its place. The lock of the key must be held.

        Raises:
            DigestMismatch: the archive's bytes are wrong.
            FileNotFoundError: it is not there.
            SourceError: as `unpack` does.
        """
        with self.staging(key) as folder:
            tree = folder / "tree"
            manifest = self.unpack(obtained, tree, key, limits, stop)
            stored = self.trees.put(
                key, tree, manifest, digest=obtained.sha256, archive_bytes=obtained.bytes
            )
        self.touch(self.trees.marker_path(key))
        return stored

    @staticmethod
    def unpack(
        obtained: Obtained, destination: Path, key: str, limits: Limits, stop: Stop
    ) -> Manifest:
        """Unpack a stored archive anywhere, as the tree of a key would be.

        Raises:
            DigestMismatch: the archive's bytes are wrong.
            FileNotFoundError: it is not there.
            SourceError: as `archive.unpack` does.
        """
        return unpack(
            obtained.path,
            destination,
            limits,
            sha256=obtained.sha256,
            escaping_links=escaping_links_in(key),
            stop=stop,
        )

    def drop_changed(self, key: str, stop: Stop | None = None) -> bool:
        """Remove a tree if it is not, or cannot be seen to be, what its manifest says.

        Its archive stays.

        Returns:
            Whether it was removed.

        Raises:
            StorageError: it cannot be removed.
            Stopped, DeadlinePassed: while waiting for its lock.
        """
        with self.trash(key) as trash, locked(self.lock_path(key), stop):
            tree = self.trees.complete(key)
            # A tree that cannot be read is of no use to anybody either.
            with contextlib.suppress(StorageError):
                if tree is not None and not tree.manifest.differences(tree.path):
                    return False  # somebody has made it again meanwhile
            return self.trees.withdraw(key, trash)

    # --- housekeeping ------------------------------------------------------------------------

    def staging(self, prefix: str) -> AbstractContextManager[Path]:
        """A private folder for a tree that is being unpacked."""
        make_folder(self.root / "staging", 0o700)
        # What cannot be removed is in nobody's way.
        with contextlib.suppress(SourceError):
            self.clean()
        return private_folder(self.root / "staging", prefix)

    @contextmanager
    def trash(self, prefix: str) -> Iterator[Path]:
        """A private folder for what is to be deleted; it is deleted at the end of the block."""
        make_folder(self.root / "trash", 0o700)
        with private_folder(self.root / "trash", prefix) as folder:
            yield folder

    def clean(
        self, problems: list[StorageError] | None = None, *, young_parts: bool = False
    ) -> list[str]:
        """Remove what processes left behind when they died, and parts nobody came back for.

        Args:
            problems: what cannot be removed is noted here; without it, the first such error is
                raised after everything else was removed.
            young_parts: remove parts that nobody writes whatever their age.

        Returns:
            The names of what was removed.

        Raises:
            StorageError: something cannot be removed.
        """
        failures: list[StorageError] = []
        removed: list[str] = []
        parts = self.root / PARTS_NAME
        with noting(failures, "cannot clean the folder", parts):
            removed += clean_parts(parts, 0 if young_parts else DAY_SECONDS, failures)
        for name in ("staging", "trash"):
            with noting(failures, "cannot clean the folder", self.root / name):
                removed += clean_private_folders(self.root / name, failures)
        if problems is not None:
            problems += failures
        elif failures:
            raise failures[0]
        return removed

    def clean_locks(self, problems: list[StorageError]) -> None:
        """Remove the lock files that nobody holds; each is made again when it is needed.

        Args:
            problems: what cannot be removed is noted here.
        """
        for path in names_in(self.root / "locks"):
            if path.suffix == ".lock":
                with noting(problems, "cannot remove the lock", path):
                    remove_lock_if_free(path)

    def touch(self, path: Path) -> None:
        """Note in a file's mtime that it was used last.

        The times only ever grow, also while the clock of the machine stands or goes back: so the
        order of use is kept.
        """
        # Who may read the store but not write to it uses it without a trace.
        with contextlib.suppress(OSError):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            handle = os.open(self.clock_path, flags, 0o644)
            try:
                now = max(time.time_ns(), os.fstat(handle).st_mtime_ns + 1)
                os.utime(handle, ns=(now, now))
            finally:
                os.close(handle)
            os.utime(path, ns=(now, now), follow_symlinks=False)

    # --- inside ------------------------------------------------------------------------------

    @property
    def _locks(self) -> Path:
        folder = self.root / "locks"
        make_folder(folder)
        return folder

    def _grown(
        self, key: str, obtained: Obtained | None, on_obtained: Callable[[Obtained], None]
    ) -> Grown | None:
        """The tree if it is here. The lock of its key must be held."""
        found = self.trees.find(key)
        if found is None:
            return None
        self.touch(self.trees.marker_path(key))
        obtained = obtained or self.unread(digest_in(key), found.marker.archive_bytes)
        on_obtained(obtained)
        return Grown(found, obtained, hit=True, seconds=0.0)

    def _file(self, fetched: Fetched) -> Obtained:
        """Put a fetched archive into its place. The lock of its digest must be held."""
        path = self.archive_path(fetched.sha256)
        make_folder(path.parent)
        with storing("cannot file the archive", path):
            fetched.path.rename(path)
            sync_folder(path.parent)
        return self._filed(replace(fetched, path=path))

    def _filed(self, fetched: Fetched) -> Obtained:
        self.touch(fetched.path)
        return Obtained(
            path=fetched.path,
            sha256=fetched.sha256,
            bytes=fetched.bytes,
            cache_hit=False,
            seconds=fetched.seconds,
            host=fetched.host,
            attempts=fetched.attempts,
            condemned=fetched.condemned,
        )

    def _found(self, digest: str) -> Obtained | None:
        """The stored archive, if there is one; its bytes are not looked at."""
        path = self.archive_path(digest)
        try:
            status = path.lstat()
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        self.touch(path)
        return Obtained(path, digest, status.st_size, cache_hit=True, seconds=0.0, host=CACHE)


def _inode(path: Path) -> int:
    try:
        return path.lstat().st_ino
    except OSError:
        return 0


def _checked(digest: str) -> str:
    if not is_digest(digest):
        raise SpecError(f"{printable(digest)!r} is not a SHA-256 digest; give 64 hex digits")
    return digest.lower()
