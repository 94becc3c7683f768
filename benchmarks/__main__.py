"""`python -m benchmarks`: measures the source engine and says whether it is as fast as it must be.

Exits with 0 if every target is met, 1 if one is missed or a side failed, 2 if an input, a program
or room is missing, 130 after Ctrl-C. Nothing is left on the disks in any case.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks import command, machine, report
from benchmarks.command import DONE, MISSED, note
from benchmarks.ground import Ground
from benchmarks.inputs import CACHE, PACKAGES, VARIABLE, Archive, Size, find
from benchmarks.pairs import Plan
from benchmarks.programs import Failed, Missing, require
from benchmarks.rows import ROWS, Bench, Result
from buttercup_dagster.sources.errors import SourceError

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - all that is made there is private
SYNTHETIC_FILES: Final = 2_000
QUICK_SYNTHETIC_FILES: Final = 50


def main(arguments: list[str] | None = None) -> int:
    """Measure.

    Returns:
        The status to exit with.
    """
    options = _options(arguments)
    return command.run("bench", lambda: _measure(options))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the source engine against tar, tarfile and curl.",
    )
    sources = os.environ.get(VARIABLE)
    parser.add_argument(
        "--sources",
        type=Path,
        default=Path(sources) if sources else None,
        help=f"folder with small.tar.gz, middle.tar.gz, large.tar.gz (or {VARIABLE}); "
        "by default Debian source packages are downloaded once",
    )
    parser.add_argument("--pairs", type=_pairs, default=5, help="pairs per row (5)")
    parser.add_argument(
        "--rows", type=_rows, default=list(ROWS), help="numbers of rows, such as 1,3 (all)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one pair with the small archive, judged by nothing: shows that the tool works",
    )
    parser.add_argument(
        "--memory", type=Path, default=SHARED_MEMORY, help=f"memory-backed disk ({SHARED_MEMORY})"
    )
    parser.add_argument(
        "--disk", type=Path, default=CACHE, help="folder on the ordinary disk (.cache)"
    )
    parser.add_argument(
        "--json", type=Path, default=CACHE / "bench.json", help="file to write (.cache/bench.json)"
    )
    return parser.parse_args(arguments)


def _pairs(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _rows(text: str) -> list[int]:
    rows = sorted({int(part) for part in text.split(",")})
    if not set(rows) <= set(ROWS):
        raise ValueError(text)
    return rows


def _measure(options: argparse.Namespace) -> int:
    require()
    if not options.memory.is_dir():
        raise Missing(f"there is no {options.memory}; name a memory-backed disk with --memory")
    archives = _archives(options)
    plan = Plan(pairs=1 if options.quick else options.pairs, warm_up=not options.quick, note=note)
    results: list[Result] = []
    failures: list[str] = []
    with ExitStack() as stack:
        memory, disk = (
            stack.enter_context(Ground.below(parent / name, patient=not options.quick, note=note))
            for parent, name in (
                (options.memory, f"buttercup-bench-{os.getuid()}"),
                (options.disk, "bench"),
            )
        )
        described = machine.describe(memory.folder, disk.folder)
        different = {archive.path: archive for archive in archives.values()}.values()
        print(report.header(described, different, plan.pairs), flush=True)
        synthetic_files = QUICK_SYNTHETIC_FILES if options.quick else SYNTHETIC_FILES
        bench = Bench(archives, memory, disk, plan, synthetic_files)
        for number in options.rows:
            measure, _ = ROWS[number]
            # What the other rows show is worth seeing nevertheless.
            try:
                results += measure(bench)
            except (Failed, SourceError) as error:
                failures.append(f"row {number} failed: {error}")
            memory.clear()
    print(report.table(results, judged=not options.quick))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(
        report.as_json(described, different, results, judged=not options.quick), "utf-8"
    )
    if failures:
        print(*failures, sep="\n")
        return MISSED
    if options.quick:
        print("quick: with the small archive only, once; no target is judged")
        return DONE
    judged = [result.reached for result in results if result.reached is not None]
    missed = judged.count(False)
    print(f"{missed} of {len(judged)} targets missed" if missed else "every target is met")
    return MISSED if missed else DONE


def _archives(options: argparse.Namespace) -> dict[Size, Archive]:
    if options.quick:
        small = find(options.sources, ["small"])["small"]
        return {"small": small, "middle": small, "large": small}
    needed = {size for number in options.rows for size in ROWS[number][1]}
    return find(options.sources, [size for size in PACKAGES if size in needed])


if __name__ == "__main__":
    sys.exit(main())
