"""One HTTP request: connect, follow redirects hop by hop, hand out the body as it comes.

Nothing but the URL and the policy decides who is contacted and what is sent: no proxy of the
environment, no .netrc, no cookie.
"""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Final, Self
from urllib.parse import unquote_to_bytes, urljoin

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, IncompleteRead, LocationParseError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse, HTTPResponse
from urllib3.util import Url, parse_url

from buttercup_dagster.sources.dial import Line, dial
from buttercup_dagster.sources.errors import (
    Blocked,
    Offline,
    SourceError,
    SpecError,
    Stalled,
    TlsError,
    Truncated,
)
from buttercup_dagster.sources.options import MEBIBYTE, FetchLimits, FetchPolicy
from buttercup_dagster.sources.slots import Slots
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.tls import tls_context
from buttercup_dagster.sources.work_clock import WorkClock
from task_api import __version__
from task_api.task import printable, safe_url

MOST_REDIRECTS: Final = 10

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PORTS: Final = {"http": 80, "https": 443}
_FIXED_HEADERS: Final = {
    "User-Agent": f"buttercup-orchestrator/{__version__}",
    "Accept": "*/*",
    # The digest is over the archive as it is stored; a coded body would have another one.
    "Accept-Encoding": "identity",
    "Connection": "close",
}

Origin = tuple[str, str, int]


