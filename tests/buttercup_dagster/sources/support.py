"""Tasks, stores and what may be left in them, for the tests of the store."""

from __future__ import annotations

import uuid
from pathlib import Path

from buttercup_dagster.sources.disk import names_in
from buttercup_dagster.sources.manifest import Manifest
from buttercup_dagster.sources.prepare import PrepareOptions, Workspace, check_prepared
from buttercup_dagster.sources.store import Store
from task_api.task import Source, SourceType, Task, TaskType
from tests.buttercup_dagster.sources.conftest import QUICK
from tests.support.archives import digest, file, folder, hardlink, packed, symlink

OPTIONS = PrepareOptions(fetch_limits=QUICK)
REPO = packed(
    folder(b"curl/"),
    file(b"curl/README", b"curl\n"),
    file(b"curl/configure", b"#!/bin/sh\n", mode=0o755),
    folder(b"curl/src/", mtime=1_600_000_000),
    file(b"curl/src/main.c", b"int main;\n" * 500),
    hardlink(b"curl/src/again.c", b"curl/src/main.c"),
    symlink(b"curl/link", b"src/main.c"),
)
DIGEST = digest(REPO)


def new_task(url: str, archive: bytes = REPO, *, task_id: str = "", focus: str = "curl") -> Task:
    """A task with one source, under a new id."""
    source = Source(SourceType.REPO, digest(archive), (url,))
    task_id = task_id or str(uuid.uuid4())
    return Task(task_id, TaskType.FULL, "curl", focus, 2**42, (source,))


def partial_trees(store: Store) -> list[str]:
    """Keys of trees that pass for complete and are not."""
    found = []
    for key in store.trees.keys():  # noqa: SIM118 - no mapping
        tree = store.trees.complete(key)
        if tree is not None and tree.manifest.differences(tree.path):
            found.append(key)
    return found


def litter(workspace: Workspace) -> list[str]:
    """What no finished work has a use for."""
    store = workspace.store
    places = (workspace.staging, store / "staging", store / "trash", store / "parts")
    # The note beside a part that was just filed is removed a day later.
    found = [p for place in places for p in names_in(place) if p.suffix != ".json"]
    hidden = (workspace.tasks / ".manifests", store / "trees", store / "quarantine")
    found += [path for place in hidden for path in names_in(place) if path.name.startswith(".")]
    complete = Store(store).trees
    found += [
        path
        for path in names_in(store / "trees")
        if complete.complete(path.name.lstrip(".").partition(".")[0]) is None
    ]
    return [str(path) for path in found]


def unfinished_tasks(workspace: Workspace) -> list[str]:
    """Task folders that can be seen and are not as their manifest says."""
    return [
        path.name
        for path in names_in(workspace.tasks)
        if not path.name.startswith(".") and check_prepared(path.name, workspace)
    ]


def tree_of(store: Store) -> tuple[Path, Manifest]:
    """The only tree of a store."""
    (key,) = store.trees.keys()
    tree = store.trees.complete(key)
    assert tree is not None
    return tree.path, tree.manifest
