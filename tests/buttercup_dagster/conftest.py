"""Fixtures of the Dagster tests: an instance, a registry, a server of sources, and tasks."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from buttercup_dagster.definitions import defs
from buttercup_dagster.engine import Engine
from buttercup_dagster.settings import DownloaderSettings
from task_api.registry import Submission, TaskRegistry
from task_api.task import Source, SourceType, Task, TaskType
from tests.e2e.archives import Archive, diff_archive, pack, tooling_archive
from tests.e2e.source_server import SourceServer

PROJECT = "demo-project"
FOCUS = "demo"


@dataclass
class Bench:
    """Everything that a test of the Dagster layer works with.

    Attributes:
        registry: an empty registry.
        instance: an empty Dagster instance on disk.
        sources: a server of archives.
        home: BUTTERCUP_HOME.
        folder: where archives are packed.
    """

    registry: TaskRegistry
    instance: dg.DagsterInstance
    sources: SourceServer
    home: Path
    folder: Path

    def repo(self, **files: bytes) -> Archive:
        """A repo archive with a README, a main.c and these files more."""
        extra = {f"{FOCUS}/{name}": content for name, content in files.items()}
        content = {
            f"{FOCUS}/README.md": b"# demo\n",
            f"{FOCUS}/main.c": b"int main(void) {\n  return 0;\n}\n",
            **extra,
        }
        return pack(self.folder / f"repo-{uuid.uuid4().hex}.tar.gz", content)

    def tooling(self) -> Archive:
        """Fuzz tooling for the project."""
        return tooling_archive(self.folder / f"tooling-{uuid.uuid4().hex}.tar.gz", PROJECT)

    def diff(self, repo: Archive) -> Archive:
        """A diff that applies to the repo."""
        path = self.folder / f"diff-{uuid.uuid4().hex}.tar.gz"
        return diff_archive(path, repo, FOCUS, "main.c")

    def source(self, kind: SourceType, archive: Archive, **how: Any) -> Source:
        """A source served by this bench."""
        return Source(kind, archive.sha256, (self.sources.url(archive.path, **how),))

    def task(self, *sources: Source, seconds: float = 3600, **changes: Any) -> Task:
        """A task with these sources; of a repo when none are given."""
        fields: dict[str, Any] = {
            "task_id": str(uuid.uuid4()),
            "type": TaskType.FULL,
            "project_name": PROJECT,
            "focus": FOCUS,
            "deadline_ms": int((time.time() + seconds) * 1000),
            "sources": sources or (self.source(SourceType.REPO, self.repo()),),
            "metadata": {"round": "one"},
        }
        return Task(**{**fields, **changes})

    def post(self, task: Task) -> str:
        """Record a task as the server does; return its id."""
        receipt = self.registry.accept(str(uuid.uuid4()), uuid.uuid4().hex, [Submission(task)])
        assert receipt.accepted
        return task.task_id

    def claim(self, task_id: str) -> int:
        """Claim the only pending task as the sensor does; return the token."""
        (claim,) = self.registry.claim(10)
        assert claim.task_id == task_id
        return claim.token

    def execute(
        self, task_id: str, token: int | None = None, **tags: str
    ) -> dg.ExecuteInProcessResult:
        """Run the ingest job for a task, in this process; by hand without a token."""
        self.instance.add_dynamic_partitions("tasks", [task_id])
        if token is not None:
            tags["buttercup/token"] = str(token)
        return defs.resolve_job_def("ingest").execute_in_process(
            instance=self.instance, partition_key=task_id, tags=tags, raise_on_error=False
        )

    def prepare(self, task: Task) -> dg.ExecuteInProcessResult:
        """Post, claim and run."""
        task_id = self.post(task)
        return self.execute(task_id, self.claim(task_id))

    def materialized(self, asset: str) -> set[str]:
        """Task ids that Dagster has a materialization of."""
        return set(self.instance.get_materialized_partitions(dg.AssetKey(asset)))

    def tree(self, task_id: str) -> Path:
        """Folder of a prepared task."""
        return self.home / "tasks" / task_id

    def engine(self) -> Engine:
        """The engine that the runs use."""
        return Engine.from_settings(DownloaderSettings())

    def announced(self, task_id: str) -> int:
        """How often the task stands in the ready stream."""
        entries: Any = self.registry._redis.xrange("buttercup:ready")
        return [fields[b"task_id"].decode() for _, fields in entries].count(task_id)

    def leftovers(self) -> list[Path]:
        """What half-done work left; a part of a download is kept for the next attempt."""
        store = self.home / "store"
        places = [self.home / "tasks" / ".staging", store / "staging", store / "trash"]
        return [path for place in places if place.is_dir() for path in place.iterdir()]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An empty Dagster instance with its own storage."""
    folder = tmp_path / "dagster"
    folder.mkdir()
    overrides = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(folder), overrides=overrides) as opened:
        yield opened


@pytest.fixture
def bench(
    *,
    home: Path,
    tmp_path: Path,
    redis_url: str,
    registry: TaskRegistry,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    """A registry, an instance, a server of sources and a home folder that belong together."""
    monkeypatch.setenv("BUTTERCUP_REDIS_URL", redis_url)
    folder = tmp_path / "archives"
    folder.mkdir()
    with SourceServer() as sources:
        yield Bench(registry, instance, sources, home, folder)


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    """What a person reads in the UI about a failed step."""
    (event,) = [event for event in result.all_events if event.is_step_failure]
    data = event.step_failure_data
    assert data.user_failure_data is not None
    return str(data.user_failure_data.description)