class Answer:
    """The answer to a request, after redirects.

    Attributes:
        status: the HTTP status.
        headers: its header fields.
        shown_url: where it came from, without what may be a credential.
    """

    def __init__(self, response: BaseHTTPResponse, url: str, exchange: _Exchange) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self.shown_url = safe_url(url)
        self._response = response
        self._exchange = exchange

    @property
    def length(self) -> int | None:
        """Announced bytes of the body; None if the server did not say."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return None
        text = self.headers.get("Content-Length", "").strip()
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    @property
    def chunked(self) -> bool:
        """Whether the end of the body is marked in the body."""
        return "chunked" in self.headers.get("Transfer-Encoding", "").lower()

    def read(self) -> bytes:
        """What has arrived of the body, at most 1 MiB; empty at its end.

        The bytes are those on the wire: a Content-Encoding is not decoded.

        Raises:
            Offline, Truncated, Stalled, Stopped, DeadlinePassed: the rest will not come.
        """
        with self._exchange.translated(self._exchange.limits.read_seconds):
            data = self._response.read1(MEBIBYTE, decode_content=False)
        self._exchange.watchdog.count(len(data))
        # A connection cut by the stop or the watchdog may look like an ordinary end.
        self._exchange.check()
        return data


class _Watchdog:
    """Cuts a line on which too little arrives, and remembers why.

    A time-out of the socket starts anew with every byte; this one does not.
    """

    def __init__(
        self, line: Line, limits: FetchLimits, clock: WorkClock, until: float | None
    ) -> None:
        self.verdict: SourceError | None = None
        self._line = line
        self._clock = clock
        self._limits = limits
        self._until = until
        self._bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def count(self, size: int) -> None:
        self._bytes += size

    def _watch(self) -> None:
        window = self._limits.stall_seconds
        samples = deque([(self._clock.now(), 0)])
        while not self._over.wait(min(1.0, window / 4)):
            now = self._clock.now()
            if self._until is not None and now > self._until:
                self._bark("the download took longer than it may", "too_long")
                return
            # The newest sample that is a whole window old is what to compare with.
            while len(samples) > 1 and samples[1][0] <= now - window:
                samples.popleft()
            since, before = samples[0]
            least = self._limits.stall_bytes_per_second * window
            if now - since >= window and self._bytes - before < least:
                self._bark(
                    f"only {self._bytes - before} bytes arrived within {window:g} s", "too_slow"
                )
                return
            samples.append((now, self._bytes))

    def _bark(self, text: str, code: str) -> None:
        self.verdict = Stalled(text, code=code)
        self._line.cut()


class _Exchange:
    """What all hops of one request share."""

    def __init__(
        self, limits: FetchLimits, policy: FetchPolicy, stop: Stop, watchdog: _Watchdog, line: Line
    ) -> None:
        self.limits = limits
        self.policy = policy
        self.stop = stop
        self.watchdog = watchdog
        self.line = line
        self.shown_url = ""

    def check(self) -> None:
        self.stop.check()
        if self.watchdog.verdict is not None:
            raise self.watchdog.verdict

    @contextmanager
    def translated(self, patience_seconds: float) -> Iterator[None]:
        """Turn what HTTP, TLS and sockets raise inside the block into errors of the engine.

        Args:
            patience_seconds: the time-out of the socket meanwhile.
        """
        try:
            yield
        except SourceError:
            self.check()
            raise
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            failure = self._failure(error, patience_seconds)
        else:
            return
        # Raised outside of the handler: the original may quote the URL with its query, and must
        # not be printed as the context of this one.
        self.check()
        raise failure

    def _failure(self, error: Exception, patience_seconds: float) -> SourceError:
        url = self.shown_url
        cause = error.__cause__ or error.__context__
        for known in (error, cause):
            if isinstance(known, ssl.SSLCertVerificationError):
                return TlsError(
                    f"the certificate of {url} is not valid: {printable(known.verify_message)}; "
                    "renew it, or add its authority to this machine (SSL_CERT_FILE)"
                )
            if isinstance(known, ReadTimeoutError | TimeoutError):
                return Stalled(f"{url} sent nothing for {patience_seconds:g} s")
            if isinstance(known, ConnectionError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
                return Offline(f"{url} closed the connection", code="reset")
            if isinstance(known, ssl.SSLError):
                reason = printable(known.reason or "no reason given")
                return Offline(f"TLS with {url} failed: {reason}", code="tls_failed")
            if isinstance(known, IncompleteRead | http.client.IncompleteRead):
                return Truncated(f"{url} ended the body early")
        return Truncated(
            f"{url} sent an answer that is not valid HTTP ({type(error).__name__})",
            code="bad_answer",
        )


class _Guarded(HTTPConnection):
    """A connection that dials only what the policy allows, and whose line can be cut."""

    exchange: _Exchange

    def _new_conn(self) -> socket.socket:
        exchange = self.exchange
        opened = dial(
            self.host,
            self.port,
            limits=exchange.limits,
            policy=exchange.policy,
            stop=exchange.stop,
        )
        exchange.line.attach(opened)
        return opened

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        # urllib3 logs the whole URL of an answer whose header it cannot parse.
        if self._response_options is not None:
            self._response_options = self._response_options._replace(request_url="")
        return super().getresponse()


class _GuardedTLS(_Guarded, HTTPSConnection):
    """The same over TLS."""


@contextmanager
def request(
    url: str,
    headers: Mapping[str, str],
    *,
    limits: FetchLimits,
    policy: FetchPolicy,
    stop: Stop,
    slots: Slots | None,
    clock: WorkClock,
    until: float | None,
) -> Iterator[Answer]:
    """GET a URL; follow at most ten redirects, each judged by the policy.

    Redirects lead to http and https only, never from https to http, never to a URL with a user,
    and only to the port of the redirecting URL, the default one, or one that the policy names.
    A user in the URL itself is sent as Basic authorization, to that very origin only.

    Args:
        url: http or https.
        headers: fields to send besides the fixed ones.
        limits: time-outs.
        policy: hosts and addresses that may be contacted.
        stop: ends the request.
        slots: what bounds how many requests run at once; each hop has a slot of its own host, and
            none is held while the next one is waited for. None for no bound.
        clock: what limits are measured by; it stands while a slot is waited for.
        until: moment of that clock at which the request ends in any case; None for none.

    Raises:
        SourceError: Blocked, Offline, Stalled, TlsError, Truncated, SpecError, Stopped or
            DeadlinePassed.
        StorageError: a slot cannot be taken.
    """
    parts = _parsed(url)
    origin = _origin(parts)
    credentials = _basic(parts.auth) if parts.auth else None
    line = Line()
    with stop.on_stop(line.cut), _Watchdog(line, limits, clock, until) as watchdog:
        exchange = _Exchange(limits, policy, stop, watchdog, line)
        try:
            for _hop in range(MOST_REDIRECTS + 1):
                exchange.shown_url = safe_url(url)
                sent = {**_FIXED_HEADERS, **headers}
                if credentials and _origin(parts) == origin:
                    sent["Authorization"] = credentials
                connection = _connection(parts, exchange)
                # The response holds the socket too.
                with (
                    _turn(slots, connection.host, clock, stop),
                    closing(connection),
                    closing(_send(connection, parts, sent, exchange)) as response,
                ):
                    if response.status not in _REDIRECTS or "Location" not in response.headers:
                        yield Answer(response, url, exchange)
                        return
                url, parts = _next_hop(url, parts, response.headers["Location"], policy)
            raise Blocked(
                f"more than {MOST_REDIRECTS} redirects, the last to {safe_url(url)}",
                code="redirect_loop",
            )
        finally:
            line.close()


@contextmanager
def _turn(slots: Slots | None, host: str, clock: WorkClock, stop: Stop) -> Iterator[None]:
    """Hold a slot for one hop."""
    if slots is None:
        yield
        return
    with ExitStack() as held:
        with clock.standing():
            held.enter_context(slots.taken(host, stop))
        yield


def _send(
    connection: HTTPConnection, parts: Url, headers: Mapping[str, str], exchange: _Exchange
) -> BaseHTTPResponse:
    exchange.check()
    with exchange.translated(exchange.limits.connect_seconds):
        connection.connect()
    with exchange.translated(exchange.limits.read_seconds):
        connection.request(
            "GET",
            parts.request_uri,
            headers=headers,
            preload_content=False,
            decode_content=False,
            enforce_content_length=True,
        )
        response = connection.getresponse()
    coding = response.headers.get("Transfer-Encoding", "chunked").strip().lower()
    if coding != "chunked":
        response.close()
        raise Truncated(
            f"{exchange.shown_url} sent its body in a transfer coding that was not asked for "
            f"({printable(coding)})",
            code="bad_answer",
        )
    return response


def _connection(parts: Url, exchange: _Exchange) -> HTTPConnection:
    scheme, host, port = _origin(parts)
    if not exchange.policy.host_allowed(host):
        raise Blocked(
            f"{printable(host)} is not among the hosts that sources may come from; add it to the "
            "list of source hosts if it should be",
            code="blocked_host",
        )
    connection: _Guarded
    if scheme == "https":
        connection = _GuardedTLS(
            host,
            port,
            timeout=exchange.limits.read_seconds,
            cert_reqs="CERT_REQUIRED",
            ssl_context=tls_context(),
        )
    else:
        connection = _Guarded(host, port, timeout=exchange.limits.read_seconds)
    connection.exchange = exchange
    return connection


def _next_hop(url: str, parts: Url, location: str, policy: FetchPolicy) -> tuple[str, Url]:
    shown = safe_url(url)
    try:
        # Header fields arrive as Latin-1; a raw UTF-8 path must get its own bytes back.
        target = urljoin(url, location.encode("latin-1").decode("utf-8", "replace"))
        following = parse_url(target)
    except (LocationParseError, ValueError):
        following = Url()
        target = ""
    if following.scheme not in _PORTS or not following.host:
        raise Blocked(
            f"{shown} redirects to something other than http or https ("
            f"{printable(following.scheme or 'unreadable')})",
            code="blocked_redirect",
        )
    # A relative redirect of a URL with a user keeps the user; that one is no news.
    if following.auth and (following.auth != parts.auth or _origin(following) != _origin(parts)):
        raise Blocked(f"{shown} redirects to a URL with a user name", code="blocked_redirect")
    if parts.scheme == "https" and following.scheme == "http":
        raise Blocked(f"{shown} redirects from https to http", code="blocked_redirect")
    port = _origin(following)[2]
    if port not in {_PORTS[following.scheme], _origin(parts)[2], *policy.redirect_ports}:
        raise Blocked(
            f"{shown} redirects to port {port}; give the URL that it leads to, if that is meant",
            code="blocked_redirect",
        )
    return target, following


def _parsed(url: str) -> Url:
    try:
        parts = parse_url(url)
    except LocationParseError:
        parts = Url()
    if parts.scheme not in _PORTS or not parts.host:
        raise SpecError(f"{safe_url(url)} is not a URL that begins with http:// or https://")
    return parts


def _origin(parts: Url) -> Origin:
    scheme = parts.scheme or ""
    host = (parts.host or "").lower().strip("[]")
    return scheme, host, parts.port or _PORTS[scheme]


def _basic(userinfo: str) -> str:
    name, _, password = userinfo.partition(":")
    pair = unquote_to_bytes(name) + b":" + unquote_to_bytes(password)
    return f"Basic {base64.b64encode(pair).decode('ascii')}"
