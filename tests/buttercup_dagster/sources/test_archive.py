from __future__ import annotations

import gzip
import io
import itertools
import os
import random
import stat
import subprocess
import tarfile
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from buttercup_dagster.sources.archive import ArchiveError, Limits, Manifest, unpack
from buttercup_dagster.sources.errors import (
    DeadlinePassed,
    LayoutError,
    SourceError,
    Stopped,
    StorageError,
)
from buttercup_dagster.sources.stop import Stop
from tests.support.archives import (
    BLOCK,
    END,
    file,
    folder,
    hardlink,
    header,
    long_name,
    packed,
    padded,
    pax,
    raw_extension,
    symlink,
)
from tests.support.trees import difference

Unpack = Callable[..., Manifest]
DEEP = b"/".join([b"d"] * 3000)


def picture_of(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: type, mode, size, content, mtime, names of one file."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content: object = None
        if path.is_symlink():
            content = str(path.readlink())
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(root))] = (
            status.st_mode,
            status.st_nlink,
            status.st_mtime_ns,
            content,
        )
    return found


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    root = tmp_path / "sandbox"
    (root / "out").mkdir(parents=True)
    (root / "evildir").mkdir()
    sentinel = root / "out" / "sentinel"
    sentinel.write_text("untouched")
    sentinel.chmod(0o640)
    os.utime(sentinel, (1, 1))
    return root


@pytest.fixture
def unpacked(sandbox: Path, tmp_path: Path) -> Unpack:
    """Unpack into `sandbox/tree`; nothing else there may change, and no error may leave a trace."""

    def run(data: bytes, limits: Limits | None = None, stop: Stop | None = None) -> Manifest:
        archive = tmp_path / "archive"
        archive.write_bytes(data)
        before = picture_of(sandbox)
        tree = sandbox / "tree"
        handles = list(Path("/proc/self/fd").iterdir())
        try:
            manifest = unpack(archive, tree, limits or Limits(), stop=stop)
        except BaseException:
            assert picture_of(sandbox) == before
            assert len(list(Path("/proc/self/fd").iterdir())) == len(handles)
            raise
        outside = {
            name: state
            for name, state in picture_of(sandbox).items()
            if name.partition("/")[0] != "tree"
        }
        assert outside == before
        assert manifest.differences(tree) == []
        return manifest

    return run


def octal(number: int) -> bytes:
    return b"%011o\x00" % number


