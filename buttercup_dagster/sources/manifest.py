"""What a tree holds, written down outside of it, so that a change can be noticed.

A manifest is kept as text, in memory as on disk: one row for each name, of tab-separated fields.
A tree of a hundred thousand files is then some megabytes and costs no parsing where only its
totals matter. No name holds a control character, so none needs to be escaped.

Rows, whose first field says what they are:

    f mode size mtime path              a file
    d mode "" "" path                   a directory, before everything that lies in it
    t "" "" mtime path                  the time of a directory
    h mode size mtime path other        a further name of the file `other`, after all files
    l "" "" mtime path text             a symbolic link, after all of these
    x "" "" "" path text                a symbolic link that was left out: it leads out of the tree

Modes are octal, sizes bytes, times whole seconds; an empty time was set by nobody.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple, Self

from buttercup_dagster.sources.disk import write_atomically
from buttercup_dagster.sources.errors import StorageError, storing
from task_api.task import printable

NAMES_SHOWN: Final = 200
MOST_DIFFERENCES: Final = 100
_FORMAT: Final = 2
_MOST_HEADER_BYTES: Final = 1024 * 1024

FILE: Final = "f"
DIRECTORY: Final = "d"
SYMLINK: Final = "l"

_Pattern = re.Pattern[bytes]
_Content = bytes

_TOP_LEVEL: Final = re.compile(rb"^[fdhl](?:\t[^\t\n]*){3}\t([^/\t\n]+)(?=[\t\n])", re.MULTILINE)
_PATHS: Final = re.compile(rb"^[fdhl](?:\t[^\t\n]*){3}\t([^\t\n]+)", re.MULTILINE)
_LEFT_OUT: Final = re.compile(rb"^x(?:\t[^\t\n]*){3}\t([^\t\n]+)", re.MULTILINE)


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
class Totals:
    """How much a tree holds.

    Attributes:
        files: regular files, each counted once however many names it has.
        directories: the root of the tree not counted.
        symlinks: symbolic links in the tree.
        hardlinks: further names of files.
        bytes: of all files together.
        dropped: symbolic links that were left out, since they lead out of the tree.
    """

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    hardlinks: int = 0
    bytes: int = 0
    dropped: int = 0

    def __add__(self, other: Totals) -> Totals:
        """Both together."""
        return Totals(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))


def _values(totals: Totals) -> tuple[int, ...]:
    return tuple(asdict(totals).values())


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one tree.

    Attributes:
        folder: where its paths begin, relative to the root that the manifest describes; empty for
            that root itself.
        rows: as described above, each ended by a newline.
    """

    folder: str
    rows: bytes


