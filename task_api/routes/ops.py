"""`/healthz` and `/readyz`: for whoever keeps the server running; no key, no secrets."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from task_api.answers import AsciiJSONResponse
from task_api.context import context_of

router = APIRouter(tags=["operation"])


class Checks(BaseModel):
    """What was checked."""

    ready: bool
    checks: dict[str, str] = Field(description="`ok`, or what to do, for each check that applies.")


@router.get("/healthz", operation_id="healthz", summary="Is the process alive")
async def healthz() -> str:
    """Answered as long as the process can answer anything, whatever else is wrong."""
    return "alive"


@router.get(
    "/readyz",
    operation_id="readyz",
    summary="Would a task be worked on",
    response_model=Checks,
    responses={503: {"model": Checks, "description": "Something is missing."}},
)
async def readyz(request: Request) -> Response:
    """The same checks that `/status/` reports on, and whether the server has a key."""
    context = context_of(request)
    status, redis_problem = await context.read_status()
    # Nobody has shown a key here: where Redis is, and what it said, is for the log and /status/.
    shown = "cannot be used; the server's log says more" if redis_problem else None
    judged = context.judge(status, shown)
    checks = {name: problem or "ok" for name, problem in judged.checks.items()}
    if context.verifier.problem is not None:
        checks["key"] = "cannot be used; the server's log says more"
    ready = set(checks.values()) == {"ok"}
    return AsciiJSONResponse({"ready": ready, "checks": checks}, 200 if ready else 503)
