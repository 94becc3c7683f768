"""The table for people and the JSON for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Final

from benchmarks.ground import MEBIBYTE
from benchmarks.inputs import Archive
from benchmarks.rows import Result

WIDTH: Final = 80
_COLUMNS: Final = "{:<35}{:>11}{:>11}{:>7}{:>8}  {}"


def header(machine: Mapping[str, str], archives: Iterable[Archive], pairs: int) -> str:
    """What was measured, and where."""
    inputs = {
        archive.size: f"{archive.name}, {archive.bytes / MEBIBYTE:.1f} MiB, "
        f"{archive.entries:,} entries"
        for archive in archives
    }
    method = (
        f"medians of {pairs} interleaved pair{'s' if pairs != 1 else ''}; ratio of the medians; "
        "of memory the highest of as many"
    )
    lines: list[str] = []
    for name, text in (*machine.items(), *inputs.items(), ("method", method)):
        lines += textwrap.wrap(
            text, WIDTH, initial_indent=f"{name:<10}", subsequent_indent=" " * 10
        )
    return "\n".join(lines)


def table(results: Sequence[Result], *, judged: bool) -> str:
    """Two lines for each result: the numbers, and what they are compared with."""
    lines = [
        _COLUMNS.format("   what", "ours", "reference", "ratio", "must be", "").rstrip(),
        "-" * WIDTH,
    ]
    for result in results:
        must = "-" if result.must is None or not judged else f"<= {result.must:.2f}"
        lines.append(
            _COLUMNS.format(
                f"{result.row}  {result.what}",
                _amount(result.ours, result.unit),
                _amount(result.reference, result.unit),
                f"{result.ratio:.2f}",
                must,
                verdict(result) if judged else "",
            ).rstrip()
        )
        lines.append(f"   {result.against}{_spread(result)}")
    return "\n".join(lines)


def verdict(result: Result) -> str:
    """What to say of a result."""
    return {True: "ok", False: "MISSED", None: ""}[result.reached]


def as_json(
    machine: Mapping[str, str],
    archives: Iterable[Archive],
    results: Sequence[Result],
    *,
    judged: bool,
) -> str:
    """Everything, in seconds and bytes."""
    content = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(machine),
        "inputs": [
            {key: value for key, value in asdict(archive).items() if key != "path"}
            for archive in archives
        ],
        "judged": judged,
        "results": [
            {
                **asdict(result),
                "ratio": result.ratio,
                "reached": result.reached if judged else None,
            }
            for result in results
        ],
    }
    return json.dumps(content, indent=2) + "\n"


def _amount(value: float, unit: str) -> str:
    return f"{value:.3f} s" if unit == "seconds" else f"{value / MEBIBYTE:.1f} MiB"


def _spread(result: Result) -> str:
    if result.pairs is None or len(result.pairs.ours) < 2:
        return ""
    ratios = result.pairs.ratios
    return f"; ratios of the pairs {min(ratios):.2f} to {max(ratios):.2f}"
