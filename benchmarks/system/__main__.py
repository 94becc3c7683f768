"""`python -m benchmarks.system`: measures the whole product from POST to ready, and judges it.

Exits with 0 if every target is met, 1 if one is missed or something failed or was done twice, 2 if
an input, a program or room is missing, 130 after Ctrl-C. No process and no file is left in any
case, but for the results.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import redis
from sqlalchemy.exc import SQLAlchemyError

from benchmarks import command, machine
from benchmarks.command import DONE, MISSED, note
from benchmarks.ground import MEBIBYTE, file_system, forget_removals, sync
from benchmarks.inputs import CACHE
from benchmarks.programs import Failed, Missing
from benchmarks.system import report
from benchmarks.system.archives import Supply, find_originals, supply
from benchmarks.system.calibration import RECORDED, WORKER_TASKS, Calibration
from benchmarks.system.dagster_records import DagsterRecords
from benchmarks.system.front_rows import FRONT_ROWS, Fronts
from benchmarks.system.orchestrator import Orchestrator, orchestrator
from benchmarks.system.phases import Runner, Stuck
from benchmarks.system.results import Row, verdict
from benchmarks.system.rows import AFTERWARDS, ROWS, Bench, look_back, sources_needed
from benchmarks.system.scale import FULL, QUICK, Scale
from buttercup_dagster.settings import DownloaderSettings
from buttercup_dagster.sources.disk import clean_private_folders, make_folder, private_folder
from task_api.registry import TaskRegistry
from task_api.task import RegistryError

ROOM_PER_TASK_BYTES: Final = 20 * MEBIBYTE
"""About what the archives, the trees and the records of one task take on the disk."""

ROOM_FOR_FRONTS_BYTES: Final = 2048 * MEBIBYTE
"""More than a registry with many tasks takes, with its log and the one that replaces it."""

RECORDED_CALIBRATIONS: Final = 7
"""So often the machine is measured that others are compared with."""

NAMES: Final = (*FRONT_ROWS, *ROWS)
"""Of all rows, in the order in which they are measured."""

KEEP_LOOK_SECONDS: Final = 0.5

LOST: Final = (redis.RedisError, RegistryError, SQLAlchemyError)
"""What is raised when Redis, or what Dagster stores, cannot be read any more."""

_Place = TypeVar("_Place")


def main(arguments: list[str] | None = None) -> int:
    """Measure.

    Returns:
        The status to exit with.
    """
    options = _options(arguments)
    return command.run("bench-system", lambda: _measure(options))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.system",
        description="Measure the whole product, from POST to ready, and judge it.",
    )
    parser.add_argument(
        "--rows",
        type=_rows,
        default=list(NAMES),
        help=f"names of rows, such as idle,stored ({','.join(NAMES)})",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a few tasks for each row; no target is judged, but nothing may fail or be doubled",
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="measure only this machine, several times, and make it the one to compare with",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave everything running after the last row, until Ctrl-C",
    )
    parser.add_argument(
        "--sources",
        type=Path,
        help="folder with two small .tar.gz files of real source; by default Debian source "
        "packages are downloaded once",
    )
    parser.add_argument(
        "--disk",
        type=Path,
        default=Path("/var/tmp"),  # noqa: S108 - all that is made there is private
        help="folder on an ordinary disk, outside of any git work tree (/var/tmp)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=CACHE / "bench-system.json",
        help="file to write (.cache/bench-system.json)",
    )
    return parser.parse_args(arguments)


def _rows(text: str) -> list[str]:
    chosen = set(text.split(","))
    if unknown := chosen - set(NAMES):
        raise argparse.ArgumentTypeError(
            f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}"
        )
    return [name for name in NAMES if name in chosen]


def _measure(options: argparse.Namespace) -> int:
    originals = find_originals(options.sources)
    scale = QUICK if options.quick else FULL
    tasks = WORKER_TASKS + (0 if options.record else sources_needed(options.rows, scale))
    with ExitStack() as stack:
        folder = stack.enter_context(_work_folder(options.disk))
        _require_room(folder, ROOM_FOR_FRONTS_BYTES + tasks * ROOM_PER_TASK_BYTES)
        if not forget_removals(folder):
            note(
                "if large trees were removed here within the last six minutes, making files is "
                "slow for now; run it as root, or wait"
            )
        described = machine.describe_machine() | {"disk": file_system(folder)}
        print(report.header(described, originals), flush=True)
        note(f"making {2 * tasks} archives")
        sources = stack.enter_context(supply(originals, tasks, folder / "sources"))
        note("measuring this machine")
        recorded = Calibration.recorded()
        now = Calibration.measure(
            sources.take(WORKER_TASKS),
            folder / "calibration",
            times=RECORDED_CALIBRATIONS if options.record else scale.calibrations,
        )
        print(report.calibration_table(now, recorded), flush=True)
        if options.record:
            now.record(described)
            print(f"recorded in {RECORDED}")
            return DONE
        rows = _take(options.rows, FRONT_ROWS, Fronts(folder / "fronts", scale))
        sync(folder)
        up = None
        if set(options.rows) & set(ROWS) or options.keep:
            note("starting buttercup up")
            up = stack.enter_context(orchestrator(folder / "up"))
            bench = _bench(up, sources, scale, stack)
            bench.watch_memory = "memory" in options.rows
            rows += _take(options.rows, ROWS, bench)
            rows += _take([AFTERWARDS], {AFTERWARDS: look_back}, bench)
        slowdown, judged = now.slowdown(recorded), not options.quick
        print(report.table(rows, slowdown, judged=judged), flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            report.as_json(described, originals, now, recorded, rows, judged=judged), "utf-8"
        )
        said = verdict(rows, slowdown, judged=judged)
        print(said.text, flush=True)
        if options.keep and up is not None:
            _keep(up)
    return DONE if said.good else MISSED


@contextmanager
def _work_folder(disk: Path) -> Iterator[Path]:
    """A private folder; what an earlier call left that was killed is removed before."""
    parent = disk / f"buttercup-bench-system-{os.getuid()}"
    make_folder(parent)
    try:
        clean_private_folders(parent)
        with private_folder(parent, "run") as folder:
            yield folder
    finally:
        with suppress(OSError):
            parent.rmdir()


def _bench(up: Orchestrator, sources: Supply, scale: Scale, stack: ExitStack) -> Bench:
    runner = Runner(
        up,
        stack.enter_context(redis.Redis.from_url(up.redis_url)),
        stack.enter_context(TaskRegistry.from_url(up.redis_url)),
        stack.enter_context(DagsterRecords.of(up.home)),
        DownloaderSettings.model_fields["linger_seconds"].default,
        scale.idle_seconds,
    )
    return Bench(runner, sources, scale)


def _take(
    names: Sequence[str], measures: Mapping[str, Callable[[_Place], Row]], place: _Place
) -> list[Row]:
    """Measure rows; one that fails does not keep the others from being seen."""
    rows: list[Row] = []
    for name in names:
        if (measure := measures.get(name)) is None:
            continue
        note(f"{name}: {(measure.__doc__ or '').splitlines()[0]}")
        began = time.monotonic()
        try:
            rows.append(measure(place))
        except Failed as error:
            rows.append(Row(name, [], [str(error)]))
        except (Stuck, *LOST) as error:
            rows.append(Row(name, [], [f"{error}; the rows behind it are not measured"]))
            break
        note(f"  {time.monotonic() - began:.0f} s")
        for figure in rows[-1].figures:
            note(f"  {figure.what}: {figure.measured:.3f} {figure.unit}; {figure.note}")
        for text in rows[-1].wrong:
            note(f"  FAILED {text}")
    return rows


def _keep(up: Orchestrator) -> None:
    print(
        f"still running, until Ctrl-C: API {up.url}, Dagster {up.dagster_url}, home {up.home}, "
        f"process {up.process.popen.pid}; its log is {up.process.log}",
        flush=True,
    )
    while True:
        up.process.check()
        time.sleep(KEEP_LOOK_SECONDS)


def _require_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise Missing(
            f"{folder} has {free // MEBIBYTE} MiB free; about {needed_bytes // MEBIBYTE} MiB are "
            "needed; name another disk with --disk"
        )


if __name__ == "__main__":
    sys.exit(main())
