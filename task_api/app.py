"""The task server as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
import anyio.to_thread
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp, Receive, Scope, Send

import task_api
from task_api import wire
from task_api.answers import add_handlers
from task_api.auth import KeyVerifier, resolve_key
from task_api.competition import CompetitionPing
from task_api.context import (
    STATUS_READS_AT_ONCE,
    VERIFICATIONS_AT_ONCE,
    ServerContext,
    now_ms,
)
from task_api.gate import RegistryGate
from task_api.key_watch import KeyWatch
from task_api.routes import ops, sarif, status, task
from task_api.settings import TaskServerSettings
from task_api.version import version_text

DESCRIPTION: Final = """\
Accepts analysis tasks (CRS API 1.4.0) and records them; shows where each of them stands.

Times are UNIX milliseconds. A message may be sent again after any failure: once it was accepted,
it gets the same answer again."""

BODIES: Final = (wire.Task, wire.SARIFBroadcast, task.OutcomeReport)
"""Models of bodies that dependencies read, which FastAPI does not describe by itself."""


def create_app(settings: TaskServerSettings | None = None) -> FastAPI:
    """Make the application. Its lifespan opens the registry and closes it.

    Args:
        settings: None to read them from the environment and `.env`.

    Raises:
        pydantic.ValidationError: a setting is wrong.
        KeyUnusable: the key is malformed, or cannot be read or written.
    """
    chosen = TaskServerSettings() if settings is None else settings
    resolved = resolve_key(chosen)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        verifier = KeyVerifier(resolved.key)
        watch = resolved.path and KeyWatch(resolved.path, resolved.key, verifier)
        context = ServerContext(
            settings=chosen,
            gate=RegistryGate(chosen.redis_url),
            verifier=verifier,
            ping=_ping(chosen),
            verification_limit=anyio.CapacityLimiter(VERIFICATIONS_AT_ONCE),
            status_limit=anyio.CapacityLimiter(STATUS_READS_AT_ONCE),
            started_ms=now_ms(),
            # Asks git, which may be slow; no request waits for it.
            version=await anyio.to_thread.run_sync(version_text),
        )
        app.state.context = context
        context.gate.start()
        background = [one for one in (context.ping, watch) if one]
        for one in background:
            one.start()
        try:
            yield
        finally:
            for one in background:
                one.close()
            await context.gate.close()

    app = FastAPI(
        title="Buttercup task server",
        version=task_api.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        # A redirect would lose the body of a POST, and some clients drop the key on it.
        redirect_slashes=False,
        # Their pages load scripts from elsewhere, next to a form that asks for the key.
        docs_url=None,
        redoc_url=None,
    )
    add_handlers(app)
    for module in (task, sarif, status, ops):
        app.include_router(module.router)
    app.add_middleware(_EitherSlash)
    app.openapi = _document(app)  # type: ignore[method-assign]
    return app


class _EitherSlash:
    """Serves each path with and without the slash at its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].rstrip("/") or "/"
            if path == "/status" or path.startswith("/v1/"):
                path += "/"
            if path != scope["path"]:
                scope = {**scope, "path": path}
        await self._app(scope, receive, send)


def _ping(settings: TaskServerSettings) -> CompetitionPing | None:
    url, key_id, token = (
        settings.competition_api_url,
        settings.competition_api_key_id,
        settings.competition_api_key_token,
    )
    if url is None or key_id is None or token is None:
        return None
    return CompetitionPing(url, key_id, token, every_seconds=settings.competition_api_ping_seconds)


def _document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """What serves the API document: FastAPI's, with the bodies that dependencies read."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            schemas = made["components"]["schemas"]
            _, definitions = models_json_schema(
                [(model, "validation") for model in BODIES],
                ref_template="#/components/schemas/{model}",
            )
            schemas.update(definitions["$defs"])
            for methods in made["paths"].values():
                for operation in methods.values():
                    _drop_framework_errors(operation)
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            app.openapi_schema = made
        return app.openapi_schema

    return document


def _drop_framework_errors(operation: dict[str, Any]) -> None:
    """Remove the answer 422 that FastAPI adds of its own, in a form that is not ours."""
    answer = operation["responses"].get("422", {})
    if "HTTPValidationError" in str(answer):
        del operation["responses"]["422"]
