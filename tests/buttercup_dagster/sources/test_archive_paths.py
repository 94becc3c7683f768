"""Names that an archive may not have, and names that it may: cases A1 to A15."""

from __future__ import annotations

import os
import stat
import unicodedata

import pytest

from tests.support.archives import (
    GNU,
    file,
    folder,
    hardlink,
    header,
    long_name,
    packed,
    pax,
    symlink,
)
from tests.support.cases import case
from tests.support.sandbox import Sandbox

CLIMBING = {
    "A1-beside": b"../out/evil",
    "A1-over-the-sentinel": b"../out/sentinel",
    "A3-through-a-folder": b"a/../../out/evil",
    "A3-after-a-dot": b"./../x",
    "A3-dots-and-slashes": b"././//./..",
    "A3-only-dots": b"..",
    "A3-with-a-slash": b"../",
    "A3-at-the-end": b"a/b/../../..",
    "A3-many": b"a/" * 8 + b"../" * 9 + b"out/evil",
    "A4-inside": b"a/../b",
    "A4-back-to-the-root": b"a/..",
    "A5-into-the-tree-through-outside": b"../evildir/../tree/sub/f",
    "A5-into-the-tree": b"../tree/f",
    "A6-sibling-with-the-same-beginning": b"../treeevil",
    "A6-below-such-a-sibling": b"../treeevil/f",
}
ABSOLUTE = {
    "A2-one-slash": b"/abs/evil",
    "A2-two-slashes": b"//abs/evil",
    "A2-three-slashes": b"///abs/evil",
    "A2-dot": b"/./abs/evil",
    "A2-two-slashes-dot": b"//./abs/evil",
    "A2-three-slashes-dot": b"///./abs",
    "A2-climbing": b"/../x",
    "A2-slashes-climbing": b"/////////..",
    "A2-only-slashes": b"/////////",
    "A7-slash": b"/",
}
WAYS_TO_NAME = {
    "header": header,
    "prefix": lambda name, **fields: header(b"x", prefix=name, **fields),
    "pax": lambda name, **fields: pax({"path": name}) + header(b"x", **fields),
    "gnu": lambda name, **fields: long_name(name) + header(b"x", magic=GNU, **fields),
}
FIELDS = {
    "file": {"kind": b"0"},
    "folder": {"kind": b"5"},
    "symlink": {"kind": b"2", "link": b"fine"},
    "hardlink": {"kind": b"1", "link": b"fine"},
}


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("name", CLIMBING.values(), ids=CLIMBING.keys())
def test_climbing_names(sandbox: Sandbox, name: bytes, kind: str) -> None:
    error = sandbox.refusal(packed(file(b"fine"), folder(b"a/b/"), header(name, **FIELDS[kind])))
    assert (error.code, error.entry_number, error.offset) == ("climbing_name", 3, 1536)
    assert error.name == name.decode()


@pytest.mark.parametrize("kind", ["file", "symlink"])
@pytest.mark.parametrize("name", ABSOLUTE.values(), ids=ABSOLUTE.keys())
def test_absolute_names(sandbox: Sandbox, name: bytes, kind: str) -> None:
    error = sandbox.refusal(packed(file(b"fine"), header(name, **FIELDS[kind])))
    assert (error.code, error.entry_number, error.offset) == ("absolute_name", 2, 1024)
    assert error.name == name.decode()


@case("A2")
def test_absolute_name_of_a_place_that_exists(sandbox: Sandbox, case: str) -> None:
    for place in (sandbox.root / "out" / "evil", sandbox.sentinel, sandbox.tree / "f"):
        parts = pax({"path": os.fsencode(place)}), file(b"x")
        assert sandbox.refusal(packed(*parts)).code == "absolute_name"


@pytest.mark.parametrize("way", WAYS_TO_NAME)
@case("A1-A3")
def test_names_are_judged_wherever_they_stand(sandbox: Sandbox, case: str, way: str) -> None:
    for name in (b"../out/evil", b"a/../../out/evil", b".."):
        assert sandbox.refusal(packed(WAYS_TO_NAME[way](name))).code == "climbing_name"
    assert sandbox.refusal(packed(WAYS_TO_NAME[way](b"/abs/evil"))).code == "absolute_name"


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(file(b""), id="A7-no-name"),
        pytest.param(folder(b""), id="A7-folder-without-a-name"),
        pytest.param(pax({"path": b""}) + file(b"x"), id="A7-no-name-in-pax"),
        pytest.param(file(b"."), id="A7-root-as-a-file"),
        pytest.param(file(b"././."), id="A7-root-in-other-words"),
    ],
)
def test_empty_names(sandbox: Sandbox, entry: bytes) -> None:
    assert sandbox.refusal(packed(entry)).code == "empty_name"


