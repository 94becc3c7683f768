"""The processes that make up the orchestrator on one machine, and when each does its work."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

import urllib3

from buttercup_dagster.local.errors import LocalError, ServiceFailed
from buttercup_dagster.local.redis import (
    embedded_binary,
    free_port,
    make_password,
    write_configuration,
)
from buttercup_dagster.local.supervisor import PYTHON, Service
from buttercup_dagster.settings import UP_FILE
from task_api.redis_client import safe_redis_url
from task_api.registry import TaskRegistry
from task_api.task import ButtercupError, RegistryError
from task_api.workers import Workers

ANSWER_SECONDS: Final = 2.0

SENSOR_SECONDS: Final = 30.0
"""Without a turn of the sensor after this long, a healthy daemon has to do."""

WORKER_STOP_SECONDS: Final = 20.0
"""Interrupted runs clean up, and give their tasks back."""

DEFINITIONS: Final = "buttercup_dagster.definitions"

STORAGE_MADE: Final = ".storage-made"
"""File beside Dagster's storage, written once that is whole."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run, and where.

    Attributes:
        home: the home folder.
        redis_url: the Redis to use; None to start one.
        host: address of the task server.
        port: TCP port of the task server.
        dagster_port: TCP port of Dagster's pages, on loopback.
        log_level: of the task server.
        own_key: whether the task server has a key of its own in its settings.
        environment: more variables for all of them.
    """

    home: Path
    redis_url: str | None
    host: str
    port: int
    dagster_port: int
    log_level: str = "info"
    own_key: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def api_url(self) -> str:
        """URL of the task server for this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def dagster_url(self) -> str:
        """URL of Dagster's pages."""
        return f"http://127.0.0.1:{self.dagster_port}"


