"""The Redis of the tests keeps what it was told, whatever happens to it."""

from __future__ import annotations

import redis

from task_api.registry import TaskRegistry
from tests.support.redis_server import RedisServer


def test_restart_and_kill_keep_the_data() -> None:
    with RedisServer(password=True) as server:
        port = server.port
        with server.client as client:
            client.set("a", "1")
        server.restart()
        with server.client as client:
            assert client.get("a") == b"1"
            client.set("b", "2")
        server.kill()
        server.start()
        assert server.port == port
        with redis.Redis.from_url(server.url) as client:
            assert client.mget("a", "b") == [b"1", b"2"]
    assert not server.folder.exists()


def test_the_registry_is_empty(registry: TaskRegistry) -> None:
    assert registry.page() == []
    assert registry.persistence_warning() is None
