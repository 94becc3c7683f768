"""What the parent believes of the process that has read a hostile archive."""

from __future__ import annotations

import pytest

from buttercup_dagster.sources.unpacker import _stays_inside

FILE = b"f\t644\t1\t5\tfolder/x..y\n"
LINK = b"l\t\t\t5\tfolder/link\t../x\n"
LEFT_OUT = b"x\t\t\t\tout\t/etc\n"


@pytest.mark.parametrize(
    "rows",
    [
        b"",
        FILE,
        LINK,
        FILE + LINK + LEFT_OUT,
        FILE + LEFT_OUT + LINK,
        FILE + b"h\t644\t1\t5\tz\tfolder/x..y\n" + LINK,
        b"d\t755\t\t\tfolder\n" + FILE + b"t\t\t\t5\tfolder\n",
    ],
)
def test_rows_about_the_tree_are_believed(rows: bytes) -> None:
    assert _stays_inside(rows)


@pytest.mark.parametrize("before", [b"", FILE, FILE + LINK])
@pytest.mark.parametrize(
    "row",
    [
        b"f\t644\t1\t5\t/a\n",
        b"f\t644\t1\t5\t../a\n",
        b"f\t644\t1\t5\ta/../b\n",
        b"f\t644\t1\t5\ta\0b\n",
        b"d\t755\t\t\t..\n",
        b"d\t755\t\t\ta/..\n",
        b"t\t\t\t5\t..\n",
        b"h\t644\t1\t5\ta\t../b\n",
        b"h\t644\t1\t5\t../a\tb\n",
        b"l\t\t\t5\t../b\tx\n",
        b"l\t\t\t5\t/b\tx\n",
        b"l\t\t\t5\tb\n",
        b"x\t\t\t\t..\tx\n",
    ],
)
def test_rows_about_what_lies_outside_are_not(before: bytes, row: bytes) -> None:
    assert not _stays_inside(before + row)


def test_a_file_after_the_links_is_not_believed() -> None:
    assert not _stays_inside(LINK + FILE)
