"""Unpacking gzip (RFC 1952) to the end: every member, every checksum, nothing behind."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from io import FileIO
from typing import Final

from buttercup_dagster.sources.errors import storing
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.tar import ArchiveError

_INPUT_BYTES: Final = 64 * 1024
_OUTPUT_BYTES: Final = 1024 * 1024
_GZIP_WINDOW: Final = 31

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


def unpacked_blocks(file: FileIO, *, most_bytes: int, stop: Stop) -> Iterator[bytes]:
    """The content of a gzipped or plain tar file, in blocks of at most 1 MiB.

    Args:
        file: at its beginning.
        most_bytes: how much content is allowed.
        stop: ends the reading.

    Raises:
        ArchiveError: the file is of another format, cut, damaged, larger unpacked than allowed,
            or followed by something else.
        Stopped, DeadlinePassed: by `stop`.
    """
    head = _read(file)
    if head.startswith(b"\x1f\x8b"):
        blocks = _gunzipped(file, head, stop)
    else:
        _refuse_other_formats(head)
        blocks = _plain(file, head)
    left = most_bytes
    for block in blocks:
        stop.check()
        left -= len(block)
        if left < 0:
            raise ArchiveError(
                f"the archive holds more than {most_bytes} bytes unpacked; raise the limit if it "
                "is meant to be so large",
                code="too_large_unpacked",
            )
        yield block


def _read(file: FileIO, size: int = _INPUT_BYTES) -> bytes:
    with storing("cannot read the archive"):
        return file.read(size)


def _refuse_other_formats(head: bytes) -> None:
    advice = "send a gzipped tar (.tar.gz)"
    if not head:
        raise ArchiveError(f"the file is empty; {advice}", code="empty_file")
    start = head[:1024].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ArchiveError(
            f"the file is a page (HTML or XML), not an archive; {advice}", code="wrong_format"
        )
    for magic, what in _FORMATS:
        if head.startswith(magic):
            raise ArchiveError(f"the file is {what}; {advice}", code="wrong_format")
    # A plain tar begins with a header, whose checksum field follows its name, mode, ids and times.
    if len(head) < 512 or (head[257:262] != b"ustar" and not _is_v7(head)):
        raise ArchiveError(f"the file is neither gzip nor tar; {advice}", code="wrong_format")


def _is_v7(head: bytes) -> bool:
    digits = head[148:156].strip(b" \x00")
    if not digits or digits.strip(b"01234567"):
        return not any(head[:512])  # an archive of nothing: only its end marker
    return int(digits, 8) == sum(head[:512]) - sum(head[148:156]) + 8 * 0x20


def _plain(file: FileIO, head: bytes) -> Iterator[bytes]:
    while head:
        yield head
        head = _read(file, _OUTPUT_BYTES)


def _gunzipped(file: FileIO, data: bytes, stop: Stop) -> Iterator[bytes]:
    while data:
        # zlib itself checks the header, the CRC-32 and the length of each member.
        member = zlib.decompressobj(_GZIP_WINDOW)
        while not member.eof:
            if not data:
                data = _read(file)
                if not data:
                    raise ArchiveError(
                        "the gzip data ends before its end, so the archive was cut",
                        code="gzip_truncated",
                    )
            try:
                block = member.decompress(data, _OUTPUT_BYTES)
            except zlib.error as error:
                raise ArchiveError(
                    f"the gzip data is damaged ({error})", code="gzip_damaged"
                ) from None
            data = member.unconsumed_tail
            if block:
                yield block
            else:
                stop.check()
        data = _next_member(file, member.unused_data)


def _next_member(file: FileIO, data: bytes) -> bytes:
    """What follows a member: another one, or zeros to the end of the file (then nothing)."""
    data = data or _read(file)
    if len(data) == 1:
        data += _read(file)
    if data.startswith(b"\x1f\x8b"):
        return data
    while data:
        if data.count(0) != len(data):
            raise ArchiveError("something follows the end of the gzip data", code="gzip_trailing")
        data = _read(file)
    return b""
