"""What holds an archive together: gzip, blocks, headers, extensions, its end. Cases D1 to D20."""

from __future__ import annotations

import gzip
import itertools
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from buttercup_dagster.sources.archive import ArchiveError, unpack
from tests.support.archives import (
    BLOCK,
    END,
    GNU,
    V7,
    base256,
    file,
    folder,
    hardlink,
    header,
    long_name,
    members,
    packed,
    padded,
    pax,
    pax_record,
    plain,
    raw_extension,
    symlink,
)
from tests.support.cases import case
from tests.support.sandbox import Sandbox, left_as_it_was

NOISE = bytes(byte for number in range(1 << 14) for byte in (number * number % 251, number % 253))


# ---- cut archives


def unpack_each(folder_of_all: Path, archives: list[bytes]) -> list[str | None]:
    """The code with which each archive is refused, None where it is accepted.

    A few are unpacked at a time, each into a folder of its own in which nothing else may appear.
    """

    def run(number: int) -> str | None:
        place = folder_of_all / str(number)
        place.mkdir()
        archive = folder_of_all / f"{number}.archive"
        archive.write_bytes(archives[number])
        code: str | None = None
        try:
            unpack(archive, place / "tree")
        except ArchiveError as error:
            code = error.code
        assert [path.name for path in place.iterdir()] == ([] if code else ["tree"])
        return code

    with left_as_it_was(), ThreadPoolExecutor(4) as pool:
        return list(pool.map(run, range(len(archives))))


SMALL = (folder(b"d/"), file(b"d/f", NOISE[:100]), symlink(b"d/l", b"f"))
ENDS_EARLY = {"empty_file", "wrong_format", "gzip_truncated", "truncated", "missing_end"}


@case("D1")
def test_every_prefix_of_a_gzipped_archive(tmp_path: Path, case: str) -> None:
    whole = packed(*SMALL)
    assert len(whole) < 400
    codes = unpack_each(tmp_path, [whole[:length] for length in range(len(whole) + 1)])
    assert codes[-1] is None
    assert set(codes[:-1]) <= ENDS_EARLY


@case("D1-several-members")
def test_prefixes_of_several_members(tmp_path: Path, case: str) -> None:
    stream = plain(*SMALL)
    whole = members(stream, [100, BLOCK, len(stream) - BLOCK])
    # One zero block is an end too, so what ends with the third member is whole.
    third = len(members(stream[: len(stream) - BLOCK], [100, BLOCK]))
    lengths = [n for n in range(0, len(whole), 7) if n != third]
    assert None not in unpack_each(tmp_path, [whole[:length] for length in lengths])


@case("D1-D4-plain")
def test_prefixes_of_a_plain_archive(tmp_path: Path, case: str) -> None:
    whole = plain(*SMALL)
    last = len(whole) - BLOCK  # an archive with one of its zero blocks counts as whole
    around = {n + d for n in range(0, last, BLOCK) for d in (-1, 0, 1, 100, 257, 345)}
    lengths = [*sorted(n for n in around if 0 <= n < last), last - 1]
    codes = unpack_each(tmp_path, [whole[:length] for length in lengths])
    assert set(codes) <= ENDS_EARLY


@pytest.mark.parametrize("missing", [1, 2, 4, 5, 7, 8])
@case("D2")
def test_trailer_of_gzip_is_cut(sandbox: Sandbox, case: str, missing: int) -> None:
    data = packed(file(b"a", NOISE))
    assert sandbox.refusal(data[:-missing]).code == "gzip_truncated"


