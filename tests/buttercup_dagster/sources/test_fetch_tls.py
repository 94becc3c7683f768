"""TLS: certificates that are not valid, and connections that end badly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from buttercup_dagster.sources.errors import Blocked, Offline, Stalled, Stopped, TlsError, Truncated
from buttercup_dagster.sources.fetch import FetchPolicy
from buttercup_dagster.sources.tls import tls_context
from tests.buttercup_dagster.sources.conftest import QUICK, Download
from tests.support.archives import digest
from tests.support.cases import case
from tests.support.certificates import make_certificate, server_context
from tests.support.faults import FaultServer, raw, redirect, serve
from tests.support.stopping import stop_when

DATA = os.urandom(300_000)
WANT = digest(DATA)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tls")
    day = timedelta(days=1)
    return {
        "valid": make_certificate(folder / "valid", names="IP:127.0.0.1", ends_in=day),
        "expired": make_certificate(folder / "expired", names="IP:127.0.0.1", ends_in=-day),
        "early": make_certificate(folder / "early", names="IP:127.0.0.1", ends_in=5 * day),
        "unknown": make_certificate(folder / "unknown", names="IP:127.0.0.1", ends_in=day),
        "other": make_certificate(folder / "other", names="DNS:files.example", ends_in=day),
    }


@pytest.fixture
def secure(certificates: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultServer]:
    """A server with a valid certificate of an authority that this machine knows."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates["valid"]))
    with FaultServer(server_context(certificates["valid"])) as running:
        yield running


def test_tls(secure: FaultServer, download: Download) -> None:
    assert download(secure.on("/a", serve(DATA)), sha256=WANT).path.read_bytes() == DATA


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        pytest.param("expired", "certificate has expired", id="F24-expired"),
        pytest.param("early", "not yet valid", id="F24-early"),
        pytest.param("other", "IP address mismatch", id="F24-other-host"),
        pytest.param("unknown", "self.signed certificate", id="F24-self-signed"),
    ],
)
def test_certificate_that_is_not_valid_ends_the_url_at_once(  # noqa: PLR0917
    certificates: dict[str, Path],
    server: FaultServer,
    download: Download,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    reason: str,
) -> None:
    # Each but the unknown one is signed by an authority that this machine knows: itself.
    known = certificates["valid" if name == "unknown" else name]
    monkeypatch.setenv("SSL_CERT_FILE", str(known))
    with FaultServer(server_context(certificates[name])) as secure:
        url = secure.on("/a", serve(DATA))
        with pytest.raises(TlsError, match=reason) as caught:
            download(url, sha256=WANT)
        assert not caught.value.retryable
        assert secure.connections == 1
        assert secure.requests == []
        # The next mirror has its turn.
        assert download(url, server.on("/b", serve(DATA)), sha256=WANT).mirror == 1


def test_authorities_that_are_replaced_count_at_once(
    certificates: dict[str, Path],
    secure: FaultServer,
    download: Download,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    known = tmp_path / "known.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(known))
    url = secure.on("/a", serve(DATA))
    known.write_bytes(certificates["valid"].read_bytes())
    first = tls_context()
    download(url, sha256=WANT).path.unlink()
    assert tls_context() is first
    known.write_bytes(certificates["unknown"].read_bytes())
    with pytest.raises(TlsError):
        download(url, sha256=WANT)


@case("F3-tls-reset")
def test_reset_tls_connection_is_resumed(
    case: str, secure: FaultServer, download: Download
) -> None:
    url = secure.on("/a", serve(DATA, cut_after=1000, then="reset"), serve(DATA))
    fetched = download(url, sha256=WANT)
    assert fetched.path.read_bytes() == DATA
    assert fetched.attempts == 2


@case("F3-tls-close")
def test_tls_connection_that_ends_without_notice_is_resumed(
    case: str, secure: FaultServer, download: Download
) -> None:
    # The server closes its socket; it never sends close_notify.
    url = secure.on("/a", serve(DATA, cut_after=1000), serve(DATA))
    assert download(url, sha256=WANT).attempts == 2
    assert secure.requests[1].fields["range"] == "bytes=1000-"


@case("F3-tls-no-length")
def test_end_of_tls_does_not_stand_for_the_end_of_the_body(
    case: str, secure: FaultServer, download: Download
) -> None:
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    url = secure.on("/a", raw(head + DATA[:1000]), raw(head + DATA))
    assert download(url, sha256=WANT).attempts == 2


@case("F14-handshake")
def test_handshake_that_does_not_come(case: str, download: Download) -> None:
    with FaultServer() as plain:  # waits for a request, which TLS never sends
        url = plain.url("/a").replace("http://", "https://")
        with pytest.raises((Stalled, Offline)) as caught:
            download(url, sha256=WANT, limits=replace(QUICK, connect_seconds=0.5, attempts=1))
    assert caught.value.retryable
    assert "sent nothing for 0.5 s" in str(caught.value)


def test_server_that_does_not_speak_tls(download: Download) -> None:
    with FaultServer(greeting=b"HTTP/1.0 400 Bad Request\r\n\r\n") as plain:
        url = plain.url("/a").replace("http://", "https://")
        with pytest.raises(Offline, match=r"TLS with .* failed: ") as caught:
            download(url, sha256=WANT, limits=replace(QUICK, attempts=1))
    assert caught.value.code == "tls_failed"


def test_stop_ends_a_body_that_stalls_under_tls(secure: FaultServer, download: Download) -> None:
    url = secure.on("/a", serve(DATA, cut_after=1000, then="stall"))
    limits = replace(QUICK, read_seconds=600, stall_seconds=600)
    with (
        stop_when(lambda: secure.count("/a"), "a request") as stop,
        pytest.raises(Stopped),
    ):
        download(url, sha256=WANT, limits=limits, stop=stop)


@case("F19")
def test_redirect_from_https_to_http_is_refused(
    case: str, secure: FaultServer, server: FaultServer, download: Download
) -> None:
    down = secure.on("/down", redirect(server.on("/a", serve(DATA))))
    with pytest.raises(Blocked, match="from https to http") as caught:
        download(down, sha256=WANT)
    assert caught.value.code == "blocked_redirect"
    assert server.connections == 0


@case("F19-up")
def test_redirect_from_http_to_https_is_followed(
    case: str, secure: FaultServer, server: FaultServer, download: Download
) -> None:
    url = server.on("/up", redirect(secure.on("/a", serve(DATA))))
    policy = FetchPolicy(redirect_ports=(secure.port,))
    assert download(url, sha256=WANT, policy=policy).path.read_bytes() == DATA


def test_truncated_tls_body_without_a_digest(secure: FaultServer, download: Download) -> None:
    url = secure.on("/a", serve(DATA, etag="", cut_after=1000))
    with pytest.raises(Truncated):
        download(url, limits=replace(QUICK, attempts=2))