@pytest.mark.parametrize("name", [b"a/.", b"a/./.", b"a/./", b"./a/."])
@case("A7-file-that-ends-in-a-dot")
def test_only_a_folder_ends_in_a_dot(sandbox: Sandbox, case: str, name: bytes) -> None:
    """Nothing but a folder can be opened under such a name; GNU tar makes a folder and fails."""
    kinds = [b"2", b"1"] if name.endswith(b"/") else [b"0", b"2", b"1"]
    for kind in kinds:
        entry = header(name, kind=kind, link=b"f" if kind != b"0" else b"")
        assert sandbox.refusal(packed(file(b"f"), entry)).code == "bad_name"
    assert sandbox.unpack(packed(folder(name))).directories == 1


@case("A7")
def test_attributes_of_the_root_are_ignored(sandbox: Sandbox, case: str) -> None:
    manifest = sandbox.unpack(
        packed(folder(b"./", mode=0), folder(b".", mode=0o7777), file(b"./f"))
    )
    assert list(manifest.entries) == ["f"]
    assert stat.S_IMODE(sandbox.tree.stat().st_mode) == 0o755


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"a\nb", id="A8-newline"),
        pytest.param(b"a\x1b[31mb", id="A8-escape"),
        pytest.param(b"a\x7f", id="A8-delete"),
        pytest.param(b"\rcarriage", id="A8-return"),
        pytest.param(b"folder\t/f", id="A8-tab"),
    ],
)
def test_control_characters(sandbox: Sandbox, name: bytes) -> None:
    error = sandbox.refusal(packed(file(name)))
    assert error.code == "control_character"
    assert error.name == name.decode().encode("unicode_escape").decode()


@case("A8")
def test_every_control_character(sandbox: Sandbox, case: str) -> None:
    for number in (*range(1, 0x20), 0x7F):
        data = packed(file(b"a%cb" % number))
        assert sandbox.refusal(data).code == "control_character", number


@case("A8-backslash-and-blanks-A20")
def test_backslashes_and_blanks_are_kept(sandbox: Sandbox, case: str) -> None:
    names = [b" leading", b"trailing ", b" ", b"back\\slash", b"\\", b"..\\out\\evil", b"-rf", b"~"]
    manifest = sandbox.unpack(packed(*map(file, names)))
    assert sandbox.names == sorted(names)
    assert [os.fsencode(name) for name in manifest.entries] == names


@case("A8")
def test_names_are_escaped_where_they_are_shown(sandbox: Sandbox, case: str) -> None:
    names = ["\u202eright-to-left", "\x9bC1 control", "\u2028line", "\ufeffmark"]
    manifest = sandbox.unpack(packed(*[file(name.encode()) for name in names]))
    assert list(manifest.entries) == names
    assert all(name.isascii() and name.isprintable() for name in manifest.first_names())
    error = sandbox.refusal(packed(file("\u202e/../x".encode())))
    assert error.name == "\\u202e/../x"


@case("A9")
def test_names_that_are_not_utf_8_are_kept_as_bytes(sandbox: Sandbox, case: str) -> None:
    names = [b"caf\xe9.c", b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80"]
    manifest = sandbox.unpack(packed(*map(file, names)))
    assert sandbox.names == sorted(names)
    assert [os.fsencode(name) for name in manifest.entries] == names
    assert all(name.isascii() and name.isprintable() for name in manifest.first_names())
    manifest.save(sandbox.archive)
    assert type(manifest).load(sandbox.archive) == manifest


@case("A10")
def test_names_that_differ_in_case_or_form_are_listed(sandbox: Sandbox, case: str) -> None:
    composed = unicodedata.normalize("NFC", "é")
    apart = unicodedata.normalize("NFD", "é")
    names = ["d/Readme", "d/README", f"{composed}.c", f"{apart}.c", "D/other", "straße", "STRASSE"]
    manifest = sandbox.unpack(packed(*[file(name.encode()) for name in [*names, "alone"]]))
    assert manifest.files == len(names) + 1
    groups = {frozenset(group) for group in manifest.colliding_names()}
    assert groups == {
        frozenset({"d", "D"}),
        frozenset({"d/Readme", "d/README"}),
        frozenset({f"{composed}.c", f"{apart}.c"}),
        frozenset({"straße", "STRASSE"}),
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"x" * 300, id="A11-component"),
        pytest.param(b"x" * 256, id="A11-component-edge"),
        pytest.param(b"a/" + b"x" * 300 + b"/b", id="A11-folder"),
        pytest.param(b"/".join([b"y" * 200] * 25), id="A11-path"),
        pytest.param(b"y" * 100 + b"/" + b"/".join([b"y" * 221] * 18), id="A11-path-edge"),
    ],
)
def test_names_that_are_too_long(sandbox: Sandbox, name: bytes) -> None:
    for entry in (pax({"path": name}) + file(b"x"), long_name(name) + file(b"x", magic=GNU)):
        assert sandbox.refusal(packed(entry)).code == "name_too_long"


