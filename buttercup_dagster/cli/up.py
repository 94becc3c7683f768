"""`buttercup up`: everything on one machine, until Ctrl-C."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path
from typing import Final

from buttercup_dagster.cli.arguments import fail
from buttercup_dagster.cli.buttercup import PROGRAM, Commands, Up
from buttercup_dagster.cli.signals import stopped_by_signals
from buttercup_dagster.local.errors import LocalError, ServiceFailed
from buttercup_dagster.local.home import check_home, claimed
from buttercup_dagster.local.services import Plan, Stack, laid_out
from buttercup_dagster.local.supervisor import Supervisor, plain
from buttercup_dagster.settings import DownloaderSettings
from buttercup_dagster.sources.layout import inside_git_work_tree
from task_api.auth import CREDENTIALS, ApiKey, KeyUnusable, KeyVerifier
from task_api.command_line import load_settings
from task_api.redis_client import safe_redis_url
from task_api.settings import TaskServerSettings

WIDTH: Final = 8

NOISE: Final = re.compile(
    r"oO0OoO0OoO0Oo|WARNING Memory overcommit|Configuration loaded|LOCATION_UPDATED"
    r"|Checking for new runs for sensor|Collected \d+ runs for monitoring|Checking run "
    r"|skipped: (no task pending|everything in line)"
    r"| - dagster - (DEBUG|INFO) - "
    r'|uvicorn\.access: .* "GET [^"]*" 200'
)
"""Lines of the processes that come again and again and tell a person nothing."""

COLORS: Final = {
    "redis": 31,
    "server": 32,
    "code": 35,
    "daemon": 36,
    "dagster": 34,
    "worker": 33,
    "": 1,
}


def run(settings: Commands, command: Up) -> int:
    """Run everything until a signal.

    Returns:
        0 after Ctrl-C.

    Raises:
        SystemExit: status 2, a setting or this machine has to be changed first; status 1, a
            process does not come up.
    """
    server = load_settings(TaskServerSettings, [])
    plan = plan_of(settings, command, server)
    lines = Lines()
    try:
        check_home(plan.home)
        check_key(server)
        tasks = _tasks_folder(plan)
        with (
            claimed(plan.home),
            laid_out(plan) as stack,
            stopped_by_signals() as stop,
            Supervisor(lines.show, stop) as supervisor,
        ):
            lines.show("", "starting Redis, the task server and Dagster")
            if start(supervisor, stack):
                lines.show("", banner(stack, tasks))
                if not stack.sensor_seen():
                    lines.show(
                        "",
                        "warning: no task is worked on: intake_sensor is switched off; switch it "
                        f"on at {plan.dagster_url}/automation",
                    )
                supervisor.watch()
            lines.show("", "stopping everything; this takes some seconds")
        lines.show("", "stopped")
    except LocalError as error:
        fail(PROGRAM, str(error))
    except ServiceFailed as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        raise SystemExit(1) from None
    return 0


def plan_of(settings: Commands, command: Up, server: TaskServerSettings) -> Plan:
    """What is to run, by flags, environment and `.env`."""
    configured = server.redis_url if "redis_url" in server.model_fields_set else None
    return Plan(
        home=settings.home,
        redis_url=command.redis_url or configured,
        host=server.host,
        port=command.port or server.port,
        dagster_port=command.dagster_port,
        log_level=server.log_level,
        own_key=server.api_key_id is not None,
    )


def start(supervisor: Supervisor, stack: Stack) -> bool:
    """Start Redis, then everything else; whether all of it is healthy.

    Raises:
        ServiceFailed: something does not come up.
    """
    if stack.redis is not None and not supervisor.start(stack.redis):
        return False
    stack.make_storage()
    return supervisor.start(*stack.others)


def check_key(settings: TaskServerSettings) -> None:
    """Return if the key in the settings, if there is one, can be used.

    Raises:
        LocalError: its hash is malformed.
    """
    if settings.api_key_id is not None and settings.api_token_hash is not None:
        try:
            KeyVerifier(ApiKey(settings.api_key_id, settings.api_token_hash))
        except KeyUnusable as error:
            raise LocalError(str(error)) from None


def _tasks_folder(plan: Plan) -> Path:
    """Where the runs will put the tasks.

    Raises:
        LocalError: it lies in a git work tree.
        SystemExit: status 2, a setting of the downloader is wrong.
    """
    settings = load_settings(DownloaderSettings, [])
    tasks = settings.model_copy(update={"home": plan.home}).tasks
    tree = inside_git_work_tree(tasks)
    if tree is not None:
        raise LocalError(
            f"{tasks} lies in the git work tree {tree}, where `git apply` silently does nothing "
            "with a task; set BUTTERCUP_DOWNLOADER_TASKS_DIR to a folder outside"
        )
    return tasks


def banner(stack: Stack, tasks: Path) -> str:
    """Where everything is, and what to do next.

    Args:
        stack: what runs.
        tasks: folder of the prepared tasks.
    """
    plan = stack.plan
    key = "as configured" if plan.own_key else str(plan.home / CREDENTIALS)
    found = "started here; buttercup-registry finds it" if stack.redis else "as configured"
    return "\n".join(
        [
            "everything is up",
            "",
            f"  API      {plan.api_url}",
            f"  Key      {key}",
            f"  Dagster  {plan.dagster_url}",
            f"  Redis    {safe_redis_url(stack.redis_url)} ({found})",
            f"  Tasks    {tasks}",
            "",
            "Next, in another terminal:",
            "",
            "  buttercup submit PATH --project_name NAME --fuzz_tooling PATH",
            "  buttercup-registry watch",
            "",
            "Ctrl-C stops everything.",
        ]
    )


class Lines:
    """Prints lines of several processes, each behind the name of its process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._colored = sys.stdout.isatty()

    def show(self, name: str, text: str) -> None:
        """Print text of a process, or with the empty name this command's own."""
        if name and NOISE.search(text):
            return
        with self._lock:
            for line in text.split("\n"):
                print(self._prefix(name) + (line if self._colored else plain(line)), flush=True)

    def _prefix(self, name: str) -> str:
        prefix = f"{name or PROGRAM:<{max(WIDTH, len(PROGRAM))}} │ "
        return f"\x1b[{COLORS.get(name, 0)}m{prefix}\x1b[0m" if self._colored else prefix
