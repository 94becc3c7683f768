"""What `buttercup-downloader verify` and `gc` do and print."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, TypeVar

from buttercup_dagster.background import in_thread
from buttercup_dagster.cli.console import (
    give_up,
    make_console,
    printing,
    put,
    put_table,
    put_text,
    size,
)
from buttercup_dagster.cli.progress import counting_bars
from buttercup_dagster.sources.errors import SourceError
from buttercup_dagster.sources.stop import Stop

if TYPE_CHECKING:
    from rich.console import Console

    from buttercup_dagster.engine import Engine
    from buttercup_dagster.sources.collect import Collection
    from buttercup_dagster.sources.verify import Verification

WRONG: Final = 1
"""Status of `verify` when something was wrong, also if it was mended."""

MOST_LINES: Final = 10
"""Differences of one thing that are printed for people."""

_T = TypeVar("_T")


def run_verify(program: str, engine: Engine, *, full: bool, repair: bool, as_json: bool) -> int:
    """Compare everything, print what was wrong, and return the status.

    Raises:
        SystemExit: status 1 after one line; the disk failed.
        KeyboardInterrupt: by Ctrl-C; nothing half-done is left.
    """
    with counting_bars() as count:

        def work(stop: Stop) -> Verification:
            return engine.verify(full=full, repair=repair, stop=stop, on_progress=count)

        found = _interruptible(program, work)
    with printing(program):
        if as_json:
            print(json.dumps(asdict(found)))
        else:
            _print_verification(make_console(), found)
    return WRONG if found.findings else 0


def run_gc(program: str, engine: Engine, *, everything: bool, dry_run: bool, as_json: bool) -> int:
    """Collect, print what was removed, and return the status.

    Raises:
        SystemExit: status 1 after one line; another process collects, or the disk failed.
        KeyboardInterrupt: by Ctrl-C; nothing half-done is left.
    """
    with counting_bars() as count:

        def work(stop: Stop) -> Collection | None:
            return engine.collect(
                everything=everything,
                dry_run=dry_run,
                stop=stop,
                on_progress=lambda done, total: count("removing", done, total),
            )

        done = _interruptible(program, work)
    if done is None:
        give_up(program, "another process is collecting; try again when it has ended")
    with printing(program):
        if as_json:
            print(json.dumps({**asdict(done), "dry_run": dry_run}))
        else:
            _print_collection(make_console(), done, dry_run=dry_run)
    return 0


def _interruptible(program: str, work: Callable[[Stop], _T]) -> _T:
    """Work in a thread, so that Ctrl-C lets it clean up."""
    stop = Stop()
    try:
        return in_thread(lambda _: work(stop), stop=stop, log=lambda _: None)
    except SourceError as error:
        give_up(program, str(error))


def _print_verification(console: Console, found: Verification) -> None:
    from rich.text import Text

    for one in found.findings:
        put(console, Text(f"{one.kind} {one.name}", "bold"))
        for problem in one.problems[:MOST_LINES]:
            put_text(console, Text("  "), problem, "red")
        more = len(one.problems) - MOST_LINES
        if more > 0:
            put(console, f"  and {more} more differences")
        put_text(console, Text("  "), one.outcome)
    for name in found.busy:
        put(console, f"{name}: busy, not compared")
    for name in found.unread:
        put(console, f"{name}:")
        put_text(console, Text("  "), "its archive cannot be read, so its bytes were not compared")
    compared = _listed([(found.archives, "archive"), (found.trees, "tree"), (found.tasks, "task")])
    wrong = len(found.findings)
    verdict = "all as it was written" if not wrong else f"{wrong} not as it was written"
    put(console, f"compared {compared}: {verdict}")


def _print_collection(console: Console, done: Collection, *, dry_run: bool) -> None:
    from rich.text import Text

    if done.removed:
        rows = [(one.kind, one.name, size(one.bytes)) for one in done.removed]
        put_table(console, ("KIND", "NAME", "SIZE"), rows, shrink="NAME")
    freed = done.before.store_bytes - done.after.store_bytes
    would = "would be removed" if dry_run else "removed"
    put(console, f"{would}: {_count(len(done.removed), 'thing')}, {size(freed)}")
    if done.kept:
        put(console, f"kept: {_count(done.kept, 'thing')} that tasks need or somebody works with")
    if done.cleaned:
        put(console, f"cleared up after crashes: {_count(len(done.cleaned), 'thing')}")
    for problem in done.problems:
        put_text(console, Text("  "), problem, "red")
    put(
        console,
        f"the store has {size(done.after.store_bytes)}, "
        f"the disk {size(done.after.free_bytes)} free",
    )


def _listed(counts: Sequence[tuple[int, str]]) -> str:
    *first, last = (_count(number, what) for number, what in counts)
    return f"{', '.join(first)} and {last}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
