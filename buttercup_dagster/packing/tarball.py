"""Writing a source archive: one gzipped tar with one top-level folder, the same bytes every time.

Nothing of the machine or the moment gets in: no owners, no times, two modes for files, one order.
So an archive depends on the packed content alone (and on the zlib that compresses it), and the
same content from a folder and from a git commit makes the same archive.

The format is GNU tar's: it keeps names as bytes, without a guess at their encoding.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.sources.unpacking.picture import (
    MOST_COMPONENT_BYTES,
    MOST_PATH_BYTES,
    clean_name,
)
from buttercup_dagster.sources.unpacking.refusal import Refusal
from buttercup_dagster.sources.unpacking.tar import BLOCK, DIRECTORY, FILE, SYMLINK
from task_api.task import printable

OMITTED_NAMES: Final = frozenset({b".git", b".aixcc"})
"""Never packed, at any depth, whatever they are: a work tree's `.git` may be a file."""

DEFAULT_MTIME: Final = 946_684_800
"""2000-01-01 00:00:00 UTC, the time of every entry. GNU tar warns about 0 as implausibly old."""

LATEST_MTIME: Final = 0o777_7777_7777
"""Whole seconds; the latest time that the octal field of a header holds, in the year 2242."""

FOLDER_MODE: Final = 0o755
EXECUTABLE_MODE: Final = 0o755
FILE_MODE: Final = 0o644

