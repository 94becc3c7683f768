"""`buttercup submit`: from a folder on this machine to a prepared task."""

from __future__ import annotations

import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from buttercup_dagster.cli.arguments import fail
from buttercup_dagster.cli.buttercup import PROGRAM, Commands, Submit
from buttercup_dagster.cli.console import give_up, harmless
from buttercup_dagster.cli.follow import Progress, follow
from buttercup_dagster.cli.signals import INTERRUPTED, ended_by_signals
from buttercup_dagster.packing.errors import PackingError
from buttercup_dagster.packing.serve import SourceServer, reachable_address
from buttercup_dagster.packing.task import PackedTask, pack_task
from task_api.auth import CREDENTIALS, KeyUnusable, read_credentials
from task_api.client import RequestRefused, ServerUnavailable, TaskServerClient
from task_api.task import SourceType


def run(settings: Commands, command: Submit) -> int:
    """Pack, serve and post a task, and wait for its end.

    Returns:
        0 if it is ready; 1 if it ended otherwise; 130 after Ctrl-C.

    Raises:
        SystemExit: status 2, the input cannot be packed; status 1, it cannot be posted.
    """
    try:
        with ended_by_signals():
            return _submit(settings, command)
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROGRAM}: stopped before the task was posted\n")
        return INTERRUPTED


def _submit(settings: Commands, command: Submit) -> int:
    key_id, token = key_of(settings)
    with tempfile.TemporaryDirectory(prefix="buttercup-submit-") as folder:
        try:
            packed = pack_task(
                command.path,
                project_name=command.project_name,
                focus=command.focus,
                fuzz_tooling=command.fuzz_tooling,
                base=command.base,
                into=Path(folder),
            )
        except PackingError as error:
            text = str(error)
            fail(PROGRAM, f"--{text}" if text.startswith(("focus:", "project_name:")) else text)
        for note in packed.notes:
            sys.stderr.write(f"{PROGRAM}: warning: {harmless(note)}\n")
        task_id = command.task_id or str(uuid.uuid4())
        with TaskServerClient(settings.url, key_id, token) as client:
            try:
                return post_and_follow(
                    client,
                    packed,
                    task_id=task_id,
                    project_name=command.project_name,
                    deadline_seconds=command.deadline_seconds,
                    address=reachable_address(settings.url),
                )
            except (ServerUnavailable, RequestRefused) as error:
                give_up(PROGRAM, _with_advice(error, settings))
            except PackingError as error:
                give_up(PROGRAM, str(error))


def key_of(settings: Commands) -> tuple[str, str]:
    """Id and token to post with: as set, else those in the home folder.

    Raises:
        SystemExit: status 2, there is no key, or half of one is set.
    """
    if settings.api_key_id and settings.api_token:
        return settings.api_key_id, settings.api_token
    if settings.api_key_id or settings.api_token:
        given, lacking = "api_key_id", "api_token"
        if not settings.api_key_id:
            given, lacking = lacking, given
        fail(
            PROGRAM,
            f"--{given} is set and --{lacking} is not; set both, also by BUTTERCUP_API_KEY_ID and "
            "BUTTERCUP_API_TOKEN, or neither to post with the key in the home folder",
        )
    path = settings.home / CREDENTIALS
    try:
        found = read_credentials(path)
    except KeyUnusable as error:
        if path.exists():
            fail(PROGRAM, str(error))
        fail(
            PROGRAM,
            f"there is no key in {path}; start `buttercup up`, or set BUTTERCUP_API_KEY_ID and "
            "BUTTERCUP_API_TOKEN to the key of the task server",
        )
    return found.key_id, found.token


def post_and_follow(
    client: TaskServerClient,
    packed: PackedTask,
    *,
    task_id: str,
    project_name: str,
    deadline_seconds: int,
    address: str,
    goes_on: Callable[[], bool] = lambda: True,
) -> int:
    """Serve the tarballs, post the task, and show what becomes of it.

    Args:
        client: of the task server.
        packed: the tarballs.
        task_id: the task's id, a UUID.
        project_name: OSS-Fuzz project name.
        deadline_seconds: from now.
        address: of this machine, for the workers.
        goes_on: asked a few times a second; false ends the wait as Ctrl-C does.

    Returns:
        0 if the task is ready; 1 if it ended otherwise; 130 after Ctrl-C.

    Raises:
        ServerUnavailable, RequestRefused: it cannot be posted.
    """
    files = {str(kind): source.path for kind, source in packed.sources.items()}
    with SourceServer(files, address=address) as server:
        urls = {name: server.url(name) for name in files}
        body = _body(packed, urls, task_id, project_name, deadline_seconds)
        progress = Progress(
            {str(kind): source.bytes for kind, source in packed.sources.items()}, server.sent
        )
        try:
            client.submit(body)
            print(f"task {task_id} posted", flush=True)
            state = follow(client, task_id, progress, goes_on=goes_on)
        except KeyboardInterrupt:
            _leave(client, task_id)
            return INTERRUPTED
    return 0 if state in {"ready", "succeeded", "failed"} else 1


def _body(
    packed: PackedTask,
    urls: Mapping[str, str],
    task_id: str,
    project_name: str,
    deadline_seconds: int,
) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "type": str(packed.type),
        "project_name": project_name,
        "focus": packed.focus,
        "deadline": int((time.time() + deadline_seconds) * 1000),
        "harnesses_included": SourceType.FUZZ_TOOLING in packed.sources,
        "metadata": {},
        "source": [
            {"type": str(kind), "url": urls[str(kind)], "sha256": source.sha256}
            for kind, source in packed.sources.items()
        ],
    }


def _leave(client: TaskServerClient, task_id: str) -> None:
    """After Ctrl-C: a task whose sources nobody serves any more cannot be prepared."""
    try:
        if _has_arrived(client, task_id):
            text = "its sources have arrived, so it goes on"
        else:
            client.cancel(task_id)
            text = "it is cancelled, since its sources came from here"
    except (ServerUnavailable, RequestRefused) as error:
        text = (
            "it is recorded, and what is not stored yet cannot be fetched any more; cancel it "
            f"later ({error})"
        )
    sys.stderr.write(f"{PROGRAM}: stopped waiting for task {task_id}; {harmless(text)}\n")


def _has_arrived(client: TaskServerClient, task_id: str) -> bool:
    try:
        sources = client.task(task_id)["sources"]
    except RequestRefused:  # it may come yet; then its cancel is remembered
        return False
    return all(source["state"] != "waiting" for source in sources)


def _with_advice(error: Exception, settings: Commands) -> str:
    if isinstance(error, RequestRefused) and error.status == 401:
        return f"{settings.url} does not accept the key: {error}"
    if isinstance(error, ServerUnavailable):
        return f"{error}; start `buttercup up`, or name another server with --url or BUTTERCUP_URL"
    return str(error)