@pytest.mark.parametrize(
    ("code", "data"),
    [
        pytest.param("missing_end", packed(file(b"a"), end=b""), id="D3-after-a-file"),
        pytest.param("missing_end", packed(folder(b"a/"), end=b""), id="D3-after-a-folder"),
        pytest.param("missing_end", packed(file(b"a"), file(b"b", b""), end=b""), id="D3-empty"),
        pytest.param("missing_end", plain(file(b"a"), end=b""), id="D3-plain"),
        pytest.param("missing_end", packed(end=b""), id="D3-nothing"),
        pytest.param("truncated", packed(file(b"a"), end=header(b"b")[:100]), id="D4-in-a-header"),
        pytest.param("truncated", packed(file(b"a"), end=bytes(511)), id="D4-in-the-end-marker"),
        pytest.param(
            "truncated",
            packed(file(b"a"), header(b"b", size=5000), end=b"x" * 512),
            id="D4-in-data",
        ),
        pytest.param("truncated", packed(header(b"b", size=5), end=b""), id="D4-before-data"),
        pytest.param("truncated", packed(file(b"a")[:-10], end=b""), id="D4-in-padding"),
        pytest.param("truncated", packed(pax({"path": b"x"})[:-1], end=b""), id="D4-in-pax"),
        pytest.param("truncated", packed(long_name(b"x")[:BLOCK], end=b""), id="D4-in-a-long-name"),
    ],
)
def test_cut_archives(sandbox: Sandbox, code: str, data: bytes) -> None:
    assert sandbox.refusal(data).code == code


@pytest.mark.parametrize("form", [packed, plain])
@case("D5")
def test_one_zero_block_is_an_end(sandbox: Sandbox, case: str, form: Callable[..., bytes]) -> None:
    assert sandbox.unpack(form(file(b"a"), end=bytes(BLOCK))).files == 1
    assert sandbox.unpack(form(file(b"a"), end=bytes(20 * BLOCK))).files == 1
    assert sandbox.unpack(form(end=END)).entries == {}


# ---- what stands behind


@pytest.mark.parametrize(
    ("code", "data"),
    [
        pytest.param("gzip_trailing", packed(file(b"a")) + b"garbage", id="D6-garbage"),
        pytest.param("gzip_trailing", packed(file(b"a")) + b"g", id="D6-one-byte"),
        pytest.param("gzip_trailing", packed(file(b"a")) + bytes(5000) + b"g", id="D6-after-zeros"),
        pytest.param("gzip_trailing", packed(file(b"a")) + b"\x1f", id="D6-half-a-magic"),
        pytest.param(
            "gzip_trailing", packed(file(b"a")) + bytes(1) + packed(file(b"b")), id="D6-zeros-gzip"
        ),
        pytest.param("gzip_truncated", packed(file(b"a")) + b"\x1f\x8b", id="D6-magic-only"),
        pytest.param("trailing_data", packed(file(b"a")) + packed(file(b"b")), id="D8-gzip"),
        pytest.param("trailing_data", packed(file(b"a"), end=END + file(b"b") + END), id="D8-tar"),
        pytest.param("trailing_data", plain(file(b"a"), end=END + file(b"b") + END), id="D8-plain"),
        pytest.param(
            "trailing_data",
            packed(file(b"a"), end=bytes(BLOCK) + file(b"b") + END),
            id="D8-one-zero",
        ),
        pytest.param(
            "trailing_data",
            packed(file(b"a"), end=bytes(100 * BLOCK) + file(b"b")),
            id="D8-far-away",
        ),
        pytest.param("trailing_data", packed(file(b"a"), end=END + b"x"), id="D8-one-byte"),
        pytest.param(
            "trailing_data", packed(file(b"a"), end=END + b"\x00" * 99 + b"x"), id="D8-odd"
        ),
        pytest.param(
            "trailing_data", packed(file(b"a"), end=END + bytes(5 << 20) + b"x"), id="D8-5-MiB-away"
        ),
    ],
)
def test_what_stands_behind_an_archive(sandbox: Sandbox, code: str, data: bytes) -> None:
    assert sandbox.refusal(data).code == code


@case("D6")
def test_zeros_behind_gzip_are_accepted(sandbox: Sandbox, case: str) -> None:
    for count in (1, 2, 511, 512, 100_000, 3 << 20):
        assert sandbox.unpack(packed(file(b"a")) + bytes(count)).files == 1


