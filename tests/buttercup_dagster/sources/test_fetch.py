from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from buttercup_dagster.sources.errors import (
    Blocked,
    DeadlinePassed,
    DigestMismatch,
    HttpStatus,
    NoSpace,
    Offline,
    SourceError,
    SpecError,
    Stalled,
    Stopped,
    TlsError,
    TooLarge,
    Truncated,
)
from buttercup_dagster.sources.fetch import Fetched, FetchPolicy, Progress, fetch
from buttercup_dagster.sources.stop import Stop
from tests.buttercup_dagster.sources.conftest import QUICK
from tests.support.archives import digest
from tests.support.faults import (
    FaultServer,
    chunked,
    drip,
    endless,
    raw,
    redirect,
    reply,
    serve,
    silent,
)

Download = Callable[..., Fetched]

DATA = os.urandom(300_000)
WANT = digest(DATA)
SECRET = "s3cr3t-signature"


def test_archive_arrives_read_only_with_its_digest(server: FaultServer, download: Download) -> None:
    url = server.on("/a.tar.gz", serve(DATA))
    fetched = download(url, sha256=WANT.upper())
    assert fetched.path.read_bytes() == DATA
    assert (fetched.sha256, fetched.bytes, fetched.mirror) == (WANT, len(DATA), 0)
    assert (fetched.host, fetched.attempts) == ("127.0.0.1", 1)
    assert fetched.path.stat().st_mode & 0o777 == 0o444
    sent = server.requests[0].fields
    assert sent["accept-encoding"] == "identity"
    assert sent["user-agent"].startswith("buttercup-orchestrator/")


@pytest.mark.parametrize("sha256", [None, ""])
def test_without_a_digest_what_comes_is_taken(
    server: FaultServer, download: Download, sha256: str | None
) -> None:
    assert download(server.on("/a", chunked(DATA)), sha256=sha256).sha256 == WANT


def test_progress_ends_with_the_whole_size(server: FaultServer, tmp_path: Path) -> None:
    seen: list[Progress] = []
    url = server.on("/a", serve(DATA))
    fetch([url], tmp_path / "archive", sha256=WANT, limits=QUICK, on_progress=seen.append)
    assert seen[-1] == Progress(len(DATA), len(DATA), "127.0.0.1")


# ---- tried again


@pytest.mark.parametrize("then", ["close", "reset"])
def test_short_body_is_resumed_where_it_ended(
    server: FaultServer, download: Download, then: str
) -> None:
    url = server.on("/a", serve(DATA, cut_after=100_000, then=then), serve(DATA))
    assert download(url, sha256=WANT).attempts == 2
    fields = server.requests[1].fields
    if then == "close":
        assert fields["range"] == "bytes=100000-"
    if "range" in fields:
        assert fields["if-range"] == '"v1"'


def test_last_modified_is_the_validator_without_a_strong_etag(
    server: FaultServer, download: Download
) -> None:
    date = "Mon, 02 Nov 2026 08:00:00 GMT"
    url = server.on(
        "/a",
        serve(DATA, etag='W/"1"', cut_after=1000, Last_Modified=date),
        serve(DATA, etag=date),
    )
    download(url, sha256=WANT)
    assert server.requests[1].fields["if-range"] == date


def test_each_cut_that_brings_bytes_renews_the_tries(
    server: FaultServer, download: Download
) -> None:
    cuts = [serve(DATA, cut_after=10_000)] * 12
    url = server.on("/a", *cuts, serve(DATA))
    assert download(url, sha256=WANT).attempts == 13


def test_cut_chunked_body_is_tried_again(server: FaultServer, download: Download) -> None:
    url = server.on("/a", chunked(DATA[:1000], last=False), chunked(DATA))
    assert download(url).sha256 == WANT


def test_cut_that_nothing_shows_earns_one_clean_try(
    server: FaultServer, download: Download
) -> None:
    head = b"HTTP/1.0 200 OK\r\n\r\n"
    url = server.on("/a", raw(head + DATA[:1000]), raw(head + DATA))
    assert download(url, sha256=WANT).attempts == 2


def test_changed_file_is_fetched_from_its_beginning(
    server: FaultServer, download: Download
) -> None:
    old = os.urandom(len(DATA))
    url = server.on("/a", serve(old, etag='"old"', cut_after=50_000), serve(DATA, etag='"new"'))
    assert download(url, sha256=WANT).path.read_bytes() == DATA


