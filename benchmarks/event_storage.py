"""`python -m benchmarks.event_storage`: what a run costs on each storage that Dagster could have.

Several processes execute runs of `ingest` at once, as the processes of a warm worker do, on each
storage in turn, in several rounds. Exits with 0 if no run failed on the storages that our templates
name, with 1 otherwise, with 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final

import dagster as dg
import yaml

from benchmarks import command, machine, postgres
from benchmarks.command import note
from benchmarks.event_storage_runs import TASK_FOLDER, Written, make_task_folder, write
from benchmarks.inputs import CACHE
from benchmarks.programs import Failed

CHOSEN: Final = "one file, kept connections"
POSTGRES: Final = "PostgreSQL"
POSTGRES_KEPT: Final = "PostgreSQL, kept connections"
_OURS: Final = "one_machine.yaml"
_DATABASE: Final = {
    "scheme": "postgresql+psycopg2",
    "hostname": {"env": "DAGSTER_PG_HOST"},
    "port": {"env": "DAGSTER_PG_PORT"},
    "username": {"env": "DAGSTER_PG_USERNAME"},
    "password": {"env": "DAGSTER_PG_PASSWORD"},
    "db_name": {"env": "DAGSTER_PG_DB"},
}

STORAGES: Final[Mapping[str, Mapping[str, Any]]] = {
    "one file for each run": {},
    "one file": {
        "event_log_storage": {
            "module": "dagster._core.storage.event_log",
            "class": "ConsolidatedSqliteEventLogStorage",
            "config": {"base_dir": {"env": "DAGSTER_HOME"}},
        }
    },
    CHOSEN: {"storage": _OURS},
    POSTGRES: {"storage": {"postgres": {"postgres_db": _DATABASE}}},
    POSTGRES_KEPT: {"storage": "many_machines.yaml"},
}
"""What `dagster.yaml` says of each: nothing is Dagster's own, a name is that of our template."""

_ON_POSTGRES: Final = (POSTGRES, POSTGRES_KEPT)

_COLUMNS: Final = [
    *["Writers", "Storage", "CPU per run", "Runs per second", "Median", "p99", "On disk per run"],
    *["Locked", "Failed"],
]


@dataclass(frozen=True, slots=True)
class Result:
    """What runs cost on a storage: of several rounds the median.

    Attributes:
        storage: its name in `STORAGES`.
        writers: how many processes executed runs.
        runs: how many were executed in all rounds.
        runs_per_second: of all processes together.
        cpu_seconds: of a process of the worker, for a run; that of a server is not in it.
        median_seconds: of a run, from its making to its end.
        p99_seconds: of a run.
        disk_bytes: that a run leaves.
        locked: how often a storage said that it is locked.
        failed: how many runs did not succeed.
    """

    storage: str
    writers: int
    runs: int
    runs_per_second: float
    cpu_seconds: float
    median_seconds: float
    p99_seconds: float
    disk_bytes: float
    locked: int
    failed: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON.

    Returns:
        The status to exit with.
    """
    options = _options(arguments)
    return command.run("event_storage", lambda: _report(options))


def _report(options: argparse.Namespace) -> int:
    results = _all(options)
    described = {
        key: text
        for key, text in machine.describe(CACHE, CACHE).items()
        if key in ("machine", "kernel", "python")
    }
    print(table(results))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(_as_json(described, results), "utf-8")
    ours = (CHOSEN, POSTGRES_KEPT)
    return int(any(result.failed for result in results if result.storage in ours))


def _all(options: argparse.Namespace) -> list[Result]:
    """Measure each storage in each round."""
    programs = postgres.programs()
    names = [name for name in options.storages if programs or name not in _ON_POSTGRES]
    if names != list(options.storages):
        note("no PostgreSQL: its rows are left out; on Debian: apt install postgresql")
    rounds: dict[tuple[int, str], list[Result]] = {}
    for number in range(options.rounds):
        for writers in options.writers:
            for name in names:
                note(f"round {number + 1} of {options.rounds}: {writers} writers, {name}")
                result = _measure(name, writers, options.runs, programs)
                rounds.setdefault((writers, name), []).append(result)
    return [_median(each) for each in rounds.values()]


def table(results: Sequence[Result]) -> str:
    """The results as a table in Markdown."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *map(_cells, results)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cells(result: Result) -> list[str]:
    return [
        str(result.writers),
        result.storage,
        f"{result.cpu_seconds:.3f} s",
        f"{result.runs_per_second:.1f}",
        f"{result.median_seconds:.2f} s",
        f"{result.p99_seconds:.2f} s",
        f"{result.disk_bytes / 1024:.0f} KiB",
        str(result.locked),
        str(result.failed),
    ]