@case("D7")
def test_several_gzip_members(sandbox: Sandbox, case: str) -> None:
    stream = plain(file(b"a", NOISE[:3000]), file(b"b", NOISE))
    cuts = [
        [BLOCK],
        [700],
        [100, BLOCK, 700, 700, len(stream) - 1],
        [0, 0, len(stream), len(stream)],
        range(0, len(stream), BLOCK // 2),
        range(1, 1200),
    ]
    for places in cuts:
        manifest = sandbox.unpack(members(stream, places) + bytes(1000))
        assert (manifest.files, manifest.bytes) == (2, 3000 + len(NOISE))
        assert (sandbox.tree / "b").read_bytes() == NOISE


@case("D7-header-fields")
def test_every_field_that_a_gzip_header_may_have(sandbox: Sandbox, case: str) -> None:
    stream = plain(file(b"a"))
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(stream) + packer.flush()
    trailer = zlib.crc32(stream).to_bytes(4, "little") + len(stream).to_bytes(4, "little")
    fields = b"\x05\x00extra" + b"name.tar\x00" + b"a comment\x00"
    start = b"\x1f\x8b\x08" + bytes([0x1C]) + b"\x01\x02\x03\x04\x02\xff"
    assert sandbox.unpack(start + fields + body + trailer).files == 1
    checked = b"\x1f\x8b\x08" + bytes([0x1E]) + b"\x01\x02\x03\x04\x02\xff" + fields
    check = (zlib.crc32(checked) & 0xFFFF).to_bytes(2, "little")
    assert sandbox.unpack(checked + check + body + trailer).files == 1


@pytest.mark.parametrize("at", [-8, -7, -6, -5, -4, -3, -2, -1])
@case("D9")
def test_wrong_checksum_or_length(sandbox: Sandbox, case: str, at: int) -> None:
    for level in (0, 9):
        data = bytearray(gzip.compress(plain(file(b"a", NOISE)), level, mtime=0))
        data[at] ^= 1
        assert sandbox.refusal(bytes(data)).code == "gzip_damaged"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:3000] + b"\xff" * 3000, id="D9-data"),
        pytest.param(lambda data: data[:2] + b"\x07" + data[3:], id="D9-method"),
        pytest.param(lambda data: data[:3] + b"\xe0" + data[4:], id="D9-reserved-flags"),
        pytest.param(lambda data: data[:-8] + bytes(8), id="D9-no-trailer"),
        pytest.param(lambda data: data[:10] + b"\x07" + data[11:], id="D9-block-type"),
    ],
)
def test_damaged_gzip(sandbox: Sandbox, damage: Callable[[bytes], bytes]) -> None:
    data = packed(file(b"a", b",".join(b"%d" % n for n in range(9000))))
    assert sandbox.refusal(damage(data)).code == "gzip_damaged"


@case("D9-first-of-several-members")
def test_damage_in_the_first_member(sandbox: Sandbox, case: str) -> None:
    stream = plain(file(b"a", NOISE))
    first, second = gzip.compress(stream[:900], mtime=0), gzip.compress(stream[900:], mtime=0)
    assert sandbox.unpack(first + second).files == 1
    for at in range(1, 9):
        bad = bytearray(first)
        bad[-at] ^= 0x80
        assert sandbox.refusal(bytes(bad) + second).code == "gzip_damaged"


# ---- headers

# Some old writers added the bytes up as if the ones above 127 were negative.
SIGNED_SUM = b"%06o\x00 " % (int(header(b"\xe9" * 50)[148:154], 8) - 50 * 256)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(header(b"b", checksum=b"000001\x00 "), id="D10-wrong"),
        pytest.param(header(b"b", checksum=b"zzzzzz\x00 "), id="D10-no-number"),
        pytest.param(header(b"b", checksum=bytes(8)), id="D10-zeros"),
        pytest.param(header(b"b", checksum=b"        "), id="D10-blanks"),
        pytest.param(b"x" * BLOCK, id="D10-no-header"),
        pytest.param(bytes(511) + b"x", id="D10-nearly-zero"),
        pytest.param(header(b"b")[:-1] + b"x", id="D10-another-byte"),
        pytest.param(header(b"\xe9" * 50, checksum=SIGNED_SUM), id="D10-signed-sum"),
    ],
)
def test_checksums(sandbox: Sandbox, second: bytes) -> None:
    error = sandbox.refusal(packed(file(b"a"), second, file(b"lost")))
    assert error.code in {"bad_checksum", "bad_number"}
    assert (error.entry_number, error.offset) == (2, 2 * BLOCK)


