"""The file into which an archive arrives, before it is known to be the right one."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from buttercup_dagster.sources.disk import sync_folder
from buttercup_dagster.sources.errors import NoSpace, storing
from buttercup_dagster.sources.options import MEBIBYTE

_HEAD_BYTES = 80
_WRITING = "cannot write the archive"


class Part:
    """A file that grows beside its destination and takes its place only once it is complete.

    Attributes:
        size: bytes so far.
        high_water: the most bytes there ever were.
        head: the first bytes, to show what arrived.
        resumed: whether the bytes come from more than one request.
    """

    def __init__(self, handle: int, path: Path, destination: Path, reserve_bytes: int) -> None:
        self.size = 0
        self.high_water = 0
        self.head = b""
        self.resumed = False
        self._handle = handle
        self._path = path
        self._destination = destination
        self._reserve_bytes = reserve_bytes
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
        try:
            yield cls(handle, path, destination, reserve_bytes)
        finally:
            os.close(handle)
            path.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Digest of the bytes so far."""
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        """Append and hash."""
        if self.size // (256 * MEBIBYTE) != (self.size + len(data)) // (256 * MEBIBYTE):
            self.check_space(len(data))
        with storing(_WRITING):
            view = memoryview(data)
            while view:
                view = view[os.write(self._handle, view) :]
        self._hash.update(data)
        if len(self.head) < _HEAD_BYTES:
            self.head += data[: _HEAD_BYTES - len(self.head)]
        self.size += len(data)
        self.high_water = max(self.high_water, self.size)

    def restart(self) -> None:
        """Forget all bytes."""
        with storing(_WRITING):
            os.ftruncate(self._handle, 0)
            os.lseek(self._handle, 0, os.SEEK_SET)
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

    def commit(self) -> None:
        """Put the file durably in its place, read-only.

        Raises:
            StorageError: it cannot be put there.
        """
        with storing(_WRITING, self._destination):
            os.fchmod(self._handle, 0o444)
            os.fdatasync(self._handle)
            self._path.rename(self._destination)
            sync_folder(self._destination.parent)
