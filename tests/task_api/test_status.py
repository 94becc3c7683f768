"""Status, readiness, and what the server does while Redis is away."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import task_api
from task_api.registry import TaskRegistry
from task_api.task import Reason, TaskState
from task_api.version import version_text
from task_api.workers import Workers
from tests.support.redis_server import RedisServer, free_port
from tests.support.server import Client, TaskServer, wire_message, wire_task
from tests.support.tasks import make_task, now_ms, post
from tests.support.waiting import wait_for

ZEROS = dict.fromkeys(
    ("canceled", "errored", "failed", "pending", "processing", "succeeded", "waiting"), 0
)


def test_a_new_server_says_what_is_missing(client: Client) -> None:
    answer = client.get("/status/")
    assert answer.status == 200
    shown = answer.json
    assert shown["ready"] is False
    assert shown["details"] == {
        "sensor": "no sensor has been seen yet; start `dagster dev -w workspace.yaml`, and see "
        "that intake_sensor is switched on"
    }
    assert shown["state"] == {"tasks": ZEROS}
    assert abs(shown["since"] - now_ms()) < 60_000
    assert shown["version"] == version_text()
    assert shown["version"].startswith(task_api.__version__)


def test_ready_with_a_sensor(client: Client, registry: TaskRegistry) -> None:
    registry.sensor_seen(needs_workers=False, free_slots=2)
    shown = client.get("/status").json
    assert (shown["ready"], shown["details"]) == (True, {})
    answer = client.get("/readyz", authorization=None)
    assert answer.status == 200
    assert answer.json == {"ready": True, "checks": {"redis": "ok", "sensor": "ok"}}


def test_workers_count_only_where_they_are_needed(client: Client, registry: TaskRegistry) -> None:
    registry.sensor_seen(needs_workers=True, free_slots=0)
    text = "no worker is running; start one with: buttercup-downloader serve"
    assert client.get("/status/").json["details"] == {"worker": text}
    answer = client.get("/readyz/", authorization=None)
    assert answer.status == 503
    assert answer.json["checks"] == {"redis": "ok", "sensor": "ok", "worker": text}
    Workers(registry._redis).announce("w1", occupied=False)
    assert client.get("/status/").json["ready"] is True


def test_a_sensor_that_went_away(redis_url: str, registry: TaskRegistry, home: Path) -> None:
    with TaskServer(redis_url, sensor_timeout_seconds=0.05) as client:
        registry.sensor_seen(needs_workers=False, free_slots=2)
        found = wait_for(
            lambda: client.get("/status/").json["details"].get("sensor"), "the sensor's absence"
        )
    assert found.startswith("no sensor seen for 0 s; start `dagster dev")


def test_counts(client: Client, registry: TaskRegistry) -> None:
    tasks = [make_task() for _ in range(5)]
    post(registry, *tasks)
    claims = {claim.task_id: claim.token for claim in registry.claim(4)}
    one, two, three, four = list(claims)
    registry.start(one, run_id="r", machine="m", token=claims[one])
    attempt = registry.start(two, run_id="r", machine="m", token=claims[two])
    registry.ready(two, attempt.token, path="/p", machine="m")
    registry.fail(three, claims[three], Reason("not_found", "404"))
    registry.cancel(four)

    counts = client.get("/status/").json["state"]["tasks"]
    assert counts == {**ZEROS, "pending": 1, "processing": 2, "errored": 1, "canceled": 1}

    before = client.get("/status/").json["since"]
    answer = client.delete("/status/")
    assert (answer.status, answer.json) == (200, "counters reset")
    shown = client.get("/status/").json
    assert shown["state"]["tasks"] == {**ZEROS, "pending": 1, "processing": 2}
    assert shown["since"] >= before


def test_health_needs_no_key(client: Client) -> None:
    for path in ("/healthz", "/healthz/"):
        answer = client.get(path, authorization=None)
        assert (answer.status, answer.json) == (200, "alive")


def test_the_version_of_a_checkout_names_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "task_api"
    package.mkdir()
    monkeypatch.setattr(task_api, "__file__", str(package / "__init__.py"))
    assert version_text() == task_api.__version__
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "pyproject.toml").touch()
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout
    assert version_text() == f"{task_api.__version__}+g{head[:12]}"


def test_git_is_asked_once_and_before_any_request(
    redis_url: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = tmp_path / "calls"
    (tmp_path / "bin").mkdir()
    git = tmp_path / "bin" / "git"
    git.write_text(f"#!/bin/sh\necho asked >> '{calls}'\necho 0123456789ab\n")
    git.chmod(0o755)
    (tmp_path / ".git").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setenv("PATH", f"{git.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(task_api, "__file__", str(tmp_path / "task_api" / "__init__.py"))
    with TaskServer(redis_url) as client:
        assert calls.read_text() == "asked\n"
        for _ in range(2):
            shown = client.get("/status/").json["version"]
            assert shown == f"{task_api.__version__}+g0123456789ab"
    assert calls.read_text() == "asked\n"


# --- Redis away --------------------------------------------------------------------------------


def test_while_redis_is_away_nothing_is_half_done_and_all_comes_back(
    own_redis: RedisServer, home: Path
) -> None:
    with TaskServer(own_redis.url) as client:
        first = wire_task()
        assert client.post("/v1/task/", wire_message(first)).status == 202
        assert client.get("/status/").json["state"]["tasks"]["pending"] == 1
        own_redis.kill()

        message = wire_message(wire_task(), wire_task())
        for answer in (
            client.post("/v1/task/", message),
            client.delete("/v1/task/"),
            client.delete(f"/v1/task/{first['task_id']}/"),
            client.get("/v1/task/"),
            client.delete("/status/"),
        ):
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.json["detail"].startswith("the registry cannot be used at the moment")
        status = client.get("/status/")
        assert status.status == 200
        assert status.json["ready"] is False
        assert "Redis cannot be used" in status.json["details"]["redis"]
        assert "the counts are those of" in status.json["details"]["state"]
        assert status.json["state"]["tasks"]["pending"] == 1
        ready = client.get("/readyz", authorization=None)
        assert ready.status == 503
        assert ready.json["checks"] == {"redis": "cannot be used; the server's log says more"}
        assert client.get("/healthz", authorization=None).status == 200
        # The key and the schema come first, with or without Redis.
        assert client.post("/v1/task/", message, authorization=None).status == 401
        assert client.post("/v1/task/", []).status == 422

        own_redis.start()
        assert client.post("/v1/task/", message).status == 202
        with TaskRegistry.from_url(own_redis.url) as registry:
            assert len(registry.page()) == 3
            assert registry.get(first["task_id"]).state is TaskState.PENDING


def test_a_redis_that_comes_back_empty_is_marked_again(own_redis: RedisServer, home: Path) -> None:
    with TaskServer(own_redis.url) as client:
        assert client.get("/v1/task/").status == 200
        own_redis.kill()
        assert client.get("/v1/task/").status == 503
        for entry in own_redis.folder.glob("appendonly*"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        own_redis.start()
        with own_redis.client as redis:
            assert client.post("/v1/task/", wire_message(wire_task())).status == 202
            assert redis.get("buttercup:schema") == b"1"


def test_a_server_may_start_before_its_redis(
    own_redis: RedisServer, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_redis.stop()
    with TaskServer(own_redis.url) as client:
        logging.getLogger("task_api").addHandler(caplog.handler)
        try:
            assert client.post("/v1/task/", wire_message(wire_task())).status == 503
            shown = client.get("/status/").json
            assert shown["ready"] is False
            assert shown["state"]["tasks"] == ZEROS
            own_redis.start()
            # Found by the request itself, and told by the thread that looks.
            assert client.post("/v1/task/", wire_message(wire_task())).status == 202
        finally:
            logging.getLogger("task_api").removeHandler(caplog.handler)


def test_a_redis_that_refuses_writes(own_redis: RedisServer, home: Path) -> None:
    with TaskServer(own_redis.url) as client, own_redis.client as redis:
        client.get("/v1/task/")
        redis.config_set("maxmemory", "1")
        answer = client.post("/v1/task/", wire_message(wire_task()))
        assert answer.status == 503
        assert "used memory" in answer.json["detail"]
        redis.config_set("maxmemory", "0")
        assert client.get("/v1/task/").json["tasks"] == []
        assert client.post("/v1/task/", wire_message(wire_task())).status == 202


def test_a_redis_that_hangs_delays_no_status(own_redis: RedisServer, home: Path) -> None:
    with TaskServer(own_redis.url) as client:
        client.get("/status/")
        own_redis.pause()
        try:
            shown = client.get("/status/").json
            assert client.get("/healthz", authorization=None).status == 200
            assert shown["ready"] is False
            assert shown["details"]["redis"] == "Redis does not answer within 2 s"
        finally:
            own_redis.resume()
        wait_for(lambda: "redis" not in client.get("/status/").json["details"], "Redis' return")


def test_posts_behind_a_frozen_redis_delay_nobody_else(own_redis: RedisServer, home: Path) -> None:
    """However many there are: the posts have all the connections that they may have."""
    server = TaskServer(own_redis.url)
    paths = ("/status/", "/healthz", "/readyz")
    with server as client, ThreadPoolExecutor(50) as senders, ThreadPoolExecutor(3) as others:
        assert client.post("/v1/task/", wire_message(wire_task())).status == 202
        turns = server.context.gate._turns
        own_redis.pause()
        try:
            posts = [
                senders.submit(client.post, "/v1/task/", wire_message(wire_task()))
                for _ in range(50)
            ]
            wait_for(turns.locked, "posts that wait for a turn")
            answers = [one.result() for one in [others.submit(client.get, path) for path in paths]]
            assert not any(post.done() for post in posts)
        finally:
            own_redis.resume()
        assert [answer.status for answer in answers] == [200, 200, 503]
        assert answers[0].json["details"]["redis"] == "Redis does not answer within 2 s"
        assert {post.result().status for post in posts} == {202}
        assert client.get("/status/").json["state"]["tasks"]["pending"] == 51


def test_a_registry_of_a_newer_version_is_left_alone(own_redis: RedisServer, home: Path) -> None:
    with own_redis.client as redis:
        redis.set("buttercup:schema", "99")
    with TaskServer(own_redis.url) as client:
        answer = client.post("/v1/task/", wire_message(wire_task()))
        assert answer.status == 503
        assert "Retry-After" in answer.headers
        assert "update buttercup-orchestrator" in answer.json["detail"]
        assert "schema version 99" in client.get("/status/").json["details"]["redis"]
    with own_redis.client as redis:
        assert redis.keys() == [b"buttercup:schema"] or redis.zcard("buttercup:index:pending") == 0


def test_a_redis_that_forgets_is_warned_about(home: Path, tmp_path: Path) -> None:
    from tests.support.server import ServerProcess

    with RedisServer() as redis, redis.client as connection:
        connection.config_set("appendonly", "no")
        with ServerProcess(tmp_path, "--port", "0", "--redis_url", redis.url) as server:
            text = server.said("appendonly yes")
            assert "WARNING task_api.gate: this Redis keeps no append-only file" in text
            assert f"recording tasks in {redis.url}" in text


def test_the_log_says_that_redis_is_missing(home: Path, tmp_path: Path) -> None:
    from tests.support.server import ServerProcess

    url = f"redis://:secret-password@127.0.0.1:{free_port()}"
    with ServerProcess(tmp_path, "--port", "0", "--redis_url", url) as server:
        text = server.said("answering 503 until Redis can be used")
        assert "secret-password" not in text
    assert os.fspath(home) in text
