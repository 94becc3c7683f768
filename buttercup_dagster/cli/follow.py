"""Watching one task over HTTP, for people: its sources on their way, and its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from buttercup_dagster.cli.buttercup import PROGRAM
from buttercup_dagster.cli.console import harmless, size
from task_api.client import ServerUnavailable, TaskServerClient

POLL_SECONDS: Final = 0.25

PATIENCE_SECONDS: Final = 15.0
"""A task that nobody has begun with by then deserves a word about why."""

GOES_ON: Final = frozenset({"pending", "scheduled", "downloading"})

Show = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the sources are.

    Attributes:
        totals: bytes of each source by its type.
        sent: gives the bytes of each that have left this machine.
    """

    totals: Mapping[str, int]
    sent: Callable[[], Mapping[str, int]]


def follow(
    client: TaskServerClient,
    task_id: str,
    progress: Progress,
    *,
    goes_on: Callable[[], bool] = lambda: True,
) -> str:
    """Show what becomes of a task until it is ready or has ended.

    A server that is away is waited for.

    Args:
        client: of the task server.
        task_id: the task.
        progress: of its sources.
        goes_on: asked a few times a second; ends the wait when it gives false.

    Returns:
        The state that it has then.

    Raises:
        RequestRefused: the task cannot be read.
        KeyboardInterrupt: `goes_on` gave false.
    """
    began = time.monotonic()
    told_away = told_waiting = False
    with _display(progress) as show:
        while True:
            if not goes_on():
                raise KeyboardInterrupt
            try:
                view = client.task(task_id)
            except ServerUnavailable as error:
                if not told_away:
                    _remark(f"{error}; waiting for it")
                told_away = True
                time.sleep(POLL_SECONDS)
                continue
            told_away = False
            show(view)
            if view["state"] not in GOES_ON:
                break
            waits = view["state"] == "pending" and time.monotonic() - began > PATIENCE_SECONDS
            if waits and not told_waiting:
                _say_why_it_waits(client, view)
                told_waiting = True
            time.sleep(POLL_SECONDS)
    _print_end(view)
    return str(view["state"])


def _say_why_it_waits(client: TaskServerClient, view: Mapping[str, Any]) -> None:
    if view["reason"]:
        _remark(f"the task waits for another try: {view['reason']['text']}")
        return
    try:
        details = client.status().get("details") or {}
    except ServerUnavailable:
        return
    for problem in details.values():
        _remark(f"the task waits: {problem}")


def _print_end(view: Mapping[str, Any]) -> None:
    reason = f": {view['reason']['text']}" if view["reason"] else ""
    print(harmless(f"{view['state']}{reason}"))
    if view["path"] and view["state"] == "ready":
        print(harmless(f"{view['path']} on {view['machine']}"))


def _remark(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {harmless(text)}\n")


@contextmanager
def _display(progress: Progress) -> Iterator[Show]:
    """Bars on a terminal; elsewhere one line for each step."""
    if not sys.stdout.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[state]:<11}"),
    )
    with Bars(*columns, console=Console(), transient=True) as bars:
        rows = {
            name: bars.add_task(name, total=total, state="waiting")
            for name, total in progress.totals.items()
        }

        def show(view: Mapping[str, Any]) -> None:
            states = {source["type"]: source["state"] for source in view["sources"]}
            for name, sent in progress.sent().items():
                state = states.get(name, "waiting")
                done = progress.totals[name] if state != "waiting" else sent
                shown = view["state"] if state == "waiting" and not sent else state
                bars.update(rows[name], completed=min(done, progress.totals[name]), state=shown)

        yield show


class _Lines:
    """One line for each new state of the task and of its sources."""

    def __init__(self) -> None:
        self._told: set[tuple[str, str]] = set()

    def __call__(self, view: Mapping[str, Any]) -> None:
        for source in view["sources"]:
            known = size(source["bytes"])
            found = "stored already" if source["cache_hit"] else known
            if source["state"] != "waiting":
                self._tell(source["type"], f"{source['type']} {source['state']}, {found}")
        if view["state"] in GOES_ON:
            self._tell(view["state"], view["state"])

    def _tell(self, what: str, text: str) -> None:
        if (what, text) not in self._told:
            self._told.add((what, text))
            print(harmless(text), flush=True)
