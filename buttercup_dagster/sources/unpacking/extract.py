"""Making the files of an archive in the present folder, and the manifest's rows about them.

Until all files are written there is no link in the folder, so no name can lead out of it, whatever
the archive says. What a name may be is judged in memory before anything is made for it
(`picture.py`). Links come last; symbolic ones that would lead out are left out and listed.
"""

from __future__ import annotations

import os
from array import array
from errno import EEXIST, EILSEQ, EINVAL, EMLINK, ENAMETOOLONG

from buttercup_dagster.sources.unpacking.picture import Picture
from buttercup_dagster.sources.unpacking.refusal import DiskFailure, Refusal
from buttercup_dagster.sources.unpacking.tar import (
    FILE,
    HARDLINK,
    SYMLINK,
    Member,
    TarReader,
)
from buttercup_dagster.sources.unpacking.writer import Writer, WriterFailed, new_file, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from buttercup_dagster.sources.unpacking.picture import Refuse


FOLDER_MODE: Final = 0o755
# Contract: readers may run as another user, so every file is readable, and writable by its owner.
ADDED_FILE_MODE: Final = 0o644
KEPT_FILE_MODE: Final = 0o755
ALWAYS_KEPT_MTIME: Final = 2**31 - 1
"""Some file systems cannot keep a later one (seconds), and put in the latest that they can."""

ROWS_AT_ONCE: Final = 1024
_NAME_ERRORS: Final = frozenset({EEXIST, EILSEQ, EINVAL, ENAMETOOLONG})


