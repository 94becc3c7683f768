"""The content of a folder on disk, as it is to be packed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.packing.tarball import (
    OMITTED_NAMES,
    Entry,
    LeftOut,
    order,
    shown,
    unfit_name,
    unfit_target,
)
from buttercup_dagster.sources.options import MEBIBYTE
from buttercup_dagster.sources.unpacking.tar import DIRECTORY, FILE, SYMLINK

_KINDS: Final = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: SYMLINK,
}
_SPECIAL: Final = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_SWAPPED: Final = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.ENXIO})
"""What comes of a name that has become something else since it was looked at."""

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# A name that has become a named pipe since it was looked at must not block.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class FolderContent:
    """Everything below a folder but `OMITTED_NAMES`.

    Symbolic links are kept as links and never followed; only the folder itself may be named by
    one. Everything is opened relative to its parent's handle, so a folder that is swapped for a
    link meanwhile leads nowhere else. Each name of a file with several (hard links) is packed as
    a file of its own.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.fsencode(root)
        self._left_out: list[LeftOut] = []

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Sockets, named pipes, devices and names that no task may hold, found so far."""
        return tuple(sorted(self._left_out, key=lambda left_out: left_out.name))

    def entries(self) -> Generator[Entry, None, None]:
        """The entries in order.

        Raises:
            PackingError: something cannot be read, or changes meanwhile.
        """
        self._left_out.clear()
        handle = self._open(b"", _FOLDER)
        try:
            yield from self._below(handle, b"")
        finally:
            os.close(handle)

    def _below(self, folder: int, parent: bytes) -> Iterator[Entry]:
        for name, kind in self._names(folder, parent):
            path = parent + name
            if kind is SYMLINK:
                target = self._target(folder, name, path)
                if reason := unfit_target(target):
                    self._left_out.append(LeftOut(shown(path), reason))
                else:
                    yield Entry(path, kind, target=target)
            elif kind is DIRECTORY:
                handle = self._open(path, _FOLDER | os.O_NOFOLLOW, folder, name)
                try:
                    yield Entry(path, kind)
                    yield from self._below(handle, path + b"/")
                finally:
                    os.close(handle)
            else:
                handle = self._open(path, _FILE, folder, name)
                try:
                    status = os.fstat(handle)
                    if not stat.S_ISREG(status.st_mode):
                        raise self._changed(path)
                    yield Entry(
                        path,
                        kind,
                        status.st_size,
                        executable=bool(status.st_mode & stat.S_IXUSR),
                        blocks=self._blocks(handle, status, path),
                    )
                finally:
                    os.close(handle)

    def _names(self, folder: int, parent: bytes) -> list[tuple[bytes, str]]:
        """What a folder holds of what can be packed, in order."""
        found: list[tuple[bytes, str]] = []
        path = parent
        try:
            with os.scandir(folder) as listing:
                for item in listing:
                    name = os.fsencode(item.name)
                    if name in OMITTED_NAMES:
                        continue
                    path = parent + name
                    type_ = stat.S_IFMT(item.stat(follow_symlinks=False).st_mode)
                    kind = _KINDS.get(type_)
                    reason = unfit_name(path)
                    if kind is None:
                        reason = _SPECIAL.get(type_, "no file, folder or link")
                    if reason:
                        self._left_out.append(LeftOut(shown(path), reason))
                    elif kind is not None:
                        found.append((name, kind))
        except OSError as error:
            raise self._unreadable(path, error) from error
        found.sort(key=lambda item: order(*item))
        return found

    def _target(self, folder: int, name: bytes, path: bytes) -> bytes:
        try:
            return os.readlink(name, dir_fd=folder)
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _open(
        self, path: bytes, flags: int, folder: int | None = None, name: bytes | None = None
    ) -> int:
        try:
            return os.open(self._root if name is None else name, flags, dir_fd=folder)
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _blocks(self, handle: int, before: os.stat_result, path: bytes) -> Iterator[bytes]:
        left = before.st_size
        try:
            while left:
                block = os.read(handle, min(left, MEBIBYTE))
                if not block:
                    raise self._changed(path)
                left -= len(block)
                yield block
            after = os.fstat(handle)
        except OSError as error:
            raise self._unreadable(path, error) from error
        # The time tells of content that was written over without a change of size.
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise self._changed(path)

    def _shown(self, path: bytes) -> str:
        return shown(os.path.join(self._root, path) if path else self._root)  # noqa: PTH118

    def _changed(self, path: bytes) -> PackingError:
        return PackingError(
            f"{self._shown(path)} changed while it was being read; stop what writes to it, then "
            "pack again"
        )

    def _unreadable(self, path: bytes, error: OSError) -> PackingError:
        if path and error.errno in _SWAPPED:
            return self._changed(path)
        if isinstance(error, PermissionError):
            advice = "make it readable for yourself (chmod u+rX), or move it out of the folder"
        else:
            advice = "mend or remove it, then pack again"
        return PackingError(f"{self._shown(path)} cannot be read: {error.strerror}; {advice}")