@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"5", b"2", b"V"])
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(base256(-1), id="D11-minus-one"),
        pytest.param(base256(-BLOCK), id="D11-minus-a-block"),
        pytest.param(base256(-(2**63)), id="D11-E6-far-back"),
        pytest.param(base256(2**63), id="D12-beyond-63-bits"),
        pytest.param(base256(2**64), id="D12-wraps-to-zero"),
    ],
)
def test_sizes_that_are_none(sandbox: Sandbox, size: bytes, kind: bytes) -> None:
    magic = GNU if kind in b"LKV" else b"ustar\x0000"
    entry = header(b"n", kind=kind, size=size, magic=magic)
    error = sandbox.refusal(packed(file(b"a"), entry, file(b"b")))
    assert error.code in {"bad_size", "unsupported_type" if kind == b"V" else "bad_size"}
    assert (error.entry_number, error.offset) == (2, 2 * BLOCK)


@pytest.mark.parametrize(
    ("code", "size"),
    [
        pytest.param("file_too_large", base256(2**63 - 1), id="D12-largest"),
        pytest.param("file_too_large", b"7" * 12, id="D12-octal-overflow"),
        pytest.param("bad_number", b"8" * 12, id="D12-octal-8"),
        pytest.param("bad_number", b"12x45678901\x00", id="D12-junk"),
        pytest.param("bad_number", b"12 45678901\x00", id="D12-blank-inside"),
        pytest.param("bad_number", b"12\x0045678901\x00", id="D12-nul-inside"),
        pytest.param("bad_number", b"5\x00junk\x00\x00\x00\x00\x00\x00", id="D12-junk-behind"),
        pytest.param("bad_number", b"-0000000005\x00", id="D12-minus"),
        pytest.param("bad_number", b"+0000000005\x00", id="D12-plus"),
        pytest.param("bad_number", b"0x000000005\x00", id="D12-hexadecimal"),
        pytest.param("bad_number", b"\x40" + bytes(11), id="D12-other-base"),
        pytest.param("bad_number", b"\x81" + bytes(11), id="D12-too-many-bits"),
        pytest.param("bad_number", b"\xfe" + b"\xff" * 11, id="D12-too-negative"),
        pytest.param("bad_number", b"\t0000000005\x00", id="D12-tab"),
        pytest.param("bad_number", b"5" + "٣".encode() + bytes(9), id="D12-other-digits"),
    ],
)
def test_numbers_that_are_none(sandbox: Sandbox, code: str, size: bytes) -> None:
    error = sandbox.refusal(packed(header(b"n", size=size), padded(b"data\n")))
    assert error.code in {code, "bad_size"}


@case("D12-forms")
def test_every_form_of_a_number(sandbox: Sandbox, case: str) -> None:
    forms = [
        b"00000000005\x00",
        b"000000000005",
        b"00000000005 ",
        b"          5 ",
        b"          5\x00",
        b"5 " + bytes(10),
        b"5" + b" " * 11,
        base256(5),
    ]
    for form in forms:
        sandbox.unpack(packed(header(b"n", size=form), padded(b"data\n")))
        assert (sandbox.tree / "n").read_bytes() == b"data\n"


# ---- extensions

NESTED = file(b"nested", b"hidden\n")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([pax({"size": b"0"}), file(b"a", b"x" * 600)], id="D13-smaller"),
        pytest.param([pax({"size": b"512"}), file(b"a", b"x" * 1024)], id="D13-smaller-by-a-block"),
        pytest.param(
            [pax({"size": b"600"}), file(b"a"), file(b"b"), file(b"c")],
            id="D13-larger-swallows-a-header",
        ),
        pytest.param(
            [pax({"size": b"999999"}), file(b"a"), file(b"b")], id="D13-larger-than-the-archive"
        ),
    ],
)
def test_pax_size_is_honoured_and_what_follows_is_no_header(
    sandbox: Sandbox, parts: list[bytes]
) -> None:
    error = sandbox.refusal(packed(*parts))
    assert error.code in {"bad_number", "bad_checksum", "truncated", "missing_end"}


