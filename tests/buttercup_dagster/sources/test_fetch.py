"""What arrives, what it is compared with, and how much of it is taken."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from buttercup_dagster.sources.errors import (
    DigestMismatch,
    HttpStatus,
    NoSpace,
    SpecError,
    TooLarge,
)
from buttercup_dagster.sources.fetch import Progress, fetch
from tests.buttercup_dagster.sources.conftest import QUICK, Download
from tests.support.archives import digest
from tests.support.cases import case
from tests.support.faults import Behaviour, FaultServer, chunked, endless, reply, serve

DATA = os.urandom(300_000)
WANT = digest(DATA)


def test_archive_arrives_read_only_with_its_digest(server: FaultServer, download: Download) -> None:
    url = server.on("/a.tar.gz", serve(DATA))
    fetched = download(url, sha256=WANT.upper())
    assert fetched.path.read_bytes() == DATA
    assert (fetched.sha256, fetched.bytes, fetched.mirror) == (WANT, len(DATA), 0)
    assert (fetched.host, fetched.attempts, fetched.condemned) == ("127.0.0.1", 1, ())
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


# ---- digests


@case("F29")
def test_wrong_digest_everywhere(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", serve(DATA))
    with pytest.raises(DigestMismatch) as caught:
        download(url, sha256="0" * 64)
    error = caught.value
    assert (error.got, error.want, error.retryable) == (WANT, "0" * 64, False)
    assert WANT in str(error)
    assert "0" * 64 in str(error)
    assert server.count("/a") == 1


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("abc", id="F29-short"),
        pytest.param(WANT[1:], id="F29-63-digits"),
        pytest.param(WANT + "0", id="F29-65-digits"),
        pytest.param(WANT[:-1] + "g", id="F29-no-hex"),
        pytest.param(f" {WANT}", id="F29-blank-before"),
        pytest.param(f"{WANT}\n", id="F29-line-end-after"),
        pytest.param("da39a3ee5e6b4b0d3255bfef95601890afd80709", id="F29-sha1"),
        pytest.param(f"sha256:{WANT}", id="F29-prefix"),
        pytest.param("\N{FULLWIDTH DIGIT ONE}" * 64, id="F29-other-digits"),
    ],
)
def test_what_is_no_digest_is_refused_before_any_traffic(
    server: FaultServer, download: Download, text: str
) -> None:
    with pytest.raises(SpecError, match="64 hex digits"):
        download(server.on("/a", serve(DATA)), sha256=text)
    assert server.connections == 0


@case("F29-upper-case")
def test_digest_in_capitals_is_one(case: str, server: FaultServer, download: Download) -> None:
    assert download(server.on("/a", serve(DATA)), sha256=WANT.upper()).sha256 == WANT


def test_no_url(download: Download) -> None:
    with pytest.raises(SpecError, match="no URL"):
        download(sha256=WANT)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(b"<!DOCTYPE html>\n<title>Please \x1b[31mlog in</title>", id="F17-html"),
        pytest.param(b'{"error": "Please \x1b[31mlog in"}', id="F17-json"),
        pytest.param(b"Please \x1b[31mlog in <!DOCTYPE html>", id="F17-by-its-type"),
    ],
)
def test_login_page_is_called_one(server: FaultServer, download: Download, page: bytes) -> None:
    url = server.on("/a", reply(200, page, Content_Type="text/html; charset=utf-8"))
    with pytest.raises(DigestMismatch, match="looks like a page") as caught:
        download(url, sha256=WANT)
    assert "text/html" in caught.value.hint
    assert page.partition(b" \x1b")[0].split()[0].decode() in str(caught.value)
    assert "\x1b" not in str(caught.value)


@case("F17-captive-portal")
def test_network_that_wants_a_login(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", reply(511, b"<html>", Content_Type="text/html"))
    with pytest.raises(HttpStatus, match="wants a login first") as caught:
        download(url, sha256=WANT)
    assert not caught.value.retryable


# ---- content codings


@pytest.mark.parametrize(
    ("data", "coding"),
    [
        pytest.param(gzip.compress(DATA), "gzip", id="F11-gzip"),
        pytest.param(gzip.compress(DATA), "x-gzip", id="F11-x-gzip"),
        pytest.param(gzip.compress(gzip.compress(DATA)), "gzip, gzip", id="F11-twice"),
        pytest.param(DATA, "gzip", id="F11-said-only"),
        pytest.param(DATA, "br, zstd, deflate", id="F11-others"),
    ],
)
def test_coded_body_is_taken_as_it_is(
    server: FaultServer, download: Download, data: bytes, coding: str
) -> None:
    for answer in (serve(data, Content_Encoding=coding), chunked(data, Content_Encoding=coding)):
        fetched = download(server.on("/a", answer), sha256=digest(data))
        assert fetched.path.read_bytes() == data
        fetched.path.unlink()


_MEASURED_FETCH = """
import resource, sys
from pathlib import Path
from buttercup_dagster.sources.fetch import fetch

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

