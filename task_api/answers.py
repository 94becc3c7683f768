"""Answers other than success: which error becomes which status, and in what form.

Each body is `{"detail": …}`: a sentence, or for 422 and 409 of a posted message a list of
`{"path": …, "message": …}`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from task_api.task import (
    RegistryUnavailable,
    SchemaMismatch,
    TaskInvalid,
    TransitionRefused,
    UnknownTask,
)
from task_api.validation import problem_list, problems_from

log = logging.getLogger(__name__)

RETRY_AFTER_SECONDS: Final = 2
RETRY_AFTER_UPDATE_SECONDS: Final = 60


FRAMEWORK_TEXTS: Final[Mapping[str, str]] = {
    "Not Found": "there is nothing at this path; GET /openapi.json lists what there is",
    "Method Not Allowed": (
        "this path does not take this method; GET /openapi.json lists those that it takes"
    ),
}


class Refusal(BaseModel):
    """Why a request was not carried out."""

    detail: str


class FieldProblem(BaseModel):
    """One wrong field of a body, a path or a query."""

    path: str = Field(examples=["tasks[0].source[1].sha256"])
    message: str


class Invalid(BaseModel):
    """What is wrong with a request."""

    detail: list[FieldProblem]


UNAUTHORIZED: Final[dict[int | str, dict[str, Any]]] = {
    401: {"model": Refusal, "description": "The key is missing or wrong."},
    503: {"model": Refusal, "description": "The registry cannot be used now; try again later."},
}
UNKNOWN: Final[dict[int | str, dict[str, Any]]] = {
    404: {"model": Refusal, "description": "No task with this id is recorded."}
}
CONFLICT: Final[dict[int | str, dict[str, Any]]] = {
    409: {"model": Refusal, "description": "The task is in a state that forbids this."}
}
INVALID: Final[dict[int | str, dict[str, Any]]] = {
    422: {"model": Invalid, "description": "A field is missing or wrong."}
}


class AsciiJSONResponse(JSONResponse):
    """JSON in ASCII: text that is no valid Unicode, as JSON can carry, must not break an answer."""

    def render(self, content: Any) -> bytes:
        """The content as JSON."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


def refuse(
    status: int, detail: object, headers: Mapping[str, str] | None = None
) -> AsciiJSONResponse:
    """An answer that is not a success."""
    return AsciiJSONResponse({"detail": detail}, status, dict(headers) if headers else None)


def add_handlers(app: FastAPI) -> None:
    """Teach the application to answer this project's errors."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _request_invalid)
    app.add_exception_handler(TaskInvalid, _task_invalid)
    app.add_exception_handler(UnknownTask, _unknown_task)
    app.add_exception_handler(TransitionRefused, _transition_refused)
    app.add_exception_handler(RegistryUnavailable, _unavailable)
    app.add_exception_handler(SchemaMismatch, _mismatch)
    app.add_exception_handler(Exception, _unexpected)


async def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - told to the type checker
    # The framework's own texts say only the status over again.
    advice = FRAMEWORK_TEXTS.get(error.detail)
    return refuse(error.status_code, advice or error.detail, error.headers)


async def _request_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    # The first part of a location says path, query or header; the field's name is enough.
    problems = problems_from({**one, "loc": one["loc"][1:]} for one in error.errors())
    return refuse(422, problem_list(problems))


async def _task_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TaskInvalid)  # noqa: S101
    return refuse(422, problem_list(error.problems))


async def _unknown_task(_: Request, error: Exception) -> JSONResponse:
    return refuse(404, str(error))


async def _transition_refused(_: Request, error: Exception) -> JSONResponse:
    return refuse(409, str(error))


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    log.warning("%s", error)
    return refuse(
        503,
        f"the registry cannot be used at the moment ({error}); send the request again",
        {"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


async def _mismatch(_: Request, error: Exception) -> JSONResponse:
    log.error("%s", error)
    return refuse(503, str(error), {"Retry-After": str(RETRY_AFTER_UPDATE_SECONDS)})


async def _unexpected(_: Request, __: Exception) -> JSONResponse:
    return refuse(500, "the server made a mistake; its log says more. Send the request again")
