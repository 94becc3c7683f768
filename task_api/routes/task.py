"""`/v1/task/`: post and cancel tasks (CRS API); read, retry and judge them (beyond it)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from task_api import answers, operations, wire
from task_api.answers import AsciiJSONResponse, refuse
from task_api.bodies import raw_body, worked_out
from task_api.context import TaskId, context_of, now_ms, require_key
from task_api.intake import answer_to, fingerprint, refusals, submissions_of
from task_api.operations import Operation
from task_api.records import Receipt, Submission
from task_api.task import (
    Outcome,
    Problem,
    TaskInvalid,
    TaskState,
    TransitionRefused,
    UnknownTask,
)
from task_api.validation import bounded, parse_json, problem_list, validated, whole_numbers
from task_api.views import TaskPage, TaskView, details, summary

router = APIRouter(prefix="/v1/task", tags=["task"], dependencies=[Depends(require_key)])

MAX_PAGE = 500


@dataclass(frozen=True, slots=True)
class Posted:
    """The tasks of a message whose schema is in order, and what accepts them."""

    submissions: list[Submission]
    acceptance: Operation[Receipt]


def posted(body: bytes) -> Posted:
    """Read the body of `POST /v1/task/`."""
    data = bounded(parse_json(body))
    # Before anything is changed in the data.
    digest = fingerprint(data)
    message = validated(wire.Task, whole_numbers(data))
    submissions = submissions_of(message, now_ms=now_ms())
    return Posted(
        submissions,
        operations.accept(
            str(message.message_id), digest, submissions, answer=answer_to(submissions)
        ),
    )


def refused(submissions: Sequence[Submission], receipt: Receipt) -> Response:
    """The answer to a message of which nothing was accepted."""
    conflicts_only = all(verdict.kind == "conflict" for verdict in receipt.verdicts)
    return refuse(409 if conflicts_only else 422, problem_list(refusals(submissions, receipt)))


class OutcomeReport(BaseModel):
    """What a consumer made of a ready task."""

    model_config = ConfigDict(use_enum_values=False)

    state: Annotated[
        Outcome,
        Field(description="`waiting`: submitted and not yet judged; the others end the task."),
    ]
    reason: Annotated[
        str | None, Field(max_length=2000, description="Why, for the people who read it.")
    ] = None


def outcome_report(body: bytes) -> OutcomeReport:
    """Read the body of `POST /v1/task/{task_id}/outcome/`."""
    return validated(OutcomeReport, parse_json(body))


def _body(model: str) -> dict[str, Any]:
    """The part of the API document that describes a body which a dependency reads."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post(
    "/",
    status_code=202,
    operation_id="submit_tasks",
    summary="Submit tasks",
    openapi_extra=_body("Task"),
    response_description="The tasks are stored.",
    response_model=str,
)
async def submit_tasks(request: Request) -> Response:
    """Store the tasks of one message and answer.

    A task that is known already, by its id and content, is not stored twice; new URLs of it are
    kept. Of several tasks the valid ones are accepted; the request is refused only if none is.
    """
    body = await raw_body(request)
    message = await worked_out(body, posted, body)
    receipt = await context_of(request).gate.run(message.acceptance)
    if receipt.accepted:
        return AsciiJSONResponse(receipt.answer, 202)
    return await worked_out(body, refused, message.submissions, receipt)


@router.delete(
    "/",
    operation_id="cancel_all_tasks",
    summary="Cancel all tasks",
    response_description="No task from before this call goes on.",
)
async def cancel_all_tasks(request: Request) -> str:
    """Stop every task that has not ended. May be repeated."""
    count = await context_of(request).gate.run(operations.cancel_all())
    return f"cancelled {count} {'task' if count == 1 else 'tasks'}"


@router.delete(
    "/{task_id}/",
    operation_id="cancel_task",
    summary="Cancel one task",
    response_description="The task does not go on.",
)
async def cancel_task(task_id: TaskId, request: Request) -> str:
    """Stop this task.

    An unknown id is remembered, and its task is cancelled when it comes. May be repeated.
    """
    try:
        known = await context_of(request).gate.run(operations.cancel(str(task_id)))
    except TransitionRefused as error:
        return f"task {task_id} has ended already: it is {error.state}"
    if not known:
        return f"task {task_id} is not known; it will be cancelled if it comes within 7 days"
    return f"task {task_id} is cancelled"


@router.get(
    "/",
    operation_id="list_tasks",
    summary="List tasks",
    response_model=TaskPage,
    responses={**answers.UNAUTHORIZED, **answers.INVALID},
)
async def list_tasks(
    request: Request,
    state: Annotated[TaskState | None, Query(description="Only tasks in this state.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many at the most.")] = 50,
    after: Annotated[UUID | None, Query(description="`next` of the page before.")] = None,
) -> Response:
    """Tasks in the order in which they came, newest first."""
    try:
        # One more than asked for tells whether there is a further page.
        records = await context_of(request).gate.run(
            operations.page(
                state=state, limit=limit + 1, after=None if after is None else str(after)
            )
        )
    except UnknownTask as error:
        raise TaskInvalid([Problem(("after",), f"{error}; begin with the first page")]) from error
    shown = records[:limit]
    more = shown[-1].task.task_id if len(records) > limit else None
    return AsciiJSONResponse({"tasks": [summary(record) for record in shown], "next": more})


@router.get(
    "/{task_id}/",
    operation_id="get_task",
    summary="Show one task",
    response_model=TaskView,
    responses={**answers.UNAUTHORIZED, **answers.UNKNOWN, **answers.INVALID},
)
async def get_task(task_id: TaskId, request: Request) -> Response:
    """Where a task stands, what is known of its sources, and its timeline."""
    record = await context_of(request).gate.run(operations.get(str(task_id)))
    events = await context_of(request).gate.run(operations.events(str(task_id)))
    return AsciiJSONResponse(details(record, events))


@router.post(
    "/{task_id}/retry/",
    operation_id="retry_task",
    summary="Prepare a task again",
    responses={
        **answers.UNAUTHORIZED,
        **answers.UNKNOWN,
        **answers.CONFLICT,
        **answers.INVALID,
    },
)
async def retry_task(task_id: TaskId, request: Request) -> str:
    """Put an errored or failed task back to pending, before its deadline."""
    await context_of(request).gate.run(operations.retry(str(task_id)))
    return f"task {task_id} is pending again"


@router.post(
    "/{task_id}/outcome/",
    operation_id="report_outcome",
    summary="Report what became of a ready task",
    openapi_extra=_body("OutcomeReport"),
    responses={
        **answers.UNAUTHORIZED,
        **answers.UNKNOWN,
        **answers.CONFLICT,
        **answers.INVALID,
    },
)
async def report_outcome(task_id: TaskId, request: Request) -> str:
    """Record what a consumer made of a task. The same report may be repeated."""
    body = await raw_body(request)
    report = await worked_out(body, outcome_report, body)
    await context_of(request).gate.run(
        operations.report_outcome(str(task_id), report.state, report.reason or "")
    )
    return f"task {task_id} is recorded as {report.state}"
