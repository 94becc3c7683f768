"""Locks, private folders and removal: what keeps half-done work from being seen or kept.

A lock is a `flock`: the kernel drops it when its process ends, however it ends. So a folder whose
lock can be taken has no owner any more, and neither age nor process id needs to be judged.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from buttercup_dagster.sources.errors import StorageError, storing
from buttercup_dagster.sources.stop import Stop

LOCK_POLL_SECONDS = 0.05

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_NO_LOCKS = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK})
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

# Numbers from linux/magic.h and the sources of the file systems.
_LOCAL: Final = frozenset(
    {
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0x01021994,  # tmpfs
        0x794C7630,  # overlayfs
        0x2FC12FC1,  # zfs
        0xF2F52010,  # f2fs
        0xCA451A4E,  # bcachefs
    }
)
"""Types of file systems on which a lock excludes every other process.

NFS, SMB, 9p, Lustre and whatever stands behind FUSE may grant one lock twice, or none.
"""

_LOCK_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make_folder(path: Path, mode: int = 0o755) -> None:
    """Make a folder and its parents, if they are not there, with this mode whatever the umask.

    Raises:
        StorageError: it cannot be made.
    """
    with storing("cannot make the folder", path):
        if path.is_dir():  # nearly always
            return
        for folder in reversed([path, *path.parents]):
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            folder.chmod(mode)


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@functools.cache
def _system() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def exchange(one: Path, other: Path) -> None:
    """Swap two names; on Linux in one step, in which neither is missing (renameat2(2)).

    Raises:
        FileNotFoundError: one of them is not there.
        OSError: they cannot be swapped.
    """
    try:
        renameat2 = _system().renameat2
    except AttributeError:
        _exchange_in_steps(one, other)
        return
    here = ctypes.c_int(_AT_FDCWD)
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return
    error = ctypes.get_errno()
    if error in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}:
        _exchange_in_steps(one, other)
    else:
        raise OSError(error, os.strerror(error), str(one), None, str(other))


def _exchange_in_steps(one: Path, other: Path) -> None:
    one.lstat()
    aside = one.with_name(f"{one.name}.{secrets.token_hex(8)}")
    other.rename(aside)
    try:
        one.rename(other)
    except OSError:
        aside.rename(other)
        raise
    aside.rename(one)


def write_atomically(
    path: Path, content: bytes, mode: int = 0o644, *, durable: bool = True
) -> None:
    """Write a file whole or not at all.

    Args:
        path: its place.
        content: what to write.
        mode: of the file, whatever the umask.
        durable: whether it has to be there after a power cut. Otherwise it may be missing or cut
            then, for whoever syncs it later or notices by what is in it.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with storing("cannot write the file", path):
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), mode)
                if durable:
                    os.fdatasync(file.fileno())
            temporary.rename(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a file, link or folder with all it holds; nothing happens if it is not there.

    Raises:
        StorageError: something in it cannot be removed.
    """
    with storing("cannot remove", path):
        try:
            is_folder = stat.S_ISDIR(path.lstat().st_mode)
        except FileNotFoundError:
            return
        if is_folder:
            _remove_folder(path)
        else:
            path.unlink(missing_ok=True)


def _remove_folder(path: Path) -> None:
    if sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=_open_up_and_retry)
    else:
        shutil.rmtree(path, onerror=_retry_as_before_3_12)


def _retry_as_before_3_12(
    function: Callable[..., Any], name: str, error: tuple[type, BaseException, object]
) -> None:
    _open_up_and_retry(function, name, error[1])


def _open_up_and_retry(_function: Callable[..., Any], name: str, error: BaseException) -> None:
    """Remove what a folder without permissions kept from being removed."""
    if isinstance(error, FileNotFoundError):
        return
    path = Path(name)
    for folder in (path.parent, path):
        if folder.is_dir() and not folder.is_symlink():
            folder.chmod(0o700)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, stop: Stop | None = None) -> Iterator[None]:
    """Hold the lock of a file while the block runs; wait for it as long as it takes.

    Whoever holds the lock may remove the file (`remove_lock`): who waited for it notices, and locks
    the file that is there then.

    Args:
        path: the lock file; made if it is not there.
        stop: ends the wait.

    Raises:
        Stopped, DeadlinePassed: while waiting.
        StorageError: the file cannot be made or locked.
    """
    stop = stop or Stop()
    while (handle := take_lock(path)) is None:
        stop.wait(LOCK_POLL_SECONDS)
        stop.check()
    try:
        yield
    finally:
        os.close(handle)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock of a file while the block runs, if nobody else holds it; never wait.

    Args:
        path: the lock file; made if it is not there.

    Yields:
        Whether the lock is held.

    Raises:
        StorageError: the file cannot be made or locked.
    """
    handle = take_lock(path)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            os.close(handle)


def take_lock(path: Path) -> int | None:
    """Take the lock of a file if nobody holds it; closing the handle lets go of it.

    Args:
        path: the lock file; made if it is not there.

    Returns:
        The handle that holds the lock; None if somebody else has it.

    Raises:
        StorageError: the file cannot be made or locked.
    """
    with storing("cannot open the lock", path):
        while True:
            handle = os.open(path, _LOCK_FILE | os.O_CREAT, 0o644)
            held = False
            try:
                free = try_lock(handle)
                # A lock on a file that was removed in between excludes nobody.
                held = free and leads_to(path, handle)
            finally:
                if not held:
                    os.close(handle)
            if held:
                return handle
            if not free:
                return None


def remove_lock(path: Path) -> None:
    """Remove a lock file whose lock is held here. Nobody else can have put another in its place.

    Raises:
        StorageError: it cannot be removed.
    """
    with storing("cannot remove the lock", path):
        path.unlink(missing_ok=True)


def remove_lock_if_free(path: Path) -> bool:
    """Remove a lock file unless somebody holds its lock.

    Returns:
        Whether it was removed.

    Raises:
        StorageError: it cannot be opened or removed.
    """
    with storing("cannot remove the lock", path):
        try:
            handle = os.open(path, _LOCK_FILE)
        except FileNotFoundError:
            return False
        try:
            if not try_lock(handle) or not leads_to(path, handle):
                return False
            path.unlink()
        finally:
            os.close(handle)
    return True


def leads_to(path: Path, handle: int) -> bool:
    """Whether a name still stands for the file that was opened."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(handle))
    except FileNotFoundError:
        return False


def try_lock(handle: int, *, shared: bool = False) -> bool:
    """Take the lock of an open file or folder if nobody holds it.

    Where the file system knows no locks the answer is yes: the work is done twice then, each time
    under a name of its own.

    Args:
        handle: of the file or folder.
        shared: whether others may hold it in the same way.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def locks_hold(folder: Path) -> bool:
    """Whether a lock on this folder keeps everybody else out.

    On network file systems it may not, or only those on the same machine. Then nobody can know
    whether the owner of a name is alive, and nothing of others may be removed.
    """
    # First by type: one machine cannot see that another is granted the same lock.
    if not locks_exclude(folder):
        return False
    try:
        handles = [os.open(folder, _READ_FOLDER) for _ in range(2)]
    except OSError:
        return False
    try:
        return try_lock(handles[0], shared=True) and not try_lock(handles[1])
    finally:
        for handle in handles:
            os.close(handle)


def locks_exclude(path: Path) -> bool:
    """Whether this file system is of a type on which a lock excludes all other processes."""
    if sys.platform != "linux":
        return False
    # Its first member is the type, as wide as a long; the rest is smaller than this.
    buffer = ctypes.create_string_buffer(1024)
    if _system().statfs(os.fsencode(path), buffer) != 0:
        return False
    kind = int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)
    return kind & 0xFFFFFFFF in _LOCAL


