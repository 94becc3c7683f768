"""Progress bars of the sources that are fetched and unpacked, on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from task_api.task import SourceType

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from buttercup_dagster.sources.prepare import SourceEvent

DOING: Final[Mapping[str, str]] = {
    "fetching": "fetching",
    "verified": "unpacking",
    "unpacked": "done",
}
"""What is being done with a source whose latest event has this phase."""


@contextmanager
def progress_bars(*, wanted: bool = True) -> Iterator[Callable[[SourceEvent], None]]:
    """A bar for each source while the block runs; nothing where errors do not go to a terminal.

    Args:
        wanted: whether to show any.

    Yields:
        What takes the events of the sources, from any thread, one call at a time.
    """
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TextColumn("{task.fields[doing]:<9}", markup=False),
    )
    # Dagster sends standard error through a file while a step runs, so the bars use a copy of it.
    with (
        os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding="utf-8") as terminal,
        Progress(*columns, console=Console(file=terminal), transient=True) as progress,
    ):
        bars: dict[SourceType, TaskID] = {}
        yield lambda event: _advance(progress, bars, event)


@contextmanager
def counting_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each kind of thing that is counted while the block runs, on a terminal.

    Yields:
        What takes the kind, how many are done and how many there are.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description:<12}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def count(kind: str, done: int, total: int) -> None:
            if kind not in bars:
                bars[kind] = progress.add_task(kind, total=total)
            progress.update(bars[kind], completed=done)

        yield count


def _advance(progress: Progress, bars: dict[SourceType, TaskID], event: SourceEvent) -> None:
    doing = DOING[event.phase]
    if event.source_type not in bars:
        bars[event.source_type] = progress.add_task(
            str(event.source_type), total=event.total, doing=doing
        )
    progress.update(bars[event.source_type], completed=event.bytes, total=event.total, doing=doing)