REFUSED: dict[str, tuple[str, bytes]] = {
    # names
    "climbs": ("climbing_name", packed(file(b"../out/evil"))),
    "climbs inside": ("climbing_name", packed(folder(b"a/"), file(b"a/../b"))),
    "climbs through": ("climbing_name", packed(file(b"a/../../out/evil"))),
    "climbs into itself": ("climbing_name", packed(file(b"../evildir/../tree/sub/f"))),
    "sibling": ("climbing_name", packed(file(b"../treeevil"))),
    "dots": ("climbing_name", packed(file(b"././//./.."))),
    "absolute": ("absolute_name", packed(file(b"/etc/evil"))),
    "absolute twice": ("absolute_name", packed(file(b"//etc/evil"))),
    "absolute with dots": ("absolute_name", packed(file(b"///./abs"))),
    "slash": ("absolute_name", packed(folder(b"/"))),
    "empty": ("empty_name", packed(file(b""))),
    "root as a file": ("empty_name", packed(file(b"."))),
    "newline": ("control_character", packed(file(b"a\nb"))),
    "escape": ("control_character", packed(file(b"a\x1b[31mb"))),
    "delete": ("control_character", packed(file(b"a\x7f"))),
    "nul in pax": ("control_character", packed(pax({"path": b"good\0../evil"}), file(b"x"))),
    "component too long": ("name_too_long", packed(pax({"path": b"x" * 256}), file(b"x"))),
    "path too long": (
        "name_too_long",
        packed(pax({"path": b"/".join([b"y" * 200] * 25)}), file(b"x")),
    ),
    "too deep": ("too_deep", packed(pax({"path": DEEP}), file(b"x"))),
    "dots across byte 100": (
        "climbing_name",
        packed(long_name(b"a" * 98 + b"/../../out/evil"), file(b"a", magic=b"ustar  \x00")),
    ),
    # links
    "through an absolute link": (
        "below_symlink",
        packed(symlink(b"l", b"/tmp"), file(b"l/evil")),
    ),
    "through a relative link": (
        "below_symlink",
        packed(symlink(b"l", b"../out"), file(b"l/evil")),
    ),
    "through a link inside": (
        "below_symlink",
        packed(folder(b"d/"), symlink(b"l", b"d"), file(b"l/x")),
    ),
    "link after what lies below it": ("clash", packed(file(b"l/x"), symlink(b"l", b"../out"))),
    "two hops": (
        "below_symlink",
        packed(
            folder(b"a/b/c/"),
            symlink(b"a/b/c/up", b"../.."),
            symlink(b"a/b/escape", b"c/up/../../out"),
            file(b"a/b/escape/evil"),
        ),
    ),
    "below a circle": (
        "below_symlink",
        packed(symlink(b"a", b"b"), symlink(b"b", b"a"), file(b"a/x")),
    ),
    "link then file": (
        "duplicate",
        packed(symlink(b"x", b"../out/sentinel"), file(b"x")),
    ),
    "link then folder": (
        "clash",
        packed(symlink(b"x", b"../out"), folder(b"x", mode=0o777)),
    ),
    "folder then link": ("clash", packed(folder(b"x/"), symlink(b"x", b"../out"), file(b"x/y"))),
    "link named like a folder": ("bad_name", packed(symlink(b"dd/", b"../out"))),
    "link named dot": ("empty_name", packed(symlink(b".", b"../out"))),
    "link without a name": ("empty_name", packed(symlink(b"", b"../out"))),
    "link without a target": ("empty_link", packed(symlink(b"l", b""))),
    "link with a newline": ("bad_link", packed(symlink(b"l", b"a\nb"))),
    "hard link out": ("climbing_name", packed(hardlink(b"h", b"../out/sentinel"))),
    "hard link absolute": ("absolute_name", packed(hardlink(b"h", b"/etc/passwd"))),
    "hard link out, then file": (
        "duplicate",
        packed(hardlink(b"h", b"../out/sentinel"), file(b"h")),
    ),
    "hard link to a link": (
        "hardlink_target",
        packed(symlink(b"a/b/c", b"../../../out/sentinel"), hardlink(b"h", b"a/b/c")),
    ),
    "hard link through a link": (
        "hardlink_target",
        packed(symlink(b"l", b"../out"), hardlink(b"h", b"l/sentinel")),
    ),
    "hard link to a folder": ("hardlink_target", packed(folder(b"d/"), hardlink(b"h", b"d"))),
    "hard link to the root": ("hardlink_target", packed(hardlink(b"h", b"."))),
    "hard link to nothing": ("hardlink_target", packed(hardlink(b"h", b"nothing"))),
    "hard link to itself": ("hardlink_target", packed(hardlink(b"h", b"h"))),
    "hard links in a circle": (
        "hardlink_target",
        packed(hardlink(b"a", b"b"), hardlink(b"b", b"a")),
    ),
    # types and duplicates
    "character device": ("special_file", packed(header(b"dev", kind=b"3"))),
    "block device": ("special_file", packed(header(b"dev", kind=b"4"))),
    "fifo": ("special_file", packed(header(b"pipe", kind=b"6"))),
    "unknown type": ("unsupported_type", packed(header(b"z", kind=b"Z"))),
    "volume": ("unsupported_type", packed(header(b"v", kind=b"V"))),
    "multi-volume": ("unsupported_type", packed(header(b"m", kind=b"M"))),
    "sparse": ("sparse", packed(header(b"s", kind=b"S", magic=b"ustar  \x00"))),
    "sparse in pax": ("sparse", packed(pax({"GNU.sparse.size": b"1099511627776"}), file(b"s"))),
    "file twice": ("duplicate", packed(file(b"x"), file(b"./x"))),
    "folder twice, differently": ("duplicate", packed(folder(b"d/"), folder(b"d/", mode=0o700))),
    "file then below it": ("clash", packed(file(b"x"), file(b"x/y"))),
    "folder then file": ("clash", packed(folder(b"x/"), file(b"x"))),
    "file then folder": ("clash", packed(file(b"x"), folder(b"x/"))),
    "folder with data": (
        "unexpected_data",
        packed(header(b"d/", kind=b"5", size=5) + padded(b"data\n")),
    ),
    "link with data": (
        "unexpected_data",
        packed(header(b"l", kind=b"2", link=b"x", size=5) + padded(b"data\n")),
    ),
    # headers
    "second checksum": ("bad_checksum", packed(file(b"a"), header(b"b", checksum=b"000001\x00 "))),
    "checksum no number": ("bad_number", packed(header(b"b", checksum=b"zzzzzz\x00 "))),
    "magic": ("bad_magic", packed(header(b"b", magic=b"ustar\x00\x00\x00"))),
    "negative size": ("bad_size", packed(header(b"n", size=b"\xff" * 12))),
    "huge size": ("bad_size", packed(header(b"n", size=b"\x80\x00\x00\x00" + b"\xff" * 8))),
    "largest size": (
        "file_too_large",
        packed(header(b"n", size=b"\x80\x00\x00\x00\x7f" + b"\xff" * 7)),
    ),
    "junk in size": ("bad_number", packed(header(b"n", size=b"12x45678901\x00"))),
    "negative size of an extension": (
        "bad_size",
        packed(header(b"x", kind=b"x", size=b"\xff" * 12)),
    ),
    "pax twice": (
        "repeated_extension",
        packed(pax({"path": b"a"}), pax({"path": b"b"}), file(b"c")),
    ),
    "long name twice": ("repeated_extension", packed(long_name(b"a"), long_name(b"b"), file(b"c"))),
    "long name then pax": (
        "repeated_extension",
        packed(long_name(b"a"), pax({"size": b"5"}), file(b"c")),
    ),
    "pax then long name": (
        "mixed_extensions",
        packed(pax({"size": b"1"}), long_name(b"b"), file(b"c")),
    ),
    "pax keyword twice": (
        "repeated_pax_keyword",
        packed(raw_extension(b"9 path=a\n9 path=b\n", b"x"), file(b"c")),
    ),
    "pax length 0": ("bad_pax", packed(raw_extension(b"0 path=a\n", b"x"), file(b"c"))),
    "pax length too long": ("bad_pax", packed(raw_extension(b"99 path=a\n", b"x"), file(b"c"))),
    "pax length signed": ("bad_pax", packed(raw_extension(b"+9 path=a\n", b"x"), file(b"c"))),
    "pax length endless": ("bad_pax", packed(raw_extension(b"1" * 10**6, b"x"), file(b"c"))),
    "pax without equals": ("bad_pax", packed(raw_extension(b"7 path\n", b"x"), file(b"c"))),
    "pax keyword of two lines": (
        "bad_pax",
        packed(raw_extension(b"10 pa\nh=ab\n", b"x"), file(b"c")),
    ),
    "pax without end": ("bad_pax", packed(raw_extension(b"9 path=ab", b"x"), file(b"c"))),
    "pax size": ("bad_size", packed(pax({"size": b"-1"}), file(b"c"))),
    "pax path empty": ("empty_name", packed(pax({"path": b""}), file(b"c"))),
    "long name without end": (
        "bad_name",
        packed(raw_extension(b"../cut", b"L"), file(b"c")),
    ),
    "global path": ("global_pax", packed(pax({"path": b"x"}, b"g"), file(b"c"))),
    "global size": ("global_pax", packed(pax({"size": b"1"}, b"g"), file(b"c"))),
    "large long name": ("extension_too_large", packed(long_name(b"a" * (64 << 20)), file(b"c"))),
    "large pax": ("extension_too_large", packed(pax({"path": b"a" * (2 << 20)}), file(b"c"))),
    "many extensions": (
        "too_many_extensions",
        packed(*[pax({"comment": b"x"}, b"g")] * 9, file(b"c")),
    ),
    "dangling pax": ("dangling_extension", packed(file(b"a"), pax({"path": b"x"}))),
    "dangling long name": ("dangling_extension", packed(file(b"a"), long_name(b"x"))),
    # framing
    "no end marker": ("missing_end", packed(file(b"a"), end=b"")),
    "cut in a header": ("truncated", packed(file(b"a"), end=header(b"b")[:100])),
    "cut in data": ("truncated", packed(file(b"a"), header(b"b", size=5000), end=b"x" * 512)),
    "cut in padding": ("truncated", packed(file(b"a")[:-10], end=b"")),
    "second archive": ("trailing_data", packed(file(b"a"), end=END + file(b"b") + END)),
    "bytes after one zero block": (
        "trailing_data",
        packed(file(b"a"), end=bytes(BLOCK) + file(b"b")),
    ),
    "pax size smaller": (
        "bad_number",
        packed(pax({"size": b"0"}), file(b"a", b"x" * 600)),
    ),
    "garbage after gzip": ("gzip_trailing", packed(file(b"a")) + b"garbage"),
    "one byte after gzip": ("gzip_trailing", packed(file(b"a")) + b"g"),
    "gzip damaged": (
        "gzip_damaged",
        packed(file(b"a", b",".join(b"%d" % n for n in range(9000))))[:3000] + b"\xff" * 3000,
    ),
    # formats
    "empty file": ("empty_file", b""),
    "zip": ("wrong_format", b"PK\x03\x04" + bytes(600)),
    "xz": ("wrong_format", b"\xfd7zXZ\x00" + bytes(600)),
    "zstd": ("wrong_format", b"\x28\xb5\x2f\xfd" + bytes(600)),
    "bzip2": ("wrong_format", b"BZh9" + b"1" * 600),
    "page": ("wrong_format", b"\n<!DOCTYPE html><html>" + b" " * 600),
    "text": ("wrong_format", b"not found\n" * 100),
    "gzip of text": ("bad_number", gzip.compress(b"not an archive\n" * 100)),
    "gzip of nothing": ("missing_end", gzip.compress(b"")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, unpacked: Unpack) -> None:
    code, data = REFUSED[case]
    with pytest.raises(ArchiveError) as caught:
        unpacked(data)
    error = caught.value
    assert error.code == code, error
    assert not error.retryable
    assert str(error).isprintable()


def test_error_tells_where(unpacked: Unpack) -> None:
    with pytest.raises(ArchiveError) as caught:
        unpacked(packed(file(b"fine"), file(b"../\x1bevil")))
    error = caught.value
    assert (error.entry_number, error.offset, error.name) == (2, 1024, "../\\x1bevil")
    assert "entry 2 at byte 1024, '../\\x1bevil'" in str(error)


@pytest.mark.parametrize("plain", [False, True])
def test_proper_prefixes_are_refused(unpacked: Unpack, plain: bool) -> None:
    whole = packed(folder(b"d/"), file(b"d/f", os.urandom(700)), symlink(b"d/l", b"f"))
    # A plain archive with one of its two zero blocks counts as whole.
    data = gzip.decompress(whole) if plain else whole
    last = len(data) - BLOCK if plain else len(data)
    for length in range(0, last, 7 if plain else 1):
        with pytest.raises(ArchiveError):
            unpacked(data[:length])
    with pytest.raises(ArchiveError):
        unpacked(data[: last - 1])


@pytest.mark.parametrize("at", [-8, -5, -4, -1])
def test_wrong_crc_or_length_is_noticed(unpacked: Unpack, at: int) -> None:
    data = bytearray(packed(file(b"a")))
    data[at] ^= 1
    with pytest.raises(ArchiveError) as caught:
        unpacked(bytes(data))
    assert caught.value.code == "gzip_damaged"


def test_accepted_oddities(unpacked: Unpack, sandbox: Path) -> None:
    parts = [
        pax({"comment": b"0123456789abcdef"}, b"g"),
        folder(b"./", mode=0),
        folder(b"no-rights", mode=0),
        folder(b"sticky/", mode=0o1777),
        folder(b"no-rights/"[:-1], mode=0),
        file(b"no-rights/file", mode=0),
        file(b"set-id", mode=0o6777),
        file(b"implied//parent/./file"),
        file(b"contiguous", kind=b"7"),
        file(b"caf\xe9.c"),
        file(b" blank and \\ back\\slash "),
        file(b"..."),
        file(b"v7", magic=bytes(8)),
        file(b"negative-time", mtime=b"\xff" * 12),
        file(b"late", mtime=b"\x80\x00\x00\x00" + b"\xff" * 8),
        pax({"mtime": b"nan"}),
        file(b"nan-time"),
        pax({"mtime": b"1700000000.999"}),
        file(b"fraction"),
        pax({"path": b"p/" + b"x" * 250, "hdrcharset": b"BINARY"}),
        file(b"short"),
        header(b"last", prefix=b"pre/fix", size=0),
        header(b"", prefix=b"only/prefix/", kind=b"0"),
        long_name(b"L/" + b"y" * 120 + b"/z"),
        file(b"L/" + b"y" * 97 + b"/", b"long\n", kind=b"\x00", magic=b"ustar  \x00"),
        header(b"old-folder/", kind=b"\x00", magic=bytes(8)),
        hardlink(b"early-name", b"later-file"),
        file(b"later-file"),
        hardlink(b"third-name", b"early-name"),
        symlink(b"dangling", b"no/where"),
        symlink(b"chain", b"implied/parent/../parent/file"),
        symlink(b"circle-a", b"circle-b"),
        symlink(b"circle-b", b"circle-a"),
        symlink(b"root", b"."),
        symlink(b"implied/up", b".."),
    ]
    manifest = unpacked(packed(*parts, end=bytes(BLOCK)))
    tree = sandbox / "tree"

    def mode(name: str) -> int:
        return stat.S_IMODE((tree / name).stat().st_mode)

    assert mode("") == mode("no-rights") == mode("sticky") == mode("implied") == 0o755
    assert mode("set-id") == 0o755
    assert mode("no-rights/file") == 0o644
    assert (tree / "negative-time").stat().st_mtime == 0
    assert (tree / "nan-time").stat().st_mtime == 1_700_000_000
    assert (tree / "fraction").stat().st_mtime_ns == 1_700_000_000 * 10**9
    assert (tree / "L" / ("y" * 120) / "z").read_text() == "long\n"
    assert (tree / "p" / ("x" * 250)).is_file()
    assert (tree / "pre/fix/last").is_file()
    assert (tree / "only/prefix").is_dir()
    assert (tree / "old-folder").is_dir()
    assert (tree / os.fsdecode(b"caf\xe9.c")).is_file()
    inodes = {(tree / n).stat().st_ino for n in ("early-name", "later-file", "third-name")}
    assert len(inodes) == 1
    assert manifest.hardlinks == 2
    assert manifest.symlinks == 6
    assert manifest.dropped_links == ()
    assert str((tree / "chain").readlink()) == "implied/parent/../parent/file"


def test_links_that_lead_out_are_left_out(unpacked: Unpack, sandbox: Path) -> None:
    long = [b"n%03d" % n + b"x" * 243 for n in range(16)]
    manifest = unpacked(
        packed(
            file(b"a/kept"),
            symlink(b"absolute", b"/etc/passwd"),
            symlink(b"a/relative", b"../../out"),
            symlink(b"a/b/up", b"../.."),
            symlink(b"a/escape", b"b/up/../out"),
            symlink(b"through", b"absolute"),
            symlink(b"x", b"."),
            symlink(b"link", b"x/.."),
            symlink(b"again", b"link/../a/kept"),
            symlink(b"twice-through-x", b"x/link"),
            symlink(b"inside", b"a/../a/kept"),
            pax({"path": b"/".join(long) + b"/f"}),
            file(b"f"),
            *[symlink(b"s%02d" % n, b"." if n == 0 else b"s%02d" % (n - 1)) for n in range(60)],
            pax({"path": b"max", "linkpath": b"/".join(long) + b"/.." * 17 + b"/out"}),
            symlink(b"max", b""),
        )
    )
    dropped = set(manifest.dropped_links)
    assert {
        "absolute",
        "a/relative",
        "a/escape",
        "through",
        "link",
        "again",
        "twice-through-x",
        "max",
    } <= dropped
    # More links in a row than the system follows cannot be judged, so they are left out too.
    assert {name for name in dropped if name.startswith("s")} == {f"s{n}" for n in range(40, 60)}
    tree = sandbox / "tree"
    assert not any(os.path.lexists(tree / name) for name in dropped)
    assert str((tree / "inside").readlink()) == "a/../a/kept"
    assert str((tree / "a/b/up").readlink()) == "../.."


def test_many_tangled_links_end(unpacked: Unpack) -> None:
    doubling = [symlink(b"l%02d" % n, b"/".join([b"l%02d" % (n - 1)] * 9)) for n in range(1, 60)]
    unpacked(packed(folder(b"l00/"), *doubling))


def test_several_gzip_members_and_zeros_behind(unpacked: Unpack, sandbox: Path) -> None:
    plain = gzip.decompress(packed(file(b"a", b"A" * 3000), file(b"b")))
    cuts = [0, 100, 512, 700, len(plain)]
    members = [gzip.compress(plain[a:b]) for a, b in itertools.pairwise(cuts)]
    assert unpacked(b"".join([*members, gzip.compress(b""), bytes(1000)])).files == 2


def test_plain_tar(unpacked: Unpack) -> None:
    assert unpacked(gzip.decompress(packed(file(b"a")))).files == 1


# ---- limits


def test_limits(unpacked: Unpack) -> None:
    zeros = packed(file(b"zeros", bytes(5_000_000)))
    for code, data, limits in [
        ("too_large_unpacked", zeros, Limits(total_bytes=1_000_000)),
        ("too_large_unpacked", zeros, Limits(ratio=10, ratio_floor_bytes=0)),
        ("file_too_large", zeros, Limits(file_bytes=4_999_999)),
        ("too_many_entries", packed(*[file(b"%d" % n) for n in range(11)]), Limits(entries=10)),
        ("too_many_entries", packed(file(b"a/b/c/d/e")), Limits(entries=4)),
        ("names_too_long", packed(symlink(b"a", b"x" * 90)), Limits(name_bytes=90)),
        ("names_too_long", packed(file(b"a/b/c/d/e")), Limits(name_bytes=24)),
    ]:
        with pytest.raises(ArchiveError) as caught:
            unpacked(data, limits)
        assert caught.value.code == code


def test_total_limit_counts_what_is_not_written_too(unpacked: Unpack) -> None:
    data = packed(*[pax({"comment": b"x" * 900_000}, b"g") + file(b"%d" % n) for n in range(9)])
    with pytest.raises(ArchiveError, match="holds more than"):
        unpacked(data, Limits(total_bytes=1_000_000))


@pytest.mark.parametrize("deadline", [False, True])
def test_stop_ends_a_long_unpacking(unpacked: Unpack, deadline: bool) -> None:
    block = zlib.compressobj(1, wbits=31)
    data = block.compress(header(b"big", size=b"\x80" + (8 << 30).to_bytes(11, "big")))
    piece = bytes(1 << 24)
    for _ in range(64):
        data += block.compress(piece)
    data += block.flush()
    stop = Stop(int(time.time() * 1000) + 300 if deadline else None)
    timer = threading.Timer(0.3, stop.request, ["cancelled"])
    if not deadline:
        timer.start()
    with pytest.raises((Stopped, DeadlinePassed)):
        unpacked(data, stop=stop)
    timer.cancel()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    options = "size=1m,nr_inodes=20"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "x", disk], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        archive = tmp_path / "a"
        for data in (
            packed(file(b"a", os.urandom(2_000_000))),
            packed(*[file(b"%d" % n) for n in range(40)]),
        ):
            archive.write_bytes(data)
            with pytest.raises(StorageError) as caught:
                unpack(archive, disk / "tree")
            assert caught.value.code == "no_space"
            assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