@case("D13")
def test_headers_inside_data_are_data(sandbox: Sandbox, case: str) -> None:
    # By the header the file is empty, and what follows would be an entry of its own.
    parts = [pax({"size": b"%d" % len(NESTED)}), header(b"outer"), NESTED, file(b"after")]
    manifest = sandbox.unpack(packed(*parts))
    assert sorted(manifest.entries) == ["after", "outer"]
    assert (sandbox.tree / "outer").read_bytes() == NESTED


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        pytest.param(
            "mixed_extensions", [pax({"size": b"512"}), long_name(b"b")], id="D14-size-then-L"
        ),
        pytest.param(
            "mixed_extensions", [pax({"path": b"b"}), long_name(b"b")], id="D14-path-then-L"
        ),
        pytest.param(
            "mixed_extensions", [pax({"size": b"512"}), long_name(b"b", b"K")], id="D14-size-then-K"
        ),
        pytest.param(
            "repeated_extension", [pax({"size": b"512"}), pax({"path": b"b"})], id="D14-size-then-x"
        ),
        pytest.param(
            "repeated_extension", [pax({"path": b"a"}), pax({"path": b"b"})], id="D14-path-twice"
        ),
        pytest.param(
            "mixed_extensions", [long_name(b"a"), pax({"size": b"5"})], id="D14-D19-L-then-x"
        ),
        pytest.param(
            "mixed_extensions", [long_name(b"a", b"K"), pax({"size": b"5"})], id="D14-D19-K-then-x"
        ),
        pytest.param("repeated_extension", [long_name(b"a"), long_name(b"b")], id="D18-two-L"),
        pytest.param(
            "repeated_extension", [long_name(b"a", b"K"), long_name(b"b", b"K")], id="D18-two-K"
        ),
        pytest.param(
            "repeated_extension",
            [long_name(b"a"), long_name(b"b", b"K"), long_name(b"a")],
            id="D18-two-L-around-K",
        ),
    ],
)
def test_extensions_of_extensions(sandbox: Sandbox, code: str, parts: list[bytes]) -> None:
    error = sandbox.refusal(packed(*parts, file(b"c")))
    assert error.code in {code, "repeated_extension"}
    assert error.entry_number == 1


@case("D14-long-name-and-link")
def test_long_name_and_long_link_together(sandbox: Sandbox, case: str) -> None:
    name, text = b"n" * 150, b"t/" * 90 + b"t"
    for parts in (
        [long_name(text, b"K"), long_name(name)],
        [long_name(name), long_name(text, b"K")],
    ):
        manifest = sandbox.unpack(packed(*parts, header(b"x", kind=b"2", link=b"y", magic=GNU)))
        assert manifest.entries[name.decode()].link == text.decode()


