"""How many downloads run at once, over all processes that share a store."""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from buttercup_dagster.sources.errors import DeadlinePassed, Stopped
from buttercup_dagster.sources.fetch import FetchLimits, FetchPolicy
from buttercup_dagster.sources.slots import Slots
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import Obtained, Store
from task_api.task import Source, SourceType
from tests.buttercup_dagster.sources.conftest import QUICK
from tests.support.archives import digest
from tests.support.faults import Behaviour, FaultServer, Request, redirect, reply, serve
from tests.support.stopping import stop_when
from tests.support.waiting import wait_for

HERE, THERE = "127.0.0.1", "127.0.0.2"
ONE = replace(QUICK, downloads_per_host=1)


class Crowd:
    """Counts the requests that are being answered, and answers so many of them together.

    Attributes:
        most: the most that there were at once.
    """

    def __init__(self, together: int) -> None:
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        self._meeting = threading.Barrier(together, timeout=20)

    def serve(self, data: bytes) -> Behaviour:
        answer = serve(data)

        def behave(server: FaultServer, request: Request, connection: socket.socket) -> None:
            with self._lock:
                self._now += 1
                self.most = max(self.most, self._now)
            self._meeting.wait()
            with self._lock:
                self._now -= 1
            answer(server, request, connection)

        return behave


@pytest.fixture
def other() -> Iterator[FaultServer]:
    """A server on another host."""
    with FaultServer(host=THERE) as running:
        yield running


def obtain(
    root: Path, url: str, data: bytes, limits: FetchLimits, stop: Stop | None = None
) -> Obtained:
    source = Source(SourceType.REPO, digest(data), (url,))
    policy = FetchPolicy(allow_file=True)
    return Store(root).obtain(source, limits=limits, policy=policy, stop=stop)


@contextlib.contextmanager
def taken(root: Path, limits: FetchLimits, host: str = HERE) -> Iterator[None]:
    """A slot, within ten seconds."""
    locks = root / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    soon = Stop(int(time.time() * 1000) + 10_000)
    with Slots(locks, limits).taken(host, soon):
        yield


def _obtain_all(root: Path, wanted: Sequence[tuple[str, bytes]], limits: FetchLimits) -> None:
    with ThreadPoolExecutor(len(wanted)) as pool:
        for future in [pool.submit(obtain, root, *one, limits) for one in wanted]:
            assert not future.result().cache_hit


