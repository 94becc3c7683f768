"""Archives built byte by byte, so that they may be as wrong as a test needs them."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

BLOCK = 512
END = bytes(2 * BLOCK)
MEBIBYTE = 1 << 20
GNU = b"ustar  \x00"
"""Magic and version of GNU tar; the default of `header` is that of POSIX."""
V7 = bytes(8)
"""What stands there in an archive of the seventh edition of Unix: nothing."""


def header(
    name: bytes,
    *,
    kind: bytes = b"0",
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    mtime: int | bytes = 1_700_000_000,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header block. Numbers given as bytes are put in as they are."""
    assert len(name) <= 100
    assert len(link) <= 100
    assert len(prefix) <= 155
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:108] = mode if isinstance(mode, bytes) else b"%07o\x00" % mode
    block[108:116] = b"%07o\x00" % 1234
    block[116:124] = b"%07o\x00" % 1234
    block[124:136] = size if isinstance(size, bytes) else b"%011o\x00" % size
    block[136:148] = mtime if isinstance(mtime, bytes) else b"%011o\x00" % mtime
    block[148:156] = b" " * 8  # counted as blanks in the sum
    block[156:157] = kind
    block[157 : 157 + len(link)] = link
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = checksum or b"%06o\x00 " % sum(block)
    assert len(block) == BLOCK
    return bytes(block)


def padded(data: bytes) -> bytes:
    """Data filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def file(name: bytes, data: bytes = b"data\n", **fields: object) -> bytes:
    """A regular file."""
    return header(name, size=len(data), **fields) + padded(data)  # type: ignore[arg-type]


def folder(name: bytes, mode: int = 0o755, **fields: object) -> bytes:
    """A directory."""
    return header(name, kind=b"5", mode=mode, **fields)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes) -> bytes:
    """A symbolic link."""
    return header(name, kind=b"2", link=target, mode=0o777)


def hardlink(name: bytes, target: bytes) -> bytes:
    """A further name of a file."""
    return header(name, kind=b"1", link=target)


def base256(number: int, size: int = 12) -> bytes:
    """A number as GNU tar writes it where octal digits do not suffice."""
    field = bytearray(number.to_bytes(size, "big", signed=True))
    field[0] |= 0x80
    return bytes(field)


def pax_record(keyword: bytes, value: bytes) -> bytes:
    """One record, with its length in front, which counts its own digits too."""
    rest = b" " + keyword + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def pax(records: Mapping[str, bytes], kind: bytes = b"x") -> bytes:
    """A pax header with these records; with kind `g`, one for all entries that follow."""
    payload = b"".join(pax_record(key.encode(), value) for key, value in records.items())
    return raw_extension(payload, kind)


def raw_extension(payload: bytes, kind: bytes, **fields: object) -> bytes:
    """A header that extends the next one, with any payload."""
    fields = {"size": len(payload), **fields}
    return header(b"extension", kind=kind, **fields) + padded(payload)  # type: ignore[arg-type]


def long_name(name: bytes, kind: bytes = b"L", magic: bytes = GNU) -> bytes:
    """A GNU long name (or, with K, a long link)."""
    text = name + b"\x00"
    return header(b"././@LongLink", kind=kind, size=len(text), magic=magic) + padded(text)


def packed(*parts: bytes, end: bytes = END) -> bytes:
    """Entries, the end marker, and gzip around them."""
    return gzip.compress(b"".join(parts) + end, mtime=0)


def plain(*parts: bytes, end: bytes = END) -> bytes:
    """Entries and the end marker, without gzip."""
    return b"".join(parts) + end


def members(stream: bytes, cuts: Iterable[int]) -> bytes:
    """A stream as several gzip members, one after the other, cut at these bytes."""
    pairs = itertools.pairwise([0, *cuts, len(stream)])
    return b"".join(gzip.compress(stream[start:end], mtime=0) for start, end in pairs)


def write_zeros(path: Path, before: bytes, mebibytes: int, after: bytes = END) -> None:
    """Write a gzip file of `before`, so many MiB of zeros, and `after`.

    The zeros are compressed once and repeated as gzip members: 10 GiB of them take 10 MB and no
    time.
    """
    each = 16
    zeros = gzip.compress(bytes(each * MEBIBYTE), mtime=0)
    rest = gzip.compress(bytes(mebibytes % each * MEBIBYTE), mtime=0)
    with path.open("wb") as target:
        target.write(gzip.compress(before, mtime=0))
        for _ in range(mebibytes // each):
            target.write(zeros)
        target.write(rest)
        target.write(gzip.compress(after, mtime=0))


def write_packed(path: Path, parts: Iterable[bytes], end: bytes = END, level: int = 1) -> None:
    """Write a gzip file of many entries without holding them in memory."""
    packer = zlib.compressobj(level, wbits=31)
    with path.open("wb") as target:
        for part in parts:
            target.write(packer.compress(part))
        target.write(packer.compress(end) + packer.flush())


def source_archive(files: Mapping[str, bytes], *, mtime: int = 1_700_000_000) -> bytes:
    """An ordinary gzipped tarball of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = mtime
            archive.addfile(info, io.BytesIO(data))
    return gzip.compress(buffer.getvalue(), mtime=0)


def digest(data: bytes) -> str:
    """SHA-256, lower-case hex."""
    return hashlib.sha256(data).hexdigest()
