"""Reading a tar archive strictly: what its headers say, or why they cannot be trusted.

Formats: v7, POSIX ustar and pax (POSIX.1-2001), GNU with long names. Where readers of tar differ
in what they make of an archive, it is refused: two readers would build two trees from the same
verified bytes. Nothing is written here and no name is judged beyond its form.
"""

from __future__ import annotations

from operator import itemgetter
from struct import Struct

from isal.isal_zlib import adler32

from buttercup_dagster.sources.unpacking.refusal import Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final


BLOCK: Final = 512
MOST_EXTENSION_BYTES: Final = 1024 * 1024
MOST_EXTENSIONS_IN_A_ROW: Final = 8
MOST_SIZE: Final = 2**63 - 1
LATEST_MTIME: Final = 0x3_7FFF_FFFF
"""Whole seconds; in the year 2446, the latest time that ext4 can keep."""

FILE: Final = "file"
DIRECTORY: Final = "directory"
SYMLINK: Final = "symbolic link"
HARDLINK: Final = "hard link"

# Name, mode, size, time, checksum, type and magic. Owners and devices are of no interest; the
# target of a link and the prefix of a name are looked at where there is one.
_HEADER: Final = Struct("100s 8s 16x 12s 12s 8s c 100x 8s")
_POSIX: Final = b"ustar\x0000"
_GNU: Final = b"ustar  \x00"
_V7: Final = bytes(8)
_MAGICS: Final = frozenset({_POSIX, _GNU, _V7})
_FILE_FLAGS: Final = frozenset({b"0", b"\x00", b"7"})
_EXTENSIONS: Final = frozenset({b"x", b"g", b"L", b"K"})
_DEVICES: Final = {b"3": "character device", b"4": "block device", b"6": "fifo"}
_DIGITS: Final = b"0123456789"
_OCTAL_DIGITS: Final = b"01234567"
CONTROL: Final = bytes([*range(0x20), 0x7F])
"""Characters that no name, link or keyword may hold."""
_MOST_REMEMBERED: Final = 4096
_NO_RECORDS: Final[dict[bytes, bytes]] = {}
_new_member: Final = tuple.__new__

_Fields = tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes]


class Member(tuple[int, int, bytes, str, int, int, int, bytes]):
    """One entry of an archive, as its headers state it.

    A tuple, since one is made for each of a hundred thousand entries.

    Attributes:
        number: counted from 1.
        offset: byte of the unpacked stream at which its first header begins.
        name: raw, with a trailing slash if it has one.
        kind: what it makes: FILE, DIRECTORY, SYMLINK or HARDLINK.
        size: bytes of data that follow; 0 for all but files.
        mode: permission bits and set-id bits.
        mtime: whole seconds, clamped to what file systems can keep.
        link: raw target of a link; empty for others.
    """

    __slots__ = ()

    number: int = property(itemgetter(0))  # type: ignore[assignment]
    offset: int = property(itemgetter(1))  # type: ignore[assignment]
    name: bytes = property(itemgetter(2))  # type: ignore[assignment]
    kind: str = property(itemgetter(3))  # type: ignore[assignment]
    size: int = property(itemgetter(4))  # type: ignore[assignment]
    mode: int = property(itemgetter(5))  # type: ignore[assignment]
    mtime: int = property(itemgetter(6))  # type: ignore[assignment]
    link: bytes = property(itemgetter(7))  # type: ignore[assignment]


