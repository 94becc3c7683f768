"""The connection to Redis: time-outs, errors in this project's words, and the Lua scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any, Final, Self

import redis
import redis.asyncio
import redis.asyncio.retry
from redis.backoff import NoBackoff
from redis.retry import Retry

from task_api import keys
from task_api.redis_url import safe_redis_url
from task_api.task import RegistryUnavailable

__all__ = [
    "COMMAND_TIMEOUT_SECONDS",
    "LONGEST_BLOCK_SECONDS",
    "OnRedis",
    "Scripts",
    "connect",
    "connect_async",
    "lost",
    "safe_redis_url",
    "script_source",
    "translated",
]

CONNECT_TIMEOUT_SECONDS: Final = 2.0
COMMAND_TIMEOUT_SECONDS: Final = 5.0
_REFUSALS: Final = re.compile(
    r"\b(BUSY|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|NOAUTH|NOPERM|WRONGPASS)\b"
)
_TROUBLE: Final = (
    redis.ConnectionError,
    redis.TimeoutError,
    redis.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.NoPermissionError,
    redis.exceptions.ClusterDownError,
)

LONGEST_BLOCK_SECONDS: Final = 3.0
"""One blocking read; below the command time-out, so that a dead connection is noticed."""


def connect(url: str) -> redis.Redis:
    """A client with time-outs that suit a service: no call hangs on a dead Redis.

    Args:
        url: redis://, rediss:// or unix:// URL.
    """
    return redis.Redis.from_url(
        url,
        protocol=2,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        socket_timeout=COMMAND_TIMEOUT_SECONDS,
        health_check_interval=15,
        # One more try at once: a pooled connection may be from before a restart of Redis.
        # Every script may be sent twice without harm.
        # A time-out is not repeated: the caller has waited long enough.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )


def connect_async(url: str) -> redis.asyncio.Redis:
    """A client for an event loop; tries once more where `connect` does.

    Only making a connection has a time-out. Whoever sends a command has to put one around it: the
    client's own ones make a task for each command.

    Args:
        url: redis://, rediss:// or unix:// URL.
    """
    return redis.asyncio.Redis.from_url(
        url,
        protocol=2,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        socket_timeout=None,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )


@contextmanager
def translated() -> Iterator[None]:
    """Raise `RegistryUnavailable` for everything that is Redis's trouble and may pass."""
    try:
        yield
    except _TROUBLE as error:
        # Its text goes on, or stands within another one.
        text = str(error).rstrip(".")
        raise RegistryUnavailable(f"Redis cannot be used: {text}") from error
    except redis.ResponseError as error:
        # Older servers wrap the refusal of a command into the script's own error text.
        if _REFUSALS.search(str(error)):
            raise RegistryUnavailable(f"Redis refuses the command: {error}") from error
        raise


def lost(error: RegistryUnavailable) -> bool:
    """Whether Redis did not answer at all, as opposed to having refused a command."""
    return isinstance(error.__cause__, redis.ConnectionError | redis.TimeoutError)


class Scripts:
    """The Lua scripts of `task_api/lua` on a client; sent by their digests once Redis has them.

    Args:
        client: with or without an event loop.
    """

    def __init__(self, client: redis.Redis | redis.asyncio.Redis) -> None:
        self._client = client
        self._registered: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """What carries out a script; to be called with `args`."""
        registered = self._registered.get(name)
        if registered is None:
            registered = self._client.register_script(script_source(name))
            self._registered[name] = registered
        return registered


class OnRedis:
    """What reads and writes in one Redis; a context that gives back its connections."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._scripts = Scripts(client)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """On a client of its own; nothing is connected before the first call."""
        return cls(connect(url))

    def close(self) -> None:
        """Give back the connections."""
        self._redis.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _now_ms(self) -> int:
        """Redis's clock, which all leases and deadlines go by; milliseconds since 1970."""
        seconds, micros = self._redis.time()
        return int(seconds * 1000 + micros // 1000)


@cache
def script_source(script: str) -> str:
    """The whole text of a script: names of keys, what all scripts share, and itself."""
    folder = resources.files("task_api") / "lua"
    return "".join(
        (
            keys.lua_table(),
            (folder / "common.lua").read_text("utf-8"),
            (folder / f"{script}.lua").read_text("utf-8"),
        )
    )
