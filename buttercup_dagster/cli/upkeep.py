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
    from buttercup_dagster.sources.collect import Collection, Usage, Watermarks
    from buttercup_dagster.sources.verify import Verification

WRONG: Final = 1
"""Status of `verify` when something was wrong, also if it was mended, and of `gc` when something
could not be removed."""

MOST_LINES: Final = 10
"""Differences of one thing that are printed for people."""

_T = TypeVar("_T")


def run_verify(program: str, engine: Engine, *, full: bool, repair: bool, as_json: bool) -> int:
    """Compare everything, print what was wrong, and return the status.

    Raises:
        SystemExit: status 1 after one line; the disk failed.
        KeyboardInterrupt: by Ctrl-C; nothing half-done is left, and what was found is printed.
    """
    from buttercup_dagster.sources.verify import VerificationStopped

    stopped: list[Verification] = []
    try:
        with counting_bars() as count:

            def work(stop: Stop) -> Verification:
                try:
                    return engine.verify(full=full, repair=repair, stop=stop, on_progress=count)
                except VerificationStopped as error:
                    stopped.append(error.so_far)
                    raise

            found = _interruptible(program, work)
    except KeyboardInterrupt:
        # What was found and mended before would not be found again.
        for so_far in stopped:
            if as_json or so_far.findings:
                _show_verification(program, so_far, as_json=as_json)
        raise
    _show_verification(program, found, as_json=as_json)
    return WRONG if found.findings else 0


def _show_verification(program: str, found: Verification, *, as_json: bool) -> None:
    with printing(program):
        if as_json:
            print(json.dumps(asdict(found)))
        else:
            _print_verification(make_console(), found)


def run_gc(program: str, engine: Engine, *, everything: bool, dry_run: bool, as_json: bool) -> int:
    """Collect, print what was removed, and return the status.

    Raises:
        SystemExit: status 1 after one line; another process collects, or the disk failed.
        KeyboardInterrupt: by Ctrl-C; nothing half-done is left.
    """
    marks = engine.options.watermarks
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
            above = marks.exceeded(done.after)
            print(json.dumps({**asdict(done), "dry_run": dry_run, "above_marks": above}))
        else:
            console = make_console()
            _print_collection(console, done, dry_run=dry_run)
            _print_excess(console, done.after, marks)
    return WRONG if done.problems else 0


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
        put_text(
            console, Text("  "), "what it is made of cannot be read, so its bytes were not compared"
        )
    compared = _listed([(found.archives, "archive"), (found.trees, "tree"), (found.tasks, "task")])
    wrong = sum(one.compared for one in found.findings)
    verdict = "all as it was written" if not wrong else f"{wrong} not as it was written"
    failed = {one.name for one in found.findings if not one.compared}
    left_out = len(failed.union(found.busy, found.unread))
    if left_out:
        verdict += f", {'' if wrong else 'except '}{left_out} not compared"
    until = "" if found.complete else " until it was stopped"
    put_text(console, Text(), f"compared {compared}{until}: {verdict}")


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


def _print_excess(console: Console, usage: Usage, marks: Watermarks) -> None:
    """Say what is still above the marks, since tasks need it or others fill the disk."""
    from rich.text import Text

    advice: list[str] = []
    if usage.store_bytes > marks.max_store_bytes:
        advice.append(
            f"still above --max_store_bytes ({size(marks.max_store_bytes)}): what is left is "
            "needed; remove tasks, or raise it"
        )
    if usage.free_bytes < marks.min_free_bytes:
        advice.append(
            f"still less than --min_free_bytes ({size(marks.min_free_bytes)}) free: remove tasks, "
            "or free the disk of other things"
        )
    for line in advice:
        put_text(console, Text(), line, "red")


def _listed(counts: Sequence[tuple[int, str]]) -> str:
    *first, last = (_count(number, what) for number, what in counts)
    return f"{', '.join(first)} and {last}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
