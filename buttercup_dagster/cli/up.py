"""`buttercup up`: everything on one machine, until Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from buttercup_dagster.cli.arguments import fail
from buttercup_dagster.cli.buttercup import PROGRAM, Commands, Up
from buttercup_dagster.local.errors import LocalError, ServiceFailed
from buttercup_dagster.local.home import check_home, claimed
from buttercup_dagster.local.services import Plan, Stack, laid_out
from buttercup_dagster.local.supervisor import Supervisor, plain
from task_api.auth import CREDENTIALS
from task_api.command_line import load_settings
from task_api.redis_client import safe_redis_url
from task_api.settings import TaskServerSettings

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
WIDTH: Final = 8
COLORS: Final = {"redis": 31, "server": 32, "code": 35, "daemon": 36, "dagster": 34, "": 1}


def run(settings: Commands, command: Up) -> int:
    """Run everything until a signal.

    Returns:
        0 after Ctrl-C.

    Raises:
        SystemExit: status 2, this machine has to be changed first; status 1, a process does not
            come up.
    """
    plan = plan_of(settings, command)
    lines = Lines()
    try:
        check_home(plan.home)
        with (
            claimed(plan.home),
            laid_out(plan) as stack,
            stopped_by_signals() as stop,
            Supervisor(lines.show, stop) as supervisor,
        ):
            if start(supervisor, stack):
                lines.show("", banner(stack))
                supervisor.watch()
            lines.show("", "stopping everything")
        lines.show("", "stopped")
    except LocalError as error:
        fail(PROGRAM, str(error))
    except ServiceFailed as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        raise SystemExit(1) from None
    return 0


def plan_of(settings: Commands, command: Up) -> Plan:
    """What is to run, by flags, environment and `.env`.

    Raises:
        SystemExit: status 2, a setting of the task server is wrong.
    """
    server = load_settings(TaskServerSettings, [])
    configured = server.redis_url if "redis_url" in server.model_fields_set else None
    return Plan(
        home=settings.home,
        redis_url=command.redis_url or configured,
        host=server.host,
        port=command.port or server.port,
        dagster_port=command.dagster_port,
        log_level=server.log_level,
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


def banner(stack: Stack) -> str:
    """Where everything is, and what to do next."""
    plan = stack.plan
    found = "started here; buttercup-registry finds it" if stack.redis else "as configured"
    return "\n".join(
        [
            "everything is up",
            "",
            f"  API      {plan.api_url}",
            f"  Key      {plan.home / CREDENTIALS}",
            f"  Dagster  {plan.dagster_url}",
            f"  Redis    {safe_redis_url(stack.redis_url)} ({found})",
            f"  Tasks    {plan.home / 'tasks'}",
            "",
            "Next, in another terminal:",
            "",
            "  buttercup submit PATH --project_name NAME",
            "  buttercup-registry watch",
            "",
            "Ctrl-C stops everything.",
        ]
    )


@contextmanager
def stopped_by_signals() -> Iterator[Callable[[], bool]]:
    """A question that is answered with true once this process is told to end."""
    stop = threading.Event()
    former = {number: signal.signal(number, lambda *_: stop.set()) for number in SIGNALS}
    try:
        yield stop.is_set
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class Lines:
    """Prints lines of several processes, each behind the name of its process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._colored = sys.stdout.isatty()

    def show(self, name: str, text: str) -> None:
        """Print text of a process, or with the empty name this command's own."""
        with self._lock:
            for line in text.split("\n"):
                print(self._prefix(name) + (line if self._colored else plain(line)), flush=True)

    def _prefix(self, name: str) -> str:
        prefix = f"{name or PROGRAM:<{max(WIDTH, len(PROGRAM))}} │ "
        return f"\x1b[{COLORS.get(name, 0)}m{prefix}\x1b[0m" if self._colored else prefix
