"""What the commands write to the terminal: lines, tables, errors, words for people."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

COLORS: Final[Mapping[str, str]] = {
    "pending": "yellow",
    "scheduled": "yellow",
    "downloading": "cyan",
    "ready": "green",
    "succeeded": "green",
    "failed": "red",
    "errored": "red",
    "canceled": "bright_black",
    "expired": "bright_black",
}
"""Colour of each state, on a terminal."""

GAP: Final = "  "
SHORTEST: Final = 6
"""A column is not cut to fewer characters, however narrow the terminal."""

LONGEST_INDENT: Final = 16
"""After a longer head the further lines of a text begin near the edge, or little would fit."""


def harmless(text: str) -> str:
    """Text of unknown origin on one line, with what would steer a terminal escaped."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def give_up(program: str, text: str) -> NoReturn:
    """Say in one line why the command cannot do what it was asked.

    Raises:
        SystemExit: status 1.
    """
    sys.stderr.write(f"{program}: {harmless(' '.join(text.split()))}\n")
    raise SystemExit(1)


@contextlib.contextmanager
def printing(program: str) -> Iterator[None]:
    """Standard output for a block that prints.

    A reader that has seen enough, such as `head`, ends the block and nothing more.

    Raises:
        SystemExit: status 1 after one line; the output cannot be written.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()
        give_up(program, f"the output cannot be written: {error.strerror or error}")


def _discard_output() -> None:
    # Python writes what is left in the buffer when it ends, and would complain once more.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def make_console() -> Console:
    """Standard output for people: colours on a terminal only, nothing in it is markup."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704 - called while the error is handled; `printing` knows what to do

    return Output(markup=False, highlight=False, emoji=False)


def put(console: Console, line: Text | str) -> None:
    """Print a line as long as it is; a terminal wraps it."""
    console.print(line, soft_wrap=True)


def put_table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    shrink: str,
    colored: str = "",
) -> None:
    """Print rows in columns of blanks.

    Args:
        console: where to.
        headings: of the columns.
        rows: printable cells, one under each heading.
        shrink: heading of the column that is cut where a row would be longer than the line.
        colored: heading of the column that holds states, to be coloured.
    """
    from rich.text import Text

    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    cut = list(headings).index(shrink)
    over = sum(widths) + len(GAP) * (len(widths) - 1) - console.width
    if over > 0:
        widths[cut] = max(widths[cut] - over, min(widths[cut], SHORTEST))
    put(console, Text(GAP.join(map(str.ljust, headings, widths)).rstrip(), "bold"))
    for row in rows:
        line = Text()
        for heading, cell, width in zip(headings, row, widths, strict=True):
            shown = cell if len(cell) <= width else f"{cell[: width - 1]}…"
            line.append(shown, COLORS.get(cell, "") if heading == colored else "")
            line.append(" " * (width - len(shown)) + GAP)
        line.rstrip()
        put(console, line)


def put_text(console: Console, head: Text, text: str, style: str = "") -> None:
    """Print text after a head; on a terminal its further lines are indented.

    Words are not broken, so that a digest or a URL can be copied; elsewhere it is one line.
    """
    if console.is_terminal:
        left = len(head)
        indent = left if left <= LONGEST_INDENT else len(GAP) * 2
        text = "\n".join(
            textwrap.wrap(
                text,
                console.width,
                initial_indent=" " * left,
                subsequent_indent=" " * indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )[left:]
    put(console, head.append(text, style))


def size(number: float | None) -> str:
    """A number of bytes, such as `12.3 MiB`."""
    if number is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024 or unit == "GiB":
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("unreachable")
