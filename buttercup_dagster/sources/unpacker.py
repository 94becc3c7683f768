"""The process that unpacks one archive, seen from its parent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Self

from buttercup_dagster.sources.errors import (
    ArchiveError,
    DigestMismatch,
    SourceError,
    UnpackerDied,
    storage_error,
    storing,
)
from buttercup_dagster.sources.manifest import Manifest, Section, Totals
from buttercup_dagster.sources.stop import Stop
from task_api.task import printable

# Neither `site` nor the environment has a say in what the process imports, and the folder in which
# it is started least of all: it is told where the two packages are that it needs.
_START: Final = (
    "import sys; sys.path += sys.argv[1:3]; del sys.argv[1:3]; "
    "from buttercup_dagster.sources.unpacking.child import run; run()"
)
_ENVIRONMENT: Final = ("LD_LIBRARY_PATH", "PATH")
_LINKS: Final = (b"l\t", b"x\t")
_CLIMBS: Final = (b"\t../", b"/../", b"\t..\t", b"/..\t", b"\t..\n", b"/..\n")
_READ_BYTES: Final = 256 * 1024
_HEAD_BYTES: Final = 5
_MOST_LAST_WORDS: Final = 2000


@dataclass(frozen=True, slots=True)
class Usage:
    """What the process took.

    Attributes:
        peak_bytes: the most memory that it held; 0 where the system does not say.
        cpu_seconds: of processor time.
    """

    peak_bytes: int
    cpu_seconds: float


class Unpacker:
    """A process that unpacks one archive into one folder. Leaving the block ends it.

    Args:
        archive: descriptor of the archive, at its beginning.
        folder: descriptor of an empty folder.
        sha256: digest that the archive must have; empty for any.
        settings: the other arguments of `unpacking/child.py`.
    """

    def __init__(
        self, archive: int, folder: int, *, sha256: str, settings: dict[str, int | str]
    ) -> None:
        self._sha256 = sha256
        self._buffer = bytearray()
        self._rows: list[bytes] = []
        self._pipe, report = os.pipe()
        try:
            arguments = {
                "archive": archive,
                "folder": folder,
                "report": report,
                "parent": os.getpid(),
                "sha256": sha256,
                **settings,
            }
            command = [sys.executable, "-I", "-S", "-c", _START, *_package_folders()]
            command += [f"{name}={value}" for name, value in arguments.items()]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                pass_fds=(archive, folder, report),
                # Ctrl-C is for the parent, which ends this process itself.
                process_group=0,
            )
        except OSError as error:
            os.close(self._pipe)
            raise UnpackerDied(
                f"the process that unpacks cannot be started: {error.strerror}"
            ) from error
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(report)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.wait()
        # The second process has the pipe too; until it is gone, something may yet be written.
        while os.read(self._pipe, _READ_BYTES):
            pass
        os.close(self._pipe)
        if self._process.stderr is not None:
            self._process.stderr.close()

    def kill(self) -> None:
        """End the process at once, and the second one that it may have; from any thread."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def result(
        self,
        *,
        seconds: float,
        stop: Stop,
        on_progress: Callable[[int], None] | None,
        on_usage: Callable[[Usage], None] | None,
    ) -> Manifest:
        """Wait for the process to be done.

        Args:
            seconds: how long at most.
            stop: ends the waiting and the process.
            on_progress: called now and then with the bytes unpacked so far.
            on_usage: called once with what the process took, if it lived to say so.

        Returns:
            The manifest of what it made.

        Raises:
            ArchiveError: the archive is refused, or takes too long.
            DigestMismatch: it is another archive than the one that was asked for.
            NoSpace, StorageError: the disk is full or fails.
            UnpackerDied: the process was killed.
            Stopped, DeadlinePassed: by `stop`.
        """
        end = time.monotonic() + seconds
        with stop.on_stop(self.kill):
            while True:
                letter, content = self._frame(end, seconds)
                if letter == b"R":
                    self._rows.append(content)
                elif letter == b"P":
                    if on_progress is not None:
                        on_progress(int(content))
                elif letter == b"U":
                    if on_usage is not None:
                        peak, cpu = content.split(b"\t")
                        on_usage(Usage(int(peak), int(cpu) / 1_000_000))
                elif letter == b"D":
                    rows = b"".join(self._rows)
                    self._rows.clear()
                    if not _stays_inside(rows):
                        raise UnpackerDied("the process that unpacks told of files outside")
                    return Manifest((Section("", rows),), Totals(*map(int, content.split(b"\t"))))
                else:
                    stop.check()
                    raise self._failure(letter, content)

    def _frame(self, end: float, seconds: float) -> tuple[bytes, bytes]:
        """The next frame; an empty letter at the end of the pipe."""
        buffer = self._buffer
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while True:
            if len(buffer) >= _HEAD_BYTES:
                after = _HEAD_BYTES + int.from_bytes(buffer[1:_HEAD_BYTES], "little")
                if len(buffer) >= after:
                    letter, content = bytes(buffer[:1]), bytes(buffer[_HEAD_BYTES:after])
                    del buffer[:after]
                    return letter, content
            left = end - time.monotonic()
            if left <= 0:
                raise _took_too_long(seconds)
            if poll.poll(left * 1000):
                data = os.read(self._pipe, _READ_BYTES)
                if not data:
                    return b"", b""
                buffer += data

    def _failure(self, letter: bytes, content: bytes) -> SourceError:
        if letter == b"A":
            code, number, offset, name, text = content.split(b"\t", 4)
            return ArchiveError(
                text.decode(),
                code=code.decode(),
                entry_number=int(number),
                offset=int(offset),
                name=bytes.fromhex(name.decode()),
            )
        if letter == b"M":
            got = content.decode()
            return DigestMismatch(
                f"the archive has SHA-256 {got}, wanted {self._sha256}; it was changed after it "
                "had been verified",
                got=got,
                want=self._sha256,
            )
        if letter == b"S":
            number, text = content.split(b"\t", 1)
            error = OSError(int(number), os.strerror(int(number)))
            return storage_error(error, text.decode())
        if letter == b"C":
            return UnpackerDied(f"the process that unpacks failed: {content.decode()}")
        return self._death()

    def _death(self) -> SourceError:
        self.kill()
        status = self._process.wait()
        words = b""
        if self._process.stderr is not None:
            words = self._process.stderr.read(_MOST_LAST_WORDS)
        if status == -signal.SIGXCPU:
            return ArchiveError(
                "the archive takes too much processor time to unpack", code="took_too_long"
            )
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        shown = printable(words.decode("utf-8", "replace").strip()[-300:], limit=300)
        return UnpackerDied(
            f"the process that unpacks {how}"
            + (f" ({shown})" if shown else "")
            + ("; is this machine short of memory?" if status == -signal.SIGKILL else "")
        )


