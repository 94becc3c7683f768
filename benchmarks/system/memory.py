"""How much memory the processes of the product hold, by /proc (proc(5))."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.programs import Failed

PROC: Final = Path("/proc")
KIBIBYTE: Final = 1024

SUPERVISED: Final = "buttercup_dagster.local.child"
"""What stands in front of the command of each process that `buttercup up` starts."""

COMMANDS: Final[Mapping[str, str]] = {
    "daemon": "dagster._daemon run",
    "server": "task_api.cli",
    "worker child": "buttercup_dagster.cli.downloader serve",
}
"""By what the command lines of those that are measured are known."""


@dataclass(frozen=True, slots=True)
class _Process:
    number: int
    parent: int
    command: str
    resident_bytes: int


def resident_bytes(ancestor: int) -> dict[str, int]:
    """Resident memory of the daemon, the server and the largest child of the worker.

    Pages that a child shares with its parent count as its own, so that it does not matter how
    many children there are.

    Args:
        ancestor: process id of `buttercup up`, or of what started it.

    Raises:
        Failed: one of them is not there.
    """
    below = _below(ancestor)
    found: dict[str, int] = {}
    for name, command in COMMANDS.items():
        those = [one for one in below if command in one.command and SUPERVISED not in one.command]
        if name == "worker child":
            parents = {one.number for one in those}
            those = [one for one in those if one.parent in parents]
        if not those:
            raise Failed(f"no process of `buttercup up` is the {name}")
        found[name] = max(one.resident_bytes for one in those)
    return found


def _below(ancestor: int) -> list[_Process]:
    """All descendants of a process."""
    everything = list(_processes())
    found: list[_Process] = []
    parents = {ancestor}
    while parents:
        some = [one for one in everything if one.parent in parents]
        found += some
        parents = {one.number for one in some}
    return found


def _processes() -> Iterable[_Process]:
    for folder in PROC.glob("[0-9]*"):
        try:
            status = (folder / "status").read_text("utf-8", "replace")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:  # it has ended
            continue
        yield _Process(
            int(folder.name),
            _number("PPid", status),
            command.decode("utf-8", "replace"),
            KIBIBYTE * _number("VmRSS", status),
        )


def _number(name: str, status: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+)", status, re.MULTILINE)
    return int(found[1]) if found else 0
