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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import redis

from benchmarks import machine
from benchmarks.ground import MEBIBYTE, file_system, forget_removals
from benchmarks.inputs import CACHE
from benchmarks.programs import Failed, Missing
from benchmarks.system import report
from benchmarks.system.archives import find_originals, supply
from benchmarks.system.calibration import WORKER_TASKS, Calibration
from benchmarks.system.dagster_records import DagsterRecords
from benchmarks.system.orchestrator import Orchestrator, orchestrator
from benchmarks.system.phases import Runner, Stuck
from benchmarks.system.results import Row
from benchmarks.system.rows import FULL, QUICK, ROWS, Bench, sources_needed
from buttercup_dagster.cli.signals import INTERRUPTED, ended_by_signals
from buttercup_dagster.local.errors import LocalError
from buttercup_dagster.settings import DownloaderSettings
from buttercup_dagster.sources.disk import clean_private_folders, make_folder, private_folder
from buttercup_dagster.sources.errors import SourceError
from task_api.registry import TaskRegistry

DONE: Final = 0
MISSED: Final = 1
NOT_MEASURED: Final = 2

ROOM_PER_TASK_BYTES: Final = 20 * MEBIBYTE
"""About what the archives, the trees and the records of one task take on the disk."""

KEEP_LOOK_SECONDS: Final = 0.5


def main(arguments: list[str] | None = None) -> int:
    """Measure.

    Returns:
        The status to exit with.
    """
    options = _options(arguments)
    try:
        with ended_by_signals():
            return _measure(options)
    except (Missing, LocalError) as error:
        _note(f"bench-system: {error}")
        return NOT_MEASURED
    except (Failed, SourceError) as error:
        _note(f"bench-system: {error}")
        return MISSED
    except KeyboardInterrupt:
        _note("bench-system: interrupted; nothing is left")
        return INTERRUPTED


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.system",
        description="Measure the whole product, from POST to ready, and judge it.",
    )
    parser.add_argument(
        "--rows",
        type=_rows,
        default=list(ROWS),
        help=f"names of rows, such as idle,stored ({','.join(ROWS)})",
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
    if not chosen <= set(ROWS):
        raise ValueError(text)
    return [name for name in ROWS if name in chosen]


def _measure(options: argparse.Namespace) -> int:
    originals = find_originals(options.sources)
    scale = QUICK if options.quick else FULL
    tasks = WORKER_TASKS + (0 if options.record else sources_needed(options.rows, scale))
    with ExitStack() as stack:
        parent = options.disk / f"buttercup-bench-system-{os.getuid()}"
        make_folder(parent)
        stack.callback(_remove_if_empty, parent)
        clean_private_folders(parent)
        folder = stack.enter_context(private_folder(parent, "run"))
        _require_room(folder, tasks * ROOM_PER_TASK_BYTES)
        if not forget_removals(folder):
            _note(
                "if large trees were removed here within the last six minutes, making files is "
                "slow for now; run it as root, or wait"
            )
        described = machine.describe_machine() | {"disk": file_system(folder)}
        print(report.header(described, originals), flush=True)
        _note(f"making {2 * tasks} archives")
        sources = stack.enter_context(supply(originals, tasks, folder / "sources"))
        _note("measuring this machine")
        recorded = Calibration.recorded()
        now = Calibration.measure(sources.take(WORKER_TASKS), folder / "calibration")
        print(report.calibration_table(now, recorded), flush=True)
        if options.record:
            now.record(described)
            return DONE
        _note("starting buttercup up")
        up = stack.enter_context(orchestrator(folder / "up"))
        runner = Runner(
            up,
            stack.enter_context(redis.Redis.from_url(up.redis_url)),
            stack.enter_context(TaskRegistry.from_url(up.redis_url)),
            stack.enter_context(DagsterRecords.of(up.home)),
            DownloaderSettings.model_fields["linger_seconds"].default,
            scale.idle_seconds,
        )
        rows = _take(options.rows, Bench(runner, sources, scale))
        print(report.table(rows, now.slowdown(recorded), judged=not options.quick), flush=True)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            report.as_json(described, originals, now, recorded, rows, judged=not options.quick),
            "utf-8",
        )
        if options.keep:
            _keep(up)
    return _status(rows, now.slowdown(recorded), judged=not options.quick)


def _take(names: list[str], bench: Bench) -> list[Row]:
    """Measure rows; one that fails does not keep the others from being seen."""
    rows: list[Row] = []
    for name in names:
        _note(f"{name}: {(ROWS[name].__doc__ or '').splitlines()[0]}")
        began = time.monotonic()
        try:
            rows.append(ROWS[name](bench))
        except Failed as error:
            rows.append(Row(name, [], [str(error)]))
        except Stuck as error:
            rows.append(Row(name, [], [f"{error}; the rows behind it are not measured"]))
            break
        _note(f"  {time.monotonic() - began:.0f} s")
        for figure in rows[-1].figures:
            _note(f"  {figure.what}: {figure.measured:.3f} {figure.unit}; {figure.note}")
        for text in rows[-1].wrong:
            _note(f"  FAILED {text}")
    return rows


def _status(rows: list[Row], slowdown: float, *, judged: bool) -> int:
    """Say how it went, and with what status to exit."""
    wrong = [text for row in rows for text in row.wrong]
    if wrong:
        print(f"{len(wrong)} things failed or were done twice")
        return MISSED
    if not judged:
        print("quick: nothing failed and nothing was done twice; no target is judged")
        return DONE
    reached = [figure.reached(slowdown) for row in rows for figure in row.figures]
    missed = reached.count(False)
    print(f"{missed} of {len(reached)} targets missed" if missed else "every target is met")
    return MISSED if missed else DONE


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


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
