"""A task server on the shared Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from task_api.registry import TaskRegistry
from tests.support.redis_server import RedisServer
from tests.support.server import Client, TaskServer


@pytest.fixture(scope="session")
def shared_server(redis_server: RedisServer) -> Iterator[Client]:
    """A task server for all tests that need nothing special of it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("BUTTERCUP_"):
                patch.delenv(name)
        server = TaskServer(redis_server.url)
    with server as opened:
        yield opened


@pytest.fixture
def client(shared_server: Client, registry: TaskRegistry) -> Client:
    """A client with the key, of a server that runs on an empty registry."""
    return shared_server