def test_server_without_ranges_starts_over(server: FaultServer, download: Download) -> None:
    url = server.on("/a", serve(DATA, ranges=False, cut_after=5000), serve(DATA, ranges=False))
    assert download(url, sha256=WANT).attempts == 2


@pytest.mark.parametrize(
    "content_range",
    [
        "bytes 0-299999/300000",
        "bytes 4999-299999/300000",
        "bytes 5000-299999/300001",
        "bytes 5000-100000/300000",
        "multipart",
        "",
    ],
)
def test_wrong_continuation_is_not_joined(
    server: FaultServer, download: Download, content_range: str
) -> None:
    url = server.on(
        "/a", serve(DATA, cut_after=5000), serve(DATA, content_range=content_range), serve(DATA)
    )
    assert download(url, sha256=WANT).path.read_bytes() == DATA
    assert "range" not in server.requests[2].fields


def test_continuation_of_other_bytes_earns_one_clean_try(
    server: FaultServer, download: Download
) -> None:
    other = os.urandom(len(DATA))
    url = server.on("/a", serve(other, cut_after=5000), serve(DATA), serve(DATA))
    assert download(url, sha256=WANT).attempts == 3


@pytest.mark.parametrize("size", [5000, 6000])
def test_416_is_judged_by_the_size_it_names(
    server: FaultServer, download: Download, size: int
) -> None:
    data = DATA[:5000]
    cut = b'HTTP/1.1 200 OK\r\nETag: "v1"\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n' + data
    url = server.on("/a", raw(cut), reply(416, Content_Range=f"bytes */{size}"), serve(data))
    assert download(url, sha256=digest(data)).attempts == (2 if size == 5000 else 3)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 524, 529])
def test_transient_status_is_tried_again(
    server: FaultServer, download: Download, status: int
) -> None:
    url = server.on("/a", reply(status), reply(status), serve(DATA))
    assert download(url, sha256=WANT).attempts == 3


def test_tries_end(server: FaultServer, download: Download) -> None:
    url = server.on("/a", reply(503))
    with pytest.raises(HttpStatus, match="answered 503") as caught:
        download(url, sha256=WANT)
    assert caught.value.retryable
    assert caught.value.status == 503
    assert server.count("/a") == QUICK.attempts


def test_retry_after_is_waited_for(server: FaultServer, download: Download) -> None:
    url = server.on("/a", reply(429, Retry_After="1"), serve(DATA))
    assert download(url, sha256=WANT).seconds >= 1


@pytest.mark.parametrize(
    "text",
    [
        "1000000000",
        "9" * 40,
        format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True),
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


@pytest.mark.parametrize("text", ["-5", "soon", "Mon, 01 Jan 2001 00:00:00 GMT"])
def test_senseless_retry_after_is_ignored(
    server: FaultServer, download: Download, text: str
) -> None:
    url = server.on("/a", reply(503, Retry_After=text), serve(DATA))
    assert download(url, sha256=WANT).attempts == 2


def test_time_for_tries_is_bounded(server: FaultServer, download: Download) -> None:
    url = server.on("/a", reply(500))
    limits = replace(QUICK, attempts=10**6, backoff_seconds=0.2, max_retry_seconds=1)
    with pytest.raises(HttpStatus):
        download(url, sha256=WANT, limits=limits)
    assert server.count("/a") < 100


# ---- not tried again


@pytest.mark.parametrize("status", [400, 401, 404, 410, 418, 451, 501, 505, 511, 204, 206, 304])
def test_permanent_status_ends_the_url_at_once(
    server: FaultServer, download: Download, status: int
) -> None:
    url = server.on("/a", reply(status))
    with pytest.raises(HttpStatus, match=f"answered {status}") as caught:
        download(url, sha256=WANT)
    assert not caught.value.retryable
    assert caught.value.code == f"http_{status}"
    assert server.count("/a") == 1


def test_403_is_tried_once_more(server: FaultServer, download: Download) -> None:
    url = server.on("/a", reply(403))
    with pytest.raises(HttpStatus, match="may have expired") as caught:
        download(url, sha256=WANT)
    assert not caught.value.retryable
    assert server.count("/a") == 2
    assert download(server.on("/b", reply(403), serve(DATA)), sha256=WANT).attempts == 2


def test_nobody_listens(server: FaultServer, download: Download) -> None:
    with FaultServer() as other:
        url = other.url("/a")
    with pytest.raises(Offline, match=r"cannot connect to 127\.0\.0\.1") as caught:
        download(url, sha256=WANT)
    assert caught.value.retryable


def test_unknown_name(download: Download) -> None:
    with pytest.raises(Offline, match="cannot be resolved") as caught:
        download("http://nowhere.invalid/a", sha256=WANT, limits=replace(QUICK, attempts=1))
    assert caught.value.code == "dns"


def test_hung_up_without_answer(server: FaultServer, download: Download) -> None:
    with pytest.raises(Offline, match="closed the connection"):
        download(server.on("/a", raw(b"")), sha256=WANT)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nabcde",
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(20_000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnot-hex\r\n",
    ],
)
def test_answer_that_is_no_http(server: FaultServer, download: Download, answer: bytes) -> None:
    url = server.on("/a", raw(answer))
    with pytest.raises((Truncated, Offline)) as caught:
        download(url, sha256=WANT, limits=replace(QUICK, attempts=2))
    assert caught.value.retryable


