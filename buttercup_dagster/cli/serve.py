"""`buttercup-downloader serve`: a warm worker, until it is told to end."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from buttercup_dagster.cli.arguments import fail
from buttercup_dagster.cli.console import give_up, harmless
from buttercup_dagster.settings import DownloaderSettings
from task_api.redis_client import safe_redis_url

if TYPE_CHECKING:
    from buttercup_dagster.launcher import WarmRunLauncher

DAGSTER_HOME: Final = "DAGSTER_HOME"
INSTANCE_FILE: Final = "dagster.yaml"
REDIS_URL: Final = "BUTTERCUP_REDIS_URL"
"""The variable in which our templates of `dagster.yaml` expect it; it may come from `.env`."""


def run_serve(program: str, settings: DownloaderSettings) -> int:
    """Serve until a signal.

    Args:
        program: name of the command, for its messages.
        settings: of the downloader.

    Returns:
        The exit status.

    Raises:
        SystemExit: status 2, this machine or its settings have to be changed first; status 1, Redis
            or Dagster's storage cannot be used now.
    """
    _find_instance(program, settings)
    # Dagster's instance, and each run, read the settings anew, and know of no flags.
    os.environ.update(settings.environment)
    os.environ.setdefault(REDIS_URL, settings.redis_url)
    # A worker imports nothing from the folder in which it was started, but Dagster's console
    # handler and Celery look there for settings of their own.
    logging.basicConfig(
        level=settings.log_level.upper() if settings.log_level != "trace" else "DEBUG",
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    for chatty in ("celery", "kombu", "amqp", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    launcher = _launcher(program, settings)
    from buttercup_dagster.worker import WarmWorker

    runs = "1 run" if settings.max_runs == 1 else f"{settings.max_runs} runs"
    print(
        f"{program}: {settings.machine} executes {runs} at a time, from "
        f"{safe_redis_url(launcher.redis_url)}",
        flush=True,
    )
    return WarmWorker(settings, launcher).serve()


def _find_instance(program: str, settings: DownloaderSettings) -> None:
    if os.environ.get(DAGSTER_HOME):
        return
    folder = settings.home / "dagster"
    if not (folder / INSTANCE_FILE).is_file():
        fail(
            program,
            f"no Dagster instance: {DAGSTER_HOME} is not set and {folder} has no {INSTANCE_FILE}; "
            "start `buttercup up` once, or make a folder with a dagster.yaml for many machines "
            f"and set {DAGSTER_HOME} to it",
        )
    os.environ[DAGSTER_HOME] = str(folder)


def _launcher(program: str, settings: DownloaderSettings) -> WarmRunLauncher:
    """The launcher of the instance, which is closed again: nothing of it may be forked."""
    import dagster as dg

    from buttercup_dagster.launcher import WarmRunLauncher
    from task_api.registry import TaskRegistry
    from task_api.task import RegistryError

    home = os.environ[DAGSTER_HOME]
    try:
        with dg.DagsterInstance.get() as instance:
            launcher = instance.run_launcher
    except Exception as error:  # noqa: BLE001 - of Dagster, of its storage, or of a database
        give_up(program, f"the Dagster instance in {home} cannot be opened: {harmless(str(error))}")
    if not isinstance(launcher, WarmRunLauncher):
        fail(
            program,
            f"the Dagster instance in {home} launches runs with {type(launcher).__name__}, which "
            "hands none to this worker; put WarmRunLauncher into its dagster.yaml",
        )
    if launcher.redis_url != settings.redis_url:
        fail(
            program,
            f"the Dagster instance in {home} hands out runs in "
            f"{safe_redis_url(launcher.redis_url)}, and the tasks are in "
            f"{safe_redis_url(settings.redis_url)}; use the same Redis for both",
        )
    try:
        with TaskRegistry.from_url(settings.redis_url) as registry:
            registry.initialize()
    except RegistryError as error:
        give_up(
            program,
            f"{safe_redis_url(settings.redis_url)}: {error}; start that Redis, or name another "
            "with --redis_url or BUTTERCUP_REDIS_URL",
        )
    return launcher
