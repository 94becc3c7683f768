"""From messages of the wire to tasks of the domain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from task_api import wire
from task_api.records import Receipt, Submission
from task_api.task import Problem, Source, SourceType, Task, TaskType, problems_of

CONFLICT: Final = (
    "is taken by a task with another type, project_name, focus, deadline or digest; "
    "post a different task under a task_id of its own"
)


def fingerprint(body: Any) -> str:
    """Digest of a JSON value that does not depend on blanks or on the order of names."""
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def submissions_of(message: wire.Task, *, now_ms: int) -> list[Submission]:
    """The tasks of a message, each with what is wrong with its values.

    Args:
        message: the message, whose schema is in order.
        now_ms: the time to judge deadlines by, UNIX milliseconds.
    """
    found = []
    for detail in message.tasks:
        task = _task(detail, message)
        found.append(Submission(task, problems_of(task, now_ms=now_ms)))
    return found


def answer_to(submissions: Sequence[Submission]) -> str:
    """The text with which a message is accepted; the same for a message that is repeated."""
    if not submissions:
        return "accepted; the message holds no tasks"
    if len(submissions) == 1:
        return f"accepted; GET /v1/task/{submissions[0].task.task_id}/ shows the task"
    return f"accepted; GET /v1/task/ shows what became of each of the {len(submissions)} tasks"


def refusals(submissions: Sequence[Submission], receipt: Receipt) -> list[Problem]:
    """Everything that kept the tasks of a message from being accepted."""
    found = []
    for number, (submission, verdict) in enumerate(zip(submissions, receipt.verdicts, strict=True)):
        place = ("tasks", number)
        if verdict.kind == "conflict":
            found.append(Problem((*place, "task_id"), f"{verdict.task_id} {CONFLICT}"))
        elif verdict.kind == "refused":
            found += [Problem((*place, *one.path), one.text) for one in submission.problems]
    return found


def broadcast(detail: wire.SARIFBroadcastDetail) -> dict[str, Any]:
    """A SARIF broadcast in the form in which consumers get it."""
    return {
        "metadata": detail.metadata,
        "sarif": detail.sarif,
        "sarif_id": str(detail.sarif_id),
        "task_id": str(detail.task_id),
    }


def _task(detail: wire.TaskDetail, message: wire.Task) -> Task:
    return Task(
        task_id=str(detail.task_id),
        type=TaskType(detail.type),
        project_name=detail.project_name,
        focus=detail.focus,
        deadline_ms=detail.deadline,
        sources=tuple(
            Source(SourceType(source.type), source.sha256.lower(), (source.url,))
            for source in detail.source
        ),
        metadata=detail.metadata,
        harnesses_included=detail.harnesses_included,
        message_id=str(message.message_id),
        message_time_ms=message.message_time,
    )
