"""What the status and the fields of an HTTP answer mean for a download (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from buttercup_dagster.sources.errors import HttpStatus
from buttercup_dagster.sources.transport import Answer

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
class ContentRange:
    """Which bytes of a file an answer holds.

    Attributes:
        start: place of the first one.
        end: place behind the last one.
        total: size of the file; None if the server did not say.
    """

    start: int
    end: int
    total: int | None

    @classmethod
    def of(cls, answer: Answer) -> ContentRange | None:
        """The range of a 206; None where there is none, several, or one that cannot be."""
        found = _CONTENT_RANGE.match(answer.headers.get("Content-Range", "").strip())
        if found is None:
            return None
        start, end = int(found[1]), int(found[2]) + 1
        total = None if found[3] == "*" else int(found[3])
        possible = start < end and (total is None or end <= total)
        fits = answer.length is None or answer.length == end - start
        return cls(start, end, total) if possible and fits else None


def unsatisfied_size(answer: Answer) -> int | None:
    """The size of the file that a 416 names, in bytes; None if it names none."""
    found = _UNSATISFIED.match(answer.headers.get("Content-Range", "").strip())
    return None if found is None else int(found[1])


def validator_of(answer: Answer) -> str:
    """What tells versions of the file apart in If-Range: a strong ETag, else Last-Modified."""
    etag = answer.headers.get("ETag", "").strip()
    # RFC 9110, 13.1.5: a weak validator must not be used in If-Range.
    strong = etag if etag.startswith('"') else ""
    return strong or answer.headers.get("Last-Modified", "").strip()


def status_error(answer: Answer) -> HttpStatus:
    """The error for an answer that brings no archive."""
    advice = _ADVICE.get(answer.status)
    text = f"{answer.shown_url} answered {answer.status}"
    return HttpStatus(
        f"{text}; {advice}" if advice else text,
        status=answer.status,
        retry_after_seconds=retry_after_seconds(answer.headers.get("Retry-After", "")),
    )


def retry_after_seconds(text: str) -> float | None:
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
