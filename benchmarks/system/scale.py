"""How much is measured: the whole, or enough to see that everything works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    Attributes:
        calibrations: how often the machine is measured; the median counts.
        posts_seconds: how long tasks are posted to a task server alone.
        registry_tasks: tasks in the registry that is read.
        reads: of each page, in each of several rounds.
        idle: tasks, each after the product was idle.
        rounds_of_five: five tasks at once, so many times.
        steady_seconds: how long tasks come at a steady rate.
        stored: tasks of the burst whose sources are stored.
        different: tasks of the burst whose sources all differ.
        idle_seconds: beyond the linger time of a worker, what counts as idle.
        many_partitions: live partitions that the first task after idle is measured with.
        after_many: tasks measured then.
        few_tasks, many_tasks: after so many tasks the memory is measured.
    """

    calibrations: int = 3
    posts_seconds: float = 10.0
    registry_tasks: int = 100_000
    reads: int = 100
    idle: int = 20
    rounds_of_five: int = 3
    steady_seconds: int = 60
    stored: int = 200
    different: int = 100
    idle_seconds: float = 15.0
    many_partitions: int = 10_000
    after_many: int = 5
    few_tasks: int = 100
    many_tasks: int = 500


FULL: Final = Scale()
QUICK: Final = Scale(
    calibrations=1,
    posts_seconds=1.0,
    registry_tasks=1_000,
    reads=10,
    idle=3,
    rounds_of_five=1,
    steady_seconds=4,
    stored=20,
    different=10,
    idle_seconds=1.0,
    many_partitions=500,
    after_many=1,
    few_tasks=10,
    many_tasks=40,
)
