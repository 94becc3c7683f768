"""A PostgreSQL server of one's own, on loopback, in a folder that is removed at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.programs import Failed
from buttercup_dagster.local.redis import free_port

_USER: Final = "buttercup"
_START_SECONDS: Final = 30
_DEBIAN: Final = Path("/usr/lib/postgresql")
"""Where Debian has the programs of each version, apart from the PATH."""


def programs() -> Path | None:
    """The folder with the server's programs; None if it is not installed."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    return max((initdb.parent for initdb in _DEBIAN.glob("*/bin/initdb")), default=None)


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database, and its server.

    Attributes:
        environment: the variables by which `many_machines.yaml` finds it.
        folder: of its tables and indexes.
    """

    environment: Mapping[str, str]
    folder: Path
    _user: str | None
    _control: Sequence[str | Path]
    _start: Sequence[str | Path]

    def start(self) -> None:
        """Start the server, and wait until it answers.

        Raises:
            Failed: it does not.
        """
        _run(self._user, [*self._control, *self._start, "start"])

    def stop(self) -> None:
        """Stop the server at once, as a crash would; its clients' connections break.

        Raises:
            Failed: it does not run.
        """
        _run(self._user, [*self._control, "--mode", "immediate", "stop"])


@contextlib.contextmanager
def database(bin_folder: Path) -> Iterator[Database]:
    """Run a server with the settings that it comes with, while the block runs.

    Args:
        bin_folder: as `programs` finds it.

    Raises:
        Failed: it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="buttercup-postgres-") as name:
        folder = Path(name)
        password = folder / "password"
        password.write_text(secrets.token_hex(16))
        port = free_port()
        user = _owner()
        if user is not None:
            for path in (folder, password):
                shutil.chown(path, user)
        data = folder / "data"
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        access: list[str | Path] = [
            "--username",
            _USER,
            "--auth",
            "scram-sha-256",
            "--pwfile",
            password,
        ]
        _run(user, [bin_folder / "initdb", "--pgdata", data, "--encoding", "UTF8", *access])
        made = Database(
            {
                "DAGSTER_PG_HOST": "127.0.0.1",
                "DAGSTER_PG_PORT": str(port),
                "DAGSTER_PG_USERNAME": _USER,
                "DAGSTER_PG_PASSWORD": password.read_text(),
                "DAGSTER_PG_DB": "postgres",
            },
            data / "base",
            user,
            [bin_folder / "pg_ctl", "--pgdata", data, "--silent"],
            [
                "--wait",
                "--timeout",
                str(_START_SECONDS),
                "--log",
                folder / "log",
                "--options",
                options,
            ],
        )
        made.start()
        try:
            yield made
        finally:
            made.stop()


def _owner() -> str | None:
    """Who runs the server; None for the present user. It refuses to be run by root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise Failed("PostgreSQL cannot be run by root, and there is no user postgres or nobody")


def _run(user: str | None, command: Sequence[str | Path]) -> None:
    # Not by a pipe: the server would hold it open.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            list(map(str, command)),
            user=user,
            extra_groups=None if user is None else [],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output.seek(0)
        said = output.read().decode("utf-8", "replace")
    if done.returncode != 0:
        raise Failed(f"{Path(str(command[0])).name} failed: {said.strip()}")