# ---- digests and mirrors


def test_wrong_digest_condemns_the_mirror(server: FaultServer, download: Download) -> None:
    wrong = server.on("/wrong", serve(DATA[:-1]))
    right = server.on("/right", serve(DATA))
    assert download(wrong, right, sha256=WANT).mirror == 1
    assert server.count("/wrong") == 1


def test_wrong_digest_everywhere(server: FaultServer, download: Download) -> None:
    url = server.on("/a", serve(DATA))
    with pytest.raises(DigestMismatch) as caught:
        download(url, sha256="0" * 64)
    error = caught.value
    assert (error.got, error.want, error.retryable) == (WANT, "0" * 64, False)
    assert WANT in str(error)
    assert "0" * 64 in str(error)


def test_login_page_is_called_one(server: FaultServer, download: Download) -> None:
    page = b"<!DOCTYPE html>\n<title>Please \x1b[31mlog in</title>"
    url = server.on("/a", reply(200, page, Content_Type="text/html; charset=utf-8"))
    with pytest.raises(DigestMismatch, match="looks like a page") as caught:
        download(url, sha256=WANT)
    assert "text/html" in caught.value.hint
    assert "<!DOCTYPE html>" in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_retryable_error_of_any_mirror_is_the_one_raised(
    server: FaultServer, download: Download
) -> None:
    gone = server.on("/gone", reply(404))
    busy = server.on("/busy", reply(503))
    with pytest.raises(HttpStatus, match="answered 503") as caught:
        download(gone, busy, sha256=WANT)
    assert caught.value.retryable
    assert "answered 404" in str(caught.value)


def test_coded_body_is_taken_as_it_is(server: FaultServer, download: Download) -> None:
    coded = gzip.compress(DATA)
    url = server.on("/a", serve(coded, Content_Encoding="gzip"))
    assert download(url, sha256=digest(coded)).path.read_bytes() == coded


@pytest.mark.parametrize("text", ["abc", "0" * 63, "g" * 64, "0" * 65, " " + "0" * 63])
def test_what_is_no_digest_is_refused_before_any_traffic(
    server: FaultServer, download: Download, text: str
) -> None:
    with pytest.raises(SpecError, match="64 hex digits"):
        download(server.on("/a", serve(DATA)), sha256=text)
    assert server.requests == []


def test_no_url(download: Download) -> None:
    with pytest.raises(SpecError, match="no URL"):
        download(sha256=WANT)


# ---- limits


def test_announced_size_above_the_limit(server: FaultServer, download: Download) -> None:
    url = server.on("/a", serve(DATA))
    with pytest.raises(TooLarge, match="300000 bytes"):
        download(url, sha256=WANT, limits=replace(QUICK, max_archive_bytes=299_999))
    assert server.count("/a") == 1


@pytest.mark.parametrize("behaviour", [endless(), chunked(DATA)])
def test_body_above_the_limit(server: FaultServer, download: Download, behaviour: object) -> None:
    url = server.on("/a", behaviour)  # type: ignore[arg-type]
    with pytest.raises(TooLarge):
        download(url, sha256=WANT, limits=replace(QUICK, max_archive_bytes=200_000))


