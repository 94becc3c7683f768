"""Archives that nobody thought of: what is accepted is what GNU tar makes of it.

Whatever the bytes are, the outcome is a manifest that equals the disk, or an ArchiveError; the
sandbox notices everything else.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, currently_in_test_context, given, note, settings

from buttercup_dagster.sources.archive import ArchiveError
from tests.fuzz.seeds import ARCHIVES
from tests.support.archives import (
    BLOCK,
    END,
    GNU,
    V7,
    base256,
    file,
    folder,
    header,
    long_name,
    padded,
    pax,
    pax_record,
    plain,
    raw_extension,
    symlink,
)
from tests.support.gnu_tar import (
    differences_from_gnu_tar,
    needs_gnu_tar,
    unpack_with_gnu_tar,
)
from tests.support.sandbox import Sandbox

POSIX = b"ustar\x0000"

quick = settings(
    derandomize=True,
    database=None,
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
)
"""The same examples in every run."""
thorough = settings(quick, derandomize=False, max_examples=1000)
"""Others each time."""


class Stream(bytes):
    """An archive that a report of hypothesis names instead of spelling it out."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


def described(data: bytes) -> str:
    """The fields of each block that looks like a header, for the report of a failure."""
    lines = []
    for number, block in enumerate(blocks_of(data)):
        if block[148:156].strip(b" \x00").isdigit():
            fields = {
                "kind": block[156:157],
                "name": block[:100].rstrip(b"\x00"),
                "size": block[124:136],
                "mode": block[100:108],
                "mtime": block[136:148],
                "link": block[157:257].rstrip(b"\x00"),
                "magic": block[257:265],
                "prefix": block[345:500].rstrip(b"\x00"),
            }
            lines.append(f"{number}: {fields}")
        elif any(block):
            lines.append(f"{number}: data {block[:60]!r}")
        else:
            lines.append(f"{number}: zeros")
    return "\n".join(lines)


def judge(sandbox: Sandbox, data: bytes) -> None:
    """Unpack; compare with GNU tar what is accepted."""
    if currently_in_test_context():
        note(described(data))
    try:
        manifest = sandbox.unpack(data)
    except ArchiveError:
        return
    theirs = sandbox.root.parent / "theirs"
    unpack_with_gnu_tar(sandbox.archive, theirs)
    try:
        assert differences_from_gnu_tar(sandbox.tree, manifest, theirs) == []
    finally:
        shutil.rmtree(theirs)


# ---- mutations of whole archives


def with_checksum(block: bytes) -> bytes:
    """A header whose checksum is right."""
    changed = bytearray(block)
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\x00 " % sum(changed)
    return bytes(changed)


def blocks_of(data: bytes) -> list[bytes]:
    return [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]


Mutation = Callable[[list[bytes]], list[bytes]]


def flip(at: int, value: int, fix: bool) -> Mutation:
    """Another byte somewhere; as a header, the block then gets a right checksum."""

    def mutate(blocks: list[bytes]) -> list[bytes]:
        index = at // BLOCK % len(blocks)
        block = bytearray(blocks[index])
        block[at % BLOCK] = value
        changed = with_checksum(bytes(block)) if fix else bytes(block)
        return [*blocks[:index], changed, *blocks[index + 1 :]]

    return mutate


def set_field(index: int, start: int, value: bytes) -> Mutation:
    """Another value of a header's field."""

    def mutate(blocks: list[bytes]) -> list[bytes]:
        place = index % len(blocks)
        block = bytearray(blocks[place])
        block[start : start + len(value)] = value
        return [*blocks[:place], with_checksum(bytes(block)), *blocks[place + 1 :]]

    return mutate


def delete(index: int) -> Mutation:
    return lambda blocks: [b for n, b in enumerate(blocks) if n != index % len(blocks)]


