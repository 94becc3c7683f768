"""What a tree holds, written down outside of it, so that a change can be noticed."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from buttercup_dagster.sources.disk import write_atomically
from buttercup_dagster.sources.errors import StorageError, storing
from task_api.task import printable

NAMES_SHOWN: Final = 200
MOST_DIFFERENCES: Final = 100
_FORMAT: Final = 1

FILE: Final = "f"
DIRECTORY: Final = "d"
SYMLINK: Final = "l"


class Entry(NamedTuple):
    """One name of a tree.

    Attributes:
        type: "f" file, "d" directory, "l" symbolic link.
        size: bytes of a file, else 0.
        mtime: whole seconds; None where nobody set one.
        mode: permission bits; 0 for a link, which has none.
        link: text of a symbolic link, else empty.
        same_as: path of the file that this is a further name of, else empty.
    """

    type: str
    size: int = 0
    mtime: int | None = None
    mode: int = 0
    link: str = ""
    same_as: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a tree.

    Paths are relative to the tree, with '/'; bytes that are not UTF-8 are kept as surrogates,
    as `os.fsdecode` makes them.

    Attributes:
        entries: by path, in the order of the archive.
        dropped_links: paths of symbolic links that were left out because they lead out of the
            tree.
    """

    entries: Mapping[str, Entry]
    dropped_links: tuple[str, ...] = ()
    _counts: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def files(self) -> int:
        """Regular files, each counted once however many names it has."""
        return self._count(FILE) - self.hardlinks

    @property
    def directories(self) -> int:
        """Directories, the root of the tree not counted."""
        return self._count(DIRECTORY)

    @property
    def symlinks(self) -> int:
        """Symbolic links in the tree."""
        return self._count(SYMLINK)

    @property
    def hardlinks(self) -> int:
        """Further names of files."""
        return self._count("h")

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return self._count("bytes")

    @property
    def top_level(self) -> tuple[str, ...]:
        """Names directly below the root of the tree."""
        return tuple(path for path in self.entries if "/" not in path)

    def first_names(self, most: int = NAMES_SHOWN) -> tuple[str, ...]:
        """The first paths, escaped for showing."""
        shown: list[str] = []
        for path in self.entries:
            if len(shown) == most:
                break
            shown.append(printable(path, limit=300))
        return tuple(shown)

    def below(self, folder: str) -> Manifest:
        """The manifest of the same tree, seen from above the folder that it was moved into."""
        return Manifest(
            {
                f"{folder}/{path}": entry._replace(
                    same_as=f"{folder}/{entry.same_as}" if entry.same_as else ""
                )
                for path, entry in self.entries.items()
            },
            tuple(f"{folder}/{path}" for path in self.dropped_links),
        )

    @classmethod
    def joined(cls, manifests: Iterable[Manifest]) -> Manifest:
        """One manifest of trees that lie in one folder."""
        entries: dict[str, Entry] = {}
        dropped: list[str] = []
        for manifest in manifests:
            entries.update(manifest.entries)
            dropped += manifest.dropped_links
        return cls(entries, tuple(dropped))

    def save(self, path: Path) -> None:
        """Write the manifest as compact JSON, whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        content = {
            "format": _FORMAT,
            "entries": {path: list(entry) for path, entry in self.entries.items()},
            "dropped_links": list(self.dropped_links),
        }
        write_atomically(path, json.dumps(content, separators=(",", ":")).encode("ascii"))

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it cannot be read or is damaged.
        """
        try:
            with path.open("rb") as file:
                content = json.load(file)
            if content["format"] != _FORMAT:
                raise ValueError  # noqa: TRY301
            entries = {name: Entry(*values) for name, values in content["entries"].items()}
            return cls(entries, tuple(content["dropped_links"]))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(
                f"the manifest {printable(str(path), limit=300)} cannot be read: {error.strerror}"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise StorageError(
                f"the manifest {printable(str(path), limit=300)} is damaged; prepare the task again"
            ) from None

    def differences(self, tree: Path) -> list[str]:
        """Where a tree on disk differs from this manifest.

        Names, types, modes, sizes, link texts and which names are one file are compared, and the
        mtimes of files. The mtime of a directory is not: a reader that makes and removes a
        scratch file changes it and leaves the tree as it was.

        Args:
            tree: the root of the tree.

        Returns:
            One line for each difference, at most 100; empty if there is none.

        Raises:
            StorageError: the tree cannot be read.
        """
        found: list[str] = []
        present = 0
        inodes: dict[str, int] = {}
        with storing("cannot read the tree", tree):
            for path, status, link in _walk(tree):
                expected = self.entries.get(path)
                if expected is None:
                    found.append(f"{_shown(path)}: is not in the manifest")
                else:
                    present += 1
                    inodes[path] = status.st_ino
                    found += (f"{_shown(path)}: {t}" for t in _compare(expected, status, link))
                if len(found) >= MOST_DIFFERENCES:
                    return found[:MOST_DIFFERENCES]
        for path, expected in self.entries.items():
            if path not in inodes:
                if present < len(self.entries):
                    found.append(f"{_shown(path)}: is missing")
            elif expected.same_as and inodes[path] != inodes.get(expected.same_as):
                found.append(f"{_shown(path)}: is no longer the same file as its other name")
            if len(found) >= MOST_DIFFERENCES:
                break
        return found

    def _count(self, what: str) -> int:
        if not self._counts:
            counts = dict.fromkeys((FILE, DIRECTORY, SYMLINK, "h", "bytes"), 0)
            for entry in self.entries.values():
                counts[entry.type] += 1
                if entry.same_as:
                    counts["h"] += 1
                else:
                    counts["bytes"] += entry.size
            self._counts.update(counts)
        return self._counts[what]


def _shown(path: str) -> str:
    return printable(path, limit=300)


def _walk(tree: Path) -> Iterable[tuple[str, os.stat_result, str]]:
    """Path, status and link text of every name below a folder; no link is followed."""
    # Through handles: a path as deep as archives may have is longer than the system accepts.
    for folder, directories, files, handle in os.fwalk(tree, onerror=_raise):
        prefix = os.path.relpath(folder, tree) + "/"
        prefix = "" if prefix == "./" else prefix
        for name in sorted(directories + files):
            status = os.stat(name, dir_fd=handle, follow_symlinks=False)
            is_link = stat.S_ISLNK(status.st_mode)
            yield prefix + name, status, os.readlink(name, dir_fd=handle) if is_link else ""


def _raise(error: OSError) -> None:
    raise error


def _compare(expected: Entry, status: os.stat_result, link: str) -> Iterable[str]:
    mode = status.st_mode
    kind = FILE if stat.S_ISREG(mode) else DIRECTORY if stat.S_ISDIR(mode) else SYMLINK
    if kind != expected.type or (kind == SYMLINK and not stat.S_ISLNK(mode)):
        yield "is of another type"
        return
    if kind == SYMLINK:
        if link != expected.link:
            yield "leads elsewhere"
        return
    if stat.S_IMODE(mode) != expected.mode:
        yield f"has mode {stat.S_IMODE(mode):04o} instead of {expected.mode:04o}"
    if kind == FILE:
        if status.st_size != expected.size:
            yield f"has {status.st_size} bytes instead of {expected.size}"
        if expected.mtime is not None and status.st_mtime_ns // 10**9 != expected.mtime:
            yield "has another modification time"
