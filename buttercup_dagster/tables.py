"""Tasks as rows for people: the same in the terminal and in Dagster."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from task_api.registry import TaskRecord
from task_api.task import printable

HEADINGS: Final = ("TASK", "STATE", "PROJECT", "TYPE", "DEADLINE")

_MARKDOWN: Final = re.compile(r"[\\`*_{}\[\]<>()#!|~&]")
"""What Markdown or HTML may take for its own; a backslash before it makes it plain."""

Row = tuple[str, str, str, str, str]


def moment(milliseconds: int) -> str:
    """A UNIX time in milliseconds as `2026-03-01 12:00:00`, UTC."""
    try:
        return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # a refused task is recorded with any number
        return f"{milliseconds} ms"


def until(milliseconds: int) -> str:
    """How far a moment is away, in one unit: `in 5 h`, or `2 d ago`."""
    seconds = milliseconds / 1000 - time.time()
    shown = span(seconds)
    return f"in {shown}" if seconds > 0 else f"{shown} ago"


def span(seconds: float) -> str:
    """A stretch of time in one unit, such as `5 h` or `40 s`."""
    seconds = abs(seconds)
    for unit, length in (("y", 31_557_600), ("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{min(seconds / length, 9999):.0f} {unit}"
    return f"{seconds:.0f} s"


def task_rows(records: Sequence[TaskRecord]) -> list[Row]:
    """One row for each task, under `HEADINGS`."""
    return [
        (
            record.task.task_id,
            str(record.state),
            printable(record.task.project_name, limit=40),
            str(record.task.type),
            until(record.task.deadline_ms),
        )
        for record in records
    ]


def plain_table(rows: Sequence[Row]) -> str:
    """The rows in columns of blanks, for a log."""
    if not rows:
        return "no tasks"
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [HEADINGS, *rows]
    )


def markdown_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; what a sender has written is shown as it is, not rendered."""
    lines = [
        HEADINGS,
        tuple("---" for _ in HEADINGS),
        *(tuple(_MARKDOWN.sub(r"\\\g<0>", cell) for cell in row) for row in rows),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
