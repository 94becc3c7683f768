"""`buttercup submit` against a real task server; the worker is played by the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from buttercup_dagster.cli.buttercup import main
from task_api.registry import TaskRecord, TaskRegistry
from task_api.task import Reason, SourceType, TaskState, TaskType
from tests.support.redis_server import free_port
from tests.support.server import KEY_ID, TOKEN, Client, TaskServer
from tests.support.waiting import wait_for

PROJECT = "demo-project"


@pytest.fixture
def server(
    home: Path, redis_url: str, registry: TaskRegistry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Client]:
    """A task server whose key and URL stand in the environment."""
    with TaskServer(redis_url) as client:
        monkeypatch.setenv("BUTTERCUP_URL", client.url)
        monkeypatch.setenv("BUTTERCUP_API_KEY_ID", KEY_ID)
        monkeypatch.setenv("BUTTERCUP_API_TOKEN", TOKEN)
        yield client


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder to submit."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "main.c").write_text("int main(void) {\n}\n")
    return folder


class Worker(threading.Thread):
    """Takes the one task that is posted, fetches its sources, and ends it as it is told."""

    def __init__(self, registry: TaskRegistry, *, fail: Reason | None = None) -> None:
        super().__init__(daemon=True)
        self._registry = registry
        self._fail = fail
        self.record: TaskRecord | None = None
        self.fetched: dict[SourceType, bytes] = {}

    def run(self) -> None:
        (claim,) = wait_for(lambda: self._registry.claim(1), "a task is posted")
        attempt = self._registry.start(
            claim.task_id, run_id="run", machine="here", token=claim.token
        )
        with urllib3.PoolManager(retries=False) as http:
            for source in attempt.task.sources:
                self.fetched[source.type] = http.request("GET", source.urls[0]).data
                for state in ("verified", "unpacked"):
                    self._registry.report_source(
                        claim.task_id,
                        attempt.token,
                        source.type,
                        state,
                        sha256=source.sha256,
                        bytes_=len(self.fetched[source.type]),
                    )
        self.record = self._registry.get(claim.task_id)
        if self._fail is not None:
            self._registry.fail(claim.task_id, attempt.token, self._fail)
        else:
            self._registry.ready(claim.task_id, attempt.token, path="/tasks/x", machine="here")


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    """Status and the one line on standard error."""
    with pytest.raises(SystemExit) as ended:
        main(["submit", *arguments])
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return ended.value.code, said.removeprefix("buttercup: ").strip()


def test_task_that_becomes_ready(
    server: Client, project: Path, registry: TaskRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    tooling = project.with_name("tooling")
    (tooling / "infra").mkdir(parents=True)
    (tooling / "infra" / "helper.py").touch()
    worker = Worker(registry)
    worker.start()
    status = main(
        ["submit", str(project), "--project_name", PROJECT, "--fuzz_tooling", str(tooling)]
    )
    said = capsys.readouterr()
    assert status == 0
    record = worker.record
    assert record is not None
    assert (record.task.project_name, record.task.focus) == (PROJECT, "project")
    assert record.task.harnesses_included
    assert set(worker.fetched) == {SourceType.REPO, SourceType.FUZZ_TOOLING}
    lines = said.out.splitlines()
    assert lines[0] == f"task {record.task.task_id} posted"
    assert lines[-2:] == ["ready", "/tasks/x on here"]
    assert any(line.startswith("repo unpacked, ") for line in lines)
    assert f"projects/{PROJECT}/project.yaml, which consumers need" in said.err
    assert "token=" not in said.out + said.err


def test_task_that_fails_says_why(
    server: Client, project: Path, registry: TaskRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    Worker(registry, fail=Reason("unsafe_archive", "repo: the name climbs")).start()
    assert main(["submit", str(project), "--project_name", PROJECT]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "errored: repo: the name climbs"


def test_delta_of_a_git_repository(server: Client, project: Path, registry: TaskRegistry) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments],
            cwd=project,
            check=True,
            capture_output=True,
        )

    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    (project / "main.c").write_text("int main(void) {\n  return 1;\n}\n")
    git("commit", "-a", "-m", "two")
    worker = Worker(registry)
    worker.start()
    assert main(["submit", str(project), "--project_name", PROJECT, "--base", "HEAD~1"]) == 0
    assert worker.record is not None
    assert worker.record.task.type is TaskType.DELTA
    assert set(worker.fetched) == {SourceType.REPO, SourceType.DIFF}


def test_ctrl_c_cancels_what_cannot_be_fetched_any_more(
    server: Client, project: Path, registry: TaskRegistry
) -> None:
    process = subprocess.Popen(
        [
            *[str(Path(sys.executable).parent / "buttercup"), "submit", str(project)],
            *["--project_name", PROJECT],
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
    )
    (record,) = wait_for(lambda: registry.page(limit=2), "the task is posted")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == (
        f"buttercup: stopped waiting for task {record.task.task_id}; it is cancelled, since its "
        "sources came from here\n"
    )
    assert registry.get(record.task.task_id).state is TaskState.CANCELED


def test_wrong_key(
    server: Client,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BUTTERCUP_API_TOKEN", "wrong")
    status, text = error_of(capsys, str(project), "--project_name", PROJECT)
    assert status == 1
    assert text.startswith(f"{server.url} does not accept the key: unknown key id or wrong token")


def test_no_server(
    server: Client,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("BUTTERCUP_URL", url)
    status, text = error_of(capsys, str(project), "--project_name", PROJECT)
    assert status == 1
    assert text.startswith(f"the task server at {url} does not answer")
    assert text.endswith("start `buttercup up`, or name another server with --url or BUTTERCUP_URL")


def test_no_key(home: Path, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = error_of(capsys, str(project), "--project_name", PROJECT)
    assert status == 2
    assert text == (
        f"there is no key in {home}/credentials; start `buttercup up`, or set "
        "BUTTERCUP_API_KEY_ID and BUTTERCUP_API_TOKEN to the key of the task server"
    )


@pytest.mark.parametrize(
    ("variable", "value", "given", "lacking"),
    [
        ("BUTTERCUP_API_TOKEN", "a-token", "api_token", "api_key_id"),
        ("BUTTERCUP_API_KEY_ID", KEY_ID, "api_key_id", "api_token"),
    ],
)
def test_half_a_key_is_refused(
    *,
    server: Client,
    project: Path,
    variable: str,
    value: str,
    given: str,
    lacking: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("BUTTERCUP_API_KEY_ID", "BUTTERCUP_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    status, text = error_of(capsys, str(project), "--project_name", PROJECT)
    assert status == 2
    assert text.startswith(f"--{given} is set and --{lacking} is not; set both")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ["--deadline", "8x"],
            "--deadline: '8x' is no span of time; give one such as 90m, 8h or 2d",
        ),
        (
            ["--deadline", "0h"],
            "--deadline: '0h' is no span of time; give one such as 90m, 8h or 2d",
        ),
        (["--base", "HEAD"], "is not a git repository, so there is no commit 'HEAD' in it"),
        (["--focus", "../x"], "--focus: '../x' holds a '/'"),
        (["--fuzz_tooling", "/none"], "/none does not exist; give a folder"),
        (["--task_id", "7"], "--task_id: '7' is not a UUID like"),
    ],
)
def test_input_that_cannot_be_meant(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    text: str,
) -> None:
    monkeypatch.setenv("BUTTERCUP_API_KEY_ID", KEY_ID)
    monkeypatch.setenv("BUTTERCUP_API_TOKEN", TOKEN)
    status, said = error_of(capsys, str(project), "--project_name", PROJECT, *arguments)
    assert status == 2
    assert text in said
