"""The load on a task server, and a registry that was filled to be measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.system import posts
from benchmarks.system.figures import percentile
from benchmarks.system.filling import fill, measure_reading, measure_status
from benchmarks.system.posts import measure_posts
from task_api.auth import Credentials
from task_api.registry import TaskRegistry
from task_api.task import TaskState
from tests.support.redis_server import RedisServer, free_port
from tests.support.server import KEY_ID, TOKEN, TOKEN_HASH, ServerProcess, TaskServer


@pytest.fixture
def server(redis_url: str, registry: TaskRegistry) -> TaskServer:
    return TaskServer(redis_url)


def test_every_post_is_a_task_of_its_own(server: TaskServer, registry: TaskRegistry) -> None:
    with server as client:
        figures = measure_posts(client.url, KEY_ID, TOKEN, connections=4, seconds=0.3)
        before = registry.status().states[TaskState.PENDING]
        again = measure_posts(
            client.url, KEY_ID, TOKEN, connections=2, seconds=0.1, warm_up_seconds=0
        )
    assert (figures.failed, again.failed) == (0, 0)
    assert 0 < figures.accepted < before
    assert registry.status().states[TaskState.PENDING] == before + again.accepted
    assert 0 < figures.p50_ms <= figures.p99_ms <= figures.max_ms
    assert figures.per_second == pytest.approx(figures.accepted / figures.seconds)
    (record,) = registry.page(limit=1)
    assert [str(source.type) for source in record.task.sources] == ["repo", "fuzz-tooling"]


def test_four_hundred_posts_at_the_same_moment(server: TaskServer, registry: TaskRegistry) -> None:
    """Each connection posts once, before any answer can have come."""
    with server as client:
        figures = measure_posts(
            client.url, KEY_ID, TOKEN, connections=400, seconds=0, warm_up_seconds=0
        )
    assert (figures.accepted, figures.failed) == (400, 0)
    assert registry.status().states[TaskState.PENDING] == 400


def test_what_is_not_accepted_counts_as_failed(server: TaskServer) -> None:
    with server as client:
        figures = measure_posts(
            client.url, KEY_ID, "wrong", connections=3, seconds=0, warm_up_seconds=0
        )
    assert (figures.accepted, figures.failed) == (0, 3)
    assert figures.failures == {"status 401": 3}


def test_a_server_that_goes_away_ends_the_measurement(
    tmp_path: Path, redis_url: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--redis_url", redis_url, "--port=0")
    key = {
        "BUTTERCUP_TASK_SERVER_API_KEY_ID": KEY_ID,
        "BUTTERCUP_TASK_SERVER_API_TOKEN_HASH": TOKEN_HASH,
    }
    make = posts._message
    with ServerProcess(tmp_path, *arguments, **key) as server:
        url = server.url
        made: list[bytes] = []

        def killed_at_the_tenth() -> bytes:
            made.append(make())
            if len(made) == 10:
                server.process.kill()
                server.process.wait()
            return made[-1]

        monkeypatch.setattr(posts, "_message", killed_at_the_tenth)
        with pytest.raises(OSError, match="refused"):
            measure_posts(url, KEY_ID, TOKEN, connections=2, seconds=60, warm_up_seconds=0)


def test_the_command_prints_json_and_takes_the_key_from_the_file(
    server: TaskServer, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    file.write_text(Credentials(KEY_ID, TOKEN, TOKEN_HASH).lines())
    file.chmod(0o600)
    with server as client:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.system.posts", client.url),
                *("--credentials", str(file), "--seconds", "0.2", "--connections", "2"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
    figures = json.loads(done.stdout)
    assert figures["accepted"] > 0
    assert figures["failures"] == {}


def test_percentiles() -> None:
    assert percentile([3, 1, 2], 50) == 2
    assert percentile([3, 1, 2], 99) == 3
    assert percentile([5], 1) == 5
    assert percentile(range(1, 101), 99) == 99


def test_a_registry_is_filled_with_tasks_in_every_state_of_the_mix(
    server: TaskServer, registry: TaskRegistry, redis_url: str
) -> None:
    filled = fill(redis_url, 200)
    assert filled == {
        TaskState.PENDING: 100,
        TaskState.SCHEDULED: 2,
        TaskState.DOWNLOADING: 2,
        TaskState.READY: 36,
        TaskState.SUCCEEDED: 20,
        TaskState.ERRORED: 20,
        TaskState.CANCELED: 20,
    }
    status = registry.status()
    assert {state: size for state, size in status.states.items() if size} == filled
    assert (status.succeeded, status.errored, status.canceled) == (20, 20, 20)
    with server as client:
        assert measure_status(client.url, KEY_ID, TOKEN, requests=5) > 0
        page = "/v1/task/?limit=50"
        assert measure_reading(client.url, page, KEY_ID, TOKEN, requests=5) > 0
        with pytest.raises(RuntimeError, match="GET /v1/task/ answers 401"):
            measure_reading(client.url, page, KEY_ID, "wrong", requests=5)


def test_a_server_that_is_not_there(own_redis: RedisServer) -> None:
    with pytest.raises(OSError, match="refused"):
        measure_posts(f"http://127.0.0.1:{free_port()}", KEY_ID, TOKEN, seconds=0)
