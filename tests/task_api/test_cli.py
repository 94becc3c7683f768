"""`buttercup-task-server` as a process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from dotenv import dotenv_values

from task_api.cli import main
from tests.support.redis_server import free_port
from tests.support.server import (
    KEY_ID,
    TOKEN,
    TOKEN_HASH,
    Client,
    ServerProcess,
    wire_message,
    wire_task,
)
from tests.support.waiting import wait_for

COMMAND = str(Path(sys.executable).parent / "buttercup-task-server")

HELP = """\
options:
  -h, --help            show this help message and exit
  --redis_url str       Redis URL (default: redis://localhost:6379)
  --log_level str       Log level (default: info)
  --host str            Host (default: 127.0.0.1)
  --port int            Port (default: 8000)
  --reload, --no-reload
                        Reload source code on change (default: False)
  --workers int         Number of workers (default: 1)
"""

KEY = {
    "BUTTERCUP_TASK_SERVER_API_KEY_ID": KEY_ID,
    "BUTTERCUP_TASK_SERVER_API_TOKEN_HASH": TOKEN_HASH,
}

pytestmark = pytest.mark.usefixtures("home")


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "COLUMNS": "80", **variables},
    )


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def workers(pid: int) -> list[int]:
    found = []
    for child in children(pid):
        with contextlib.suppress(OSError):
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
    return found


def test_help_begins_with_the_documented_options() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert HELP in done.stdout
    assert "--competition_api_url str" in done.stdout


def test_help_loads_no_server() -> None:
    program = (
        "import sys; from task_api.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('fastapi', 'uvicorn', 'redis', 'argon2') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--port", "abc"], "--port: must be a valid integer"),
        (["--port=70000"], "--port: must be less than or equal to 65535"),
        (["--workers", "0"], "--workers: must be greater than or equal to 1"),
        (
            ["--log_level", "loud"],
            "--log_level: choose one of critical, error, warning, info, debug, trace",
        ),
        (
            ["--redis_url", "http://x"],
            (
                "--redis_url: a Redis URL begins with redis://, rediss:// or unix://, such as "
                "redis://localhost:6379 or redis://:password@host:6379/0"
            ),
        ),
        (["--prot", "1"], "unrecognized arguments: --prot 1; see buttercup-task-server --help"),
        (["--port"], "--port: expected one argument; see buttercup-task-server --help"),
        (
            ["--api_key_id", KEY_ID],
            (
                "BUTTERCUP_TASK_SERVER_API_KEY_ID is set, but not "
                "BUTTERCUP_TASK_SERVER_API_TOKEN_HASH; set all of them or none"
            ),
        ),
        (
            ["--competition_api_url", "http://x"],
            (
                "BUTTERCUP_TASK_SERVER_COMPETITION_API_URL is set, but not "
                "BUTTERCUP_TASK_SERVER_COMPETITION_API_KEY_ID and "
                "BUTTERCUP_TASK_SERVER_COMPETITION_API_KEY_TOKEN; set all of them or none"
            ),
        ),
        (
            ["--competition_api_url", "x.example"],
            "--competition_api_url: send a URL that begins with http:// or https://",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_flag_gives_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    (shown,) = err.splitlines()
    assert shown == f"buttercup-task-server: {line}"
    assert out == ""


def test_a_host_that_is_not_known_gives_one_line() -> None:
    done = run("--host", "no-such-host.invalid", **KEY)
    assert done.returncode == 2
    (shown,) = done.stderr.splitlines()
    assert shown.startswith(
        "buttercup-task-server: --host: no-such-host.invalid cannot be resolved ("
    )


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("BUTTERCUP_TASK_SERVER_PORT", "abc", "must be a valid integer"),
        ("BUTTERCUP_TASK_SERVER_RELOAD", "maybe", "must be a valid boolean"),
        ("BUTTERCUP_REDIS_URL", "localhost", "a Redis URL begins with redis://"),
        ("BUTTERCUP_TASK_SERVER_API_KEY_ID", "me", "'me' is not a UUID"),
        ("BUTTERCUP_TASK_SERVER_MAX_BODY_BYTES", "-1", "must be greater than or equal to 1024"),
    ],
)
def test_a_wrong_variable_gives_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    text: str,
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main([])
    assert ended.value.code == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith(f"buttercup-task-server: {name}: {text}")

    Path(".env").write_text(f"{name}={value}\n")
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown.startswith(f"buttercup-task-server: {name} in .env: {text}")


def test_a_malformed_hash_gives_one_line() -> None:
    done = run(**{**KEY, "BUTTERCUP_TASK_SERVER_API_TOKEN_HASH": "=19=65536,t=3,p=4"})
    assert done.returncode == 2
    (shown,) = done.stderr.splitlines()
    assert "is not an Argon2id hash" in shown
    assert "single quotes" in shown


@pytest.mark.parametrize("more", [[], ["--workers", "3"], ["--reload"]], ids=str)
def test_a_taken_port_gives_one_line(more: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--port", str(port), *more, **KEY)
    assert done.returncode == 2
    (shown,) = done.stderr.splitlines()
    assert shown == (
        f"buttercup-task-server: --port: cannot listen on 127.0.0.1:{port} (Address already in "
        "use); stop what uses it, or choose another with --host and --port (0 takes any free one)"
    )


@pytest.mark.parametrize(
    ("number", "more"),
    [
        (signal.SIGTERM, []),
        (signal.SIGINT, []),
        (signal.SIGTERM, ["--workers", "2"]),
        (signal.SIGINT, ["--workers", "2"]),
        (signal.SIGTERM, ["--reload"]),
    ],
    ids=str,
)
def test_a_signal_ends_it_with_status_0(
    tmp_path: Path, redis_url: str, number: signal.Signals, more: list[str]
) -> None:
    with ServerProcess(tmp_path, "--redis_url", redis_url, "--port", "0", *more, **KEY) as server:
        client = Client(server.url)
        assert client.post("/v1/task/", wire_message(wire_task())).status == 202
        os.killpg(server.process.pid, number)
        assert server.wait() == 0
        client.close()
        assert "Traceback" not in server.text


def test_the_documented_call(tmp_path: Path, redis_url: str) -> None:
    port = free_port()
    arguments = f"--redis_url {redis_url} --log_level debug --host 0.0.0.0 --port {port} --reload"
    with ServerProcess(tmp_path, *arguments.split(), "--workers", "4", **KEY) as server:
        text = server.said(f"listening on http://0.0.0.0:{port}")
        assert (
            "buttercup-task-server: warning: --reload runs one worker; --workers 4 is ignored"
            in text
        )
        client = Client(f"http://127.0.0.1:{port}")
        assert client.get("/healthz").status == 200
        assert client.get("/v1/task/?after=secret-query").status == 422
        client.close()
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0
        for secret in ("secret-query", TOKEN, client.authorization):
            assert secret not in server.text


def test_workers_get_every_setting(tmp_path: Path, redis_url: str, home: Path) -> None:
    """Flags of the parent reach its children, the key too, and `ps` shows no secret."""
    with ServerProcess(
        tmp_path,
        "--redis_url",
        redis_url,
        "--port=0",
        "--workers=2",
        "--max_body_bytes=1024",
    ) as server:
        url = server.url
        stored = dotenv_values(home / "credentials")
        client = Client(
            url, stored["BUTTERCUP_API_KEY_ID"] or "", stored["BUTTERCUP_API_TOKEN"] or ""
        )
        for _ in range(6):
            assert client.get("/status/").status == 200
            assert client.post("/v1/task/", raw=b" " * 1025).status == 413
        family = [server.process.pid, *children(server.process.pid)]
        assert len(family) > 2
        shown = "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in family)
        token_hash = stored["BUTTERCUP_TASK_SERVER_API_TOKEN_HASH"] or ""
        assert (stored["BUTTERCUP_API_TOKEN"] or "") not in shown
        assert token_hash not in shown
        assert f"made a key and wrote it to {home / 'credentials'}" in server.text
        assert str(stored["BUTTERCUP_API_TOKEN"]) not in server.text
        client.close()


def test_a_second_start_uses_the_same_key(tmp_path: Path, redis_url: str, home: Path) -> None:
    keys = []
    for part in ("made a key and wrote it to", "using the key in"):
        with ServerProcess(tmp_path, "--redis_url", redis_url, "--port", "0") as server:
            server.said(part)
            server.said("listening on")
        keys.append((home / "credentials").read_bytes())
    assert keys[0] == keys[1]


def test_settings_from_a_file(tmp_path: Path, redis_url: str) -> None:
    port = free_port()
    lines = [
        f"BUTTERCUP_REDIS_URL={redis_url}",
        f"BUTTERCUP_TASK_SERVER_PORT={port}",
        "BUTTERCUP_TASK_SERVER_LOG_LEVEL=WARNING",
        f"BUTTERCUP_TASK_SERVER_API_KEY_ID={KEY_ID.upper()}",
        f"BUTTERCUP_TASK_SERVER_API_TOKEN_HASH='{TOKEN_HASH}'",
        "BUTTERCUP_TASK_SERVER_WORKRES=2",
        "BUTTERCUP_DOWNLOADER_ANYTHING=1",
        "BUTTERCUP_HOM=/elsewhere",
        "this is no setting",
    ]
    Path(".env").write_text("\n".join(lines) + "\n")
    with ServerProcess(tmp_path) as server:
        assert server.url == f"http://127.0.0.1:{port}"
        client = Client(server.url)
        assert client.get("/v1/task/").status == 200
        client.close()
        assert (
            "buttercup-task-server: warning: BUTTERCUP_TASK_SERVER_WORKRES is not a setting and is "
            "ignored; did you mean BUTTERCUP_TASK_SERVER_WORKERS?"
        ) in server.text
        assert (
            "warning: BUTTERCUP_HOM is not a setting and is ignored; did you mean BUTTERCUP_HOME?"
        ) in server.text
        assert "warning: .env, line 9: not NAME=VALUE, and ignored" in server.text
        assert "python-dotenv" not in server.text
        assert "DOWNLOADER" not in server.text


def test_flags_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, redis_url: str
) -> None:
    one, two, three = free_port(), free_port(), free_port()
    Path(".env").write_text(f"BUTTERCUP_TASK_SERVER_PORT={one}\n")
    environment = {**KEY, "BUTTERCUP_TASK_SERVER_PORT": str(two), "BUTTERCUP_REDIS_URL": redis_url}
    with ServerProcess(tmp_path, **environment) as server:
        assert server.url.endswith(f":{two}")
    with ServerProcess(tmp_path, "--port", str(three), **environment) as server:
        assert server.url.endswith(f":{three}")


def test_the_access_log_shows_no_query(tmp_path: Path, redis_url: str) -> None:
    with ServerProcess(tmp_path, "--port=0", "--redis_url", redis_url, **KEY) as server:
        client = Client(server.url)
        client.get("/v1/task/?limit=7&state=pending")
        client.close()
        line = next(
            line for line in server.said("GET /v1/task/").splitlines() if "GET /v1/task/" in line
        )
        assert '"GET /v1/task/ HTTP/1.1" 200' in line


def test_a_worker_that_dies_is_replaced(tmp_path: Path, redis_url: str) -> None:
    with ServerProcess(
        tmp_path, "--port=0", "--workers=2", "--redis_url", redis_url, **KEY
    ) as server:
        client = Client(server.url)
        assert client.get("/healthz").status == 200

        parent = server.process.pid
        # One that dies before it first answers its parent is waited for as a slow start is.
        started = "Application startup complete"
        wait_for(lambda: server.text.count(started) == 2, "the start of both workers")
        before = wait_for(lambda: workers(parent) if len(workers(parent)) == 2 else [], "workers")
        os.kill(before[0], signal.SIGKILL)

        def replaced() -> bool:
            now = workers(parent)
            return len(now) == 2 and before[0] not in now

        wait_for(replaced, "a new worker")
        assert client.get("/status/").status == 200
        client.close()