def double(index: int, to: int) -> Mutation:
    def mutate(blocks: list[bytes]) -> list[bytes]:
        place = to % (len(blocks) + 1)
        return [*blocks[:place], blocks[index % len(blocks)], *blocks[place:]]

    return mutate


def swap(one: int, other: int) -> Mutation:
    def mutate(blocks: list[bytes]) -> list[bytes]:
        changed = list(blocks)
        a, b = one % len(blocks), other % len(blocks)
        changed[a], changed[b] = changed[b], changed[a]
        return changed

    return mutate


def insert(index: int, part: bytes) -> Mutation:
    def mutate(blocks: list[bytes]) -> list[bytes]:
        place = index % (len(blocks) + 1)
        return [*blocks[:place], *blocks_of(part), *blocks[place:]]

    return mutate


EXTENSIONS = [
    pax({"path": b"renamed"}),
    pax({"path": b"renamed/"}),
    pax({"linkpath": b"d/f"}),
    pax({"size": b"0"}),
    pax({"size": b"512"}),
    pax({"mtime": b"1500000000.25"}),
    pax({"mtime": b"nan"}),
    pax({"mtime": b"1400000000"}, b"g"),
    pax({"comment": b"x"}, b"g"),
    pax({"hdrcharset": b"BINARY", "path": b"caf\xe9"}),
    pax({"uid": b"99999999999", "uname": b"nobody"}),
    raw_extension(b"9 path=a\n9 path=b\n", b"x"),
    long_name(b"renamed/by/gnu"),
    long_name(b"renamed/"),
    long_name(b"d/f", b"K"),
    long_name(b"d"),
    file(b"inserted"),
    folder(b"d/"),
    symlink(b"through", b"d"),
    file(b"through/file"),
    bytes(BLOCK),
    END,
]
FIELDS: list[tuple[int, Sequence[bytes]]] = [
    (
        0,
        [
            b"d/f\x00",
            b"./d//f\x00",
            b"d\x00",
            b"d/\x00",
            b".\x00",
            b"\x00",
            b"x/../y\x00",
            b"/\x00",
        ],
    ),
    (
        100,
        [
            b"0000000\x00",
            b"0007777\x00",
            b"0100644\x00",
            b"       \x00",
            base256(0o755, 8),
            b"9\x00",
        ],
    ),
    (124, [b"00000000000\x00", b"00000001000\x00", base256(512), b"      5     ", b"\x00" * 12]),
    (136, [base256(-1), base256(2**40), b"\x00" * 12, b"            ", b"77777777777\x00"]),
    (156, [bytes([flag]) for flag in b"01234567xgLKSVDMNA\x00"]),
    (157, [b"d/f\x00", b"..\x00", b"d\x00", b"\x00", b"/etc\x00", b"../x\x00"]),
    (257, [POSIX, GNU, V7, b"ustar\x00  ", b"ustar  0"]),
    (345, [b"pre\x00", b"pre/\x00", b"/\x00", b"..\x00", b"\x00"]),
    (482, [b"\x01"]),
]
NUMBER = st.integers(0, 60)
MUTATION: st.SearchStrategy[Mutation] = st.one_of(
    st.builds(flip, st.integers(0, 60 * BLOCK), st.integers(0, 255), st.booleans()),
    st.sampled_from(FIELDS).flatmap(
        lambda field: st.builds(set_field, NUMBER, st.just(field[0]), st.sampled_from(field[1]))
    ),
    st.builds(delete, NUMBER),
    st.builds(double, NUMBER, NUMBER),
    st.builds(swap, NUMBER, NUMBER),
    st.builds(insert, NUMBER, st.sampled_from(EXTENSIONS)),
)


@st.composite
def mutated(draw: st.DrawFn) -> Stream:
    """A sound archive after one to three mutations."""
    blocks = blocks_of(draw(st.sampled_from(sorted(ARCHIVES.values()))))
    for mutate in draw(st.lists(MUTATION, min_size=1, max_size=3)):
        blocks = mutate(blocks) or blocks
    return Stream(b"".join(blocks))


