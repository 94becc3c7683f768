"""A real task server on a loopback port, and a client that speaks plain HTTP to it."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any, Final, Self, cast

import argon2
import urllib3
import uvicorn

from task_api.app import create_app
from task_api.context import ServerContext
from task_api.logs import log_config
from task_api.settings import TaskServerSettings
from tests.support.tasks import HOUR_MS, now_ms
from tests.support.waiting import wait_for

KEY_ID: Final = "0f9c3b1e-7a52-4d5f-9c59-3a1f2f7d8e61"
TOKEN: Final = "colon:Aa1" + "x" * 32
CHEAP: Final = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
TOKEN_HASH: Final = CHEAP.hash(TOKEN)


def basic(key_id: str, token: str) -> str:
    return "Basic " + base64.b64encode(f"{key_id}:{token}".encode()).decode()


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.text = response.data.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def problems(self) -> dict[str, str]:
        """The problems of a 422 or 409, by path."""
        return {row["path"]: row["message"] for row in self.json["detail"]}


class Client:
    """Calls one server; with the key unless told otherwise."""

    def __init__(self, url: str, key_id: str = KEY_ID, token: str = TOKEN) -> None:
        self.url = url
        self.authorization = basic(key_id, token)
        self._pool = urllib3.PoolManager(retries=False, timeout=30)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        raw: bytes | None = None,
        authorization: str | None = "",
    ) -> Answer:
        headers = {} if body is None and raw is None else {"Content-Type": "application/json"}
        shown = self.authorization if authorization == "" else authorization
        if shown is not None:
            headers["Authorization"] = shown
        if body is not None:
            raw = json.dumps(body).encode()
        return Answer(
            self._pool.request(method, self.url + path, body=raw, headers=headers, redirect=False)
        )

    def get(self, path: str, **options: Any) -> Answer:
        return self.call("GET", path, **options)

    def post(self, path: str, body: object = None, **options: Any) -> Answer:
        return self.call("POST", path, body, **options)

    def delete(self, path: str, **options: Any) -> Answer:
        return self.call("DELETE", path, **options)

    def close(self) -> None:
        self._pool.clear()


class TaskServer:
    """The application served by uvicorn in a thread; a context manager that gives a client."""

    def __init__(self, redis_url: str, **settings: Any) -> None:
        chosen: dict[str, Any] = {
            "redis_url": redis_url,
            "api_key_id": KEY_ID,
            "api_token_hash": TOKEN_HASH,
        }
        self._app = create_app(TaskServerSettings(**chosen | settings))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._app,
                log_config=log_config("warning"),
                lifespan="on",
                ws="none",
                timeout_graceful_shutdown=5,
            )
        )
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, daemon=True
        )
        self.client = Client(f"http://127.0.0.1:{self._listener.getsockname()[1]}")

    @property
    def context(self) -> ServerContext:
        """What the running application holds; for tests that wait until it is busy."""
        return cast(ServerContext, self._app.state.context)

    def __enter__(self) -> Client:
        self._thread.start()
        wait_for(lambda: self._server.started, "the server's start")
        return self.client

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()


class ServerProcess:
    """`buttercup-task-server` as a process, with its output in a file; a context manager."""

    def __init__(self, folder: Path, *arguments: str, **variables: str) -> None:
        self.output = folder / f"server-{uuid.uuid4().hex[:8]}.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).parent / "buttercup-task-server"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def text(self) -> str:
        return self.output.read_text()

    def said(self, part: str) -> str:
        """Wait until the output holds `part`; returns all of the output."""

        def shown() -> str:
            assert part in self.text or self.process.poll() is None, self.text
            return self.text if part in self.text else ""

        return wait_for(shown, f"{part!r} in the output")

    @property
    def url(self) -> str:
        text = self.said("listening on http://").partition("listening on ")[2]
        return text.split()[0]

    def wait(self, seconds: float = 20) -> int:
        """The status with which it ends."""
        return self.process.wait(seconds)


def wire_task(**changes: Any) -> dict[str, Any]:
    """A valid task as a sender posts it."""
    task = {
        "deadline": now_ms() + HOUR_MS,
        "focus": "libpng",
        "harnesses_included": True,
        "metadata": {"round.id": "r1", "nested": {"kept": [1, 2.5, None, "é"]}},
        "project_name": "libpng",
        "source": [
            {
                "sha256": "A" * 64,
                "type": "repo",
                "url": "https://files.example/repo.tar.gz?signature=secret-signature",
            }
        ],
        "task_id": str(uuid.uuid4()),
        "type": "full",
    }
    return {**task, **changes}


def wire_message(*tasks: Any, **changes: Any) -> dict[str, Any]:
    """A message as a sender posts it."""
    message = {"message_id": str(uuid.uuid4()), "message_time": now_ms(), "tasks": list(tasks)}
    return {**message, **changes}


def nested(levels: int) -> Any:
    """Objects and lists by turns, that many levels deep."""
    value: Any = 1
    for level in range(levels):
        value = {"inner": value} if level % 2 else [value]
    return value
