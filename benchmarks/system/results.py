"""What was measured, and whether it is good enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Unit = Literal["seconds", "milliseconds", "per second", "times", "tasks"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        what: was measured.
        unit: of `measured` and `limit`.
        measured: as it was.
        limit: the worst value that is good enough; None where none is asked for.
        note: what else was seen, for people.
    """

    what: str
    unit: Unit
    measured: float
    limit: float | None
    note: str = ""

    def judged(self, slowdown: float) -> float:
        """The value that is judged: what a machine as fast as the project's would have shown.

        Args:
            slowdown: how many times slower this machine is, at least 1.
        """
        match self.unit:
            case "seconds" | "milliseconds":
                return self.measured / slowdown
            case "per second":
                return self.measured * slowdown
            case "times" | "tasks":
                return self.measured

    def reached(self, slowdown: float) -> bool | None:
        """Whether the target is reached; None where there is none."""
        if self.limit is None:
            return None
        judged = self.judged(slowdown)
        return judged >= self.limit if self.unit == "per second" else judged <= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """What one row of the list of targets gave.

    Attributes:
        name: by which it is chosen.
        figures: what is judged.
        wrong: what failed, or was done twice; nothing may.
        samples: the single measurements, ready for JSON.
    """

    name: str
    figures: Sequence[Figure]
    wrong: Sequence[str] = ()
    samples: Any = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How it went.

    Attributes:
        good: whether nothing is wrong, and every target is reached that was judged.
        text: for people.
    """

    good: bool
    text: str


def verdict(rows: Sequence[Row], slowdown: float, *, judged: bool) -> Verdict:
    """Say how it went.

    Args:
        rows: what was measured.
        slowdown: how many times slower this machine is, at least 1.
        judged: whether targets count.
    """
    if wrong := sum(len(row.wrong) for row in rows):
        return Verdict(False, f"{wrong} things failed or were done twice")
    if not judged:
        return Verdict(
            True, "quick: nothing failed and nothing was done twice; no target is judged"
        )
    reached = [figure.reached(slowdown) for row in rows for figure in row.figures]
    if missed := reached.count(False):
        return Verdict(False, f"{missed} of {missed + reached.count(True)} targets missed")
    return Verdict(True, "every target is met")