class Extraction:
    """One archive on its way into the present folder, which is empty and nobody else's.

    The process must have a umask of 022.

    Attributes:
        files: made so far; and so on for the other kinds.
        bytes: of all files.

    Args:
        reader: of the archive.
        tell: takes rows of the manifest, and the bytes of the stream read so far.
        writer: makes files in a second process; None where that is not worth it.
        refuse_escaping: whether a symbolic link that leads out of the tree refuses the archive.
        most_file_bytes: of one file.
        most_entries: files, directories and links together.
        most_name_bytes: of all names and link texts together, which are kept in memory.
    """

    def __init__(
        self,
        reader: TarReader,
        tell: Callable[[bytes, int], None],
        *,
        writer: Writer | None,
        refuse_escaping: bool,
        most_file_bytes: int,
        most_entries: int,
        most_name_bytes: int,
    ) -> None:
        self.files = 0
        self.directories = 0
        self.symlinks = 0
        self.hardlinks = 0
        self.bytes = 0
        self.dropped = 0
        self._reader = reader
        self._tell = tell
        self._writer = writer
        self._refuse_escaping = refuse_escaping
        self._most_file_bytes = most_file_bytes
        self._most_entries = most_entries
        self._most_name_bytes = most_name_bytes
        self._picture = Picture()
        self._rows: list[bytes] = []
        self._symlinks = _Links()
        self._hardlinks = _Links()
        self._keeps_modes: bool | None = None

    def run(self) -> None:
        """Make everything.

        Raises:
            Refusal: the archive is refused.
            DiskFailure: the disk is full or fails.
        """
        try:
            self._read()
            if self._writer is not None:
                self._writer.wait()
        except WriterFailed as failed:
            member = failed.member
            refuse = _refuse_for(member.number, member.offset, member.name)
            raise _file_error(failed.error, refuse, making=failed.making) from failed.error
        # Only now is the archive known to be whole and every name in it known.
        for path, (_, mtime) in self._picture.stated.items():
            self._add_row(b"t\t\t\t%d\t%b\n" % (mtime, path))
        self._make_links()
        self._finish_folders()
        self._flush()

    def _read(self) -> None:
        """Make all directories and files."""
        picture, refuse = self._picture, self._reader.refusal
        for member in self._reader.members():
            kind = member.kind
            if kind is FILE:
                path, folders = picture.add_file(member.name, refuse)
            else:
                path, folders = picture.add(member, refuse)
            if picture.entries > self._most_entries:
                raise refuse(
                    "too_many_entries", f"the archive has more than {self._most_entries} entries"
                )
            if picture.name_bytes > self._most_name_bytes:
                raise refuse(
                    "names_too_long",
                    f"the names and links of the archive have more than {self._most_name_bytes} "
                    "bytes together",
                )
            for folder in folders:
                self._make_folder(folder, refuse)
            if kind is FILE:
                self._make_file(path, member, refuse)
            elif kind is SYMLINK:
                self._symlinks.add(path, member)
            elif kind is HARDLINK:
                self._hardlinks.add(path, member)

    def _make_folder(self, path: bytes, refuse: Refuse) -> None:
        try:
            os.mkdir(path, FOLDER_MODE)
            if not self._keeps_modes:
                # A default ACL of the folder above has a say that the umask has not.
                self._mend_mode(path, FOLDER_MODE)
        except OSError as error:
            raise _creation_error(error, refuse) from error
        self.directories += 1
        self._add_row(b"d\t%o\t\t\t%b\n" % (FOLDER_MODE, path))

    def _mend_mode(self, path: bytes, mode: int) -> None:
        if os.stat(path).st_mode & 0o7777 != mode:
            self._keeps_modes = False
        elif self._keeps_modes is None:
            self._keeps_modes = True
        if not self._keeps_modes:
            os.chmod(path, mode)

    def _make_file(self, path: bytes, member: Member, refuse: Refuse) -> None:
        size, mtime = member.size, member.mtime
        if size > self._most_file_bytes:
            raise refuse(
                "file_too_large",
                f"the file has {size} bytes; {self._most_file_bytes} are allowed",
            )
        mode = member.mode & KEPT_FILE_MODE | ADDED_FILE_MODE
        writer = self._writer
        if writer is not None and writer.takes and self._keeps_modes and mtime <= ALWAYS_KEPT_MTIME:
            start = self._reader.place(size)
            if start is not None:
                writer.give(member, (path, mode, mtime, start, size, True))
            else:
                self._give_pieces(writer, path, member, mode)
        else:
            mtime = self._write_file(path, member, mode, refuse)
        self.files += 1
        self.bytes += size
        self._add_row(b"f\t%o\t%d\t%d\t%b\n" % (mode, size, mtime, path))

    def _give_pieces(self, writer: Writer, path: bytes, member: Member, mode: int) -> None:
        left = member.size
        writer.begin()
        for start, length in self._reader.spans(member.size):
            left -= length
            writer.give(member, (path, mode, member.mtime, start, length, not left))
            path = b""
            self._tell(b"", self._reader.offset)

    def _write_file(self, path: bytes, member: Member, mode: int, refuse: Refuse) -> int:
        """Write a file in this process; return the time that it has, which may be cut."""
        reader, mtime = self._reader, member.mtime
        making = True
        try:
            handle = new_file(path, mode)
            making = False
            for start, length in reader.spans(member.size):
                write_all(handle, reader.view[start : start + length])
                self._tell(b"", reader.offset)
            os.utime(handle, (mtime, mtime))
            if mtime > ALWAYS_KEPT_MTIME:
                mtime = os.fstat(handle).st_mtime_ns // 10**9
            os.close(handle)
            if not self._keeps_modes:
                self._mend_mode(path, mode)
        except OSError as error:
            raise _file_error(error, refuse, making=making) from error
        return mtime

    def _add_row(self, row: bytes) -> None:
        rows = self._rows
        rows.append(row)
        if len(rows) >= ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self._tell(b"".join(self._rows), self._reader.offset)
        self._rows.clear()

    # ---- links

    def _make_links(self) -> None:
        # All are judged before one is made.
        targets = [
            self._picture.hardlink_target(path, self._hardlinks.refuse_for(number))
            for number, path in enumerate(self._hardlinks.paths)
        ]
        kept = bytearray(len(self._symlinks.paths))
        for number, path in enumerate(self._symlinks.paths):
            kept[number] = not self._leads_out(path, self._symlinks.refuse_for(number))
        for number, (path, target) in enumerate(zip(self._hardlinks.paths, targets, strict=True)):
            self._make_hardlink(path, target, self._hardlinks.refuse_for(number))
        for path, stays in zip(self._symlinks.paths, kept, strict=True):
            if not stays:
                self._add_row(b"x\t\t\t\t%b\t%b\n" % (path, self._picture.link_text(path)))
                self.dropped += 1
        for number, path in enumerate(self._symlinks.paths):
            if kept[number]:
                self._make_symlink(path, number)

    def _leads_out(self, path: bytes, refuse: Refuse) -> bool:
        leads_out = self._picture.leads_out(path, refuse)
        if leads_out and self._refuse_escaping:
            raise refuse("escaping_link", "the symbolic link leads out of the archive's tree")
        return leads_out

    def _make_hardlink(self, path: bytes, target: bytes, refuse: Refuse) -> None:
        try:
            os.link(target, path, follow_symlinks=False)
            status = os.stat(path, follow_symlinks=False)
        except OSError as error:
            if error.errno == EMLINK:
                raise refuse("too_many_links", "one file has too many names") from error
            raise _creation_error(error, refuse) from error
        self.hardlinks += 1
        row = (status.st_mode & 0o7777, status.st_size, status.st_mtime_ns // 10**9, path, target)
        self._add_row(b"h\t%o\t%d\t%d\t%b\t%b\n" % row)

    def _make_symlink(self, path: bytes, number: int) -> None:
        text = self._picture.link_text(path)
        mtime = self._symlinks.mtime(number)
        try:
            os.symlink(text, path)
        except OSError as error:
            raise _creation_error(error, self._symlinks.refuse_for(number)) from error
        try:
            os.utime(path, (mtime, mtime), follow_symlinks=False)
        except (OSError, NotImplementedError):
            pass  # some file systems keep no time for a link; nobody relies on it
        self.symlinks += 1
        self._add_row(b"l\t\t\t%d\t%b\t%b\n" % (mtime, path, text))

    def _finish_folders(self) -> None:
        # Last: making anything in a folder sets its time anew. No component of these paths is a
        # link, so following one is out of the question.
        try:
            for path, (_, mtime) in self._picture.stated.items():
                os.utime(path, (mtime, mtime))
        except OSError as error:
            raise DiskFailure("cannot finish an unpacked folder", error) from error


class _Links:
    """Links that are made once everything else is, in little memory: there may be millions.

    Attributes:
        paths: their clean names, in the order of the archive.
    """

    def __init__(self) -> None:
        self.paths: list[bytes] = []
        self._facts = array("q")

    def add(self, path: bytes, member: Member) -> None:
        """Take one more."""
        self.paths.append(path)
        self._facts.extend((member.number, member.offset, member.mtime))

    def mtime(self, number: int) -> int:
        """Time of a link, counted from 0."""
        return self._facts[3 * number + 2]

    def refuse_for(self, number: int) -> Refuse:
        """What makes the errors about a link, counted from 0."""
        return _refuse_for(self._facts[3 * number], self._facts[3 * number + 1], self.paths[number])


def _refuse_for(number: int, offset: int, name: bytes) -> Refuse:
    def refuse(code: str, text: str) -> Refusal:
        return Refusal(code, text, number, offset, name)

    return refuse


def _file_error(error: OSError, refuse: Refuse, *, making: bool) -> Exception:
    if making:
        return _creation_error(error, refuse)
    return DiskFailure("cannot write an unpacked file", error)


def _creation_error(error: OSError, refuse: Refuse) -> Exception:
    if error.errno in _NAME_ERRORS:
        return refuse(
            "name_refused",
            f"this file system refuses the name ({error.strerror}); does it ignore case?",
        )
    return DiskFailure("cannot make an unpacked file", error)
