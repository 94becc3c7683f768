"""Serving archives: what a client gets, and what nobody gets."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3

from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.packing.serve import SourceServer, reachable_address, requested_part
from buttercup_dagster.sources.fetch import fetch
from task_api.task import safe_url
from tests.support.waiting import wait_for

SIZE = 3 * 1024 * 1024 + 11
CONTENT = os.urandom(SIZE)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "repo.tar.gz").write_bytes(CONTENT)
    (tmp_path / "diff.tar.gz").write_bytes(b"small")
    return {"repo": tmp_path / "repo.tar.gz", "ä diff/..": tmp_path / "diff.tar.gz"}


@pytest.fixture
def server(files: dict[str, Path]) -> Iterator[SourceServer]:
    with SourceServer(files) as running:
        yield running


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=10, maxsize=20) as manager:
        yield manager


def until_sent(server: SourceServer, size: int, name: str = "repo") -> None:
    """What was sent is counted right after it, when the client may have it already."""
    wait_for(lambda: server.sent()[name] == size, what=f"{size} bytes counted")


def test_get_and_head(server: SourceServer, http: urllib3.PoolManager) -> None:
    answer = http.request("GET", server.url("repo"))
    assert (answer.status, answer.data) == (200, CONTENT)
    assert answer.headers["Content-Length"] == str(SIZE)
    assert answer.headers["Accept-Ranges"] == "bytes"
    until_sent(server, SIZE)
    assert server.sent()["ä diff/.."] == 0
    head = http.request("HEAD", server.url("repo"))
    assert (head.status, head.data) == (200, b"")
    assert head.headers["Content-Length"] == str(SIZE)
    assert head.headers["ETag"] == answer.headers["ETag"]
    assert http.request("GET", server.url("ä diff/..")).data == b"small"
    until_sent(server, 5, "ä diff/..")
    assert server.sent()["repo"] == SIZE


def test_nothing_tells_what_serves_it(server: SourceServer, http: urllib3.PoolManager) -> None:
    assert "python" not in str(http.request("GET", server.url("repo")).headers).lower()


@pytest.mark.parametrize(
    ("field", "part"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=0-", slice(0, SIZE)),
        ("bytes=100-", slice(100, SIZE)),
        (f"bytes=2000000-{SIZE - 1}", slice(2_000_000, SIZE)),
        (f"bytes=5-{SIZE * 2}", slice(5, SIZE)),
        ("bytes=-7", slice(SIZE - 7, SIZE)),
        (f"bytes=-{SIZE * 2}", slice(0, SIZE)),
    ],
)
def test_ranges(server: SourceServer, http: urllib3.PoolManager, field: str, part: slice) -> None:
    answer = http.request("GET", server.url("repo"), headers={"Range": field})
    expected = CONTENT[part]
    assert answer.status == 206
    assert answer.data == expected
    assert answer.headers["Content-Length"] == str(len(expected))
    assert answer.headers["Content-Range"] == f"bytes {part.start}-{part.stop - 1}/{SIZE}"
    until_sent(server, len(expected))


@pytest.mark.parametrize("field", [f"bytes={SIZE}-", f"bytes={SIZE}-{SIZE}", "bytes=-0"])
def test_ranges_beyond_the_end(server: SourceServer, http: urllib3.PoolManager, field: str) -> None:
    answer = http.request("GET", server.url("repo"), headers={"Range": field})
    assert (answer.status, answer.data) == (416, b"")
    assert answer.headers["Content-Range"] == f"bytes */{SIZE}"
    assert server.sent()["repo"] == 0


@pytest.mark.parametrize(
    "field",
    ["bytes=0-1,5-6", "bytes=5-2", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=1-2-3", "", "x"],
)
def test_ranges_that_are_ignored(
    server: SourceServer, http: urllib3.PoolManager, field: str
) -> None:
    answer = http.request("GET", server.url("repo"), headers={"Range": field})
    assert (answer.status, answer.data) == (200, CONTENT)
    assert "Content-Range" not in answer.headers


def test_range_of_an_empty_file() -> None:
    assert requested_part("bytes=0-", 0) == range(0)
    assert requested_part("bytes=" + "9" * 40 + "-", 10) is None


def test_range_of_a_file_that_has_changed(
    server: SourceServer, http: urllib3.PoolManager, files: dict[str, Path]
) -> None:
    etag = http.request("HEAD", server.url("repo")).headers["ETag"]
    asked = {"Range": "bytes=5-", "If-Range": etag}
    assert http.request("GET", server.url("repo"), headers=asked).status == 206
    files["repo"].write_bytes(b"another content")
    answer = http.request("GET", server.url("repo"), headers=asked)
    assert (answer.status, answer.data) == (200, b"another content")


def test_head_has_no_ranges(server: SourceServer, http: urllib3.PoolManager) -> None:
    answer = http.request("HEAD", server.url("repo"), headers={"Range": "bytes=5-"})
    assert answer.status == 200
    assert answer.headers["Content-Length"] == str(SIZE)


def test_the_secret_is_in_the_query(server: SourceServer) -> None:
    url = urlsplit(server.url("repo"))
    token = url.query.removeprefix("token=")
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)
    assert token not in server.url("ä diff/..")
    assert token not in safe_url(server.url("repo"))
    assert safe_url(server.url("repo")) == f"http://127.0.0.1:{server.port}/repo"


def test_everything_else_is_not_found(
    server: SourceServer, http: urllib3.PoolManager, files: dict[str, Path]
) -> None:
    url = server.url("repo")
    base, query = url.split("?")
    root = base.removesuffix("/repo")
    other = server.url("ä diff/..").split("?")[1]
    wrong = [
        root,
        root + "/",
        base,
        base + "?",
        f"{base}?{other}",
        url[:-1],
        url + "x",
        url + "&x=y",
        f"{base}?TOKEN={query[6:]}",
        f"{base}/?{query}",
        f"{root}/repo.tar.gz?{query}",
        f"{root}/%2e%2e/etc/passwd?{query}",
        f"{base}?token=%ff",
        f"{base}?token=ÿ",
    ]
    for target in wrong:
        for method in ("GET", "HEAD"):
            answer = http.request(method, target)
            assert (answer.status, answer.data) == (404, b""), target
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"):
        assert http.request(method, url).status == 404, method
    files["repo"].unlink()
    assert http.request("GET", url).status == 404
    assert server.sent() == {"repo": 0, "ä diff/..": 0}


def test_garbage_gets_an_answer_or_none(server: SourceServer) -> None:
    for garbage in (
        b"\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\r\n\r\n",
        b"GET /repo HTTP/9.9\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert server.sent()["repo"] == 0


def test_body_of_a_request_is_not_taken_for_the_next_request(server: SourceServer) -> None:
    target = server.url("repo").split(str(server.port), 1)[1]
    inner = f"GET {target} HTTP/1.1\r\n\r\n"
    request = f"HEAD {target} HTTP/1.1\r\nContent-Length: {len(inner)}\r\n\r\n{inner}"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request.encode())
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    assert server.sent()["repo"] == 0


def test_concurrent_downloads(server: SourceServer, http: urllib3.PoolManager) -> None:
    def download(_: int) -> bytes:
        return hashlib.sha256(http.request("GET", server.url("repo")).data).digest()

    with ThreadPoolExecutor(12) as pool:
        digests = set(pool.map(download, range(24)))
    assert digests == {hashlib.sha256(CONTENT).digest()}
    until_sent(server, 24 * SIZE)


def test_the_download_engine_takes_it(server: SourceServer, tmp_path: Path) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    fetched = fetch([server.url("repo")], tmp_path / "fetched", sha256=digest)
    assert fetched.bytes == SIZE
    assert (tmp_path / "fetched").read_bytes() == CONTENT


def test_progress_while_a_client_reads(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(256 * 1024 * 1024)  # more than sockets hold
    with SourceServer({"large": large}) as server:
        target = server.url("large").split(str(server.port), 1)[1]
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\n\r\n".encode())
            wait_for(lambda: server.sent()["large"] > 0, what="the first bytes")
            # A client that stops reading in the middle.
            assert server.sent()["large"] < 256 * 1024 * 1024


def test_leaving_ends_what_is_under_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(256 * 1024 * 1024)
    before = threading.active_count()
    with SourceServer({"large": large}) as server:
        url, port = server.url("large"), server.port
        target = url.split(str(port), 1)[1]
        busy = socket.create_connection(("127.0.0.1", port), timeout=10)
        busy.sendall(f"GET {target} HTTP/1.1\r\n\r\n".encode())
        idle = socket.create_connection(("127.0.0.1", port), timeout=10)
        wait_for(lambda: server.sent()["large"] > 0, what="the first bytes")
    wait_for(lambda: threading.active_count() == before, what="the end of its threads")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=10)
    for connection in (busy, idle):
        connection.close()
    assert capfd.readouterr() == ("", "")


def test_client_that_goes_away_is_no_news(
    server: SourceServer, http: urllib3.PoolManager, capfd: pytest.CaptureFixture[str]
) -> None:
    target = server.url("repo").split(str(server.port), 1)[1]
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\n\r\n".encode())
            connection.recv(1)
    assert http.request("GET", server.url("repo")).status == 200
    assert capfd.readouterr() == ("", "")


def test_address_of_another_machine(files: dict[str, Path]) -> None:
    with (
        pytest.raises(PackingError) as refusal,
        SourceServer(files, address="192.0.2.254"),
    ):
        pass
    assert str(refusal.value) == (
        "the archives cannot be served on 192.0.2.254: Cannot assign requested address; choose an "
        "address of this machine that the workers reach"
    )


def test_advertised_host(files: dict[str, Path]) -> None:
    with SourceServer(files, address="0.0.0.0", advertised="build-host") as server:
        assert server.url("repo").startswith(f"http://build-host:{server.port}/repo?token=")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_ipv6(files: dict[str, Path], http: urllib3.PoolManager) -> None:
    with SourceServer(files, address="::1") as server:
        assert server.url("repo").startswith(f"http://[::1]:{server.port}/repo?")
        assert http.request("GET", server.url("repo")).data == CONTENT
        assert reachable_address(server.url("repo")) == "127.0.0.1"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000",
        "http://127.1.2.3",
        "https://localhost/",
        "http://0.0.0.0:8000",
        "http://user:word@127.0.0.1:8000/x?token=y",
    ],
)
def test_loopback_is_reached_from_loopback(url: str) -> None:
    assert reachable_address(url) == "127.0.0.1"


def test_other_machines_are_reached_from_an_address_of_this_one() -> None:
    """Loopback has routes to all of its addresses only, so any other answer is a real one."""
    try:
        address = reachable_address("http://198.51.100.7:8000")
    except PackingError:
        pytest.skip("this machine has no network")
    with SourceServer({}, address=address) as server:
        assert server.port


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("localhost:8000", "names no host; give a URL like http://host:8000"),
        ("", "names no host"),
        ("http://", "names no host"),
        ("http://[::1", "names no host"),
        ("http://nowhere.invalid:80/?token=secret", "is not known on this machine"),
        (f"http://{'x' * 70}.example", "is not known on this machine"),
        ("http://255.255.255.255", "no way to the host of http://255.255.255.255: Permission"),
    ],
)
def test_hosts_that_are_not_there(url: str, text: str) -> None:
    with pytest.raises(PackingError) as refusal:
        reachable_address(url)
    assert text in str(refusal.value)
    assert "secret" not in str(refusal.value)