@dataclass(frozen=True)
class Manifest:
    """The content of a tree.

    Paths are relative to the tree, with '/'; bytes that are not UTF-8 are kept as surrogates,
    as `os.fsdecode` makes them.

    Attributes:
        sections: its rows.
        totals: what they add up to.
    """

    sections: tuple[Section, ...]
    totals: Totals = field(default_factory=Totals)

    @classmethod
    def of(cls, entries: Mapping[str, Entry]) -> Self:
        """The manifest of these entries: parents before what lies in them, links last."""
        rows: list[str] = []
        times: list[str] = []
        files = directories = symlinks = hardlinks = size = 0
        for path, entry in entries.items():
            mtime = "" if entry.mtime is None else str(entry.mtime)
            if entry.type == DIRECTORY:
                directories += 1
                rows.append(f"d\t{entry.mode:o}\t\t\t{path}\n")
                if mtime:
                    times.append(f"t\t\t\t{mtime}\t{path}\n")
            elif entry.type == SYMLINK:
                symlinks += 1
                rows.append(f"l\t\t\t{mtime}\t{path}\t{entry.link}\n")
            elif entry.same_as:
                hardlinks += 1
                facts = f"{entry.mode:o}\t{entry.size}\t{mtime}"
                rows.append(f"h\t{facts}\t{path}\t{entry.same_as}\n")
            else:
                files += 1
                size += entry.size
                rows.append(f"f\t{entry.mode:o}\t{entry.size}\t{mtime}\t{path}\n")
        section = Section("", os.fsencode("".join(times + rows)))
        return cls((section,), Totals(files, directories, symlinks, hardlinks, size))

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Every name by its path; directories come before what lies in them, links last."""
        found: dict[str, Entry] = {}
        times: dict[str, int | None] = {}
        for section in self.sections:
            prefix = f"{section.folder}/" if section.folder else ""
            for line in section.rows.splitlines():
                kind, mode, size, time, name, *other = os.fsdecode(line).split("\t")
                path = prefix + name
                mtime = int(time) if time else None
                if kind == "t":
                    times[path] = mtime
                elif kind == "h":
                    same_as = prefix + other[0]
                    found[path] = Entry(FILE, int(size), mtime, int(mode, 8), same_as=same_as)
                elif kind == SYMLINK:
                    found[path] = Entry(SYMLINK, mtime=mtime, link=other[0])
                elif kind != "x":
                    found[path] = Entry(kind, int(size or 0), mtime, int(mode, 8))
        for path, mtime in times.items():
            found[path] = found[path]._replace(mtime=mtime)
        return found

    @property
    def dropped_links(self) -> tuple[str, ...]:
        """Paths of symbolic links that were left out because they lead out of the tree."""
        return tuple(self._found(_LEFT_OUT)) if self.totals.dropped else ()

    @property
    def files(self) -> int:
        """Regular files, each counted once however many names it has."""
        return self.totals.files

    @property
    def directories(self) -> int:
        """Directories, the root of the tree not counted."""
        return self.totals.directories

    @property
    def symlinks(self) -> int:
        """Symbolic links in the tree."""
        return self.totals.symlinks

    @property
    def hardlinks(self) -> int:
        """Further names of files."""
        return self.totals.hardlinks

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return self.totals.bytes

    @property
    def top_level(self) -> tuple[str, ...]:
        """Names directly below the root of the tree."""
        tops: dict[str, None] = {}
        for section in self.sections:
            if section.folder:
                tops[section.folder.partition("/")[0]] = None
            else:
                found = _TOP_LEVEL.findall(section.rows)
                tops.update(dict.fromkeys(map(os.fsdecode, found)))
        return tuple(tops)

    def has_directory(self, path: str) -> bool:
        """Whether a directory of this path is in the tree."""
        for section in self.sections:
            inside = path
            if section.folder:
                if not path.startswith(f"{section.folder}/"):
                    continue
                inside = path.removeprefix(f"{section.folder}/")
            row = re.compile(
                rb"^d(?:\t[^\t\n]*){3}\t%b\n" % re.escape(os.fsencode(inside)), re.MULTILINE
            )
            if row.search(section.rows):
                return True
        return False

    def first_names(self, most: int = NAMES_SHOWN) -> tuple[str, ...]:
        """The first paths, escaped for showing."""
        shown: list[str] = []
        for path in self._found(_PATHS):
            if len(shown) == most:
                break
            shown.append(printable(path, limit=300))
        return tuple(shown)

    def colliding_names(self) -> list[list[str]]:
        """Groups of paths that a file system would take for one that ignores case and Unicode form.

        Such a tree is whole here, and cannot be copied to such a file system.
        """
        groups: dict[str, list[str]] = {}
        for path in self._found(_PATHS):
            folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
            groups.setdefault(folded, []).append(path)
        return [group for group in groups.values() if len(group) > 1]

    def below(self, folder: str) -> Manifest:
        """The manifest of the same tree, seen from above the folder that it was moved into."""
        return Manifest(
            tuple(
                Section(f"{folder}/{one.folder}" if one.folder else folder, one.rows)
                for one in self.sections
            ),
            self.totals,
        )

    @classmethod
    def joined(cls, manifests: Iterable[Manifest]) -> Manifest:
        """One manifest of trees that lie in one folder."""
        sections: list[Section] = []
        totals = Totals()
        for manifest in manifests:
            sections += manifest.sections
            totals += manifest.totals
        return cls(tuple(sections), totals)

    def save(self, path: Path, *, durable: bool = True) -> str:
        """Write the manifest, whole or not at all: a line of JSON, then the rows.

        Args:
            path: of the file.
            durable: see `write_atomically`; what a power cut left of it is taken for no manifest.

        Returns:
            The SHA-256 of the file.

        Raises:
            StorageError: it cannot be written.
        """
        body = b"".join(section.rows for section in self.sections)
        header = {
            "format": _FORMAT,
            "sections": [[section.folder, len(section.rows)] for section in self.sections],
            "totals": asdict(self.totals),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        line = json.dumps(header, separators=(",", ":")).encode("ascii")
        content = line + b"\n" + body
        write_atomically(path, content, durable=durable)
        return hashlib.sha256(content).hexdigest()

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it cannot be read or is damaged.
        """
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(
                f"the manifest {printable(str(path), limit=300)} cannot be read: {error.strerror}"
            ) from error
        found = cls.parsed(content)
        if found is None:
            raise StorageError(
                f"the manifest {printable(str(path), limit=300)} is damaged; prepare the task again"
            )
        return found

    @classmethod
    def parsed(cls, content: _Content, *, hashed: bool = False) -> Manifest | None:
        """The manifest in what `save` wrote, or None if it is damaged.

        Args:
            content: of the file.
            hashed: whether the caller has compared all of it with a digest of its own; then the
                digest in it is not computed once more.
        """
        line, _, body = content.partition(b"\n")
        try:
            if len(line) > _MOST_HEADER_BYTES:
                return None
            header = json.loads(line)
            if header["format"] != _FORMAT:
                return None
            if not hashed and header["sha256"] != hashlib.sha256(body).hexdigest():
                return None
            sections: list[Section] = []
            at = 0
            for folder, size in header["sections"]:
                sections.append(Section(folder, body[at : at + size]))
                at += size
            if at != len(body):
                return None
            return cls(tuple(sections), Totals(**header["totals"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

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

    def _found(self, pattern: _Pattern) -> Iterator[str]:
        """The paths of the rows that a pattern finds."""
        for section in self.sections:
            prefix = f"{section.folder}/" if section.folder else ""
            for found in pattern.finditer(section.rows):
                yield prefix + os.fsdecode(found[1])


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