def test_disk_without_room(server: FaultServer, download: Download) -> None:
    url = server.on("/a", serve(DATA))
    with pytest.raises(NoSpace, match="free disk space") as caught:
        download(url, sha256=WANT, limits=replace(QUICK, reserve_bytes=2**60))
    assert caught.value.retryable


@pytest.mark.parametrize("head_only", [True, False])
def test_slow_server_is_given_up(server: FaultServer, download: Download, head_only: bool) -> None:
    url = server.on("/a", drip(head_only=head_only))
    with pytest.raises(Stalled, match="bytes arrived within") as caught:
        download(url, sha256=WANT, limits=replace(QUICK, stall_seconds=0.5, attempts=1))
    assert caught.value.code == "too_slow"


def test_silent_server_is_given_up(server: FaultServer, download: Download) -> None:
    url = server.on("/a", silent())
    with pytest.raises(Stalled, match="sent nothing for"):
        download(url, sha256=WANT, limits=replace(QUICK, read_seconds=0.3, attempts=1))


def test_whole_call_is_bounded(server: FaultServer, download: Download) -> None:
    url = server.on("/a", drip(every=0.0001))
    with pytest.raises(Stalled, match="longer than it may"):
        download(url, limits=replace(QUICK, total_seconds=0.5, stall_bytes_per_second=0))


# ---- stop and deadline


@pytest.mark.parametrize(
    "behaviour", [silent(), serve(DATA, cut_after=1000, then="stall"), drip(head_only=True)]
)
@pytest.mark.parametrize("by", ["request", "deadline"])
def test_stop_ends_a_stalled_download_in_time(
    server: FaultServer, download: Download, behaviour: object, by: str
) -> None:
    url = server.on("/a", behaviour)  # type: ignore[arg-type]
    stop = Stop(int(time.time() * 1000) + 400 if by == "deadline" else None)

    def ask() -> None:
        server.wait_for_request("/a")
        stop.request("the task was cancelled")

    thread = threading.Thread(target=ask)
    if by == "request":
        thread.start()
    with pytest.raises(Stopped if by == "request" else DeadlinePassed) as caught:
        download(url, sha256=WANT, limits=replace(QUICK, read_seconds=60), stop=stop)
    assert by == "deadline" or "the task was cancelled" in str(caught.value)
    if by == "request":
        thread.join()


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port on which a connection is neither accepted nor refused."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # the queue of the listener is full after one or two
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_stop_ends_a_connection_that_does_not_come(deaf_port: int, download: Download) -> None:
    url = f"http://127.0.0.1:{deaf_port}/a"
    stop = Stop(int(time.time() * 1000) + 300)
    with pytest.raises(DeadlinePassed):
        download(url, sha256=WANT, limits=replace(QUICK, connect_seconds=60), stop=stop)
    with pytest.raises(Offline, match="no answer within"):
        download(url, sha256=WANT, limits=replace(QUICK, connect_seconds=0.5, attempts=1))


def test_stop_ends_a_wait_between_tries(server: FaultServer, download: Download) -> None:
    url = server.on("/a", reply(503, Retry_After="60"))
    stop = Stop()

    def ask() -> None:
        server.wait_for_request("/a")
        stop.request("enough")

    thread = threading.Thread(target=ask)
    thread.start()
    limits = replace(QUICK, max_retry_after_seconds=120, max_retry_seconds=120)
    with pytest.raises(Stopped):
        download(url, sha256=WANT, limits=limits, stop=stop)
    thread.join()


def test_stop_before_the_beginning(server: FaultServer, download: Download) -> None:
    stop = Stop()
    stop.request("no")
    with pytest.raises(Stopped):
        download(server.on("/a", serve(DATA)), sha256=WANT, stop=stop)
    with pytest.raises(DeadlinePassed):
        download(server.on("/a", serve(DATA)), sha256=WANT, stop=Stop(1))
    assert server.requests == []


# ---- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_followed(server: FaultServer, download: Download, status: int) -> None:
    url = server.on("/a", redirect("/b?x=1", status))
    server.on("/b", serve(DATA))
    fetched = download(url, sha256=WANT)
    assert fetched.attempts == 1
    assert server.requests[1].query == "x=1"


