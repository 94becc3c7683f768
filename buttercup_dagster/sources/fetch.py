"""Downloading one archive: mirrors, tries, resumption and the digest.

Which errors are tried again: no connection, a reset, a short body, and the statuses in
`errors.TRANSIENT_STATUSES`. A 403 is tried once more, since object stores answer so while
permissions spread. Everything else ends the URL at once and the next mirror has its turn.
"""

from __future__ import annotations

import os
import random
import re
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final
from urllib.parse import unquote

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
    storing,
)
from buttercup_dagster.sources.options import (
    DEFAULT_FETCH_LIMITS,
    DEFAULT_POLICY,
    MEBIBYTE,
    FetchLimits,
    FetchPolicy,
)
from buttercup_dagster.sources.part import Part
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.transport import Answer, request
from task_api.task import is_digest, printable, safe_url, split_url, url_host

__all__ = ["FetchLimits", "FetchPolicy", "Fetched", "Progress", "fetch"]

PROGRESS_SECONDS: Final = 0.25
MOST_TRIES: Final = 200
"""Tries per URL in all, however many of them bring some bytes."""

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
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)\Z")
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,18})\Z")
_ADVICE: Final[Mapping[int, str]] = {
    401: "the URL needs credentials that it does not carry",
    403: "the signature of the URL may have expired; send the task again with a fresh URL",
    404: "check the URL",
    407: "a proxy stands in between and wants credentials",
    410: "the archive was removed there; send the task again with another URL",
    451: "the archive was withdrawn for legal reasons",
    511: "this network wants a login first",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is.

    Attributes:
        bytes: of the archive, so far.
        total: of the archive; None if the server did not say.
        host: host of the URL that gives it.
    """

    bytes: int
    total: int | None
    host: str = ""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An archive that has arrived.

    Attributes:
        path: where it is; read-only.
        sha256: its digest, 64 lower-case hex digits.
        bytes: its size.
        host: host of the URL that gave it.
        seconds: how long it took.
        attempts: requests made, over all mirrors.
        mirror: index of the URL that gave it.
    """

    path: Path
    sha256: str
    bytes: int
    host: str
    seconds: float
    attempts: int
    mirror: int


def fetch(
    urls: Sequence[str],
    destination: Path,
    *,
    sha256: str | None,
    limits: FetchLimits = DEFAULT_FETCH_LIMITS,
    policy: FetchPolicy = DEFAULT_POLICY,
    stop: Stop | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Fetched:
    """Download an archive from the first mirror that gives the right bytes.

    The archive appears at its destination by one rename, complete and durable, or not at all.

    Args:
        urls: mirrors of one archive, best first.
        destination: the file to make; its folder must exist. A file that is there is replaced.
        sha256: digest that the archive must have, any case; None or "" to take what comes.
        limits: how much, how long, how often.
        policy: from where.
        stop: ends the download.
        on_progress: called a few times a second, in this thread.

    Returns:
        Where the archive is and how it came there.

    Raises:
        SpecError: the digest is none, or no URL is given; before any traffic.
        SourceError: all mirrors failed. The most telling error is raised, a retryable one if
            there was one.
        NoSpace, StorageError: this disk is at fault, so no other mirror was tried.
        Stopped, DeadlinePassed: by `stop`; no partial file is left.
    """
    wanted = (sha256 or "").lower()
    if wanted and not is_digest(wanted):
        raise SpecError(f"{printable(wanted)!r} is not a SHA-256 digest; give 64 hex digits")
    if not urls:
        raise SpecError("the source has no URL; give at least one")
    stop = stop or Stop()
    stop.check()
    started = time.monotonic()
    failures: list[SourceError] = []
    attempts = 0
    with Part.beside(destination, limits.reserve_bytes) as part:
        for index, url in enumerate(urls):
            mirror = _Mirror(
                url,
                part,
                wanted=wanted,
                limits=limits,
                policy=policy,
                stop=stop,
                started=started,
                on_progress=on_progress,
            )
            try:
                mirror.fetch()
                part.commit()
            except (Stopped, DeadlinePassed, StorageError):
                raise
            except SourceError as error:
                failures.append(error)
                attempts += mirror.attempts
                continue
            return Fetched(
                path=destination,
                sha256=part.sha256,
                bytes=part.size,
                host=url_host(url),
                seconds=time.monotonic() - started,
                attempts=attempts + mirror.attempts,
                mirror=index,
            )
    raise _most_telling(failures)


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


class _Mirror:
    """One URL of an archive, tried until it gives the archive or is given up."""

    def __init__(
        self,
        url: str,
        part: Part,
        *,
        wanted: str,
        limits: FetchLimits,
        policy: FetchPolicy,
        stop: Stop,
        started: float,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.attempts = 0
        self._url = url
        self._part = part
        self._wanted = wanted
        self._limits = limits
        self._policy = policy
        self._stop = stop
        self._until = None if limits.total_seconds is None else started + limits.total_seconds
        self._on_progress = on_progress
        self._told = 0.0
        self._total: int | None = None
        self._validator = ""
        self._content_type = ""
        self._end_was_marked = True
        self._whole_only = False

    def fetch(self) -> None:
        """Fill the part with the whole archive, or raise why that cannot be."""
        self._part.restart()
        self._part.high_water = 0
        tries = 0
        streak = time.monotonic()
        forbidden = False
        while True:
            high_water = self._part.high_water
            try:
                self._try_once()
            except SourceError as error:
                failure = error
            else:
                return
            self._stop.check()
            if isinstance(failure, DigestMismatch) and self._may_be_our_fault():
                self._whole_only = True
                self._part.restart()
                continue
            if isinstance(failure, HttpStatus) and failure.status == 403 and not forbidden:
                forbidden = True
            elif not failure.retryable or isinstance(failure, StorageError):
                raise failure
            if self._part.high_water > high_water:
                tries, streak = 0, time.monotonic()
            tries += 1
            delay = self._delay(tries, failure)
            given_up = (
                tries >= self._limits.attempts
                or self.attempts >= MOST_TRIES
                or delay > self._limits.max_retry_after_seconds
                or time.monotonic() + delay - streak > self._limits.max_retry_seconds
                or (self._until is not None and time.monotonic() + delay > self._until)
            )
            if given_up:
                raise failure
            self._stop.wait(delay)
            self._stop.check()

    def _may_be_our_fault(self) -> bool:
        """Whether joining two answers, or a cut that nothing showed, explains a wrong digest."""
        return not self._whole_only and (self._part.resumed or not self._end_was_marked)

    def _delay(self, tries: int, failure: SourceError) -> float:
        """Seconds to wait: full jitter, so that many workers do not come back at once."""
        most = self._limits.backoff_seconds * 2.0 ** (tries - 1)
        delay = random.uniform(0, min(most, self._limits.max_backoff_seconds))  # noqa: S311
        return max(delay, failure.retry_after_seconds or 0.0)

    def _try_once(self) -> None:
        self._stop.check()
        self.attempts += 1
        parts = split_url(self._url)
        if parts is not None and parts.scheme == "file":
            self._copy_file()
        else:
            self._download()
        if self._total is not None and self._part.size < self._total:
            raise Truncated(
                f"{safe_url(self._url)} ended after {self._part.size} of {self._total} bytes"
            )
        self._tell(final=True)
        if self._wanted and self._part.sha256 != self._wanted:
            raise self._mismatch()

    def _mismatch(self) -> DigestMismatch:
        hint = ""
        head = self._part.head.lstrip().lower()
        if head.startswith((b"<", b"{")) or "html" in self._content_type:
            shown = printable(self._part.head.decode("latin-1"), limit=60)
            hint = f"content type {printable(self._content_type)!r}, begins with {shown!r}"
        text = (
            f"{safe_url(self._url)} gave {self._part.size} bytes with SHA-256 {self._part.sha256}, "
            f"wanted {self._wanted}"
        )
        text += (
            f"; this looks like a page, not an archive ({hint}): is a login needed?"
            if hint
            else "; the archive was changed or the digest is of another file"
        )
        return DigestMismatch(text, got=self._part.sha256, want=self._wanted, hint=hint)

    # ---- HTTP

    def _download(self) -> None:
        part = self._part
        if part.size and not self._can_resume():
            part.restart()
        if part.size and part.size == self._total:
            return
        headers = {}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            if self._validator:
                headers["If-Range"] = self._validator
        with request(
            self._url,
            headers,
            limits=self._limits,
            policy=self._policy,
            stop=self._stop,
            until=self._until,
        ) as answer:
            if answer.status == 200:
                part.restart()
                self._begin(answer)
            elif answer.status == 206 and part.size:
                self._continue(answer)
            elif answer.status == 416 and part.size:
                self._judge_unsatisfied(answer)
                return
            else:
                raise _status_error(answer)
            self._receive(answer)

    def _can_resume(self) -> bool:
        # Without a validator the parts may be of different files; then only a digest can tell.
        return not self._whole_only and bool(self._validator or self._wanted)

    def _begin(self, answer: Answer) -> None:
        self._total = answer.length
        self._end_was_marked = answer.length is not None or answer.chunked
        self._content_type = answer.headers.get("Content-Type", "")
        etag = answer.headers.get("ETag", "").strip()
        # RFC 9110, 13.1.5: a weak validator must not be used in If-Range.
        strong = etag if etag.startswith('"') else ""
        self._validator = strong or answer.headers.get("Last-Modified", "").strip()

    def _continue(self, answer: Answer) -> None:
        found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", "").strip())
        total = None if found is None or found[3] == "*" else int(found[3])
        fits = (
            found is not None
            and int(found[1]) == self._part.size
            and int(found[2]) >= int(found[1])
            and (total is None or self._total is None or total == self._total)
            and (answer.length is None or answer.length == int(found[2]) - int(found[1]) + 1)
        )
        if not fits:
            self._refuse_resumption(answer)
        self._part.resumed = True
        self._end_was_marked = answer.length is not None or answer.chunked
        if total is not None:
            self._total = total

    def _judge_unsatisfied(self, answer: Answer) -> None:
        found = _UNSATISFIED.match(answer.headers.get("Content-Range", "").strip())
        if found is None or int(found[1]) != self._part.size:
            self._refuse_resumption(answer)
        self._part.resumed = True
        self._total = self._part.size

    def _refuse_resumption(self, answer: Answer) -> None:
        self._whole_only = True
        self._part.restart()
        raise Truncated(
            f"{answer.shown_url} continued with another part of the archive than it was asked for",
            code="bad_range",
        )

    def _receive(self, answer: Answer) -> None:
        part, limits = self._part, self._limits
        if self._total is not None:
            if self._total > limits.max_archive_bytes:
                raise self._too_large(f"has {self._total} bytes")
            part.check_space(self._total - part.size)
        while data := answer.read():
            if part.size + len(data) > limits.max_archive_bytes:
                raise self._too_large("goes on")
            if self._total is not None and part.size + len(data) > self._total:
                self._whole_only = True
                raise Truncated(
                    f"{answer.shown_url} sent more than the {self._total} bytes it had announced",
                    code="bad_answer",
                )
            part.write(data)
            self._tell()

    def _too_large(self, what: str) -> TooLarge:
        return TooLarge(
            f"{safe_url(self._url)} {what}, above the limit of {self._limits.max_archive_bytes} "
            "bytes for an archive; raise the limit if the archive is meant to be so large"
        )

    # ---- file://

    def _copy_file(self) -> None:
        part = self._part
        part.restart()
        handle = open_local_file(self._url, self._policy)
        shown = safe_url(self._url)
        try:
            self._total = os.fstat(handle).st_size
            if self._total > self._limits.max_archive_bytes:
                raise self._too_large(f"has {self._total} bytes")
            part.check_space(self._total)
            while data := _read_file(handle, shown):
                self._stop.check()
                if part.size + len(data) > self._total:
                    raise SpecError(
                        f"{shown} grew while it was read; give a finished file", code="file_changed"
                    )
                part.write(data)
                self._tell()
        finally:
            os.close(handle)
        if part.size < self._total:
            raise SpecError(
                f"{shown} shrank while it was read; give a finished file", code="file_changed"
            )

    def _tell(self, *, final: bool = False) -> None:
        if self._on_progress is None:
            return
        now = time.monotonic()
        if final or now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._on_progress(Progress(self._part.size, self._total, url_host(self._url)))


def open_local_file(url: str, policy: FetchPolicy) -> int:
    """Open the regular file that a file:// URL names, if the policy allows it.

    Returns:
        A descriptor for reading.

    Raises:
        Blocked: file:// is not allowed, or the file lies outside of the allowed folders.
        SpecError: it is missing, unreadable or no regular file.
    """
    shown = safe_url(url)
    if not policy.allow_file:
        raise Blocked(f"{shown}: file:// URLs are not allowed here", code="blocked_file")
    parts = split_url(url)
    if parts is None or parts.netloc not in {"", "localhost"} or parts.query or parts.fragment:
        raise SpecError(f"{shown} must be of the form file:///folder/name.tar.gz")
    try:
        path = Path(unquote(parts.path, errors="surrogateescape")).resolve(strict=True)
        roots = [root.resolve() for root in policy.file_roots]
        # Judged before it is opened too: opening a device can have effects.
        _check_below(path, roots, shown)
        if not stat.S_ISREG(path.lstat().st_mode):
            raise SpecError(f"{shown} is not a regular file", code="file_type")
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise SpecError(f"{shown} cannot be read: {reason}", code="file_unreadable") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise SpecError(f"{shown} is not a regular file", code="file_type")  # noqa: TRY301
        # A folder on the way may have been swapped since; ask the kernel what was opened.
        opened = Path(f"/proc/self/fd/{handle}")
        if opened.is_symlink():
            _check_below(opened.readlink(), roots, shown)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _check_below(path: Path, roots: Sequence[Path], shown: str) -> None:
    if roots and not any(path.is_relative_to(root) for root in roots):
        raise Blocked(
            f"{shown} lies outside of the folders that files may come from", code="blocked_file"
        )


def _read_file(handle: int, shown: str) -> bytes:
    with storing(f"cannot read {shown}"):
        return os.read(handle, MEBIBYTE)


def _status_error(answer: Answer) -> HttpStatus:
    advice = _ADVICE.get(answer.status)
    text = f"{answer.shown_url} answered {answer.status}"
    return HttpStatus(
        f"{text}; {advice}" if advice else text,
        status=answer.status,
        retry_after_seconds=_retry_after(answer.headers.get("Retry-After", "")),
    )


def _retry_after(text: str) -> float | None:
    """Seconds that a Retry-After field (RFC 9110, 10.2.3) asks to wait; None if it says nothing."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:12]), 10**9))
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
