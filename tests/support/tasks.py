"""Tasks for the tests."""

from __future__ import annotations

import time
import uuid
from typing import Any

from task_api.registry import Receipt, Submission, TaskRegistry
from task_api.task import Source, SourceType, Task, TaskType

HOUR_MS = 3_600_000


def now_ms() -> int:
    return int(time.time() * 1000)


def make_task(**changes: Any) -> Task:
    fields: dict[str, Any] = {
        "task_id": str(uuid.uuid4()),
        "type": TaskType.FULL,
        "project_name": "libpng",
        "focus": "libpng",
        "deadline_ms": now_ms() + HOUR_MS,
        "sources": (
            Source(SourceType.REPO, "a" * 64, ("http://files.example/repo.tar.gz?signature=1",)),
        ),
        "metadata": {"task.id": "1", "nested": {"kept": [1, 2.5, None, "é\u2028"]}},
        "message_id": str(uuid.uuid4()),
        "message_time_ms": now_ms(),
    }
    return Task(**fields | changes)


def post(registry: TaskRegistry, *tasks: Task) -> Receipt:
    """Record valid tasks as one message of its own."""
    message_id = str(uuid.uuid4())
    return registry.accept(message_id, message_id, [Submission(task) for task in tasks])
