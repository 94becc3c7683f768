"""What can go wrong with a source, and whether it is worth trying again.

The error tree of the engine:

    ButtercupError
    └── SourceError             code, retryable, retry_after_seconds, source_type
        ├── SpecError           the task, a URL or a digest cannot be used as given
        ├── Offline             no connection: DNS, refused, reset (retryable)
        ├── Blocked             the policy forbids the host, the address or the file
        ├── HttpStatus          the server refused; .status (retryable for 408, 429, 5xx …)
        ├── Truncated           the body ended early, or the answer is no HTTP (retryable)
        ├── Stalled             a time-out, or too slow (retryable)
        ├── DigestMismatch      complete, but not the archive that was asked for
        ├── TooLarge            above a limit for archives
        ├── TlsError            the server's certificate is not valid
        ├── ArchiveError        the archive is refused; .code, .entry_number, .offset, .name
        ├── UnpackerDied        the process that unpacks was killed (retryable)
        ├── LayoutError         the unpacked tree does not make a task folder
        ├── StorageError        the disk failed (retryable)
        │   ├── NoSpace         the disk or the quota is full (retryable)
        │   └── TreeChanged     somebody changed an unpacked tree in the store (retryable)
        ├── Stopped             somebody asked to stop; not an error of the task
        └── DeadlinePassed      the deadline came while the work was under way

A message never holds the query, the user name or the password of a URL.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from task_api.task import ButtercupError, SourceType, printable

TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 529, *range(520, 525)})
"""HTTP statuses that another try may cure."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


class SourceError(ButtercupError):
    """A source cannot be prepared.

    Attributes:
        code: short snake_case word for programs.
        retryable: whether the same attempt may succeed later.
        retry_after_seconds: the least time to wait before that, if a server named one.
        source_type: which source of the task it was, once known.
    """

    default_code: ClassVar[str] = "source"
    default_retryable: ClassVar[bool] = False

    def __init__(
        self,
        text: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(text)
        self.code = code or self.default_code
        self.retryable = self.default_retryable if retryable is None else retryable
        self.retry_after_seconds = retry_after_seconds
        self.source_type: SourceType | None = None


class SpecError(SourceError):
    """The task, a URL or a digest cannot be used as given."""

    default_code = "spec"


class Offline(SourceError):
    """No connection to the server: its name is unknown, it refuses, or it hung up."""

    default_code = "offline"
    default_retryable = True


class Blocked(SourceError):
    """The fetch policy forbids this host, address, redirect or file."""

    default_code = "blocked"


class HttpStatus(SourceError):
    """The server answered with a status that brings no archive.

    Attributes:
        status: the HTTP status.
    """

    default_code = "http_status"

    def __init__(self, text: str, *, status: int, retry_after_seconds: float | None = None) -> None:
        super().__init__(
            text,
            code=f"http_{status}",
            retryable=status in TRANSIENT_STATUSES,
            retry_after_seconds=retry_after_seconds,
        )
        self.status = status


class Truncated(SourceError):
    """The body ended before its announced end, or the answer is not valid HTTP."""

    default_code = "truncated"
    default_retryable = True


class Stalled(SourceError):
    """Nothing, or next to nothing, arrived for too long."""

    default_code = "stalled"
    default_retryable = True


class DigestMismatch(SourceError):
    """What arrived is complete and is not what was asked for.

    Attributes:
        got: SHA-256 of what arrived, 64 lower-case hex digits.
        want: SHA-256 that was asked for.
        hint: what the body looks like where it looks like no archive, escaped; else empty.
    """

    default_code = "digest_mismatch"

    def __init__(self, text: str, *, got: str, want: str, hint: str = "") -> None:
        super().__init__(text)
        self.got = got
        self.want = want
        self.hint = hint


class TooLarge(SourceError):
    """An archive above the limit for archives."""

    default_code = "too_large"


class TlsError(SourceError):
    """The certificate of the server is expired, of another host, or signed by nobody known."""

    default_code = "tls"


class ArchiveError(SourceError):
    """An archive that is refused.

    Attributes:
        code: why, for programs.
        entry_number: which entry of the archive, counted from 1; 0 for the archive as a whole.
        offset: byte of the unpacked stream at which the entry begins.
        name: its name, escaped; empty if it has none yet.
    """

    default_code = "archive"

    def __init__(
        self,
        text: str,
        *,
        code: str,
        entry_number: int = 0,
        offset: int = 0,
        name: bytes = b"",
    ) -> None:
        self.entry_number = entry_number
        self.offset = offset
        self.name = printable(name.decode("utf-8", "surrogateescape"), limit=200)
        where = ""
        if entry_number:
            where = f" (entry {entry_number} at byte {offset}"
            where += f", '{self.name}')" if self.name else ")"
        super().__init__(f"{text}{where}", code=code)


class UnpackerDied(SourceError):
    """The process that unpacks ended without a word: it was killed, or could not start."""

    default_code = "unpacker_died"
    default_retryable = True


class LayoutError(SourceError):
    """The unpacked tree does not make a task folder."""

    default_code = "layout"


class StorageError(SourceError):
    """The disk failed or refused."""

    default_code = "storage"
    default_retryable = True


class NoSpace(StorageError):
    """The disk, its inodes or the quota are used up."""

    default_code = "no_space"


class TreeChanged(StorageError):
    """An unpacked tree in the store is not what was unpacked; it has to be made again."""

    default_code = "tree_changed"


class Stopped(SourceError):
    """Somebody asked to stop. Not an error of the task."""

    default_code = "stopped"


class DeadlinePassed(SourceError):
    """The deadline came while the work was under way."""

    default_code = "deadline_passed"


def storage_error(error: OSError, what: str) -> StorageError:
    """The error of the engine for an error of the file system.

    Args:
        error: what the system said.
        what: what was being done, such as "cannot write the archive".
    """
    reason = error.strerror or type(error).__name__
    if error.errno in _FULL:
        return NoSpace(f"{what}: {reason}; free disk space or raise the quota")
    if error.errno in _FORBIDDEN:
        return StorageError(
            f"{what}: {reason}; let the user of this process write there, or choose another folder"
        )
    return StorageError(f"{what}: {reason}")


@contextmanager
def storing(what: str, path: Path | None = None) -> Iterator[None]:
    """Turn errors of the file system inside the block into `StorageError`.

    Args:
        what: what the block does, such as "cannot write the archive".
        path: the file or folder concerned, shown in the message.
    """
    try:
        yield
    except OSError as error:
        shown = what if path is None else f"{what} ({printable(str(path), limit=300)})"
        raise storage_error(error, shown) from error
