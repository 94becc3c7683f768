"""The product as its user starts it: `buttercup up`, in a home folder of its own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dotenv import dotenv_values

from benchmarks.programs import Failed
from benchmarks.system.processes import Process, running, without_settings
from buttercup_dagster.local.redis import free_port
from buttercup_dagster.settings import UP_FILE
from task_api.auth import CREDENTIALS, Credentials, read_credentials

START_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class Orchestrator:
    """A running `buttercup up`.

    Attributes:
        process: that command.
        home: its home folder.
        url: of the task server.
        dagster_url: of Dagster's pages.
        redis_url: of its Redis, with the password.
        key: for the task server.
    """

    process: Process
    home: Path
    url: str
    dagster_url: str
    redis_url: str
    key: Credentials

    def restarts(self) -> list[str]:
        """The lines that tell of a process which ended and was started again."""
        return [line for line in self.process.printed.splitlines() if "; starting it again" in line]


@contextmanager
def orchestrator(folder: Path) -> Iterator[Orchestrator]:
    """Run `buttercup up` while the block runs.

    Args:
        folder: an empty one, outside of any git work tree.

    Raises:
        Failed: it does not come up.
    """
    home, place = folder / "home", folder / "started-here"
    place.mkdir(parents=True)
    port, dagster_port = free_port(), free_port()
    with running(
        "buttercup up",
        [
            str(Path(sys.executable).parent / "buttercup"),
            *["up", "--port", str(port), "--dagster_port", str(dagster_port)],
        ],
        log=folder / "up.log",
        cwd=place,
        environment=without_settings() | {"BUTTERCUP_HOME": str(home)},
    ) as process:
        process.wait_for(
            lambda: "everything is up" in process.printed,
            "everything is up",
            seconds=START_SECONDS,
        )
        redis_url = dotenv_values(home / UP_FILE, interpolate=False).get("BUTTERCUP_REDIS_URL")
        if redis_url is None:
            raise Failed(f"{home / UP_FILE} names no Redis")
        yield Orchestrator(
            process,
            home,
            f"http://127.0.0.1:{port}",
            f"http://127.0.0.1:{dagster_port}",
            redis_url,
            read_credentials(home / CREDENTIALS),
        )
