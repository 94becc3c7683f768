"""The limits of a download and the policy that says from where one may be made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1024 * 1024
GIBIBYTE = 1024 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """How much, how long and how often.

    Attributes:
        max_archive_bytes: an archive above this is refused.
        connect_seconds: for the name, the connection and the TLS handshake, each.
        read_seconds: longest silence of a server.
        stall_seconds: length of the window in which `stall_bytes_per_second` is asked for.
        stall_bytes_per_second: a slower server is given up, as curl's low-speed limit does.
        total_seconds: for the whole call; None for no limit but the stop's deadline. Waiting for
            one's turn does not count, here and above.
        attempts: tries per URL in a row that bring no new byte.
        max_retry_seconds: how long one URL is tried without a new byte, waits that its server
            asked for aside; later tries are for whoever repeats the task.
        backoff_seconds: the first wait is up to this long, each further one up to twice as long.
        max_backoff_seconds: no wait is longer, unless the server asks for it.
        max_retry_after_seconds: a server that asks for a longer wait is given up.
        downloads_per_host: how many requests to one host may run at once, over all processes that
            share a store.
        downloads: how many may run at once in all.
        reserve_bytes: free space that a download must leave on the disk; looked at before the
            first byte and after every 256 MiB.
    """

    max_archive_bytes: int = 8 * GIBIBYTE
    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    stall_seconds: float = 60.0
    stall_bytes_per_second: int = 1024
    total_seconds: float | None = None
    attempts: int = 5
    max_retry_seconds: float = 60.0
    backoff_seconds: float = 0.5
    max_backoff_seconds: float = 30.0
    max_retry_after_seconds: float = 120.0
    downloads_per_host: int = 4
    downloads: int = 16
    reserve_bytes: int = 64 * MEBIBYTE

    def __post_init__(self) -> None:
        """Raise ValueError for bounds under which nothing could be downloaded."""
        if self.downloads_per_host < 1 or self.downloads < 1:
            raise ValueError("at least one download must be allowed, of each host and in all")


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """From where an archive may come. Link-local and cloud metadata addresses are never allowed.

    Attributes:
        allow_file: whether file:// URLs are allowed.
        file_roots: only regular files below one of these folders; empty for any regular file.
        block_private_addresses: whether only public addresses may be dialled.
        source_hosts: if not empty, the only hosts that may be contacted, redirects included.
            "example.org" is that host, "*.example.org" any host below it.
        redirect_ports: ports that a redirect may lead to, besides the one of the URL that
            redirects and the default ones (80 for http, 443 for https).
    """

    allow_file: bool = False
    file_roots: tuple[Path, ...] = ()
    block_private_addresses: bool = False
    source_hosts: tuple[str, ...] = ()
    redirect_ports: tuple[int, ...] = ()

    def host_allowed(self, host: str) -> bool:
        """Whether this host may be contacted, as far as its name goes."""
        if not self.source_hosts:
            return True
        host = host.lower().rstrip(".")
        for entry in self.source_hosts:
            allowed = entry.lower().rstrip(".")
            if host == allowed or (allowed.startswith("*.") and host.endswith(allowed[1:])):
                return True
        return False


DEFAULT_FETCH_LIMITS = FetchLimits()
DEFAULT_POLICY = FetchPolicy()