def test_redirect_loop(server: FaultServer, download: Download) -> None:
    url = server.on("/a", redirect("/a"))
    with pytest.raises(Blocked, match="more than 10 redirects"):
        download(url, sha256=WANT)
    assert server.count("/a") == 11


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/a",
        "gopher://127.0.0.1/a",
        "data:text/plain,hello",
        "http://",
        "http://[::1",
    ],
)
def test_redirect_to_elsewhere_is_refused(
    server: FaultServer, download: Download, location: str
) -> None:
    policy = FetchPolicy(allow_file=True)
    with pytest.raises(Blocked) as caught:
        download(server.on("/a", redirect(location)), sha256=WANT, policy=policy)
    assert not caught.value.retryable


def test_redirect_to_a_user_is_refused(server: FaultServer, download: Download) -> None:
    url = server.on("/a", redirect(f"http://user:{SECRET}@127.0.0.1:{server.port}/b"))
    with pytest.raises(Blocked, match="user name") as caught:
        download(url, sha256=WANT)
    assert SECRET not in str(caught.value)


def test_authorization_goes_to_its_own_origin_only(server: FaultServer, download: Download) -> None:
    with FaultServer() as other:
        other.on("/c", serve(DATA))
        server.on("/a", redirect("/b"))
        server.on("/b", redirect(other.url("/c")))
        url = f"http://us%40er:pass@127.0.0.1:{server.port}/a"
        download(url, sha256=WANT)
        assert [r.fields.get("authorization") for r in server.requests] == [
            "Basic dXNAZXI6cGFzcw=="
        ] * 2
        assert "authorization" not in other.requests[0].fields


# ---- policy


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "2852039166",
        "0xA9FEA9FE",
        "0251.0376.0251.0376",
        "169.254.43518",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:a9fe:a9fe::1]",
        "[::169.254.169.254]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "100.100.100.200",
    ],
)
def test_metadata_and_link_local_addresses_are_never_dialled(
    server: FaultServer, download: Download, host: str
) -> None:
    with pytest.raises(Blocked, match="never dialled") as caught:
        download(f"http://{host}/latest/meta-data/", sha256=WANT)
    assert caught.value.code == "blocked_address"
    with pytest.raises(Blocked, match="never dialled"):
        download(server.on("/a", redirect(f"http://{host}/")), sha256=WANT)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "[::7f00:1]",
        "[fec0::1]",
        "[fc00::1]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
    ],
)
def test_private_addresses_can_be_blocked(
    server: FaultServer, download: Download, host: str
) -> None:
    with pytest.raises(Blocked):
        download(
            f"http://{host}:{server.port}/a",
            sha256=WANT,
            policy=FetchPolicy(block_private_addresses=True),
        )
    assert server.requests == []


def test_only_listed_hosts_are_contacted(server: FaultServer, download: Download) -> None:
    url = server.on("/a", redirect(f"http://localhost:{server.port}/b"))
    server.on("/b", serve(DATA))
    policy = FetchPolicy(source_hosts=("127.0.0.1",))
    with pytest.raises(Blocked, match="localhost is not among the hosts") as caught:
        download(url, sha256=WANT, policy=policy)
    assert caught.value.code == "blocked_host"
    both = FetchPolicy(source_hosts=("127.0.0.1", "LocalHost."))
    download(url, sha256=WANT, policy=both)


def test_host_patterns() -> None:
    policy = FetchPolicy(source_hosts=("*.example.org",))
    assert policy.host_allowed("a.example.org")
    assert not policy.host_allowed("example.org")
    assert not policy.host_allowed("badexample.org")


# ---- secrets


def test_secrets_are_in_no_error_and_no_log(
    server: FaultServer, download: Download, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    answers = {
        "/status": reply(404),
        "/cut": serve(DATA, cut_after=10, ranges=False, etag=""),
        "/reset": serve(DATA, cut_after=10, then="reset", etag=""),
        "/page": reply(200, b"<html>"),
        "/bad": raw(b"nonsense\r\n\r\n"),
        "/fields": raw(b"HTTP/1.1 200 OK\r\n: x\r\nbroken\r\n\r\nabc"),
        "/file": redirect(f"file:///x?{SECRET}"),
        "/loop": redirect(f"/loop?{SECRET}"),
        "/lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nabc"),
    }
    limits = replace(QUICK, attempts=2, max_archive_bytes=10**6)
    urls = [
        f"http://user:{SECRET}@127.0.0.1:{server.port}{path}?sig={SECRET}#{SECRET}"
        for path in answers
    ]
    for path, answer in answers.items():
        server.on(path, answer)
    urls += [
        f"http://user:{SECRET}@[::1?{SECRET}",
        f"http://169.254.169.254/?{SECRET}",
        f"http://nowhere.invalid/?{SECRET}",
        f"gopher://host/?{SECRET}",
        f"file:///nowhere?{SECRET}",
        f"http://host:port{SECRET}/",
    ]
    for url in [*urls, None]:
        chosen = urls if url is None else [url]
        with pytest.raises(SourceError) as caught:
            download(*chosen, sha256=WANT, limits=limits)
        error: BaseException | None = caught.value
        while error is not None:
            assert SECRET not in str(error), chosen
            error = error.__cause__ or error.__context__
    assert SECRET not in caplog.text


