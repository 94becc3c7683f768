"""Reading tasks, cancelling, retrying, outcomes, SARIF, and the answers around them."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from task_api.registry import TaskRegistry
from task_api.task import Reason, SourceType, TaskState
from tests.support.server import Client, TaskServer, nested, wire_message, wire_task
from tests.support.tasks import make_task, now_ms, post

A_UUID = "a UUID such as 123e4567-e89b-42d3-a456-426614174000"
UNKNOWN = "7d2f0a52-9f6f-4a35-8a86-1f2a0f1e7d11"


def test_a_task_is_shown_with_everything_known(client: Client, registry: TaskRegistry) -> None:
    task = wire_task()
    client.post("/v1/task/", wire_message(task))
    task_id = task["task_id"]
    (claim,) = registry.claim(1)
    attempt = registry.start(task_id, run_id="run-1", machine="host-1", token=claim.token)
    registry.report_source(
        task_id, attempt.token, SourceType.REPO, "verified", sha256="a" * 64, bytes_=123
    )
    registry.report_source(
        task_id, attempt.token, SourceType.REPO, "unpacked", sha256="a" * 64, bytes_=123, files=7
    )
    registry.ready(task_id, attempt.token, path="/data/tasks/x", machine="host-1")

    shown = client.get(f"/v1/task/{task_id.upper()}/").json

    assert shown["state"] == "ready"
    assert shown["reason"] is None
    assert shown["deadline"] == task["deadline"]
    assert shown["metadata"] == task["metadata"]
    assert (shown["path"], shown["machine"], shown["run_id"]) == (
        "/data/tasks/x",
        "host-1",
        "run-1",
    )
    assert shown["harnesses_included"] is True
    assert shown["failures"] == 0
    assert shown["token"] == attempt.token
    (source,) = shown["sources"]
    assert source == {
        "type": "repo",
        "sha256": "a" * 64,
        "hosts": ["files.example"],
        "state": "unpacked",
        "bytes": 123,
        "files": 7,
        "cache_hit": False,
    }
    kinds = [event["kind"] for event in shown["events"]]
    assert kinds == ["accepted", "claimed", "started", "verified", "unpacked", "ready"]
    times = [event["time_ms"] for event in shown["events"]]
    assert times == sorted(times)
    assert abs(times[0] - now_ms()) < 60_000


def test_pages_of_tasks(client: Client, registry: TaskRegistry) -> None:
    tasks = [make_task() for _ in range(5)]
    for task in tasks:
        post(registry, task)
    registry.cancel(tasks[2].task_id)
    newest_first = [task.task_id for task in reversed(tasks)]

    pages = []
    after = ""
    while True:
        page = client.get(f"/v1/task/?limit=2{after}").json
        pages.append([row["task_id"] for row in page["tasks"]])
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert pages == [newest_first[:2], newest_first[2:4], newest_first[4:]]

    canceled = client.get("/v1/task?state=canceled").json
    assert [row["task_id"] for row in canceled["tasks"]] == [tasks[2].task_id]
    assert canceled["tasks"][0]["reason"] == {"code": "canceled", "text": "cancelled on request"}
    assert client.get("/v1/task/?state=ready").json == {"tasks": [], "next": None}


@pytest.mark.parametrize(
    ("query", "path", "text"),
    [
        ("limit=0", "limit", "must be a whole number from 1 to 500"),
        ("limit=501", "limit", "must be a whole number from 1 to 500"),
        ("limit=x", "limit", "must be a whole number from 1 to 500"),
        (
            "state=lost",
            "state",
            (
                "must be 'pending', 'scheduled', 'downloading', 'ready', 'succeeded', 'failed', "
                "'errored', 'canceled' or 'expired'"
            ),
        ),
        (
            "after=x",
            "after",
            f"must be the id of the last task of the page before: {A_UUID}",
        ),
        (
            f"after={UNKNOWN}",
            "after",
            f"no task {UNKNOWN} is recorded; begin with the first page",
        ),
    ],
)
def test_a_wrong_query_is_explained(client: Client, query: str, path: str, text: str) -> None:
    answer = client.get(f"/v1/task/?{query}")
    assert answer.status == 422
    assert answer.problems == {path: text}


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_an_id_that_is_no_uuid(client: Client, method: str) -> None:
    answer = client.call(method, "/v1/task/not-a-uuid/")
    assert answer.status == 422
    assert answer.problems == {"task_id": f"must be {A_UUID}"}


def test_unknown_tasks(client: Client) -> None:
    for answer in (
        client.get(f"/v1/task/{UNKNOWN}/"),
        client.post(f"/v1/task/{UNKNOWN}/retry/"),
        client.post(f"/v1/task/{UNKNOWN}/outcome/", {"state": "failed"}),
    ):
        assert answer.status == 404
        assert answer.json == {"detail": f"no task {UNKNOWN} is recorded"}


def test_paths_and_methods_that_are_not_there(client: Client) -> None:
    nowhere = client.get("/v1/nothing/")
    assert nowhere.status == 404
    assert nowhere.json == {
        "detail": "there is nothing at this path; GET /openapi.json lists what there is"
    }
    put = client.call("PUT", "/v1/task/")
    assert put.status == 405
    assert put.json == {
        "detail": "this path does not take this method; GET /openapi.json lists those that it takes"
    }


# --- cancel ------------------------------------------------------------------------------------


def test_cancelling_is_idempotent_whatever_the_state(
    client: Client, registry: TaskRegistry
) -> None:
    live, ended = make_task(), make_task()
    post(registry, live, ended)
    errored = {claim.task_id: claim.token for claim in registry.claim(2)}[ended.task_id]
    registry.fail(ended.task_id, errored, Reason("sha256_mismatch", "wrong digest"))
    for _ in range(2):
        answer = client.delete(f"/v1/task/{live.task_id}/")
        assert (answer.status, answer.json) == (200, f"task {live.task_id} is cancelled")
        answer = client.delete(f"/v1/task/{ended.task_id}/")
        assert answer.status == 200
        assert answer.json == f"task {ended.task_id} has ended already: it is errored"
        assert client.delete(f"/v1/task/{UNKNOWN}/").status == 200
    assert registry.get(live.task_id).state is TaskState.CANCELED
    assert registry.get(ended.task_id).state is TaskState.ERRORED


def test_cancel_all(client: Client, registry: TaskRegistry) -> None:
    post(registry, *[make_task() for _ in range(3)])
    registry.claim(1)
    assert client.delete("/v1/task/").json == "cancelled 3 tasks"
    assert client.delete("/v1/task").json == "cancelled 0 tasks"
    assert {record.state for record in registry.page()} == {TaskState.CANCELED}


# --- retry and outcomes ------------------------------------------------------------------------


def ready_task(registry: TaskRegistry) -> str:
    task = make_task()
    post(registry, task)
    (claim,) = registry.claim(1)
    attempt = registry.start(task.task_id, run_id="r", machine="m", token=claim.token)
    registry.ready(task.task_id, attempt.token, path="/p", machine="m")
    return task.task_id


def test_retry(client: Client, registry: TaskRegistry) -> None:
    task = make_task()
    post(registry, task)
    (claim,) = registry.claim(1)
    registry.fail(task.task_id, claim.token, Reason("not_found", "404"))
    answer = client.post(f"/v1/task/{task.task_id}/retry/")
    assert (answer.status, answer.json) == (200, f"task {task.task_id} is pending again")
    again = client.post(f"/v1/task/{task.task_id}/retry")
    assert again.status == 409
    assert again.json == {"detail": f"task {task.task_id} cannot be retried: it is pending"}


@pytest.mark.parametrize("state", ["succeeded", "failed", "errored"])
def test_outcomes(client: Client, registry: TaskRegistry, state: str) -> None:
    task_id = ready_task(registry)
    path = f"/v1/task/{task_id}/outcome/"
    assert client.post(path, {"state": "waiting"}).status == 200
    assert client.get("/status/").json["state"]["tasks"]["waiting"] == 1
    for _ in range(2):
        answer = client.post(path, {"state": state, "reason": "judged"})
        assert (answer.status, answer.json) == (200, f"task {task_id} is recorded as {state}")
    shown = client.get(f"/v1/task/{task_id}/").json
    assert shown["state"] == state
    assert shown["reason"]["text"] == "judged"
    counts = client.get("/status/").json["state"]["tasks"]
    assert (counts[state], counts["waiting"], counts["processing"]) == (1, 0, 0)
    other = "failed" if state == "succeeded" else "succeeded"
    refused = client.post(path, {"state": other})
    assert refused.status == 409
    assert f"it is {state}" in refused.json["detail"]


@pytest.mark.parametrize(
    ("body", "path", "text"),
    [
        ({}, "state", "is missing; send 'waiting', 'succeeded', 'failed' or 'errored'"),
        ({"state": "ready"}, "state", "must be 'waiting', 'succeeded', 'failed' or 'errored'"),
        (
            {"state": "failed", "reason": "x" * 2001},
            "reason",
            "must be a string of at most 2000 characters",
        ),
        ([], "body", "must be a JSON object"),
    ],
)
def test_a_wrong_outcome_is_explained(client: Client, body: object, path: str, text: str) -> None:
    answer = client.post(f"/v1/task/{UNKNOWN}/outcome/", body)
    assert answer.status == 422
    assert answer.problems == {path: text}


# --- SARIF -------------------------------------------------------------------------------------


def sarif(task_id: str) -> dict[str, object]:
    return {
        "metadata": {"a": {"b": 1}},
        "sarif": {"version": "2.1.0", "runs": []},
        "sarif_id": str(uuid.uuid4()),
        "task_id": task_id.upper(),
    }


def test_sarif_reports_are_kept_once(client: Client, registry: TaskRegistry) -> None:
    one, two = sarif(UNKNOWN), sarif(UNKNOWN)
    message = {"message_id": str(uuid.uuid4()), "message_time": 1, "broadcasts": [one, two, one]}
    answer = client.post("/v1/sarif/", message)
    assert (answer.status, answer.json) == (200, "accepted 2 new of 3 reports")
    assert client.post("/v1/sarif", message).json == "accepted 0 new of 3 reports"
    assert registry.sarifs(UNKNOWN) == {
        report["sarif_id"]: {**report, "task_id": UNKNOWN} for report in (one, two)
    }


@pytest.mark.parametrize(
    ("change", "path", "text"),
    [
        ({"sarif": "x"}, "broadcasts[0].sarif", "must be a SARIF report, a JSON object"),
        (
            {"metadata": 1},
            "broadcasts[0].metadata",
            "must be a JSON object; {} if there is nothing in it",
        ),
        ({"sarif_id": "x"}, "broadcasts[0].sarif_id", f"must be {A_UUID}"),
        ({"task_id": None}, "broadcasts[0].task_id", f"must be {A_UUID}"),
        (
            {"sarif": {"runs": nested(100)}},
            "broadcasts[0].sarif",
            "is nested more than 100 levels deep; send a flatter value",
        ),
        (
            {"metadata": {"deep": nested(900)}},
            "broadcasts[0].metadata",
            "is nested more than 100 levels deep; send a flatter value",
        ),
    ],
)
def test_a_wrong_sarif_is_explained(
    client: Client, change: dict[str, object], path: str, text: str
) -> None:
    message = {
        "message_id": str(uuid.uuid4()),
        "message_time": 1,
        "broadcasts": [{**sarif(UNKNOWN), **change}],
    }
    answer = client.post("/v1/sarif/", message)
    assert answer.status == 422
    assert answer.problems == {path: text}


@pytest.mark.parametrize(
    ("message", "path", "text"),
    [
        ({}, "broadcasts", "is missing; send a list of SARIF broadcasts"),
        ({"broadcasts": {}}, "broadcasts", "must be a list of SARIF broadcasts"),
        ({"broadcasts": [1]}, "broadcasts[0]", "must be a JSON object"),
        ({"broadcasts": [{}]}, "broadcasts[0].sarif_id", f"is missing; send {A_UUID}"),
        (
            {"broadcasts": [{}]},
            "broadcasts[0].sarif",
            "is missing; send a SARIF report, a JSON object",
        ),
    ],
)
def test_a_wrong_sarif_message_is_explained(
    client: Client, message: dict[str, object], path: str, text: str
) -> None:
    answer = client.post("/v1/sarif/", message)
    assert answer.status == 422
    assert answer.problems[path] == text


def test_too_many_reports_in_one_message(client: Client, registry: TaskRegistry) -> None:
    message = {
        "message_id": str(uuid.uuid4()),
        "message_time": 1,
        "broadcasts": [sarif(UNKNOWN)] * 1001,
    }
    answer = client.post("/v1/sarif/", message)
    assert answer.status == 422
    assert answer.problems == {
        "broadcasts": "holds 1001 broadcasts; send 1000 at most in one message"
    }
    assert registry.sarifs(UNKNOWN) == {}


# --- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/task/", "/v1/sarif/", f"/v1/task/{UNKNOWN}/outcome/"])
def test_a_body_that_is_too_large(redis_url: str, home: Path, path: str) -> None:
    with TaskServer(redis_url, max_body_bytes=2000) as client:
        answer = client.post(path, raw=b" " * 2001)
        assert answer.status == 413
        assert answer.json["detail"].startswith("the body is larger than 2000 bytes; send fewer")
        chunked = client._pool.request(
            "POST",
            client.url + path,
            body=iter([b" " * 1500] * 2),
            headers={"Authorization": client.authorization},
        )
        assert chunked.status == 413
        assert client.post(path, raw=b" " * 2000).status == 422
