"""Where a redirect may lead, and what is sent there; what the environment has no say in."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from buttercup_dagster.sources.errors import Blocked, HttpStatus
from buttercup_dagster.sources.fetch import FetchPolicy
from tests.buttercup_dagster.sources.conftest import Download
from tests.support.archives import digest
from tests.support.cases import case
from tests.support.faults import FaultServer, redirect, reply, serve

DATA = os.urandom(300_000)
WANT = digest(DATA)
SECRET = "s3cr3t-signature"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_followed(server: FaultServer, download: Download, status: int) -> None:
    url = server.on("/a", redirect("/b?x=1", status))
    server.on("/b", serve(DATA))
    fetched = download(url, sha256=WANT)
    assert fetched.attempts == 1
    assert server.requests[1].query == "x=1"


def test_range_is_asked_for_through_redirects(server: FaultServer, download: Download) -> None:
    url = server.on("/a", redirect("/b"))
    server.on("/b", serve(DATA, cut_after=5000), serve(DATA))
    assert download(url, sha256=WANT).path.read_bytes() == DATA
    assert [request.fields.get("range") for request in server.requests] == [
        *[None, None],
        *["bytes=5000-"] * 2,
    ]


@case("F18-loop")
def test_redirect_loop(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", redirect("/a"))
    with pytest.raises(Blocked, match="more than 10 redirects") as caught:
        download(url, sha256=WANT)
    assert caught.value.code == "redirect_loop"
    assert server.count("/a") == 11


@case("F18-hops")
def test_ten_redirects_are_the_most(case: str, server: FaultServer, download: Download) -> None:
    for hop in range(11):
        server.on(f"/{hop}", redirect(f"/{hop + 1}"))
    server.on("/11", serve(DATA))
    with pytest.raises(Blocked, match="more than 10 redirects"):
        download(server.url("/0"), sha256=WANT)
    assert server.count("/11") == 0
    assert download(server.url("/1"), sha256=WANT).path.read_bytes() == DATA


@pytest.mark.parametrize(
    "location",
    [
        pytest.param("file:///etc/passwd", id="F18-file"),
        pytest.param("FILE:/etc/passwd", id="F18-file-short"),
        pytest.param("ftp://127.0.0.1/a", id="F18-ftp"),
        pytest.param("gopher://127.0.0.1/a", id="F18-gopher"),
        pytest.param("data:text/plain,hello", id="F18-data"),
        pytest.param("https://", id="F18-no-host"),
        pytest.param("http://[::1", id="F18-unreadable"),
        pytest.param("http://127.0.0.1:99999/", id="F18-no-port"),
    ],
)
def test_redirect_to_elsewhere_is_refused(
    server: FaultServer, download: Download, location: str
) -> None:
    policy = FetchPolicy(allow_file=True)
    with pytest.raises(Blocked) as caught:
        download(server.on("/a", redirect(location)), sha256=WANT, policy=policy)
    assert caught.value.code == "blocked_redirect"
    assert not caught.value.retryable
    assert server.count("/a") == 1


@case("F18-user")
def test_redirect_to_a_user_is_refused(case: str, server: FaultServer, download: Download) -> None:
    url = server.on("/a", redirect(f"http://user:{SECRET}@127.0.0.1:{server.port}/b"))
    with pytest.raises(Blocked, match="user name") as caught:
        download(url, sha256=WANT)
    assert SECRET not in str(caught.value)


@case("F18-port")
def test_redirect_to_another_port_is_refused(
    case: str, server: FaultServer, download: Download
) -> None:
    with FaultServer() as other:
        url = server.on("/a", redirect(other.on("/b", serve(DATA))))
        with pytest.raises(Blocked, match=f"redirects to port {other.port}") as caught:
            download(url, sha256=WANT)
        assert caught.value.code == "blocked_redirect"
        assert other.connections == 0
        allowed = FetchPolicy(redirect_ports=(other.port,))
        assert download(url, sha256=WANT, policy=allowed).path.read_bytes() == DATA


@pytest.mark.parametrize(
    "location",
    [
        pytest.param("http://files.example/b", id="F18-port-80"),
        pytest.param("https://files.example/b", id="F18-port-443"),
        pytest.param("https://files.example:443/b", id="F18-port-443-written"),
    ],
)
def test_default_ports_are_no_other_ports(
    server: FaultServer, download: Download, location: str
) -> None:
    # Refused for its host only, so that nothing is contacted.
    policy = FetchPolicy(source_hosts=("127.0.0.1",))
    with pytest.raises(Blocked, match=r"files\.example is not among") as caught:
        download(server.on("/a", redirect(location)), sha256=WANT, policy=policy)
    assert caught.value.code == "blocked_host"


# ---- credentials


@case("F20")
def test_authorization_goes_to_its_own_origin_only(
    case: str, server: FaultServer, download: Download
) -> None:
    with FaultServer(host="127.0.0.2", port=server.port) as other:
        other.on("/c", serve(DATA))
        server.on("/a", redirect("/b"))
        server.on("/b", redirect(other.url("/c")))
        url = f"http://us%40er:pass@127.0.0.1:{server.port}/a"
        download(url, sha256=WANT)
        assert [r.fields.get("authorization") for r in server.requests] == [
            "Basic dXNAZXI6cGFzcw=="
        ] * 2
        assert "authorization" not in other.requests[0].fields


@case("F20-port")
def test_another_port_is_another_origin(case: str, server: FaultServer, download: Download) -> None:
    with FaultServer() as other:
        server.on("/a", redirect(other.on("/c", serve(DATA))))
        url = f"http://user:pass@127.0.0.1:{server.port}/a"
        download(url, sha256=WANT, policy=FetchPolicy(redirect_ports=(other.port,)))
        assert "authorization" in server.requests[0].fields
        assert "authorization" not in other.requests[0].fields


@case("F20-cookie")
def test_cookies_are_never_sent_back(case: str, server: FaultServer, download: Download) -> None:
    cookie = f"session={SECRET}; Path=/"
    url = server.on("/a", reply(302, Location="/b", Set_Cookie=cookie))
    server.on("/b", reply(503, Set_Cookie=cookie), serve(DATA))
    assert download(url, sha256=WANT).attempts == 2
    assert server.count("/b") == 2
    assert all("cookie" not in request.fields for request in server.requests)


@case("F20-netrc")
def test_netrc_is_never_consulted(
    case: str,
    server: FaultServer,
    download: Download,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / ".netrc").write_text(
        f"machine 127.0.0.1 login user password {SECRET}\ndefault login user password {SECRET}\n"
    )
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    url = server.on("/a", redirect(f"http://localhost:{server.port}/b"))
    server.on("/b", serve(DATA))
    download(url, sha256=WANT)
    assert all("authorization" not in request.fields for request in server.requests)


# ---- proxies


@pytest.mark.parametrize("no_proxy", ["", "*", "127.0.0.1"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, id=f"F25-{name}")
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY")
    ],
)
def test_proxies_of_the_environment_are_not_used(
    server: FaultServer,
    download: Download,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    no_proxy: str,
) -> None:
    with FaultServer() as proxy:
        monkeypatch.setenv(name, f"http://user:{SECRET}@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", no_proxy)
        monkeypatch.setenv("NO_PROXY", no_proxy)
        download(server.on("/a", serve(DATA)), sha256=WANT)
        assert proxy.connections == 0
        used = base64.b64encode(f"user:{SECRET}".encode()).decode()
        assert used not in str(server.requests)


@case("F25-407")
def test_proxy_in_between_that_wants_credentials(
    case: str, server: FaultServer, download: Download
) -> None:
    url = server.on("/a", reply(407, Proxy_Authenticate="Basic"))
    with pytest.raises(HttpStatus, match="a proxy stands in between") as caught:
        download(url, sha256=WANT)
    assert not caught.value.retryable
    assert server.count("/a") == 1
