"""`/status/`: readiness and counters (CRS API)."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from task_api import operations, wire
from task_api.context import context_of, require_key
from task_api.records import Status
from task_api.task import TaskState

router = APIRouter(prefix="/status", tags=["status"], dependencies=[Depends(require_key)])


@router.get(
    "/",
    operation_id="get_status",
    summary="Report the status",
    response_description="The status at this moment.",
)
async def get_status(request: Request) -> wire.Status:
    """Whether the system can work, what is missing if not, and how many tasks there are."""
    context = context_of(request)
    status, redis_problem = await context.read_status()
    judged = context.judge(status, redis_problem)
    details = judged.problems
    known = status or context.last_status
    if status is None and known is not None:
        details["state"] = f"the counts are those of {known.now_ms} (UNIX milliseconds)"
    return wire.Status(
        details=details,
        ready=judged.ready,
        since=known.since_ms if known else context.started_ms,
        state=wire.StatusState(tasks=_counts(known)),
        version=context.version,
    )


@router.delete(
    "/",
    operation_id="reset_status",
    summary="Reset the counters",
    response_description="The counters stand at 0.",
)
async def reset_status(request: Request) -> str:
    """Count succeeded, failed, errored and canceled anew; `since` becomes now."""
    await context_of(request).gate.run(operations.reset_counters())
    return "counters reset"


def _counts(status: Status | None) -> wire.StatusTasksState:
    if status is None:
        return wire.StatusTasksState(
            canceled=0, errored=0, failed=0, pending=0, processing=0, succeeded=0, waiting=0
        )
    states = status.states
    return wire.StatusTasksState(
        canceled=status.canceled,
        errored=status.errored,
        failed=status.failed,
        pending=states[TaskState.PENDING] + states[TaskState.SCHEDULED],
        processing=states[TaskState.DOWNLOADING] + states[TaskState.READY],
        succeeded=status.succeeded,
        waiting=status.waiting,
    )
