"""A plain worker that does the same tasks with what everybody has: a Redis list, requests, tarfile.

`python -m benchmarks.system.reference_worker REDIS_URL FOLDER` takes tasks from the list `tasks`
until it is ended, and appends the id of each to the list `done`. It verifies digests and unpacks
with the standard library's safest filter; it keeps, resumes, announces and records nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any, Final, cast

import redis
import requests

TASKS: Final = "tasks"
DONE: Final = "done"
FETCH_SECONDS: Final = 60.0


def main(redis_url: str, folder: Path) -> None:
    """Work for ever."""
    client = redis.Redis.from_url(redis_url, socket_timeout=None)
    while True:
        _, text = cast(tuple[bytes, bytes], client.blpop([TASKS]))
        task = json.loads(text)
        for source in task["source"]:
            _unpack(source, folder / task["task_id"] / source["type"])
        client.rpush(DONE, task["task_id"])


def _unpack(source: dict[str, Any], folder: Path) -> None:
    answer = requests.get(source["url"], timeout=FETCH_SECONDS)
    answer.raise_for_status()
    if hashlib.sha256(answer.content).hexdigest() != source["sha256"]:
        raise SystemExit("another archive came than the one asked for")
    folder.mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        archive.extractall(folder, filter="data")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