# ---- destination


def test_destination_must_be_new(tmp_path: Path) -> None:
    archive = tmp_path / "a"
    archive.write_bytes(packed(file(b"x")))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").touch()
    (tmp_path / "link").symlink_to(tmp_path / "full")
    for name in ("full", "link", "a"):
        with pytest.raises(LayoutError, match="exists already"):
            unpack(archive, tmp_path / name)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["kept"]
    with pytest.raises(StorageError):
        unpack(archive, tmp_path / "none" / "tree")
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "missing", tmp_path / "tree")


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_umask_has_no_say(unpacked: Unpack, sandbox: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        unpacked(packed(folder(b"d/", mode=0o777), file(b"d/f", mode=0o777), file(b"g/h")))
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (sandbox / "tree").rglob("*")}
    assert modes == {"d": 0o755, "f": 0o755, "g": 0o755, "h": 0o644}


# ---- the same as GNU tar


def rich_tree(root: Path) -> None:
    chance = random.Random(7)
    for number in range(60):
        place = root / "/".join(f"d{chance.randrange(3)}" for _ in range(chance.randrange(1, 6)))
        place.mkdir(parents=True, exist_ok=True)
        path = place / f"file {number} ü\\"
        path.write_bytes(chance.randbytes(chance.choice([0, 1, 511, 512, 513, 70_000])))
        path.chmod(chance.choice([0o644, 0o755, 0o664, 0o775, 0o4755, 0o600]))
        os.utime(path, (chance.randrange(2**31),) * 2)
    long = root / ("n" * 200) / ("m" * 200)
    long.mkdir(parents=True)
    (long / ("o" * 200)).write_text("long")
    (long / "link").symlink_to("/".join([".."] * 2 + ["d0"] * 60))
    (root / "relative").symlink_to("d0/../d0")
    (root / "dangling").symlink_to("no/where")
    os.link(long / ("o" * 200), root / "zz-second-name")
    (root / "empty").mkdir()
    (root / os.fsdecode(b"caf\xe9")).write_bytes(b"latin")
    for path in root.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(chance.choice([0o755, 0o775, 0o700]))
            os.utime(path, (1_600_000_000, 1_600_000_000))


