"""Which addresses are dialled, however they are spelled and whatever a name server says."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from buttercup_dagster.sources import dial
from buttercup_dagster.sources.errors import Blocked
from buttercup_dagster.sources.fetch import FetchPolicy
from tests.buttercup_dagster.sources.conftest import Download
from tests.support.archives import digest
from tests.support.cases import case
from tests.support.faults import FaultServer, redirect, serve

DATA = os.urandom(100_000)
WANT = digest(DATA)
PUBLIC_ONLY = FetchPolicy(block_private_addresses=True)


def _ids(hosts: Sequence[str]) -> list[object]:
    return [pytest.param(host, id=f"F21-{host}") for host in hosts]


@pytest.mark.parametrize(
    "host",
    _ids(
        [
            "169.254.169.254",
            "169.254.1.1",
            "2852039166",
            "0xA9FEA9FE",
            "0251.0376.0251.0376",
            "169.254.43518",
            "0xa9.254.0251.254",
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[::ffff:0:a9fe:a9fe]",
            "[64:ff9b::a9fe:a9fe]",
            "[64:ff9b:1::a9fe:a9fe]",
            "[2002:a9fe:a9fe::1]",
            "[::169.254.169.254]",
            "[fe80::1]",
            "[fe80::1%25lo]",
            "[fd00:ec2::254]",
            "[fd20:ce::254]",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "224.0.0.1",
            "255.255.255.255",
            "[ff02::1]",
        ]
    ),
)
def test_metadata_and_link_local_addresses_are_never_dialled(
    server: FaultServer, download: Download, host: str
) -> None:
    with pytest.raises(Blocked, match="never dialled") as caught:
        download(f"http://{host}/latest/meta-data/", sha256=WANT)
    assert caught.value.code == "blocked_address"
    assert not caught.value.retryable
    with pytest.raises(Blocked, match="never dialled"):
        download(server.on("/a", redirect(f"http://{host}/")), sha256=WANT)


@pytest.mark.parametrize(
    "host",
    _ids(
        [
            "127.0.0.1",
            "127.255.255.254",
            "localhost",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7F.1",
            "0177.0.0.1",
            "017700000001",
            "0.0.0.0",
            "0",
            "[::]",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::ffff:0:7f00:1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::7f00:1]",
            "[2002:7f00:1::1]",
            "[2001::1]",
            "[2001:db8::1]",
            "[::7f00:1]",
            "[fec0::1]",
            "[fc00::1]",
            "[fd00::1]",
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "[::ffff:192.168.1.1]",
            "[64:ff9b::c0a8:101]",
            "100.64.0.1",
            "100.127.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "240.0.0.1",
        ]
    ),
)
def test_private_addresses_can_be_blocked(
    server: FaultServer, download: Download, host: str
) -> None:
    with pytest.raises(Blocked) as caught:
        download(f"http://{host}:{server.port}/a", sha256=WANT, policy=PUBLIC_ONLY)
    assert caught.value.code == "blocked_address"
    assert server.connections == 0


@pytest.mark.parametrize(
    "text",
    _ids(
        [
            "1.1.1.1",
            "172.15.255.255",
            "172.32.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "169.253.255.255",
            "192.167.255.255",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
            "2002:101:101::1",
        ]
    ),
)
def test_public_addresses_are_allowed(text: str) -> None:
    # Judged only: a test must not contact them.
    assert dial.address_problem(ipaddress.ip_address(text), PUBLIC_ONLY) is None


@pytest.mark.parametrize("host", _ids(["127.0.0.1", "127.1", "0x7f000001", "localhost", "0.0.0.0"]))
def test_hosts_inside_are_dialled_unless_that_is_blocked(
    server: FaultServer, download: Download, host: str
) -> None:
    server.on("/a", serve(DATA))
    assert download(f"http://{host}:{server.port}/a", sha256=WANT).bytes == len(DATA)


# ---- name servers

Resolver = Callable[[Sequence[Sequence[str]]], None]


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Resolver:
    """Lets the name server give these addresses for any name, in turn; the last ones repeat."""
    ask = socket.getaddrinfo

    def use(answers: Sequence[Sequence[str]]) -> None:
        left = list(answers)

        def resolve(host: str, port: int, **options: Any) -> list[Any]:
            addresses = left.pop(0) if len(left) > 1 else left[0]
            return [entry for one in addresses for entry in ask(one, port, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)

    return use


@case("F22-rebinding")
def test_name_that_changes_its_address_is_judged_again(
    case: str, server: FaultServer, download: Download, resolver: Resolver
) -> None:
    resolver([["127.0.0.1"], ["169.254.169.254"]])
    server.on("/a", serve(DATA, cut_after=1000), serve(DATA))
    with pytest.raises(Blocked, match=r"169\.254\.169\.254 is a link-local"):
        download(f"http://files.example:{server.port}/a", sha256=WANT)
    assert server.connections == 1


@case("F22-redirect")
def test_redirect_to_the_same_name_is_judged_again(
    case: str, server: FaultServer, download: Download, resolver: Resolver
) -> None:
    resolver([["127.0.0.1"], ["::ffff:169.254.169.254"]])
    server.on("/a", redirect("/b"))
    server.on("/b", serve(DATA))
    with pytest.raises(Blocked, match="never dialled"):
        download(f"http://files.example:{server.port}/a", sha256=WANT)
    assert server.connections == 1


@case("F22-looked-up-once")
def test_address_that_was_judged_is_the_one_dialled(
    case: str, server: FaultServer, download: Download, resolver: Resolver
) -> None:
    # A second look-up between judging and dialling would get the other answer.
    resolver([["127.0.0.1"], ["127.0.0.2"]])
    with FaultServer(host="127.0.0.2", port=server.port) as other:
        server.on("/a", serve(DATA))
        other.on("/a", serve(DATA))
        download(f"http://files.example:{server.port}/a", sha256=WANT)
        assert (server.connections, other.connections) == (1, 0)


@pytest.mark.parametrize(
    "addresses",
    [
        pytest.param(["127.0.0.2", "127.0.0.1"], id="F22-private-first"),
        pytest.param(["127.0.0.1", "127.0.0.2"], id="F22-private-last"),
        pytest.param(["169.254.169.254", "127.0.0.2", "127.0.0.1"], id="F22-metadata-too"),
    ],
)
def test_private_ones_of_several_addresses_are_skipped(
    server: FaultServer,
    download: Download,
    resolver: Resolver,
    monkeypatch: pytest.MonkeyPatch,
    addresses: list[str],
) -> None:
    # So that one of two loopback addresses is a public one.
    monkeypatch.setattr(dial, "PRIVATE", (ipaddress.ip_network("127.0.0.2/32"),))
    resolver([addresses])
    with FaultServer(host="127.0.0.2", port=server.port) as private:
        server.on("/a", serve(DATA))
        url = f"http://files.example:{server.port}/a"
        download(url, sha256=WANT, policy=PUBLIC_ONLY)
        assert (server.connections, private.connections) == (1, 0)


@case("F22-all-private")
def test_name_with_only_private_addresses(
    case: str, server: FaultServer, download: Download, resolver: Resolver
) -> None:
    resolver([["127.0.0.1", "10.0.0.1", "::1"]])
    with pytest.raises(Blocked, match="private addresses are blocked here"):
        download(f"http://files.example:{server.port}/a", sha256=WANT, policy=PUBLIC_ONLY)
    assert server.connections == 0


# ---- hosts


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