# Measured on sources: 6 % larger than level 6 and more than twice as fast.
_LEVEL: Final = 4
_GZIP_WINDOW: Final = 31
_RECORD: Final = tarfile.RECORDSIZE
_SECONDS: Final = re.compile(r"[0-9]{1,11}\Z", re.ASCII)
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
_LONGEST_TOP: Final = b"t" * MOST_COMPONENT_BYTES


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Something that was not packed.

    Attributes:
        name: path below the packed folder, escaped for showing.
        reason: why, such as "a socket".
    """

    name: str
    reason: str

    def __str__(self) -> str:
        """`name (reason)`."""
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Entry:
    """One name to be packed.

    Attributes:
        name: raw path below the top-level folder, without a trailing slash.
        kind: file, directory or symbolic link.
        size: bytes of a file, else 0.
        executable: whether a file can be executed by its owner.
        target: raw text of a symbolic link, else empty.
        blocks: content of a file, `size` bytes in all; read, if at all, before the next entry
            is asked for.
    """

    name: bytes
    kind: str
    size: int = 0
    executable: bool = False
    target: bytes = b""
    blocks: Iterable[bytes] = ()


class Content(Protocol):
    """Where the entries of an archive come from."""

    @property
    def left_out(self) -> Sequence[LeftOut]:
        """What `entries` has found and left out so far."""

    def entries(self) -> Generator[Entry, None, None]:
        """The entries below the top-level folder, sorted by `order`: folders before their content.

        Raises:
            PackingError: something cannot be read.
        """


@dataclass(frozen=True, slots=True)
class Tarball:
    """A written archive.

    Attributes:
        path: where it is.
        sha256: its digest, 64 lower-case hex digits.
        bytes: its size.
        files: regular files in it.
        left_out: what was found and not packed.
    """

    path: Path
    sha256: str
    bytes: int
    files: int
    left_out: tuple[LeftOut, ...]


class MemoryContent:
    """Files that are in memory.

    Args:
        files: content by name, no name with a slash in it.
    """

    left_out: Sequence[LeftOut] = ()

    def __init__(self, files: Mapping[bytes, bytes]) -> None:
        self._files = files

    def entries(self) -> Generator[Entry, None, None]:
        """The files, sorted by name."""
        for name, data in sorted(self._files.items()):
            yield Entry(name, FILE, len(data), blocks=(data,))


def order(name: bytes, kind: str) -> bytes:
    """What entries are sorted by: the name as it stands in the archive.

    The slash behind a folder makes this the order in which git lists files, too.
    """
    return name + b"/" if kind is DIRECTORY else name


def shown(name: bytes) -> str:
    """A raw path, escaped for a message."""
    return printable(name.decode("utf-8", "surrogateescape"), limit=200)


def unfit_name(name: bytes) -> str | None:
    """Why no task may hold this path, or None: whoever unpacks the task would refuse all of it.

    Args:
        name: raw path below the top-level folder. Whether it fits does not depend on the name
            of that folder: the longest one is assumed.
    """
    path = _LONGEST_TOP + b"/" + name
    try:
        clean = clean_name(path, Refusal)
    except Refusal as error:
        return str(error)
    return None if clean == path else "the name has an empty or '.' component"


def unfit_target(target: bytes) -> str | None:
    """Why no task may hold a symbolic link with this text, or None."""
    if not target:
        return "the link leads to an empty name"
    if len(target) > MOST_PATH_BYTES or _CONTROL.search(target):
        return "the text of the link is too long or holds control characters"
    return None


def entry_mtime(environment: Mapping[str, str] = os.environ) -> int:
    """The time of every entry, UNIX seconds.

    Args:
        environment: its SOURCE_DATE_EPOCH counts if it is a whole number from 1 to
            `LATEST_MTIME`; `DEFAULT_MTIME` otherwise.
    """
    text = environment.get("SOURCE_DATE_EPOCH", "")
    if _SECONDS.match(text) and 1 <= int(text) <= LATEST_MTIME:
        return int(text)
    return DEFAULT_MTIME


def write_tarball(
    content: Content,
    top: str,
    archive: Path,
    *,
    on_progress: Callable[[int], None] | None = None,
) -> Tarball:
    """Write a gzipped tar with everything below one top-level folder.

    Args:
        content: what to pack.
        top: name of the top-level folder; one component.
        archive: the file to write, readable by its owner only; one that is there is replaced,
            once the new one is complete.
        on_progress: called now and then with the bytes of content packed so far.

    Raises:
        PackingError: something cannot be read, or the archive cannot be written.
        ValueError: `top` is no plain name.

    After an error nothing new is left.
    """
    folder = os.fsencode(top)
    if folder in {b"", b".", b".."} or b"/" in folder or b"\0" in folder:
        raise ValueError(f"{top!r} is not the name of a folder")
    part = archive.with_name(f".{secrets.token_hex(8)}.packing")
    try:
        with _new_file(part) as file:
            sink = _Sink(file, archive)
            files = _write_entries(sink, content, folder, on_progress)
            sink.finish()
        with _writing(archive):
            part.replace(archive)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    return Tarball(archive, sink.digest.hexdigest(), sink.written, files, tuple(content.left_out))


def _write_entries(
    sink: _Sink, content: Content, top: bytes, on_progress: Callable[[int], None] | None
) -> int:
    mtime = entry_mtime()
    files = packed = 0
    before = b""
    sink.write(_header(top, Entry(b"", DIRECTORY), mtime))
    with contextlib.closing(content.entries()) as entries:
        for entry in entries:
            place = order(entry.name, entry.kind)
            if place <= before:
                raise ValueError(f"{shown(entry.name)!r} comes twice or out of order")
            before = place
            sink.write(_header(top + b"/" + entry.name, entry, mtime))
            if entry.kind is not FILE:
                continue
            files += 1
            left = entry.size
            for block in entry.blocks:
                left -= len(block)
                sink.write(block)
                packed += len(block)
                if on_progress is not None:
                    on_progress(packed)
            if left:
                raise ValueError(f"{shown(entry.name)!r} is not as long as announced")
            sink.write(bytes(-entry.size % BLOCK))
    return files


def _header(name: bytes, entry: Entry, mtime: int) -> bytes:
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.mtime = mtime
    if entry.kind is DIRECTORY:
        info.type, info.mode = tarfile.DIRTYPE, FOLDER_MODE
    elif entry.kind is SYMLINK:
        info.type, info.mode = tarfile.SYMTYPE, 0o777
        info.linkname = entry.target.decode("utf-8", "surrogateescape")
    else:
        info.size = entry.size
        info.mode = EXECUTABLE_MODE if entry.executable else FILE_MODE
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


class _Sink:
    """The archive as it is written: compressed, hashed and counted on the way."""

    def __init__(self, file: BinaryIO, archive: Path) -> None:
        self.digest = hashlib.sha256()
        self.written = 0
        self._file = file
        self._archive = archive
        # The header that zlib writes has no name and no time.
        self._compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        self._taken = 0

    def write(self, data: bytes) -> None:
        self._taken += len(data)
        self._put(self._compressor.compress(data))

    def finish(self) -> None:
        """Write the end marker, filled up to a whole record as tar does."""
        self.write(bytes(2 * BLOCK))
        self.write(bytes(-self._taken % _RECORD))
        self._put(self._compressor.flush())
        with _writing(self._archive):
            self._file.flush()

    def _put(self, data: bytes) -> None:
        if data:
            self.digest.update(data)
            self.written += len(data)
            with _writing(self._archive):
                self._file.write(data)


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    with _writing(path):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        yield file


@contextlib.contextmanager
def _writing(archive: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PackingError(
            f"cannot write an archive into {archive.parent}: {error.strerror}; choose another "
            "folder for it, or make that one writable and make room in it"
        ) from error
