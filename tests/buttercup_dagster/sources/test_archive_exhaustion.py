"""Archives that take more than they should: cases E1 to E9."""

from __future__ import annotations

import contextlib
import gzip
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buttercup_dagster.sources.archive import ArchiveError, Limits, Manifest, unpack
from buttercup_dagster.sources.errors import NoSpace
from tests.support.archives import (
    BLOCK,
    END,
    GNU,
    MEBIBYTE,
    base256,
    file,
    folder,
    hardlink,
    header,
    long_name,
    packed,
    padded,
    pax,
    pax_record,
    plain,
    raw_extension,
    symlink,
    write_packed,
    write_zeros,
)
from tests.support.cases import case
from tests.support.sandbox import Sandbox, left_as_it_was
from tests.support.waiting import wait_for

GIBIBYTE = 1024 * MEBIBYTE
LEAST_BYTES = 40 * MEBIBYTE
BYTES_PER_ENTRY = 300
"""What the child process may take: so much, and so much more for each entry."""


@contextlib.contextmanager
def small_disk(place: Path, options: str) -> Iterator[Path]:
    """A tmpfs of its own; the test is skipped where none may be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a disk here: {done.stderr.decode().strip()}")
    try:
        yield place
    finally:
        # The working folder of a process that ends is released a moment after its handles.
        command: list[str | Path] = ["umount", place]
        wait_for(
            lambda: subprocess.run(command, check=False).returncode == 0, "the disk can be released"
        )


# ---- bytes


@pytest.mark.parametrize(
    ("code", "limits"),
    [
        pytest.param("too_large_unpacked", Limits(total_bytes=32 * MEBIBYTE), id="E1-total"),
        pytest.param("too_large_unpacked", Limits(ratio=2, ratio_floor_bytes=0), id="E1-ratio"),
        pytest.param("file_too_large", Limits(file_bytes=32 * MEBIBYTE), id="E1-file"),
    ],
)
def test_ten_gigabytes_of_zeros(tmp_path: Path, code: str, limits: Limits) -> None:
    sandbox = Sandbox(tmp_path)
    write_zeros(sandbox.archive, header(b"zeros", size=base256(10 * GIBIBYTE)), 10 * 1024)
    assert sandbox.archive.stat().st_size < 11_000_000
    assert sandbox.refusal(sandbox.archive, limits).code == code


@case("E1-many-files")
def test_zeros_in_many_files_never_fill_the_disk(tmp_path: Path, case: str) -> None:
    with small_disk(tmp_path / "disk", "size=64m") as disk:
        archive = tmp_path / "a"
        with archive.open("wb") as target:
            zeros = gzip.compress(bytes(16 * MEBIBYTE), mtime=0)
            for number in range(640):
                each = header(b"%d" % number, size=16 * MEBIBYTE)
                target.write(gzip.compress(each, mtime=0) + zeros)
        with left_as_it_was(), pytest.raises(ArchiveError) as caught:
            unpack(archive, disk / "tree", Limits(total_bytes=48 * MEBIBYTE))
        assert caught.value.code == "too_large_unpacked"
        assert list(disk.iterdir()) == []


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([pax({"comment": b"x" * 900_000}, b"g"), file(b"f")] * 9, id="E1-metadata"),
        pytest.param([file(b"f"), END + bytes(9 * MEBIBYTE)], id="E1-behind-the-end"),
    ],
)
def test_total_counts_what_is_not_written_too(sandbox: Sandbox, parts: list[bytes]) -> None:
    limits = Limits(total_bytes=MEBIBYTE)
    assert sandbox.refusal(packed(*parts), limits).code == "too_large_unpacked"


@case("E1-at-the-limit")
def test_limits_are_reached_exactly(sandbox: Sandbox, case: str) -> None:
    stream = plain(file(b"a/f", bytes(100_000)), symlink(b"l", b"a"))
    data = gzip.compress(stream, mtime=0)
    names = len(b"a") + len(b"a/f") + len(b"l") + len(b"a")
    enough = Limits(
        total_bytes=len(stream), ratio=1, file_bytes=100_000, entries=3, name_bytes=names
    )
    assert sandbox.unpack(data, enough).bytes == 100_000
    for code, limits in {
        "too_large_unpacked": Limits(total_bytes=len(stream) - 1),
        "file_too_large": Limits(file_bytes=99_999),
        "too_many_entries": Limits(entries=2),
        "names_too_long": Limits(name_bytes=names - 1),
    }.items():
        assert sandbox.refusal(data, limits).code == code


@pytest.mark.parametrize("first", [True, False], ids=["E2-first", "E2-among-others"])
def test_one_member_that_expands_among_small_ones(sandbox: Sandbox, first: bool) -> None:
    small = [file(b"small%d" % number, os.urandom(10_000)) for number in range(50)]
    bomb = file(b"bomb", bytes(20 * MEBIBYTE))
    parts = [bomb, *small] if first else [*small[:25], bomb, *small[25:]]
    data = packed(*parts)
    limits = Limits(ratio=20, ratio_floor_bytes=MEBIBYTE)
    assert sandbox.refusal(data, limits).code == "too_large_unpacked"
    assert sandbox.unpack(data, Limits(ratio=50, ratio_floor_bytes=MEBIBYTE)).files == 51


# ---- entries

MANY: dict[str, Callable[[int], bytes]] = {
    "E3-files": lambda n: file(b"%d" % n, b""),
    "E3-folders": lambda n: folder(b"%d/" % n),
    "E3-symlinks": lambda n: symlink(b"%d" % n, b"x"),
    "E3-hard-links": lambda n: hardlink(b"%d" % n, b"x"),
    "E3-implied-folders": lambda n: file(b"%d/a/b/c/f" % n, b""),
}


@pytest.mark.parametrize("entry", MANY.values(), ids=MANY.keys())
def test_too_many_entries(sandbox: Sandbox, entry: Callable[[int], bytes]) -> None:
    data = packed(file(b"x"), *[entry(number) for number in range(2000)])
    error = sandbox.refusal(data, Limits(entries=1000))
    assert error.code == "too_many_entries"
    assert error.entry_number <= 1001


@case("E3-memory")
def test_memory_grows_by_little_for_each_entry(sandbox: Sandbox, case: str) -> None:
    count = 30_000
    write_packed(sandbox.archive, (file(b"d/%d" % n, b"") for n in range(count)))
    manifest = sandbox.unpack(sandbox.archive, most_bytes=LEAST_BYTES + BYTES_PER_ENTRY * count)
    assert manifest.files == count


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["files", "folders", "symlinks"])
@case("E3-many")
def test_many_entries(sandbox: Sandbox, case: str, kind: str) -> None:
    count = 200_000
    entry = MANY[f"E3-{kind}"]
    write_packed(sandbox.archive, (entry(number) for number in range(count)))
    manifest = sandbox.unpack(sandbox.archive, most_bytes=LEAST_BYTES + BYTES_PER_ENTRY * count)
    assert getattr(manifest, {"folders": "directories"}.get(kind, kind)) == count


@case("E3-ten-million")
def test_ten_million_empty_files_stop_at_the_limit(sandbox: Sandbox, case: str) -> None:
    # The same entries over and over would be duplicates, so the limit must come first.
    some = b"".join(header(b"%d" % number) for number in range(20_000))
    with sandbox.archive.open("wb") as target:
        target.write(gzip.compress(some, 1, mtime=0))
        repeated = gzip.compress(header(b"x") * 20_000, 9, mtime=0)
        for _ in range(500):
            target.write(repeated)
    error = sandbox.refusal(sandbox.archive, Limits(entries=10_000))
    assert (error.code, error.entry_number) == ("too_many_entries", 10_001)


# ---- headers


@pytest.mark.parametrize(
    ("code", "kind", "magic"),
    [
        pytest.param("extension_too_large", b"L", GNU, id="E4-long-name"),
        pytest.param("extension_too_large", b"K", GNU, id="E4-long-link"),
        pytest.param("extension_too_large", b"x", b"ustar\x0000", id="E4-pax"),
        pytest.param("extension_too_large", b"g", b"ustar\x0000", id="E4-global-pax"),
    ],
)
def test_large_extensions(sandbox: Sandbox, code: str, kind: bytes, magic: bytes) -> None:
    size = 64 * MEBIBYTE
    before = header(b"extension", kind=kind, size=size, magic=magic)
    write_zeros(sandbox.archive, before, 64, after=file(b"f") + END)
    assert sandbox.refusal(sandbox.archive).code == code
    edge = raw_extension(bytes(MEBIBYTE + 1), kind, magic=magic)
    assert sandbox.refusal(packed(edge, file(b"f"))).code == code


@case("E4-largest")
def test_largest_extension(sandbox: Sandbox, case: str) -> None:
    room = MEBIBYTE - len(pax_record(b"comment", b"x" * MEBIBYTE)) + MEBIBYTE
    record = pax_record(b"comment", b"x" * room)
    assert len(record) == MEBIBYTE
    assert sandbox.unpack(packed(raw_extension(record, b"x"), file(b"f"))).files == 1


@pytest.mark.parametrize(
    ("code", "one"),
    [
        pytest.param("too_many_extensions", pax({"comment": b"x"}, b"g"), id="E4-1000-global"),
        pytest.param("repeated_extension", pax({"comment": b"x"}), id="E4-1000-pax"),
        pytest.param("repeated_extension", long_name(b"x"), id="E4-1000-long-names"),
    ],
)
def test_a_thousand_extensions_in_a_row(sandbox: Sandbox, code: str, one: bytes) -> None:
    assert sandbox.refusal(packed(*[one] * 1000, file(b"f"))).code == code


@case("E4-many-records")
def test_many_small_records(sandbox: Sandbox, case: str) -> None:
    payload = b"".join(pax_record(b"k%d" % number, b"") for number in range(90_000))
    assert len(payload) <= MEBIBYTE
    assert sandbox.unpack(packed(raw_extension(payload, b"x"), file(b"f"))).files == 1


def old_sparse(extended: int) -> bytes:
    """An old GNU sparse header of 1 TiB with so many further blocks of 21 map entries."""
    block = bytearray(header(b"sparse", kind=b"S", size=0, magic=GNU))
    block[386:410] = base256(2**40 - 512) + b"%011o\x00" % 0
    block[482] = bool(extended)
    block[483:495] = base256(2**40)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\x00 " % sum(block)
    more = b"".join(base256(n * 512) + b"%011o\x00" % 0 for n in range(21))
    full = more + b"\x01" + bytes(7)
    return bytes(block) + full * (extended - 1) + (more + bytes(8) if extended else b"")


MILLION_OF_MAP = b"%d\n" % 10**6 + b"512\n0\n" * 10**6

SPARSE = {
    "E5-old-gnu": old_sparse(0),
    "E5-old-gnu-long-map": old_sparse(10**6 // 21),
    "E5-pax-0.0": raw_extension(
        pax_record(b"GNU.sparse.size", b"%d" % 2**40)
        + pax_record(b"GNU.sparse.numblocks", b"2")
        + (pax_record(b"GNU.sparse.offset", b"0") + pax_record(b"GNU.sparse.numbytes", b"0")) * 2,
        b"x",
    )
    + file(b"s", b""),
    "E5-pax-0.1": pax(
        {
            "GNU.sparse.size": b"%d" % 2**40,
            "GNU.sparse.numblocks": b"1",
            "GNU.sparse.map": b"0,0," + b"512,0," * 100_000 + b"0,0",
        }
    )
    + file(b"s", b""),
    "E5-pax-1.0": pax(
        {
            "GNU.sparse.major": b"1",
            "GNU.sparse.minor": b"0",
            "GNU.sparse.name": b"s",
            "GNU.sparse.realsize": b"%d" % 2**40,
        }
    )
    + header(b"GNUSparseFile.0/s", size=len(MILLION_OF_MAP))
    + padded(MILLION_OF_MAP),
    "E5-star": pax({"SCHILY.realsize": b"%d" % 2**40}) + file(b"s", b""),
    "E5-no-type": header(b"s", kind=b"S"),
}


@pytest.mark.parametrize("parts", SPARSE.values(), ids=SPARSE.keys())
def test_sparse_files_are_refused_by_type(sandbox: Sandbox, parts: bytes) -> None:
    assert sandbox.refusal(packed(parts)).code in {"sparse", "repeated_pax_keyword"}


@case("E6-promises-more-than-there-is")
def test_an_entry_larger_than_the_archive(sandbox: Sandbox, case: str) -> None:
    huge = Limits(total_bytes=2**62, file_bytes=2**62, ratio=2**40)
    for kind in (b"0", b"7"):
        data = packed(file(b"a"), header(b"n", kind=kind, size=base256(2**50)), file(b"b"))
        assert sandbox.refusal(data, huge).code == "truncated"


@case("E6-sizes-that-lead-back")
def test_sizes_that_lead_back(sandbox: Sandbox, case: str) -> None:
    for kind in (b"0", b"x", b"L"):
        for size in (-BLOCK, -3 * BLOCK, -(2**31)):
            back = header(b"n", kind=kind, size=base256(size), magic=GNU)
            assert sandbox.refusal(packed(file(b"a"), back)).code == "bad_size"
    for text in (b"-512", b"-0"):
        data = packed(pax({"size": text}), file(b"a"))
        assert sandbox.refusal(data).code == "bad_size"


# ---- the machine's own limits


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        pytest.param("size=1m", [file(b"a", os.urandom(2 * MEBIBYTE))], id="E7-bytes"),
        pytest.param(
            "size=1m", [file(b"%d" % n, os.urandom(9000)) for n in range(200)], id="E7-many-files"
        ),
        pytest.param("nr_inodes=20", [file(b"%d" % n) for n in range(40)], id="E7-inodes"),
        pytest.param("nr_inodes=20", [folder(b"%d" % n) for n in range(40)], id="E7-folders"),
        pytest.param(
            "nr_inodes=20", [symlink(b"%d" % n, b"x") for n in range(40)], id="E7-symlinks"
        ),
    ],
)
def test_full_disk(tmp_path: Path, options: str, parts: list[bytes]) -> None:
    archive = tmp_path / "a"
    archive.write_bytes(packed(*parts))
    with small_disk(tmp_path / "disk", options) as disk:
        with left_as_it_was(), pytest.raises(NoSpace) as caught:
            unpack(archive, disk / "tree")
        assert (caught.value.code, caught.value.retryable) == ("no_space", True)
        assert list(disk.iterdir()) == []
        assert archive.exists()


FEW_HANDLES = """
import resource, sys
from pathlib import Path
from buttercup_dagster.sources.archive import unpack
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
manifest = unpack(Path(sys.argv[1]), Path(sys.argv[2]))
manifest.save(Path(sys.argv[3]))
"""


@case("E8")
def test_few_handles_suffice(tmp_path: Path, case: str) -> None:
    archive = tmp_path / "a"
    deep = b"".join(pax({"path": b"d/" * n + b"f"}) + file(b"x") for n in range(1, 200))
    archive.write_bytes(packed(deep, *[file(b"many/%d" % n) for n in range(300)]))
    done = subprocess.run(
        [sys.executable, "-c", FEW_HANDLES, archive, tmp_path / "tree", tmp_path / "manifest"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    manifest = Manifest.load(tmp_path / "manifest")
    assert (manifest.files, manifest.directories) == (499, 200)
    assert manifest.differences(tmp_path / "tree") == []


# ---- time


def empty_stored_blocks(mebibytes: int) -> bytes:
    """A gzip member that says nothing at length: stored blocks without a byte in them."""
    start = gzip.compress(b"", mtime=0)[:10]
    nothing = b"\x00\x00\x00\xff\xff"
    count = mebibytes * MEBIBYTE // len(nothing)
    return start + nothing * count + b"\x01\x00\x00\xff\xff" + bytes(8)


@case("E9-empty-blocks")
def test_empty_stored_blocks_end_with_the_archive(sandbox: Sandbox, case: str) -> None:
    data = empty_stored_blocks(8)
    assert zlib.decompress(data, 31) == b""
    assert sandbox.refusal(data).code == "missing_end"
    assert sandbox.unpack(data + packed(file(b"f")) + data).files == 1


@case("E9-empty-members")
def test_a_million_empty_members_end_with_the_archive(sandbox: Sandbox, case: str) -> None:
    data = gzip.compress(b"", mtime=0) * 1_000_000
    assert sandbox.refusal(data).code == "missing_end"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(lambda: empty_stored_blocks(64), id="E9-time-of-empty-blocks"),
        pytest.param(lambda: gzip.compress(b"", mtime=0) * 3_000_000, id="E9-time-of-members"),
    ],
)
def test_time_limit_ends_an_archive_that_says_nothing(
    sandbox: Sandbox, data: Callable[[], bytes]
) -> None:
    error = sandbox.refusal(data(), Limits(seconds=0.05))
    assert error.code == "took_too_long"


@case("E9-processor-time")
def test_processor_time_never_ends_before_the_clock_says_so(sandbox: Sandbox, case: str) -> None:
    """The system counts processor time in whole seconds, and kills without a word."""
    data = gzip.compress(b"", mtime=0) * 3_000_000
    assert sandbox.refusal(data, Limits(seconds=1.49)).code == "took_too_long"
