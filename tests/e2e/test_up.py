"""`buttercup up` as its user sees it: what comes up, what survives, and that nothing stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from task_api.auth import read_credentials
from task_api.client import TaskServerClient
from tests.e2e.archives import pack
from tests.e2e.source_server import SourceServer
from tests.e2e.stack import BIN, ROOT, Child
from tests.support.environment import without_settings
from tests.support.redis_server import free_port
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SERVICES = {
    "redis": "redis-server",
    "server": "task_api.cli",
    "code": "dagster api grpc",
    "daemon": "dagster._daemon",
    "dagster": "dagster_webserver",
}


def parent_of(entry: Path) -> int:
    """The parent of a process, by its folder in /proc."""
    return int((entry / "stat").read_text().rpartition(") ")[2].split()[1])


def command_line(entry: Path) -> str:
    """The command of a process; empty if it has ended, even if nobody has collected it yet."""
    try:
        return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def belongs_to(entry: Path, home: Path) -> bool:
    """Whether a process was started with this home folder, by its folder in /proc."""
    try:
        environment = (entry / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"BUTTERCUP_HOME={home}".encode() in environment


class Machine:
    """A home folder, free ports, and `buttercup up` on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.port, self.dagster_port = free_port(), free_port()
        self.env = without_settings() | {
            "BUTTERCUP_HOME": str(self.home),
            "COLUMNS": "80",
            # A proxy for the rest of the world is none for this machine.
            "http_proxy": "http://127.0.0.1:9",
        }
        # `up` may be started in a folder that somebody else has filled.
        for name in ("redis", "dagster", "uvicorn"):
            (folder / f"{name}.py").write_text("raise SystemExit('imported from the folder')")
        self.log = folder / "up.log"
        self.child: Child | None = None

    def command(self, *arguments: str) -> list[str]:
        return [str(BIN / "buttercup"), "up", *arguments]

    def up(self) -> None:
        self.child = Child(
            "up",
            self.command("--port", str(self.port), "--dagster_port", str(self.dagster_port)),
            log=self.log,
            cwd=self.folder,
            env=self.env,
        )
        wait_for(lambda: "everything is up" in self.shown, "everything is up", seconds=90)

    @property
    def shown(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def processes(self) -> dict[int, str]:
        """Every process that was started with this home folder: its id and command line."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                line = command_line(entry)
                # Redis overwrites its environment with its title; it is known by its parent.
                if line and (belongs_to(entry, self.home) or parent_of(entry) == self.process):
                    found[int(entry.name)] = line
            except OSError:
                continue
        return found

    @property
    def process(self) -> int:
        assert self.child is not None
        return self.child._process.pid

    def process_of(self, service: str) -> int | None:
        for process, line in self.processes().items():
            entry = Path(f"/proc/{process}")
            if SERVICES[service] in line and entry.exists() and parent_of(entry) == self.process:
                return process
        return None

    def left(self) -> list[str]:
        """What runs with this home folder, after its parent has ended."""
        entries = Path("/proc").glob("[0-9]*")
        return [command_line(entry) for entry in entries if belongs_to(entry, self.home)]

    def answers(self, url: str) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("up"))
    made.up()
    try:
        yield made
    finally:
        assert made.child is not None
        made.child.stop()


def test_banner_says_where_everything_is(machine: Machine) -> None:
    banner = machine.shown.partition("everything is up")[2]
    assert f"API      http://127.0.0.1:{machine.port}" in banner
    assert f"Dagster  http://127.0.0.1:{machine.dagster_port}" in banner
    assert f"Key      {machine.home / 'credentials'}" in banner
    assert "buttercup submit PATH" in banner
    assert machine.answers(f"http://127.0.0.1:{machine.port}/readyz")
    assert machine.answers(f"http://127.0.0.1:{machine.dagster_port}/server_info")
    assert all(" │ " in line for line in machine.shown.splitlines())
    assert "\x1b" not in machine.shown


def test_other_commands_find_it_by_its_home(machine: Machine) -> None:
    listed = machine.run("buttercup-registry", "list")
    assert (listed.returncode, listed.stdout) == (0, "no tasks\n"), listed.stderr
    key = machine.run("buttercup", "auth", "show")
    assert key.stdout in (machine.home / "credentials").read_text()
    password = re.search(r"redis://:(\w+)@", (machine.home / "up.env").read_text())
    assert password is not None
    assert password[1] not in machine.shown
    for secret in ("up.env", "credentials"):
        assert (machine.home / secret).stat().st_mode & 0o077 == 0
    assert all(password[1] not in line for line in machine.processes().values())


def test_second_one_is_refused(machine: Machine) -> None:
    said = machine.run("buttercup", "up", "--port", "1", "--dagster_port", "2")
    assert said.returncode == 2
    assert said.stderr.count("\n") == 1
    assert "is in use by another `buttercup up`" in said.stderr


@pytest.mark.parametrize("flag", ["--port", "--dagster_port"])
def test_taken_port_is_refused(machine: Machine, tmp_path: Path, flag: str) -> None:
    ports = {"--port": str(free_port()), "--dagster_port": str(free_port())}
    ports[flag] = str(machine.port)
    arguments = [part for pair in ports.items() for part in pair]
    said = machine.run("buttercup", "--home", str(tmp_path / "other"), "up", *arguments)
    assert said.returncode == 2
    assert said.stderr == (
        f"buttercup: {flag}: cannot listen on 127.0.0.1:{machine.port} (Address already in use); "
        f"stop what uses it, or choose another with {flag}\n"
    )


@pytest.mark.parametrize("service", SERVICES)
def test_killed_process_is_started_again(machine: Machine, service: str) -> None:
    first = machine.process_of(service)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_for(
        lambda: machine.process_of(service) not in {None, first}, f"{service} again", seconds=30
    )
    assert f"{service} was ended by signal 9; starting it again" in machine.shown
    wait_for(
        lambda: machine.answers(f"http://127.0.0.1:{machine.port}/readyz"),
        "a task would be worked on",
        seconds=90,
    )


def test_submitted_folder_becomes_a_task(machine: Machine) -> None:
    """After every process was killed once, and without a word about where anything is."""
    said = machine.run(
        *["buttercup", "submit", str(ROOT / "task_api"), "--project_name", "buttercup"],
        *["--fuzz_tooling", str(ROOT / "examples" / "fuzz-tooling"), "--focus", "api"],
    )
    assert said.returncode == 0, said.stdout + said.stderr
    assert said.stderr == ""
    folder = Path(said.stdout.splitlines()[-1].partition(" on ")[0])
    assert folder.parent == machine.home / "tasks"
    here = {path.name for path in (ROOT / "task_api").iterdir()}
    assert {path.name for path in (folder / "src" / "api").iterdir()} == here
    tooling = folder / "fuzz-tooling" / "fuzz-tooling"
    helper = [str(tooling / "infra" / "helper.py"), "check", "buttercup"]
    assert subprocess.run(helper, check=False).returncode == 0


def test_ctrl_c_stops_everything(machine: Machine) -> None:
    assert machine.child is not None
    ran = machine.processes()
    assert len(ran) > len(SERVICES)
    machine.child._process.send_signal(signal.SIGINT)
    assert machine.child._process.wait(60) == 0
    assert machine.processes() == {}
    assert not [process for process in ran if command_line(Path(f"/proc/{process}"))]
    assert machine.shown.endswith("stopped\n")
    assert not (machine.home / "up.env").exists()


@pytest.mark.slow
def test_killed_up_leaves_no_process_even_during_a_download(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.up()
    archive = pack(tmp_path / "repo.tar.gz", {"repo/a": b"a" * 200_000})
    gate = threading.Event()
    with SourceServer() as sources:
        url = sources.url(archive.path, gate=gate)
        key = read_credentials(machine.home / "credentials")
        with TaskServerClient(f"http://127.0.0.1:{machine.port}", key.key_id, key.token) as client:
            client.submit(
                {
                    "task_id": str(uuid.uuid4()),
                    "type": "full",
                    "project_name": "demo",
                    "focus": "repo",
                    "deadline": int((time.time() + 3600) * 1000),
                    "harnesses_included": False,
                    "metadata": {},
                    "source": [{"type": "repo", "url": url, "sha256": archive.sha256}],
                }
            )
        assert sources.waiting.wait(40)
        ran = machine.processes()
        assert machine.child is not None
        machine.child._process.kill()
        machine.child._process.wait(10)
        wait_for(
            lambda: not [process for process in ran if command_line(Path(f"/proc/{process}"))],
            "nothing is left",
            seconds=30,
        )
        assert machine.processes() == {}


@pytest.mark.slow
def test_demo_shows_a_prepared_task_and_ends(tmp_path: Path) -> None:
    """From nothing, with everything it needs in a home folder of its own."""
    machine = Machine(tmp_path)
    # The key of another server, such as `buttercup auth new` makes, is in nobody's way.
    (tmp_path / ".env").write_text(machine.run("buttercup", "auth", "new").stdout)
    said = subprocess.run(
        [str(BIN / "buttercup"), "demo"],
        cwd=tmp_path,
        env=machine.env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    log = machine.home / "demo.log"
    assert said.returncode == 0, f"{said.stdout}{said.stderr}{log.read_text()[-3000:]}"
    (task_id,) = re.findall(r"^task ([0-9a-f-]{36}) posted$", said.stdout, re.MULTILINE)
    assert re.search(rf"^{task_id}  ready  buttercup  full", said.stdout, re.MULTILINE)
    assert "      task_api/\n" in said.stdout
    assert re.search(r"its run in Dagster: [0-9a-f-]{36}\n", said.stdout)
    assert "buttercup submit PATH" in said.stdout
    folder = machine.home / "tasks" / task_id
    assert (folder / "task_meta.json").is_file()
    assert (folder / "src" / "buttercup-orchestrator" / "task_api").is_dir()
    assert not (machine.home / "up.env").exists()
    assert machine.left() == []


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_and_cancels_its_task(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    process = subprocess.Popen(
        [str(BIN / "buttercup"), "demo"],
        cwd=tmp_path,
        env=machine.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.endswith("posted\n"):
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped waiting for task" in errors
    assert machine.left() == []
