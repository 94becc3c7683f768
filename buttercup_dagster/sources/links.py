"""Making a second tree out of a stored one: by cloning, hard-linking or copying its files.

    clone      a file of its own that shares the blocks until one side writes (FICLONE)
    hardlink   a further name of the same file: who writes to it writes into the store
    copy       a file of its own

Each file is compared with the manifest while it is linked, so a tree that somebody changed is
noticed before anybody reads it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

from buttercup_dagster.sources.errors import TreeChanged, storage_error, storing
from buttercup_dagster.sources.manifest import Manifest, Section
from buttercup_dagster.sources.options import MEBIBYTE
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.unpacking.extract import FOLDER_MODE
from task_api.task import printable

LinkMode = Literal["auto", "clone", "hardlink", "copy"]
UsedMode = Literal["clone", "hardlink", "copy"]

MODES: Final[Mapping[LinkMode, tuple[UsedMode, ...]]] = {
    "auto": ("clone", "hardlink", "copy"),
    "clone": ("clone", "copy"),
    "hardlink": ("hardlink", "copy"),
    "copy": ("copy",),
}
"""What is tried, one after the other. Who asks for clones wants files of his own, so a hard link
is no substitute."""

LEAST_PROMISING: Final[tuple[UsedMode, ...]] = ("hardlink", "copy", "clone")
"""The mode that is told of a tree is the first of these that was used: of a tree with one
hard-linked file nobody must think that it may be written to."""

_FICLONE: Final = 0x40049409
"""`_IOW(0x94, 9, int)`, see ioctl_ficlone(2)."""

_UNSUPPORTED: Final = frozenset(
    {
        errno.EOPNOTSUPP,
        errno.ENOSYS,
        errno.ENOTTY,
        errno.EXDEV,
        errno.EINVAL,
        errno.EPERM,  # hard links to the files of others are forbidden (fs.protected_hardlinks)
        errno.EACCES,
        errno.ETXTBSY,
    }
)
"""The way does not work between these two places; the next one may."""

_FILE: Final = ord("f")
_STOP_EVERY: Final = 256
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKING: Final = "cannot link the tree into the task"


def link_tree(
    tree: Path,
    manifest: Manifest,
    destination: Path,
    mode: LinkMode = "auto",
    stop: Stop | None = None,
) -> UsedMode:
    """Make a tree that equals a stored one.

    Folders get mode 0755 and the times that the manifest has for them. Names of one file are
    names of one file again, in every mode. What the tree holds beyond its manifest is ignored.

    Args:
        tree: the stored tree.
        manifest: what it holds, as `unpack` has returned it.
        destination: the folder to make; its parent must exist, itself must not.
        mode: how; what does not work there is replaced as `MODES` says.
        stop: ends the work.

    Returns:
        The mode that was used; of several the one that promises least (`LEAST_PROMISING`).

    Raises:
        TreeChanged: the tree is not what its manifest says.
        NoSpace: the disk or the quota is full; nothing else is tried then.
        StorageError: the disk fails, or the destination exists.
        Stopped, DeadlinePassed: by `stop`.

    After an error an unfinished destination is left to the caller.
    """
    try:
        source = os.open(tree, _FOLDER)
    except OSError as error:
        raise TreeChanged(f"the stored tree is gone ({error.strerror}); it is made again") from None
    try:
        with storing("cannot make the folder", destination):
            destination.mkdir(mode=FOLDER_MODE)
            target = os.open(destination, _FOLDER)
        try:
            work = _Linking(source, target, MODES[mode], stop or Stop())
            for section in manifest.sections:
                work.add(section)
            return work.used()
        finally:
            os.close(target)
    finally:
        os.close(source)


class _Linking:
    """One tree on its way into another folder."""

    def __init__(self, source: int, target: int, modes: tuple[UsedMode, ...], stop: Stop) -> None:
        self._source = source
        self._target = target
        self._modes = list(modes)
        self._stop = stop
        self._done: set[UsedMode] = set()
        self._names: dict[bytes, list[bytes]] = {}
        self._ways: Mapping[UsedMode, Callable[[bytes, os.stat_result], None]] = {
            "clone": self._clone,
            "hardlink": self._hardlink,
            "copy": self._copy,
        }
        # What the umask and the folder above make of a new folder; all others get the same.
        self._folders_need_a_mode = stat.S_IMODE(os.fstat(target).st_mode) != FOLDER_MODE

    def used(self) -> UsedMode:
        """The mode to tell of the whole tree."""
        for mode in LEAST_PROMISING:
            if mode in self._done:
                return mode
        return self._modes[0]

    def add(self, section: Section) -> None:
        """Link all of a section."""
        folders: list[bytes] = []
        times: list[tuple[bytes, bytes]] = []
        # A tree may have a hundred thousand files: what is done for each stands here, in one place.
        rows = section.rows.split(b"\n")
        rows.pop()
        source, target = self._source, self._target
        status_of, link, done = os.stat, os.link, self._done
        modes: dict[bytes, int] = {}
        path = b""
        try:
            for start in range(0, len(rows), _STOP_EVERY):
                self._stop.check()
                for row in rows[start : start + _STOP_EVERY]:
                    if row[0] != _FILE:
                        kind, _, _, mtime, path, *other = row.split(b"\t")
                        if kind == b"d":
                            self._add_folder(path)
                            folders.append(path)
                        elif kind == b"t" and path:
                            times.append((path, mtime))
                        elif kind == b"h":
                            self._add_name(path, other[0])
                        elif kind == b"l":
                            self._add_symlink(path, mtime, other[0])
                        continue
                    _, mode, size, mtime, path = row.split(b"\t")
                    status = status_of(path, dir_fd=source, follow_symlinks=False)
                    if mode not in modes:
                        modes[mode] = stat.S_IFREG | int(mode, 8)
                    if (
                        status.st_mode != modes[mode]
                        or status.st_size != int(size)
                        or status.st_mtime_ns // 1_000_000_000 != int(mtime)
                    ):
                        raise _changed(path, "is another file than was unpacked")
                    if self._modes[0] == "hardlink":
                        try:
                            link(
                                path,
                                path,
                                src_dir_fd=source,
                                dst_dir_fd=target,
                                follow_symlinks=False,
                            )
                        except OSError as error:
                            self._after(error, path, status)
                        else:
                            done.add("hardlink")
                    else:
                        self._make(path, status)
        except FileNotFoundError:
            raise _changed(path, "is missing") from None
        except NotADirectoryError:
            raise _changed(path, "does not lie in a folder any more") from None
        except OSError as error:
            raise storage_error(error, _LINKING) from error
        self._finish(folders, times)

    def _add_folder(self, path: bytes) -> None:
        status = os.stat(path, dir_fd=self._source, follow_symlinks=False)
        if status.st_mode != stat.S_IFDIR | FOLDER_MODE:
            raise _changed(path, "is not the folder that was unpacked")
        os.mkdir(path, FOLDER_MODE, dir_fd=self._target)

    def _make(self, path: bytes, status: os.stat_result) -> None:
        """Make a file by the first way that works; ways that do not are not tried again."""
        while True:
            try:
                self._ways[self._modes[0]](path, status)
            except OSError as error:
                if not self._give_up_way(error):
                    self._after(error, path, status)
                    return
            else:
                self._done.add(self._modes[0])
                return

    def _after(self, error: OSError, path: bytes, status: os.stat_result) -> None:
        """Go on after the first way has failed for a file."""
        if error.errno == errno.EMLINK:  # of this file only
            self._copy(path, status)
            self._done.add("copy")
        elif self._give_up_way(error):
            self._make(path, status)
        else:
            raise error

    def _give_up_way(self, error: OSError) -> bool:
        if error.errno not in _UNSUPPORTED or len(self._modes) == 1:
            return False
        self._modes.pop(0)
        return True

    # --- the three ways ----------------------------------------------------------------------

    def _hardlink(self, path: bytes, _status: os.stat_result) -> None:
        os.link(path, path, src_dir_fd=self._source, dst_dir_fd=self._target, follow_symlinks=False)

    def _clone(self, path: bytes, status: os.stat_result) -> None:
        self._fill(path, path, status, _clone_bytes)

    def _copy(self, path: bytes, status: os.stat_result) -> None:
        self._fill(path, path, status, self._copy_bytes)

    def _fill(
        self,
        path: bytes,
        name: bytes,
        status: os.stat_result,
        fill: Callable[[int, int, int], None],
    ) -> None:
        """Make a new file with the bytes, the mode and the time of a stored one."""
        source = os.open(path, _READ, dir_fd=self._source)
        try:
            if os.fstat(source).st_ino != status.st_ino:
                raise _changed(path, "was replaced while it was read")
            target = os.open(name, _NEW, 0o600, dir_fd=self._target)
            try:
                fill(source, target, status.st_size)
                if os.fstat(target).st_size != status.st_size:
                    raise _changed(path, "changed while it was read")
                os.fchmod(target, stat.S_IMODE(status.st_mode))
                os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
            except OSError:
                os.unlink(name, dir_fd=self._target)
                raise
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _copy_bytes(self, source: int, target: int, size: int) -> None:
        copied = 0
        while copied < size:
            self._stop.check()
            count = _copy_some(source, target, min(size - copied, 64 * MEBIBYTE))
            if not count:
                break
            copied += count

    # --- further names and symbolic links ----------------------------------------------------

    def _add_name(self, path: bytes, other: bytes) -> None:
        """Make a further name of a file that was made already."""
        status = os.stat(path, dir_fd=self._source, follow_symlinks=False)
        first = os.stat(other, dir_fd=self._source, follow_symlinks=False)
        if status.st_ino != first.st_ino:
            raise _changed(path, "is no longer the same file as its other name")
        names = self._names.setdefault(other, [])
        try:
            self._link_again(other, path)
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            # The stored file cannot have so many names more: a copy takes the place of all.
            self._copy_for_all(other, names, status)
            self._link_again(other, path)
        names.append(path)

    def _link_again(self, first: bytes, name: bytes) -> None:
        target = self._target
        os.link(first, name, src_dir_fd=target, dst_dir_fd=target, follow_symlinks=False)

    def _copy_for_all(self, first: bytes, names: list[bytes], status: os.stat_result) -> None:
        for name in (first, *names):
            os.unlink(name, dir_fd=self._target)
        self._copy(first, status)
        self._done.add("copy")
        for name in names:
            self._link_again(first, name)

    def _add_symlink(self, path: bytes, mtime: bytes, text: bytes) -> None:
        try:
            found = os.readlink(path, dir_fd=self._source)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise _changed(path, "is no symbolic link any more") from None
        if found != text:
            raise _changed(path, "leads elsewhere")
        os.symlink(text, path, dir_fd=self._target)
        if mtime:
            try:
                os.utime(
                    path,
                    (int(mtime), int(mtime)),
                    dir_fd=self._target,
                    follow_symlinks=False,
                )
            except (OSError, NotImplementedError):
                return  # some file systems keep no time for a link; nobody relies on it

    # --- the end -----------------------------------------------------------------------------

    def _finish(self, folders: list[bytes], times: list[tuple[bytes, bytes]]) -> None:
        """Give the folders their modes and times, innermost first: making a name changes them."""
        with storing(_LINKING):
            if self._folders_need_a_mode:
                os.fchmod(self._target, FOLDER_MODE)
                for path in reversed(folders):
                    os.chmod(path, FOLDER_MODE, dir_fd=self._target)
            for path, mtime in sorted(times, key=lambda one: -one[0].count(b"/")):
                os.utime(path, (int(mtime), int(mtime)), dir_fd=self._target)


def _clone_bytes(source: int, target: int, _size: int) -> None:
    fcntl.ioctl(target, _FICLONE, source)


def _copy_some(source: int, target: int, most: int) -> int:
    """Copy some bytes in the kernel, at the places where both files stand."""
    try:
        return os.copy_file_range(source, target, most)
    except OSError as error:
        if error.errno not in {*_UNSUPPORTED, errno.EBADF}:
            raise
    except AttributeError:  # not on this system
        pass
    data = os.read(source, min(most, MEBIBYTE))
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    return len(data)


def _changed(path: bytes, what: str) -> TreeChanged:
    shown = printable(os.fsdecode(path), limit=300)
    return TreeChanged(f"in the stored tree {shown} {what}; the tree is made again")
