"""The ping of the competition API: a background matter that delays nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from task_api.competition import CompetitionPing
from task_api.registry import TaskRegistry
from tests.support.server import Client, TaskServer, basic
from tests.support.waiting import wait_for

ID, SECRET = "aaaabbbb-cccc-4ddd-8eee-ffff00001111", "tökén:1"


class Competition(BaseHTTPRequestHandler):
    """Answers `GET /v1/ping/` as the competition API does, or misbehaves."""

    status = 200
    hang = threading.Event()
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.hang.is_set():
            self.server.release.wait(20)  # type: ignore[attr-defined]
            return
        allowed = self.headers["Authorization"] == basic(ID, SECRET)
        status = self.status if allowed else 401
        body = b'{"status":"ready"}'
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def competition(status: int = 200, *, hang: bool = False) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Competition,), {"status": status, "asked": asked})
    handler.hang = threading.Event()  # type: ignore[attr-defined]
    if hang:
        handler.hang.set()  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.release = threading.Event()  # type: ignore[attr-defined]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.release.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(redis_url: str, url: str, token: str = SECRET) -> Iterator[Client]:
    with TaskServer(
        redis_url,
        competition_api_url=url,
        competition_api_key_id=ID,
        competition_api_key_token=token,
        competition_api_ping_seconds=0.1,
    ) as client:
        yield client


def problem(client: Client) -> str | None:
    found: str | None = client.get("/status/").json["details"].get("competition_api")
    return found


@pytest.fixture(autouse=True)
def _a_sensor(registry: TaskRegistry, home: Path) -> None:
    registry.sensor_seen(needs_workers=False, free_slots=1)


def test_ready_once_the_ping_is_answered(redis_url: str) -> None:
    with competition() as (url, asked), serving(redis_url, url + "/") as client:
        wait_for(lambda: client.get("/status/").json["ready"], "readiness")
        wait_for(lambda: len(asked) > 2, "further pings")
        assert set(asked) == {"/v1/ping/"}
        checks = client.get("/readyz", authorization=None).json["checks"]
        assert checks == {"redis": "ok", "sensor": "ok", "competition_api": "ok"}


def test_an_api_that_comes_back(redis_url: str) -> None:
    handler = type("Handler", (Competition,), {"asked": []})
    # Bound, so that nobody else takes the port, and not yet listening.
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler, bind_and_activate=False)
    server.server_bind()
    thread = threading.Thread(target=server.serve_forever)
    try:
        with serving(redis_url, f"http://127.0.0.1:{server.server_port}") as client:
            wait_for(lambda: "cannot be reached" in (problem(client) or ""), "the problem")
            assert client.get("/readyz", authorization=None).status == 503
            server.server_activate()
            thread.start()
            wait_for(lambda: client.get("/status/").json["ready"], "readiness")
    finally:
        if thread.ident is not None:
            server.shutdown()
            thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "token", "part"),
    [
        (200, "wrong", "answers 401; check BUTTERCUP_TASK_SERVER_COMPETITION_API_KEY_ID"),
        (500, SECRET, "answers 500 instead of 200"),
        (302, SECRET, "answers 302 instead of 200"),
    ],
)
def test_another_answer_is_told(redis_url: str, status: int, token: str, part: str) -> None:
    with competition(status) as (url, _), serving(redis_url, url, token) as client:
        found = wait_for(
            lambda: (text := problem(client) or "") != "not checked yet" and text, "a result"
        )
        assert part in str(found)
        assert SECRET not in client.get("/status/").text


def test_an_api_that_hangs_delays_nobody(redis_url: str) -> None:
    with competition(hang=True) as (url, asked), serving(redis_url, url) as client:
        wait_for(lambda: asked, "the first ping")
        assert problem(client) == "not checked yet"
        assert client.get("/readyz", authorization=None).status == 503
        wait_for(lambda: "does not answer within 5 s" in (problem(client) or ""), "the time-out")


def test_without_an_answer_the_wait_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ping = CompetitionPing("http://127.0.0.1:1", ID, SECRET)
    begin = time.monotonic()
    monkeypatch.setattr("task_api.competition.time.monotonic", lambda: begin + 6)
    assert ping.problem == "no answer for 6 s"
    ping.close()
