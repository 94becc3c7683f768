"""One URL of an archive, tried until it gives the archive or is given up."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from buttercup_dagster.sources.answers import (
    ContentRange,
    status_error,
    unsatisfied_size,
    validator_of,
)
from buttercup_dagster.sources.errors import (
    DigestMismatch,
    HttpStatus,
    SourceError,
    StorageError,
    TooLarge,
    Truncated,
)
from buttercup_dagster.sources.expiry import url_expiry_ms
from buttercup_dagster.sources.local_file import open_local_file, read_local_file
from buttercup_dagster.sources.options import FetchLimits, FetchPolicy
from buttercup_dagster.sources.origin import Origin
from buttercup_dagster.sources.part import Part
from buttercup_dagster.sources.slots import Slots
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.transport import Answer, request
from buttercup_dagster.sources.work_clock import WorkClock
from task_api.task import printable, safe_url, split_url, url_host

PROGRESS_SECONDS: Final = 0.25
MOST_TRIES: Final = 200
"""Tries per URL in all, however many of them bring some bytes."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download is.

    Attributes:
        bytes: of the archive, so far.
        total: of the archive; None if the server did not say.
        host: host of the URL that gives it; empty while bytes of an earlier call are read again.
    """

    bytes: int
    total: int | None
    host: str = ""


class Teller:
    """Reports progress a few times a second.

    Args:
        report: what to call; None to report nothing.
    """

    def __init__(self, report: Callable[[Progress], None] | None) -> None:
        self._report = report
        self._told = float("-inf")

    def tell(self, part: Part, total: int | None, host: str = "", *, final: bool = False) -> None:
        """Report how far a part is, unless that was done a moment ago."""
        if self._report is None:
            return
        now = time.monotonic()
        if final or now - self._told >= PROGRESS_SECONDS:
            self._told = now
            self._report(Progress(part.size, total, host))


@dataclass(frozen=True, slots=True)
class Call:
    """What all mirrors of one download share.

    Attributes:
        wanted: digest that the archive must have, lower case; empty to take what comes.
        limits: how much, how long, how often.
        policy: from where.
        stop: ends the download.
        slots: what bounds how many requests run at once; None for no bound.
        clock: what limits are measured by.
        until: moment of the clock at which it ends in any case; None for none.
        teller: reports progress.
    """

    wanted: str
    limits: FetchLimits
    policy: FetchPolicy
    stop: Stop
    slots: Slots | None
    clock: WorkClock
    until: float | None
    teller: Teller


class Mirror:
    """One URL of an archive.

    Attributes:
        attempts: requests made so far.

    Args:
        url: where the archive is said to be.
        part: what to fill; bytes in it are gone on with, if a digest can tell whether that fits.
        call: what all mirrors share.
    """

    def __init__(self, url: str, part: Part, call: Call) -> None:
        self.attempts = 0
        self._url = url
        self._part = part
        self._call = call
        self._total: int | None = None
        self._content_type = ""
        self._end_was_marked = True
        self._whole_only = False

    def fetch(self) -> None:
        """Fill the part with the whole archive, or raise why that cannot be."""
        part, stop, limits = self._part, self._call.stop, self._call.limits
        if not self._call.wanted:
            part.restart()
        if origin := self._origin():
            self._total = origin.total
        most = part.size
        tries = 0
        clock = self._call.clock
        streak = clock.now()
        forbidden = False
        while True:
            try:
                self._try_once()
            except SourceError as error:
                failure = error
            else:
                return
            stop.check()
            if isinstance(failure, DigestMismatch) and self._may_be_our_fault():
                self._whole_only = True
                part.restart()
                continue
            if isinstance(failure, HttpStatus) and failure.status == 403 and not forbidden:
                forbidden = True
            elif not failure.retryable or isinstance(failure, StorageError):
                raise failure
            if part.size > most:
                most, tries, streak = part.size, 0, clock.now()
            tries += 1
            asked = failure.retry_after_seconds or 0.0
            delay = max(asked, self._back_off(tries))
            # What the server asked for does not count as time that was spent trying.
            streak += asked
            if (
                tries >= limits.attempts
                or self.attempts >= MOST_TRIES
                or asked > limits.max_retry_after_seconds
                or clock.now() + delay - streak > limits.max_retry_seconds
                or self._is_over_in(delay)
            ):
                raise failure
            stop.wait(delay)
            stop.check()

    def _may_be_our_fault(self) -> bool:
        """Whether joining two answers, or a cut that nothing showed, explains a wrong digest."""
        return not self._whole_only and (self._part.resumed or not self._end_was_marked)

    def _back_off(self, tries: int) -> float:
        """Seconds to wait: full jitter, so that many workers do not come back at once."""
        most = self._call.limits.backoff_seconds * 2.0 ** (tries - 1)
        return random.uniform(0, min(most, self._call.limits.max_backoff_seconds))  # noqa: S311

    def _is_over_in(self, seconds: float) -> bool:
        """Whether the time of the call or the signature of the URL will have run out by then."""
        until, expiry_ms = self._call.until, url_expiry_ms(self._url)
        return (until is not None and self._call.clock.now() + seconds > until) or (
            expiry_ms is not None and (time.time() + seconds) * 1000 > expiry_ms
        )

    def _try_once(self) -> None:
        self._call.stop.check()
        self.attempts += 1
        parts = split_url(self._url)
        if parts is not None and parts.scheme == "file":
            self._copy_file()
        else:
            self._download()
        if self._total is not None and self._part.size < self._total:
            raise self._ended_early(self._total)
        self._tell(final=True)
        if self._call.wanted and self._part.sha256 != self._call.wanted:
            raise self._mismatch()

    def _ended_early(self, promised: int) -> Truncated:
        return Truncated(f"{safe_url(self._url)} ended after {self._part.size} of {promised} bytes")

    def _mismatch(self) -> DigestMismatch:
        part, wanted = self._part, self._call.wanted
        hint = ""
        head = part.head.lstrip().lower()
        if head.startswith((b"<", b"{")) or "html" in self._content_type:
            shown = printable(part.head.decode("latin-1"), limit=60)
            hint = f"content type {printable(self._content_type)!r}, begins with {shown!r}"
        text = (
            f"{safe_url(self._url)} gave {part.size} bytes with SHA-256 {part.sha256}, "
            f"wanted {wanted}"
        )
        text += (
            f"; this looks like a page, not an archive ({hint}): is a login needed?"
            if hint
            else "; the archive was changed or the digest is of another file"
        )
        return DigestMismatch(text, got=part.sha256, want=wanted, hint=hint)

    # ---- HTTP

    def _download(self) -> None:
        part, call = self._part, self._call
        if part.size and not self._can_resume():
            part.restart()
        if part.size and part.size == self._total:
            return
        headers = {}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            origin = self._origin()
            if origin is not None and origin.validator:
                headers["If-Range"] = origin.validator
        with request(
            self._url,
            headers,
            limits=call.limits,
            policy=call.policy,
            stop=call.stop,
            slots=call.slots,
            clock=call.clock,
            until=call.until,
        ) as answer:
            if answer.status == 200:
                self._receive(answer, self._begin(answer))
            elif answer.status == 206 and part.size:
                self._receive(answer, self._continue(answer))
            elif answer.status == 416 and part.size:
                self._judge_unsatisfied(answer)
            else:
                raise status_error(answer)

    def _origin(self) -> Origin | None:
        """What this URL said of the file whose first bytes are here; None if another gave them."""
        origin = self._part.origin
        return origin if origin is not None and origin.is_at(self._url) else None

    def _can_resume(self) -> bool:
        # Without a validator the parts may be of different files; then only a digest can tell.
        origin = self._origin()
        validated = origin is not None and bool(origin.validator)
        return not self._whole_only and (validated or bool(self._call.wanted))

    def _begin(self, answer: Answer) -> int | None:
        """Start with a whole file; where its end must be."""
        self._part.restart()
        self._total = answer.length
        self._note_form(answer)
        self._part.note(Origin.of(self._url, validator_of(answer), answer.length))
        return answer.length

    def _continue(self, answer: Answer) -> int:
        """Go on with the rest of a file; where the end of this answer must be."""
        found = ContentRange.of(answer)
        if found is None or found.start != self._part.size:
            raise self._refuse_resumption(answer)
        if found.total is not None:
            if self._total is not None and self._total != found.total:
                raise self._refuse_resumption(answer)
            self._total = found.total
        self._part.resumed = True
        self._note_form(answer)
        return found.end

    def _judge_unsatisfied(self, answer: Answer) -> None:
        if unsatisfied_size(answer) != self._part.size:
            raise self._refuse_resumption(answer)
        self._part.resumed = True
        self._total = self._part.size

    def _note_form(self, answer: Answer) -> None:
        self._end_was_marked = answer.length is not None or answer.chunked
        self._content_type = answer.headers.get("Content-Type", "")

    def _refuse_resumption(self, answer: Answer) -> Truncated:
        self._whole_only = True
        self._part.restart()
        return Truncated(
            f"{answer.shown_url} continued with another part of the archive than it was asked for",
            code="bad_range",
        )

    def _receive(self, answer: Answer, end: int | None) -> None:
        part, most = self._part, self._call.limits.max_archive_bytes
        if self._total is not None and self._total > most:
            raise self._too_large(f"has {self._total} bytes")
        part.check_space(0 if end is None else end - part.size)
        while data := answer.read():
            if part.size + len(data) > most:
                raise self._too_large("goes on")
            if end is not None and part.size + len(data) > end:
                self._whole_only = True
                raise Truncated(
                    f"{answer.shown_url} sent more than the {end} bytes it had announced",
                    code="bad_answer",
                )
            part.write(data)
            self._tell()
        if end is not None and part.size < end:
            raise self._ended_early(end)

    def _too_large(self, what: str) -> TooLarge:
        return TooLarge(
            f"{safe_url(self._url)} {what}, above the limit of "
            f"{self._call.limits.max_archive_bytes} bytes for an archive; raise the limit if the "
            "archive is meant to be so large"
        )

    # ---- file://

    def _copy_file(self) -> None:
        part, call = self._part, self._call
        part.restart()
        handle = open_local_file(self._url, call.policy)
        try:
            self._total = os.fstat(handle).st_size
            if self._total > call.limits.max_archive_bytes:
                raise self._too_large(f"has {self._total} bytes")
            part.check_space(self._total)
            for data in read_local_file(handle, safe_url(self._url)):
                call.stop.check()
                part.write(data)
                self._tell()
        finally:
            os.close(handle)

    def _tell(self, *, final: bool = False) -> None:
        self._call.teller.tell(self._part, self._total, url_host(self._url), final=final)
