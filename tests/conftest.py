"""Fixtures of all tests: a real Redis, a registry in it, and a home folder of the test's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from task_api.registry import TaskRegistry
from tests.support.redis_server import RedisServer

SLOW_VARIABLE = "RUN_SLOW"
TESTS = Path(__file__).parent


def pytest_configure() -> None:
    # A shell starts what it runs in the background with SIGINT ignored, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Where several processes run the tests: what shares a fixture that takes long stays together.
    for item in items:
        path = item.path.relative_to(TESTS)
        item.add_marker(pytest.mark.xdist_group("e2e" if path.parts[0] == "e2e" else str(path)))
    if os.environ.get(SLOW_VARIABLE) == "1":
        return
    skip = pytest.mark.skip(reason=f"slow: takes minutes; set {SLOW_VARIABLE}=1 to run it")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """The Redis that the tests share; emptied before each test that asks for `redis_url`."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of the shared Redis, which is empty and has forgotten every script."""
    with redis_server.client as client:
        client.flushall()
        client.script_flush()
    return redis_server.url


@pytest.fixture
def registry(redis_url: str) -> Iterator[TaskRegistry]:
    """An empty registry."""
    with TaskRegistry.from_url(redis_url) as opened:
        opened.initialize()
        yield opened


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A fresh Redis of the test's own, which it may stop, kill and start again."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def portal() -> Iterator[BlockingPortal]:
    """A way into an event loop that runs in a thread."""
    with start_blocking_portal() as opened:
        yield opened


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty BUTTERCUP_HOME; no other setting of ours in the environment, no `.env` in reach."""
    for name in list(os.environ):
        if name.startswith("BUTTERCUP_") or name == "DAGSTER_HOME":
            monkeypatch.delenv(name)
    folder = tmp_path / "home"
    monkeypatch.setenv("BUTTERCUP_HOME", str(folder))
    work = tmp_path / "cwd"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder
