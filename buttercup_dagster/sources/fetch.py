"""Downloading one archive: mirrors, tries, resumption and the digest.

Which errors are tried again: no connection, a reset, a short body, and the statuses in
`errors.TRANSIENT_STATUSES`. A 403 is tried once more, since object stores answer so while
permissions spread. Everything else ends the URL at once and the next mirror has its turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from buttercup_dagster.sources.errors import (
    Blocked,
    DeadlinePassed,
    DigestMismatch,
    HttpStatus,
    Offline,
    SourceError,
    SpecError,
    Stalled,
    Stopped,
    StorageError,
    TlsError,
    TooLarge,
    Truncated,
)
from buttercup_dagster.sources.mirror import Call, Mirror, Progress, Teller
from buttercup_dagster.sources.options import (
    DEFAULT_FETCH_LIMITS,
    DEFAULT_POLICY,
    FetchLimits,
    FetchPolicy,
)
from buttercup_dagster.sources.part import Part
from buttercup_dagster.sources.slots import Slots
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.unfinished import clean_parts, resumable_part
from buttercup_dagster.sources.work_clock import WorkClock
from task_api.task import is_digest, printable, url_host

__all__ = ["FetchLimits", "FetchPolicy", "Fetched", "Progress", "clean_parts", "fetch"]

LEFT_BEHIND: Final = "part file"
"""What stands for a host where an earlier call had left the whole archive."""

_TELLING: Final = (
    DigestMismatch,
    TooLarge,
    HttpStatus,
    TlsError,
    Truncated,
    Stalled,
    Blocked,
    Offline,
    SpecError,
)


@dataclass(frozen=True, slots=True)
class Fetched:
    """An archive that has arrived.

    Attributes:
        path: where it is; read-only.
        sha256: its digest, 64 lower-case hex digits.
        bytes: its size.
        host: host of the URL that gave it; "part file" if an earlier call had left all of it.
        seconds: how long it took, waiting for a slot aside.
        attempts: requests made, over all mirrors.
        mirror: index of the URL that gave it; None if no URL had to be asked.
        condemned: hosts of the URLs that gave other bytes than those of the digest.
    """

    path: Path
    sha256: str
    bytes: int
    host: str
    seconds: float
    attempts: int
    mirror: int | None
    condemned: tuple[str, ...] = ()


def fetch(
    urls: Sequence[str],
    destination: Path,
    *,
    sha256: str | None,
    limits: FetchLimits = DEFAULT_FETCH_LIMITS,
    policy: FetchPolicy = DEFAULT_POLICY,
    stop: Stop | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    parts: Path | None = None,
    slots: Slots | None = None,
) -> Fetched:
    """Download an archive from the first mirror that gives the right bytes.

    The archive appears at its destination by one rename, complete and durable, or not at all.

    Args:
        urls: mirrors of one archive, best first. One that stands there twice is asked once.
        destination: the file to make; its folder must exist. A file that is there is replaced.
        sha256: digest that the archive must have, any case; None or "" to take what comes.
        limits: how much, how long, how often.
        policy: from where.
        stop: ends the download.
        on_progress: called a few times a second, in this thread.
        parts: folder in which an unfinished archive with a digest stays for the next call, on the
            file system of the destination; it must exist. None to leave nothing behind.
        slots: what bounds how many requests run at once; None for no bound.

    Returns:
        Where the archive is and how it came there.

    Raises:
        SpecError: the digest is none, or no URL is given; before any traffic.
        SourceError: all mirrors failed. The most telling error is raised, a retryable one if
            there was one.
        NoSpace, StorageError: this disk is at fault, so no other mirror was tried.
        Stopped, DeadlinePassed: by `stop`.
    """
    wanted = (sha256 or "").lower()
    if wanted and not is_digest(wanted):
        raise SpecError(f"{printable(wanted)!r} is not a SHA-256 digest; give 64 hex digits")
    if not urls:
        raise SpecError("the source has no URL; give at least one")
    stop = stop or Stop()
    stop.check()
    clock = WorkClock()
    started = clock.now()
    call = Call(
        wanted=wanted,
        limits=limits,
        policy=policy,
        stop=stop,
        slots=slots,
        clock=clock,
        until=None if limits.total_seconds is None else started + limits.total_seconds,
        teller=Teller(on_progress),
    )
    opened: AbstractContextManager[Part] = (
        resumable_part(parts, wanted, limits.reserve_bytes)
        if parts is not None and wanted
        else Part.beside(destination, limits.reserve_bytes)
    )
    with opened as part:
        download = _Download(part, call)
        download.run(urls)
        part.commit(destination)
    return Fetched(
        path=destination,
        sha256=part.sha256,
        bytes=part.size,
        host=LEFT_BEHIND if download.mirror is None else url_host(urls[download.mirror]),
        seconds=clock.now() - started,
        attempts=download.attempts,
        mirror=download.mirror,
        condemned=tuple(dict.fromkeys(download.condemned)),
    )


class _Download:
    """One archive from one of several URLs.

    Attributes:
        attempts: requests made so far.
        mirror: index of the URL that gave the archive; None if no URL had to be asked.
        condemned: hosts of the URLs that gave other bytes than those of the digest.
    """

    def __init__(self, part: Part, call: Call) -> None:
        self.attempts = 0
        self.mirror: int | None = None
        self.condemned: list[str] = []
        self._part = part
        self._call = call

    def run(self, urls: Sequence[str]) -> None:
        """Fill the part with the archive, or raise why no URL gave it."""
        self._take_over()
        if self._part.resumed and self._part.sha256 == self._call.wanted:
            return
        failures: list[SourceError] = []
        for url in dict.fromkeys(urls):
            mirror = Mirror(url, self._part, self._call)
            try:
                mirror.fetch()
            except (Stopped, DeadlinePassed, StorageError):
                raise
            except SourceError as error:
                failures.append(error)
                self._judge(error, url)
            else:
                self.mirror = urls.index(url)
                return
            finally:
                self.attempts += mirror.attempts
        raise _most_telling(failures)

    def _take_over(self) -> None:
        part = self._part
        total = part.origin.total if part.origin is not None else None
        part.take_over(self._call.stop, lambda: self._call.teller.tell(part, total))

    def _judge(self, error: SourceError, url: str) -> None:
        if isinstance(error, DigestMismatch):
            self.condemned.append(url_host(url))
        if isinstance(error, DigestMismatch | TooLarge):
            # The next mirror must not go on with bytes that are known to be wrong.
            self._part.restart()


def _most_telling(failures: Sequence[SourceError]) -> SourceError:
    def rank(error: SourceError) -> tuple[bool, int]:
        kind = next((n for n, kind in enumerate(_TELLING) if isinstance(error, kind)), 99)
        return not error.retryable, kind

    best = min(failures, key=rank)
    others = [str(error) for error in failures if error is not best]
    if others:
        text = f"{best} (of {len(failures)} URLs; the others: {'; '.join(others)})"
        best.args = (printable(text, limit=2000),)
    return best
