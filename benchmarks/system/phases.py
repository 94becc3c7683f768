"""Has tasks prepared by the running product, times each of them, and looks for what went wrong."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, cast

import redis

from benchmarks.programs import Failed
from benchmarks.system.archives import Sources
from benchmarks.system.dagster_records import SUCCESS, DagsterRecords, Recorded
from benchmarks.system.orchestrator import Orchestrator
from benchmarks.system.sender import Post, Sending
from task_api import keys
from task_api.client import TaskServerClient
from task_api.registry import TaskRecord, TaskRegistry
from task_api.task import ButtercupError, TaskState

BLOCK_MS: Final = 500
QUIET_SECONDS: Final = 90.0
"""How long the last run may take to end after its task is ready."""

CANCEL_SECONDS: Final = 120.0
"""How long everything may take to end that a failed phase has left."""

LOOK_SECONDS: Final = 0.2

RUN_END_SECONDS: Final = 1.0
"""So long a run may still take to end, once it is recorded as ended."""

SENSOR_SECONDS: Final = 5.0
"""Dagster's daemon asks its sensors every so many seconds at least. An idle wait ends at a moment
chosen at random within that time, so that no posts meet always the same moment of it."""


class Stuck(Exception):
    """The product does not come to rest, so that nothing more can be measured with it."""


@dataclass(frozen=True, slots=True)
class Timing:
    """One task. Times are UNIX milliseconds.

    Attributes:
        task_id: its id.
        posted_ms: when its post was sent, or was due.
        ready_ms: when it was announced, by Redis's clock, which is this machine's.
        materialized_ms: when `prepared_task` was materialized, or None.
    """

    task_id: str
    posted_ms: float
    ready_ms: float
    materialized_ms: float | None

    @property
    def ready_seconds(self) -> float:
        """From the post to ready."""
        return (self.ready_ms - self.posted_ms) / 1000

    @property
    def materialized_seconds(self) -> float | None:
        """From the post to the materialization."""
        if self.materialized_ms is None:
            return None
        return (self.materialized_ms - self.posted_ms) / 1000


@dataclass(frozen=True, slots=True)
class Phase:
    """Tasks that belong together.

    Attributes:
        timings: of each, in the order of the posts.
        wrong: what failed, or was done twice, for people.
    """

    timings: tuple[Timing, ...]
    wrong: tuple[str, ...]

    @property
    def posted(self) -> list[float]:
        """When each was posted, seconds."""
        return [timing.posted_ms / 1000 for timing in self.timings]

    @property
    def ready(self) -> list[float]:
        """When each was ready, seconds."""
        return [timing.ready_ms / 1000 for timing in self.timings]

    @property
    def ready_seconds(self) -> list[float]:
        """From each post to ready."""
        return [timing.ready_seconds for timing in self.timings]

    @property
    def materialized_seconds(self) -> list[float]:
        """From each post to the materialization, of those that were materialized."""
        return [
            seconds
            for timing in self.timings
            if (seconds := timing.materialized_seconds) is not None
        ]

    @property
    def all_ready_seconds(self) -> float:
        """From the first post until all were ready."""
        return max(self.ready) - min(self.posted)


@dataclass
class Runner:
    """Has tasks prepared.

    Attributes:
        up: the running product.
        redis: a client of its Redis.
        registry: its tasks.
        records: what Dagster knows.
        linger_seconds: how long a warm worker waits for a further task.
        idle_seconds: how much longer nothing must have happened until the product counts as idle.
    """

    up: Orchestrator
    redis: redis.Redis
    registry: TaskRegistry
    records: DagsterRecords
    linger_seconds: float
    idle_seconds: float
    _prepared: list[str] = field(default_factory=list)
    _announced: dict[str, list[float]] = field(default_factory=dict)
    _last: str = "0-0"
    _restarts: int = 0
    _chance: random.Random = field(default_factory=lambda: random.Random(5))  # noqa: S311

    @property
    def done(self) -> int:
        """How many tasks were prepared so far."""
        return len(self._prepared)

    def rest(self) -> None:
        """Wait until the product is idle.

        Raises:
            Stuck: it does not become so.
        """
        runs = -1
        # A schedule may start a run meanwhile, behind which a worker lingers too.
        while (now := self._runs_at_rest()) != runs:
            runs = now
            self._sleep(
                RUN_END_SECONDS
                + self.linger_seconds
                + self.idle_seconds
                + self._chance.uniform(0, SENSOR_SECONDS)
            )

    def _runs_at_rest(self) -> int:
        self._quiet(QUIET_SECONDS)
        return self.records.runs()

    def prepare(
        self, sources: Sequence[Sources], offsets: Sequence[float], *, limit_seconds: float
    ) -> Phase:
        """Send tasks, wait until all of them are ready and their runs have ended, and check them.

        Args:
            sources: of each task.
            offsets: when to send each, seconds from the start.
            limit_seconds: how long all may take, from the first to be sent to the last to be ready.

        Raises:
            Failed: a task ends otherwise, or not in time. What is left of them is cancelled.
            Stuck: what is left does not end either.
        """
        sending = Sending(self.up.url, self.up.key, sources, offsets)
        try:
            self._wait(sending, len(sources), limit_seconds)
        except Failed:
            sending.stop()
            self._abandon([post for post in sending.posts if post.task_id not in self._announced])
            raise
        finally:
            sending.stop()
        with suppress(Stuck):  # what does not end is found in the records
            self._quiet(QUIET_SECONDS)
        self._collect()
        self._prepared += [post.task_id for post in sending.posts]
        return self._judge(sending.posts)

    def look_back(self) -> list[str]:
        """What is wrong by now with the tasks of all phases: one may have been repeated later."""
        self._collect()
        return [
            *self._new_restarts(),
            *self._wrong(self._prepared, self.records.of_tasks(self._prepared)),
        ]

    def _wait(self, sending: Sending, number: int, limit_seconds: float) -> None:
        """Wait until all tasks were sent and announced."""
        errored = self._errored()
        end = time.monotonic() + limit_seconds
        while True:
            self._collect()
            posts = sending.posts
            self._check(posts, errored)
            done = sum(post.task_id in self._announced for post in posts)
            if done == number:
                return
            if time.monotonic() > end:
                raise Failed(f"{done} of {number} tasks were ready after {limit_seconds:.0f} s")

    def _collect(self) -> None:
        """Read what was announced since the last time; wait a moment for it."""
        streams = cast(
            list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]],
            self.redis.xread({keys.READY: self._last}, count=1000, block=BLOCK_MS),
        )
        for _, entries in streams:
            for entry, fields in entries:
                self._last = entry.decode()
                self._announced.setdefault(fields[b"task_id"].decode(), []).append(
                    float(self._last.partition("-")[0])
                )

    def _errored(self) -> int:
        return self.redis.zcard(keys.index(TaskState.ERRORED))

    def _check(self, posts: Sequence[Post], errored: int) -> None:
        """See that nothing has gone wrong so far.

        Args:
            posts: what was sent.
            errored: how many tasks were errored before.
        """
        self.up.process.check()
        refused = [post for post in posts if post.error is not None]
        if refused:
            raise Failed(f"{len(refused)} posts were not accepted: {refused[0].error}")
        if self._errored() > errored:
            (record,) = self.registry.page(state=TaskState.ERRORED, limit=1)
            reason = record.reason.text if record.reason else "for no reason that is told"
            raise Failed(f"task {record.task.task_id} is errored: {reason}")

    def _judge(self, posts: Sequence[Post]) -> Phase:
        posts = sorted(posts, key=lambda post: post.posted_ms)
        ids = [post.task_id for post in posts]
        recorded = self.records.of_tasks(ids)
        return Phase(
            tuple(
                Timing(
                    post.task_id,
                    post.posted_ms,
                    self._announced[post.task_id][0],
                    min(recorded[post.task_id].materialized_ms, default=None),
                )
                for post in posts
            ),
            (*self._new_restarts(), *self._wrong(ids, recorded)),
        )

    def _new_restarts(self) -> list[str]:
        restarts = self.up.restarts()[self._restarts :]
        self._restarts += len(restarts)
        return restarts

    def _wrong(self, ids: Sequence[str], recorded: Mapping[str, Recorded]) -> list[str]:
        wrong: Counter[str] = Counter()
        for task_id, task in zip(ids, self.registry.get_many(ids), strict=True):
            wrong.update(_wrong(task, len(self._announced[task_id]), recorded[task_id]))
            if not (self.up.home / "tasks" / task_id / "task_meta.json").is_file():
                wrong["without a folder"] += 1
        return [f"{number} tasks {what}" for what, number in wrong.items()]

    def _abandon(self, posts: Sequence[Post]) -> None:
        """Cancel tasks, so that the next phase begins with none."""
        key = self.up.key
        with TaskServerClient(self.up.url, key.key_id, key.token) as client:
            for post in posts:
                with suppress(ButtercupError):  # it was refused, or is ready by now
                    client.cancel(post.task_id)
        self._quiet(CANCEL_SECONDS)

    def _quiet(self, seconds: float) -> None:
        """Wait until no run is under way and every materialization is confirmed."""
        self._until(
            lambda: self.redis.zcard(keys.UNMATERIALIZED) == 0 and self.records.under_way() == 0,
            f"the runs do not end within {seconds:.0f} s",
            seconds,
        )

    def _until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not condition():
            self.up.process.check()
            if time.monotonic() > end:
                raise Stuck(what)
            time.sleep(LOOK_SECONDS)

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)
        self.up.process.check()


def _wrong(task: TaskRecord | None, announced: int, recorded: Recorded) -> list[str]:
    """What is not as it should be with a task that is to be ready."""
    found: list[str] = []
    if task is None or task.state is not TaskState.READY:
        found.append(f"in state {task.state if task else 'unknown'}, not ready")
    if announced != 1:
        found.append(f"announced {announced} times")
    if recorded.runs != (SUCCESS,):
        found.append(f"with runs {', '.join(recorded.runs) or 'of no kind'}, not one success")
    if len(recorded.materialized_ms) != 1:
        found.append(f"materialized {len(recorded.materialized_ms)} times")
    return found