@contextmanager
def noting(problems: list[StorageError], what: str, path: Path) -> Iterator[None]:
    """Note an error of the file system in the block, so that the work can go on with the rest.

    Args:
        problems: where it is noted.
        what: what the block does, such as "cannot remove".
        path: the file or folder concerned.
    """
    try:
        with storing(what, path):
            yield
    except StorageError as error:
        problems.append(error)


def boot_id() -> str:
    """What is another one after each start of this machine; empty where nothing tells."""
    try:
        return Path(_BOOT_ID).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


@contextmanager
def private_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder (0700) under a random name that is removed at the end of the block.

    It is locked as long as the block runs, so `clean_private_folders` leaves it alone. What cannot
    be removed at the end stays for that function: by then the work of the block is done.

    Args:
        parent: where to make it.
        prefix: how its name begins.

    Raises:
        StorageError: it cannot be made.
    """
    with storing("cannot make a folder in", parent):
        path, handle = _new_locked_folder(parent, prefix)
    try:
        yield path
    finally:
        try:
            with contextlib.suppress(StorageError):
                remove_tree(path)
        finally:
            os.close(handle)


def _new_locked_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        path = parent / f"{prefix}.{secrets.token_hex(8)}"
        path.mkdir(mode=0o700)
        # A cleaner may take the folder for a dead one before it is locked; then make another.
        try:
            handle = os.open(path, _READ_FOLDER)
        except FileNotFoundError:
            continue
        with contextlib.suppress(FileNotFoundError):
            if try_lock(handle) and path.lstat().st_ino == os.fstat(handle).st_ino:
                os.fchmod(handle, 0o700)
                return path, handle
        os.close(handle)


def names_in(folder: Path) -> list[Path]:
    """What is in a folder, in the order of names; nothing if there is no such folder.

    Raises:
        StorageError: it cannot be read.
    """
    return [folder / name for name in listed(folder)]


def listed(folder: Path) -> list[str]:
    """The names in a folder, sorted; none if there is no such folder.

    Raises:
        StorageError: it cannot be read.
    """
    with storing("cannot read the folder", folder):
        try:
            return sorted(os.listdir(folder))  # noqa: PTH208 - a Path for each costs ten times that
        except (FileNotFoundError, NotADirectoryError):
            return []


def clean_private_folders(parent: Path, problems: list[StorageError] | None = None) -> list[str]:
    """Remove the private folders that processes left behind when they died.

    One that cannot be removed does not keep the others.

    Args:
        parent: the folder given to `private_folder`.
        problems: what cannot be removed is noted here; without it, the first such error is raised
            after everything else was removed.

    Returns:
        The names of what was removed.

    Raises:
        StorageError: the folder cannot be read, or one of them cannot be removed.
    """
    removed: list[str] = []
    failures: list[StorageError] = []
    paths = names_in(parent)
    if not paths or not locks_hold(parent):
        return removed
    for path in paths:
        try:
            handle = os.open(path, _READ_FOLDER)
        except OSError:  # gone meanwhile, or not a folder of ours
            continue
        try:
            with noting(failures, "cannot remove", path):
                if try_lock(handle):
                    remove_tree(path)
                    removed.append(path.name)
        finally:
            os.close(handle)
    if problems is not None:
        problems += failures
    elif failures:
        raise failures[0]
    return removed