@pytest.mark.parametrize(
    ("code", "payload"),
    [
        pytest.param("repeated_pax_keyword", b"9 path=a\n9 path=b\n", id="D15-path"),
        pytest.param("repeated_pax_keyword", b"9 path=a\n9 path=a\n", id="D15-the-same"),
        pytest.param("repeated_pax_keyword", b"9 size=1\n9 size=2\n", id="D15-size"),
        pytest.param(
            "repeated_pax_keyword", b"9 path=a\n11 other=x\n9 path=b\n", id="D15-with-one-between"
        ),
        pytest.param("repeated_pax_keyword", b"11 other=x\n11 other=y\n", id="D15-unknown"),
        pytest.param("bad_pax", b"0 path=a\n", id="D16-length-0"),
        pytest.param("bad_pax", b"1 path=a\n", id="D16-length-1"),
        pytest.param("bad_pax", b"2 path=a\n", id="D16-length-2"),
        pytest.param("bad_pax", b"8 path=a\n", id="D16-too-short"),
        pytest.param("bad_pax", b"10 path=a", id="D16-too-long-by-one"),
        pytest.param("bad_pax", b"99 path=a\n", id="D16-too-long"),
        pytest.param("bad_pax", b"4294967305 path=a\n", id="D16-wraps-in-32-bits"),
        pytest.param("bad_pax", b"18446744073709551625 path=a\n", id="D16-wraps-in-64-bits"),
        pytest.param("bad_pax", b"+9 path=a\n", id="D16-plus"),
        pytest.param("bad_pax", b"-9 path=a\n", id="D16-minus"),
        pytest.param("bad_pax", b"09 path=a\n", id="D16-leading-zero"),
        pytest.param("bad_pax", b" 9 path=a\n", id="D16-leading-blank"),
        pytest.param("bad_pax", b"9\tpath=a\n", id="D16-tab"),
        pytest.param("bad_pax", b"9 path a\n", id="D16-no-equals"),
        pytest.param("bad_pax", b"7 path\n", id="D16-keyword-only"),
        pytest.param("bad_pax", b"5 =a\n", id="D16-no-keyword"),
        pytest.param("bad_pax", b"9 path=ab", id="D16-no-newline"),
        pytest.param("bad_pax", b"9 path=a\njunk", id="D16-junk-behind"),
        pytest.param("bad_pax", b"9 path=a\n\x00\x00", id="D16-zeros-behind"),
        pytest.param("bad_pax", b"10 pa\nh=ab\n", id="D16-newline-in-keyword"),
        pytest.param("bad_pax", b"path=a\n", id="D16-no-length"),
        pytest.param("bad_pax", b"1" * 1_000_000, id="D16-endless-length"),
        pytest.param("bad_pax", b"1 " * 500_000, id="D16-many-lengths"),
        pytest.param("bad_size", pax_record(b"size", b"-1"), id="D16-negative-size"),
        pytest.param("bad_size", pax_record(b"size", b"1e3"), id="D16-size-with-exponent"),
        pytest.param("bad_size", pax_record(b"size", b"0x10"), id="D16-hexadecimal-size"),
        pytest.param("bad_size", pax_record(b"size", b"5.0"), id="D16-fraction-of-a-size"),
        pytest.param("bad_size", pax_record(b"size", b" 5"), id="D16-blank-before-the-size"),
        pytest.param("bad_size", pax_record(b"size", b""), id="D16-empty-size"),
        pytest.param("bad_size", pax_record(b"size", b"%d" % 2**63), id="D16-size-of-64-bits"),
        pytest.param("bad_size", pax_record(b"size", b"1" * 1_000_000), id="D16-endless-size"),
        pytest.param("bad_size", pax_record(b"size", "٣".encode()), id="D16-other-digits"),
    ],
)
def test_pax_records_that_are_none(sandbox: Sandbox, code: str, payload: bytes) -> None:
    error = sandbox.refusal(packed(raw_extension(payload, b"x"), file(b"c")))
    assert error.code == code
    assert error.entry_number == 1


@case("D17")
def test_global_comment_of_git_archive(sandbox: Sandbox, case: str) -> None:
    comment = pax({"comment": b"0123456789abcdef" * 2 + b"01234567"}, b"g")
    assert sandbox.unpack(packed(comment, folder(b"top/"), file(b"top/f"))).files == 1
    assert sandbox.unpack(packed(comment, pax({"path": b"long"}), file(b"f"))).files == 1


@pytest.mark.parametrize(
    ("code", "records"),
    [
        pytest.param("global_pax", {"path": b"x"}, id="D17-path"),
        pytest.param("global_pax", {"linkpath": b"x"}, id="D17-linkpath"),
        pytest.param("global_pax", {"size": b"1"}, id="D17-size"),
        pytest.param("global_pax", {"comment": b"x", "path": b"y"}, id="D17-comment-and-path"),
        pytest.param("sparse", {"GNU.sparse.size": b"1"}, id="D17-E5-sparse"),
    ],
)
def test_global_records_that_name_or_size(
    sandbox: Sandbox, code: str, records: dict[str, bytes]
) -> None:
    for part in (file(b"f"), pax({"mtime": b"1"}) + file(b"f"), b""):
        assert sandbox.refusal(packed(pax(records, b"g"), part)).code == code


