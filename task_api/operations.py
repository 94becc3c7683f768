"""What the registry's operations send to Redis, and how they read the replies.

An operation is a generator: it yields a request, is sent the reply, and returns its result. It
neither connects nor waits; `TaskRegistry` and `AsyncTaskRegistry` run the same operations, each
over its own kind of connection. An error of Redis is raised where the request was yielded.

`TaskRegistry` documents what each operation does, under the same name.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import redis

from task_api import keys
from task_api.records import (
    Event,
    Receipt,
    Status,
    Submission,
    TaskRecord,
    Verdict,
    decoded,
    event_of,
    problems_text,
    record_of,
    shortened,
)
from task_api.redis_client import lost
from task_api.task import (
    Outcome,
    Reason,
    RegistryUnavailable,
    SchemaMismatch,
    TaskState,
    TransitionRefused,
    UnknownTask,
    normalize_uuid,
)

BATCH: Final = 200
"""How many tasks one call of a script touches, so that it never holds Redis for long."""

Argument = str | bytes | float


@dataclass(frozen=True, slots=True)
class Script:
    """One script of `task_api/lua`, by its name; its reply is text, not bytes."""

    name: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """One command of Redis; its reply is as the client of Redis gives it."""

    arguments: tuple[Argument, ...]


_Result = TypeVar("_Result")

Operation = Generator[Script | Command, Any, _Result]


def script(name: str, *arguments: Argument) -> Operation[Any]:
    """One script; its reply is the result."""
    return (yield Script(name, arguments))


def move(move_: str, name: str, task_id: str, *arguments: Argument) -> Operation[list[str]]:
    """A script that moves one task; its reply is `ok …`, `unknown` or `refused …`.

    Args:
        move_: what the task cannot be if it is refused, such as `canceled`.
        name: the script.
        task_id: the task.
        arguments: of the script, after the id.

    Returns:
        What follows `ok`.

    Raises:
        UnknownTask, TransitionRefused: the move is not allowed.
    """
    verdict, *reply = yield from script(name, normalize_uuid(task_id), *arguments)
    if verdict == "ok":
        return cast(list[str], reply)
    if verdict == "unknown":
        raise UnknownTask(task_id)
    state, token, run_id, code, text, stale = reply
    raise TransitionRefused(
        task_id,
        move_,
        state=TaskState(state),
        token=int(token),
        run_id=run_id or None,
        reason=Reason(code, text) if code else None,
        stale=stale == "1",
    )


def initialize() -> Operation[None]:
    """See `TaskRegistry.initialize`."""
    found = int((yield from script("initialize")))
    if found > keys.SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the registry in this Redis has schema version {found}, this program knows "
            f"version {keys.SCHEMA_VERSION}; update buttercup-orchestrator"
        )


def persistence_warning() -> Operation[str | None]:
    """See `TaskRegistry.persistence_warning`."""
    try:
        found = yield Command(("CONFIG GET", "append*"))
    except redis.ResponseError:  # managed servers refuse CONFIG
        return None
    except RegistryUnavailable as error:
        if lost(error):
            raise
        return None
    settings = {decoded(name): decoded(value) for name, value in found.items()}
    if settings.get("appendonly") != "yes":
        return (
            "this Redis keeps no append-only file and forgets accepted tasks when it stops; "
            "set 'appendonly yes' and 'appendfsync always'"
        )
    if settings.get("appendfsync") != "always":
        return (
            "this Redis may forget the last second of accepted tasks when its machine stops; "
            "set 'appendfsync always'"
        )
    return None


def accept(
    message_id: str, fingerprint: str, submissions: Sequence[Submission], *, answer: str = ""
) -> Operation[Receipt]:
    """See `TaskRegistry.accept`; the arguments of the script are put together by this call."""
    arguments: list[Argument] = [message_id, fingerprint, answer, len(submissions)]
    for submission in submissions:
        arguments += _submitted(submission)
    task_ids = [submission.task.task_id for submission in submissions]
    return _accepted(Script("accept", tuple(arguments)), task_ids, answer)


def _submitted(submission: Submission) -> list[Argument]:
    task = submission.task
    spec = task.to_dict()
    del spec["sources"]
    arguments: list[Argument] = [
        task.task_id,
        task.identity,
        json.dumps(spec),
        task.deadline_ms,
        str(task.type),
        as_bytes(task.project_name),
        as_bytes(task.focus),
        json.dumps(task.metadata),
        as_bytes(problems_text(submission.problems)),
        len(task.sources),
    ]
    for source in task.sources:
        arguments += [
            str(source.type),
            source.sha256.encode("ascii", "backslashreplace"),
            "\n".join(json.dumps(url) for url in source.urls),
        ]
    return arguments


def _accepted(request: Script, task_ids: Sequence[str], answer: str) -> Operation[Receipt]:
    verdicts = yield request
    if verdicts[0] == "repeated":
        return Receipt((), verdicts[1], repeated=True)
    return Receipt(
        tuple(Verdict(task_id, kind) for task_id, kind in zip(task_ids, verdicts[1:], strict=True)),
        answer,
    )


def add_sarif(task_id: str, sarif_id: str, broadcast: Mapping[str, Any]) -> Operation[bool]:
    """See `TaskRegistry.add_sarif`; the report is turned into JSON by this call."""
    return _added(script("sarif", request_id(), task_id, sarif_id, json.dumps(broadcast)))


def _added(addition: Operation[Any]) -> Operation[bool]:
    return bool((yield from addition))


def cancel(task_id: str, *, reason: Reason | None = None) -> Operation[bool]:
    """See `TaskRegistry.cancel`."""
    why = reason or Reason("canceled", "cancelled on request")
    try:
        yield from move("canceled", "cancel", task_id, why.code, as_bytes(shortened(why.text)))
    except UnknownTask:
        return False
    return True


def cancel_all(*, reason: Reason | None = None) -> Operation[int]:
    """See `TaskRegistry.cancel_all`."""
    why = reason or Reason("canceled", "cancelled on request, with all others")
    last = int((yield Command(("GET", keys.SEQUENCE))) or 0)
    text = as_bytes(shortened(why.text))
    canceled = 0
    while count := int(
        (yield from script("cancel_all", request_id(), last, BATCH, why.code, text))
    ):
        canceled += count
    return canceled


def retry(task_id: str) -> Operation[None]:
    """See `TaskRegistry.retry`."""
    yield from move("retried", "retry", task_id, request_id())


def report_outcome(task_id: str, outcome: Outcome, reason: str = "") -> Operation[None]:
    """See `TaskRegistry.report_outcome`."""
    yield from move(
        "given an outcome", "outcome", task_id, str(outcome), as_bytes(shortened(reason))
    )


def get(task_id: str) -> Operation[TaskRecord]:
    """See `TaskRegistry.get`."""
    fields = yield from _fields_of(task_id)
    if not fields:
        raise UnknownTask(task_id)
    return record_of(task_id, fields)


def _fields_of(task_id: str) -> Operation[dict[str, str]]:
    fields = yield Command(("HGETALL", keys.TASK + task_id))
    return {decoded(name): decoded(value) for name, value in fields.items()}


def page(
    *, state: TaskState | None = None, limit: int = 50, after: str | None = None
) -> Operation[list[TaskRecord]]:
    """See `TaskRegistry.page`."""
    highest = "+inf"
    if after is not None:
        sequence = yield Command(("HGET", keys.TASK + after, "sequence"))
        if sequence is None:
            raise UnknownTask(after)
        highest = f"({int(sequence)}"
    states = list(TaskState) if state is None else [state]
    records: list[TaskRecord] = []
    while (wanted := min(BATCH, limit - len(records))) > 0:
        rows = yield from script("page", highest, wanted, *states)
        for task_id, _, packed in rows:
            fields = _unpacked(packed)
            if fields is None:
                fields = yield from _fields_of(task_id)
            with suppress(KeyError, ValueError):
                records.append(record_of(task_id, fields))
        if len(rows) < wanted:
            break
        highest = f"({rows[-1][1]}"
    return records


def _unpacked(packed: str) -> dict[str, str] | None:
    """The fields of a row of a page; None where some of them are no text, which nobody writes."""
    try:
        flat = json.loads(packed)
    except ValueError:
        return None
    return dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}


def events(task_id: str, *, limit: int = 1000) -> Operation[list[Event]]:
    """See `TaskRegistry.events`."""
    entries = yield Command(("XREVRANGE", keys.EVENTS + task_id, "+", "-", "COUNT", limit))
    return [event_of(entry, task_id) for entry in reversed(entries)]


def status() -> Operation[Status]:
    """See `TaskRegistry.status`."""
    sizes, counters, numbers, sensor = yield from script("status", *TaskState)
    counted = dict(zip(counters[::2], counters[1::2], strict=True))
    waiting, due, workers, occupied, lingering, now_ms = (int(number) for number in numbers)
    seen = dict(zip(sensor[::2], sensor[1::2], strict=True))
    return Status(
        states={state: int(size) for state, size in zip(TaskState, sizes, strict=True)},
        succeeded=int(counted.get("succeeded", 0)),
        failed=int(counted.get("failed", 0)),
        errored=int(counted.get("errored", 0)),
        canceled=int(counted.get("canceled", 0)),
        waiting=waiting,
        due=due,
        since_ms=int(counted.get("since", now_ms)),
        now_ms=now_ms,
        sensor_seen_ms=int(seen["seen_ms"]) if "seen_ms" in seen else None,
        needs_workers=seen.get("needs_workers") == "1",
        workers=workers,
        occupied=occupied,
        lingering=lingering,
    )


def reset_counters() -> Operation[None]:
    """See `TaskRegistry.reset_counters`."""
    yield from script("reset_counters")


def request_id() -> str:
    """Names one call; a script that gets it a second time answers what it answered at first."""
    return uuid.uuid4().hex


def as_bytes(text: str) -> bytes:
    """Text of a sender in the form in which it is kept, also what is no valid Unicode."""
    return text.encode("utf-8", "backslashreplace")
