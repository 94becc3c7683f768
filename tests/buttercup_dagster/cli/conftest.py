"""Fixtures of the commands' tests: archives, a server of them, and the commands as processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Self

import pytest

from tests.e2e.archives import diff_archive, pack, tooling_archive
from tests.e2e.source_server import SourceServer
from tests.support.waiting import wait_for

BIN = Path(sys.executable).parent
COLUMNS = 80
PROJECT = "demo-project"
FOCUS = "demo"

_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Archives:
    """The archives of one task, which fit together.

    Attributes:
        repo: has the folder `FOCUS` with `main.c`.
        tooling: has `PROJECT`.
        diff: applies to `main.c`.
    """

    def __init__(self, folder: Path) -> None:
        self.repo = pack(
            folder / "repo.tar.gz",
            {f"{FOCUS}/README.md": b"# demo\n", f"{FOCUS}/main.c": b"int main(void) {\n}\n"},
        )
        self.tooling = tooling_archive(folder / "tooling.tar.gz", PROJECT)
        self.diff = diff_archive(folder / "diff.tar.gz", self.repo, FOCUS, "main.c")

    @property
    def digests(self) -> dict[str, str]:
        """The digests under the names that the command prints."""
        return {
            "repo": self.repo.sha256,
            "fuzz-tooling": self.tooling.sha256,
            "diff": self.diff.sha256,
        }


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    """Archives of one task; not to be changed."""
    return Archives(tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="session")
def sources() -> Iterator[SourceServer]:
    """A server of archives."""
    with SourceServer() as server:
        yield server


@pytest.fixture(autouse=True)
def terminal_width(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns, plain output, no settings of ours, and a home folder of the test's own."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables with which the processes share compiled modules, if Python is told to keep none.

    Compiling Dagster takes longer than the whole rest of a command.
    """
    if "PYTHONDONTWRITEBYTECODE" not in os.environ:
        return {}
    folder = tmp_path_factory.mktemp("compiled")
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder)}


class Commands:
    """Runs the installed commands as processes."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._started: list[subprocess.Popen[str]] = []

    def close(self) -> None:
        """Kill what a failed test left running."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()

    def environment(self, **variables: str) -> dict[str, str]:
        return {**os.environ, **self._variables, **variables}

    def run(
        self,
        program: str,
        *arguments: str,
        stdout: IO[str] | int = subprocess.PIPE,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, with output and errors apart."""
        return subprocess.run(
            [str(BIN / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            env=self.environment(**variables),
        )

    def start(
        self,
        program: str,
        *arguments: str,
        stdout: IO[str] | int = subprocess.PIPE,
        **variables: str,
    ) -> subprocess.Popen[str]:
        """Start with output and errors apart."""
        process = subprocess.Popen(
            [str(BIN / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(**variables),
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def python(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a piece of Python with the commands' modules at hand."""
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self.environment(),
        )

    def terminal(self, program: str, *arguments: str, **variables: str) -> Terminal:
        """Start in a terminal of 80 columns."""
        return Terminal([str(BIN / program), *arguments], self.environment(**variables))


class Terminal:
    """A process in a terminal of its own; a context manager.

    Attributes:
        process: the process, leader of the terminal's session.
    """

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        # Who opens a terminal as the leader of a session gets Ctrl-C from it.
        script = 'terminal=$1; shift; exec "$@" <>"$terminal" >&0 2>&0'
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", script, "sh", os.ttyname(self._slave), *command],
            env={**environment, "TERM": "xterm"},
            start_new_session=True,
        )
        self._bytes = b""
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()
        os.close(self._master)

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # how the end of a terminal shows
                return
            self._bytes += data

    @property
    def raw(self) -> str:
        """Everything that was written, with what steers the terminal."""
        return self._bytes.decode("utf-8", "replace")

    @property
    def lines(self) -> list[str]:
        """Each line that was ever to be seen, also those written over."""
        return [line for line in re.split(r"[\r\n]+", _STEERING.sub("", self.raw)) if line]

    def shows(self, part: str) -> None:
        """Wait until a text was to be seen."""

        def seen() -> bool:
            found = any(part in line for line in self.lines)
            assert found or self.process.poll() is None, self.raw
            return found

        wait_for(seen, f"{part!r} in the terminal")

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def wait(self) -> int:
        """The status with which it ends; then all of its output is there."""
        status = self.process.wait(30)
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1
        self._reader.join(10)
        return status


@pytest.fixture
def commands(compiled: dict[str, str]) -> Iterator[Commands]:
    with contextlib.closing(Commands(compiled)) as made:
        yield made


def end(process: subprocess.Popen[str], number: signal.Signals) -> tuple[int, str, str]:
    """Send a signal; status, output and errors."""
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err
