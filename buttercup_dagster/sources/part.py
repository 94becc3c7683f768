"""The file into which an archive arrives, before it is known to be the right one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from buttercup_dagster.sources.disk import sync_folder
from buttercup_dagster.sources.errors import NoSpace, StorageError, storing
from buttercup_dagster.sources.options import MEBIBYTE
from buttercup_dagster.sources.origin import Origin
from buttercup_dagster.sources.stop import Stop

SPACE_CHECK_BYTES: Final = 256 * MEBIBYTE
"""After so many further bytes the free space is looked at again."""

_HEAD_BYTES: Final = 80
_WRITING: Final = "cannot write the archive"


class Part:
    """A file that grows, is hashed as it grows, and takes its place only once it is complete.

    Attributes:
        size: bytes so far.
        head: the first bytes, to show what arrived.
        resumed: whether the bytes come from more than one request.
        origin: where the first of them came from, if that was noted.

    Args:
        handle: the file, open for reading and writing; nobody else may write it.
        path: its name.
        reserve_bytes: free space to leave on its disk.
        sidecar: file in which the origin is kept for a later call; None to keep it in memory.
    """

    def __init__(
        self, handle: int, path: Path, reserve_bytes: int, sidecar: Path | None = None
    ) -> None:
        self.size = 0
        self.head = b""
        self.resumed = False
        self.origin = None if sidecar is None else Origin.read(sidecar)
        self._handle = handle
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._sidecar = sidecar
        self._hash = hashlib.sha256()

    @classmethod
    @contextmanager
    def beside(cls, destination: Path, reserve_bytes: int) -> Iterator[Part]:
        """A new part; it is removed at the end of the block unless `commit` was called.

        Args:
            destination: where the archive shall be.
            reserve_bytes: free space to leave on its disk.

        Raises:
            StorageError: it cannot be made.
        """
        path = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}.part")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with storing(_WRITING, destination):
            handle = os.open(path, flags, 0o600)
        part = cls(handle, path, reserve_bytes)
        try:
            yield part
        finally:
            os.close(handle)
            part.discard()

    @property
    def sha256(self) -> str:
        """Digest of the bytes so far."""
        return self._hash.hexdigest()

    def take_over(self, stop: Stop, tell: Callable[[], None]) -> None:
        """Count and hash the bytes that an earlier call left in the file.

        Args:
            stop: ends it.
            tell: called after each MiB.

        Raises:
            StorageError: they cannot be read.
            Stopped, DeadlinePassed: by `stop`.
        """
        while data := self._read():
            self._account(data)
            self.resumed = True
            tell()
            stop.check()

    def note(self, origin: Origin) -> None:
        """Remember where the bytes come from."""
        self.origin = origin
        if self._sidecar is not None:
            origin.write(self._sidecar)

    def write(self, data: bytes) -> None:
        """Append and hash.

        Raises:
            NoSpace: the disk is full, or nearly so.
            StorageError: it cannot be written.
        """
        if self.size // SPACE_CHECK_BYTES != (self.size + len(data)) // SPACE_CHECK_BYTES:
            self.check_space(len(data))
        with storing(_WRITING):
            view = memoryview(data)
            place = self.size
            while view:
                written = os.pwrite(self._handle, view, place)
                view = view[written:]
                place += written
        self._account(data)

    def restart(self) -> None:
        """Forget all bytes and where they came from."""
        with storing(_WRITING):
            # First, so that it never describes other bytes than those that are here.
            if self._sidecar is not None:
                self._sidecar.unlink(missing_ok=True)
            os.ftruncate(self._handle, 0)
        self.origin = None
        self._hash = hashlib.sha256()
        self.size = 0
        self.head = b""
        self.resumed = False

    def check_space(self, further: int) -> None:
        """See to it that the disk has room for so many more bytes.

        Raises:
            NoSpace: it has not.
        """
        with storing(_WRITING):
            disk = os.fstatvfs(self._handle)
        free = disk.f_bavail * disk.f_frsize
        if further + self._reserve_bytes > free:
            raise NoSpace(
                f"the archive needs {further} more bytes and {self._reserve_bytes} must stay free, "
                f"but the disk has {free}; free disk space"
            )

    def commit(self, destination: Path) -> None:
        """Put the file durably in its place, read-only.

        Args:
            destination: its place, on the same file system.

        Raises:
            StorageError: it cannot be put there, or somebody else wrote to it.
        """
        with storing(_WRITING, destination):
            os.fdatasync(self._handle)
            found = os.fstat(self._handle).st_size
            if found != self.size:
                raise StorageError(
                    f"{self.size} bytes of the archive were written and {found} are there; "
                    "let nothing else write to the folder of the downloads"
                )
            os.fchmod(self._handle, 0o444)
            self._path.rename(destination)
            sync_folder(destination.parent)
        self._drop_sidecar()

    def discard(self) -> None:
        """Remove what is not committed. What cannot be removed is in nobody's way."""
        self._drop_sidecar()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _drop_sidecar(self) -> None:
        if self._sidecar is not None:
            with contextlib.suppress(OSError):
                self._sidecar.unlink(missing_ok=True)

    def _read(self) -> bytes:
        with storing("cannot read what was downloaded so far"):
            return os.pread(self._handle, MEBIBYTE, self.size)

    def _account(self, data: bytes) -> None:
        self._hash.update(data)
        if len(self.head) < _HEAD_BYTES:
            self.head += data[: _HEAD_BYTES - len(self.head)]
        self.size += len(data)
