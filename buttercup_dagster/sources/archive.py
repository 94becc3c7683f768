"""Unpacking an archive into a new folder, so that nothing in it can reach outside.

A process of its own does it (`unpacking/`), which can write nowhere but into a private folder. In
there no name can lead out, whatever the archive says. The folder gets its final name once the
archive has been read to its very end and found whole.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final, Literal

from buttercup_dagster.sources.disk import remove_tree
from buttercup_dagster.sources.errors import (
    ArchiveError,
    LayoutError,
    SourceError,
    SpecError,
    storage_error,
    storing,
)
from buttercup_dagster.sources.manifest import Manifest
from buttercup_dagster.sources.options import GIBIBYTE, MEBIBYTE
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.unpacker import Unpacker, Usage
from buttercup_dagster.sources.unpacking.extract import FOLDER_MODE
from task_api.task import is_digest, printable

__all__ = ["ArchiveError", "EscapingLinks", "Limits", "Manifest", "Usage", "unpack"]

EscapingLinks = Literal["drop", "refuse"]
"""What becomes of a symbolic link that leads out of the tree and that nothing is written through:
it is left out and listed, or the archive is refused."""

_BASE_MEMORY_BYTES: Final = 512 * MEBIBYTE
_ENTRY_MEMORY_BYTES: Final = 512
_ENTRY_ROW_BYTES: Final = 128
_MOST_SECONDS: Final = 10**8


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may hold, and how long unpacking it may take.

    Attributes:
        total_bytes: unpacked, never more than this.
        ratio: unpacked, at most so many times the archive's own size …
        ratio_floor_bytes: … but this much is always allowed.
        file_bytes: of one file.
        entries: files, directories and links together.
        name_bytes: of all names and link texts together, which are kept in memory.
        seconds: by the clock, and of processor time.
    """

    total_bytes: int = 64 * GIBIBYTE
    ratio: int = 200
    ratio_floor_bytes: int = GIBIBYTE
    file_bytes: int = 16 * GIBIBYTE
    entries: int = 2_000_000
    name_bytes: int = 256 * MEBIBYTE
    seconds: float = 3600.0

    def most_bytes(self, archive_bytes: int) -> int:
        """How much an archive of this size may hold unpacked, in bytes."""
        return min(self.total_bytes, max(self.ratio_floor_bytes, self.ratio * archive_bytes))


DEFAULT_LIMITS: Final = Limits()


def unpack(
    archive: Path,
    destination: Path,
    limits: Limits = DEFAULT_LIMITS,
    *,
    sha256: str | None = None,
    escaping_links: EscapingLinks = "drop",
    stop: Stop | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_usage: Callable[[Usage], None] | None = None,
) -> Manifest:
    """Unpack a gzipped (or plain) tar archive into a new folder.

    Folders get mode 0755; files keep the archive's mode without set-id bits and write bits for
    others, and can be read by all and written by their owner. Owners and extended attributes are
    not kept. Modification times are kept in whole seconds.

    Args:
        archive: the file to unpack.
        destination: the folder to make; its parent must exist, itself must not.
        limits: how much it may hold, and how long it may take.
        sha256: digest that the archive must have, any case; the very bytes that are unpacked are
            hashed.
        escaping_links: what becomes of symbolic links that lead out of the tree.
        stop: ends the unpacking.
        on_progress: called now and then with the bytes unpacked so far, in this thread.
        on_usage: called once with what the process took that did it, also where it refuses.

    Returns:
        What the tree holds.

    Raises:
        ArchiveError: the archive is refused, or takes too long.
        DigestMismatch: it is not the archive of this digest.
        SpecError: `sha256` is no digest.
        LayoutError: the destination exists.
        NoSpace, StorageError: the disk is full or fails.
        UnpackerDied: the process that did it was killed.
        Stopped, DeadlinePassed: by `stop`.
        FileNotFoundError: there is no such archive.

    After an error neither the destination nor anything else made here is left.
    """
    stop = stop or Stop()
    stop.check()
    wanted = (sha256 or "").lower()
    if wanted and not is_digest(wanted):
        raise SpecError(f"{printable(wanted)!r} is not a SHA-256 digest; give 64 hex digits")
    with _opened(archive) as file:
        if os.path.lexists(destination):
            raise LayoutError(f"{destination} exists already; unpack into a new folder")
        staging = destination.with_name(f".{secrets.token_hex(8)}.unpacking")
        with storing("cannot make a folder in", destination.parent):
            staging.mkdir(mode=0o700)
        try:
            handle = _private(staging)
            try:
                settings = _settings(limits, os.fstat(file.fileno()).st_size, escaping_links)
                with Unpacker(file.fileno(), handle, sha256=wanted, settings=settings) as unpacker:
                    manifest = unpacker.result(
                        seconds=limits.seconds,
                        most_rows_bytes=_most_rows_bytes(limits),
                        stop=stop,
                        on_progress=on_progress,
                        on_usage=on_usage,
                    )
                with storing("cannot name the folder", destination):
                    os.fchmod(handle, FOLDER_MODE)
                    staging.rename(destination)
            finally:
                os.close(handle)
        except BaseException:
            # Why the archive is refused says more than why its remains cannot be removed.
            with suppress(SourceError):
                remove_tree(staging)
            raise
    return manifest


def _private(staging: Path) -> int:
    """Open a new folder, and take from it what it got from the one above.

    What is made in it then gets the modes that it is made with.
    """
    with storing("cannot open the folder", staging):
        handle = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchmod(handle, 0o700)
            with suppress(OSError, AttributeError):
                os.removexattr(handle, "system.posix_acl_default")
        except BaseException:
            os.close(handle)
            raise
    return handle


def _settings(
    limits: Limits, archive_bytes: int, escaping_links: EscapingLinks
) -> dict[str, int | str]:
    """The arguments of the process, as `unpacking/child.py` names them."""
    seconds = min(limits.seconds, _MOST_SECONDS)
    memory_bytes = _BASE_MEMORY_BYTES + _ENTRY_MEMORY_BYTES * limits.entries + limits.name_bytes
    return {
        "total_bytes": limits.most_bytes(archive_bytes),
        "file_bytes": limits.file_bytes,
        "entries": limits.entries,
        "name_bytes": limits.name_bytes,
        "memory_bytes": memory_bytes,
        # Later than the clock's, which says what is the matter; the system's limit only kills.
        "cpu_seconds": math.ceil(seconds) + 1,
        "escaping_links": escaping_links,
    }


def _most_rows_bytes(limits: Limits) -> int:
    """How long the manifest of an archive within these limits can be, in bytes."""
    # A directory has two rows; a row is a name and some numbers.
    return 2 * limits.name_bytes + _ENTRY_ROW_BYTES * limits.entries + MEBIBYTE


def _opened(archive: Path) -> FileIO:
    try:
        return archive.open("rb", buffering=0)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(error, f"cannot read {archive}") from error
