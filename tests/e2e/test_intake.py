"""A task posted over HTTP becomes a verified folder, with every real process running."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from task_api.task import TaskState
from tests.e2e.archives import Archive, diff_archive, pack, repo_archive, tooling_archive
from tests.e2e.source_server import SIGNATURE
from tests.e2e.stack import Stack
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

PROJECT = "click-project"
FOCUS = "click"

Success = dg.DagsterRunStatus.SUCCESS
Failure = dg.DagsterRunStatus.FAILURE
Canceled = dg.DagsterRunStatus.CANCELED


class Material:
    """Archives and tasks that name them."""

    def __init__(self, folder: Path, stack: Stack) -> None:
        self.folder = folder
        self.stack = stack
        self.repo = repo_archive(folder / "repo.tar.gz", FOCUS)
        self.tooling = tooling_archive(folder / "tooling.tar.gz", PROJECT)
        self.diff = diff_archive(folder / "diff.tar.gz", self.repo, FOCUS, "__init__.py")

    def unique_repo(self) -> Archive:
        """A repo archive that no store has yet."""
        name = uuid.uuid4().hex
        return pack(
            self.folder / f"{name}.tar.gz",
            {**self.repo.files, f"{FOCUS}/UNIQUE": name.encode() * 40_000},
        )

    def source(self, kind: str, archive: Archive, **how: Any) -> dict[str, str]:
        """One source of a task, served by the stack."""
        url = self.stack.sources.url(archive.path, **how)
        return {"type": kind, "url": url, "sha256": archive.sha256}

    def task(self, *sources: dict[str, str], **changes: Any) -> dict[str, Any]:
        """A task with these sources; of the repo and the tooling when none are given."""
        return {
            "task_id": str(uuid.uuid4()),
            "type": "full",
            "project_name": PROJECT,
            "focus": FOCUS,
            "deadline": int((time.time() + 3600) * 1000),
            "harnesses_included": True,
            "metadata": {"round.id": "exhibition", "nested": {"ä": [1, None]}},
            "source": list(sources)
            or [self.source("repo", self.repo), self.source("fuzz-tooling", self.tooling)],
            **changes,
        }

    def held_download(self) -> tuple[str, Archive, threading.Event]:
        """Post a task whose repo arrives by half, until the event is set; id, repo and event."""
        gate = threading.Event()
        self.stack.sources.waiting.clear()
        archive = self.unique_repo()
        task = self.task(self.source("repo", archive, gate=gate))
        assert self.stack.post(task)[0] == 202
        assert self.stack.sources.waiting.wait(40)
        return task["task_id"], archive, gate


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, stack: Stack) -> Material:
    return Material(tmp_path_factory.mktemp("archives"), stack)


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_posted_task_becomes_a_folder(stack: Stack, material: Material) -> None:
    task = material.task(
        material.source("repo", material.repo),
        material.source("fuzz-tooling", material.tooling),
        material.source("diff", material.diff),
        type="delta",
    )
    task_id = task["task_id"]
    status, answer = stack.post(task)
    assert status == 202, answer
    assert isinstance(json.loads(answer), str)
    stack.wait_state(task_id, TaskState.READY)

    folder = stack.task_folder(task_id)
    assert files_below(folder / "src") == material.repo.files
    assert files_below(folder / "fuzz-tooling") == material.tooling.files
    assert files_below(folder / "diff") == material.diff.files
    assert json.loads((folder / "task_meta.json").read_text()) == {
        "project_name": PROJECT,
        "focus": FOCUS,
        "task_id": task_id,
        "metadata": task["metadata"],
    }
    assert (folder.stat().st_mode & 0o777) == 0o755
    assert (folder / "fuzz-tooling/fuzz-tooling/infra/helper.py").stat().st_mode & 0o111

    (entry,) = stack.announced(task_id)
    assert entry["path"] == str(folder)
    assert json.loads(entry["metadata"]) == task["metadata"]

    stack.wait_run(task_id, Success)
    digests = {
        "repo": material.repo.sha256,
        "fuzz_tooling": material.tooling.sha256,
        "diff": material.diff.sha256,
    }
    for asset, digest in digests.items():
        (event,) = stack.materializations(asset, task_id)
        assert event.tags is not None
        assert event.tags["dagster/data_version"] == digest
        assert event.metadata["url_host"].value == "127.0.0.1"
    (event,) = stack.materializations("prepared_task", task_id)
    assert event.metadata["path"].value == str(folder)

    kinds = [event.kind for event in stack.registry.events(task_id)]
    assert kinds[0] == "accepted"
    assert kinds[-1] == "ready"
    assert {"claimed", "started", "verified"} < set(kinds)


def test_repeated_task_is_prepared_once(stack: Stack, material: Material) -> None:
    task = material.task()
    message_id = str(uuid.uuid4())
    first = stack.post(task, message_id=message_id)
    assert first[0] == 202
    assert stack.post(task, message_id=message_id) == first
    stack.wait_state(task["task_id"], TaskState.READY)
    assert stack.post(task)[0] == 202
    stack.wait_run(task["task_id"], Success)
    assert stack.state(task["task_id"]) is TaskState.READY
    assert len(stack.runs(task["task_id"])) == 1
    assert len(stack.materializations("prepared_task", task["task_id"])) == 1


def test_five_tasks_at_once(stack: Stack, material: Material) -> None:
    tasks = [material.task() for _ in range(5)]
    status, answer = stack.post(*tasks)
    assert status == 202, answer
    for task in tasks:
        stack.wait_state(task["task_id"], TaskState.READY, seconds=90)
        assert files_below(stack.task_folder(task["task_id"]) / "src") == material.repo.files
        stack.wait_run(task["task_id"], Success)
        assert len(stack.runs(task["task_id"])) == 1


def test_task_cancelled_before_it_comes(stack: Stack, material: Material) -> None:
    task = material.task()
    assert stack.http("DELETE", f"/v1/task/{task['task_id']}/")[0] == 200
    assert stack.post(task)[0] == 202
    assert stack.state(task["task_id"]) is TaskState.CANCELED
    # A task posted after it has gone all the way, so the sensor has had its chance to err.
    later = material.task()
    stack.post(later)
    stack.wait_state(later["task_id"], TaskState.READY)
    assert stack.runs(task["task_id"]) == []
    assert not stack.task_folder(task["task_id"]).exists()


def test_cancel_stops_a_running_download(stack: Stack, material: Material) -> None:
    task_id, archive, gate = material.held_download()
    assert stack.state(task_id) is TaskState.DOWNLOADING
    assert stack.http("DELETE", f"/v1/task/{task_id}/")[0] == 200
    run = stack.wait_run(task_id, Success)
    gate.set()
    assert stack.state(task_id) is TaskState.CANCELED
    assert not stack.task_folder(task_id).exists()
    # What has arrived is kept, for whoever asks for the same archive; it is no archive yet.
    for kind in ("archives", "trees"):
        assert not list((stack.home / "store" / kind).rglob(f"*{archive.sha256}*"))
    assert stack.materializations("repo", task_id) == []
    assert stack.materializations("prepared_task", task_id) == []
    with stack.instance() as instance:
        log = "\n".join(entry.user_message for entry in instance.all_logs(run.run_id))
    assert "canceled" in log


def test_cancel_of_a_ready_task_removes_its_folder(stack: Stack, material: Material) -> None:
    task = material.task()
    task_id = task["task_id"]
    stack.post(task)
    stack.wait_state(task_id, TaskState.READY)
    stack.wait_run(task_id, Success)
    assert stack.http("DELETE", f"/v1/task/{task_id}/")[0] == 200
    assert stack.state(task_id) is TaskState.CANCELED
    wait_for(lambda: not stack.task_folder(task_id).exists(), "the folder is removed", seconds=60)


def test_wrong_digest_is_a_failed_run(stack: Stack, material: Material) -> None:
    source = material.source("repo", material.unique_repo())
    source["sha256"] = "0" * 64
    task = material.task(source)
    task_id = task["task_id"]
    assert stack.post(task)[0] == 202
    stack.wait_state(task_id, TaskState.ERRORED)
    reason = stack.registry.get(task_id).reason
    assert reason is not None
    assert reason.code == "digest_mismatch"
    stack.wait_run(task_id, Failure)
    assert stack.materializations("repo", task_id) == []
    assert stack.materializations("prepared_task", task_id) == []
    assert not stack.task_folder(task_id).exists()
    status, shown = stack.http("GET", f"/v1/task/{task_id}/")
    assert status == 200
    assert json.loads(shown)["reason"]["code"] == "digest_mismatch"


def test_missing_source_is_a_failed_run(stack: Stack, material: Material) -> None:
    url = stack.sources.missing_url("gone.tar.gz")
    task = material.task({"type": "repo", "url": url, "sha256": "1" * 64})
    task_id = task["task_id"]
    stack.post(task)
    stack.wait_state(task_id, TaskState.ERRORED)
    reason = stack.registry.get(task_id).reason
    assert reason is not None
    assert reason.code == "http_404"
    stack.wait_run(task_id, Failure)


def test_busy_source_server_costs_only_time(stack: Stack, material: Material) -> None:
    archive = material.unique_repo()
    task = material.task(material.source("repo", archive, refusals=[503, 503]))
    stack.post(task)
    stack.wait_state(task["task_id"], TaskState.READY, seconds=90)
    assert files_below(stack.task_folder(task["task_id"]) / "src") == archive.files


def test_terminate_in_dagster_stops_the_task(stack: Stack, material: Material) -> None:
    task_id, _, gate = material.held_download()
    stack.terminate_run(stack.runs(task_id)[0].run_id)
    stack.wait_run(task_id, Canceled)
    gate.set()
    record = stack.registry.get(task_id)
    assert record.state is TaskState.ERRORED
    assert record.reason is not None
    assert record.reason.code == "stopped"
    assert f"buttercup-registry retry {task_id}" in record.reason.text
    assert not stack.task_folder(task_id).exists()
    # What the text advises works.
    assert stack.http("POST", f"/v1/task/{task_id}/retry/")[0] == 200
    stack.wait_state(task_id, TaskState.READY)


def test_materialize_by_hand_heals_a_changed_tree(stack: Stack, material: Material) -> None:
    task = material.task()
    task_id = task["task_id"]
    stack.post(task)
    stack.wait_state(task_id, TaskState.READY)
    stack.wait_run(task_id, Success)
    changed = stack.task_folder(task_id) / "src" / FOCUS / "__init__.py"
    changed.unlink()
    changed.write_text("# not what was sent\n")
    stack.materialize(task_id)
    stack.wait_run(task_id, Success, count=2)
    assert files_below(stack.task_folder(task_id) / "src") == material.repo.files
    assert len(stack.materializations("prepared_task", task_id)) == 2
    assert len(stack.announced(task_id)) == 1


def test_materialize_by_hand_of_a_cancelled_task_fails(stack: Stack, material: Material) -> None:
    task = material.task()
    task_id = task["task_id"]
    stack.post(task)
    stack.wait_state(task_id, TaskState.READY)
    stack.wait_run(task_id, Success)
    stack.http("DELETE", f"/v1/task/{task_id}/")
    run_id = stack.materialize(task_id)
    stack.wait_run(task_id, Failure, count=2)
    with stack.instance() as instance:
        log = "\n".join(str(entry.dagster_event) for entry in instance.all_logs(run_id))
    assert "canceled" in log


def test_server_restart_loses_nothing(stack: Stack, material: Material) -> None:
    task = material.task()
    assert stack.post(task)[0] == 202
    stack.children["server"].kill()
    stack.wait_state(task["task_id"], TaskState.READY)
    stack.start_server()
    status, shown = stack.http("GET", f"/v1/task/{task['task_id']}/")
    assert status == 200
    assert json.loads(shown)["state"] == "ready"


def test_redis_restart_during_a_download(stack: Stack, material: Material) -> None:
    task_id, archive, gate = material.held_download()
    stack.redis.kill()
    assert stack.http("GET", "/healthz")[0] == 200
    assert stack.post(material.task())[0] == 503
    gate.set()
    stack.redis.start()
    stack.wait_state(task_id, TaskState.READY, seconds=90)
    assert files_below(stack.task_folder(task_id) / "src") == archive.files
    later = material.task()
    wait_for(lambda: stack.post(later)[0] == 202, "the server accepts again", seconds=30)
    stack.wait_state(later["task_id"], TaskState.READY)


def test_no_signature_is_ever_shown(stack: Stack, material: Material) -> None:
    """Runs last: the query of a URL is a credential and stands in no log, event, page or file."""
    needle = SIGNATURE.encode()
    with stack.instance() as instance:
        dagster_home = Path(instance.root_directory)
    kept = [
        path
        for folder in (dagster_home, stack.home)
        for path in folder.rglob("*")
        if path.is_file() and needle in path.read_bytes()
    ]
    assert kept == []
    for log in stack.folder.glob("*.log"):
        assert needle not in log.read_bytes(), log.name
    for key in stack.registry._redis.scan_iter("buttercup:*"):
        if stack.registry._redis.type(key) == b"stream":
            assert needle not in repr(stack.registry._redis.xrange(key)).encode(), key
    status, page = stack.http("GET", "/v1/task/?limit=100")
    assert status == 200
    assert SIGNATURE not in page
    for task_id in re.findall(r'"task_id":\s*"([0-9a-f-]{36})"', page):
        assert SIGNATURE not in stack.http("GET", f"/v1/task/{task_id}/")[1]
