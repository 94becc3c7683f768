"""How fast this machine is, beside the project's, so that figures of both can be compared.

Three things are measured that a task is made of: writes synced to the disk, as Redis does them for
every move of a task; SHA-256, which stands for the processor; and a plain worker that does the same
tasks in the plainest way, so that it also meets the network stack and the making of files. How many
times slower this machine is, is the geometric mean of the three: one part that is far slower counts
by its share, and does not excuse the others. A machine that is faster excuses nothing either:
figures are then judged as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final, cast

import redis

from benchmarks.ground import sync
from benchmarks.inputs import ROOT
from benchmarks.system.archives import Sources
from benchmarks.system.front import redis_server
from benchmarks.system.processes import running, without_settings
from benchmarks.system.reference_worker import DONE, TASKS
from benchmarks.system.sender import task_of

RECORDED: Final = Path(__file__).parent / "reference.json"
"""What the project's machine showed."""

SYNC_SECONDS: Final = 2.0
SYNCED_BYTES: Final = 512
"""About what Redis appends for a move of a task."""

HASH_SECONDS: Final = 1.0
HASHED_BYTES: Final = 1_000_000
WORKER_TASKS: Final = 20
WORKER_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """How fast a machine is.

    Attributes:
        syncs_per_second: appends to a file, each synced to the disk.
        sha256_megabytes_per_second: of one core.
        reference_tasks_per_second: of one plain worker.
    """

    syncs_per_second: float
    sha256_megabytes_per_second: float
    reference_tasks_per_second: float

    @classmethod
    def measure(cls, sources: Sequence[Sources], folder: Path, *, times: int) -> Calibration:
        """Measure this machine.

        Args:
            sources: of tasks for the plain worker; the first one warms it up.
            folder: a new one on the disk that the product will use.
            times: how often; of each part the median counts.

        Raises:
            NoRedisServer: there is no redis-server on this machine.
            Failed: the plain worker does not do its tasks.
        """
        folder.mkdir()
        several: list[Calibration] = []
        for number in range(times):
            place = folder / str(number)
            place.mkdir()
            several.append(cls(_syncs(place), _hashing(), _worker(sources, place)))
            sync(folder)
        return cls.middle(several)

    @classmethod
    def middle(cls, several: Sequence[Calibration]) -> Calibration:
        """The median of each part."""
        return cls(
            **{
                part.name: median(getattr(one, part.name) for one in several)
                for part in fields(cls)
            }
        )

    @classmethod
    def recorded(cls, path: Path = RECORDED) -> Calibration | None:
        """What was recorded of the project's machine; None if nothing was."""
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        return cls(**content["calibration"])

    def record(self, machine: Mapping[str, str], path: Path = RECORDED) -> None:
        """Make this machine the one that others are compared with."""
        content = {
            "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": dict(machine),
            "calibration": asdict(self),
        }
        path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")

    def slower_than(self, other: Calibration) -> dict[str, float]:
        """By the name of each part, how many times slower this machine is than another."""
        return {
            part.name: getattr(other, part.name) / getattr(self, part.name) for part in fields(self)
        }

    def slowdown(self, recorded: Calibration | None) -> float:
        """What figures are divided by: at least 1."""
        if recorded is None:
            return 1.0
        parts = self.slower_than(recorded).values()
        return max(1.0, math.prod(parts) ** (1 / len(parts)))


def _syncs(folder: Path) -> float:
    content = b"x" * SYNCED_BYTES
    handle = os.open(folder / "synced", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    try:
        number = 0
        begin = time.perf_counter()
        while (taken := time.perf_counter() - begin) < SYNC_SECONDS:
            os.write(handle, content)
            os.fdatasync(handle)
            number += 1
        return number / taken
    finally:
        os.close(handle)


def _hashing() -> float:
    content = bytes(HASHED_BYTES)
    number = 0
    begin = time.perf_counter()
    while (taken := time.perf_counter() - begin) < HASH_SECONDS:
        hashlib.sha256(content).digest()
        number += 1
    return number * HASHED_BYTES / 1e6 / taken


def _worker(sources: Sequence[Sources], folder: Path) -> float:
    tasks = [json.dumps(task_of(one)) for one in sources]
    with (
        redis_server(folder / "redis") as url,
        redis.Redis.from_url(url) as client,
        running(
            "the plain worker",
            [
                *[sys.executable, "-m", "benchmarks.system.reference_worker"],
                *[url, str(folder / "trees")],
            ],
            log=folder / "worker.log",
            cwd=folder,
            # Requests would ask the proxy of the environment even for this machine.
            environment=without_settings() | {"PYTHONPATH": str(ROOT), "NO_PROXY": "*"},
        ) as process,
    ):

        def done() -> int:
            return int(cast(int, client.llen(DONE)))

        client.rpush(TASKS, tasks[0])
        process.wait_for(done, "the plain worker's first task", seconds=WORKER_SECONDS)
        begin = time.perf_counter()
        client.rpush(TASKS, *tasks[1:])
        process.wait_for(
            lambda: done() == len(tasks), "the plain worker's tasks", seconds=WORKER_SECONDS
        )
        return (len(tasks) - 1) / (time.perf_counter() - begin)
