"""What the routes share: made once for each application, reached through dependencies."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, cast
from uuid import UUID

import anyio
import anyio.to_thread
from fastapi import Depends, HTTPException, Path, Request
from fastapi.security import HTTPBasic

from task_api.auth import KeyVerifier, basic_credentials
from task_api.competition import CompetitionPing
from task_api.gate import RegistryGate
from task_api.readiness import STATUS_SECONDS, Readiness, readiness
from task_api.records import Status
from task_api.registry import TaskRegistry
from task_api.settings import TaskServerSettings
from task_api.task import RegistryError

VERIFICATIONS_AT_ONCE = 2
"""Each takes 64 MiB with Argon2's default parameters."""

STATUS_READS_AT_ONCE = 4


@dataclass(slots=True)
class ServerContext:
    """What one application holds while it runs."""

    settings: TaskServerSettings
    gate: RegistryGate
    verifier: KeyVerifier
    ping: CompetitionPing | None
    verification_limit: anyio.CapacityLimiter
    status_limit: anyio.CapacityLimiter
    started_ms: int
    version: str
    last_status: Status | None = None

    async def verify(self, key_id: str, token: str) -> bool:
        """Whether this is the key. Not remembered, it is computed in a thread, a few at once."""
        if self.verifier.remembers(key_id, token):
            return True
        return await anyio.to_thread.run_sync(
            self.verifier.verify, key_id, token, limiter=self.verification_limit
        )

    async def read_status(self) -> tuple[Status | None, str | None]:
        """The registry's status, or None and the reason; within `STATUS_SECONDS`.

        A Redis that hangs keeps one of this purpose's own threads busy, and neither the caller nor
        any other request waiting.
        """
        try:
            with anyio.fail_after(STATUS_SECONDS):
                status = await anyio.to_thread.run_sync(
                    self._status,
                    limiter=self.status_limit,
                    abandon_on_cancel=True,
                )
        except TimeoutError:
            return None, f"Redis does not answer within {STATUS_SECONDS:.0f} s"
        except RegistryError as error:
            return None, str(error)
        self.last_status = status
        return status, None

    def _status(self) -> Status:
        with self.gate.use() as registry:
            return registry.status()

    def judge(self, status: Status | None, redis_problem: str | None) -> Readiness:
        """What is ready, given what `read_status` returned."""
        return readiness(
            status,
            redis_problem=redis_problem,
            sensor_timeout_ms=int(self.settings.sensor_timeout_seconds * 1000),
            competition_problem=self.ping.problem if self.ping else None,
            competition_configured=self.ping is not None,
        )


def now_ms() -> int:
    """The present by this machine's clock, UNIX milliseconds."""
    return time.time_ns() // 1_000_000


async def server_context(request: Request) -> ServerContext:
    """The context of the application that serves this request.

    A coroutine function: a plain one waits for a thread, and Redis may keep all of them.
    """
    return _context_of(request)


def _context_of(request: Request) -> ServerContext:
    return cast(ServerContext, request.app.state.context)


Context = Annotated[ServerContext, Depends(server_context)]


def registry(context: Context) -> Iterator[TaskRegistry]:
    """The registry, for as long as the request takes.

    Raises:
        RegistryError: it cannot be used now; answered with 503.
    """
    with context.gate.use() as opened:
        yield opened


Registry = Annotated[TaskRegistry, Depends(registry)]
TaskId = Annotated[UUID, Path(description="Id of the task.")]


class _KeyGuard(HTTPBasic):
    """Lets a request pass that presents the key; also describes that in the API document."""

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        presented = basic_credentials(request.headers.get("Authorization"))
        if presented is None:
            detail = "send HTTP Basic credentials: the key's id as user name, its token as password"
        elif await _context_of(request).verify(*presented):
            return
        else:
            detail = (
                "unknown key id or wrong token; use the key that this server was configured with, "
                "or the one in the file 'credentials' of its home folder"
            )
        raise HTTPException(401, detail, {"WWW-Authenticate": 'Basic realm="buttercup"'})


require_key = _KeyGuard(
    scheme_name="BasicAuth",
    description="The key's id (a UUID) as user name, its token as password.",
)


async def raw_body(request: Request, context: Context) -> bytes:
    """The body, if it is not larger than the settings allow; answered with 413 otherwise."""
    limit = context.settings.max_body_bytes
    announced = request.headers.get("Content-Length", "")
    chunks = []
    size = int(announced) if announced.isdecimal() else 0
    if size <= limit:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                break
            chunks.append(chunk)
    if size > limit:
        raise HTTPException(
            413,
            f"the body is larger than {limit} bytes; send fewer tasks or reports in one message, "
            "or raise BUTTERCUP_TASK_SERVER_MAX_BODY_BYTES on the server",
            {"Connection": "close"},
        )
    return b"".join(chunks)


Body = Annotated[bytes, Depends(raw_body)]