# ---- file://


def test_file_url(tmp_path: Path, download: Download) -> None:
    roots = tmp_path / "a root"
    roots.mkdir()
    (roots / "x.tgz").write_bytes(DATA)
    url = (roots / "x.tgz").as_uri()
    for policy in (
        FetchPolicy(allow_file=True),
        FetchPolicy(allow_file=True, file_roots=(roots,)),
    ):
        fetched = download(url, sha256=WANT, policy=policy)
        assert fetched.host == "local file"
        fetched.path.unlink()
    with pytest.raises(Blocked, match="not allowed here"):
        download(url, sha256=WANT)
    with pytest.raises(TooLarge):
        download(
            url,
            sha256=WANT,
            policy=FetchPolicy(allow_file=True),
            limits=replace(QUICK, max_archive_bytes=1000),
        )


def test_file_url_leads_nowhere_else(tmp_path: Path, download: Download) -> None:
    root = tmp_path / "root"
    beside = tmp_path / "root-not"
    root.mkdir()
    beside.mkdir()
    (beside / "secret").write_bytes(DATA)
    (root / "link").symlink_to(beside / "secret")
    os.mkfifo(root / "fifo")
    policy = FetchPolicy(allow_file=True, file_roots=(root,))
    base = root.as_uri()
    for url, kind in [
        (f"{base}/link", Blocked),
        (f"{base}/../root-not/secret", Blocked),
        (f"{base}/%2e%2e/root-not/secret", Blocked),
        ((beside / "secret").as_uri(), Blocked),
        ("file:///dev/zero", Blocked),
        ("file:///proc/self/mem", Blocked),
        (f"{base}/fifo", SpecError),
        (f"{base}/missing", SpecError),
        (base, SpecError),
        (f"{base}/%00", SpecError),
        (base.replace("file://", "file://elsewhere"), SpecError),
    ]:
        with pytest.raises(kind):
            download(url, sha256=WANT, policy=policy)
    for url in ("file:///dev/zero", "file:///proc/self/mem"):
        with pytest.raises(SourceError):
            download(url, sha256=WANT, policy=FetchPolicy(allow_file=True))


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *[openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt"],
            *["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost"],
            *["-addext", "subjectAltName=IP:127.0.0.1"],
            *["-keyout", str(folder / "key"), "-out", str(folder / "cert")],
        ],
        check=True,
        capture_output=True,
    )
    (folder / "both").write_bytes((folder / "key").read_bytes() + (folder / "cert").read_bytes())
    return folder


def test_tls(
    certificate: Path, download: Download, monkeypatch: pytest.MonkeyPatch, server: FaultServer
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "both")
    with FaultServer(context) as secure:
        url = secure.on("/a", serve(DATA))
        with pytest.raises(TlsError, match="certificate") as caught:
            download(url, sha256=WANT)
        assert not caught.value.retryable
        assert secure.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert"))
        download(url, sha256=WANT).path.unlink()
        cut = secure.on("/cut", serve(DATA, cut_after=1000, then="reset"), serve(DATA))
        download(cut, sha256=WANT).path.unlink()
        with pytest.raises(TlsError):
            download(url.replace("127.0.0.1", "localhost"), sha256=WANT)
        down = secure.on("/down", redirect(server.on("/a", serve(DATA))))
        with pytest.raises(Blocked, match="from https to http"):
            download(down, sha256=WANT)
        stop = Stop()
        stalled = secure.on("/stalled", serve(DATA, cut_after=1000, then="stall"))

        def ask() -> None:
            secure.wait_for_request("/stalled")
            stop.request("enough")

        thread = threading.Thread(target=ask)
        thread.start()
        with pytest.raises(Stopped):
            download(stalled, sha256=WANT, stop=stop)
        thread.join()