class Stack:
    """The services of a plan, in two groups: Redis first, then everything else.

    Attributes:
        plan: what is run.
        redis_url: the Redis that is used, with its password.
        redis: the service of that Redis; None if it is not started here.
        others: the other services.
    """

    def __init__(self, plan: Plan, sockets: Path) -> None:
        """Write the files that the services read.

        Args:
            plan: what to run.
            sockets: an empty folder with a short path that only this user can enter.

        Raises:
            NoRedisServer: there is no redis-server to start.
        """
        self.plan = plan
        self.redis: Service | None = None
        self.redis_url = plan.redis_url or self._prepare_redis()
        self._instance = plan.home / "dagster"
        self._instance.mkdir(mode=0o755, exist_ok=True)
        template = resources.files("buttercup_dagster") / "instance" / "one_machine.yaml"
        (self._instance / "dagster.yaml").write_bytes(template.read_bytes())
        self._environment = self._make_environment()
        code = sockets / "code.sock"
        # A name of its own: Dagster keeps the state of sensors by the name of their location.
        workspace = self._instance / "workspace.yaml"
        server = {"socket": str(code), "location_name": DEFINITIONS}
        workspace.write_text(json.dumps({"load_from": [{"grpc_server": server}]}), "utf-8")
        dagster = [*PYTHON, "-m", "dagster"]
        webserver = [*PYTHON, "-m", "dagster_webserver"]
        daemon = [*PYTHON, "-m", "dagster._daemon"]
        self._began_ms = int(time.time() * 1000)
        self.others = [
            Service(
                "server",
                [
                    *[*PYTHON, "-m", "task_api.cli"],
                    *["--host", plan.host, "--port", str(plan.port)],
                    *["--log_level", plan.log_level, "--no-reload"],
                ],
                self._environment,
                lambda: _answers(f"{plan.api_url}/healthz"),
            ),
            Service(
                "code",
                [
                    *[*dagster, "api", "grpc", "--module-name", DEFINITIONS],
                    *["--socket", str(code), "--location-name", DEFINITIONS],
                    *["--use-python-environment-entry-point", "--log-level", "warning"],
                    "--empty-working-directory",
                ],
                self._environment,
                lambda: _listens(code),
            ),
            Service(
                "daemon",
                [*daemon, "run", "--workspace", str(workspace)],
                self._environment,
                lambda: self.sensor_seen() or self._daemon_works(),
                needed=False,
            ),
            Service(
                "dagster",
                [
                    *[*webserver, "--workspace", str(workspace), "--log-level", "warning"],
                    *["--host", "127.0.0.1", "--port", str(plan.dagster_port)],
                ],
                self._environment,
                lambda: _answers(f"{plan.dagster_url}/server_info"),
                needed=False,
            ),
            Service(
                "worker",
                [*PYTHON, "-m", "buttercup_dagster.cli.downloader", "serve"],
                # Whoever stops everything does not wait for downloads. Runs are interrupted, which
                # counts no failure against their tasks; a process that is killed would.
                {**self._environment, "BUTTERCUP_DOWNLOADER_DRAIN_SECONDS": "0"},
                self.worker_seen,
                stop_seconds=WORKER_STOP_SECONDS,
                needed=False,
            ),
        ]

    def make_storage(self) -> None:
        """Make Dagster's storage, if it is not there yet.

        Raises:
            ServiceFailed: it cannot be made.
        """
        if (self._instance / STORAGE_MADE).exists():
            return
        done = subprocess.run(
            [*PYTHON, "-m", "buttercup_dagster.local.instance"],
            env=dict(self._environment),
            # Ctrl-C must not leave it half-made.
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            raise ServiceFailed(
                f"the storage of Dagster in {self._instance} cannot be made:\n{done.stdout}"
            )
        (self._instance / STORAGE_MADE).touch()

    def _prepare_redis(self) -> str:
        folder = self.plan.home / "redis"
        folder.mkdir(mode=0o700, exist_ok=True)
        port, password = free_port(), make_password()
        url = f"redis://:{password}@127.0.0.1:{port}"
        configuration = write_configuration(folder, port=port, password=password)
        self.redis = Service(
            "redis", [embedded_binary(folder), str(configuration)], os.environ, lambda: _pings(url)
        )
        return url

    def _make_environment(self) -> Mapping[str, str]:
        ours = {
            "DAGSTER_HOME": str(self._instance),
            "PYTHONUNBUFFERED": "1",
            # What they start in turn must not import from the current folder either.
            "PYTHONSAFEPATH": "1",
            # Advice for who starts Dagster by hand.
            "PYTHONWARNINGS": "ignore",
        }
        # A component's own variable would win over the shared one.
        for prefix in ("BUTTERCUP_", "BUTTERCUP_TASK_SERVER_", "BUTTERCUP_DOWNLOADER_"):
            ours[f"{prefix}REDIS_URL"] = self.redis_url
            ours[f"{prefix}HOME"] = str(self.plan.home)
        return {**os.environ, **ours, **self.plan.environment}

    def sensor_seen(self) -> bool:
        """Whether the intake sensor has taken a turn since the start."""
        with suppress(RegistryError), TaskRegistry.from_url(self.redis_url) as registry:
            seen = registry.status().sensor_seen_ms
            return seen is not None and seen >= self._began_ms
        return False

    def worker_seen(self) -> bool:
        """Whether a warm worker takes runs."""
        with suppress(RegistryError), Workers.from_url(self.redis_url) as workers:
            return bool(workers.live())
        return False

    def _daemon_works(self) -> bool:
        """Whether Dagster's daemon is fine, and only the sensor is not, as when it is off."""
        if time.time() * 1000 - self._began_ms < SENSOR_SECONDS * 1000:
            return False
        query = '{ instance { daemonHealth { daemonStatus(daemonType: "SENSOR") { healthy } } } }'
        path = ("instance", "daemonHealth", "daemonStatus", "healthy")
        return bool(ask_dagster(self.plan.dagster_url, query, *path))


@contextmanager
def laid_out(plan: Plan) -> Iterator[Stack]:
    """The services of a plan, and the file in which other commands find them while they run.

    Raises:
        LocalError: a port is taken, Redis cannot be used, or there is none to start.
    """
    check_port(plan.host, plan.port, "--port")
    check_port("127.0.0.1", plan.dagster_port, "--dagster_port")
    if plan.redis_url is not None:
        _check_redis(plan.redis_url)
    # The path of a socket has to be short; a home folder's may be long.
    with tempfile.TemporaryDirectory(prefix="buttercup-") as sockets:
        stack = Stack(plan, Path(sockets))
        path = plan.home / UP_FILE
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(
            f"BUTTERCUP_REDIS_URL='{stack.redis_url}'\nBUTTERCUP_URL='{plan.api_url}'\n", "utf-8"
        )
        try:
            yield stack
        finally:
            path.unlink(missing_ok=True)


def check_port(host: str, port: int, flag: str) -> None:
    """Return if a server could listen there.

    Raises:
        LocalError: the host is not of this machine, or the port is taken.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, UnicodeError) as error:
        detail = getattr(error, "strerror", None) or error
        raise LocalError(
            f"{flag}: cannot listen on {host}:{port} ({detail}); stop what uses it, or choose "
            f"another with {flag}"
        ) from None


def _check_redis(url: str) -> None:
    try:
        with TaskRegistry.from_url(url) as registry:
            registry.ping()
    except ButtercupError as error:
        raise LocalError(
            f"{safe_redis_url(url)}: {error}; start that Redis, or set no BUTTERCUP_REDIS_URL to "
            "get an embedded one"
        ) from None


def _pings(url: str) -> bool:
    with suppress(RegistryError), TaskRegistry.from_url(url) as registry:
        registry.ping()
        return True
    return False


def _answers(url: str) -> bool:
    with suppress(urllib3.exceptions.HTTPError), _http() as http:
        return http.request("GET", url).status == 200
    return False


def ask_dagster(url: str, query: str, *path: str, **variables: str) -> Any:
    """One value from Dagster's pages, by GraphQL.

    Args:
        url: of the pages.
        query: GraphQL.
        path: names that lead to the value in the answer.
        variables: of the query.

    Returns:
        The value, or None if there is none or Dagster does not answer.
    """
    body = {"query": query, "variables": variables}
    with suppress(urllib3.exceptions.HTTPError, ValueError, KeyError, TypeError), _http() as http:
        found: Any = http.request("POST", f"{url}/graphql", json=body).json()["data"]
        for name in path:
            found = found[name]
        return found
    return None


def _http() -> urllib3.PoolManager:
    """A client for this machine; it asks no proxy."""
    return urllib3.PoolManager(retries=False, timeout=ANSWER_SECONDS)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_SECONDS)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
