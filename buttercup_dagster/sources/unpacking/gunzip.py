"""Unpacking gzip (RFC 1952) to the end: every member, every checksum, nothing behind."""

from __future__ import annotations

import os

from isal.igzip_lib import DECOMP_GZIP, IgzipDecompressor, IsalError

from buttercup_dagster.sources.unpacking.refusal import DiskFailure, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final, Protocol

    class Digest(Protocol):
        """What hashes, such as `hashlib.sha256()`."""

        def update(self, data: bytes, /) -> None:
            """Add bytes."""


INPUT_BYTES: Final = 64 * 1024
OUTPUT_BYTES: Final = 512 * 1024

_GZIP: Final = b"\x1f\x8b"
_FORMATS: Final = (
    (b"PK\x03\x04", "a zip file"),
    (b"PK\x05\x06", "a zip file"),
    (b"\xfd7zXZ\x00", "packed with xz"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd"),
    (b"BZh", "packed with bzip2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z file"),
    (b"Rar!", "a rar file"),
    (b"\x1f\x9d", "packed with compress"),
    (b"\x04\x22\x4d\x18", "packed with lz4"),
    (b"LZIP", "packed with lzip"),
)


class ArchiveFile:
    """The archive as it lies on the disk, hashed while it is read.

    Args:
        handle: descriptor, at its beginning.
        digest: what to hash it with, if it is to be hashed.
    """

    def __init__(self, handle: int, digest: Digest | None = None) -> None:
        self._handle = handle
        self._digest = digest

    def read(self, size: int = INPUT_BYTES) -> bytes:
        """The next bytes; empty at the end.

        Raises:
            DiskFailure: they cannot be read.
        """
        try:
            data = os.read(self._handle, size)
        except OSError as error:
            raise DiskFailure("cannot read the archive", error) from error
        if self._digest is not None:
            self._digest.update(data)
        return data


def unpacked_blocks(file: ArchiveFile, *, most_bytes: int) -> Iterator[bytes]:
    """The content of a gzipped or plain tar file, in blocks of at most 512 KiB, none empty.

    Args:
        file: at its beginning; read to its end.
        most_bytes: how much content is allowed.

    Raises:
        Refusal: the file is of another format, cut, damaged, larger unpacked than allowed, or
            followed by something else.
        DiskFailure: it cannot be read.
    """
    head = file.read()
    if head.startswith(_GZIP):
        blocks = _gunzipped(file, head)
    else:
        _refuse_other_formats(head)
        blocks = _plain(file, head)
    left = most_bytes
    for block in blocks:
        left -= len(block)
        if left < 0:
            raise Refusal(
                "too_large_unpacked",
                f"the archive holds more than {most_bytes} bytes unpacked; raise the limit if it "
                "is meant to be so large",
            )
        yield block


def _refuse_other_formats(head: bytes) -> None:
    advice = "send a gzipped tar (.tar.gz)"
    if not head:
        raise Refusal("empty_file", f"the file is empty; {advice}")
    start = head[:1024].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise Refusal("wrong_format", f"the file is a page (HTML or XML), not an archive; {advice}")
    for magic, what in _FORMATS:
        if head.startswith(magic):
            raise Refusal("wrong_format", f"the file is {what}; {advice}")
    # A plain tar begins with a header, whose checksum field follows its name, mode, ids and times.
    if len(head) < 512 or (head[257:262] != b"ustar" and not _is_v7(head)):
        raise Refusal("wrong_format", f"the file is neither gzip nor tar; {advice}")


def _is_v7(head: bytes) -> bool:
    digits = head[148:156].strip(b" \x00")
    if not digits or digits.strip(b"01234567"):
        return not any(head[:512])  # an archive of nothing: only its end marker
    return int(digits, 8) == sum(head[:512]) - sum(head[148:156]) + 8 * 0x20


def _plain(file: ArchiveFile, head: bytes) -> Iterator[bytes]:
    while head:
        yield head
        head = file.read(OUTPUT_BYTES)


def _gunzipped(file: ArchiveFile, data: bytes) -> Iterator[bytes]:
    while data:
        data = _checked_head(file, data)
        # The decompressor itself checks the CRC-32 and the length of each member.
        member = IgzipDecompressor(flag=DECOMP_GZIP)
        while not member.eof:
            if member.needs_input and not data:
                data = file.read()
                if not data:
                    raise Refusal(
                        "gzip_truncated",
                        "the gzip data ends before its end, so the archive was cut",
                    )
            try:
                block = member.decompress(data, OUTPUT_BYTES)
            except IsalError as error:  # type: ignore[misc]  # its stub does not say that it is one
                raise Refusal("gzip_damaged", f"the gzip data is damaged ({error})") from None
            data = b""
            if block:
                yield block
        data = _next_member(file, member.unused_data)


def _checked_head(file: ArchiveFile, data: bytes) -> bytes:
    """The data, with enough of it to see the fixed part of a member's header (RFC 1952, 2.3)."""
    while len(data) < 10:
        more = file.read()
        if not more:
            raise Refusal(
                "gzip_truncated", "the gzip data ends in a header, so the archive was cut"
            )
        data += more
    if data[2] != 8 or data[3] & 0xE0:
        raise Refusal("gzip_damaged", "the header of the gzip data is of no known form")
    return data


def _next_member(file: ArchiveFile, data: bytes) -> bytes:
    """What follows a member: another one, or zeros to the end of the file (then nothing)."""
    data = data or file.read()
    if len(data) == 1:
        data += file.read()
    if data.startswith(_GZIP):
        return data
    while data:
        if data.count(0) != len(data):
            raise Refusal("gzip_trailing", "something follows the end of the gzip data")
        data = file.read()
    return b""
