"""Archives built byte by byte, so that they may be as wrong as a test needs them."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Mapping

BLOCK = 512
END = bytes(2 * BLOCK)


def header(
    name: bytes,
    *,
    kind: bytes = b"0",
    size: int | bytes = 0,
    mode: int = 0o644,
    mtime: int | bytes = 1_700_000_000,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """One header block. Numbers given as bytes are put in as they are."""
    block = bytearray(BLOCK)
    block[0 : len(name)] = name
    block[100:108] = b"%07o\x00" % mode
    block[108:116] = b"%07o\x00" % 1234
    block[116:124] = b"%07o\x00" % 1234
    block[124:136] = size if isinstance(size, bytes) else b"%011o\x00" % size
    block[136:148] = mtime if isinstance(mtime, bytes) else b"%011o\x00" % mtime
    block[148:156] = b" " * 8
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


def pax(records: Mapping[str, bytes], kind: bytes = b"x") -> bytes:
    """A pax header with these records."""
    payload = b""
    for key, value in records.items():
        rest = b" " + key.encode() + b"=" + value + b"\n"
        length = len(rest)
        while length != len(rest) + len(str(length)):
            length = len(rest) + len(str(length))
        payload += str(length).encode() + rest
    return raw_extension(payload, kind)


def raw_extension(payload: bytes, kind: bytes) -> bytes:
    """A header that extends the next one, with any payload."""
    return header(b"extension", kind=kind, size=len(payload)) + padded(payload)


def long_name(name: bytes, kind: bytes = b"L") -> bytes:
    """A GNU long name (or, with K, a long link)."""
    return header(b"././@LongLink", kind=kind, size=len(name) + 1, magic=b"ustar  \x00") + padded(
        name + b"\x00"
    )


def packed(*parts: bytes, end: bytes = END) -> bytes:
    """Entries, the end marker, and gzip around them."""
    return gzip.compress(b"".join(parts) + end, mtime=0)


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
