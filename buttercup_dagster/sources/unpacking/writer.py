"""A second process that writes files while the first one reads the archive.

Reading an archive and making its files take about as much processor time each, and a thread of
Python would have to wait for the other whenever the system is done with a call. So the process
that reads shares its blocks with another, in memory, and tells it which files are in them. Where
the other one is behind, it writes what is in a block itself.

Both are the same program, confined alike, so each may trust what the other one marshals.
"""

from __future__ import annotations

import marshal
import os
import select
from mmap import mmap

from buttercup_dagster.sources.unpacking.confine import end_with

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

    from buttercup_dagster.sources.unpacking.tar import Member

    Job = tuple[bytes, int, int, int, int, bool]
    """Path, mode, time in seconds; where in the block its bytes begin, how many they are, and
    whether they are the last ones of the file. A piece without a path goes on with the last file.
    """


SLOTS: Final = 12
"""Blocks that are shared at the same time."""

_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_HEAD_BYTES: Final = 5
_FAILED: Final = 0xFF
_ENDED: Final = "the process that writes was ended by somebody"


def new_file(path: bytes, mode: int) -> int:
    """Make an empty file and open it for writing.

    Raises:
        OSError: it cannot be made, or there is one.
    """
    return os.open(path, _NEW_FILE, mode)


def write_all(handle: int, piece: memoryview) -> None:
    """Append to a file.

    Raises:
        OSError: it cannot be written.
    """
    while piece:
        piece = piece[os.write(handle, piece) :]


class WriterFailed(Exception):
    """The second process could not make or write a file.

    Attributes:
        member: what the archive says about the file.
        making: whether the file could not even be made.
        error: what the system said.
    """

    def __init__(self, member: Member, *, making: bool, error: OSError) -> None:
        super().__init__(str(error))
        self.member = member
        self.making = making
        self.error = error


class Writer:
    """The second process, seen from the first, and like that confined to the same folder.

    Attributes:
        takes: whether the present block is shared, so that files in it can be given.
        peak_bytes: the most memory that it held; known after `wait`.

    Args:
        block_bytes: size of the largest block.

    Raises:
        OSError: the system has no room for it.
    """

    def __init__(self, block_bytes: int) -> None:
        self.takes = False
        self.peak_bytes = 0
        self._block_bytes = block_bytes
        self._ring = mmap(-1, SLOTS * block_bytes)
        self._free = list(range(SLOTS))
        self._slot: int | None = None
        self._jobs: list[Job] = []
        self._unfinished = False
        self._members: list[Member] = []
        # By slot: what the archive says about the files of the block in it.
        self._waiting: list[list[Member]] = [[]] * SLOTS
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        process = os.getpid()
        self._process = os.fork()
        if self._process == 0:
            try:
                end_with(process)
                os.close(self._orders)
                os.close(self._answers)
                _serve(memoryview(self._ring), block_bytes, orders, answers)
            finally:
                os._exit(0)
        os.close(orders)
        os.close(answers)
        os.set_blocking(self._answers, False)

    def sharing(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """The same blocks; what is in the one that was given out last can be given to `give`."""
        for block in blocks:
            self._listen()
            while self._unfinished and not self._free:
                poll = select.poll()
                poll.register(self._answers, select.POLLIN)
                poll.poll()
                if not self._listen():
                    raise RuntimeError(_ENDED)
            if self._free:
                self._slot = self._free.pop()
                self.takes = True
                at = self._slot * self._block_bytes
                self._ring[at : at + len(block)] = block
            yield block
            self._send()

    def begin(self) -> None:
        """Say that a file follows in pieces: all further blocks that it is in have to be shared."""
        self._unfinished = True

    def give(self, member: Member, job: Job) -> None:
        """Have a file, or a piece of one, written whose bytes are in the present block.

        Only while `takes` is true; all pieces of a file have to be given.
        """
        self._members.append(member)
        self._jobs.append(job)
        self._unfinished = not job[5]

    def wait(self) -> None:
        """Return when everything is written. Nothing can be given afterwards.

        Raises:
            WriterFailed: something could not be written.
            RuntimeError: the process was killed.
        """
        self._send()
        os.close(self._orders)
        os.set_blocking(self._answers, True)
        while self._listen():
            pass
        os.close(self._answers)
        try:
            _, _, usage = os.wait4(self._process, 0)
            self.peak_bytes = usage.ru_maxrss * 1024
        except ChildProcessError:  # where SIGCHLD is ignored, nobody is told
            pass
        if len(self._free) < SLOTS:
            raise RuntimeError(_ENDED)

    def _send(self) -> None:
        slot = self._slot
        if slot is None:
            if self._jobs:
                raise RuntimeError("a file was given that lies in no shared block")
            return
        self._slot = None
        self.takes = False
        if not self._jobs:
            self._free.append(slot)
            return
        content = marshal.dumps(self._jobs)
        self._jobs.clear()
        self._waiting[slot], self._members = self._members, []
        order = len(content).to_bytes(4, "little") + bytes([slot]) + content
        try:
            write_all(self._orders, memoryview(order))
        except BrokenPipeError:
            # It has ended; the last thing it said is why.
            os.set_blocking(self._answers, True)
            while self._listen():
                pass
            raise RuntimeError(_ENDED) from None

    def _listen(self) -> bool:
        """Take back the slots that are free again; False at the end of the process."""
        try:
            answers = os.read(self._answers, 64)
        except BlockingIOError:
            return True
        for at, letter in enumerate(answers):
            if letter == _FAILED:
                slot, index, making, number = marshal.loads(answers[at + 1 :])  # noqa: S302
                error = OSError(number, os.strerror(number))
                raise WriterFailed(self._waiting[slot][index], making=making, error=error)
            self._free.append(letter)
        return bool(answers)


def _serve(ring: memoryview, block_bytes: int, orders: int, answers: int) -> None:
    """Be the second process."""
    handle = -1
    while head := _read(orders, _HEAD_BYTES):
        slot = head[4]
        jobs: list[Job] = marshal.loads(_read(orders, int.from_bytes(head[:4], "little")))  # noqa: S302
        base = slot * block_bytes
        index = 0
        making = False
        try:
            for index, (path, mode, mtime, start, size, last) in enumerate(jobs):  # noqa: B007
                if path:
                    making = True
                    handle = new_file(path, mode)
                    making = False
                if size:
                    at = base + start
                    written = os.write(handle, ring[at : at + size])
                    if written < size:
                        write_all(handle, ring[at + written : at + size])
                if last:
                    os.utime(handle, (mtime, mtime))
                    os.close(handle)
        except OSError as error:
            failure = marshal.dumps((slot, index, making, error.errno or 0))
            os.write(answers, bytes([_FAILED]) + failure)
            return
        os.write(answers, head[4:5])


def _read(handle: int, size: int) -> bytes:
    """So many bytes; none where the pipe ends before."""
    data = os.read(handle, size)
    while data and len(data) < size:
        more = os.read(handle, size - len(data))
        data = data + more if more else b""
    return data
