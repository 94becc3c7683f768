"""Redis URLs: which can be used, and what of one may be shown. Loads no client of Redis."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult

from task_api.task import printable, split_url

_BEGINNINGS: Final = ("redis://", "rediss://", "unix://")
_DATABASE: Final = re.compile(r"/?([0-9]+/?)?\Z")
_EXAMPLES: Final = "redis://localhost:6379 or redis://:password@host:6379/0"


def check_redis_url(url: str) -> str:
    """The URL, if each of its parts is what it seems to be.

    A password with a character that ends the host in a URL would reach into the parts behind it,
    which are shown. No message repeats any of the URL.

    Raises:
        ValueError: it cannot be used; the text says what to do.
    """
    _split(url)
    return url


def safe_redis_url(url: str) -> str:
    """What may be shown: scheme, host, port and database, or the path of a socket."""
    try:
        parts = _split(url)
    except ValueError:
        return "<unreadable Redis URL>"
    host = parts.netloc.rpartition("@")[2]
    return printable(f"{parts.scheme}://{host}{parts.path}", limit=300)


def _split(url: str) -> SplitResult:
    if not url.startswith(_BEGINNINGS):
        raise ValueError(
            f"a Redis URL begins with redis://, rediss:// or unix://, such as {_EXAMPLES}"
        )
    parts = split_url(url)
    if parts is None or parts.fragment or "@" in parts.path + parts.query:
        raise ValueError(
            "the Redis URL cannot be read; escape / in the password as %2F, ? as %3F, # as %23 and "
            f"@ as %40, and give the port as a number, such as {_EXAMPLES}"
        )
    if parts.scheme == "unix":
        if parts.netloc and not parts.netloc.endswith("@"):
            raise ValueError(
                "name the socket of Redis with three slashes, such as unix:///run/redis/redis.sock"
            )
    elif not _DATABASE.match(parts.path):
        raise ValueError(
            f"only the number of a database may follow the host in a Redis URL, such as {_EXAMPLES}"
        )
    return parts
