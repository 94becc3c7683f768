"""What the routes share: made once for each application, found through the request."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated, cast
from uuid import UUID

import anyio
import anyio.to_thread
from fastapi import HTTPException, Path, Request
from fastapi.security import HTTPBasic

from task_api import operations
from task_api.auth import KeyVerifier, basic_credentials
from task_api.competition import CompetitionPing
from task_api.gate import RegistryGate
from task_api.readiness import STATUS_SECONDS, Readiness, readiness
from task_api.records import Status
from task_api.settings import TaskServerSettings
from task_api.task import RegistryError

VERIFICATIONS_AT_ONCE = 2
"""Each takes 64 MiB with Argon2's default parameters."""

STATUS_READS_AT_ONCE = 4

RETRY_AFTER_KEY_SECONDS = 10


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
            self.verifier.check, key_id, token, limiter=self.verification_limit
        )

    async def read_status(self) -> tuple[Status | None, str | None]:
        """The registry's status, or None and the reason; within `STATUS_SECONDS`.

        It waits behind no post: it has a few connections of its own.
        """
        try:
            with anyio.fail_after(STATUS_SECONDS):
                async with self.status_limit:
                    status = await self.gate.run_at_once(operations.status())
        except TimeoutError:
            return None, f"Redis does not answer within {STATUS_SECONDS:.0f} s"
        except RegistryError as error:
            return None, str(error)
        self.last_status = status
        return status, None

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


def context_of(request: Request) -> ServerContext:
    """The context of the application that serves this request.

    Called by the routes: as a dependency it would take longer than all that it is needed for.
    """
    return cast(ServerContext, request.app.state.context)


TaskId = Annotated[UUID, Path(description="Id of the task.")]


class _KeyGuard(HTTPBasic):
    """Lets a request pass that presents the key; also describes that in the API document."""

    async def __call__(self, request: Request) -> None:  # type: ignore[override]
        presented = basic_credentials(request.headers.get("Authorization"))
        context = context_of(request)
        if presented is None:
            detail = "send HTTP Basic credentials: the key's id as user name, its token as password"
        elif await context.verify(*presented):
            return
        elif context.verifier.problem is not None:
            raise HTTPException(
                503,
                "the server's own key cannot be used, so it serves nobody; its log says what to do",
                {"Retry-After": str(RETRY_AFTER_KEY_SECONDS)},
            )
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
