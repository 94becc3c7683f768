"""Reading a tar archive strictly: what its headers say, or why they cannot be trusted.

Formats: v7, POSIX ustar and pax (POSIX.1-2001), GNU with long names. Where readers of tar differ
in what they make of an archive, it is refused: two readers would build two trees from the same
verified bytes. Nothing is written here and no name is judged beyond its form.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from buttercup_dagster.sources.errors import SourceError
from task_api.task import printable

BLOCK: Final = 512
MOST_EXTENSION_BYTES: Final = 1024 * 1024
MOST_EXTENSIONS_IN_A_ROW: Final = 8
MOST_SIZE: Final = 2**63 - 1
LATEST_MTIME: Final = 0x3_7FFF_FFFF
"""Whole seconds; in the year 2446, the latest time that ext4 can keep."""

_ZEROS: Final = bytes(BLOCK)
_POSIX: Final = b"ustar\x0000"
_GNU: Final = b"ustar  \x00"
_V7: Final = bytes(8)
_OCTAL: Final = re.compile(rb" *([0-7]*)[ \x00]*\Z")
_PAX_LENGTH: Final = re.compile(rb"[1-9][0-9]{0,7}\Z")
_PAX_SIZE: Final = re.compile(rb"[0-9]{1,19}\Z")
_PAX_TIME: Final = re.compile(rb"(-?)([0-9]{1,30})(?:\.([0-9]*))?\Z")
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
_DEVICES: Final = {b"3": "character device", b"4": "block device", b"6": "fifo"}


class ArchiveError(SourceError):
    """An archive that is refused.

    Attributes:
        code: why, for programs.
        entry_number: which entry of the archive, counted from 1; 0 for the archive as a whole.
        offset: byte of the unpacked stream at which the entry begins.
        name: its name, escaped; empty if it has none yet.
    """

    default_code = "archive"

    def __init__(
        self,
        text: str,
        *,
        code: str,
        entry_number: int = 0,
        offset: int = 0,
        name: bytes | str = "",
    ) -> None:
        shown = name if isinstance(name, str) else name.decode("utf-8", "surrogateescape")
        self.entry_number = entry_number
        self.offset = offset
        self.name = printable(shown, limit=200)
        where = ""
        if entry_number:
            where = f" (entry {entry_number} at byte {offset}"
            where += f", '{self.name}')" if self.name else ")"
        super().__init__(f"{text}{where}", code=code)


class Kind(Enum):
    """What an entry of an archive makes."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"


@dataclass(slots=True)
class Member:
    """One entry of an archive, as its headers state it.

    Attributes:
        number: counted from 1.
        offset: byte of the unpacked stream at which its first header begins.
        name: raw, with a trailing slash if it has one.
        kind: what it makes.
        size: bytes of data that follow; 0 for all but files.
        mode: permission bits and set-id bits.
        mtime: whole seconds, clamped to what file systems can keep.
        link: raw target of a link; empty for others.
    """

    number: int
    offset: int
    name: bytes
    kind: Kind
    size: int
    mode: int
    mtime: int
    link: bytes


