"""What `benchmarks.event_storage` has its processes do: runs of `ingest` that prepare nothing.

Everything but the sources is real: the job, its checks, the partitions and tags, how a warm worker
makes a further run and executes it. So what is measured is Dagster's share of a task.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

import dagster as dg
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.storage.tags import PARTITION_NAME_TAG

from benchmarks.inputs import ROOT
from buttercup_dagster.assets import prepare_task, task_stream
from buttercup_dagster.attempt import Run
from buttercup_dagster.checks import task_warnings
from buttercup_dagster.further_runs import FurtherRuns
from buttercup_dagster.jobs import JOB_NAME, ingest
from buttercup_dagster.partitions import tasks
from buttercup_dagster.run_execution import execute_run
from buttercup_dagster.sources.prepare import Prepared, PreparedSource
from buttercup_dagster.tags import TOKEN_TAG
from task_api.task import SourceType

TASK_FOLDER: Final = "BENCH_TASK_FOLDER"
"""Variable with the folder that every task is said to have been prepared in."""

WARM_UP_RUNS: Final = 3
_PROJECT: Final = "demo"


class NothingToFetch:
    """A preparer whose tasks are prepared already."""

    def prepare(self, task_id: str, run: Run) -> Prepared:
        """Log as much as an attempt does."""
        folder = Path(os.environ[TASK_FOLDER])
        run.log(f"attempt 1 of task {task_id} begins")
        for kind in (SourceType.REPO, SourceType.FUZZ_TOOLING):
            run.log(f"{kind}: fetched in 0.01 s, 123456 bytes from 127.0.0.1")
            run.log(f"{kind}: unpacked in 0.01 s, 40 files")
        return Prepared(
            folder,
            {
                SourceType.REPO: _source(folder / "src"),
                SourceType.FUZZ_TOOLING: _source(folder / "fuzz-tooling"),
            },
        )

    def materialized(self, task_id: str) -> None:
        """Nobody has to know."""


def _source(path: Path) -> PreparedSource:
    return PreparedSource(
        sha256="5e" * 32,
        host="127.0.0.1",
        bytes=123_456,
        files=40,
        tree_bytes=600_000,
        cache_hit=False,
        tree_hit=False,
        fetch_seconds=0.01,
        unpack_seconds=0.01,
        link_seconds=0.001,
        link_mode="hardlink",
        path=path,
        names=tuple(f"{path.name}/{_PROJECT}/file-{number}.c" for number in range(40)),
        dropped_links=0,
    )


defs = dg.Definitions(
    assets=[task_stream, prepare_task],
    asset_checks=[task_warnings],
    jobs=[ingest],
    resources={"preparer": NothingToFetch()},
    executor=dg.in_process_executor,
)


@dataclass(frozen=True, slots=True)
class Written:
    """What one process did.

    Attributes:
        seconds: how long each run took, from its making to its end.
        cpu_seconds: of this process, in all runs.
        failures: what went wrong, one text for each run that did not succeed.
    """

    seconds: tuple[float, ...]
    cpu_seconds: float
    failures: tuple[str, ...]


def make_task_folder(folder: Path) -> None:
    """Make the folder of a small task, for the checks to look at."""
    (folder / "src" / _PROJECT).mkdir(parents=True)
    tooling = folder / "fuzz-tooling" / "tooling"
    for name in ("infra/helper.py", f"projects/{_PROJECT}/project.yaml"):
        (tooling / name).parent.mkdir(parents=True)
        (tooling / name).touch()
    meta = {"project_name": _PROJECT, "focus": _PROJECT}
    (folder / "task_meta.json").write_text(json.dumps(meta), "utf-8")


def write(runs: int, log: Path, ready: Barrier, results: Queue[Written]) -> None:
    """Execute runs one after the other on the instance of DAGSTER_HOME, in a process of its own.

    Args:
        runs: how many are measured.
        log: takes what Dagster prints.
        ready: passed once warm, so that all processes begin together.
        results: takes what was done.
    """
    with log.open("ab") as output:
        os.dup2(output.fileno(), sys.stderr.fileno())
    with dg.DagsterInstance.get() as instance:
        try:
            further = FurtherRuns(instance, _first_run(instance))
            for _ in range(WARM_UP_RUNS):
                _one(instance, further)
        except BaseException:
            ready.abort()  # the others need not wait
            raise
        ready.wait()
        seconds: list[float] = []
        failures: list[str] = []
        cpu_began = _cpu_seconds()
        for _ in range(runs):
            began = time.perf_counter()
            failures += _one(instance, further)
            seconds.append(time.perf_counter() - began)
        results.put(Written(tuple(seconds), _cpu_seconds() - cpu_began, tuple(failures)))


def _first_run(instance: dg.DagsterInstance) -> dg.DagsterRun:
    pointer = ModuleCodePointer(__name__, "defs", working_directory=str(ROOT))
    job: Any = ReconstructableRepository(pointer).get_reconstructable_job(JOB_NAME)
    task_id = str(uuid.uuid4())
    instance.add_dynamic_partitions(tasks.name or "", [task_id])
    return instance.create_run_for_job(
        job.get_definition(),
        tags={TOKEN_TAG: "1", PARTITION_NAME_TAG: task_id},
        job_code_origin=job.get_python_origin(),
    )


def _one(instance: dg.DagsterInstance, further: FurtherRuns) -> list[str]:
    """One run, as a warm worker makes and executes it; what went wrong."""
    try:
        made = further.create(str(uuid.uuid4()), 1, "bench")
        run = execute_run(instance, made.run_id, "bench")
    except Exception as error:  # noqa: BLE001 - the storage gave up; that is what is counted
        return [f"{type(error).__name__}: {error}"]
    if run is None or run.status is not dg.DagsterRunStatus.SUCCESS:
        return [f"run {made.run_id} is {run.status.value if run else 'unknown'}"]
    return []


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system
