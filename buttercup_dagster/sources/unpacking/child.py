"""The process that unpacks one archive: what it is told, and what it tells.

It gets three descriptors (the archive, an empty folder, a pipe) and its limits as `name=value`
arguments, and answers on the pipe in frames: one letter, the length of what follows in four bytes,
little-endian, and that:

    R rows of the manifest
    P bytes of the stream read so far, decimal
    U peak memory in bytes and processor time in microseconds, separated by a tab
    D totals of the manifest, decimal, separated by tabs: the archive is unpacked
    M SHA-256 of the archive, which is not the one that was asked for
    A code, entry number, offset, name (hex) and text, separated by tabs: the archive is refused
    S errno and text, separated by a tab: the disk failed
    C text: the process itself failed

One of D, M, A, S and C comes last.
"""

from __future__ import annotations

import gc
import os
import sys
from hashlib import sha256

from buttercup_dagster.sources.unpacking.confine import confine
from buttercup_dagster.sources.unpacking.extract import Extraction
from buttercup_dagster.sources.unpacking.gunzip import OUTPUT_BYTES, ArchiveFile, unpacked_blocks
from buttercup_dagster.sources.unpacking.memory import OwnMemory
from buttercup_dagster.sources.unpacking.refusal import DiskFailure, Refusal
from buttercup_dagster.sources.unpacking.tar import TarReader
from buttercup_dagster.sources.unpacking.writer import Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final


PROGRESS_BYTES: Final = 1024 * 1024
TWO_PROCESSES_FROM_BYTES: Final = 512 * 1024
"""A smaller archive is unpacked before a second process would be of use."""

_DIGEST_BYTES: Final = 1024 * 1024


class Report:
    """The pipe to the parent."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._told = 0

    def send(self, letter: bytes, content: bytes) -> None:
        """One frame. The parent being gone ends this process."""
        frame = memoryview(letter + len(content).to_bytes(4, "little") + content)
        while frame:
            frame = frame[os.write(self._handle, frame) :]

    def tell(self, rows: bytes, offset: int) -> None:
        """Rows of the manifest, if any, and now and then how far the stream is read."""
        if rows:
            self.send(b"R", rows)
        if offset - self._told >= PROGRESS_BYTES:
            self._told = offset
            self.send(b"P", b"%d" % offset)


def main(arguments: Sequence[str]) -> None:
    """Unpack, and tell how it went."""
    told = dict(argument.split("=", 1) for argument in arguments)
    # Nothing here refers to itself in a circle.
    gc.disable()
    report = Report(int(told["report"]))
    folder, archive = int(told["folder"]), int(told["archive"])
    os.umask(0o022)
    os.fchdir(folder)

    def confine_under(parent: int) -> None:
        confine(
            folder,
            parent=parent,
            most_file_bytes=int(told["file_bytes"]),
            most_memory_bytes=int(told["memory_bytes"]),
            cpu_seconds=int(told["cpu_seconds"]),
        )

    large = os.fstat(archive).st_size >= TWO_PROCESSES_FROM_BYTES
    writer = Writer(OUTPUT_BYTES, confine_under) if large and _cores() > 1 else None
    memory = OwnMemory()
    confine_under(int(told["parent"]))
    try:
        answer = _unpack(told, report, writer)
    except DiskFailure as error:
        answer = b"S", b"%d\t%b" % (error.errno, _text(error.what))
    except MemoryError:
        answer = b"A", b"too_much_memory\t0\t0\t\tunpacking the archive takes too much memory"
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to know
        answer = b"C", _text(f"{type(error).__name__}: {error}")
    peak_bytes = memory.peak_bytes() + (writer.peak_bytes if writer is not None else 0)
    report.send(b"U", b"%d\t%d" % (peak_bytes, _cpu_microseconds()))
    report.send(*answer)


def _unpack(told: Mapping[str, str], report: Report, writer: Writer | None) -> tuple[bytes, bytes]:
    wanted = told["sha256"]
    handle = int(told["archive"])
    digest = sha256() if wanted else None
    blocks = unpacked_blocks(ArchiveFile(handle, digest), most_bytes=int(told["total_bytes"]))
    extraction = Extraction(
        TarReader(blocks if writer is None else writer.sharing(blocks)),
        report.tell,
        writer=writer,
        refuse_escaping=told["escaping_links"] == "refuse",
        most_file_bytes=int(told["file_bytes"]),
        most_entries=int(told["entries"]),
        most_name_bytes=int(told["name_bytes"]),
    )
    try:
        extraction.run()
    except Refusal as refusal:
        # An archive that is not the one that was asked for deserves no other judgement.
        if wanted and (got := _digest_of(handle)) != wanted:
            return b"M", got.encode()
        return b"A", b"%b\t%d\t%d\t%b\t%b" % (
            refusal.code.encode(),
            refusal.number,
            refusal.offset,
            refusal.name.hex().encode(),
            _text(refusal.text),
        )
    if digest is not None and digest.hexdigest() != wanted:
        return b"M", digest.hexdigest().encode()
    return b"D", b"%d\t%d\t%d\t%d\t%d\t%d" % (
        extraction.files,
        extraction.directories,
        extraction.symlinks,
        extraction.hardlinks,
        extraction.bytes,
        extraction.dropped,
    )


def _digest_of(handle: int) -> str:
    digest = sha256()
    at = 0
    while data := os.pread(handle, _DIGEST_BYTES, at):
        digest.update(data)
        at += len(data)
    return digest.hexdigest()


def _text(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def _cpu_microseconds() -> int:
    times = os.times()
    seconds = times.user + times.system + times.children_user + times.children_system
    return int(seconds * 1_000_000)


def run() -> None:
    """Be that process."""
    main(sys.argv[1:])
    # Tidying up would take longer than small archives do.
    os._exit(0)