def _measure(name: str, writers: int, runs: int, programs: Path | None) -> Result:
    with tempfile.TemporaryDirectory(prefix="buttercup-bench-") as place:
        home, task = Path(place, "dagster"), Path(place, "task")
        home.mkdir()
        make_task_folder(task)
        with (
            _environment(name, programs) as (variables, folder),
            _set({**variables, "DAGSTER_HOME": str(home), TASK_FOLDER: str(task)}),
        ):
            (home / "dagster.yaml").write_text(json.dumps(_settings(name)), "utf-8")
            with dg.DagsterInstance.get() as instance:  # makes the tables
                instance.get_runs(limit=1)
            stored = folder or home
            before = _size(stored)
            began, written = _written(writers, runs, Path(place, "log"))
            ended = time.perf_counter()
            grown = _size(stored) - before
    return _result(name, written, ended - began, grown)


def _written(writers: int, runs: int, log: Path) -> tuple[float, list[Written]]:
    """When the writers began, and what each did."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(writers + 1), context.Queue()
    processes = [
        context.Process(target=write, args=(runs, log, ready, results), daemon=True)
        for _ in range(writers)
    ]
    for process in processes:
        process.start()
    try:
        ready.wait(timeout=120)
        began = time.perf_counter()
        written = [results.get(timeout=60 + runs * 30) for _ in processes]
    except Exception as error:
        said = log.read_text("utf-8", "replace")[-2000:] if log.exists() else ""
        raise Failed(f"a writer does not come to its end:\n{said}") from error
    for process in processes:
        process.join()
    return began, written


def _result(name: str, written: Sequence[Written], seconds: float, grown: int) -> Result:
    times = sorted(second for one in written for second in one.seconds)
    failures = [text for one in written for text in one.failures]
    for text in failures[:3]:
        note(f"{name}: {text}")
    return Result(
        storage=name,
        writers=len(written),
        runs=len(times),
        runs_per_second=len(times) / seconds,
        cpu_seconds=sum(one.cpu_seconds for one in written) / len(times),
        median_seconds=statistics.median(times),
        p99_seconds=times[min(len(times) - 1, int(len(times) * 0.99))],
        disk_bytes=grown / len(times),
        locked=sum("database is locked" in text for text in failures),
        failed=len(failures),
    )


def _median(rounds: Sequence[Result]) -> Result:
    def of(name: str) -> float:
        return statistics.median(float(getattr(one, name)) for one in rounds)

    return Result(
        storage=rounds[0].storage,
        writers=rounds[0].writers,
        runs=sum(one.runs for one in rounds),
        runs_per_second=of("runs_per_second"),
        cpu_seconds=of("cpu_seconds"),
        median_seconds=of("median_seconds"),
        p99_seconds=of("p99_seconds"),
        disk_bytes=of("disk_bytes"),
        locked=sum(one.locked for one in rounds),
        failed=sum(one.failed for one in rounds),
    )


def _settings(name: str) -> dict[str, Any]:
    """The instance of `one_machine.yaml` with another storage, and nothing that hands out runs."""
    settings = _template(_OURS)
    for key in ("storage", "run_launcher"):
        del settings[key]
    for key, value in STORAGES[name].items():
        settings[key] = _template(value)[key] if isinstance(value, str) else value
    return settings


def _template(name: str) -> dict[str, Any]:
    text = (resources.files("buttercup_dagster") / "instance" / name).read_text("utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


@contextmanager
def _environment(
    name: str, programs: Path | None
) -> Iterator[tuple[Mapping[str, str], Path | None]]:
    """The variables that a storage needs, and where it lies if not in DAGSTER_HOME."""
    if name not in _ON_POSTGRES or programs is None:
        yield {}, None
        return
    with postgres.database(programs) as database:
        yield database.environment, database.folder


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _size(folder: Path) -> int:
    """Bytes on the disk of all files below a folder."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _as_json(described: Mapping[str, str], results: Sequence[Result]) -> str:
    content = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": dict(described),
        "results": [asdict(result) for result in results],
    }
    return json.dumps(content, indent=2) + "\n"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.event_storage",
        description="Measure what a run costs on each storage that Dagster could have.",
    )
    parser.add_argument("--runs", type=int, default=30, help="runs of each process (30)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, whose median is shown (3)")
    parser.add_argument(
        "--writers", type=_numbers, default=[2, 4], help="how many processes at once (2,4)"
    )
    parser.add_argument(
        "--storages",
        nargs="+",
        choices=STORAGES,
        default=list(STORAGES),
        metavar="NAME",
        help=f"of {', '.join(map(repr, STORAGES))} (all)",
    )
    path = CACHE / "event-storage.json"
    parser.add_argument("--json", type=Path, default=path, help=f"file to write ({path})")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
