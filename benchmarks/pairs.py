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

    def take(self, what: str, pair: Callable[[int], tuple[float, float]]) -> Pairs:
        """Measure all pairs.

        Args:
            what: is measured.
            pair: measures one, given its number; tells the seconds of ours and of the reference.
        """
        self.note(what)
        counted: list[tuple[float, float]] = []
        for number in range(-1 if self.warm_up else 0, self.pairs):
            ours, reference = pair(number)
            if number >= 0:
                counted.append((ours, reference))
            self.note(f"  {ours:.3f} s against {reference:.3f} s{' (warming up)' * (number < 0)}")
        return Pairs(
            tuple(ours for ours, _ in counted), tuple(reference for _, reference in counted)
        )

    def take_turns(self, what: str, ours: Side, reference: Side) -> Pairs:
        """Measure all pairs; which side goes first changes from one to the next."""

        def pair(number: int) -> tuple[float, float]:
            if number % 2 == 0:
                return ours(), reference()
            b, a = reference(), ours()
            return a, b

        return self.take(what, pair)
