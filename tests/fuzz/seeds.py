"""Sound archives of every format, for fuzzers and property tests to start from."""

from __future__ import annotations

from tests.support.archives import (
    GNU,
    V7,
    file,
    folder,
    hardlink,
    header,
    long_name,
    padded,
    pax,
    plain,
    symlink,
)

LONG_NAME = b"folder/" + b"n" * 120
LONG_LINK = b"t/" * 80 + b"t"

ARCHIVES = {
    "posix": plain(
        folder(b"d/"),
        file(b"d/f", b"x" * 700, mode=0o755),
        symlink(b"d/l", b"f"),
        hardlink(b"d/h", b"d/f"),
        file(b"last", b"content of the last file", prefix=b"pre/fix"),
    ),
    "gnu": plain(
        folder(b"d/", magic=GNU),
        long_name(LONG_NAME),
        file(LONG_NAME[:100], b"y" * 513, magic=GNU),
        long_name(LONG_LINK, b"K"),
        header(b"link", kind=b"2", link=b"t", magic=GNU),
        file(b"d/f", b"z", magic=GNU),
    ),
    "pax": plain(
        pax({"comment": b"0123456789abcdef"}, b"g"),
        folder(b"top/"),
        pax({"path": LONG_NAME, "mtime": b"1600000000.5"}),
        file(LONG_NAME[:100], b"y" * 513),
        pax({"size": b"5", "linkpath": b"ignored"}),
        header(b"sized") + padded(b"sized"),
        pax({"linkpath": LONG_LINK}),
        symlink(b"link", b"t"),
    ),
    "v7": plain(
        header(b"d/", kind=b"\x00", magic=V7),
        file(b"d/f", b"x" * 600, kind=b"\x00", magic=V7),
        header(b"h", kind=b"1", link=b"d/f", magic=V7),
    ),
}
SEEDS = tuple(ARCHIVES.values())