@pytest.mark.parametrize("base", ARCHIVES.values(), ids=ARCHIVES.keys())
@needs_gnu_tar
def test_archives_to_start_from(sandbox: Sandbox, base: bytes) -> None:
    manifest = sandbox.unpack(base)
    assert manifest.files
    judge(sandbox, base)


@needs_gnu_tar
@given(data=mutated())
@quick
def test_mutated_archives(sandbox: Sandbox, data: bytes) -> None:
    judge(sandbox, data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_gnu_tar
@given(data=mutated())
@thorough
def test_many_mutated_archives(sandbox: Sandbox, data: bytes) -> None:
    judge(sandbox, data)


# ---- archives made up of well-formed fields

PART = st.sampled_from([b"a", b"b", b"c", b"..", b".", b"", b"dd"])
PATH = st.lists(PART, min_size=1, max_size=3).map(b"/".join)
PLAIN_PATH = st.lists(st.sampled_from([b"a", b"b", b"c", b"dd"]), min_size=1, max_size=3).map(
    b"/".join
)
ANY_PATH = st.one_of(PLAIN_PATH, PLAIN_PATH, PLAIN_PATH, PATH)
RECORDS = st.dictionaries(
    st.sampled_from(["path", "linkpath", "size", "mtime", "comment", "hdrcharset", "uname"]),
    st.one_of(ANY_PATH, st.integers(0, 2**40).map(lambda number: b"%d" % number)),
    min_size=1,
    max_size=3,
)


@st.composite
def entry(draw: st.DrawFn) -> bytes:
    """One entry, perhaps with what extends it; its data may have another length than it says."""
    kind = draw(
        st.sampled_from([b"0", b"0", b"0", b"\x00", b"7", b"5", b"5", b"2", b"2", b"1", b"1"])
    )
    magic = draw(st.sampled_from([POSIX, POSIX, GNU, V7]))
    name = draw(ANY_PATH)
    if kind == b"5" and draw(st.booleans()):
        name += b"/"
    data = draw(st.sampled_from([b"", b"", b"x", b"y" * 512, b"z" * 700]))
    size = len(data)
    if kind in b"512" and draw(st.integers(0, 9)):
        size, data = 0, b""
    extension = b""
    match draw(st.integers(0, 9)):
        case 0:
            extension = pax(draw(RECORDS))
        case 1:
            extension = long_name(draw(ANY_PATH))
        case 2:
            extension = long_name(draw(ANY_PATH), b"K")
        case 3:
            records = draw(RECORDS)
            extension = raw_extension(
                b"".join(pax_record(k.encode(), v) for k, v in records.items()),
                draw(st.sampled_from([b"x", b"g"])),
            )
    return (
        extension
        + header(
            name,
            kind=kind,
            size=size,
            mode=draw(st.sampled_from([0o644, 0o755, 0, 0o7777, 0o600])),
            mtime=draw(st.sampled_from([0, 1, 1_700_000_000, 2**31 - 1, 2**33 - 1])),
            link=draw(ANY_PATH) if kind in b"12" else b"",
            magic=magic,
            prefix=draw(st.sampled_from([b"", b"", b"", b"a", b"p/"])) if magic == POSIX else b"",
        )
        + padded(data)
    )


@st.composite
def made_up(draw: st.DrawFn) -> Stream:
    """An archive of a few such entries."""
    return Stream(plain(*draw(st.lists(entry(), min_size=1, max_size=6))))


@needs_gnu_tar
@given(data=made_up())
@quick
def test_made_up_archives(sandbox: Sandbox, data: bytes) -> None:
    judge(sandbox, data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_gnu_tar
@given(data=made_up())
@thorough
def test_many_made_up_archives(sandbox: Sandbox, data: bytes) -> None:
    judge(sandbox, data)
