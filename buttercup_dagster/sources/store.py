"""Every verified archive once, by its digest, however many tasks and processes ask for it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from buttercup_dagster.sources.disk import (
    clean_private_folders,
    locked,
    make_folder,
    private_folder,
    remove_tree,
    sync_folder,
)
from buttercup_dagster.sources.errors import SourceError, SpecError, storing
from buttercup_dagster.sources.fetch import Fetched, FetchLimits, FetchPolicy, Progress, fetch
from buttercup_dagster.sources.options import DEFAULT_FETCH_LIMITS, DEFAULT_POLICY, MEBIBYTE
from buttercup_dagster.sources.stop import Stop
from task_api.task import Source, is_digest, printable

CACHE: Final = "store"
"""What stands for a host where an archive was not fetched but here already."""


@dataclass(frozen=True, slots=True)
class Obtained:
    """An archive in the store, verified in this very call.

    Attributes:
        path: where it is; read-only.
        sha256: its digest, 64 lower-case hex digits.
        bytes: its size.
        cache_hit: whether it was in the store already.
        seconds: of fetching; 0 for a cache hit.
        verify_seconds: of reading it again; 0 for what was hashed while it arrived.
        host: host that gave it; "store" for a cache hit.
        attempts: requests made.
    """

    path: Path
    sha256: str
    bytes: int
    cache_hit: bool
    seconds: float
    verify_seconds: float
    host: str
    attempts: int = 0


class Store:
    """The archives of this machine.

    Below the root:
        archives/sha256/<first two digits>/<digest>   a verified archive, read-only
        parts/<digest>.<random>/                      a download under way
        locks/<digest>.lock                           held by whoever downloads that digest

    Args:
        root: folder on one file system; made when it is needed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def archive_path(self, digest: str) -> Path:
        """Where the archive of a digest is, or would be.

        Raises:
            SpecError: it is no digest.
        """
        if not is_digest(digest):
            raise SpecError(f"{printable(digest)!r} is not a SHA-256 digest; give 64 hex digits")
        digest = digest.lower()
        return self.root / "archives" / "sha256" / digest[:2] / digest

    def lock_path(self, name: str) -> Path:
        """The lock file of a digest or of `task-<task_id>`; its folder is made."""
        make_folder(self.root / "locks")
        return self.root / "locks" / f"{name}.lock"

    def obtain(
        self,
        source: Source,
        *,
        limits: FetchLimits = DEFAULT_FETCH_LIMITS,
        policy: FetchPolicy = DEFAULT_POLICY,
        stop: Stop | None = None,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Obtained:
        """The archive of a source: from the store if it is there, else fetched into it.

        Processes that ask for one digest at the same time share one download. An archive that
        was damaged in the store is dropped and fetched again.

        Args:
            source: its digest may be empty: then whatever its URLs give is taken and filed under
                the digest that it turns out to have.
            limits: how much, how long, how often.
            policy: from where.
            stop: ends the wait for another process and the download.
            on_progress: called a few times a second during a download.

        Raises:
            SourceError: as `fetch` does.
        """
        stop = stop or Stop()
        if not source.sha256:
            return self._take_what_comes(source.urls, limits, policy, stop, on_progress)
        path = self.archive_path(source.sha256)
        digest = path.name
        if found := self._verified(path, stop):
            return found
        with locked(self.lock_path(digest), stop):
            # Whoever held the lock may have fetched it meanwhile.
            if found := self._verified(path, stop):
                return found
            remove_tree(path)
            with self._parts(digest) as folder:
                fetched = fetch(
                    source.urls,
                    folder / "archive",
                    sha256=digest,
                    limits=limits,
                    policy=policy,
                    stop=stop,
                    on_progress=on_progress,
                )
                return self._file(fetched)

    def remove(self, digest: str) -> bool:
        """Remove an archive.

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

    def clean(self) -> list[str]:
        """Remove the parts of downloads whose process died; the names of what was removed."""
        return clean_private_folders(self.root / "parts")

    def _take_what_comes(
        self,
        urls: Sequence[str],
        limits: FetchLimits,
        policy: FetchPolicy,
        stop: Stop,
        on_progress: Callable[[Progress], None] | None,
    ) -> Obtained:
        with self._parts("any") as folder:
            fetched = fetch(
                urls,
                folder / "archive",
                sha256=None,
                limits=limits,
                policy=policy,
                stop=stop,
                on_progress=on_progress,
            )
            with locked(self.lock_path(fetched.sha256), stop):
                return self._file(fetched)

    def _parts(self, prefix: str) -> AbstractContextManager[Path]:
        make_folder(self.root / "parts", 0o700)
        # What cannot be removed is in nobody's way.
        with contextlib.suppress(SourceError):
            self.clean()
        return private_folder(self.root / "parts", prefix)

    def _file(self, fetched: Fetched) -> Obtained:
        """Put a fetched archive into its place. The lock of its digest must be held."""
        path = self.archive_path(fetched.sha256)
        make_folder(path.parent)
        with storing("cannot file the archive", path):
            fetched.path.rename(path)
            sync_folder(path.parent)
        return Obtained(
            path=path,
            sha256=fetched.sha256,
            bytes=fetched.bytes,
            cache_hit=False,
            seconds=fetched.seconds,
            verify_seconds=0.0,
            host=fetched.host,
            attempts=fetched.attempts,
        )

    def _verified(self, path: Path, stop: Stop) -> Obtained | None:
        """The stored archive, if it is there and its bytes are still those of its digest."""
        started = time.monotonic()
        digest = hashlib.sha256()
        size = 0
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            while data := os.read(handle, MEBIBYTE):
                stop.check()
                digest.update(data)
                size += len(data)
        except OSError:
            return None
        finally:
            os.close(handle)
        if digest.hexdigest() != path.name:
            return None
        return Obtained(
            path=path,
            sha256=path.name,
            bytes=size,
            cache_hit=True,
            seconds=0.0,
            verify_seconds=time.monotonic() - started,
            host=CACHE,
        )
