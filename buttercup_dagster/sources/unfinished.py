"""Unfinished downloads that a later call goes on with, and the folder that holds them.

    <digest>.<random>.part    the bytes so far; locked (flock) by the process that writes it
    <digest>.<random>.json    where they come from (`origin.Origin`)

The kernel drops a lock when its process ends, however it ends. So a part whose lock can be taken
has no writer, and whoever takes the lock may go on with it. Each writer gives its part a name of
its own, so two of them never write one file, even where locks do not work.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from buttercup_dagster.sources.disk import locks_exclude, noting, try_lock
from buttercup_dagster.sources.errors import StorageError, storing
from buttercup_dagster.sources.part import Part

DAY_SECONDS: Final = 86_400

_ADOPTING: Final = "cannot go on with a download in"
_PART: Final = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.part\Z")
_SIDECAR: Final = re.compile(r"[0-9a-f]{64}\.[0-9a-f]{16}\.json\Z")
_OPEN: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def resumable_part(folder: Path, digest: str, reserve_bytes: int) -> Iterator[Part]:
    """A part of the archive with this digest: the largest that nobody writes, else a new one.

    Other parts of the digest that nobody writes are removed. At the end of the block the part
    stays for a later call, unless `commit` was called, it is empty, the disk is at fault, or
    locks cannot be trusted here.

    Args:
        folder: where such parts are kept; it must exist.
        digest: 64 lower-case hex digits.
        reserve_bytes: free space to leave on the disk.

    Raises:
        StorageError: it cannot be made or taken over.
    """
    with storing(_ADOPTING, folder):
        trusted = locks_exclude(folder)
        handle, path = (_adopt(folder, digest) if trusted else None) or _create(folder, digest)
    part = Part(handle, path, reserve_bytes, path.with_suffix(".json"))
    try:
        yield part
    except BaseException as error:
        if not (trusted and part.size) or isinstance(error, StorageError):
            part.discard()
        raise
    finally:
        os.close(handle)


def clean_parts(
    folder: Path,
    older_than_seconds: float = DAY_SECONDS,
    problems: list[StorageError] | None = None,
) -> list[str]:
    """Remove parts that nobody writes and nobody came back for.

    Args:
        folder: where they are kept; nothing happens if it is not there.
        older_than_seconds: how long ago the last byte was written, at least.
        problems: what cannot be removed is noted here; without it, the first such error is raised
            after everything else was removed.

    Returns:
        The names of what was removed, sorted.

    Raises:
        StorageError: the folder cannot be read, or a part cannot be removed.
    """
    failures: list[StorageError] = []
    before = time.time() - older_than_seconds
    removed: list[str] = []
    with storing("cannot clean the folder", folder):
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    for name in filter(_PART.match, names):
        handle = _take(folder / name, os.O_RDONLY)
        if handle is None:
            continue
        try:
            with noting(failures, "cannot remove", folder / name):
                if os.fstat(handle).st_mtime < before:
                    (folder / name).unlink()
                    removed.append(name)
        finally:
            os.close(handle)
    for name in filter(_SIDECAR.match, names):
        path = folder / name
        with noting(failures, "cannot remove", path), contextlib.suppress(FileNotFoundError):
            if not path.with_suffix(".part").exists() and path.lstat().st_mtime < before:
                path.unlink()
                removed.append(name)
    if problems is not None:
        problems += failures
    elif failures:
        raise failures[0]
    return sorted(removed)


def _adopt(folder: Path, digest: str) -> tuple[int, Path] | None:
    """The largest part without a writer, locked and under a new name; the others are removed."""
    with contextlib.ExitStack() as stack:
        found: list[tuple[int, Path, int]] = []
        for path in sorted(folder.glob(f"{digest}.*.part")):
            handle = _take(path, os.O_RDWR) if _PART.match(path.name) else None
            if handle is not None:
                stack.callback(os.close, handle)
                found.append((os.fstat(handle).st_size, path, handle))
        if not found:
            return None
        found.sort()
        _, old, handle = found.pop()
        for _, path, _ in found:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink()
        new = _new_path(folder, digest)
        old.rename(new)
        with contextlib.suppress(FileNotFoundError):
            old.with_suffix(".json").rename(new.with_suffix(".json"))
        kept = os.dup(handle)  # the lock belongs to both
    return kept, new


def _create(folder: Path, digest: str) -> tuple[int, Path]:
    while True:
        path = _new_path(folder, digest)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN
        handle = os.open(path, flags, 0o600)
        try:
            if try_lock(handle) and _is_still(path, handle):
                return handle, path
        except OSError:
            # No locks here: then nobody can take the part for one without a writer either.
            return handle, path
        # Another call, or a cleaner, was faster than the lock and has it now.
        os.close(handle)


def _take(path: Path, access: int) -> int | None:
    """Open and lock a part of ours; None if it is gone, somebody else's or being written."""
    try:
        handle = os.open(path, access | _OPEN)
    except OSError:
        return None
    try:
        status = os.fstat(handle)
        ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if ours and try_lock(handle) and _is_still(path, handle):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def _is_still(path: Path, handle: int) -> bool:
    """Whether the name, and no other, still leads to the open file."""
    try:
        named, opened = path.lstat(), os.fstat(handle)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, opened) and opened.st_nlink == 1


def _new_path(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.{secrets.token_hex(8)}.part"
