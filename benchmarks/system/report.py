"""The table for people and the JSON for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

from benchmarks.ground import MEBIBYTE
from benchmarks.report import WIDTH
from benchmarks.system.archives import Original
from benchmarks.system.calibration import Calibration
from benchmarks.system.results import Figure, Row, Unit

_COLUMNS: Final = "{:<38}{:>12}{:>12}{:>10}  {}"
_CALIBRATION: Final = "{:<42}{:>10}{:>10}{:>10}"

_PARTS: Final = {
    "syncs_per_second": "writes synced to the disk, per second",
    "sha256_megabytes_per_second": "SHA-256, MB/s",
    "reference_tasks_per_second": "plain worker, tasks per second",
}

_SUFFIXES: Final[Mapping[Unit, str]] = {
    "seconds": "{:.2f} s",
    "milliseconds": "{:.1f} ms",
    "per second": "{:,.1f} /s",
    "times": "{:.2f} x",
    "tasks": "{:.1f}",
}


def header(machine: Mapping[str, str], originals: Sequence[Original]) -> str:
    """What was measured, and where."""
    inputs = {
        role: f"{one.name}, {one.archive_bytes / MEBIBYTE:.1f} MiB, {one.entries:,} entries"
        for role, one in zip(("repo", "tooling"), originals, strict=True)
    }
    lines: list[str] = []
    for name, text in (*machine.items(), *inputs.items()):
        lines += textwrap.wrap(
            text, WIDTH, initial_indent=f"{name:<10}", subsequent_indent=" " * 10
        )
    return "\n".join(lines)


def calibration_table(now: Calibration, recorded: Calibration | None) -> str:
    """How fast this machine is beside the project's."""
    lines = [_CALIBRATION.format("   calibration", "here", "recorded", "slower by")]
    ratios = now.slower_than(recorded) if recorded else {}
    for name, value in asdict(now).items():
        lines.append(
            _CALIBRATION.format(
                f"   {_PARTS[name]}",
                f"{value:,.1f}",
                f"{getattr(recorded, name):,.1f}" if recorded else "-",
                f"{ratios[name]:.2f}" if recorded else "-",
            )
        )
    if recorded:
        said = f"figures are judged after division by {now.slowdown(recorded):.2f}"
    else:
        said = "nothing is recorded to compare with (--record); figures are judged as they are"
    return "\n".join([*lines, f"   {said}"])


def table(rows: Sequence[Row], slowdown: float, *, judged: bool) -> str:
    """A line for each figure, and what else was seen."""
    lines = [
        _COLUMNS.format("   what", "measured", "judged", "must be", "").rstrip(),
        "-" * WIDTH,
    ]
    for row in rows:
        for figure in row.figures:
            lines += _lines(figure, slowdown, judged=judged)
        for text in row.wrong:
            lines += textwrap.wrap(
                f"{row.name}: {text}", WIDTH, initial_indent="FAILED ", subsequent_indent="       "
            )
    return "\n".join(lines)


def _lines(figure: Figure, slowdown: float, *, judged: bool) -> list[str]:
    reached = figure.reached(slowdown) if judged else None
    sign = ">=" if figure.unit == "per second" else "<="
    must = "-" if figure.limit is None or not judged else f"{sign} {figure.limit:,g}"
    said = {True: "ok", False: "MISSED", None: ""}[reached]
    first = _COLUMNS.format(
        figure.what,
        _amount(figure.measured, figure.unit),
        _amount(figure.judged(slowdown), figure.unit) if judged else "-",
        must,
        said,
    ).rstrip()
    if not figure.note:
        return [first]
    return [
        first,
        *textwrap.wrap(figure.note, WIDTH, initial_indent="   ", subsequent_indent="   "),
    ]


def as_json(
    machine: Mapping[str, str],
    originals: Sequence[Original],
    now: Calibration,
    recorded: Calibration | None,
    rows: Sequence[Row],
    *,
    judged: bool,
) -> str:
    """Everything."""
    slowdown = now.slowdown(recorded)
    content: dict[str, Any] = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(machine),
        "inputs": [
            {"name": one.name, "bytes": one.archive_bytes, "entries": one.entries}
            for one in originals
        ],
        "calibration": asdict(now),
        "recorded": asdict(recorded) if recorded else None,
        "slowdown": slowdown,
        "judged": judged,
        "rows": [
            {
                "name": row.name,
                "figures": [
                    {
                        **asdict(figure),
                        "judged": figure.judged(slowdown),
                        "reached": figure.reached(slowdown) if judged else None,
                    }
                    for figure in row.figures
                ],
                "wrong": list(row.wrong),
                "samples": row.samples,
            }
            for row in rows
        ],
    }
    return json.dumps(content, indent=2) + "\n"


def _amount(value: float, unit: Unit) -> str:
    return _SUFFIXES[unit].format(value)
