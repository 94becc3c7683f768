"""A Redis of one's own, and a task server on it that no sensor and no worker looks after."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import redis
import urllib3

from benchmarks.programs import Failed
from benchmarks.system.processes import running, without_settings
from buttercup_dagster.local.redis import embedded_binary, free_port, write_configuration
from task_api.auth import CREDENTIALS, Credentials, read_credentials
from task_api.registry import TaskRegistry
from task_api.task import RegistryError

START_SECONDS: Final = 60.0
SETTLE_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 0.1
REWRITING: Final = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
"""What Redis says of the rewriting of its log."""


@dataclass(frozen=True, slots=True)
class Front:
    """A task server alone.

    Attributes:
        url: of the task server.
        redis_url: of its Redis.
        key: for the task server.
    """

    url: str
    redis_url: str
    key: Credentials

    def settle(self) -> None:
        """Wait until Redis has nothing to do but answer.

        When its log has grown enough, another process of Redis writes it anew.

        Raises:
            Failed: it does not come to rest.
        """
        end = time.monotonic() + SETTLE_SECONDS
        with redis.Redis.from_url(self.redis_url) as client:
            while any(client.info("persistence")[name] for name in REWRITING):
                if time.monotonic() > end:
                    raise Failed(f"Redis still rewrites its log after {SETTLE_SECONDS:.0f} s")
                time.sleep(LOOK_SECONDS)


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A Redis as `buttercup up` runs it, with every write synced, while the block runs.

    Args:
        folder: an empty one for its data.

    Yields:
        Its URL.

    Raises:
        NoRedisServer: there is no redis-server on this machine.
        Failed: it does not start.
    """
    folder.mkdir(parents=True)
    port = free_port()
    configuration = write_configuration(folder, port=port, password=None)
    url = f"redis://127.0.0.1:{port}"

    def answers() -> bool:
        with suppress(RegistryError), TaskRegistry.from_url(url) as registry:
            registry.ping()
            return True
        return False

    with running(
        "redis-server",
        [embedded_binary(folder), configuration],
        log=folder / "redis.log",
        cwd=folder,
    ) as process:
        process.wait_for(answers, "redis-server answers", seconds=START_SECONDS)
        yield url


@contextmanager
def front(folder: Path) -> Iterator[Front]:
    """A task server with one worker, and its Redis, while the block runs.

    Args:
        folder: an empty one.

    Raises:
        NoRedisServer: there is no redis-server on this machine.
        Failed: one of them does not start.
    """
    home = folder / "home"
    home.mkdir(parents=True)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    http = urllib3.PoolManager(retries=False, timeout=5.0)

    def answers() -> bool:
        with suppress(urllib3.exceptions.HTTPError):
            return http.request("GET", f"{url}/healthz").status == 200
        return False

    with (
        redis_server(folder / "redis") as redis_url,
        running(
            "the task server",
            [*[sys.executable, "-P", "-m", "task_api.cli"], *["--port", str(port), "--no-reload"]],
            log=folder / "server.log",
            cwd=home,
            environment=without_settings()
            | {"BUTTERCUP_HOME": str(home), "BUTTERCUP_REDIS_URL": redis_url},
        ) as process,
    ):
        process.wait_for(answers, "the task server answers", seconds=START_SECONDS)
        yield Front(url, redis_url, read_credentials(home / CREDENTIALS))
