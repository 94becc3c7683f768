"""`buttercup demo`: from nothing to a prepared task, and how to go on."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from buttercup_dagster.cli.arguments import fail
from buttercup_dagster.cli.buttercup import DEFAULT_DAGSTER_PORT, PROGRAM, Commands, Demo
from buttercup_dagster.cli.console import make_console, put_table
from buttercup_dagster.cli.signals import INTERRUPTED, stopped_by_signals
from buttercup_dagster.cli.submit import post_and_follow
from buttercup_dagster.cli.up import start
from buttercup_dagster.local.errors import LocalError, ServiceFailed
from buttercup_dagster.local.home import check_home, claimed
from buttercup_dagster.local.redis import free_port
from buttercup_dagster.local.services import Plan, Stack, ask_dagster, laid_out
from buttercup_dagster.local.supervisor import Show, Supervisor, plain
from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.packing.task import PackedTask, pack_task
from buttercup_dagster.settings import DownloaderSettings
from buttercup_dagster.tables import HEADINGS, task_rows
from task_api.auth import (
    CREDENTIALS,
    SERVER_HASH_NAME,
    SERVER_KEY_ID_NAME,
    KeyUnusable,
    read_credentials,
    resolve_key,
)
from task_api.client import RequestRefused, ServerUnavailable, TaskServerClient
from task_api.command_line import load_settings
from task_api.registry import TaskRegistry
from task_api.settings import TaskServerSettings
from task_api.task import printable

PROJECT_NAME: Final = PROGRAM
NAME: Final = "buttercup-orchestrator"
DEADLINE_SECONDS: Final = 8 * 3600
SETTLE_SECONDS: Final = 30.0
SHOWN_NAMES: Final = 12
LOG: Final = "demo.log"


def run(settings: Commands, _command: Demo) -> int:
    """Start everything, prepare this project's own code as a task, show it, and end.

    Returns:
        0 if the task is ready; 1 if it is not; 130 after Ctrl-C.

    Raises:
        SystemExit: status 2, this machine has to be changed first; status 1, something does not
            come up.
    """
    began = time.monotonic()
    try:
        check_home(settings.home)
        load_settings(DownloaderSettings, [])
        plan = Plan(
            home=settings.home,
            redis_url=None,
            host="127.0.0.1",
            port=free_port(),
            dagster_port=free_port(),
            environment=_own_key(settings.home),
        )
        with (
            claimed(plan.home),
            logged(plan.home / LOG) as show,
            laid_out(plan) as stack,
            stopped_by_signals() as stop,
            Supervisor(show, stop) as supervisor,
        ):
            _say("starting Redis, the task server and Dagster")
            if not start(supervisor, stack):
                return INTERRUPTED

            def goes_on() -> bool:
                supervisor.look()
                return not stop()

            status = _prepare(stack, goes_on)
        if status == 0:
            _say(f"everything is stopped again, after {time.monotonic() - began:.0f} s")
            print(_how_to_go_on(plan.home))
    except LocalError as error:
        fail(PROGRAM, str(error))
    except (ServiceFailed, PackingError, ServerUnavailable, RequestRefused) as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        raise SystemExit(1) from None
    return status


def _own_key(home: Path) -> dict[str, str]:
    """The key in the home folder as variables of the server, which win over any other key.

    Raises:
        LocalError: it cannot be read or made.
    """
    try:
        key = resolve_key(TaskServerSettings(home=home, api_key_id=None, api_token_hash=None)).key
    except KeyUnusable as error:
        raise LocalError(str(error)) from None
    return {SERVER_KEY_ID_NAME: key.key_id, SERVER_HASH_NAME: key.token_hash}


def _prepare(stack: Stack, goes_on: Callable[[], bool]) -> int:
    """Post the task to what runs, wait for it, and show what became of it."""
    task_id = str(uuid.uuid4())
    with tempfile.TemporaryDirectory(prefix="buttercup-demo-") as folder:
        packed = pack(Path(folder))
        key = read_credentials(stack.plan.home / CREDENTIALS)
        with TaskServerClient(stack.plan.api_url, key.key_id, key.token) as client:
            began = time.monotonic()
            status = post_and_follow(
                client,
                packed,
                task_id=task_id,
                project_name=PROJECT_NAME,
                deadline_seconds=DEADLINE_SECONDS,
                address="127.0.0.1",
                goes_on=goes_on,
            )
            if status == INTERRUPTED:
                return status
            _say(f"the task took {time.monotonic() - began:.1f} s")
    with TaskRegistry.from_url(stack.redis_url) as registry:
        record = registry.get(task_id)
        if record.path:
            _say("the prepared task, as its consumers find it:")
            print("\n".join(tree(Path(record.path))))
        _say("its line in the registry, which `buttercup-registry list` prints:")
        put_table(make_console(), HEADINGS, task_rows([record]), shrink="PROJECT", colored="STATE")
    _say(f"its run in Dagster: {record.run_id}")
    _wait_for_run(stack.plan.dagster_url, record.run_id or "", goes_on)
    return status


def pack(into: Path) -> PackedTask:
    """This project's own sources and the example tooling as a task's tarballs.

    Args:
        into: an empty folder for them.

    Raises:
        PackingError: they cannot be packed.
    """
    package = Path(__file__).parents[1]
    clone = package.parent
    if (clone / ".git").exists() and shutil.which("git"):
        _say("packing this repository, and examples/fuzz-tooling")
        source, tooling = clone, clone / "examples" / "fuzz-tooling"
    else:
        _say("packing the sources of the installed packages, and their example tooling")
        source, tooling = into / NAME, package / "examples" / "fuzz-tooling"
        for name in ("buttercup_dagster", "task_api"):
            shutil.copytree(
                clone / name, source / name, ignore=shutil.ignore_patterns("__pycache__")
            )
    if not tooling.is_dir():
        tooling = clone / "examples" / "fuzz-tooling"
    return pack_task(
        source,
        project_name=PROJECT_NAME,
        focus=NAME,
        fuzz_tooling=tooling,
        base=None,
        into=into,
    )


def tree(folder: Path) -> list[str]:
    """The upper levels of a task's folder, one line for each name."""
    lines = [str(folder)]
    for part in sorted(folder.iterdir()):
        lines.append(f"  {part.name}{'/' if part.is_dir() else ''}")
        for top in sorted(part.iterdir()) if part.is_dir() else []:
            lines.append(f"    {printable(top.name)}/")
            names = sorted(top.iterdir(), key=lambda name: (not name.is_dir(), name.name))
            lines += [
                f"      {printable(name.name)}{'/' if name.is_dir() else ''}"
                for name in names[:SHOWN_NAMES]
            ]
            if len(names) > SHOWN_NAMES:
                lines.append(f"      … {len(names) - SHOWN_NAMES} more")
    return lines