class BlockStream:
    """Exact reads from an iterable of byte blocks of any size.

    Attributes:
        offset: bytes read so far.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self.offset = 0
        self._blocks = iter(blocks)
        self._block = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """The next bytes; fewer than asked for only at the end of the stream."""
        end = self._at + size
        if end <= len(self._block):
            data = self._block[self._at : end]
            self._at = end
            self.offset += size
            return data
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """The next bytes in pieces as they come, without joining them."""
        while size:
            if self._at == len(self._block):
                self._block = next(self._blocks, b"")
                self._at = 0
                if not self._block:
                    return
            piece = memoryview(self._block)[self._at : self._at + size]
            self._at += len(piece)
            self.offset += len(piece)
            size -= len(piece)
            yield piece


class TarReader:
    """The members of a tar archive, in order.

    After each member `data` must be read to its end before the next one is asked for. The stream
    is read to its very end, so that a cut or garbage behind the archive is noticed.
    """

    def __init__(self, stream: BlockStream) -> None:
        self._stream = stream
        self._number = 0
        self._start = 0
        self._name: bytes = b""
        self._global_mtime: int | None = None

    def error(self, code: str, text: str) -> ArchiveError:
        """An error about the present member."""
        return ArchiveError(
            text, code=code, entry_number=self._number, offset=self._start, name=self._name
        )

    def members(self) -> Iterator[Member]:
        """All members.

        Raises:
            ArchiveError: at the first thing that is not as it has to be.
        """
        while True:
            self._number += 1
            self._start = self._stream.offset
            self._name = b""
            member = self._next_member()
            if member is None:
                return
            yield member

    def data(self, member: Member) -> Iterator[memoryview]:
        """The data of the present member, in pieces.

        Raises:
            ArchiveError: the archive ends in it.
        """
        left = member.size
        for piece in self._stream.pieces(member.size):
            left -= len(piece)
            yield piece
        padding = -member.size % BLOCK
        if left or len(self._stream.take(padding)) < padding:
            raise self.error("truncated", "the archive ends in the data of an entry")

    def _next_member(self) -> Member | None:
        pax: dict[bytes, bytes] = {}
        long_name: bytes | None = None
        long_link: bytes | None = None
        seen: set[bytes] = set()
        for _ in range(MOST_EXTENSIONS_IN_A_ROW + 1):
            header = self._header()
            if header is None:
                if seen - {b"g"}:
                    raise self.error("dangling_extension", "a header extends an entry that is none")
                return None
            kind = header[156:157]
            if kind not in {b"x", b"g", b"L", b"K"}:
                return self._member(header, pax, long_name, long_link)
            if (kind in seen and kind != b"g") or (kind == b"x" and seen & {b"L", b"K"}):
                raise self.error("repeated_extension", "two headers extend the same entry")
            if kind in {b"L", b"K"} and b"x" in seen:
                raise self.error("mixed_extensions", "pax and GNU headers extend the same entry")
            seen.add(kind)
            payload = self._extension(header)
            if kind == b"x":
                pax = self._pax(payload)
            elif kind == b"g":
                self._accept_global(self._pax(payload))
            elif kind == b"L":
                long_name = self._gnu_long(payload)
            else:
                long_link = self._gnu_long(payload)
        raise self.error(
            "too_many_extensions",
            f"more than {MOST_EXTENSIONS_IN_A_ROW} headers extend one entry",
        )

    def _header(self) -> bytes | None:
        """The next header block; None at the end of the archive."""
        block = self._stream.take(BLOCK)
        if not block:
            raise self.error(
                "missing_end", "the archive has no end marker, so it was cut; make or send it again"
            )
        if len(block) < BLOCK:
            raise self.error("truncated", "the archive ends in the header of an entry")
        if block == _ZEROS:
            self._read_to_the_end()
            return None
        stored = self._number_in(block, 148, 8, "checksum")
        if stored != sum(block) - sum(block[148:156]) + 8 * 0x20:
            raise self.error("bad_checksum", "the checksum of a header is wrong")
        if block[257:265] not in {_POSIX, _GNU, _V7}:
            raise self.error("bad_magic", "a header is of no known tar format")
        return block

    def _read_to_the_end(self) -> None:
        while piece := self._stream.take(64 * BLOCK):
            if piece.count(0) != len(piece):
                raise self.error("trailing_data", "something follows the end of the archive")

    def _number_in(self, block: bytes, start: int, length: int, what: str) -> int:
        field = block[start : start + length]
        if field[0] & 0x80:  # base-256, a GNU extension
            value = int.from_bytes(field, "big", signed=False) - (field[0] << 8 * (length - 1))
            if field[0] == 0x80:
                return value
            if field[0] == 0xFF:
                return value - (1 << 8 * (length - 1))
        elif found := _OCTAL.match(field):
            return int(found[1] or b"0", 8)
        raise self.error("bad_number", f"the {what} in a header is not a number")

    def _size(self, header: bytes) -> int:
        size = self._number_in(header, 124, 12, "size")
        if not 0 <= size <= MOST_SIZE:
            raise self.error("bad_size", "the size in a header is negative or beyond 63 bits")
        return size

    def _extension(self, header: bytes) -> bytes:
        size = self._size(header)
        if size > MOST_EXTENSION_BYTES:
            raise self.error(
                "extension_too_large",
                f"a header of {size} bytes extends an entry; {MOST_EXTENSION_BYTES} are allowed",
            )
        padded = size + -size % BLOCK
        payload = self._stream.take(padded)
        if len(payload) < padded:
            raise self.error("truncated", "the archive ends in the header of an entry")
        return payload[:size]

    def _gnu_long(self, payload: bytes) -> bytes:
        name, end, rest = payload.partition(b"\x00")
        if not end or rest.strip(b"\x00"):
            raise self.error("bad_name", "a long name does not end where it says")
        if not name:
            raise self.error("bad_name", "a long name is empty")
        return name

    def _pax(self, payload: bytes) -> dict[bytes, bytes]:
        records: dict[bytes, bytes] = {}
        at = 0
        while at < len(payload):
            blank = payload.find(b" ", at, at + 9)
            if blank < 0 or not _PAX_LENGTH.match(payload[at:blank]):
                raise self.error("bad_pax", "a pax record has no valid length")
            end = at + int(payload[at:blank])
            record = payload[blank + 1 : end]
            if end > len(payload) or not record.endswith(b"\n"):
                raise self.error("bad_pax", "a pax record does not end where it says")
            key, equals, value = record[:-1].partition(b"=")
            if not key or not equals or _CONTROL.search(key):
                raise self.error("bad_pax", "a pax record has no keyword")
            if key in records:
                raise self.error(
                    "repeated_pax_keyword", f"pax keyword {printable(repr(key))} stands twice"
                )
            if key.startswith((b"GNU.sparse", b"SCHILY.realsize")):
                raise self.error("sparse", "sparse files are not supported; pack it without them")
            records[key] = value
            at = end
        return records

    def _accept_global(self, records: dict[bytes, bytes]) -> None:
        for key in (b"path", b"linkpath", b"size"):
            if key in records:
                raise self.error(
                    "global_pax", f"a global pax header sets {key.decode()} for every entry"
                )
        if b"mtime" in records:
            self._global_mtime = _pax_seconds(records[b"mtime"])

    def _member(
        self,
        header: bytes,
        pax: dict[bytes, bytes],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Member:
        magic = header[257:265]
        name = header[:100].partition(b"\x00")[0]
        prefix = header[345:500].partition(b"\x00")[0] if magic == _POSIX else b""
        if prefix:
            name = prefix.rstrip(b"/") + b"/" + name
        link = header[157:257].partition(b"\x00")[0]
        name = pax.get(b"path", long_name if long_name is not None else name)
        link = pax.get(b"linkpath", long_link if long_link is not None else link)
        self._name = name
        size = self._size(header)
        if b"size" in pax:
            if not _PAX_SIZE.match(pax[b"size"]) or int(pax[b"size"]) > MOST_SIZE:
                raise self.error("bad_size", "the pax size of an entry is not a number")
            size = int(pax[b"size"])
        kind = self._kind(header[156:157], name)
        if kind is not Kind.FILE and size:
            raise self.error("unexpected_data", f"a {kind.value} has {size} bytes of data")
        mtime = self._number_in(header, 136, 12, "time")
        if self._global_mtime is not None:
            mtime = self._global_mtime
        if b"mtime" in pax and (seconds := _pax_seconds(pax[b"mtime"])) is not None:
            mtime = seconds
        return Member(
            number=self._number,
            offset=self._start,
            name=name,
            kind=kind,
            size=size,
            mode=self._number_in(header, 100, 8, "mode") & 0o7777,
            mtime=min(max(mtime, 0), LATEST_MTIME),
            link=link if kind in {Kind.SYMLINK, Kind.HARDLINK} else b"",
        )

    def _kind(self, flag: bytes, name: bytes) -> Kind:
        if flag in {b"0", b"\x00", b"7"}:
            # v7 has no type for directories; readers go by the slash.
            return Kind.DIRECTORY if name.endswith(b"/") else Kind.FILE
        if flag == b"5":
            return Kind.DIRECTORY
        if flag == b"2":
            return Kind.SYMLINK
        if flag == b"1":
            return Kind.HARDLINK
        if flag in _DEVICES:
            raise self.error("special_file", f"a {_DEVICES[flag]} has no place in a source archive")
        if flag == b"S":
            raise self.error("sparse", "sparse files are not supported; pack it without them")
        raise self.error(
            "unsupported_type", f"entries of type {printable(repr(flag))} are not supported"
        )


def _pax_seconds(text: bytes) -> int | None:
    """Whole seconds of a pax time, rounded down; None if it is no decimal number."""
    found = _PAX_TIME.match(text)
    if found is None:
        return None
    seconds = int(found[2])
    if not found[1]:
        return seconds
    return -seconds - bool((found[3] or b"").strip(b"0"))