def obtain_in_processes(
    root: Path, wanted: Sequence[Sequence[tuple[str, bytes]]], limits: FetchLimits
) -> None:
    """Obtain some archives in each of several processes."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_obtain_all, args=(root, one, limits)) for one in wanted]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_processes_share_the_slots_of_a_host(server: FaultServer, tmp_path: Path) -> None:
    crowd = Crowd(together=2)
    wanted = [
        [(server.on(f"/{n}", crowd.serve(b"%d" % n)), b"%d" % n) for n in range(one, one + 12, 3)]
        for one in range(3)
    ]
    obtain_in_processes(tmp_path, wanted, replace(QUICK, downloads_per_host=2))
    assert crowd.most == 2
    assert server.connections == 12


def test_processes_share_the_slots_of_all_hosts(
    server: FaultServer, other: FaultServer, tmp_path: Path
) -> None:
    crowd = Crowd(together=3)
    names = [[f"{process}-{n}" for n in range(3)] for process in range(2)]
    wanted = [
        [
            (one.on(f"/{name}", crowd.serve(data)), data)
            for name in some
            for one in (server, other)
            for data in (f"{name} of {one.host}".encode(),)
        ]
        for some in names
    ]
    obtain_in_processes(tmp_path, wanted, replace(QUICK, downloads=3))
    assert crowd.most == 3
    assert server.connections + other.connections == 12


def test_a_busy_host_keeps_no_other_waiting(
    server: FaultServer, other: FaultServer, tmp_path: Path
) -> None:
    with taken(tmp_path, ONE):
        obtain(tmp_path, other.on("/a", serve(b"a")), b"a", ONE)
        url = server.on("/b", serve(b"b")).replace(HERE, "localhost")
        obtain(tmp_path, url, b"b", ONE)
    assert server.connections == other.connections == 1


def test_a_file_needs_no_slot(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(b"a")
    limits = replace(QUICK, downloads=1)
    with taken(tmp_path / "store", limits):
        assert obtain(tmp_path / "store", archive.as_uri(), b"a", limits).bytes == 1


def test_a_killed_process_gives_its_slot_back(server: FaultServer, tmp_path: Path) -> None:
    stalled = server.on("/stalled", serve(b"stalled", cut_after=1, then="stall"))
    holder = multiprocessing.get_context("spawn").Process(
        target=obtain, args=(tmp_path, stalled, b"stalled", replace(ONE, read_seconds=60))
    )
    holder.start()
    try:
        server.wait_for_request("/stalled")
        with ThreadPoolExecutor(1) as pool:
            url = server.on("/a", serve(b"a"))
            waiting = pool.submit(obtain, tmp_path, url, b"a", ONE)
            holder.kill()
            assert waiting.result(20).host == HERE
    finally:
        holder.kill()
        holder.join(20)


@pytest.mark.parametrize("by", ["stop", "deadline"])
def test_waiting_ends_when_the_work_has_to(server: FaultServer, tmp_path: Path, by: str) -> None:
    url = server.on("/a", serve(b"a"))
    lock = Store(tmp_path).lock_path(digest(b"a"))
    with taken(tmp_path, ONE), contextlib.ExitStack() as stack:
        if by == "stop":
            stop = stack.enter_context(stop_when(lock.exists, "the lock of the digest"))
            stack.enter_context(pytest.raises(Stopped))
        else:
            stop = Stop(int(time.time() * 1000) + 200)
            stack.enter_context(pytest.raises(DeadlinePassed))
        obtain(tmp_path, url, b"a", ONE, stop)
    assert server.connections == 0
    obtain(tmp_path, url, b"a", ONE)


def test_no_limit_counts_the_waiting(server: FaultServer, tmp_path: Path) -> None:
    limits = replace(
        ONE, total_seconds=0.5, stall_seconds=0.5, stall_bytes_per_second=1, attempts=1
    )
    url = server.on("/a", serve(b"a"))
    with ThreadPoolExecutor(1) as pool:
        with taken(tmp_path, limits):
            waiting = pool.submit(obtain, tmp_path, url, b"a", limits)
            end = time.monotonic() + 3 * limits.stall_seconds
            wait_for(lambda: time.monotonic() > end or waiting.done(), "three times the limits")
            assert not waiting.done()
        found = waiting.result(20)
    assert found.seconds < limits.stall_seconds
    assert server.connections == 1


def test_a_redirect_has_a_slot_of_its_own_host(
    server: FaultServer, other: FaultServer, tmp_path: Path
) -> None:
    target = other.on("/a", serve(b"a"))
    policy = FetchPolicy(redirect_ports=(other.port,))
    source = Source(SourceType.REPO, digest(b"a"), (server.on("/a", redirect(target)),))
    with ThreadPoolExecutor(1) as pool:
        with taken(tmp_path, ONE, THERE):
            waiting = pool.submit(Store(tmp_path).obtain, source, limits=ONE, policy=policy)
            server.wait_for_request("/a")
            # Whoever waits for one host keeps nobody from another.
            with taken(tmp_path, ONE, HERE):
                assert other.connections == 0
        assert waiting.result(20).sha256 == digest(b"a")


def test_a_pause_between_two_tries_holds_no_slot(server: FaultServer, tmp_path: Path) -> None:
    url = server.on("/a", reply(503, Retry_After="60"))
    limits = replace(ONE, max_retry_after_seconds=60)
    with ThreadPoolExecutor(1) as pool:
        stop = Stop()
        waiting = pool.submit(obtain, tmp_path, url, b"a", limits, stop)
        try:
            server.wait_for_request("/a")
            with taken(tmp_path, limits):
                assert not waiting.done()
        finally:
            stop.request("enough")
        with pytest.raises(Stopped):
            waiting.result(20)


@pytest.mark.parametrize("none", [{"downloads": 0}, {"downloads_per_host": 0}])
def test_without_slots_there_would_be_no_download(none: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        FetchLimits(**none)
