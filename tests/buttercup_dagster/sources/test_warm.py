"""A process that was warmed up imports nothing for its first task, and may be forked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.buttercup_dagster.sources.support import DIGEST, REPO
from tests.support.environment import without_settings
from tests.support.faults import FaultServer, serve

ROOT = Path(__file__).parents[3]
SCRIPT = """
import json, os, sys, threading
from pathlib import Path
from buttercup_dagster.sources.warm import warm
handles = len(os.listdir("/proc/self/fd"))
warm()
left = [len(os.listdir("/proc/self/fd")) - handles, threading.active_count()]
known = set(sys.modules)
from buttercup_dagster.sources.prepare import Workspace, prepare
from task_api.task import Source, SourceType, Task, TaskType
url, digest, root = sys.argv[1:]
task = Task("3f2b8c1e-0d4a-4e6b-9a7c-5d1e2f3a4b5c", TaskType.FULL, "curl", "curl", 2**42,
            (Source(SourceType.REPO, digest, (url,)),))
prepare(task, Workspace(Path(root) / "tasks", Path(root) / "store"))
print(json.dumps({"left": left, "imported": sorted(set(sys.modules) - known)}))
"""


def test_a_first_task_imports_nothing(server: FaultServer, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, server.on("/a", serve(REPO)), DIGEST, tmp_path],
        capture_output=True,
        check=False,
        cwd=ROOT,
        env=without_settings(),
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == {"left": [0, 1], "imported": []}
