"""Source archives as they are published go all the way, and nothing of them is lost or changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import time
import uuid
from pathlib import Path

import dagster as dg
import pytest

from task_api.task import TaskState
from tests.e2e.archives import tooling_archive
from tests.e2e.stack import Stack
from tests.support.trees import difference

VARIABLE = "TEST_SOURCES"
NAMES = ("curl", "libpng1.6", "sqlite3")

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not os.environ.get(VARIABLE),
        reason=f"needs real source archives: run .ci/fetch-sources, set {VARIABLE} to its folder",
    ),
    pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar"),
]


def top_folder(archive: Path) -> str:
    with tarfile.open(archive) as tar:
        first = tar.next()
        assert first is not None
        return first.name.partition("/")[0]


def test_trees_equal_those_of_gnu_tar(stack: Stack, tmp_path: Path) -> None:
    tooling = tooling_archive(tmp_path / "tooling.tar.gz", "demo")
    tasks = {}
    for name in NAMES:
        archive = Path(os.environ[VARIABLE]) / f"{name}.tar.gz"
        tasks[name] = {
            "task_id": str(uuid.uuid4()),
            "type": "full",
            "project_name": name,
            "focus": top_folder(archive),
            "deadline": int((time.time() + 3600) * 1000),
            "harnesses_included": True,
            "metadata": {},
            "source": [
                {
                    "type": kind,
                    "url": stack.sources.url(path, f"{name}-{path.name}"),
                    "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                }
                for kind, path in (("repo", archive), ("fuzz-tooling", tooling.path))
            ],
        }
    assert stack.post(*tasks.values())[0] == 202

    for name, task in tasks.items():
        task_id = str(task["task_id"])
        stack.wait_state(task_id, TaskState.READY, seconds=120)
        theirs = tmp_path / name
        theirs.mkdir()
        archive = Path(os.environ[VARIABLE]) / f"{name}.tar.gz"
        subprocess.run(["tar", "-C", theirs, "-xpzf", archive], check=True)
        assert difference(stack.task_folder(task_id) / "src", theirs) == []
        stack.wait_run(task_id, dg.DagsterRunStatus.SUCCESS)
        (event,) = stack.materializations("repo", task_id)
        # What Dagster shows is what is there.
        assert event.metadata["files"].value == sum(
            path.is_file() and not path.is_symlink() for path in theirs.rglob("*")
        )
