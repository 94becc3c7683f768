"""What the registry takes and gives back: plain values, and how they are read from Redis."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from task_api.task import Problem, Reason, Source, SourceType, Task, TaskState, TaskType

MAX_REASON_CHARACTERS: Final = 2_000
"""Length of a reason that is kept; what goes wrong may be told at any length."""

MAX_REASON_PROBLEMS: Final = 20
"""So many problems of a refused task are kept; its sender mends the first ones first."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A posted task with what is wrong with its values (empty for a valid one)."""

    task: Task
    problems: Sequence[Problem] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one submission.

    Attributes:
        task_id: the task.
        kind: `accepted`; `duplicate` (the same identity is recorded already); `canceled` (its
            cancel came before it); `conflict` (the id is taken by another identity); `refused`
            (its values are wrong).
    """

    task_id: str
    kind: str

    @property
    def accepted(self) -> bool:
        """Whether the sender may consider this task delivered."""
        return self.kind in {"accepted", "duplicate", "canceled"}


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a message.

    Attributes:
        verdicts: one for each submission, in order; empty for a repeated message.
        answer: the text to answer with; of a repeated message the first answer.
        repeated: whether the same message was answered before.
    """

    verdicts: tuple[Verdict, ...]
    answer: str
    repeated: bool = False

    @property
    def accepted(self) -> bool:
        """Whether to answer with success: something was accepted, or nothing was asked."""
        return self.repeated or not self.verdicts or any(v.accepted for v in self.verdicts)


@dataclass(frozen=True, slots=True)
class Claim:
    """A pending task that was taken for a worker."""

    task_id: str
    token: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """A task that a run is preparing, and the token that proves it."""

    task: Task
    token: int
    failures: int


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What is known of one source of a task.

    Attributes:
        type: its role.
        sha256: digest of the archive.
        hosts: hosts of its URLs.
        state: `waiting`, `verified`, or `unpacked`.
        bytes: size of the archive, or None before it is known.
        files: number of files unpacked, or None.
        cache_hit: whether the archive was stored already, or None.
    """

    type: SourceType
    sha256: str
    hosts: tuple[str, ...]
    state: str = "waiting"
    bytes: int | None = None
    files: int | None = None
    cache_hit: bool | None = None


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """A task and where it stands. Times are UNIX milliseconds by Redis's clock.

    Attributes:
        task: the task, as far as it can be read.
        state: where it stands.
        token: fencing token.
        failures: how often an attempt failed for a reason that may pass.
        sequence: its place in every listing.
        accepted_ms: when it was recorded.
        updated_ms: when it last changed its state.
        reason: why it is in this state, or what its last attempt failed of.
        not_before_ms: from when on a pending task may be claimed after a failure.
        lease_until_ms: until when its claim or attempt holds.
        run_id: the run that holds or last held it.
        machine: where its last attempt ran; of an announced task, where its folder is.
        path: the folder that was announced; stays when the task is prepared again.
        waiting: whether its consumer has submitted something that is not yet judged.
        refused: whether its values were wrong when it was posted.
        sources: what is known of its sources.
        defect: why its record cannot be read whole, for people; then the task is without metadata
            and sources, and cannot be prepared.
    """

    task: Task
    state: TaskState
    token: int
    failures: int
    sequence: int
    accepted_ms: int
    updated_ms: int
    reason: Reason | None = None
    not_before_ms: int | None = None
    lease_until_ms: int | None = None
    run_id: str | None = None
    machine: str | None = None
    path: str | None = None
    waiting: bool = False
    refused: bool = False
    sources: tuple[SourceReport, ...] = ()
    defect: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of a timeline.

    Attributes:
        id: its stream id.
        time_ms: UNIX milliseconds by Redis's clock.
        task_id: the task.
        kind: accepted, duplicate, conflict, claimed, started, verified, unpacked, retry, ready,
            waiting, succeeded, failed, errored, canceled, expired, sarif, retired.
        fields: token, run_id, code, text and the like; strings.
    """

    id: str
    time_ms: int
    task_id: str
    kind: str
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """Sizes of the indexes, counters and heartbeats, at a cost that no registry size changes.

    Attributes:
        states: number of tasks in each state.
        succeeded, failed, errored, canceled: counted since `since_ms`.
        waiting: submitted and not yet judged.
        due: pending, and may be claimed now.
        since_ms: when the counters were last set to 0.
        now_ms: Redis's clock.
        sensor_seen_ms: when the intake sensor was last seen, or None.
        needs_workers: whether that sensor's launcher needs warm workers.
        workers: slots of live warm workers.
        occupied: those of them that execute a run or linger.
        lingering: those of them that wait for another task after a run.
    """

    states: Mapping[TaskState, int]
    succeeded: int
    failed: int
    errored: int
    canceled: int
    waiting: int
    due: int
    since_ms: int
    now_ms: int
    sensor_seen_ms: int | None
    needs_workers: bool
    workers: int
    occupied: int
    lingering: int


