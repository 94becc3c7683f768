"""Posting tasks: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from task_api.registry import TaskRegistry
from task_api.task import SourceType, TaskState
from tests.support.server import Client, nested, wire_message, wire_task
from tests.support.tasks import HOUR_MS, now_ms

URL = "https://files.example/new.tar.gz?signature=other"
DAY_MS = 86_400_000


def test_a_posted_task_is_stored_as_it_was_sent(client: Client, registry: TaskRegistry) -> None:
    task_id = str(uuid.uuid4())
    task = wire_task(task_id=task_id.upper(), harnesses_included=False)

    answer = client.post("/v1/task/", wire_message(task))

    assert answer.status == 202
    assert answer.json == f"accepted; GET /v1/task/{task_id}/ shows the task"
    record = registry.get(task_id)
    assert record.state is TaskState.PENDING
    assert record.task.deadline_ms == task["deadline"]
    assert record.task.metadata == task["metadata"]
    assert not record.task.harnesses_included
    source = record.task.source(SourceType.REPO)
    assert source is not None
    assert source.sha256 == "a" * 64
    assert source.urls == (task["source"][0]["url"],)


def test_a_delta_task_with_three_sources(client: Client, registry: TaskRegistry) -> None:
    sources = [
        {"sha256": digit * 64, "type": kind, "url": f"https://files.example/{kind}"}
        for digit, kind in zip("123", ("repo", "fuzz-tooling", "diff"), strict=True)
    ]
    task = wire_task(type="delta", source=sources)
    assert client.post("/v1/task/", wire_message(task)).status == 202
    assert len(registry.get(task["task_id"]).task.sources) == 3


def test_an_empty_message_is_accepted(client: Client) -> None:
    answer = client.post("/v1/task/", wire_message())
    assert (answer.status, answer.json) == (202, "accepted; the message holds no tasks")


def test_fields_that_are_not_known_are_ignored(client: Client) -> None:
    message = wire_message(wire_task(colour="red"), sender="somebody")
    assert client.post("/v1/task/", message).status == 202


def test_a_whole_number_may_be_written_with_an_exponent(
    client: Client, registry: TaskRegistry
) -> None:
    task = wire_task(metadata={"ratio": 1.0})
    body = json.dumps(wire_message({**task, "deadline": 0}, message_time=1.7e12))
    deadline = (now_ms() + HOUR_MS) // 1000
    raw = body.replace('"deadline": 0', f'"deadline": {deadline}e3').encode()
    assert client.post("/v1/task/", raw=raw).status == 202
    record = registry.get(task["task_id"])
    assert record.task.deadline_ms == deadline * 1000
    assert json.dumps(record.task.metadata) == '{"ratio": 1.0}'


def test_no_content_type_is_needed(client: Client) -> None:
    body = json.dumps(wire_message(wire_task())).encode()
    assert client.call("POST", "/v1/task/", raw=body).status == 202


@pytest.mark.parametrize("path", ["/v1/task", "/v1/task/"])
def test_the_last_slash_may_be_left_out(client: Client, path: str) -> None:
    task = wire_task()
    assert client.post(path, wire_message(task)).status == 202
    assert client.get(path).json["tasks"][0]["task_id"] == task["task_id"]
    one = f"/v1/task/{task['task_id']}" + path.removeprefix("/v1/task")
    assert client.get(one).json["state"] == "pending"
    assert client.delete(one).status == 200


# --- sent again --------------------------------------------------------------------------------


def test_the_same_message_gets_the_same_answer(client: Client, registry: TaskRegistry) -> None:
    message = wire_message(wire_task(), wire_task())
    first = client.post("/v1/task/", message)
    registry.cancel_all()
    again = client.post("/v1/task/", message)
    assert (again.status, again.text) == (first.status, first.text)
    assert [record.state for record in registry.page()] == [TaskState.CANCELED] * 2


def test_the_same_task_with_new_urls_heals_the_old_ones(
    client: Client, registry: TaskRegistry
) -> None:
    task = wire_task()
    client.post("/v1/task/", wire_message(task))
    source = {**task["source"][0], "url": URL, "sha256": "a" * 64}
    again = wire_task(**{**task, "source": [source], "metadata": {}})

    assert client.post("/v1/task/", wire_message(again)).status == 202

    stored = registry.get(task["task_id"]).task
    assert stored.sources[0].urls == (URL, task["source"][0]["url"])
    assert stored.metadata == task["metadata"]
    assert len(registry.page()) == 1


def test_a_duplicate_past_its_deadline_is_accepted(client: Client, registry: TaskRegistry) -> None:
    task = wire_task(deadline=now_ms() + 400)
    message = wire_message(task)
    first = client.post("/v1/task/", message)
    assert first.status == 202
    while now_ms() <= task["deadline"]:
        registry.wait_for_work(0.05)
    registry.reap()
    assert registry.get(task["task_id"]).state is TaskState.EXPIRED
    assert client.post("/v1/task/", message).text == first.text
    assert client.post("/v1/task/", wire_message(task)).status == 202
    assert registry.get(task["task_id"]).state is TaskState.EXPIRED


@pytest.mark.parametrize(
    "change",
    [
        {"focus": "other"},
        {"project_name": "other"},
        {"deadline": now_ms() + 2 * HOUR_MS},
        {"source": [{"sha256": "b" * 64, "type": "repo", "url": URL}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_task_under_the_same_id_is_refused(
    client: Client, registry: TaskRegistry, change: dict[str, Any]
) -> None:
    task = wire_task()
    client.post("/v1/task/", wire_message(task))
    before = registry.get(task["task_id"]).task
    for _ in range(2):
        answer = client.post("/v1/task/", wire_message({**task, **change}))
        assert answer.status == 409
        assert answer.problems == {
            "tasks[0].task_id": f"{task['task_id']} is taken by a task with another type, "
            "project_name, focus, deadline or digest; post a different task under a task_id of "
            "its own"
        }
    assert registry.get(task["task_id"]).task == before
    kinds = [event.kind for event in registry.events(task["task_id"])]
    assert kinds == ["accepted", "conflict"]


def test_of_several_tasks_the_valid_ones_are_accepted(
    client: Client, registry: TaskRegistry
) -> None:
    good, bad = wire_task(), wire_task(focus="/etc", deadline=now_ms() - DAY_MS)
    assert client.post("/v1/task/", wire_message(good, bad)).status == 202
    assert registry.get(good["task_id"]).state is TaskState.PENDING
    refused = client.get(f"/v1/task/{bad['task_id']}/").json
    assert refused["state"] == "errored"
    assert "focus: '/etc' is absolute" in refused["reason"]["text"]
    assert "is in the past" in refused["reason"]["text"]
    retried = client.post(f"/v1/task/{bad['task_id']}/retry/")
    assert retried.status == 409


def test_of_several_bad_tasks_every_problem_is_listed(
    client: Client, registry: TaskRegistry
) -> None:
    known = wire_task()
    client.post("/v1/task/", wire_message(known))
    answer = client.post(
        "/v1/task/",
        wire_message(wire_task(focus=""), {**known, "focus": "x"}, wire_task(project_name="a b")),
    )
    assert answer.status == 422
    assert list(answer.problems) == ["tasks[0].focus", "tasks[1].task_id", "tasks[2].project_name"]
    assert len(registry.page()) == 1


def test_a_cancel_that_overtakes_its_task_holds(client: Client, registry: TaskRegistry) -> None:
    task = wire_task()
    answer = client.delete(f"/v1/task/{task['task_id'].upper()}/")
    assert answer.status == 200
    assert answer.json == (
        f"task {task['task_id']} is not known; it will be cancelled if it comes within 7 days"
    )
    assert client.post("/v1/task/", wire_message(task)).status == 202
    assert registry.get(task["task_id"]).state is TaskState.CANCELED


# --- what is wrong, in words -------------------------------------------------------------------


def first_task(**changes: Any) -> Callable[[], Any]:
    return lambda: wire_message(wire_task(**changes))


def without(name: str) -> Callable[[], Any]:
    def made() -> Any:
        task = wire_task()
        del task[name]
        return wire_message(task)

    return made


def source(**changes: Any) -> Callable[[], Any]:
    return lambda: wire_message(wire_task(source=[{**wire_task()["source"][0], **changes}]))


A_UUID = "a UUID such as 123e4567-e89b-42d3-a456-426614174000"
MILLISECONDS = "UNIX milliseconds as a whole number, such as 1767225600000"

HEX = "a string of 64 hex digits"
FOCUS = "a string, the folder inside the repo tarball"
NAME = "a string, the project's name in OSS-Fuzz"
OBJECT = "a JSON object; {} if there is nothing in it"

SCHEMA = [
    (list, "body", "must be a JSON object"),
    (lambda: "text", "body", "must be a JSON object"),
    (dict, "message_id", f"is missing; send {A_UUID}"),
    (dict, "message_time", f"is missing; send {MILLISECONDS}"),
    (dict, "tasks", "is missing; send a list of tasks"),
    (lambda: wire_message(message_id="42"), "message_id", f"must be {A_UUID}"),
    (lambda: wire_message(message_time="1"), "message_time", f"must be {MILLISECONDS}"),
    (lambda: {**wire_message(), "tasks": {}}, "tasks", "must be a list of tasks"),
    (lambda: wire_message("task"), "tasks[0]", "must be a JSON object"),
    (without("deadline"), "tasks[0].deadline", f"is missing; send {MILLISECONDS}"),
    (first_task(deadline="soon"), "tasks[0].deadline", f"must be {MILLISECONDS}"),
    (first_task(deadline="1767225600000"), "tasks[0].deadline", f"must be {MILLISECONDS}"),
    (first_task(deadline=True), "tasks[0].deadline", f"must be {MILLISECONDS}"),
    (first_task(deadline=1.5), "tasks[0].deadline", f"must be {MILLISECONDS}"),
    (first_task(deadline=None), "tasks[0].deadline", f"must be {MILLISECONDS}"),
    (without("task_id"), "tasks[0].task_id", f"is missing; send {A_UUID}"),
    (first_task(task_id="../../etc"), "tasks[0].task_id", f"must be {A_UUID}"),
    (first_task(task_id=17), "tasks[0].task_id", f"must be {A_UUID}"),
    (first_task(type="partial"), "tasks[0].type", "must be 'full' or 'delta'"),
    (without("type"), "tasks[0].type", "is missing; send 'full' or 'delta'"),
    (without("focus"), "tasks[0].focus", f"is missing; send {FOCUS}"),
    (first_task(focus=3), "tasks[0].focus", f"must be {FOCUS}"),
    (without("project_name"), "tasks[0].project_name", f"is missing; send {NAME}"),
    (first_task(project_name=[]), "tasks[0].project_name", f"must be {NAME}"),
    (
        without("harnesses_included"),
        "tasks[0].harnesses_included",
        "is missing; send true or false",
    ),
    (
        first_task(harnesses_included="yes"),
        "tasks[0].harnesses_included",
        "must be true or false",
    ),
    (first_task(harnesses_included=1), "tasks[0].harnesses_included", "must be true or false"),
    (without("metadata"), "tasks[0].metadata", f"is missing; send {OBJECT}"),
    (first_task(metadata=None), "tasks[0].metadata", f"must be {OBJECT}"),
    (first_task(metadata=""), "tasks[0].metadata", f"must be {OBJECT}"),
    (first_task(metadata=[]), "tasks[0].metadata", f"must be {OBJECT}"),
    (without("source"), "tasks[0].source", "is missing; send a list of sources"),
    (first_task(source={}), "tasks[0].source", "must be a list of sources"),
    (first_task(source=["x"]), "tasks[0].source[0]", "must be a JSON object"),
    (
        source(type="binary"),
        "tasks[0].source[0].type",
        "must be 'repo', 'fuzz-tooling' or 'diff'",
    ),
    (
        first_task(source=[{}]),
        "tasks[0].source[0].type",
        "is missing; send 'repo', 'fuzz-tooling' or 'diff'",
    ),
    (first_task(source=[{}]), "tasks[0].source[0].sha256", f"is missing; send {HEX}"),
    (
        first_task(source=[{}]),
        "tasks[0].source[0].url",
        "is missing; send a string, the URL of the tarball",
    ),
    (source(sha256=7), "tasks[0].source[0].sha256", f"must be {HEX}"),
    (source(url=7), "tasks[0].source[0].url", "must be a string, the URL of the tarball"),
]


@pytest.mark.parametrize(
    ("message", "path", "text"), SCHEMA, ids=[f"{i}-{row[1]}" for i, row in enumerate(SCHEMA)]
)
def test_a_wrong_field_is_named(
    client: Client, registry: TaskRegistry, message: Callable[[], Any], path: str, text: str
) -> None:
    answer = client.post("/v1/task/", message())
    assert answer.status == 422
    assert answer.problems[path] == text
    assert registry.page() == []


SECONDS = (now_ms() + HOUR_MS) // 1000
MOMENT = f"{datetime.fromtimestamp(SECONDS, UTC):%Y-%m-%d %H:%M:%S}"
PAST = now_ms() - DAY_MS
FAR = now_ms() + 400 * DAY_MS
NOW = "<now>"
"""Stands for the time at which the server looked."""

TO_COME = "send a UNIX time in milliseconds that is still to come"
TOO_FAR = (
    "is more than 366 days ahead; send a nearer UNIX time, in milliseconds, not in micro- or "
    "nanoseconds"
)
FOLDER = "name a folder inside the repo tarball, such as 'curl' or 'libs/png'"
PROJECT = (
    "is not an OSS-Fuzz project name; use letters, digits, '_', '.', '+' and '-', "
    "at most 128 of them"
)
DIGEST = "is not a SHA-256 digest; send 64 hex digits, as sha256sum prints them"
HTTP = "send a URL that begins with http:// or https://"
SURROGATE = "\ud800"

VALUES = [
    (
        first_task(deadline=SECONDS),
        "deadline",
        (
            f"{SECONDS} looks like seconds ({MOMENT} UTC); the API counts milliseconds: "
            "multiply by 1000"
        ),
    ),
    (first_task(deadline=PAST), "deadline", f"{PAST} is in the past (now is {NOW}); {TO_COME}"),
    (first_task(deadline=0), "deadline", f"0 is in the past (now is {NOW}); {TO_COME}"),
    (first_task(deadline=-5), "deadline", f"-5 is in the past (now is {NOW}); {TO_COME}"),
    (first_task(deadline=FAR), "deadline", f"{FAR} {TOO_FAR}"),
    (first_task(deadline=10**40), "deadline", f"{10**40} {TOO_FAR}"),
    (first_task(focus=""), "focus", f"is empty; {FOLDER}"),
    (first_task(focus="/abs"), "focus", f"'/abs' is absolute; {FOLDER}"),
    (first_task(focus="../x"), "focus", f"'../x' has an empty, '.' or '..' part; {FOLDER}"),
    (first_task(focus="a//b"), "focus", f"'a//b' has an empty, '.' or '..' part; {FOLDER}"),
    (first_task(focus="a\nb"), "focus", rf"'a\nb' holds a control character; {FOLDER}"),
    (first_task(focus="a\\b"), "focus", r"'a\\b' holds a backslash; separate folders with '/'"),
    (
        first_task(focus=SURROGATE),
        "focus",
        rf"'\ud800' holds half of a surrogate pair; {FOLDER}",
    ),
    (
        first_task(focus="x" * 256),
        "focus",
        (
            f"'{'x' * 80}…' is too long: 255 bytes for each folder and 1024 in all are allowed; "
            f"{FOLDER}"
        ),
    ),
    (first_task(project_name="../x"), "project_name", f"'../x' {PROJECT}"),
    (first_task(project_name=""), "project_name", f"'' {PROJECT}"),
    (first_task(project_name="-rf"), "project_name", f"'-rf' {PROJECT}"),
    (first_task(source=[]), "source", "no source of type 'repo'; every task needs one"),
    (
        first_task(type="delta"),
        "source",
        "no source of type 'diff'; a task of type 'delta' needs one (or send type 'full')",
    ),
    (
        lambda: wire_message(wire_task(source=wire_task()["source"] * 2)),
        "source[1].type",
        "a second source of type 'repo'; send one of each type at most",
    ),
    (source(sha256="abc"), "source[0].sha256", f"'abc' {DIGEST}"),
    (source(sha256=""), "source[0].sha256", f"'' {DIGEST}"),
    (source(sha256="g" * 64), "source[0].sha256", f"'{'g' * 64}' {DIGEST}"),
    (source(url="ftp://x/y"), "source[0].url", f"has the scheme 'ftp'; {HTTP}"),
    (source(url="file:///etc/passwd"), "source[0].url", f"has the scheme 'file'; {HTTP}"),
    (source(url=""), "source[0].url", f"is empty; {HTTP}"),
    (
        source(url="http://h:x/"),
        "source[0].url",
        "cannot be read as a URL; check its host and port, and begin with http:// or https://",
    ),
    (
        source(url="https:///x"),
        "source[0].url",
        "names no host; send a URL such as http://host/archive.tar.gz",
    ),
    (
        source(url="https://x/a b"),
        "source[0].url",
        "holds a blank or a control character; escape it as %20 and the like",
    ),
    (
        source(url="https://x/" + "a" * 16_384),
        "source[0].url",
        "is longer than 16384 characters; send a shorter one",
    ),
]


@pytest.mark.parametrize(
    ("message", "field", "text"), VALUES, ids=[f"{i}-{row[1]}" for i, row in enumerate(VALUES)]
)
def test_a_wrong_value_is_explained(
    client: Client, registry: TaskRegistry, message: Callable[[], Any], field: str, text: str
) -> None:
    answer = client.post("/v1/task/", message())
    assert answer.status == 422
    ((path, shown),) = answer.problems.items()
    assert path == f"tasks[0].{field}"
    assert re.sub(r"(?<=now is )[0-9]{13}", NOW, shown) == text
    assert registry.page() == []


TOO_DEEP = "is nested more than 100 levels deep; send a flatter value"
BODIES = [
    (b"", "is empty; send a JSON object"),
    (b"{", "is not JSON: Expecting property name enclosed in double quotes at line 1, column 2"),
    (b"\xff\xfe", "is not UTF-8; send JSON in UTF-8"),
    (
        b'{"message_time": NaN}',
        "holds NaN, which is not JSON; send a number, or null for none",
    ),
    (
        b'{"message_time": -Infinity}',
        "holds -Infinity, which is not JSON; send a number, or null for none",
    ),
    (
        b'{"message_time": 1e999}',
        "holds a number that is too large for a double; send one below 1.8e308",
    ),
    (
        b'{"message_time": ' + b"9" * 5000 + b"}",
        "holds a number with too many digits; send a smaller one",
    ),
    (b"[" * 200_000, TOO_DEEP),
    (b"[" * 101 + b"]" * 101, TOO_DEEP),
]


@pytest.mark.parametrize(("body", "text"), BODIES, ids=[text[:20] for _, text in BODIES])
def test_a_body_that_is_not_json(client: Client, body: bytes, text: str) -> None:
    answer = client.post("/v1/task/", raw=body)
    assert answer.status == 422
    assert answer.problems == {"body": text}


# --- how deep, how long ------------------------------------------------------------------------


def test_metadata_as_deep_as_allowed_come_back(client: Client) -> None:
    metadata = {"deep": nested(99)}
    task = wire_task(metadata=metadata)
    assert client.post("/v1/task/", wire_message(task)).status == 202
    assert client.get(f"/v1/task/{task['task_id']}/").json["metadata"] == metadata
    assert client.get("/v1/task/").json["tasks"][0]["task_id"] == task["task_id"]


@pytest.mark.parametrize("levels", [100, 500, 900, 950])
def test_metadata_that_are_too_deep_are_refused(
    client: Client, registry: TaskRegistry, levels: int
) -> None:
    deep = wire_task(metadata={"deep": "HERE"})
    message = json.dumps(wire_message(wire_task(), deep, wire_task()))
    # As text: to write it as JSON would take about as much of the stack as there is.
    there = '{"inner": [' * (levels // 2) + "1" + "]}" * (levels // 2)
    answer = client.post("/v1/task/", raw=message.replace('"HERE"', there).encode())
    assert answer.status == 422
    assert answer.problems == {"tasks[1].metadata": TOO_DEEP}
    assert registry.page() == []


def test_what_is_too_deep_in_an_unknown_place_is_named_too(client: Client) -> None:
    deep = nested(110)
    message = wire_message(wire_task(colour=deep), "task", deep, [[]], **{"odd\x1b name": deep})
    assert client.post("/v1/task/", message).problems == {
        "tasks[0].colour": TOO_DEEP,
        "tasks[2].inner": TOO_DEEP,
        "odd\\x1b name": TOO_DEEP,
    }


def test_too_many_tasks_in_one_message(client: Client) -> None:
    answer = client.post(
        "/v1/task/", wire_message(*[wire_task(task_id=str(uuid.UUID(int=n))) for n in range(1001)])
    )
    assert answer.status == 422
    assert answer.problems == {"tasks": "holds 1001 tasks; send 1000 at most in one message"}


def test_too_many_sources_of_one_task(client: Client, registry: TaskRegistry) -> None:
    """Refused before any of them is looked at, so that a million of them costs no more."""
    many = wire_task(source=wire_task()["source"] * 17)
    answer = client.post("/v1/task/", wire_message(wire_task(), many, "task"))
    assert answer.status == 422
    assert answer.problems == {"tasks[1].source": "holds 17 sources; send one of each type at most"}
    assert registry.page() == []


def test_somewhat_too_many_sources_are_named_one_by_one(client: Client) -> None:
    answer = client.post("/v1/task/", wire_message(wire_task(source=wire_task()["source"] * 16)))
    assert answer.status == 422
    assert list(answer.problems) == [f"tasks[0].source[{n}].type" for n in range(1, 16)]


@pytest.mark.parametrize(("count", "more"), [(51, "1 more problem,"), (200, "150 more problems,")])
def test_a_long_list_of_problems_is_cut(client: Client, count: int, more: str) -> None:
    answer = client.post("/v1/task/", wire_message(*["x"] * count))
    assert answer.status == 422
    assert list(answer.problems) == [*(f"tasks[{n}]" for n in range(50)), "body"]
    assert answer.problems["body"] == f"has {more} which are not listed; mend these first"


def test_fifty_problems_are_all_listed(client: Client) -> None:
    answer = client.post("/v1/task/", wire_message(*["x"] * 50))
    assert list(answer.problems) == [f"tasks[{n}]" for n in range(50)]


def test_text_that_is_no_unicode_breaks_nothing(client: Client, registry: TaskRegistry) -> None:
    half = "\ud800"
    for changes in ({"focus": half}, {"project_name": half}):
        answer = client.post("/v1/task/", wire_message(wire_task(**changes)))
        assert answer.status == 422
    task = wire_task(metadata={"half": half})
    assert client.post("/v1/task/", wire_message(task)).status == 202
    assert client.get(f"/v1/task/{task['task_id']}/").json["metadata"] == {"half": half}


def test_no_answer_and_no_page_shows_a_query(client: Client) -> None:
    secret = "secret-signature"
    task = wire_task()
    bad = wire_task(source=[{**task["source"][0], "url": f"ftp://u:p@h/x?{secret}", "type": "?"}])
    odd = wire_task(source=[{**task["source"][0], "url": f"ftp://u:{secret}@h/x?{secret}"}])
    shown = [
        client.post("/v1/task/", wire_message(bad)).text,
        client.post("/v1/task/", wire_message(odd)).text,
        client.post("/v1/task/", wire_message(task, odd)).text,
        client.get("/v1/task/").text,
        client.get(f"/v1/task/{task['task_id']}/").text,
        client.get(f"/v1/task/{odd['task_id']}/").text,
    ]
    assert secret not in "".join(shown)
    assert '"hosts":["files.example"]' in shown[4]