@pytest.mark.parametrize(
    "form", ["gnu", "pax", "ustar", "v7", "oldgnu", "python-pax", "python-gnu"]
)
def test_tree_equals_that_of_gnu_tar(tmp_path: Path, form: str) -> None:
    source = tmp_path / "source"
    rich_tree(source)
    archive = tmp_path / "a.tar.gz"
    if form in {"ustar", "v7"}:  # they cannot hold the long names
        (source / ("n" * 200)).rename(source / "n")
        (source / "n" / ("m" * 200)).rename(source / "n" / "m")
        (source / "n/m" / ("o" * 200)).rename(source / "n/m/o")
        (source / "n/m/link").unlink()
    if form.startswith("python"):
        formats = {"python-pax": tarfile.PAX_FORMAT, "python-gnu": tarfile.GNU_FORMAT}
        with tarfile.open(archive, "w:gz", format=formats[form]) as writer:
            writer.add(source, ".")
    else:
        subprocess.run(["tar", f"--format={form}", "-C", source, "-czf", archive, "."], check=True)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run(["tar", "-C", theirs, "-xpzf", archive], check=True)
    manifest = unpack(archive, tmp_path / "ours")
    assert difference(tmp_path / "ours", theirs) == []
    assert not manifest.dropped_links
    assert manifest.differences(tmp_path / "ours") == []


