"""The rows of the list of targets that need the running product: what each measures and asks."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from benchmarks.ground import MEBIBYTE
from benchmarks.programs import Failed
from benchmarks.system.archives import Sources, Supply
from benchmarks.system.backlog import backlog, growth
from benchmarks.system.figures import percentile
from benchmarks.system.memory import resident_bytes
from benchmarks.system.phases import Phase, Runner
from benchmarks.system.results import Figure, Row
from benchmarks.system.scale import Scale

LEAST_PATIENCE_SECONDS: Final = 60.0
"""A phase may take so long at least before it has failed."""

FAILED_RATE: Final = 0.5
"""Tasks per second below which a phase has failed."""

MEMORY_LOOKS: Final = 2


@dataclass
class Bench:
    """What the rows are measured with.

    Attributes:
        runner: has tasks prepared.
        supply: sources that no task has had yet.
        scale: how much is measured.
        stored: sources that a task has had.
        idle_seconds: what single tasks took from the post to ready, each after idle, with few
            partitions.
        memory: by how many tasks were done, the resident memory of each process in bytes.
        watch_memory: whether to look at it between the rows.
        wrong: what went wrong with tasks between the rows.
    """

    runner: Runner
    supply: Supply
    scale: Scale
    stored: list[Sources] = field(default_factory=list)
    idle_seconds: list[float] = field(default_factory=list)
    memory: dict[int, dict[str, int]] = field(default_factory=dict)
    watch_memory: bool = False
    wrong: list[str] = field(default_factory=list)

    def prepare(self, number: int, *, rate: float | None = None) -> Phase:
        """Have tasks prepared whose sources all differ.

        Args:
            number: of tasks.
            rate: tasks per second; None for all at once.
        """
        sources = self.supply.take(number)
        phase = self.run(sources, rate=rate)
        self.stored += sources[:1]
        return phase

    def run(self, sources: Sequence[Sources], *, rate: float | None = None) -> Phase:
        """Have tasks prepared."""
        offsets = [position / rate if rate else 0.0 for position in range(len(sources))]
        patience = max(LEAST_PATIENCE_SECONDS, len(sources) / FAILED_RATE)
        return self.runner.prepare(sources, offsets, limit_seconds=offsets[-1] + patience)

    @property
    def next_look(self) -> int:
        """After how many tasks the memory is looked at next: few, and so many more as are asked."""
        few, many = self.scale.few_tasks, self.scale.many_tasks
        return min(self.memory) + many - few if self.memory else few

    def look_ahead(self, number: int) -> None:
        """Before so many tasks that would go past the next look: look at the memory first."""
        if not self.watch_memory or len(self.memory) == MEMORY_LOOKS:
            return
        if self.runner.done + number > self.next_look:
            self.reach_look()
            with suppress(Failed):  # a process is just being replaced; looked at later
                self.remember_memory()

    def reach_look(self) -> None:
        """Have as many tasks prepared as are missing until the memory is looked at."""
        self.make_stored()
        if (missing := self.next_look - self.runner.done) > 0:
            self.wrong += self.run_stored(missing).wrong

    def remember_memory(self) -> None:
        """Keep what each process holds now.

        Raises:
            Failed: one of them is not there.
        """
        self.memory[self.runner.done] = resident_bytes(self.runner.up.process.popen.pid)

    def run_stored(self, number: int) -> Phase:
        """Have tasks prepared whose sources are stored already."""
        self.make_stored()
        return self.run(self.stored[:1] * number)

    def make_stored(self) -> None:
        """Have one task prepared, unless there was one."""
        if not self.stored:
            self.wrong += self.prepare(1).wrong

    def after_idle(self, number: int) -> list[Phase]:
        """Single tasks, each after the product was idle."""
        phases: list[Phase] = []
        for _ in range(number):
            self.runner.rest()
            phases.append(self.prepare(1))
        return phases


def idle(bench: Bench) -> Row:
    """A single task after nothing has happened for a while."""
    phases = bench.after_idle(bench.scale.idle)
    ready = [phase.all_ready_seconds for phase in phases]
    bench.idle_seconds += ready
    note = f"from {min(ready):.2f} to {max(ready):.2f} s; {_materialized(phases)}"
    return Row(
        "idle",
        [
            Figure(f"idle: median of {len(ready)}", "seconds", median(ready), 0.70, note),
            Figure(f"idle: p95 of {len(ready)}", "seconds", percentile(ready, 95), 1.0),
        ],
        _wrong(phases),
        _samples(phases),
    )


def five(bench: Bench) -> Row:
    """Five tasks at the same moment, after idle."""
    phases: list[Phase] = []
    for _ in range(bench.scale.rounds_of_five):
        bench.runner.rest()
        phases.append(bench.prepare(5))
    last = [phase.all_ready_seconds for phase in phases]
    note = (
        f"median of {len(last)} rounds after idle, from {min(last):.2f} to {max(last):.2f} s; "
        f"{_materialized(phases)}"
    )
    return Row(
        "five",
        [Figure("five at the same moment, all ready", "seconds", median(last), 1.8, note)],
        _wrong(phases),
        _samples(phases),
    )


def steady_one(bench: Bench) -> Row:
    """One task per second."""
    phase = _steady(bench, 1)
    ready = phase.ready_seconds
    return Row(
        "steady1",
        [
            Figure(
                f"1 per second for {bench.scale.steady_seconds} s: median",
                "seconds",
                median(ready),
                0.5,
                f"slowest {max(ready):.2f} s; {_materialized([phase])}",
            ),
            Figure(
                f"1 per second for {bench.scale.steady_seconds} s: p99",
                "seconds",
                percentile(ready, 99),
                1.2,
            ),
        ],
        phase.wrong,
        _samples([phase]),
    )


def steady_three(bench: Bench) -> Row:
    """Three tasks per second, and whether they pile up."""
    rate = 3
    phase = _steady(bench, rate)
    ready = phase.ready_seconds
    waiting = backlog(phase.posted, phase.ready, max(phase.posted))
    return Row(
        "steady3",
        [
            Figure(
                f"3 per second for {bench.scale.steady_seconds} s: p99",
                "seconds",
                percentile(ready, 99),
                2.0,
                f"median {median(ready):.2f} s, slowest {max(ready):.2f} s; "
                f"{_materialized([phase])}",
            ),
            Figure(
                "  backlog: growth from start to end",
                "tasks",
                growth(waiting),
                rate,
                "by the line of least squares; one second's posts count as none; "
                f"at most {max(count for _, count in waiting)} waited",
            ),
        ],
        phase.wrong,
        {**_samples([phase]), "backlog": waiting},
    )


def stored(bench: Bench) -> Row:
    """A burst of tasks whose sources are stored already."""
    bench.look_ahead(bench.scale.stored)
    phase = bench.run_stored(bench.scale.stored)
    return _burst("stored", f"burst of {bench.scale.stored}, sources stored", phase, 6.0)


def different(bench: Bench) -> Row:
    """A burst of tasks whose sources all differ."""
    bench.look_ahead(bench.scale.different)
    phase = bench.prepare(bench.scale.different)
    return _burst("different", f"burst of {bench.scale.different}, sources differ", phase, 4.0)


def memory(bench: Bench) -> Row:
    """What daemon, server and a child of the worker hold after many tasks, against after few."""
    while len(bench.memory) < MEMORY_LOOKS:
        bench.reach_look()
        bench.remember_memory()
    (few, before), (many, after) = sorted(bench.memory.items())
    return Row(
        "memory",
        [
            Figure(
                f"memory of the {name}",
                "times",
                after[name] / before[name],
                1.2,
                f"{after[name] / MEBIBYTE:.0f} MiB after {many} tasks by "
                f"{before[name] / MEBIBYTE:.0f} MiB after {few}",
            )
            for name in before
        ],
        samples={str(done): sizes for done, sizes in bench.memory.items()},
    )


def partitions(bench: Bench) -> Row:
    """The first task after idle, with many live partitions."""
    wrong: list[str] = []
    runner = bench.runner
    if not bench.idle_seconds:
        few = bench.after_idle(bench.scale.after_many)
        bench.idle_seconds += [phase.all_ready_seconds for phase in few]
        wrong += _wrong(few)
    missing = bench.scale.many_partitions - runner.records.partitions()
    runner.records.add_partitions([str(uuid.uuid4()) for _ in range(missing)])
    phases = bench.after_idle(bench.scale.after_many)
    if runner.records.partitions() < bench.scale.many_partitions:
        wrong.append("partitions were removed while they were to be there")
    with_many = median(phase.all_ready_seconds for phase in phases)
    with_few = median(bench.idle_seconds)
    return Row(
        "partitions",
        [
            Figure(
                f"idle, with {bench.scale.many_partitions:,} partitions by few",
                "times",
                with_many / with_few,
                1.5,
                f"median of {len(phases)}: {with_many:.2f} s by {with_few:.2f} s",
            )
        ],
        [*wrong, *_wrong(phases)],
        _samples(phases),
    )


Measure = Callable[[Bench], Row]

ROWS: Final[Mapping[str, Measure]] = {
    "idle": idle,
    "five": five,
    "steady1": steady_one,
    "steady3": steady_three,
    "stored": stored,
    "different": different,
    "memory": memory,
    "partitions": partitions,
}
"""What is measured with the running product, in this order."""


AFTERWARDS: Final = "afterwards"


def look_back(bench: Bench) -> Row:
    """Whether something went wrong between the rows, or with a task after its row."""
    return Row(AFTERWARDS, [], [*bench.wrong, *bench.runner.look_back()])


def sources_needed(names: Sequence[str], scale: Scale) -> int:
    """How many tasks with sources of their own these rows have at most."""
    needed = {
        "idle": scale.idle,
        "five": 5 * scale.rounds_of_five,
        "steady1": scale.steady_seconds,
        "steady3": 3 * scale.steady_seconds,
        "stored": 1,
        "different": scale.different,
        "memory": 1,
        "partitions": 2 * scale.after_many,
    }
    return sum(needed.get(name, 0) for name in names)


def _steady(bench: Bench, rate: int) -> Phase:
    number = rate * bench.scale.steady_seconds
    bench.look_ahead(number)
    return bench.prepare(number, rate=rate)


def _burst(name: str, what: str, phase: Phase, must: float) -> Row:
    rate = len(phase.timings) / phase.all_ready_seconds
    note = f"all ready after {phase.all_ready_seconds:.1f} s; {_materialized([phase])}"
    return Row(
        name,
        [Figure(what, "per second", rate, must, note)],
        phase.wrong,
        _samples([phase]),
    )


def _materialized(phases: Sequence[Phase]) -> str:
    seconds = [one for phase in phases for one in phase.materialized_seconds]
    if not seconds:
        return "nothing was materialized"
    return f"materialized: median {median(seconds):.2f} s, slowest {max(seconds):.2f} s"


def _wrong(phases: Sequence[Phase]) -> list[str]:
    return [text for phase in phases for text in phase.wrong]


def _samples(phases: Sequence[Phase]) -> dict[str, Any]:
    return {
        "tasks": [
            {
                "posted_ms": round(timing.posted_ms, 1),
                "ready_seconds": round(timing.ready_seconds, 3),
                "materialized_seconds": None
                if timing.materialized_seconds is None
                else round(timing.materialized_seconds, 3),
            }
            for phase in phases
            for timing in phase.timings
        ]
    }
