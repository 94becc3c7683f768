"""The wheel, installed into an empty environment outside of the clone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.e2e.stack import BIN, ROOT
from tests.support.environment import without_settings

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not (BIN / "uv").exists(), reason="needs uv in the environment"),
]

COMMANDS = ("buttercup", "buttercup-task-server", "buttercup-downloader", "buttercup-registry")


def test_wheel_runs_every_command_and_the_demo(tmp_path: Path) -> None:
    environment = without_settings() | {"HOME": str(tmp_path), "COLUMNS": "80"}
    environment.pop("VIRTUAL_ENV", None)

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    uv = BIN / "uv"
    run(uv, "build", "--wheel", "--out-dir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    run(uv, "venv", "--python", BIN / "python", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    # The versions that the tests have run with.
    run(uv, "pip", "install", "--python", python, "-c", ROOT / "requirements.lock", wheel)
    for command in COMMANDS:
        assert run(python.with_name(command), "--help").startswith(f"usage: {command} ")
    shown = run(python.with_name("buttercup"), "demo")
    (folder,) = re.findall(r"^(/.*/tasks/[0-9a-f-]{36}) on ", shown, re.MULTILINE)
    source = Path(folder) / "src" / "buttercup-orchestrator"
    assert {path.name for path in source.iterdir()} == {"buttercup_dagster", "task_api"}
    assert (Path(folder) / "fuzz-tooling/fuzz-tooling/infra/helper.py").is_file()