@pytest.mark.parametrize(
    ("codes", "parts"),
    [
        pytest.param("dangling_extension", [pax({"path": b"x"})], id="D18-dangling-x"),
        pytest.param("dangling_extension", [long_name(b"x")], id="D18-dangling-L"),
        pytest.param("dangling_extension", [long_name(b"x", b"K")], id="D18-dangling-K"),
        pytest.param(
            "dangling_extension", [long_name(b"x"), long_name(b"y", b"K")], id="D18-dangling-L-K"
        ),
        pytest.param(
            "dangling_extension bad_magic",
            [long_name(b"x", magic=V7), file(b"a", magic=V7)],
            id="D18-L-in-v7",
        ),
        pytest.param(
            "bad_name",
            [raw_extension(b"no-end", b"L", magic=GNU), file(b"c", magic=GNU)],
            id="D18-L-without-its-end",
        ),
        pytest.param(
            "bad_name empty_name",
            [raw_extension(b"\x00", b"L", magic=GNU), file(b"c", magic=GNU)],
            id="D18-L-of-nothing",
        ),
        pytest.param(
            "bad_name empty_name",
            [raw_extension(b"", b"L", magic=GNU), file(b"c", magic=GNU)],
            id="D18-L-without-bytes",
        ),
        pytest.param(
            "bad_name",
            [raw_extension(b"a\x00../b\x00", b"L", magic=GNU), file(b"c", magic=GNU)],
            id="D18-L-with-two-names",
        ),
        pytest.param(
            "bad_name",
            [raw_extension(b"a\x00b\x00", b"K", magic=GNU), symlink(b"c", b"d")],
            id="D18-K-with-two-names",
        ),
    ],
)
def test_dangling_and_odd_extensions(sandbox: Sandbox, codes: str, parts: list[bytes]) -> None:
    error = sandbox.refusal(packed(file(b"first"), *parts))
    assert error.code in codes.split()
    assert error.entry_number == 2


@case("D18")
def test_a_global_header_may_stand_last(sandbox: Sandbox, case: str) -> None:
    assert sandbox.unpack(packed(file(b"a"), pax({"comment": b"x"}, b"g"))).files == 1


@case("D19")
def test_v7_archives(sandbox: Sandbox, case: str) -> None:
    manifest = sandbox.unpack(
        packed(
            header(b"old/", kind=b"\x00", magic=V7),
            file(b"old/f", b"old\n", kind=b"\x00", magic=V7),
            header(b"old/l", kind=b"2", link=b"f", magic=V7),
            header(b"old/h", kind=b"1", link=b"old/f", magic=V7),
        )
    )
    assert (manifest.directories, manifest.files, manifest.symlinks, manifest.hardlinks) == (
        (1, 1, 1, 1)
    )
    assert sandbox.unpack(plain(file(b"f", magic=V7))).files == 1


@pytest.mark.parametrize(
    "magic",
    [
        pytest.param(b"ustar\x00\x00\x00", id="D19-version-of-zeros"),
        pytest.param(b"ustar\x0001", id="D19-another-version"),
        pytest.param(b"ustar\x00  ", id="D19-blank-version"),
        pytest.param(b"ustar   ", id="D19-blanks"),
        pytest.param(b"USTAR\x0000", id="D19-capitals"),
        pytest.param(b"GNUtar \x00", id="D19-gnutar"),
        pytest.param(b"\x00" * 7 + b"x", id="D19-nearly-v7"),
    ],
)
def test_magic_of_no_known_format(sandbox: Sandbox, magic: bytes) -> None:
    error = sandbox.refusal(packed(file(b"first"), file(b"b", magic=magic)))
    assert (error.code, error.entry_number) == ("bad_magic", 2)


