"""Comparing trees of files."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path


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
        if path.is_symlink():
            yield name, "link", str(path.readlink())
        elif path.is_dir():
            yield name, "folder", int(status.st_mtime)
        else:
            mode = stat.S_IMODE(status.st_mode) & 0o755 | 0o644
            yield name, "file", path.read_bytes(), mode, int(status.st_mtime), first


def difference(one: Path, other: Path) -> list[str]:
    """Names below two folders that stand for different things; empty if the trees are equal."""
    ours = {str(entry[0]): entry for entry in comparable(one)}
    theirs = {str(entry[0]): entry for entry in comparable(other)}
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )
