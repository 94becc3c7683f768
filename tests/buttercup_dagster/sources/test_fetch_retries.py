"""What is tried again, how a try goes on where the last one ended, and when it ends."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from buttercup_dagster.sources.errors import (
    DigestMismatch,
    HttpStatus,
    Offline,
    Stalled,
    Truncated,
)
from tests.buttercup_dagster.sources.conftest import QUICK, Download
from tests.support.archives import digest
from tests.support.cases import case
from tests.support.faults import (
    Behaviour,
    FaultServer,
    chunked,
    drip,
    multipart,
    raw,
    reply,
    serve,
    silent,
)

DATA = os.urandom(300_000)
WANT = digest(DATA)


# ---- bodies that end early


@pytest.mark.parametrize(
    ("size", "cut", "then"),
    [
        pytest.param(100_000, 60_000, "close", id="F1"),
        pytest.param(300_000, 100_000, "reset", id="F3"),
    ],
)
def test_short_body_is_resumed_where_it_ended(
    server: FaultServer, download: Download, size: int, cut: int, then: str
) -> None:
    data = DATA[:size]
    url = server.on("/a", serve(data, cut_after=cut, then=then), serve(data))
    fetched = download(url, sha256=digest(data))
    assert fetched.path.read_bytes() == data
    assert fetched.attempts == 2
    fields = server.requests[1].fields
    assert fields["range"] == f"bytes={cut}-"
    assert fields["if-range"] == '"v1"'


@case("F1-message")
def test_short_body_is_called_one(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", serve(DATA, cut_after=1000))
    with pytest.raises(Truncated, match="ended the body early") as caught:
        download(url, sha256=WANT, limits=replace(QUICK, attempts=1))
    assert caught.value.retryable


@case("F2")
def test_cut_chunked_body_is_tried_again(
    case: str, server: FaultServer, download: Download
) -> None:
    url = server.on("/a", chunked(DATA[:1000], last=False), chunked(DATA))
    assert download(url).sha256 == WANT
    assert server.count("/a") == 2


@case("F2-resumed")
def test_cut_chunked_body_is_resumed(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", chunked(DATA[:1000], last=False, ETag='"v1"'), serve(DATA))
    assert download(url, sha256=WANT).path.read_bytes() == DATA
    assert server.requests[1].fields["range"] == "bytes=1000-"
    assert server.requests[1].fields["if-range"] == '"v1"'


@case("F4")
def test_cut_that_nothing_shows_earns_one_clean_try(
    case: str, server: FaultServer, download: Download
) -> None:
    head = b"HTTP/1.0 200 OK\r\n\r\n"
    url = server.on("/a", raw(head + DATA[:1000]), raw(head + DATA))
    fetched = download(url, sha256=WANT)
    assert fetched.attempts == 2
    fetched.path.unlink()
    always = server.on("/b", raw(head + DATA[:1000]))
    with pytest.raises(DigestMismatch):
        download(always, sha256=digest(b"another"))
    assert server.count("/b") == 2


def test_each_cut_that_brings_bytes_renews_the_tries(
    server: FaultServer, download: Download
) -> None:
    cuts = [serve(DATA, cut_after=10_000)] * 12
    url = server.on("/a", *cuts, serve(DATA))
    assert download(url, sha256=WANT).attempts == 13


@case("F5")
def test_server_without_ranges_starts_over(
    case: str, server: FaultServer, download: Download
) -> None:
    url = server.on("/a", serve(DATA, ranges=False, cut_after=5000), serve(DATA, ranges=False))
    fetched = download(url, sha256=WANT)
    assert fetched.path.read_bytes() == DATA
    assert fetched.attempts == 2
    assert server.requests[1].fields["range"] == "bytes=5000-"


# ---- continuations


@pytest.mark.parametrize(
    "continuation",
    [
        pytest.param(serve(DATA, content_range="bytes 0-299999/300000"), id="F6-from-0"),
        pytest.param(serve(DATA, content_range="bytes 4999-299999/300000"), id="F6-start"),
        pytest.param(serve(DATA, content_range="bytes 5000-299999/300001"), id="F6-total"),
        pytest.param(serve(DATA, content_range="bytes 5000-100000/300000"), id="F6-end"),
        pytest.param(serve(DATA, content_range="bytes 5000-299999/200000"), id="F6-beyond"),
        pytest.param(serve(DATA, content_range="bytes 5000-4999/300000"), id="F6-empty"),
        pytest.param(serve(DATA, content_range="items 5000-299999/300000"), id="F6-unit"),
        pytest.param(serve(DATA, content_range="bytes -1-299999/300000"), id="F6-negative"),
        pytest.param(serve(DATA, content_range=""), id="F6-missing"),
        pytest.param(multipart(DATA), id="F6-multipart"),
    ],
)
def test_wrong_continuation_is_not_joined(
    server: FaultServer, download: Download, continuation: Behaviour
) -> None:
    url = server.on("/a", serve(DATA, cut_after=5000), continuation, serve(DATA))
    assert download(url, sha256=WANT).path.read_bytes() == DATA
    assert server.requests[1].fields["range"] == "bytes=5000-"
    assert "range" not in server.requests[2].fields
    assert server.count("/a") == 3


@case("F6-partial")
def test_continuation_in_pieces(case: str, server: FaultServer, download: Download) -> None:
    url = server.on(
        "/a",
        serve(DATA, cut_after=5000),
        chunked(DATA[5000:9000], status=206, Content_Range="bytes 5000-8999/300000"),
        serve(DATA),
    )
    assert download(url, sha256=WANT).path.read_bytes() == DATA
    assert server.requests[2].fields["range"] == "bytes=9000-"


@case("F6-other-bytes")
def test_continuation_of_other_bytes_earns_one_clean_try(
    case: str, server: FaultServer, download: Download
) -> None:
    other = os.urandom(len(DATA))
    url = server.on("/a", serve(other, cut_after=5000), serve(DATA), serve(DATA))
    assert download(url, sha256=WANT).attempts == 3


@case("F6-once")
def test_clean_try_is_the_last(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", serve(DATA, cut_after=5000), serve(DATA))
    with pytest.raises(DigestMismatch):
        download(url, sha256="0" * 64)
    assert server.count("/a") == 3


@case("F7")
def test_changed_file_is_fetched_from_its_beginning(
    case: str, server: FaultServer, download: Download
) -> None:
    old = os.urandom(len(DATA))
    url = server.on("/a", serve(old, etag='"old"', cut_after=50_000), serve(DATA, etag='"new"'))
    fetched = download(url, sha256=WANT)
    assert fetched.path.read_bytes() == DATA
    assert fetched.attempts == 2
    assert server.requests[1].fields["if-range"] == '"old"'


@case("F7-validator")
def test_last_modified_is_the_validator_without_a_strong_etag(
    case: str, server: FaultServer, download: Download
) -> None:
    date = "Mon, 02 Nov 2026 08:00:00 GMT"
    url = server.on(
        "/a",
        serve(DATA, etag='W/"1"', cut_after=1000, Last_Modified=date),
        serve(DATA, etag=date),
    )
    download(url, sha256=WANT)
    assert server.requests[1].fields["if-range"] == date


@case("F8")
def test_weak_etag_is_never_sent(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", serve(DATA, etag='W/"1"', cut_after=1000), serve(DATA, etag='W/"1"'))
    download(url, sha256=WANT)
    assert server.requests[1].fields["range"] == "bytes=1000-"
    assert "if-range" not in server.requests[1].fields


def test_without_digest_and_validator_nothing_is_joined(
    server: FaultServer, download: Download
) -> None:
    url = server.on("/a", serve(DATA, etag='W/"1"', cut_after=1000), serve(DATA, etag='W/"1"'))
    assert download(url).path.read_bytes() == DATA
    assert "range" not in server.requests[1].fields


@pytest.mark.parametrize(
    ("content_range", "attempts"),
    [
        pytest.param("bytes */5000", 2, id="F9-all-here"),
        pytest.param("bytes */6000", 3, id="F9-other-size"),
        pytest.param("", 3, id="F9-no-size"),
    ],
)
def test_416_is_judged_by_the_size_it_names(
    server: FaultServer, download: Download, content_range: str, attempts: int
) -> None:
    data = DATA[:5000]
    cut = chunked(data, last=False, ETag='"v1"')
    url = server.on("/a", cut, reply(416, Content_Range=content_range), serve(data))
    assert download(url, sha256=digest(data)).attempts == attempts


@case("F10-unasked")
def test_206_that_nobody_asked_for(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", reply(206, DATA, Content_Range="bytes 0-299999/300000"))
    with pytest.raises(HttpStatus, match="answered 206") as caught:
        download(url, sha256=WANT)
    assert not caught.value.retryable


@case("F10-more")
def test_more_bytes_than_a_continuation_promised(
    case: str, server: FaultServer, download: Download
) -> None:
    more = chunked(DATA[5000:9001], status=206, Content_Range="bytes 5000-8999/300000")
    url = server.on("/a", serve(DATA, cut_after=5000), more)
    with pytest.raises(Truncated, match="sent more than the 9000 bytes") as caught:
        download(url, sha256=WANT, limits=replace(QUICK, attempts=2))
    assert caught.value.code == "bad_answer"
    healed = server.on("/b", serve(DATA, cut_after=5000), more, serve(DATA))
    assert download(healed, sha256=WANT).path.read_bytes() == DATA
    assert "range" not in server.requests[-1].fields


@case("F10-behind")
def test_bytes_behind_the_announced_end_are_not_taken(
    case: str, server: FaultServer, download: Download
) -> None:
    url = server.on("/a", reply(200, DATA, Content_Length="1000"))
    with pytest.raises(DigestMismatch, match="gave 1000 bytes"):
        download(url, sha256=WANT)
    assert download(url, sha256=digest(DATA[:1000])).bytes == 1000


# ---- answers that are no HTTP

_OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH\r\n", id="other-protocol"),
        pytest.param(
            _OK + b"Content-Length: 5\r\nContent-Length: 7\r\n\r\nabcde", id="F10-two-lengths"
        ),
        pytest.param(
            _OK + b"".join(b"X-%d: 1\r\n" % n for n in range(20_000)) + b"\r\n", id="F23-fields"
        ),
        pytest.param(_OK + b"X: " + b"x" * 1_000_000 + b"\r\n\r\n", id="F23-line"),
        pytest.param(b"HTTP/1.1 200 " + b"x" * 1_000_000 + b"\r\n\r\n", id="F23-status-line"),
        pytest.param(_OK + b"Transfer-Encoding: chunked\r\n\r\nnot-hex\r\n", id="chunk"),
        pytest.param(
            _OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 1_000_000, id="F23-chunk"
        ),
        pytest.param(_OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="coding"),
    ],
)
def test_answer_that_is_no_http(server: FaultServer, download: Download, answer: bytes) -> None:
    url = server.on("/a", raw(answer))
    with pytest.raises((Truncated, Offline)) as caught:
        download(url, sha256=WANT, limits=replace(QUICK, attempts=2))
    assert caught.value.retryable
    assert server.count("/a") == 2


def test_hung_up_without_answer(server: FaultServer, download: Download) -> None:
    with pytest.raises(Offline, match="closed the connection"):
        download(server.on("/a", raw(b"")), sha256=WANT)


def test_nobody_listens(download: Download) -> None:
    with FaultServer() as other:
        url = other.url("/a")
    with pytest.raises(Offline, match=r"cannot connect to 127\.0\.0\.1") as caught:
        download(url, sha256=WANT)
    assert caught.value.retryable


def test_unknown_name(download: Download) -> None:
    with pytest.raises(Offline, match="cannot be resolved") as caught:
        download("http://nowhere.invalid/a", sha256=WANT, limits=replace(QUICK, attempts=1))
    assert caught.value.code == "dns"


# ---- slow servers


@pytest.mark.parametrize(
    "head_only", [pytest.param(False, id="F14-body"), pytest.param(True, id="F14-header")]
)
def test_slow_server_is_given_up(server: FaultServer, download: Download, head_only: bool) -> None:
    url = server.on("/a", drip(head_only=head_only))
    limits = replace(QUICK, stall_seconds=0.5, attempts=1)
    with pytest.raises(Stalled, match="bytes arrived within") as caught:
        download(url, sha256=WANT, limits=limits)
    assert caught.value.code == "too_slow"
    assert caught.value.retryable
    fetched = download(url, server.on("/b", serve(DATA)), sha256=WANT, limits=limits)
    assert fetched.mirror == 1


@case("F14-silent")
def test_silent_server_is_given_up(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", silent())
    with pytest.raises(Stalled, match=r"sent nothing for 0\.3 s"):
        download(url, sha256=WANT, limits=replace(QUICK, read_seconds=0.3, attempts=1))


def test_whole_call_is_bounded(server: FaultServer, download: Download) -> None:
    url = server.on("/a", drip(every=0.0001))
    with pytest.raises(Stalled, match="longer than it may"):
        download(url, limits=replace(QUICK, total_seconds=0.5, stall_bytes_per_second=0))


# ---- statuses


@pytest.mark.parametrize(
    "status",
    [
        *(pytest.param(status, id=f"F15-{status}") for status in (429, 503)),
        *(
            pytest.param(status, id=f"F16-{status}")
            for status in (408, 425, 500, 502, 504, *range(520, 525), 529)
        ),
    ],
)
def test_transient_status_is_tried_again(
    server: FaultServer, download: Download, status: int
) -> None:
    url = server.on("/a", reply(status), reply(status), serve(DATA))
    assert download(url, sha256=WANT).attempts == 3


@pytest.mark.parametrize(
    "status",
    [
        pytest.param(status, id=f"F16-{status}")
        for status in (400, 401, 404, 410, 418, 451, 501, 505, 511, 204, 304)
    ],
)
def test_permanent_status_ends_the_url_at_once(
    server: FaultServer, download: Download, status: int
) -> None:
    url = server.on("/a", reply(status))
    with pytest.raises(HttpStatus, match=f"answered {status}") as caught:
        download(url, sha256=WANT)
    assert not caught.value.retryable
    assert caught.value.code == f"http_{status}"
    assert server.count("/a") == 1
    assert download(url, server.on("/b", serve(DATA)), sha256=WANT).mirror == 1
    assert server.count("/a") == 2


@case("F16-403")
def test_403_is_tried_once_more(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", reply(403))
    with pytest.raises(HttpStatus, match="may have expired") as caught:
        download(url, sha256=WANT)
    assert not caught.value.retryable
    assert server.count("/a") == 2
    assert download(server.on("/b", reply(403), serve(DATA)), sha256=WANT).attempts == 2


@case("F16-expired")
def test_url_is_not_tried_again_when_its_signature_has_ended(
    case: str, server: FaultServer, download: Download
) -> None:
    url = server.on("/a", reply(403)) + "?Expires=1600000000&Signature=x"
    with pytest.raises(HttpStatus, match="answered 403"):
        download(url, sha256=WANT)
    assert server.count("/a") == 1


def test_tries_end(server: FaultServer, download: Download) -> None:
    url = server.on("/a", reply(503))
    with pytest.raises(HttpStatus, match="answered 503") as caught:
        download(url, sha256=WANT)
    assert caught.value.retryable
    assert caught.value.status == 503
    assert server.count("/a") == QUICK.attempts


def test_time_for_tries_is_bounded(server: FaultServer, download: Download) -> None:
    url = server.on("/a", reply(500))
    limits = replace(QUICK, attempts=10**6, backoff_seconds=0.2, max_retry_seconds=1)
    with pytest.raises(HttpStatus):
        download(url, sha256=WANT, limits=limits)
    assert server.count("/a") < 100


# ---- Retry-After


def _in(**time: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(**time), usegmt=True)


@pytest.mark.parametrize(
    "text", [pytest.param("1", id="F15-seconds"), pytest.param(_in(seconds=3), id="F15-date")]
)
def test_retry_after_is_waited_for(server: FaultServer, download: Download, text: str) -> None:
    # As long as the server asks is no time of trying.
    limits = replace(QUICK, max_retry_seconds=0.5)
    url = server.on("/a", reply(429, Retry_After=text), serve(DATA))
    fetched = download(url, sha256=WANT, limits=limits)
    assert fetched.attempts == 2
    assert text != "1" or fetched.seconds >= 1


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("1000000000", id="F15-absurd"),
        pytest.param("9" * 40, id="F15-more-absurd"),
        pytest.param(_in(days=2), id="F15-late-date"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", id="F15-last-date"),
    ],
)
def test_long_retry_after_gives_the_next_mirror_its_turn(
    server: FaultServer, download: Download, text: str
) -> None:
    first = server.on("/a", reply(503, Retry_After=text))
    second = server.on("/b", serve(DATA))
    fetched = download(first, second, sha256=WANT)
    assert fetched.mirror == 1
    assert server.count("/a") == 1
    fetched.path.unlink()
    with pytest.raises(HttpStatus) as caught:
        download(first, sha256=WANT)
    assert caught.value.retry_after_seconds is not None
    assert caught.value.retry_after_seconds > 7000


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("-5", id="F15-negative"),
        pytest.param("-1000000000", id="F15-very-negative"),
        pytest.param("soon", id="F15-word"),
        pytest.param("1e9", id="F15-float"),
        pytest.param("", id="F15-empty"),
        pytest.param("Mon, 01 Jan 2001 00:00:00 GMT", id="F15-past-date"),
        pytest.param("Mon, 99 Jan 2001 00:00:00 GMT", id="F15-no-date"),
    ],
)
def test_senseless_retry_after_is_ignored(
    server: FaultServer, download: Download, text: str
) -> None:
    url = server.on("/a", reply(503, Retry_After=text), serve(DATA))
    assert download(url, sha256=WANT).attempts == 2
