"""The commands of the README's first task, run as they stand there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from task_api.task import TaskState
from tests.e2e.stack import ROOT, Stack
from tests.support.redis_server import free_port

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git clone"),
]


def blocks() -> list[str]:
    """The shell blocks of the chapter."""
    chapter = (ROOT / "README.md").read_text("utf-8").partition("## The same by hand")[2]
    return re.findall(r"```sh\n(.*?)```", chapter.partition("\n## ")[0], re.DOTALL)


def test_first_task(stack: Stack, tmp_path: Path) -> None:
    redis, server, dagster, post, look, without = blocks()
    assert redis.startswith("redis-server ")
    assert server == "buttercup-task-server\n"
    assert dagster == "dagster dev -w workspace.yaml\n"
    # The stack runs these three, on ports of its own.
    post = post.replace("127.0.0.1:8000", f"127.0.0.1:{stack.api_port}")
    port = free_port()
    assert post.count("8123") == 2
    post = post.replace("8123", str(port))
    (tmp_path / ".buttercup").symlink_to(stack.home)
    (stack.home / "credentials").write_text(
        f"BUTTERCUP_API_KEY_ID='{stack.key_id}'\nBUTTERCUP_API_TOKEN='{stack.key_token}'\n"
    )
    waiting = 'until [ -d ~/.buttercup/tasks/"$task_id" ]; do sleep 0.2; done'
    script = "\n".join(["set -e", post, "echo; echo task $task_id", waiting, look, without])
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=ROOT,
        env={**stack.env, "HOME": str(tmp_path), "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        # The server of sources, which the script leaves running, has its output open.
        status = process.wait(120)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        shown, errors = process.communicate()
    assert status == 0, f"{shown}\n{errors}"
    (task_id,) = re.findall(r"^task ([0-9a-f-]{36})$", shown, re.MULTILINE)
    assert stack.state(task_id) is TaskState.READY
    assert re.search(rf"^{task_id} +ready", shown, re.MULTILINE)
    assert "\npyproject.toml\n" in shown
    assert f"/prepared/{task_id}" in shown
