"""Processes that are measured, and never outlive the benchmark."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.programs import Failed

LOG_LINES: Final = 12
"""So many lines of its log are shown of a process that ended."""

LOOK_SECONDS: Final = 0.02
STOP_SECONDS: Final = 45.0
"""How long everything that `buttercup up` runs may take to end, one after the other."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process in a group of its own.

    Attributes:
        name: how messages call it.
        log: everything that it prints.
        popen: its handle.
    """

    name: str
    log: Path
    popen: subprocess.Popen[bytes]

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self.log.read_text("utf-8", "replace")

    def check(self) -> None:
        """Return if it runs.

        Raises:
            Failed: it has ended; the text holds its last lines.
        """
        status = self.popen.poll()
        if status is not None:
            last = "\n".join(f"  {line}" for line in self.printed.splitlines()[-LOG_LINES:])
            raise Failed(f"{self.name} ended with status {status}; its last lines:\n{last}")

    def wait_for(self, condition: Callable[[], object], what: str, *, seconds: float) -> None:
        """Ask again and again until it is so.

        Raises:
            Failed: the process ended, or time is up.
        """
        end = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > end:
                raise Failed(f"{what}: not within {seconds:.0f} s; see {self.log}")
            time.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Process]:
    """Run a command while the block runs; it ends also when this process is killed.

    Args:
        name: how messages call it.
        command: program and arguments.
        log: the file that gets everything it prints.
        cwd: the folder to start it in.
        environment: all of it; by default this process's without any setting of the project.
    """
    tied = [sys.executable, "-P", "-m", "buttercup_dagster.local.child", str(os.getpid())]
    with log.open("ab") as output:
        popen = subprocess.Popen(
            [*tied, *map(str, command)],
            cwd=cwd,
            env=dict(without_settings() if environment is None else environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the one who started it
        )
    try:
        yield Process(name, log, popen)
    finally:
        _signal(popen, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            popen.wait(STOP_SECONDS)
        _signal(popen, signal.SIGKILL)
        popen.wait()


def without_settings() -> dict[str, str]:
    """This process's environment without any setting of the project or of Dagster."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("BUTTERCUP_", "DAGSTER_"))
    }


def _signal(popen: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(popen.pid, number)
