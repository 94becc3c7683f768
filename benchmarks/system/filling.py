"""Fills a registry with tasks in several states, and measures what reading it costs.

Every task goes the way of real ones, through the same scripts, many of them in one round trip.

    python -m benchmarks.system.filling 100000

fills the registry of BUTTERCUP_REDIS_URL. Use a Redis that is thrown away afterwards.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import sys
import time
import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

from benchmarks.system.posts import DEADLINE_MS
from task_api import operations
from task_api.operations import Operation, Script
from task_api.records import Submission, decoded
from task_api.redis_client import connect, script_source
from task_api.registry import TaskRegistry
from task_api.settings import DEFAULT_REDIS_URL
from task_api.task import Outcome, Source, SourceType, Task, TaskState, TaskType

MIX: Final[Mapping[TaskState, int]] = {
    TaskState.PENDING: 50,
    TaskState.SCHEDULED: 1,
    TaskState.DOWNLOADING: 1,
    TaskState.READY: 18,
    TaskState.SUCCEEDED: 10,
    TaskState.ERRORED: 10,
    TaskState.CANCELED: 10,
}
"""How many of a hundred tasks are in which state."""

IN_ONE_TRIP: Final = 100
"""Scripts that are sent at once; Redis serves others in between."""

LEASE_MS: Final = DEADLINE_MS
"""Claims and attempts that nobody renews last as long as the tasks, milliseconds."""

_Result = TypeVar("_Result")


def fill(
    redis_url: str, number: int, *, mix: Mapping[TaskState, int] = MIX
) -> dict[TaskState, int]:
    """Record so many tasks, and bring each to a state of the mix.

    Args:
        redis_url: Redis of the registry. It must hold no pending tasks: those would be taken too.
        number: how many tasks.
        mix: the share of each state; those that the first ones leave over are pending. A task
            cannot be brought to `failed` or `expired`.

    Returns:
        How many tasks were brought to which state.
    """
    shares = sum(mix.values())
    wanted = {state: number * share // shares for state, share in mix.items()}
    wanted[TaskState.PENDING] = 0
    wanted[TaskState.PENDING] = number - sum(wanted.values())
    with TaskRegistry.from_url(redis_url) as registry:
        registry.initialize()
        pipes = _Pipes(redis_url)
        _post(pipes, number - wanted.get(TaskState.CANCELED, 0))
        claimed = number - wanted.get(TaskState.CANCELED, 0) - wanted[TaskState.PENDING]
        attempts = [(claim.task_id, claim.token) for claim in _claim(registry, claimed)]
        _move(pipes, attempts, wanted)
        canceled = _post(pipes, wanted.get(TaskState.CANCELED, 0))
        pipes.run(operations.cancel(task_id) for task_id in canceled)
        pipes.close()
    return {state: count for state, count in wanted.items() if count}


def measure_status(url: str, key_id: str, token: str, *, requests: int = 200) -> float:
    """Median time of `GET /status/` over one connection, milliseconds."""
    return measure_reading(url, "/status/", key_id, token, requests=requests)


def measure_reading(url: str, path: str, key_id: str, token: str, *, requests: int = 200) -> float:
    """Median time of a GET request over one connection, milliseconds.

    Args:
        url: of the task server.
        path: what to get, such as `/v1/task/?limit=50`.
        key_id: the key's id.
        token: the key's token.
        requests: how many are measured, after a tenth as many that are not.

    Raises:
        OSError, http.client.HTTPException: the server cannot be reached.
        RuntimeError: it does not answer with 200.
    """
    parts = urlsplit(url)
    credentials = b64encode(f"{key_id}:{token}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}"}
    taken = []
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=30)
    try:
        for _ in range(requests + requests // 10):
            begin = time.perf_counter()
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            answer.read()
            taken.append(1000 * (time.perf_counter() - begin))
            if answer.status != 200:
                raise RuntimeError(f"GET {path.partition('?')[0]} answers {answer.status}")
    finally:
        connection.close()
    return statistics.median(taken[-requests:])


class _Pipes:
    """Runs operations that make one request each, many in one round trip."""

    def __init__(self, redis_url: str) -> None:
        self._redis = connect(redis_url)
        self._digests: dict[str, str] = {}

    def close(self) -> None:
        self._redis.close()

    def run(self, run: Iterable[Operation[_Result]]) -> list[_Result]:
        results: list[_Result] = []
        for some in _parts(run, IN_ONE_TRIP):
            pipeline = self._redis.pipeline(transaction=False)
            for operation in some:
                request = next(operation)
                assert isinstance(request, Script)  # noqa: S101 - told to the type checker
                pipeline.evalsha(self._digest(request.name), 0, *request.arguments)
            for operation, reply in zip(some, pipeline.execute(), strict=True):
                try:
                    operation.send(decoded(reply))
                except StopIteration as done:
                    results.append(done.value)
        return results

    def _digest(self, script: str) -> str:
        if script not in self._digests:
            found = self._redis.script_load(script_source(script))
            self._digests[script] = decoded(found)
        return self._digests[script]


def _post(pipes: _Pipes, number: int) -> list[str]:
    tasks = [_task() for _ in range(number)]
    receipts = pipes.run(
        operations.accept(task.message_id, task.task_id, [Submission(task)]) for task in tasks
    )
    if not all(receipt.accepted for receipt in receipts):
        raise RuntimeError("the registry did not accept every task")
    return [task.task_id for task in tasks]


def _claim(registry: TaskRegistry, number: int) -> Iterator[Any]:
    left = number
    while left and (claims := registry.claim(left, lease_ms=LEASE_MS)):
        yield from claims
        left -= len(claims)


def _move(
    pipes: _Pipes, attempts: Sequence[tuple[str, int]], wanted: Mapping[TaskState, int]
) -> None:
    begun = attempts[wanted.get(TaskState.SCHEDULED, 0) :]
    pipes.run(
        operations.move("started", "start", task_id, token, "run", "machine", LEASE_MS)
        for task_id, token in begun
    )
    ended = begun[wanted.get(TaskState.DOWNLOADING, 0) :]
    errored = wanted.get(TaskState.ERRORED, 0)
    pipes.run(
        operations.move("failed", "fail", task_id, token, "not_found", "status 404", 0, 0, 0, "1.0")
        for task_id, token in ended[:errored]
    )
    pipes.run(
        operations.move("made ready", "ready", task_id, token, f"/tasks/{task_id}", "machine")
        for task_id, token in ended[errored:]
    )
    succeeded = wanted.get(TaskState.SUCCEEDED, 0)
    pipes.run(
        operations.report_outcome(task_id, Outcome.SUCCEEDED)
        for task_id, _ in ended[errored : errored + succeeded]
    )


def _task() -> Task:
    now_ms = time.time_ns() // 1_000_000
    return Task(
        task_id=str(uuid.uuid4()),
        type=TaskType.FULL,
        project_name="libpng",
        focus="libpng",
        deadline_ms=now_ms + DEADLINE_MS,
        sources=(
            Source(SourceType.REPO, "a" * 64, ("https://archives.example/libpng.tar.gz",)),
            Source(SourceType.FUZZ_TOOLING, "b" * 64, ("https://archives.example/tooling.tar.gz",)),
        ),
        metadata={"round.id": "bench", "task.id": "filling"},
        message_id=str(uuid.uuid4()),
        message_time_ms=now_ms,
    )


def _parts(run: Iterable[Operation[_Result]], size: int) -> Iterator[list[Operation[_Result]]]:
    part: list[Operation[_Result]] = []
    for operation in run:
        part.append(operation)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part


def main(argv: Sequence[str] | None = None) -> int:
    """Fill the registry and say how many tasks are in which state."""
    parser = argparse.ArgumentParser(description="Fill the registry of BUTTERCUP_REDIS_URL.")
    parser.add_argument("number", type=int, help="how many tasks")
    chosen = parser.parse_args(argv)
    for state, count in fill(
        os.environ.get("BUTTERCUP_REDIS_URL", DEFAULT_REDIS_URL), chosen.number
    ).items():
        print(f"{state:<12} {count}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
