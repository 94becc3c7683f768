"""Unpacking an archive into a new folder, so that nothing in it can reach outside.

Everything is made below one handle of a private folder in which, until all files are written,
there is no link: so no name can lead out, whatever the archive says. What a name may be is judged
in memory before anything is made for it (`picture.py`); links come last, symbolic ones that would
lead out are left out and listed. The folder gets its final name once the archive has been read to
its very end and found whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

from buttercup_dagster.sources.disk import remove_tree
from buttercup_dagster.sources.errors import LayoutError, storage_error, storing
from buttercup_dagster.sources.gunzip import unpacked_blocks
from buttercup_dagster.sources.manifest import (
    DIRECTORY,
    FILE,
    SYMLINK,
    Entry,
    Manifest,
    Section,
    Totals,
)
from buttercup_dagster.sources.options import GIBIBYTE, MEBIBYTE
from buttercup_dagster.sources.picture import Picture, Refusal, clean_name
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.tar import ArchiveError, BlockStream, Kind, Member, TarReader

__all__ = ["ArchiveError", "Limits", "Manifest", "unpack"]

FOLDER_MODE: Final = 0o755
# Contract: readers may run as another user, so every file is readable, and writable by its owner.
ADDED_FILE_MODE: Final = 0o644
KEPT_FILE_MODE: Final = 0o755
ALWAYS_KEPT_MTIME: Final = 2**31 - 1
"""Some file systems cannot keep a later one (seconds), and put in the latest that they can."""

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME_ERRORS: Final = frozenset({errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG})


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may hold.

    Attributes:
        total_bytes: unpacked, never more than this.
        ratio: unpacked, at most so many times the archive's own size …
        ratio_floor_bytes: … but this much is always allowed.
        file_bytes: of one file.
        entries: files, directories and links together.
        name_bytes: of all names and link texts together, which are kept in memory.
    """

    total_bytes: int = 64 * GIBIBYTE
    ratio: int = 200
    ratio_floor_bytes: int = GIBIBYTE
    file_bytes: int = 16 * GIBIBYTE
    entries: int = 2_000_000
    name_bytes: int = 256 * MEBIBYTE

    def most_bytes(self, archive_bytes: int) -> int:
        """How much an archive of this size may hold unpacked, in bytes."""
        return min(self.total_bytes, max(self.ratio_floor_bytes, self.ratio * archive_bytes))


DEFAULT_LIMITS: Final = Limits()


