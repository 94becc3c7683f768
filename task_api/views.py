"""How tasks are shown over HTTP: everything an operator asks for, no query of any URL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from task_api.records import Event, SourceReport, TaskRecord
from task_api.task import Reason, SourceType, TaskState, TaskType


class ReasonView(BaseModel):
    """Why a task ended, or was put back."""

    code: str
    text: str


class SourceView(BaseModel):
    """One tarball of a task."""

    type: SourceType
    sha256: str
    hosts: list[str] = Field(description="Hosts of its URLs.")
    state: str = Field(description="waiting, verified or unpacked.")
    bytes: int | None = Field(description="Size of the tarball, once it is known.")
    files: int | None = Field(description="Files unpacked, once it is known.")
    cache_hit: bool | None = Field(description="Whether the tarball was stored already.")


class TaskSummary(BaseModel):
    """A task in a list. Times are UNIX milliseconds."""

    task_id: str
    state: TaskState
    reason: ReasonView | None
    failures: int = Field(description="Attempts that ended for a reason that may pass.")
    type: TaskType
    project_name: str
    focus: str
    harnesses_included: bool
    deadline: int
    accepted_ms: int
    updated_ms: int
    path: str | None = Field(description="The prepared folder.")
    machine: str | None = Field(description="The host of the last attempt, which has the folder.")
    defect: str | None = Field(
        description="Why parts of the record cannot be read, and are not shown; else null."
    )


class TaskPage(BaseModel):
    """A page of tasks, newest first."""

    tasks: list[TaskSummary]
    next: str | None = Field(description="Send it as `after` for the next page; null on the last.")


class EventView(BaseModel):
    """One entry of a timeline; has further fields by its kind."""

    model_config = ConfigDict(extra="allow")

    time_ms: int
    kind: str


class TaskView(TaskSummary):
    """A task with all that is known of it."""

    message_id: str
    message_time: int
    metadata: dict[str, Any]
    waiting: bool = Field(description="Submitted by its consumer and not yet judged.")
    token: int = Field(description="Grows with every claim, cancel and expiry.")
    run_id: str | None = Field(description="The Dagster run that holds or last held the task.")
    not_before_ms: int | None = Field(description="From when on it may be tried again.")
    lease_until_ms: int | None = Field(description="Until when its worker is trusted to be alive.")
    sources: list[SourceView]
    events: list[EventView]


def summary(record: TaskRecord) -> dict[str, Any]:
    """A task as JSON, in the form of `TaskSummary`."""
    task = record.task
    return {
        "task_id": task.task_id,
        "state": str(record.state),
        "reason": _reason(record.reason),
        "failures": record.failures,
        "type": str(task.type),
        "project_name": task.project_name,
        "focus": task.focus,
        "harnesses_included": task.harnesses_included,
        "deadline": task.deadline_ms,
        "accepted_ms": record.accepted_ms,
        "updated_ms": record.updated_ms,
        "path": record.path,
        "machine": record.machine,
        "defect": record.defect,
    }


def details(record: TaskRecord, events: Sequence[Event]) -> dict[str, Any]:
    """A task with its sources and timeline as JSON, in the form of `TaskView`."""
    task = record.task
    return {
        **summary(record),
        "message_id": task.message_id,
        "message_time": task.message_time_ms,
        "metadata": dict(task.metadata),
        "waiting": record.waiting,
        "token": record.token,
        "run_id": record.run_id,
        "not_before_ms": record.not_before_ms,
        "lease_until_ms": record.lease_until_ms,
        "sources": [_source(source) for source in record.sources],
        # Time and kind last: no field of an event may take their place.
        "events": [
            {**event.fields, "time_ms": event.time_ms, "kind": event.kind} for event in events
        ],
    }


def _reason(reason: Reason | None) -> dict[str, str] | None:
    return None if reason is None else {"code": reason.code, "text": reason.text}


def _source(source: SourceReport) -> dict[str, Any]:
    return {
        "type": str(source.type),
        "sha256": source.sha256,
        "hosts": list(source.hosts),
        "state": source.state,
        "bytes": source.bytes,
        "files": source.files,
        "cache_hit": source.cache_hit,
    }