def _wait_for_run(dagster_url: str, run_id: str, goes_on: Callable[[], bool]) -> None:
    """Give the run time to end: the task is ready before Dagster has been told everything."""
    query = "query($id: ID!) { runOrError(runId: $id) { ... on Run { endTime } } }"
    end = time.monotonic() + SETTLE_SECONDS
    while goes_on() and time.monotonic() < end:
        if ask_dagster(dagster_url, query, "runOrError", "endTime", id=run_id):
            return
        time.sleep(0.2)


def _how_to_go_on(home: Path) -> str:
    steps = {
        "buttercup up": "everything; then, elsewhere:",
        f"http://127.0.0.1:{DEFAULT_DAGSTER_PORT}": "Dagster, with the run",
        "buttercup-registry list": "what became of each task",
        "buttercup submit PATH --project_name NAME": "a task of your own",
    }
    activate = Path(sys.prefix) / "bin" / "activate"
    if shutil.which(PROGRAM) is None and activate.exists():
        steps = {f". {os.path.relpath(activate)}": "finds the commands", **steps}
    lines = [f"  {step:<43} {what}" for step, what in steps.items()]
    return "\n".join(["", f"The task stays in {home}. To go on:", "", *lines])


@contextmanager
def logged(path: Path) -> Iterator[Show]:
    """Write the lines of the processes to a file."""
    with path.open("w", encoding="utf-8", buffering=1) as file:

        def show(name: str, text: str) -> None:
            if not file.closed:
                file.write(f"{name or PROGRAM:<9} {plain(text)}\n")

        yield show


def _say(text: str) -> None:
    print(f"▸ {text}", flush=True)
