"""`buttercup-task-server`: starts the task server. Heavy imports stand inside functions."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from task_api.command_line import fail, load_settings, warn
from task_api.settings import TaskServerSettings

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

PROGRAM = "buttercup-task-server"
BACKLOG = 2048
SHUTDOWN_SECONDS = 8
"""A request that is under way gets this long; then Ctrl-C and SIGTERM end it."""

WORKER_ANSWER_SECONDS = 60
"""A worker that does not answer its parent for this long is replaced; a slow start takes some."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server until it is told to end.

    Returns:
        0 after Ctrl-C or SIGTERM; 1 if it could not be started.

    Raises:
        SystemExit: status 2, a setting is wrong or the port is taken; 0 after `--help`.
    """
    settings = load_settings(TaskServerSettings, sys.argv[1:] if argv is None else argv)
    if settings.reload and settings.workers > 1:
        warn(PROGRAM, f"--reload runs one worker; --workers {settings.workers} is ignored")
    try:
        signal.signal(signal.SIGTERM, _end)
        return _serve(settings)
    except KeyboardInterrupt:
        return 0


def _end(*_: object) -> None:
    # uvicorn raises the signal once more when it has shut down; that is a normal end.
    raise SystemExit(0)


def _serve(settings: TaskServerSettings) -> int:
    from task_api.auth import KeyUnusable, ResolvedKey, resolve_key

    try:
        resolved: ResolvedKey = resolve_key(settings)
    except KeyUnusable as error:
        fail(PROGRAM, str(error))
    if resolved.warning:
        warn(PROGRAM, resolved.warning)
    if resolved.path:
        what = "made a key and wrote it to" if resolved.made else "using the key in"
        _say(f"{what} {resolved.path} (id {resolved.key.key_id})")

    listener = _listen(settings.host, settings.port)
    with listener:
        _say(f"listening on {_address(listener)}")
        if settings.reload or settings.workers > 1:
            _hand_down(settings)
            return _serve_from_children(settings, listener)
        return _serve_here(settings, listener)


def make_app(settings: TaskServerSettings | None = None) -> FastAPI:
    """The application, in a process that serves nothing else.

    Args:
        settings: None to read them from the environment and `.env`.
    """
    from task_api.app import create_app

    app = create_app(settings)
    # What has been made by now stays. To look through all of it for garbage takes some tens of
    # milliseconds, during which nobody would be answered.
    gc.collect()
    gc.freeze()
    return app


def _serve_here(settings: TaskServerSettings, listener: socket.socket) -> int:
    import uvicorn

    app = make_app(settings)
    server = uvicorn.Server(_config(settings, lambda: app))
    server.run(sockets=[listener])
    return 0 if server.started else 1


def _serve_from_children(settings: TaskServerSettings, listener: socket.socket) -> int:
    """Serve from processes that this one starts, and starts again when they end or change."""
    import uvicorn
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import ChangeReload, Multiprocess

    # Children import the application by name and read their settings from the environment.
    config = _config(settings, "task_api.cli:make_app")
    if settings.reload:
        server = uvicorn.Server(config)
        ChangeReload(config, target=server.run, sockets=[listener]).run()
        return 0
    supervisor = Multiprocess(config, sockets=[listener])
    supervisor.run()
    failed = any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes)
    return 1 if failed else 0


def _config(settings: TaskServerSettings, app: str | Callable[[], Any]) -> uvicorn.Config:
    import uvicorn

    from task_api.logs import log_config

    return uvicorn.Config(
        app,
        factory=True,
        host=settings.host,
        port=settings.port,
        log_level=settings.log_level,
        log_config=log_config(settings.log_level),
        reload=settings.reload,
        reload_dirs=[str(Path(__file__).parent)] if settings.reload else None,
        workers=1 if settings.reload else settings.workers,
        lifespan="on",
        ws="none",
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        timeout_worker_healthcheck=WORKER_ANSWER_SECONDS,
    )


def _hand_down(settings: TaskServerSettings) -> None:
    """Put every setting into the environment, where children find it and `ps` does not show it."""
    prefix = str(TaskServerSettings.model_config.get("env_prefix", ""))
    for name in TaskServerSettings.model_fields:
        value = getattr(settings, name)
        if value is not None:
            os.environ[f"{prefix}{name}".upper()] = str(value)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, made before anything else starts, so that a taken port is told at once.

    Raises:
        SystemExit: status 2 after one line.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        detail = error.strerror if isinstance(error, socket.gaierror) else "not a host name"
        fail(PROGRAM, f"--host: {host} cannot be resolved ({detail})")
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        fail(
            PROGRAM,
            f"--port: cannot listen on {host}:{port} ({error.strerror}); stop what uses it, or "
            "choose another with --host and --port (0 takes any free one)",
        )
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(text: str) -> None:
    print(f"{PROGRAM}: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