@case("A11")
def test_longest_names(sandbox: Sandbox, case: str) -> None:
    longest = b"y" * 99 + b"/" + b"/".join([b"y" * 221] * 18)
    assert len(longest) == 4095
    manifest = sandbox.unpack(
        packed(pax({"path": longest}), file(b"x"), pax({"path": b"z" * 255}), file(b"x"))
    )
    assert manifest.files == 2
    assert (sandbox.tree / ("z" * 255)).is_file()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(b"d/" * 3000, id="A12-folders"),
        pytest.param(b"d/" * 3000 + b"f", id="A12-file"),
        pytest.param(b"d/" * 256 + b"f", id="A12-edge"),
        pytest.param(b"d/" * 400_000 + b"f", id="A12-more"),
    ],
)
def test_names_that_are_too_deep(sandbox: Sandbox, name: bytes) -> None:
    kind = b"5" if name.endswith(b"/") else b"0"
    data = packed(pax({"path": name}), header(b"x", kind=kind))
    assert len(data) < 4096
    error = sandbox.refusal(data)
    assert error.code == "too_deep"
    assert len(str(error)) < 500


@case("A12")
def test_deepest_name(sandbox: Sandbox, case: str) -> None:
    manifest = sandbox.unpack(packed(pax({"path": b"d/" * 255 + b"f"}), file(b"x")))
    assert (manifest.directories, manifest.files) == (255, 1)


@case("A13")
def test_nul_in_a_pax_path(sandbox: Sandbox, case: str) -> None:
    for name in (b"good\x00../evil", b"\x00", b"a\x00", b"good\x00"):
        assert sandbox.refusal(packed(pax({"path": name}), file(b"x"))).code == "control_character"


@pytest.mark.parametrize("length", [99, 100, 101, 155, 156, 254, 255, 256, 257, 300, 511, 512, 513])
@pytest.mark.parametrize("form", ["gnu", "pax"])
@case("A14")
def test_long_names(sandbox: Sandbox, case: str, form: str, length: int) -> None:
    name = b"n" * 90 + b"/" + b"m" * 5 + b"/" + b"o" * (length - 97)
    if length > 300:
        name = b"p" * 200 + b"/" + b"q" * (length - 201 - 100) + b"/" + b"r" * 99
    assert len(name) == length
    if form == "gnu":
        data = packed(long_name(name), file(name[:100], b"exact", magic=GNU))
    else:
        data = packed(pax({"path": name}), file(name[:100], b"exact"))
    sandbox.unpack(data)
    assert (sandbox.tree / name.decode()).read_bytes() == b"exact"


@case("A14")
def test_longest_name_of_ustar(sandbox: Sandbox, case: str) -> None:
    prefix, name = b"p" * 155, b"n" * 100
    sandbox.unpack(packed(file(name, prefix=prefix), file(b"f", prefix=b"a/b")))
    assert (sandbox.tree / prefix.decode() / name.decode()).is_file()
    assert (sandbox.tree / "a/b/f").is_file()


@case("A14")
def test_dots_across_byte_100(sandbox: Sandbox, case: str) -> None:
    # A reader that goes by the 100 bytes of the header sees a '..' which is none.
    name = b"a" * 97 + b"/..fine"
    sandbox.unpack(packed(long_name(name), file(name[:100], magic=GNU)))
    assert (sandbox.tree / name.decode()).is_file()
    climbing = b"a" * 98 + b"/../../out/evil"
    data = packed(long_name(climbing), file(climbing[:100], magic=GNU))
    assert sandbox.refusal(data).code == "climbing_name"


@case("A15")
def test_prefix_of_ustar(sandbox: Sandbox, case: str) -> None:
    manifest = sandbox.unpack(
        packed(
            file(b"last", prefix=b"ends/in/a/slash/"),
            header(b"", prefix=b"only/prefix/"),
            folder(b"", prefix=b"only/another"),
        )
    )
    assert (sandbox.tree / "ends/in/a/slash/last").is_file()
    assert (sandbox.tree / "only/prefix").is_dir()
    assert (sandbox.tree / "only/another").is_dir()
    assert manifest.files == 1


@case("A1")
def test_an_error_tells_where(sandbox: Sandbox, case: str) -> None:
    error = sandbox.refusal(packed(file(b"fine"), file(b"../\x1bevil")))
    assert error.code in {"control_character", "climbing_name"}
    assert (error.entry_number, error.offset, error.name) == (2, 1024, "../\\x1bevil")
    assert "entry 2 at byte 1024, '../\\x1bevil'" in str(error)


@case("A1")
def test_hard_link_and_symlink_texts_are_judged_too(sandbox: Sandbox, case: str) -> None:
    assert sandbox.refusal(packed(hardlink(b"h", b"../out/sentinel"))).code == "climbing_name"
    manifest = sandbox.unpack(packed(symlink(b"s", b"../out/sentinel")))
    assert manifest.dropped_links == ("s",)
