"""Types of entries, their attributes, and names that stand twice: cases C1 to C12."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from buttercup_dagster.sources.unpacking.refusal import Refusal
from buttercup_dagster.sources.unpacking.tar import TarReader
from tests.support.archives import (
    GNU,
    V7,
    base256,
    file,
    folder,
    hardlink,
    header,
    long_name,
    packed,
    padded,
    pax,
    plain,
    symlink,
)
from tests.support.cases import case
from tests.support.sandbox import Sandbox

LATEST = 0x3_7FFF_FFFF
"""The latest whole second that ext4 keeps; some file systems end earlier."""
KNOWN_FLAGS = {b"0", b"\x00", b"7", b"1", b"2", b"5", b"x", b"g", b"L", b"K"}


@pytest.mark.parametrize(
    ("code", "entry"),
    [
        pytest.param("special_file", header(b"dev", kind=b"3"), id="C1-character-device"),
        pytest.param("special_file", header(b"dev", kind=b"4"), id="C1-block-device"),
        pytest.param("special_file", header(b"pipe", kind=b"6"), id="C1-fifo"),
        pytest.param("special_file", header(b"pipe", kind=b"6", magic=V7), id="C1-fifo-v7"),
        # The format has no type for sockets.
        pytest.param("unsupported_type", header(b"socket", kind=b"s"), id="C1-socket"),
        pytest.param("unsupported_type", header(b"z", kind=b"Z"), id="C2-Z"),
        pytest.param("unsupported_type", file(b"z", kind=b"Z"), id="C2-Z-with-data"),
        pytest.param("unsupported_type", file(b"z", kind=b"8"), id="C2-reserved"),
        pytest.param("unsupported_type", file(b"z", kind=b"\xff"), id="C2-no-letter"),
        pytest.param("unsupported_type", file(b"z", kind=b"\n"), id="C2-control-character"),
        pytest.param("unsupported_type", file(b"z", kind=b"X"), id="C2-solaris-pax"),
        pytest.param("unsupported_type", header(b"v", kind=b"V", magic=GNU), id="C3-volume"),
        pytest.param("unsupported_type", file(b"m", kind=b"M", magic=GNU), id="C3-multi-volume"),
        pytest.param("unsupported_type", file(b"d", kind=b"D", magic=GNU), id="C3-dump-folder"),
        pytest.param("unsupported_type", file(b"n", kind=b"N", magic=GNU), id="C3-old-long-names"),
    ],
)
def test_types_that_are_refused(sandbox: Sandbox, code: str, entry: bytes) -> None:
    error = sandbox.refusal(packed(file(b"fine"), entry))
    assert (error.code, error.entry_number) == (code, 2)


@case("C2")
def test_every_other_type_is_refused(case: str) -> None:
    for number in range(256):
        flag = bytes([number])
        if flag not in KNOWN_FLAGS:
            with pytest.raises(Refusal):
                list(TarReader([plain(header(b"z", kind=flag))]).members())


@case("C2")
def test_contiguous_files_are_files(sandbox: Sandbox, case: str) -> None:
    manifest = sandbox.unpack(packed(file(b"c", b"contiguous", kind=b"7")))
    assert (sandbox.tree / "c").read_bytes() == b"contiguous"
    assert manifest.files == 1


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@case("C4")
def test_rights_owners_and_attributes_are_not_kept(sandbox: Sandbox, case: str) -> None:
    records = {
        "SCHILY.xattr.security.capability": b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12),
        "SCHILY.xattr.user.note": b"x",
        "SCHILY.xattr.trusted.overlay.opaque": b"y",
        "LIBARCHIVE.xattr.user.other": b"eA",
        "SCHILY.acl.access": b"user::rwx,user:1234:rwx,group::rwx,mask::rwx,other::rwx",
        "SCHILY.acl.default": b"user::rwx,group::rwx,other::rwx",
        "SCHILY.fflags": b"uchg",
        "RHT.security.selinux": b"system_u:object_r:bin_t:s0",
        "uid": b"1234",
        "gid": b"1234",
        "uname": b"daemon",
        "gname": b"daemon",
    }
    sandbox.unpack(
        packed(
            pax(records),
            file(b"set-id", mode=0o6777),
            pax(records),
            folder(b"d/", mode=0o7777),
            file(b"shared", mode=0o666),
            file(b"mine", mode=0o600),
            file(b"run", mode=0o100),
            pax(records),
            symlink(b"l", b"set-id"),
            hardlink(b"h", b"mine"),
        )
    )
    modes = {"set-id": 0o755, "d": 0o755, "shared": 0o644, "mine": 0o644, "run": 0o744, "h": 0o644}
    assert {name: mode_of(sandbox.tree / name) for name in modes} == modes
    for path in (sandbox.tree, *sandbox.tree.iterdir()):
        status = path.lstat()
        assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
        assert os.listxattr(path, follow_symlinks=False) == []


@case("C5")
def test_entries_without_rights_can_be_used(sandbox: Sandbox, case: str) -> None:
    manifest = sandbox.unpack(
        packed(
            folder(b"none/", mode=0),
            file(b"none/file", mode=0),
            folder(b"none/inner", mode=0),
            folder(b"sticky/", mode=0o1777),
            file(b"implied/parent/file", mode=0o200),
            folder(b"implied", mode=0),
        )
    )
    folders = ("", "none", "none/inner", "sticky", "implied", "implied/parent")
    assert {mode_of(sandbox.tree / name) for name in folders} == {0o755}
    assert mode_of(sandbox.tree / "none/file") == 0o644
    assert mode_of(sandbox.tree / "implied/parent/file") == 0o644
    assert manifest.directories == 5


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        pytest.param("duplicate", [file(b"x", b"1"), file(b"x", b"2")], id="C6-other-bytes"),
        pytest.param("duplicate", [file(b"x"), file(b"x")], id="C6-the-same-bytes"),
        pytest.param("duplicate", [file(b"x"), file(b"./x")], id="C6-dot"),
        pytest.param("duplicate", [file(b"d/x"), file(b"d//./x")], id="C6-slashes"),
        pytest.param("duplicate", [file(b"x"), hardlink(b"x", b"f")], id="C6-hard-link"),
        pytest.param("duplicate", [hardlink(b"x", b"f"), file(b"x")], id="C6-after-a-hard-link"),
        pytest.param(
            "duplicate", [pax({"path": b"x"}), file(b"y"), file(b"x")], id="C6-pax-and-header"
        ),
        pytest.param(
            "duplicate", [folder(b"d/"), folder(b"d/", mode=0o700)], id="C6-folder-other-mode"
        ),
        pytest.param(
            "duplicate", [folder(b"d/"), folder(b"d", mtime=1)], id="C6-folder-other-time"
        ),
        pytest.param("clash", [file(b"x"), file(b"x/y")], id="C7-file-then-below"),
        pytest.param("clash", [file(b"x"), file(b"x/y/z")], id="C7-file-then-far-below"),
        pytest.param("clash", [file(b"x"), folder(b"x/y")], id="C7-file-then-folder-below"),
        pytest.param("clash", [hardlink(b"x", b"f"), file(b"x/y")], id="C7-hard-link-then-below"),
        pytest.param("clash", [folder(b"x/"), file(b"x")], id="C7-folder-then-file"),
        pytest.param("clash", [file(b"x/y"), file(b"x")], id="C7-implied-folder-then-file"),
        pytest.param("clash", [folder(b"x/"), hardlink(b"x", b"f")], id="C7-folder-then-hard-link"),
        pytest.param("clash", [file(b"x"), folder(b"x/")], id="C7-file-then-folder"),
        pytest.param(
            "unexpected_data",
            [header(b"d/", kind=b"5", size=5) + padded(b"data\n")],
            id="C8-folder",
        ),
        pytest.param(
            "unexpected_data",
            [header(b"d/", kind=b"0", size=5) + padded(b"data\n")],
            id="C8-folder-by-its-slash",
        ),
        pytest.param(
            "unexpected_data",
            [pax({"size": b"5"}), folder(b"d/"), padded(b"data\n")],
            id="C8-folder-in-pax",
        ),
        pytest.param(
            "unexpected_data",
            [header(b"l", kind=b"2", link=b"f", size=5) + padded(b"data\n")],
            id="C8-symlink",
        ),
        pytest.param(
            "unexpected_data",
            [header(b"l", kind=b"1", link=b"f", size=5) + padded(b"data\n")],
            id="C8-hard-link",
        ),
    ],
)
def test_entries_that_contradict_each_other(
    sandbox: Sandbox, code: str, parts: list[bytes]
) -> None:
    assert sandbox.refusal(packed(file(b"f"), *parts)).code == code


@case("C6")
def test_a_folder_may_stand_twice_alike(sandbox: Sandbox, case: str) -> None:
    manifest = sandbox.unpack(packed(file(b"d/f"), folder(b"d/"), file(b"d/g"), folder(b"./d")))
    assert (manifest.directories, manifest.files) == (1, 2)
    assert (sandbox.tree / "d").stat().st_mtime == 1_700_000_000


@case("C9")
def test_long_name_of_a_file_that_is_cut_at_a_slash(sandbox: Sandbox, case: str) -> None:
    name = b"d/" + b"y" * 97 + b"/z"
    assert name[:100].endswith(b"/")
    for kind in (b"\x00", b"0"):
        cut = file(name[:100], b"kept\n", kind=kind, magic=GNU)
        manifest = sandbox.unpack(packed(long_name(name), cut))
        assert (sandbox.tree / name.decode()).read_bytes() == b"kept\n"
        assert manifest.files == 1


@pytest.mark.parametrize(
    ("expected", "entry"),
    [
        pytest.param(0, file(b"f", mtime=base256(-1)), id="C10-negative"),
        pytest.param(0, file(b"f", mtime=base256(-(2**62))), id="C10-far-negative"),
        pytest.param(LATEST, file(b"f", mtime=base256(2**63)), id="C10-beyond-63-bits"),
        pytest.param(LATEST, file(b"f", mtime=base256(2**87)), id="C10-beyond-all"),
        pytest.param(LATEST, file(b"f", mtime=b"7" * 12), id="C10-octal-without-end"),
        pytest.param(1_700_000_000, pax({"mtime": b"nan"}) + file(b"f"), id="C10-nan"),
        pytest.param(1_700_000_000, pax({"mtime": b"inf"}) + file(b"f"), id="C10-inf"),
        pytest.param(1_700_000_000, pax({"mtime": b"1e400"}) + file(b"f"), id="C10-exponent"),
        pytest.param(1_700_000_000, pax({"mtime": b""}) + file(b"f"), id="C10-empty"),
        pytest.param(0, pax({"mtime": b"-1.5"}) + file(b"f"), id="C10-negative-in-pax"),
        pytest.param(LATEST, pax({"mtime": b"9" * 30}) + file(b"f"), id="C10-large-in-pax"),
        pytest.param(
            1_600_000_000, pax({"mtime": b"1600000000.999999999"}) + file(b"f"), id="C10-fraction"
        ),
        pytest.param(
            1_600_000_000, pax({"mtime": b"1600000000"}, b"g") + file(b"f"), id="C10-global"
        ),
    ],
)
def test_times_are_clamped(sandbox: Sandbox, expected: int, entry: bytes) -> None:
    manifest = sandbox.unpack(packed(entry, folder(b"d/", mtime=base256(-5)), symlink(b"l", b"f")))
    kept = (sandbox.tree / "f").stat().st_mtime_ns // 10**9
    if expected == LATEST:  # what the file system makes of it
        assert kept >= 2**31 - 1
    else:
        assert kept == expected
    assert manifest.entries["f"].mtime == kept


@case("C10-nul-in-a-pax-time")
def test_time_that_ends_in_its_middle_for_some_readers(sandbox: Sandbox, case: str) -> None:
    """GNU tar reads up to the NUL; others find no number and go by the header."""
    data = packed(pax({"mtime": b"1600000000\x00junk"}), file(b"f"))
    assert sandbox.refusal(data).code == "bad_pax"


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
@case("C11")
def test_umask_has_no_say(sandbox: Sandbox, case: str, mask: int) -> None:
    data = packed(
        folder(b"d/", mode=0o777),
        file(b"d/f", mode=0o777),
        file(b"g/h"),
        hardlink(b"i", b"g/h"),
    )
    sandbox.archive.write_bytes(data)
    before = os.umask(mask)
    try:
        sandbox.unpack(sandbox.archive)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    modes = {path.name: mode_of(path) for path in (sandbox.tree, *sandbox.tree.rglob("*"))}
    assert modes == {"tree": 0o755, "d": 0o755, "f": 0o755, "g": 0o755, "h": 0o644, "i": 0o644}


@case("C12")
def test_names_of_markers_mean_nothing(sandbox: Sandbox, case: str) -> None:
    markers = [b".cargo-ok", b".complete", b"tree.json", b".tree", b".unpacking", b"d/.complete"]
    out = [symlink(name, b"../out/sentinel") for name in markers[:-1]]
    manifest = sandbox.unpack(packed(*out, symlink(markers[-1], b"../../out/sentinel")))
    assert set(manifest.dropped_links) == {name.decode() for name in markers}
    manifest = sandbox.unpack(packed(file(b"f"), *[symlink(name, b"f") for name in markers]))
    assert manifest.symlinks == len(markers)
    manifest = sandbox.unpack(packed(*map(file, markers)))
    assert manifest.files == len(markers)
