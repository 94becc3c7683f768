"""The whole product as real processes: Redis, the task server, `dagster dev`."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Self

import argon2
import dagster as dg
from dagster._core.instance import InstanceRef

from benchmarks.postgres import Database
from task_api.registry import TaskRegistry
from task_api.task import TaskState, UnknownTask
from task_api.workers import Workers
from tests.e2e.source_server import SourceServer
from tests.support.environment import environment, without_settings
from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
JOB = "ingest"


class Child:
    """A process in a group of its own, with its output in a file."""

    def __init__(self, name: str, command: list[str], *, log: Path, cwd: Path, env: dict[str, str]):
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, once it has ended."""
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        self._signal(signal.SIGKILL)
        self._process.wait(10)

    def stop(self, seconds: float = 15.0) -> None:
        """SIGTERM, and SIGKILL to what is left of the group."""
        if self.alive:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
        self._signal(signal.SIGKILL)
        self._process.wait(10)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class Stack:
    """Redis, the task server, `dagster dev` and a server of sources; a context manager.

    Everything is started as the README tells people to, in an empty folder that holds copies of
    the two files of the repository that Dagster reads there. With a warm worker, Dagster's instance
    is that of `buttercup up`, in a folder of its own; with a database, that of many machines, of
    which this is the first.
    """

    def __init__(self, folder: Path, *, warm: bool, database: Database | None = None) -> None:
        self.warm = warm
        self.folder = folder
        self.home = folder / "home"
        self.project = folder / "project"
        for made in (self.home, self.project):
            made.mkdir(parents=True)
        for name in ("dagster.yaml", "workspace.yaml"):
            shutil.copy(ROOT / name, self.project / name)
        self.api_port, self.ui_port = free_port(), free_port()
        self.redis = RedisServer().start()
        self.key_id, self.key_token = str(uuid.uuid4()), secrets.token_hex(24)
        self.marker = uuid.uuid4().hex
        self.children: dict[str, Child] = {}
        self.sources = SourceServer()
        hasher = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
        inherited = without_settings()
        self.env = inherited | {
            "PATH": f"{BIN}{os.pathsep}{inherited.get('PATH', '')}",
            "PYTHONUNBUFFERED": "1",
            "BUTTERCUP_REDIS_URL": self.redis.url,
            "BUTTERCUP_HOME": str(self.home),
            "BUTTERCUP_TASK_SERVER_API_KEY_ID": self.key_id,
            "BUTTERCUP_TASK_SERVER_API_TOKEN_HASH": hasher.hash(self.key_token),
            "BUTTERCUP_E2E": self.marker,
        }
        if warm:
            self.dagster_home = folder / "dagster"
            self.dagster_home.mkdir()
            name = "one_machine.yaml" if database is None else "many_machines.yaml"
            template = ROOT / "buttercup_dagster" / "instance" / name
            shutil.copy(template, self.dagster_home / "dagster.yaml")
            self._found_by = {"DAGSTER_HOME": str(self.dagster_home)}
            if database is not None:
                self._found_by |= database.environment
            self.env |= self._found_by
        self.registry = TaskRegistry.from_url(self.redis.url)
        self.workers = Workers.from_url(self.redis.url)

    # --- processes ---------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.sources.__enter__()
        try:
            self.start_dagster()
            self.start_server()
            if self.warm:
                self.start_worker()
            self._wait_until_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process that this stack started, whoever started it within."""
        for child in self.children.values():
            child.stop()
        for process in self._left_over():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.registry.close()
        self.workers.close()
        self.redis.close()
        self.sources.__exit__()

    def _left_over(self) -> list[int]:
        """Processes that carry this stack's marker in their environment."""
        found = []
        needle = f"BUTTERCUP_E2E={self.marker}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if needle in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return [process for process in found if process != os.getpid()]

    def launch_program(self, name: str, command: list[str]) -> None:
        """Start a program, with its output in a log of its own."""
        log = self.folder / f"{name}.log"
        self.children[name] = Child(name, command, log=log, cwd=self.project, env=self.env)

    def start_server(self) -> None:
        """Start the task server on the same port as before."""
        command = [str(BIN / "buttercup-task-server"), "--port", str(self.api_port)]
        self.launch_program("server", command)
        wait_for(self.serves, "the task server answers", seconds=30)

    def serves(self) -> bool:
        """Whether the task server answers."""
        try:
            return self.http("GET", "/healthz")[0] == 200
        except OSError:
            return False

    def shows_pages(self) -> bool:
        """Whether Dagster serves its pages."""
        try:
            return bool(self.graphql("{ version }"))
        except OSError:
            return False

    def start_worker(self, name: str = "worker", *flags: str, **settings: str) -> Child:
        """Start a warm worker, with flags or with variables."""
        live = set(self.workers.live())
        log = self.folder / f"{name}.log"
        command = [str(BIN / "buttercup-downloader"), "serve", *flags]
        environment = {**self.env, **settings}
        child = Child(name, command, log=log, cwd=self.project, env=environment)
        self.children[name] = child
        wait_for(lambda: set(self.workers.live()) - live, "the worker has slots", seconds=60)
        return child

    def start_dagster(self) -> None:
        """Start `dagster dev` as the README says; for plain runs without DAGSTER_HOME."""
        command = [str(BIN / "dagster"), "dev", "-w", "workspace.yaml", "-p", str(self.ui_port)]
        self.launch_program("dagster", command)

    def _wait_until_up(self) -> None:
        def sensor_seen() -> bool:
            assert self.children["dagster"].alive, "dagster dev ended"
            return self.registry.status().sensor_seen_ms is not None

        wait_for(sensor_seen, "the intake sensor reports", seconds=60)
        wait_for(self.shows_pages, "Dagster serves its pages", seconds=60)

    def logs(self, characters: int = 6000) -> str:
        """The end of every log, for a failure's report."""
        parts = []
        for log in sorted(self.folder.glob("*.log")):
            text = log.read_text("utf-8", "replace")
            parts.append(f"--- {log.name} ---\n{text[-characters:]}")
        return "\n".join(parts)

    # --- the API -----------------------------------------------------------------------------

    def http(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Status and text of an authenticated request to the task server."""
        key = base64.b64encode(f"{self.key_id}:{self.key_token}".encode()).decode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api_port}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Basic {key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def post(self, *tasks: dict[str, Any], message_id: str | None = None) -> tuple[int, str]:
        """Send tasks in one message."""
        return self.http(
            "POST",
            "/v1/task/",
            {
                "message_id": message_id or str(uuid.uuid4()),
                "message_time": int(time.time() * 1000),
                "tasks": list(tasks),
            },
        )

    def state(self, task_id: str) -> TaskState | None:
        """Where a task stands, or None if it is unknown."""
        try:
            return self.registry.get(task_id).state
        except UnknownTask:
            return None

    def wait_state(self, task_id: str, *states: TaskState, seconds: float = 45.0) -> TaskState:
        """Wait until a task is in one of these states."""
        try:
            found = wait_for(
                lambda: state if (state := self.state(task_id)) in states else None,
                f"task {task_id} is {' or '.join(states)}",
                seconds=seconds,
            )
        except AssertionError as error:
            record = self.registry.get(task_id)
            kinds = [(e.kind, dict(e.fields)) for e in self.registry.events(task_id)]
            raise AssertionError(
                f"{error}; it is {record.state}: {record.reason}, {kinds}"
            ) from error
        assert found is not None
        return found

    def announced(self, task_id: str) -> list[dict[str, str]]:
        """The entries of the ready stream for a task."""
        raw: Any = self.registry._redis.xrange("buttercup:ready")
        entries = [{k.decode(): v.decode() for k, v in fields.items()} for _, fields in raw]
        return [entry for entry in entries if entry["task_id"] == task_id]

    def task_folder(self, task_id: str) -> Path:
        """Where the prepared task stands."""
        return self.home / "tasks" / task_id

    def partial_files(self) -> list[Path]:
        """Files and folders in the store and beside the tasks that are no finished thing."""
        return [
            path
            for path in [*(self.home / "store").rglob("*"), *(self.home / "tasks").glob("*")]
            if path.is_file() and ("part" in path.name or "tmp" in path.parts)
        ]

    # --- Dagster -----------------------------------------------------------------------------

    def instance(self) -> dg.DagsterInstance:
        """The instance that `dagster dev` works on."""
        if self.warm:
            with environment(**self._found_by):
                return dg.DagsterInstance.from_config(str(self.dagster_home))
        (home,) = self.project.glob(".tmp_dagster_home_*")
        return dg.DagsterInstance.from_ref(
            InstanceRef.from_dir(str(home), config_dir=str(self.project))
        )

    def runs(self, task_id: str) -> list[dg.DagsterRun]:
        """The runs of a task's partition, newest first."""
        with self.instance() as instance:
            return list(
                instance.get_runs(filters=dg.RunsFilter(tags={"dagster/partition": task_id}))
            )

    def wait_run(
        self, task_id: str, *statuses: dg.DagsterRunStatus, count: int = 1
    ) -> dg.DagsterRun:
        """Wait until the newest of (at least) `count` runs of a task has one of these statuses."""

        def look() -> dg.DagsterRun | None:
            runs = self.runs(task_id)
            return runs[0] if len(runs) >= count and runs[0].status in statuses else None

        found = wait_for(look, f"run {count} of {task_id} is {statuses}", seconds=40, every=0.1)
        assert found is not None
        return found

    def materializations(self, asset: str, task_id: str) -> list[dg.AssetMaterialization]:
        """What Dagster has of one asset of a task, newest first."""
        with self.instance() as instance:
            result = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[task_id]),
                limit=20,
            )
        return [
            record.asset_materialization
            for record in result.records
            if record.asset_materialization
        ]

    def graphql(self, query: str, **variables: Any) -> Any:
        """Ask the web server what the UI would ask it."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ui_port}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            reply = json.load(answer)
        assert "errors" not in reply, reply
        return reply["data"]

    def terminate_run(self, run_id: str) -> None:
        """Press Terminate."""
        data = self.graphql(
            "mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id
        )
        assert data["terminateRun"]["__typename"] == "TerminateRunSuccess", data

    def materialize(self, task_id: str) -> str:
        """Press Materialize on a partition; return the run's id."""
        return self.launch(JOB, {"dagster/partition": task_id})

    def launch(self, job: str, tags: dict[str, str] | None = None) -> str:
        """Launch a job as the UI does; return the run's id."""
        data = self.graphql(
            """
            mutation($params: ExecutionParams!) {
              launchPipelineExecution(executionParams: $params) {
                __typename
                ... on LaunchRunSuccess { run { runId } }
                ... on PythonError { message }
              }
            }
            """,
            params={
                "selector": {
                    "repositoryLocationName": "buttercup_dagster.definitions",
                    "repositoryName": "__repository__",
                    "pipelineName": job,
                },
                "runConfigData": {},
                "mode": "default",
                "executionMetadata": {
                    "tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]
                },
            },
        )["launchPipelineExecution"]
        assert data["__typename"] == "LaunchRunSuccess", data
        return str(data["run"]["runId"])