def unpack(
    archive: Path,
    destination: Path,
    limits: Limits = DEFAULT_LIMITS,
    *,
    stop: Stop | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Unpack a gzipped (or plain) tar archive into a new folder.

    Folders get mode 0755; files keep the archive's mode without set-id bits and write bits for
    others, and can be read by all and written by their owner. Owners and extended attributes are
    not kept. Modification times are kept in whole seconds.

    Args:
        archive: the file to unpack.
        destination: the folder to make; its parent must exist, itself must not.
        limits: how much it may hold.
        stop: ends the unpacking.
        on_progress: called now and then with the bytes unpacked so far, in this thread.

    Returns:
        What the tree holds.

    Raises:
        ArchiveError: the archive is refused.
        LayoutError: the destination exists.
        NoSpace, StorageError: the disk is full or fails.
        Stopped, DeadlinePassed: by `stop`.
        FileNotFoundError: there is no such archive.

    After an error neither the destination nor anything else made here is left.
    """
    stop = stop or Stop()
    with _opened(archive) as file:
        if os.path.lexists(destination):
            raise LayoutError(f"{destination} exists already; unpack into a new folder")
        staging = destination.with_name(f".{secrets.token_hex(8)}.unpacking")
        with storing("cannot make a folder in", destination.parent):
            staging.mkdir(mode=0o700)
        try:
            handle = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                most = limits.most_bytes(os.fstat(file.fileno()).st_size)
                blocks = unpacked_blocks(file, most_bytes=most, stop=stop)
                stream = BlockStream(blocks)
                work = _Unpacking(
                    TarReader(stream),
                    stream,
                    handle,
                    limits=limits,
                    stop=stop,
                    on_progress=on_progress,
                )
                manifest = work.run()
                os.fchmod(handle, FOLDER_MODE)
            finally:
                os.close(handle)
            with storing("cannot name the folder", destination):
                staging.rename(destination)
        except BaseException:
            remove_tree(staging)
            raise
    return manifest


def _opened(archive: Path) -> FileIO:
    try:
        return archive.open("rb", buffering=0)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(error, f"cannot read {archive}") from error


class _Unpacking:
    """One archive on its way into one folder."""

    def __init__(
        self,
        reader: TarReader,
        stream: BlockStream,
        root: int,
        *,
        limits: Limits,
        stop: Stop,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self._reader = reader
        self._stream = stream
        self._root = root
        self._limits = limits
        self._stop = stop
        self._on_progress = on_progress
        self._told = 0
        self._name_bytes = 0
        self._picture = Picture()
        self._entries: dict[bytes, Entry] = {}
        self._symlinks: list[tuple[bytes, Member]] = []
        self._hardlinks: list[tuple[bytes, Member]] = []
        self._dropped: list[bytes] = []

    def run(self) -> Manifest:
        for member in self._reader.members():
            self._add(member)
        # Only now is the archive known to be whole and every name in it known.
        targets = [self._judge_hardlink(path, member) for path, member in self._hardlinks]
        kept = [entry for entry in self._symlinks if self._judge_symlink(*entry)]
        for (path, member), target in zip(self._hardlinks, targets, strict=True):
            self._make_hardlink(path, member, target)
        for path, member in kept:
            self._make_symlink(path, member)
        self._finish_folders()
        held = Manifest.of({os.fsdecode(path): entry for path, entry in self._entries.items()})
        rows = b"".join(b"x\t\t\t\t%b\t\n" % path for path in self._dropped)
        left_out = Manifest((Section("", rows),), Totals(dropped=len(self._dropped)))
        return Manifest.joined([held, left_out])

    def _add(self, member: Member) -> None:
        self._stop.check()
        refuse = self._reader.error
        path = clean_name(member.name, refuse)
        if not path and member.kind is not Kind.DIRECTORY:
            raise refuse("empty_name", "only a directory can be the root of the archive")
        if member.kind in {Kind.SYMLINK, Kind.HARDLINK}:
            self._check_link_form(member, refuse)
        if member.size > self._limits.file_bytes:
            raise refuse(
                "file_too_large",
                f"the file has {member.size} bytes; {self._limits.file_bytes} are allowed",
            )
        folders = self._picture.add(path, member, refuse)
        if len(self._picture) > self._limits.entries:
            raise refuse(
                "too_many_entries", f"the archive has more than {self._limits.entries} entries"
            )
        self._name_bytes += len(path) + len(member.link or b"") + sum(map(len, folders))
        if self._name_bytes > self._limits.name_bytes:
            raise refuse(
                "names_too_long",
                f"the names and links of the archive have more than {self._limits.name_bytes} "
                "bytes together",
            )
        for folder in folders:
            self._make_folder(folder, refuse)
        if member.kind is Kind.DIRECTORY:
            if path:
                self._entries[path] = Entry(DIRECTORY, mtime=member.mtime, mode=FOLDER_MODE)
        elif member.kind is Kind.FILE:
            self._make_file(path, member, refuse)
        elif member.kind is Kind.SYMLINK:
            self._symlinks.append((path, member))
        else:
            self._hardlinks.append((path, member))

    def _check_link_form(self, member: Member, refuse: Refusal) -> None:
        if member.name.endswith(b"/"):
            raise refuse("bad_name", "the name of a link ends in a slash")
        if not member.link:
            raise refuse("empty_link", "the link leads to an empty name")
        if len(member.link) > 4095 or any(byte < 0x20 or byte == 0x7F for byte in member.link):
            raise refuse("bad_link", "the text of the link is too long or holds control characters")

    def _make_folder(self, path: bytes, refuse: Refusal) -> None:
        try:
            os.mkdir(path, 0o700, dir_fd=self._root)
        except OSError as error:
            raise _creation_error(error, refuse) from error
        self._entries[path] = Entry(DIRECTORY, mode=FOLDER_MODE)

    def _make_file(self, path: bytes, member: Member, refuse: Refusal) -> None:
        mode = member.mode & KEPT_FILE_MODE | ADDED_FILE_MODE
        try:
            handle = os.open(path, _NEW_FILE, 0o600, dir_fd=self._root)
        except OSError as error:
            raise _creation_error(error, refuse) from error
        try:
            for piece in self._reader.data(member):
                left = piece
                with storing("cannot write an unpacked file"):
                    while left:
                        left = left[os.write(handle, left) :]
                self._stop.check()
                self._tell()
            with storing("cannot write an unpacked file"):
                os.fchmod(handle, mode)
                os.utime(handle, (member.mtime, member.mtime))
                mtime = member.mtime
                if mtime > ALWAYS_KEPT_MTIME:
                    mtime = os.fstat(handle).st_mtime_ns // 10**9
        finally:
            os.close(handle)
        self._entries[path] = Entry(FILE, member.size, mtime, mode)

    def _refusal_for(self, member: Member) -> Refusal:
        def refuse(code: str, text: str) -> ArchiveError:
            return ArchiveError(
                text,
                code=code,
                entry_number=member.number,
                offset=member.offset,
                name=member.name,
            )

        return refuse

    def _judge_hardlink(self, path: bytes, member: Member) -> bytes:
        self._stop.check()
        return self._picture.hardlink_target(path, self._refusal_for(member))

    def _judge_symlink(self, path: bytes, member: Member) -> bool:
        self._stop.check()
        if self._picture.leads_out(path, self._refusal_for(member)):
            self._dropped.append(path)
            return False
        return True

    def _make_hardlink(self, path: bytes, member: Member, target: bytes) -> None:
        refuse = self._refusal_for(member)
        try:
            os.link(
                target,
                path,
                src_dir_fd=self._root,
                dst_dir_fd=self._root,
                follow_symlinks=False,
            )
        except OSError as error:
            if error.errno == errno.EMLINK:
                raise refuse("too_many_links", "one file has too many names") from error
            raise _creation_error(error, refuse) from error
        self._entries[path] = self._entries[target]._replace(same_as=os.fsdecode(target))

    def _make_symlink(self, path: bytes, member: Member) -> None:
        try:
            os.symlink(member.link, path, dir_fd=self._root)
            times = (member.mtime, member.mtime)
            # Some file systems keep no time for a link; nobody relies on it.
            with contextlib.suppress(OSError, NotImplementedError):
                os.utime(path, times, dir_fd=self._root, follow_symlinks=False)
        except OSError as error:
            raise _creation_error(error, self._refusal_for(member)) from error
        self._entries[path] = Entry(SYMLINK, mtime=member.mtime, link=os.fsdecode(member.link))

    def _finish_folders(self) -> None:
        # Last and innermost first: making anything in a folder sets its time anew. No component
        # of these paths is a link, so following one is out of the question.
        folders = [path for path, entry in self._entries.items() if entry.type == DIRECTORY]
        folders.sort(key=lambda path: path.count(b"/"), reverse=True)
        with storing("cannot finish an unpacked folder"):
            for path in folders:
                os.chmod(path, FOLDER_MODE, dir_fd=self._root)
                mtime = self._entries[path].mtime
                if mtime is not None:
                    os.utime(path, (mtime, mtime), dir_fd=self._root)

    def _tell(self) -> None:
        if self._on_progress is not None and self._stream.offset - self._told >= MEBIBYTE:
            self._told = self._stream.offset
            self._on_progress(self._told)


def _creation_error(error: OSError, refuse: Refusal) -> Exception:
    if error.errno in _NAME_ERRORS:
        return refuse(
            "name_refused",
            f"this file system refuses the name ({error.strerror}); does it ignore case?",
        )
    return storage_error(error, "cannot make an unpacked file")
