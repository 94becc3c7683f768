"""Starts processes, starts them again when they end, and stops them all."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Final, Self

from buttercup_dagster.local.errors import ServiceFailed

PYTHON: Final = (sys.executable, "-P")
"""Python that imports nothing from the folder in which the command was started."""

POLL_SECONDS: Final = 0.1
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 30.0

STEADY_SECONDS: Final = 30.0
"""A process that was healthy for so long starts without a pause when it ends."""

STARTS_BEFORE_HEALTHY: Final = 3
"""A process that ended so often before it was healthy once will not become so."""

STOP_SECONDS: Final = 5.0
"""How long a process may take to end in an orderly way."""

KEPT_LINES: Final = 12
"""Lines of a process's output that are shown when it does not come up."""

_ANSI: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def plain(text: str) -> str:
    """Text without the codes that colour it on a terminal."""
    return _ANSI.sub("", text)


Show = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Service:
    """A process to keep running.

    Attributes:
        name: how it is called in front of its lines.
        command: program and arguments.
        environment: of the process, whole.
        healthy: whether it does its work; asked in the thread of the supervisor.
        start_seconds: how long it may take until then.
        stop_seconds: how long it may take to end in an orderly way; `STOP_SECONDS` if None.
        needed: whether other services need it until they have ended. Those that nobody needs are
            told to end first and at the same time.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    healthy: Callable[[], bool]
    start_seconds: float = 90.0
    stop_seconds: float | None = None
    needed: bool = True


@dataclass(slots=True)
class _Running:
    service: Service
    process: subprocess.Popen[str] | None = None
    reader: threading.Thread | None = None
    started: float = 0.0
    was_healthy: bool = False
    healthy: bool = False
    failed_starts: int = 0
    pause: float = 0.0
    next_start: float = 0.0
    told_to_end: float | None = None
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))


class Supervisor:
    """Runs services, each in a process group of its own; a context manager that stops them.

    All methods belong to the main thread: Linux ends the processes with the thread that started
    them.

    Args:
        show: gets the name of a service and a line of its output, from several threads; or the
            empty name and a line about what the supervisor does.
        stop: asked again and again; what runs is stopped when it gives true.
    """

    def __init__(self, show: Show, stop: Callable[[], bool]) -> None:
        self._show = show
        self._stop = stop
        self._running: list[_Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self, *services: Service) -> bool:
        """Start these, and wait until each of them is healthy.

        Returns:
            Whether they are; False when they were stopped meanwhile.

        Raises:
            ServiceFailed: one of them does not come up.
        """
        added = [_Running(service) for service in services]
        self._running += added
        for one in added:
            self._launch(one)
        while not all(one.healthy for one in added):
            if self._stop():
                return False
            self.look()
            time.sleep(POLL_SECONDS)
        return True

    def watch(self) -> None:
        """Keep everything running until it is to stop.

        Raises:
            ServiceFailed: one of them does not come up again.
        """
        while not self._stop():
            self.look()
            time.sleep(POLL_SECONDS)

    def processes(self) -> dict[str, int]:
        """Process id of each service that runs, by its name."""
        return {
            one.service.name: one.process.pid
            for one in self._running
            if one.process is not None and one.process.poll() is None
        }

    def close(self) -> None:
        """Stop everything, the first started last, and leave no process behind."""
        for one in self._running:
            if not one.service.needed:
                self._tell_to_end(one)
        # What is started later needs what was started before.
        for one in reversed(self._running):
            self._end(one)
        self._running.clear()

    def _tell_to_end(self, one: _Running) -> float:
        """Send SIGTERM, once; when it was sent."""
        if one.told_to_end is None:
            one.told_to_end = time.monotonic()
            self._signal(one, signal.SIGTERM)
        return one.told_to_end

    def _end(self, one: _Running) -> None:
        end = self._tell_to_end(one) + (one.service.stop_seconds or STOP_SECONDS)
        if one.process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(max(0.0, end - time.monotonic()))
            # Whatever it left in its group, and itself if it did not end.
            self._signal(one, signal.SIGKILL)
            one.process.wait()
        if one.reader is not None:
            one.reader.join(2)

    def _signal(self, one: _Running, number: signal.Signals) -> None:
        if one.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(one.process.pid, number)

    def _launch(self, one: _Running) -> None:
        command = [
            *[*PYTHON, "-m", "buttercup_dagster.local.child", str(os.getpid())],
            *one.service.command,
        ]
        one.process = subprocess.Popen(
            command,
            env=dict(one.service.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C in the terminal is for the supervisor, which stops everything in order.
            start_new_session=True,
        )
        one.lines.clear()
        one.started = time.monotonic()
        one.healthy = False
        if one.process.stdout is not None:
            one.reader = threading.Thread(
                target=self._pass_on, args=(one, one.process.stdout), daemon=True
            )
            one.reader.start()

    def _pass_on(self, one: _Running, output: IO[str]) -> None:
        with output:
            for line in output:
                text = line.rstrip()
                one.lines.append(plain(text))
                self._show(one.service.name, text)

    def look(self) -> None:
        """Start what is due again, and ask what is not healthy yet; takes no time of its own.

        Raises:
            ServiceFailed: one of them does not come up.
        """
        now = time.monotonic()
        for one in self._running:
            process = one.process
            if process is None:
                if now >= one.next_start:
                    self._launch(one)
            elif process.poll() is not None:
                self._ended(one, process.returncode, now)
            elif not one.healthy:
                if one.service.healthy():
                    one.healthy = one.was_healthy = True
                    one.failed_starts = 0
                elif now - one.started > one.service.start_seconds:
                    raise ServiceFailed(
                        self._with_lines(
                            one,
                            f"{one.service.name} is not healthy after "
                            f"{one.service.start_seconds:.0f} s",
                        )
                    )

    def _ended(self, one: _Running, status: int, now: float) -> None:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        # Its own children must not be in the way of the next one.
        self._signal(one, signal.SIGKILL)
        one.process = None
        if not one.healthy:
            one.failed_starts += 1
        if one.failed_starts >= STARTS_BEFORE_HEALTHY and not one.was_healthy:
            if one.reader is not None:
                one.reader.join(2)
            raise ServiceFailed(
                self._with_lines(one, f"{one.service.name} does not start: it {how}")
            )
        steady = one.healthy and now - one.started > STEADY_SECONDS
        one.healthy = False
        one.pause = (
            0.0 if steady else min(LONGEST_PAUSE_SECONDS, max(FIRST_PAUSE_SECONDS, 2 * one.pause))
        )
        one.next_start = now + one.pause
        again = f"in {one.pause:g} s" if one.pause else "at once"
        self._show("", f"{one.service.name} {how}; starting it again {again}")

    @staticmethod
    def _with_lines(one: _Running, text: str) -> str:
        if not one.lines:
            return text
        return "\n".join([f"{text}; its last lines:", *(f"  {line}" for line in one.lines)])
