"""Whether tasks wait longer and longer."""

from __future__ import annotations

from collections.abc import Sequence

STEP_SECONDS = 1.0


def backlog(
    posted: Sequence[float], ready: Sequence[float], until: float
) -> list[tuple[float, int]]:
    """How many tasks were posted and not yet ready, second by second.

    Args:
        posted: when each task was posted, seconds on any clock.
        ready: when each became ready, on the same clock.
        until: the last moment that counts.

    Returns:
        Moments, seconds from the first post, and how many tasks waited then.
    """
    begin = min(posted)
    return [
        (
            moment,
            sum(time <= begin + moment for time in posted)
            - sum(time <= begin + moment for time in ready),
        )
        for step in range(1, int((until - begin) / STEP_SECONDS) + 1)
        for moment in [step * STEP_SECONDS]
    ]


def growth(waiting: Sequence[tuple[float, float]]) -> float:
    """By how much the backlog grew over the whole time, by the line of least squares.

    A single stall that was made up for hardly tilts the line.

    Args:
        waiting: moments in seconds, and how many waited.
    """
    if len(waiting) < 2:
        return 0.0
    mean_moment = sum(moment for moment, _ in waiting) / len(waiting)
    mean_count = sum(count for _, count in waiting) / len(waiting)
    spread = sum((moment - mean_moment) ** 2 for moment, _ in waiting)
    slope = sum((moment - mean_moment) * (count - mean_count) for moment, count in waiting) / spread
    return slope * (waiting[-1][0] - waiting[0][0])
