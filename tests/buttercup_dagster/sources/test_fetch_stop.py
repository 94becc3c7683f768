"""A stop or a deadline ends a download in every phase of it."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from buttercup_dagster.sources.errors import DeadlinePassed, Offline, Stalled, Stopped
from buttercup_dagster.sources.stop import Stop
from tests.buttercup_dagster.sources.conftest import QUICK, Download
from tests.support.archives import digest
from tests.support.faults import Behaviour, FaultServer, drip, reply, serve, silent
from tests.support.stopping import stop_when

DATA = os.urandom(300_000)
WANT = digest(DATA)

PATIENT = replace(
    QUICK,
    connect_seconds=600,
    read_seconds=600,
    stall_seconds=600,
    max_retry_after_seconds=600,
    max_retry_seconds=600,
)
"""Limits under which only the stop ends a download before the test's own time-out."""


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(silent(), id="headers"),
        pytest.param(drip(head_only=True), id="dripping-headers"),
        pytest.param(serve(DATA, cut_after=1000, then="stall"), id="body"),
        pytest.param(reply(503, Retry_After="500"), id="back-off"),
    ],
)
def test_stop_ends_a_download_that_waits(
    server: FaultServer, download: Download, behaviour: Behaviour
) -> None:
    url = server.on("/a", behaviour)
    with (
        stop_when(lambda: server.count("/a"), "a request") as stop,
        pytest.raises(Stopped, match="the task was cancelled"),
    ):
        download(url, sha256=WANT, limits=PATIENT, stop=stop)
    # Nothing is left that could cut a later download short.
    assert download(server.on("/b", serve(DATA)), sha256=WANT).bytes == len(DATA)


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(silent(), id="headers"),
        pytest.param(drip(head_only=True), id="dripping-headers"),
        pytest.param(serve(DATA, cut_after=1000, then="stall"), id="body"),
        pytest.param(reply(503, Retry_After="500"), id="back-off"),
    ],
)
def test_deadline_ends_a_download_that_waits(
    server: FaultServer, download: Download, behaviour: Behaviour
) -> None:
    stop = Stop(int(time.time() * 1000) + 400)
    with pytest.raises(DeadlinePassed):
        download(server.on("/a", behaviour), sha256=WANT, limits=PATIENT, stop=stop)


def test_stop_ends_a_handshake_that_does_not_come(download: Download) -> None:
    with FaultServer() as plain:  # waits for a request, which TLS never sends
        url = plain.url("/a").replace("http://", "https://")
        with (
            stop_when(lambda: plain.connections, "a connection") as stop,
            pytest.raises(Stopped),
        ):
            download(url, sha256=WANT, limits=PATIENT, stop=stop)


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
        download(url, sha256=WANT, limits=PATIENT, stop=stop)
    with pytest.raises(Offline, match="no answer within"):
        download(url, sha256=WANT, limits=replace(QUICK, connect_seconds=0.5, attempts=1))


def test_stop_ends_a_look_up_that_does_not_come(
    download: Download, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def resolve(*_: Any, **__: Any) -> list[Any]:
        asked.set()
        answer.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    url = "http://files.example/a"
    try:
        with stop_when(asked.is_set, "a look-up") as stop, pytest.raises(Stopped):
            download(url, sha256=WANT, limits=PATIENT, stop=stop)
        with pytest.raises(Stalled, match=r"was not resolved within 0\.2 s"):
            download(url, sha256=WANT, limits=replace(QUICK, connect_seconds=0.2, attempts=1))
    finally:
        answer.set()


def test_stop_before_the_beginning(server: FaultServer, download: Download) -> None:
    stop = Stop()
    stop.request("no")
    with pytest.raises(Stopped):
        download(server.on("/a", serve(DATA)), sha256=WANT, stop=stop)
    with pytest.raises(DeadlinePassed):
        download(server.on("/a", serve(DATA)), sha256=WANT, stop=Stop(1))
    assert server.connections == 0
