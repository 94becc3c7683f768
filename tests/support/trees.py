"""Comparing trees of files."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_SECOND = 10**9


def comparable(root: Path) -> Iterator[tuple[object, ...]]:
    """One tuple for each entry below a folder: name, type, and what makes two of them equal.

    Modes are compared as the engine keeps them: without set-id bits and write bits of others, and
    readable for everybody. Names of the same file (hard links) share the first name of it.
    """
    inodes: dict[int, str] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(root))
        first = inodes.setdefault(status.st_ino, name)
        seconds = status.st_mtime_ns // _SECOND
        if stat.S_ISLNK(status.st_mode):
            yield name, "link", str(path.readlink()), seconds
        elif stat.S_ISDIR(status.st_mode):
            yield name, "folder", seconds
        else:
            mode = stat.S_IMODE(status.st_mode) & 0o755 | 0o644
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            yield name, "file", content, mode, seconds, first


def difference(one: Path, other: Path) -> list[str]:
    """Names below two folders that stand for different things; empty if the trees are equal."""
    ours = {str(entry[0]): entry for entry in comparable(one)}
    theirs = {str(entry[0]): entry for entry in comparable(other)}
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )


def snapshot(root: Path) -> dict[str, tuple[object, ...]]:
    """A folder and everything below it, so that any change to them shows.

    Of each name: inode, mode, number of names, modification time, and content or link text.
    """
    found: dict[str, tuple[object, ...]] = {}
    for path in (root, *sorted(root.rglob("*"))):
        status = path.lstat()
        content: object = None
        if stat.S_ISLNK(status.st_mode):
            content = os.fsencode(path.readlink())
        elif stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        found[str(path.relative_to(root))] = (
            status.st_ino,
            status.st_mode,
            status.st_nlink,
            status.st_mtime_ns,
            content,
        )
    return found