url, warm_up, destination = sys.argv[1:]
fetch([warm_up], Path(destination), sha256=None)
before = peak()
fetch([url], Path(destination), sha256=None)
print(peak() - before)
"""


@case("F12")
def test_bomb_is_not_inflated(case: str, server: FaultServer, tmp_path: Path) -> None:
    inflated = 400_000_000
    compressor = zlib.compressobj(9, wbits=31)
    pieces = [compressor.compress(bytes(1_000_000)) for _ in range(inflated // 1_000_000)]
    bomb = b"".join([*pieces, compressor.flush()])
    url = server.on("/bomb", serve(bomb, Content_Encoding="gzip"))
    warm_up = server.on("/warm-up", serve(bomb, Content_Encoding="identity"))
    destination = tmp_path / "archive"
    grown = subprocess.run(
        [sys.executable, "-c", _MEASURED_FETCH, url, warm_up, str(destination)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert destination.read_bytes() == bomb
    assert int(grown) < inflated / 20


# ---- mirrors


@case("F27")
def test_wrong_digest_condemns_the_mirror(
    case: str, server: FaultServer, download: Download
) -> None:
    wrong = server.on("/wrong", serve(DATA[:-1]))
    right = f"http://localhost:{server.port}/right"
    server.on("/right", serve(DATA))
    fetched = download(wrong, wrong, right, sha256=WANT)
    assert (fetched.mirror, fetched.host) == (2, "localhost")
    assert fetched.condemned == ("127.0.0.1",)
    assert server.count("/wrong") == 1
    assert "range" not in server.requests[1].fields


@case("F27-cut")
def test_mirror_goes_on_where_another_was_cut(
    case: str, server: FaultServer, download: Download
) -> None:
    first = server.on("/first", serve(DATA, etag='"one"', cut_after=50_000), reply(404))
    second = server.on("/second", serve(DATA, etag='"two"'))
    fetched = download(first, second, sha256=WANT)
    assert (fetched.mirror, fetched.attempts) == (1, 3)
    assert server.requests[2].fields["range"] == "bytes=50000-"
    assert "if-range" not in server.requests[2].fields


@case("F27-cut-wrong")
def test_bytes_of_a_cut_mirror_do_not_condemn_the_next_one(
    case: str, server: FaultServer, download: Download
) -> None:
    other = os.urandom(len(DATA))
    first = server.on("/first", serve(other, cut_after=50_000), reply(404))
    second = server.on("/second", serve(DATA))
    fetched = download(first, second, sha256=WANT)
    assert fetched.path.read_bytes() == DATA
    assert fetched.condemned == ()
    assert ["range" in request.fields for request in server.requests] == [False, True, True, False]


def test_without_a_digest_mirrors_are_not_joined(server: FaultServer, download: Download) -> None:
    first = server.on("/first", serve(bytes(len(DATA)), cut_after=50_000), reply(404))
    second = server.on("/second", serve(DATA))
    assert download(first, second).path.read_bytes() == DATA
    assert "range" not in server.requests[2].fields


def test_retryable_error_of_any_mirror_is_the_one_raised(
    server: FaultServer, download: Download
) -> None:
    gone = server.on("/gone", reply(404))
    busy = server.on("/busy", reply(503))
    with pytest.raises(HttpStatus, match="answered 503") as caught:
        download(gone, busy, sha256=WANT)
    assert caught.value.retryable
    assert "answered 404" in str(caught.value)


# ---- sizes


@case("F13-announced")
def test_announced_size_above_the_limit(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", serve(DATA))
    with pytest.raises(TooLarge, match="300000 bytes"):
        download(url, sha256=WANT, limits=replace(QUICK, max_archive_bytes=299_999))
    assert server.count("/a") == 1


@pytest.mark.parametrize(
    "behaviour",
    [pytest.param(endless(), id="F13-endless"), pytest.param(chunked(DATA), id="F13-chunked")],
)
def test_body_above_the_limit(server: FaultServer, tmp_path: Path, behaviour: Behaviour) -> None:
    seen: list[Progress] = []
    url = server.on("/a", behaviour)
    with pytest.raises(TooLarge):
        fetch(
            [url],
            tmp_path / "archive",
            sha256=WANT,
            limits=replace(QUICK, max_archive_bytes=200_000),
            on_progress=seen.append,
        )
    assert max(progress.bytes for progress in seen) <= 200_000
    assert list(tmp_path.iterdir()) == []
    assert server.count("/a") == 1


@case("F13-limit")
def test_archive_of_the_very_limit(case: str, server: FaultServer, download: Download) -> None:
    limits = replace(QUICK, max_archive_bytes=len(DATA))
    assert download(server.on("/a", chunked(DATA)), sha256=WANT, limits=limits).sha256 == WANT


@pytest.mark.parametrize("behaviour", [serve(DATA), chunked(DATA)])
def test_disk_without_room(server: FaultServer, download: Download, behaviour: Behaviour) -> None:
    url = server.on("/a", behaviour)
    with pytest.raises(NoSpace, match="free disk space") as caught:
        download(url, sha256=WANT, limits=replace(QUICK, reserve_bytes=2**60))
    assert caught.value.retryable
    assert server.count("/a") == 1