@case("D19-both-kinds-in-one-archive")
def test_both_formats_beside_each_other(sandbox: Sandbox, case: str) -> None:
    """What `cat` or `tar --append` makes; each entry is of one format, so all readers agree."""
    name = b"n" * 150
    manifest = sandbox.unpack(
        packed(
            long_name(name),
            file(name[:100], magic=GNU),
            pax({"path": b"m" * 150}),
            file(b"m" * 100),
            hardlink(b"h", b"l"),
            file(b"l", magic=V7),
        )
    )
    assert manifest.files == 3


# ---- formats

WRONG_FORMATS = {
    "D20-zip": b"PK\x03\x04" + bytes(600),
    "D20-empty-zip": b"PK\x05\x06" + bytes(18),
    "D20-xz": b"\xfd7zXZ\x00" + bytes(600),
    "D20-zstd": b"\x28\xb5\x2f\xfd" + bytes(600),
    "D20-bzip2": b"BZh9" + b"1" * 600,
    "D20-7z": b"7z\xbc\xaf\x27\x1c" + bytes(600),
    "D20-compress": b"\x1f\x9d\x90" + bytes(600),
    "D20-page": b"\n<!DOCTYPE html><html><form action=login>" + b" " * 600,
    "D20-xml": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "D20-text": b"not found\n" * 100,
    "D20-json": b'{"message": "not found"}',
    "D20-short": b"\x1f",
    "D20-zeros-too-few": bytes(511),
    "D20-zip-that-ends-in-a-tar": b"PK\x03\x04" + bytes(508) + plain(file(b"a")),
    "D20-tar-whose-first-name-is-a-zip": plain(file(b"PK\x03\x04")),
    "D20-tar-after-a-page": b"<html>" + bytes(506) + plain(file(b"a")),
}


@pytest.mark.parametrize("data", WRONG_FORMATS.values(), ids=WRONG_FORMATS.keys())
def test_other_formats_are_refused_by_name(sandbox: Sandbox, data: bytes) -> None:
    error = sandbox.refusal(data)
    assert (error.code, error.entry_number) == ("wrong_format", 0)
    assert "send a gzipped tar (.tar.gz)" in str(error)


@pytest.mark.parametrize(
    ("codes", "data"),
    [
        pytest.param("empty_file", b"", id="D20-empty"),
        pytest.param("bad_number bad_checksum", gzip.compress(b"text\n" * 200), id="D20-gzip-text"),
        pytest.param("truncated", gzip.compress(b"text\n"), id="D20-gzip-of-a-line"),
        pytest.param("missing_end", gzip.compress(b""), id="D20-gzip-of-nothing"),
        pytest.param(
            "bad_number bad_checksum wrong_format",
            gzip.compress(packed(file(b"a"), file(b"b", NOISE))),
            id="D20-gzip-of-gzip",
        ),
        pytest.param(
            "trailing_data", plain(file(b"a")) + b"PK\x05\x06" + bytes(18), id="D20-tar-then-zip"
        ),
        pytest.param(
            "gzip_trailing", packed(file(b"a")) + b"PK\x05\x06" + bytes(18), id="D20-gzip-then-zip"
        ),
        pytest.param("gzip_truncated", b"\x1f\x8b", id="D20-magic-only"),
    ],
)
def test_what_only_looks_like_an_archive(sandbox: Sandbox, codes: str, data: bytes) -> None:
    assert sandbox.refusal(data).code in codes.split()


@case("D20-plain-tar")
def test_plain_tar_is_known_by_its_magic(sandbox: Sandbox, case: str) -> None:
    for magic in (b"ustar\x0000", GNU, V7):
        assert sandbox.unpack(plain(file(b"a", magic=magic))).files == 1


@case("D20-name-says-nothing")
def test_name_of_the_archive_says_nothing(sandbox: Sandbox, tmp_path: Path, case: str) -> None:
    for name, data in itertools.product(("a.zip", "a.tar.xz", "a"), (packed, plain)):
        archive = tmp_path / name
        archive.write_bytes(data(file(b"f", os.urandom(9))))
        assert sandbox.unpack(archive).files == 1