class TarReader:
    """The members of a tar archive, in order.

    After each member its data must be read to its end before the next one is asked for. The stream
    is read to its very end, so that a cut or garbage behind the archive is noticed.

    Attributes:
        view: the present block of the stream.

    Args:
        blocks: the stream, in blocks of any size, none empty.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._block = b""
        self.view = memoryview(b"")
        self._at = 0
        self._base = 0
        self._number = 0
        self._start = 0
        self._name = b""
        # The last header is at a place in a block.
        self._head = b""
        self._head_at = 0
        self._global_mtime: int | None = None
        # Fields recur from header to header, so what they say is remembered.
        self._numbers: dict[bytes, int] = {}
        self._sums: dict[bytes, int] = {}

    @property
    def offset(self) -> int:
        """Bytes of the stream read so far."""
        return self._base + self._at

    def refusal(self, code: str, text: str) -> Refusal:
        """An error about the present member."""
        return Refusal(code, text, self._number, self._start, self._name)

    def members(self) -> Iterator[Member]:
        """All members.

        Raises:
            Refusal: at the first thing that is not as it has to be.
        """
        while True:
            self._number += 1
            self._start = self._base + self._at
            self._name = b""
            fields = self._header()
            if fields is None:
                return
            if fields[5] in _EXTENSIONS:
                member = self._extended_member(fields)
                if member is None:
                    return
                yield member
            else:
                yield self._member(fields, _NO_RECORDS, None, None)

    def place(self, size: int) -> int | None:
        """Pass over the data of the present member, if all of it is in the present block.

        Returns:
            Where it begins in `view`; None if it is in several, which `spans` gives.
        """
        at = self._at
        after = at + size + -size % BLOCK
        if after > len(self._block):
            return None
        self._at = after
        return at

    def spans(self, size: int) -> Iterator[tuple[int, int]]:
        """Where the data of the present member are, piece by piece.

        Yields:
            Beginning and length of a piece in `view`, which is another one for each piece.

        Raises:
            Refusal: the archive ends in it.
        """
        left = size
        while left and (length := min(left, self._more())):
            at = self._at
            self._at = at + length
            left -= length
            yield at, length
        padding = -size % BLOCK
        if left or len(self._take(padding)) < padding:
            raise self.refusal("truncated", "the archive ends in the data of an entry")

    # ---- the stream

    def _more(self) -> int:
        """How many bytes of the present block are left; of the next one if there are none."""
        if self._at == len(self._block):
            self._base += self._at
            self._at = 0
            self._block = next(self._blocks, b"")
            self.view = memoryview(self._block)
        return len(self._block) - self._at

    def _take(self, size: int) -> bytes:
        """The next bytes; fewer than asked for only at the end of the stream."""
        pieces: list[bytes] = []
        while size and (length := min(size, self._more())):
            at = self._at
            self._at = at + length
            pieces.append(self._block[at : self._at])
            size -= length
        return b"".join(pieces)

    # ---- headers

    def _header(self) -> _Fields | None:
        """The fields of the next header block; None at the end of the archive."""
        block, at = self._block, self._at
        end = at + BLOCK
        if end <= len(block):
            self._at = end
            self._head, self._head_at = block, at
        else:
            block = self._take(BLOCK)
            at, end = 0, BLOCK
            self._head, self._head_at = block, 0
            if not block:
                raise self.refusal(
                    "missing_end",
                    "the archive has no end marker, so it was cut; make or send it again",
                )
            if len(block) < BLOCK:
                raise self.refusal("truncated", "the archive ends in the header of an entry")
        fields: _Fields = _HEADER.unpack_from(block, at)
        # The low half of an Adler-32 is one more than the sum of the bytes, modulo 65521. The sum
        # of 256 bytes is below that, so two of them give that of the header, and quickly.
        middle = at + 256
        found = (adler32(block[at:middle]) & 0xFFFF) + (adler32(block[middle:end]) & 0xFFFF) - 2
        expected = self._sums.get(fields[4])
        if expected is None:
            if not found:
                self._read_to_the_end()
                return None
            expected = self._expected_sum(fields[4])
        if found != expected:
            if not found:
                self._read_to_the_end()
                return None
            raise self.refusal("bad_checksum", "the checksum of a header is wrong")
        if fields[6] not in _MAGICS:
            raise self.refusal("bad_magic", "a header is of no known tar format")
        return fields

    def _expected_sum(self, field: bytes) -> int:
        """What all bytes of a header with this checksum field add up to."""
        # The checksum is made with blanks in its own field.
        expected = self._number_in(field, "checksum") - 8 * 0x20 + sum(field)
        if len(self._sums) >= _MOST_REMEMBERED:
            self._sums.clear()
        self._sums[field] = expected
        return expected

    def _read_to_the_end(self) -> None:
        while piece := self._take(64 * BLOCK):
            if piece.count(0) != len(piece):
                raise self.refusal("trailing_data", "something follows the end of the archive")

    def _number_in(self, field: bytes, what: str) -> int:
        value = self._numbers.get(field)
        if value is None:
            value = self._parsed(field, what)
            if len(self._numbers) >= _MOST_REMEMBERED:
                self._numbers.clear()
            self._numbers[field] = value
        return value

    def _parsed(self, field: bytes, what: str) -> int:
        if field[0] & 0x80:  # base-256, a GNU extension
            value = int.from_bytes(field, "big", signed=False) - (field[0] << 8 * (len(field) - 1))
            if field[0] == 0x80:
                return value
            if field[0] == 0xFF:
                return value - (1 << 8 * (len(field) - 1))
        else:
            digits = field.lstrip(b" ").rstrip(b" \x00")
            if not digits.strip(_OCTAL_DIGITS):
                return int(digits or b"0", 8)
        raise self.refusal("bad_number", f"the {what} in a header is not a number")

    def _size(self, field: bytes) -> int:
        # By far the most common form; the digits 8 and 9 are left to the other one.
        if field[11] == 0 and field[:11].isdigit():
            try:
                return int(field[:11], 8)
            except ValueError:
                pass
        if not field.strip(b" \x00") and b" " in field:
            raise self.refusal("bad_number", "the size in a header is blank")
        size = self._number_in(field, "size")
        if not 0 <= size <= MOST_SIZE:
            raise self.refusal("bad_size", "the size in a header is negative or beyond 63 bits")
        return size

    # ---- headers that extend the next one

    def _extended_member(self, fields: _Fields | None) -> Member | None:
        """The member that one or more extension headers, beginning with this one, stand before."""
        pax: dict[bytes, bytes] = {}
        long_name: bytes | None = None
        long_link: bytes | None = None
        seen: set[bytes] = set()
        for _ in range(MOST_EXTENSIONS_IN_A_ROW + 1):
            if fields is None:
                if seen - {b"g"}:
                    raise self.refusal(
                        "dangling_extension", "a header extends an entry that is none"
                    )
                return None
            kind = fields[5]
            if kind not in _EXTENSIONS:
                return self._member(fields, pax, long_name, long_link)
            if (kind in seen and kind != b"g") or (kind == b"x" and seen & {b"L", b"K"}):
                raise self.refusal("repeated_extension", "two headers extend the same entry")
            if kind in {b"L", b"K"} and b"x" in seen:
                raise self.refusal("mixed_extensions", "pax and GNU headers extend the same entry")
            if fields[6] == _V7:
                raise self.refusal("bad_magic", "a header without a format extends an entry")
            seen.add(kind)
            payload = self._payload(fields)
            if kind == b"x":
                pax = self._pax(payload)
            elif kind == b"g":
                self._accept_global(self._pax(payload))
            elif kind == b"L":
                long_name = self._gnu_long(payload)
            else:
                long_link = self._gnu_long(payload)
            fields = self._header()
        raise self.refusal(
            "too_many_extensions",
            f"more than {MOST_EXTENSIONS_IN_A_ROW} headers extend one entry",
        )

    def _payload(self, fields: _Fields) -> bytes:
        size = self._size(fields[2])
        if size > MOST_EXTENSION_BYTES:
            raise self.refusal(
                "extension_too_large",
                f"a header of {size} bytes extends an entry; {MOST_EXTENSION_BYTES} are allowed",
            )
        padded = size + -size % BLOCK
        payload = self._take(padded)
        if len(payload) < padded:
            raise self.refusal("truncated", "the archive ends in the header of an entry")
        return payload[:size]

    def _gnu_long(self, payload: bytes) -> bytes:
        name, end, rest = payload.partition(b"\x00")
        if not end or rest.strip(b"\x00"):
            raise self.refusal("bad_name", "a long name does not end where it says")
        if not name:
            raise self.refusal("bad_name", "a long name is empty")
        return name

    def _pax(self, payload: bytes) -> dict[bytes, bytes]:
        records: dict[bytes, bytes] = {}
        at = 0
        while at < len(payload):
            blank = payload.find(b" ", at, at + 9)
            length = payload[at:blank] if blank > at else b""
            if not length.isdigit() or length.startswith(b"0"):
                raise self.refusal("bad_pax", "a pax record has no valid length")
            end = at + int(length)
            record = payload[blank + 1 : end]
            if end > len(payload) or not record.endswith(b"\n"):
                raise self.refusal("bad_pax", "a pax record does not end where it says")
            key, equals, value = record[:-1].partition(b"=")
            if not key or not equals or key.translate(None, CONTROL) != key:
                raise self.refusal("bad_pax", "a pax record has no keyword")
            if key in records:
                raise self.refusal(
                    "repeated_pax_keyword", f"pax keyword {_shown(key)} stands twice"
                )
            if key.startswith((b"GNU.sparse", b"SCHILY.realsize")):
                raise self._sparse()
            if key == b"mtime" and b"\x00" in value:
                raise self.refusal("bad_pax", "a pax time holds a NUL")
            records[key] = value
            at = end
        return records

    def _accept_global(self, records: dict[bytes, bytes]) -> None:
        for key in (b"path", b"linkpath", b"size"):
            if key in records:
                raise self.refusal(
                    "global_pax", f"a global pax header sets {key.decode()} for every entry"
                )
        if b"mtime" in records:
            self._global_mtime = pax_seconds(records[b"mtime"])

    # ---- members

    def _member(
        self,
        fields: _Fields,
        pax: dict[bytes, bytes],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Member:
        short_name, mode_field, size_field, time_field, _, flag, magic = fields
        at = self._head_at
        name = short_name.partition(b"\x00")[0]
        if self._head[at + 345] and magic == _POSIX:
            prefix = self._head[at + 345 : at + 500].partition(b"\x00")[0]
            name = prefix.rstrip(b"/") + b"/" + name
        if long_name is not None:
            name = long_name
        elif pax:
            name = pax.get(b"path", name)
        self._name = name
        size = self._size(size_field)
        if pax and b"size" in pax:
            size = self._pax_size(pax[b"size"])
        link = b""
        if flag in _FILE_FLAGS:
            # v7 has no type for directories; readers go by the slash.
            kind = DIRECTORY if name.endswith(b"/") else FILE
        else:
            kind = self._kind(flag)
            if kind is not DIRECTORY:
                link = self._head[at + 157 : at + 257].partition(b"\x00")[0]
                link = pax.get(b"linkpath", link if long_link is None else long_link)
        if size and kind is not FILE:
            raise self.refusal("unexpected_data", f"a {kind} has {size} bytes of data")
        mode = self._numbers.get(mode_field)
        if mode is None:
            mode = self._number_in(mode_field, "mode")
        mtime = self._numbers.get(time_field)
        if mtime is None:
            mtime = self._number_in(time_field, "time")
        if self._global_mtime is not None:
            mtime = self._global_mtime
        if pax and b"mtime" in pax and (seconds := pax_seconds(pax[b"mtime"])) is not None:
            mtime = seconds
        if mtime < 0 or mtime > LATEST_MTIME:
            mtime = min(max(mtime, 0), LATEST_MTIME)
        return _new_member(
            Member, (self._number, self._start, name, kind, size, mode & 0o7777, mtime, link)
        )

    def _pax_size(self, text: bytes) -> int:
        if not text.isdigit() or len(text) > 19 or int(text) > MOST_SIZE:
            raise self.refusal("bad_size", "the pax size of an entry is not a number")
        return int(text)

    def _kind(self, flag: bytes) -> str:
        if flag == b"5":
            return DIRECTORY
        if flag == b"2":
            return SYMLINK
        if flag == b"1":
            return HARDLINK
        if flag in _DEVICES:
            raise self.refusal(
                "special_file", f"a {_DEVICES[flag]} has no place in a source archive"
            )
        if flag == b"S":
            raise self._sparse()
        raise self.refusal("unsupported_type", f"entries of type {_shown(flag)} are not supported")

    def _sparse(self) -> Refusal:
        return self.refusal("sparse", "sparse files are not supported; pack it without them")


def pax_seconds(text: bytes) -> int | None:
    """Whole seconds of a pax time, rounded down; None if it is no decimal number."""
    whole, _, fraction = text.removeprefix(b"-").partition(b".")
    if not whole.isdigit() or len(whole) > 30 or fraction.strip(_DIGITS):
        return None
    seconds = int(whole)
    if not text.startswith(b"-"):
        return seconds
    return -seconds - bool(fraction.strip(b"0"))


def _shown(text: bytes) -> str:
    return ascii(text)[1:][:80]
