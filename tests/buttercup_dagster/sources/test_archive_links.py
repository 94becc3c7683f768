"""Symbolic and hard links: cases B1 to B20."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from buttercup_dagster.sources.archive import unpack
from buttercup_dagster.sources.errors import LayoutError
from tests.support.archives import (
    MEBIBYTE,
    file,
    folder,
    hardlink,
    header,
    packed,
    pax,
    symlink,
    write_packed,
)
from tests.support.cases import case
from tests.support.sandbox import Sandbox
from tests.support.trees import snapshot

OUT = {
    "absolute": symlink(b"l", b"/tmp"),
    "relative": symlink(b"l", b"../out"),
    "root": symlink(b"l", b"/"),
    "parent": symlink(b"l", b".."),
    "inside": folder(b"d/") + symlink(b"l", b"d"),
    "dangling": symlink(b"l", b"nowhere"),
    "pax": pax({"path": b"l", "linkpath": b"../out"}) + symlink(b"x", b"fine"),
}
BELOW = {
    "file": file(b"l/evil"),
    "folder": folder(b"l/evil/"),
    "symlink": symlink(b"l/evil", b"x"),
    "hardlink": file(b"f") + hardlink(b"l/evil", b"f"),
    "deeper": file(b"l/a/b/evil"),
    "dots": file(b"./l/./evil"),
}


@pytest.mark.parametrize("below", BELOW.values(), ids=BELOW.keys())
@pytest.mark.parametrize("link", OUT.values(), ids=OUT.keys())
@case("B1")
def test_nothing_lies_below_a_link(sandbox: Sandbox, case: str, link: bytes, below: bytes) -> None:
    assert sandbox.refusal(packed(link, below)).code == "below_symlink"


@case("B1")
def test_link_after_what_lies_below_it(sandbox: Sandbox, case: str) -> None:
    assert sandbox.refusal(packed(file(b"l/x"), symlink(b"l", b"../out"))).code == "clash"


TWO_HOPS = [
    folder(b"a/b/c/"),
    symlink(b"a/b/c/up", b"../.."),
    symlink(b"a/b/escape", b"c/up/../../out"),
]


@case("B2")
def test_two_hops(sandbox: Sandbox, case: str) -> None:
    assert sandbox.refusal(packed(*TWO_HOPS, file(b"a/b/escape/evil"))).code == "below_symlink"
    manifest = sandbox.unpack(packed(*TWO_HOPS))
    assert manifest.dropped_links == ("a/b/escape",)
    assert os.readlink(sandbox.tree / "a/b/c/up") == "../.."  # noqa: PTH115


LEADING_OUT = {
    "absolute": [symlink(b"bad", b"/etc/passwd")],
    "absolute-into-the-tree": [symlink(b"bad", b"/f")],
    "relative": [symlink(b"a/bad", b"../../out")],
    "sibling": [symlink(b"bad", b"../treeevil")],
    "back-into-the-tree": [symlink(b"bad", b"../tree/f")],
    "parent": [symlink(b"bad", b"..")],
    "parent-of-the-root": [symlink(b"a/bad", b"../..")],
    "slashes": [symlink(b"bad", b"a//.././/..//out")],
    "later-folder": [symlink(b"bad", b"z/../../out"), folder(b"z/")],
    "later-link": [symlink(b"bad", b"z/.."), symlink(b"z", b".")],
    "nothing-there": [symlink(b"bad", b"no/../../where")],
}


@pytest.mark.parametrize("parts", LEADING_OUT.values(), ids=LEADING_OUT.keys())
@case("B3")
def test_links_that_lead_out_are_left_out_or_refused(
    sandbox: Sandbox, case: str, parts: list[bytes]
) -> None:
    data = packed(file(b"f"), file(b"a/kept"), *parts)
    manifest = sandbox.unpack(data)
    (bad,) = manifest.dropped_links
    assert bad.endswith("bad")
    assert bad not in manifest.entries
    assert not os.path.lexists(sandbox.tree / bad)
    assert (sandbox.tree / "a/kept").is_file()
    error = sandbox.refusal(data, escaping_links="refuse")
    assert (error.code, error.entry_number, error.name) == ("escaping_link", 3, bad)


@case("B3")
def test_links_through_links_that_lead_out(sandbox: Sandbox, case: str) -> None:
    manifest = sandbox.unpack(
        packed(
            file(b"a/kept"),
            symlink(b"absolute", b"/etc"),
            symlink(b"through", b"absolute"),
            symlink(b"deeper", b"absolute/passwd"),
            symlink(b"x", b"."),
            symlink(b"link", b"x/.."),
            symlink(b"again", b"link/../a/kept"),
            symlink(b"twice-through-x", b"x/link"),
            symlink(b"inside", b"a/../a/kept"),
            *[symlink(b"s%02d" % n, b"." if n == 0 else b"s%02d" % (n - 1)) for n in range(60)],
        )
    )
    dropped = set(manifest.dropped_links)
    assert {name for name in dropped if not name.startswith("s")} == {
        "absolute",
        "through",
        "deeper",
        "link",
        "again",
        "twice-through-x",
    }
    # More links in a row than the system follows cannot be judged, so they are left out too.
    assert {name for name in dropped if name.startswith("s")} == {f"s{n}" for n in range(40, 60)}
    assert os.readlink(sandbox.tree / "inside") == "a/../a/kept"  # noqa: PTH115


INSIDE = {
    "beside": (b"a/l", b"f"),
    "up": (b"a/b/l", b"../../a/f"),
    "up-and-down": (b"a/b/l", b"../b/../../a/b"),
    "to-the-root": (b"a/l", b".."),
    "dangling": (b"l", b"no/where"),
    "dangling-climbing": (b"a/b/l", b"no/../../../a"),
    "slashes": (b"l", b".//a///f/"),
    "bytes": (b"l", b"caf\xe9"),
    "backslash": (b"l", b"..\\out"),
    "long": (b"l", b"a/../" * 15 + b"a/f"),
    "pointing-at-itself": (b"l", b"l"),
}


@pytest.mark.parametrize(("name", "text"), INSIDE.values(), ids=INSIDE.keys())
@case("B4")
def test_links_inside_keep_their_text(
    sandbox: Sandbox, case: str, name: bytes, text: bytes
) -> None:
    data = packed(folder(b"a/b/"), file(b"a/f"), symlink(name, text))
    manifest = sandbox.unpack(data)
    assert manifest.dropped_links == ()
    place = os.path.join(os.fsencode(sandbox.tree), name)  # noqa: PTH118
    assert os.readlink(place) == text  # noqa: PTH115
    assert os.lstat(place).st_mtime == 1_700_000_000
    assert sandbox.unpack(data, escaping_links="refuse") == manifest


@case("B4")
def test_chains_of_links(sandbox: Sandbox, case: str) -> None:
    long = b"t/" * 1000 + b"t"
    manifest = sandbox.unpack(
        packed(
            symlink(b"a", b"b"),
            symlink(b"b", b"c"),
            symlink(b"c", b"d"),
            folder(b"d/"),
            pax({"linkpath": long}),
            symlink(b"long", b"cut"),
        )
    )
    assert (manifest.symlinks, manifest.dropped_links) == (4, ())
    assert manifest.entries["long"].link == long.decode()
    assert (sandbox.tree / "a").is_dir()


@pytest.mark.parametrize(
    ("code", "entry"),
    [
        pytest.param("empty_name", symlink(b"", b"../out"), id="B5-no-name"),
        pytest.param("empty_name", symlink(b".", b"../out"), id="B5-dot"),
        pytest.param("empty_name", hardlink(b".", b"f"), id="B5-hard-link-dot"),
        pytest.param("bad_name", symlink(b"dd/", b"../out"), id="B5-slash"),
        pytest.param("empty_name", symlink(b"./", b"../out"), id="B5-dot-slash"),
        pytest.param("bad_name", hardlink(b"dd/", b"f"), id="B5-hard-link-slash"),
        pytest.param("empty_link", symlink(b"l", b""), id="B5-no-target"),
        pytest.param("empty_link", hardlink(b"l", b""), id="B5-hard-link-no-target"),
        pytest.param(
            "empty_link", pax({"linkpath": b""}) + symlink(b"l", b"f"), id="B5-no-target-in-pax"
        ),
        pytest.param("bad_link", symlink(b"l", b"a\nb"), id="B5-newline"),
        pytest.param(
            "bad_link", pax({"linkpath": b"a\x00b"}) + symlink(b"l", b"f"), id="B5-nul-in-pax"
        ),
        pytest.param(
            "bad_link", pax({"linkpath": b"t/" * 2048}) + symlink(b"l", b"f"), id="B5-long-target"
        ),
    ],
)
def test_malformed_links(sandbox: Sandbox, code: str, entry: bytes) -> None:
    assert sandbox.refusal(packed(file(b"f"), entry)).code == code


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        pytest.param(
            "duplicate", [symlink(b"x", b"../out/sentinel"), file(b"x")], id="B6-link-then-file"
        ),
        pytest.param(
            "duplicate", [file(b"x"), symlink(b"x", b"../out/sentinel")], id="B6-file-then-link"
        ),
        pytest.param(
            "duplicate", [symlink(b"x", b"a"), symlink(b"x", b"b")], id="B6-link-then-link"
        ),
        pytest.param(
            "duplicate", [symlink(b"x", b"a"), symlink(b"x", b"a")], id="B6-the-same-link-twice"
        ),
        pytest.param(
            "clash",
            [symlink(b"x", b"../out"), folder(b"x", mode=0o777)],
            id="B7-link-then-folder",
        ),
        pytest.param(
            "clash", [symlink(b"x", b"."), folder(b"x/", mode=0o777)], id="B7-inside-then-folder"
        ),
        pytest.param(
            "clash",
            [folder(b"x/"), symlink(b"x", b"../out"), file(b"x/y")],
            id="B8-folder-then-link",
        ),
        pytest.param(
            "clash", [file(b"x/y"), symlink(b"x", b"../out")], id="B8-implied-folder-then-link"
        ),
    ],
)
def test_links_that_share_a_name(sandbox: Sandbox, code: str, parts: list[bytes]) -> None:
    assert sandbox.refusal(packed(*parts)).code == code


@case("B9")
def test_circles(sandbox: Sandbox, case: str) -> None:
    circle = [symlink(b"a", b"b"), symlink(b"b", b"a"), symlink(b"self", b"self")]
    manifest = sandbox.unpack(packed(*circle))
    assert (manifest.symlinks, manifest.dropped_links) == (3, ())
    assert sandbox.refusal(packed(*circle, file(b"a/x"))).code == "below_symlink"


@case("B10-doubling")
def test_links_that_double_the_path_end(sandbox: Sandbox, case: str) -> None:
    doubling = [symlink(b"l%02d" % n, b"/".join([b"l%02d" % (n - 1)] * 9)) for n in range(1, 60)]
    manifest = sandbox.unpack(packed(folder(b"l00/"), *doubling))
    assert manifest.symlinks + len(manifest.dropped_links) == 59


@case("B10-long-texts")
def test_work_for_all_links_together_is_bounded(sandbox: Sandbox, case: str) -> None:
    text = b"d/../" * 800 + b"d"
    write_packed(
        sandbox.archive,
        (
            folder(b"d/"),
            *(pax({"linkpath": text}) + symlink(b"l%05d" % n, b"cut") for n in range(14_000)),
        ),
    )
    error = sandbox.refusal(sandbox.archive, most_bytes=512 * MEBIBYTE)
    assert error.code in {"link_work", "names_too_long"}


@case("B10-many")
def test_a_hundred_thousand_links(sandbox: Sandbox, case: str) -> None:
    count = 100_000
    write_packed(
        sandbox.archive,
        (symlink(b"%d" % n, b"%d" % ((n + 1) % count)) for n in range(count)),
    )
    manifest = sandbox.unpack(sandbox.archive, most_bytes=40 * MEBIBYTE + 300 * count)
    assert manifest.symlinks + len(manifest.dropped_links) == count


def long_chain() -> tuple[list[bytes], bytes, bytes]:
    """Folders with names of 247 bytes, a short link to each, the long path and the short one."""
    parts = []
    long = short = b""
    for letter in b"abcdefghijklmnop":
        name = bytes([letter]) * 247
        parts += [
            pax({"path": long + name}) + folder(b"cut"),
            pax({"path": long + b"%c" % letter, "linkpath": name}) + symlink(b"cut", b"cut"),
        ]
        long += name + b"/"
        short += b"%c/" % letter
    return parts, long, short


@case("B11")
def test_paths_too_long_for_the_system(sandbox: Sandbox, case: str) -> None:
    parts, long, short = long_chain()
    up = pax({"path": long + b"l" * 100, "linkpath": b"../" * 16}) + symlink(b"cut", b"cut")
    escape = pax({"linkpath": short + b"l" * 100 + b"/../out"}) + symlink(b"escape", b"cut")
    manifest = sandbox.unpack(packed(*parts, up, escape))
    assert manifest.dropped_links == ("escape",)
    assert manifest.symlinks == 17
    assert sandbox.refusal(packed(*parts, up, escape), escaping_links="refuse").name == "escape"
    for evil in (
        file(b"escape/evil"),
        hardlink(b"h", b"escape/sentinel"),
        folder(b"escape", mode=0o777),
    ):
        code = sandbox.refusal(packed(*parts, up, escape, evil)).code
        assert code in {"below_symlink", "hardlink_target", "clash"}
    through = pax({"path": short + b"x"}) + file(b"cut")
    assert sandbox.refusal(packed(*parts, through)).code == "below_symlink"


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        pytest.param("climbing_name", [hardlink(b"h", b"../out/sentinel")], id="B12-climbing"),
        pytest.param("climbing_name", [hardlink(b"h", b"a/../../out/sentinel")], id="B12-through"),
        pytest.param("climbing_name", [hardlink(b"h", b"a/../f")], id="B12-inside"),
        pytest.param("absolute_name", [hardlink(b"h", b"/etc/passwd")], id="B12-absolute"),
        pytest.param("absolute_name", [hardlink(b"h", b"//etc/passwd")], id="B12-two-slashes"),
        pytest.param(
            "climbing_name",
            [pax({"linkpath": b"../out/sentinel"}), hardlink(b"h", b"f")],
            id="B12-in-pax",
        ),
        pytest.param(
            "bad_link",
            [pax({"linkpath": b"f\x00../out/sentinel"}), hardlink(b"h", b"f")],
            id="B12-nul-in-pax",
        ),
        pytest.param(
            "duplicate",
            [hardlink(b"h", b"../out/sentinel"), file(b"h", b"overwritten")],
            id="B13-then-a-file",
        ),
        pytest.param(
            "duplicate", [hardlink(b"h", b"f"), file(b"h", b"overwritten")], id="B13-inside"
        ),
        pytest.param(
            "hardlink_target",
            [symlink(b"a/b/c", b"../../../out/sentinel"), hardlink(b"h", b"a/b/c")],
            id="B14-deeper",
        ),
        pytest.param(
            "hardlink_target",
            [
                symlink(b"a/b/c", b"../../../out/sentinel"),
                header(b"h", kind=b"1", link=b"a/b/c", mode=0o6777),
            ],
            id="B14-with-mode",
        ),
        pytest.param(
            "hardlink_target",
            [symlink(b"a/b/c", b"f"), header(b"h", kind=b"1", link=b"a/b/c", mode=0)],
            id="B14-inside",
        ),
        pytest.param(
            "hardlink_target",
            [hardlink(b"h", b"l"), symlink(b"l", b"../out/sentinel")],
            id="B14-later-link",
        ),
        pytest.param(
            "hardlink_target",
            [symlink(b"l", b"../out"), hardlink(b"h", b"l/sentinel")],
            id="B15-out",
        ),
        pytest.param(
            "hardlink_target",
            [folder(b"d/"), file(b"d/g"), symlink(b"l", b"d"), hardlink(b"h", b"l/g")],
            id="B15-inside",
        ),
        pytest.param("hardlink_target", [hardlink(b"h", b"h")], id="B17-itself"),
        pytest.param("hardlink_target", [hardlink(b"h", b"./h")], id="B17-in-other-words"),
        pytest.param(
            "hardlink_target",
            [hardlink(b"h", b"i"), hardlink(b"i", b"h")],
            id="B17-circle",
        ),
        pytest.param("hardlink_target", [hardlink(b"h", b"nothing")], id="B18-nothing"),
        pytest.param("hardlink_target", [folder(b"d/"), hardlink(b"h", b"d")], id="B18-folder"),
        pytest.param("hardlink_target", [folder(b"d/"), hardlink(b"h", b"d/")], id="B18-slash"),
        pytest.param("hardlink_target", [file(b"d/g"), hardlink(b"h", b"d")], id="B18-implied"),
        pytest.param("hardlink_target", [hardlink(b"h", b".")], id="B18-root"),
        pytest.param("hardlink_target", [hardlink(b"d/h", b"d")], id="B18-its-own-folder"),
    ],
)
def test_hard_links_to_anything_but_a_file(sandbox: Sandbox, code: str, parts: list[bytes]) -> None:
    assert sandbox.refusal(packed(file(b"f"), *parts)).code == code


@case("B16")
def test_hard_links_before_their_file(sandbox: Sandbox, case: str) -> None:
    manifest = sandbox.unpack(
        packed(
            hardlink(b"early", b"d/file"),
            hardlink(b"third", b"early"),
            file(b"d/file", b"content", mode=0o755, mtime=1_600_000_000),
            hardlink(b"./late", b".//d/./file"),
        )
    )
    names = ["early", "third", "d/file", "late"]
    assert {(sandbox.tree / name).stat().st_ino for name in names} == {
        (sandbox.tree / "d/file").stat().st_ino
    }
    assert (sandbox.tree / "third").read_bytes() == b"content"
    assert (sandbox.tree / "d/file").stat().st_mtime == 1_600_000_000
    assert (manifest.files, manifest.hardlinks) == (1, 3)


@case("B18")
def test_symlinks_to_folders(sandbox: Sandbox, case: str) -> None:
    texts = {b"one": b"d", b"slash": b"d/", b"root": b".", b"d/up": b"..", b"d/here": b"./"}
    manifest = sandbox.unpack(
        packed(folder(b"d/"), *[symlink(name, text) for name, text in texts.items()])
    )
    assert (manifest.symlinks, manifest.dropped_links) == (5, ())
    assert all((sandbox.tree / name.decode()).is_dir() for name in texts)


@case("B19")
def test_destination_is_always_new(sandbox: Sandbox, tmp_path: Path, case: str) -> None:
    sandbox.unpack(packed(folder(b"d/"), symlink(b"x", b"d")))
    (sandbox.tree / "way-out").symlink_to("../out")
    (sandbox.root / "link-to-out").symlink_to("out")
    sandbox.archive.write_bytes(packed(file(b"way-out/evil"), file(b"x/evil"), file(b"evil")))
    before = snapshot(sandbox.root)
    for name in ("tree", "out", "link-to-out", "out/sentinel"):
        with pytest.raises(LayoutError, match="exists already"):
            unpack(sandbox.archive, sandbox.root / name)
    assert snapshot(sandbox.root) == before


@case("B20")
def test_windows_forms_are_plain_bytes(sandbox: Sandbox, case: str) -> None:
    names = [b"C:..\\x", b"C:\\abs", b"\\\\?\\C:\\x", b"\\\\server\\share", b"CON", b"a:stream"]
    names += [b"dot.", b"..\\..\\out\\evil", b"C:/x"]
    manifest = sandbox.unpack(
        packed(*map(file, names), symlink(b"l", b"C:\\Windows"), hardlink(b"h", b"C:..\\x"))
    )
    assert manifest.files == len(names)
    assert manifest.dropped_links == ()
    assert sandbox.names == sorted([*names[:-1], b"C:", b"l", b"h"])
