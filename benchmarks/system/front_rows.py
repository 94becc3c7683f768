"""The rows of the list of targets that need a task server and its Redis alone.

No sensor and no worker takes the tasks: they stay as they are while the server is measured.
"""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Final

import redis

from benchmarks.programs import Failed
from benchmarks.system.filling import fill, measure_reading
from benchmarks.system.front import Front, front
from benchmarks.system.posts import measure_posts
from benchmarks.system.results import Figure, Row
from benchmarks.system.scale import Scale
from task_api.task import RegistryError

CONNECTIONS: Final = 16
FEW_TASKS: Final = 10
ROUNDS: Final = 5
"""The two registries are read by turns, so that whatever else the machine does meets both."""

STATUS: Final = "/status/"
LIST: Final = f"/v1/task/?limit={FEW_TASKS}"
"""As many tasks as the small registry has, so that both answers are of the same length."""

LONG_LIST: Final = "/v1/task/?limit=50"


@dataclass(frozen=True, slots=True)
class Fronts:
    """What these rows are measured with.

    Attributes:
        folder: an empty one for their data.
        scale: how much is measured.
    """

    folder: Path
    scale: Scale


def posts(fronts: Fronts) -> Row:
    """Posts that a task server accepts per second, and how long a single one takes meanwhile."""
    with front(fronts.folder / "posts") as alone, _failing():
        figures = measure_posts(
            alone.url,
            alone.key.key_id,
            alone.key.token,
            connections=CONNECTIONS,
            seconds=fronts.scale.posts_seconds,
        )
    latencies = f"median {figures.p50_ms:.1f} ms, slowest {figures.max_ms:.1f} ms"
    return Row(
        "posts",
        [
            Figure(
                f"accepted posts, {CONNECTIONS} connections",
                "per second",
                figures.per_second,
                1000.0,
                f"{figures.accepted:,} in {figures.seconds:.1f} s",
            ),
            Figure("a single post meanwhile: p99", "milliseconds", figures.p99_ms, 40.0, latencies),
        ],
        [f"{number} posts: {what}" for what, number in figures.failures.items()],
        asdict(figures),
    )


def status(fronts: Fronts) -> Row:
    """What reading costs with many tasks in the registry, against ten."""
    number = fronts.scale.registry_tasks
    taken: dict[str, dict[int, list[float]]] = {}
    with (
        front(fronts.folder / "few") as few,
        front(fronts.folder / "many") as many,
        _failing(),
    ):
        registries = {FEW_TASKS: few, number: many}
        for tasks, one in registries.items():
            fill(one.redis_url, tasks)
            one.settle()
        for path in (STATUS, LIST, LONG_LIST):
            taken[path] = {tasks: [] for tasks in registries}
            for _ in range(ROUNDS):
                for tasks, one in registries.items():
                    taken[path][tasks].append(_read(one, path, fronts.scale.reads))
    medians = {
        path: (median(both[FEW_TASKS]), median(both[number])) for path, both in taken.items()
    }
    return Row(
        "status",
        [
            _ratio(f"/status/, {number:,} tasks against {FEW_TASKS}", *medians[STATUS]),
            Figure(f"/status/, {number:,} tasks: median", "milliseconds", medians[STATUS][1], 5.0),
            _ratio(f"list of {FEW_TASKS}, {number:,} tasks against {FEW_TASKS}", *medians[LIST]),
            Figure(
                f"list of 50, {number:,} tasks: median", "milliseconds", medians[LONG_LIST][1], None
            ),
        ],
        samples={
            path: {str(tasks): milliseconds for tasks, milliseconds in both.items()}
            for path, both in taken.items()
        },
    )


FRONT_ROWS: Final[Mapping[str, Callable[[Fronts], Row]]] = {"posts": posts, "status": status}
"""What is measured before the product is started, in this order."""


def _read(one: Front, path: str, requests: int) -> float:
    return measure_reading(one.url, path, one.key.key_id, one.key.token, requests=requests)


def _ratio(what: str, few_ms: float, many_ms: float) -> Figure:
    return Figure(what, "times", many_ms / few_ms, 1.5, f"{many_ms:.2f} ms by {few_ms:.2f} ms")


@contextmanager
def _failing() -> Iterator[None]:
    """Tell of a server that does not answer as it should.

    Raises:
        Failed: it does not.
    """
    try:
        yield
    except (
        OSError,
        RuntimeError,
        http.client.HTTPException,
        redis.RedisError,
        RegistryError,
    ) as error:
        raise Failed(f"the task server alone does not answer: {error}") from error