@dataclass(frozen=True, slots=True)
class Reaped:
    """What the reaper moved."""

    expired: tuple[str, ...] = ()
    returned: tuple[str, ...] = ()
    errored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unmaterialized:
    """A ready task whose materialization is not confirmed."""

    task_id: str
    ready_ms: int


def problems_text(problems: Sequence[Problem]) -> str:
    """The first problems of a task, one a line, for a reason; it says how many are left out."""
    lines: list[str] = []
    room = MAX_REASON_CHARACTERS
    for problem in problems[:MAX_REASON_PROBLEMS]:
        line = shortened(str(problem), max(0, room))
        if lines and len(line) < len(str(problem)):
            break
        lines.append(line)
        room -= len(line) + 1
    if more := len(problems) - len(lines):
        lines.append(f"… and {more} more")
    return "\n".join(lines)


def shortened(text: str, length: int = MAX_REASON_CHARACTERS) -> str:
    """The text, cut to so many characters, of which the last shows the cut."""
    return text if len(text) <= length else text[: max(0, length - 1)] + "…"


def decoded(value: Any) -> Any:
    """A reply of Redis with its byte strings as text, whatever bytes they hold."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return value


def event_of(entry: tuple[bytes, Mapping[bytes, bytes]], task_id: str | None = None) -> Event:
    """An entry of a timeline, or (without a task_id) of the stream of all events."""
    identifier, raw = entry
    fields = {name.decode(): decoded(value) for name, value in raw.items()}
    event_id = identifier.decode()
    return Event(
        id=event_id,
        time_ms=int(event_id.partition("-")[0]),
        task_id=fields.pop("task_id", None) or task_id or "",
        kind=fields.pop("kind", ""),
        fields=fields,
    )


def record_of(task_id: str, fields: Mapping[str, str]) -> TaskRecord:
    """A task from the fields of its hash (written by `lua/accept.lua`).

    What a sender wrote into it may be beyond what Python reads, such as metadata in a thousand
    levels. Such a task is still shown and can be cancelled; `defect` says what is wrong with it.

    Raises:
        KeyError, ValueError: what the registry itself wrote cannot be read.
    """
    defect = None
    try:
        task, reports = _content_of(fields)
    except RecursionError:
        task, reports = _outline_of(task_id, fields), ()
        defect = "its metadata is nested too deeply to be read"
    except (KeyError, TypeError, ValueError) as error:
        task, reports = _outline_of(task_id, fields), ()
        defect = f"its content cannot be read: {type(error).__name__}"

    def number(name: str) -> int | None:
        return int(fields[name]) if fields.get(name) else None

    return TaskRecord(
        task=task,
        state=TaskState(fields["state"]),
        token=int(fields["token"]),
        failures=int(fields["failures"]),
        sequence=int(fields["sequence"]),
        accepted_ms=int(fields["accepted_ms"]),
        updated_ms=int(fields["updated_ms"]),
        reason=Reason(fields["code"], fields.get("text", "")) if fields.get("code") else None,
        not_before_ms=number("not_before_ms"),
        lease_until_ms=number("lease_until_ms"),
        run_id=fields.get("run_id") or None,
        machine=fields.get("machine") or None,
        path=fields.get("path") or None,
        waiting=fields.get("waiting") == "1",
        refused=fields.get("refused") == "1",
        sources=reports,
        defect=defect,
    )


def _content_of(fields: Mapping[str, str]) -> tuple[Task, tuple[SourceReport, ...]]:
    """What was posted, and what is known of its sources."""
    sources = []
    reports = []
    for type_ in fields["source_types"].split():
        urls = tuple(json.loads(line) for line in fields[f"urls:{type_}"].splitlines())
        source = Source(SourceType(type_), fields[f"sha256:{type_}"], urls)
        report = json.loads(fields.get(f"report:{type_}", "{}"))
        sources.append(source)
        reports.append(SourceReport(source.type, source.sha256, source.hosts, **report))
    task = Task.from_dict(json.loads(fields["spec"]) | {"sources": []})
    return replace(task, sources=tuple(sources)), tuple(reports)


def _outline_of(task_id: str, fields: Mapping[str, str]) -> Task:
    """The task without what may be beyond reading."""
    return Task(
        task_id=task_id,
        type=TaskType(fields["type"]),
        project_name=fields["project_name"],
        focus=fields["focus"],
        deadline_ms=int(fields["deadline_ms"]),
        sources=(),
    )
