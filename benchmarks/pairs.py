"""Measuring two ways to do one thing, one after the other, again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

Side: TypeAlias = Callable[[], float]
"""Does the work once, cleans up, and tells how many seconds the work alone took."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """What each side took, pair by pair, in seconds."""

    ours: tuple[float, ...]
    reference: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Of the medians, ours by the reference's."""
        return median(self.ours) / median(self.reference)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Of each pair."""
        return tuple(a / b for a, b in zip(self.ours, self.reference, strict=True))


@dataclass(frozen=True, slots=True)
class Plan:
    """How often to measure.

    Attributes:
        pairs: how many pairs count.
        warm_up: whether one more comes first and does not count: a machine's memory is slow
            the first time it is touched.
        note: called with what happens next, for people who wait.
    """

    pairs: int
    warm_up: bool
    note: Callable[[str], None]

    def rounds(self, what: str) -> range:
        """The numbers of all pairs to measure; those below 0 do not count."""
        self.note(what)
        return range(-1 if self.warm_up else 0, self.pairs)

    def measure(self, what: str, ours: Side, reference: Side) -> Pairs:
        """Let both sides take turns; which one goes first changes from pair to pair."""
        mine: list[float] = []
        theirs: list[float] = []
        for number in self.rounds(what):
            if number % 2 == 0:
                a, b = ours(), reference()
            else:
                b, a = reference(), ours()
            if number >= 0:
                mine.append(a)
                theirs.append(b)
        return Pairs(tuple(mine), tuple(theirs))