def _stays_inside(rows: bytes) -> bool:
    """Whether rows of a manifest name nothing outside of its tree.

    Whoever uses them relies on it, and the process that wrote them had read a hostile archive.
    """
    if b"\0" in rows:
        return False
    names = rows[: _start_of_links(rows)]
    # Two dots in a row are rare, so all that looks for them is.
    if b"\t/" in names or (b".." in names and any(sign in names for sign in _CLIMBS)):
        return False
    for line in rows[len(names) :].splitlines():
        fields = line.split(b"\t")
        if len(fields) != 6 or fields[0] not in {b"l", b"x"}:
            return False
        if fields[4].startswith(b"/") or b".." in fields[4].split(b"/"):
            return False
    return True


def _start_of_links(rows: bytes) -> int:
    """Where the rows about symbolic links begin, which are the last ones."""
    if rows.startswith(_LINKS):
        return 0
    found = [rows.find(b"\n" + kind) for kind in _LINKS]
    return min((at + 1 for at in found if at >= 0), default=len(rows))


def _took_too_long(seconds: float) -> ArchiveError:
    return ArchiveError(
        f"unpacking the archive takes longer than {seconds:g} s; raise the limit if it is meant to "
        "be so large",
        code="took_too_long",
    )


def _package_folders() -> list[str]:
    """The folders that hold this project and isal."""
    isal = find_spec("isal")
    if isal is None or isal.origin is None:
        raise UnpackerDied("the package isal is missing; install this project again")
    with storing("cannot find this project's own files"):
        ours = Path(__file__).resolve().parents[2]
        return [str(ours), str(Path(isal.origin).resolve().parents[1])]