def test_damaged_archives_never_become_another_tree(tmp_path: Path) -> None:
    """Whatever is accepted is what GNU tar makes of it; whatever is not leaves nothing."""
    buffer = io.BytesIO()
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    (source / "d" / "f").write_bytes(b"x" * 700)
    (source / "d" / "l").symlink_to("f")
    (source / ("n" * 120)).write_text("long")
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as writer:
        writer.add(source, "s")
    whole = buffer.getvalue()
    chance = random.Random(11)
    archive = tmp_path / "a.tar"
    for _ in range(150):
        data = bytearray(whole)
        data[chance.randrange(len(data))] = chance.randrange(256)
        archive.write_bytes(data)
        ours = tmp_path / "ours"
        try:
            unpack(archive, ours)
        except SourceError:
            assert not ours.exists()
            continue
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        subprocess.run(["tar", "-C", theirs, "-xpf", archive], check=True, capture_output=True)
        assert difference(ours, theirs) == []
        subprocess.run(["rm", "-r", ours, theirs], check=True)


# ---- manifest


def test_manifest(unpacked: Unpack, sandbox: Path, tmp_path: Path) -> None:
    made = unpacked(
        packed(
            folder(b"top/"),
            file(b"top/a", b"12345"),
            file(b"top/caf\xe9"),
            hardlink(b"top/b", b"top/a"),
            symlink(b"top/l", b"a"),
            symlink(b"top/out", b"/etc"),
        )
    )
    made.save(tmp_path / "m.json")
    manifest = Manifest.load(tmp_path / "m.json")
    assert manifest == made
    assert (manifest.files, manifest.directories) == (2, 1)
    assert (manifest.symlinks, manifest.hardlinks, manifest.bytes) == (1, 1, 10)
    assert manifest.top_level == ("top",)
    assert manifest.dropped_links == ("top/out",)
    assert manifest.first_names(2) == ("top", "top/a")
    assert all(name.isascii() for name in manifest.first_names())

    top = sandbox / "tree" / "top"

    def replace_by_folder(path: Path) -> None:
        path.unlink()
        path.mkdir()

    def replace_by_file(path: Path) -> None:
        path.unlink()
        path.write_text("x")

    changes: list[tuple[Callable[[], object], str]] = [
        ((top / "new").touch, "top/new: is not in the manifest"),
        ((top / "new").unlink, ""),
        (lambda: (top / "a").chmod(0o600), "top/a: has mode 0600 instead of 0644"),
        (lambda: (top / "a").chmod(0o644), ""),
        (lambda: os.utime(top / "a", (5, 5)), "top/a: has another modification time"),
        (lambda: (top / "a").write_text("123456"), "top/a: has 6 bytes instead of 5"),
        ((top / "l").unlink, "top/l: is missing"),
        (lambda: (top / "l").symlink_to("b"), "top/l: leads elsewhere"),
        (lambda: replace_by_folder(top / "l"), "top/l: is of another type"),
        (lambda: replace_by_file(top / "b"), "top/b: is no longer"),
    ]
    for change, expected in changes:
        change()
        text = "\n".join(manifest.differences(sandbox / "tree"))
        assert (expected in text) if expected else not text, text


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"format":9}', b'{"format":1,"entries":[]}']
)
def test_damaged_manifest(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        Manifest.load(path)
    with pytest.raises(FileNotFoundError):
        Manifest.load(tmp_path / "none")
