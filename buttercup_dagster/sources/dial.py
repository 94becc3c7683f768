"""Opening a TCP connection to an address that the policy allows.

The address is judged where it is dialled, not where the name is looked up first: so neither a
second look-up with another answer nor an unusual spelling of an address gets around it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from buttercup_dagster.sources.errors import Blocked, Offline, Stalled
from buttercup_dagster.sources.options import FetchLimits, FetchPolicy
from buttercup_dagster.sources.stop import Stop
from task_api.task import printable

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

POLL_SECONDS = 0.1


def _networks(*texts: str) -> tuple[IPNetwork, ...]:
    return tuple(map(ipaddress.ip_network, texts))


NEVER: Final = _networks(
    "169.254.0.0/16",  # link-local (RFC 3927), where most clouds serve instance metadata
    "fe80::/10",  # link-local (RFC 4291)
    "fd00:ec2::/32",  # AWS metadata over IPv6
    "fd20:ce::254/128",  # Google Cloud metadata over IPv6
    "100.100.100.200/32",  # Alibaba Cloud metadata
    "168.63.129.16/32",  # Azure's host
    "192.0.0.192/32",  # Oracle Cloud metadata
    "224.0.0.0/4",  # multicast
    "255.255.255.255/32",
    "ff00::/8",
)
"""Addresses that are never dialled."""

# An own list: `ipaddress.is_global` of older Pythons calls several of these global.
PRIVATE: Final = _networks(
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
    "::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "2001::/23",
    "2001:db8::/32",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fec0::/10",
)
"""Addresses that are not public (IANA special-purpose registries)."""

_CARRIES_IPV4: Final = tuple(
    (ipaddress.IPv6Network(network), shift)
    for network, shift in (
        ("::ffff:0:0/96", 0),  # IPv4-mapped
        ("::ffff:0:0:0/96", 0),  # IPv4-translated (RFC 2765)
        ("::/96", 0),  # IPv4-compatible
        ("64:ff9b::/96", 0),  # NAT64
        ("64:ff9b:1::/48", 0),  # NAT64 for local use
        ("2002::/16", 80),  # 6to4
    )
)


def meanings(address: IPAddress) -> Iterator[IPAddress]:
    """The address, and the IPv4 address that it carries inside, if it does."""
    yield address
    if isinstance(address, ipaddress.IPv6Address):
        for network, shift in _CARRIES_IPV4:
            if address in network:
                yield ipaddress.IPv4Address((int(address) >> shift) & 0xFFFFFFFF)


def address_problem(address: IPAddress, policy: FetchPolicy) -> str | None:
    """Why the policy forbids an address, or None."""
    for meaning in meanings(address):
        if any(meaning in network for network in NEVER):
            return "a link-local, cloud metadata or multicast address, which is never dialled"
    if policy.block_private_addresses:
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        for meaning in meanings(address):
            if any(meaning in network for network in PRIVATE):
                return "not a public address, and private addresses are blocked here"
    return None


class Line:
    """The one open connection of a request, so that another thread can cut it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handle: socket.socket | None = None
        self._cut = False

    def attach(self, connection: socket.socket) -> None:
        """Take over a new connection; one that came before is forgotten."""
        # A duplicate: TLS detaches the original handle, and shutting down either ends both.
        with self._lock:
            self._forget()
            self._handle = connection.dup()
            if self._cut:
                self._shut_down(self._handle)

    def cut(self) -> None:
        """End whatever blocks on the connection, now and later."""
        with self._lock:
            self._cut = True
            if self._handle is not None:
                self._shut_down(self._handle)

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    @staticmethod
    def _shut_down(handle: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the other side was faster
            handle.shutdown(socket.SHUT_RDWR)


class _Found(NamedTuple):
    family: socket.AddressFamily
    kind: socket.SocketKind
    protocol: int
    where: tuple[Any, ...]

    @property
    def address(self) -> IPAddress:
        return ipaddress.ip_address(str(self.where[0]).partition("%")[0])


def dial(
    host: str, port: int, *, limits: FetchLimits, policy: FetchPolicy, stop: Stop
) -> socket.socket:
    """Connect to the first address of a host that is allowed and answers.

    Returns:
        A connected socket whose time-out is `limits.connect_seconds`.

    Raises:
        Blocked: every address of the host is forbidden.
        Offline: the name is unknown, or no address answers.
        Stalled: the name server does not answer.
        Stopped, DeadlinePassed: meanwhile.
    """
    found = _look_up(host, port, limits, stop)
    allowed: list[_Found] = []
    problem = ""
    for entry in found:
        if text := address_problem(entry.address, policy):
            problem = f"{entry.address} is {text}"
        else:
            allowed.append(entry)
    if not allowed:
        raise Blocked(f"{printable(host)} must not be contacted: {problem}", code="blocked_address")
    until = time.monotonic() + limits.connect_seconds
    reason = ""
    for number, entry in enumerate(allowed):
        share = (until - time.monotonic()) / (len(allowed) - number)
        try:
            return _connect(entry, max(share, 0.1), limits, stop)
        except OSError as error:
            reason = error.strerror or "no answer"
    raise Offline(
        f"cannot connect to {printable(host)} port {port}: {reason}; check that the server is up "
        "and reachable from this machine",
        code="connect",
    )


def _look_up(host: str, port: int, limits: FetchLimits, stop: Stop) -> list[_Found]:
    # In a thread of its own, because nothing can interrupt getaddrinfo.
    done = threading.Event()
    answer: list[_Found] = []
    problem: list[str] = []

    def ask() -> None:
        try:
            for family, kind, protocol, _, where in socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            ):
                answer.append(_Found(family, kind, protocol, where))
        except (OSError, UnicodeError) as error:
            problem.append(getattr(error, "strerror", None) or "not a valid host name")
        finally:
            done.set()

    with stop.on_stop(done.set):
        threading.Thread(target=ask, name="look-up", daemon=True).start()
        in_time = done.wait(limits.connect_seconds)
    stop.check()
    if not in_time:
        raise Stalled(
            f"the name {printable(host)} was not resolved within {limits.connect_seconds:g} s",
            code="dns",
        )
    if problem or not answer:
        text = problem[0] if problem else "no address"
        raise Offline(
            f"the name {printable(host)} cannot be resolved: {text}; check the host of the URL "
            "and the name server of this machine",
            code="dns",
        )
    return answer


def _connect(entry: _Found, seconds: float, limits: FetchLimits, stop: Stop) -> socket.socket:
    """Connect without blocking, so that a stop is noticed. Raises OSError if it fails."""
    connection = socket.socket(entry.family, entry.kind, entry.protocol)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        with contextlib.suppress(BlockingIOError):
            connection.connect(entry.where)
        poll = select.poll()
        poll.register(connection, select.POLLOUT)
        until = time.monotonic() + seconds
        while not poll.poll(POLL_SECONDS * 1000):
            stop.check()
            if time.monotonic() > until:
                raise TimeoutError(None, f"no answer within {seconds:.0f} s")  # noqa: TRY301
        if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))  # noqa: TRY301
        connection.settimeout(limits.connect_seconds)
    except BaseException:
        connection.close()
        raise
    return connection
