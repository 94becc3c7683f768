"""From a task to its folder: fetch, verify, unpack, lay out, publish."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from buttercup_dagster.sources.archive import DEFAULT_LIMITS, Limits, unpack
from buttercup_dagster.sources.disk import (
    clean_private_folders,
    locked,
    make_folder,
    private_folder,
)
from buttercup_dagster.sources.errors import SourceError, SpecError, Stopped, storing
from buttercup_dagster.sources.fetch import FetchLimits, FetchPolicy, Progress
from buttercup_dagster.sources.layout import Placed, place, write_meta
from buttercup_dagster.sources.manifest import Manifest
from buttercup_dagster.sources.options import DEFAULT_FETCH_LIMITS, DEFAULT_POLICY
from buttercup_dagster.sources.publish import Publication, withdraw
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import Obtained, Store
from task_api.task import Source, SourceType, Task, normalize_uuid, problems_of

STAGING_NAME: Final = ".staging"
MANIFESTS_NAME: Final = ".manifests"

Phase = Literal["fetching", "verified", "unpacked"]


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where tasks and archives are kept.

    Attributes:
        tasks: folder of the prepared tasks; staging lies in it, so that a task appears by one
            rename.
        store: folder of the archives.
    """

    tasks: Path
    store: Path

    @property
    def staging(self) -> Path:
        """Folder of the tasks that are being put together."""
        return self.tasks / STAGING_NAME

    def folder(self, task_id: str) -> Path:
        """Where a prepared task is.

        Raises:
            SpecError: the id is no UUID.
        """
        return self.tasks / _checked_id(task_id)

    def manifest(self, task_id: str) -> Path:
        """Where the manifest of a prepared task is.

        Raises:
            SpecError: the id is no UUID.
        """
        return self.tasks / MANIFESTS_NAME / f"{_checked_id(task_id)}.json"

    @contextlib.contextmanager
    def task_lock(self, task_id: str, stop: Stop | None = None) -> Iterator[None]:
        """Hold the lock under which the folder of a task appears and disappears."""
        task_id = _checked_id(task_id)
        with locked(Store(self.store).lock_path(f"task-{task_id}"), stop):
            yield


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """How far one source is.

    Attributes:
        source_type: which source.
        phase: "fetching" a few times a second, "verified" and "unpacked" once each.
        bytes: of the archive, so far.
        total: of the archive; None if not known.
        host: host that gave or gives it; "store" for one that was here.
        cache_hit: whether it was here.
        sha256: its digest; empty until verified, if the task does not state it.
        seconds: what the phase took; 0 while fetching.
        files: regular files in its tree; None until unpacked.
    """

    source_type: SourceType
    phase: Phase
    bytes: int
    total: int | None
    host: str
    cache_hit: bool = False
    sha256: str = ""
    seconds: float = 0.0
    files: int | None = None


@dataclass(frozen=True, slots=True)
class PreparedSource:
    """One source of a prepared task.

    Attributes:
        sha256: digest of the archive.
        host: host that gave it; "store" for a cache hit.
        bytes: size of the archive.
        files: regular files in the tree.
        tree_bytes: bytes of all files.
        cache_hit: whether the archive was here already.
        fetch_seconds: 0 for a cache hit.
        verify_seconds: of hashing an archive that was here; hashing costs no time of its own
            while an archive arrives.
        unpack_seconds: of unpacking.
        path: its folder below the published task.
        names: the first 200 paths of its tree, escaped, relative to the task's folder.
        dropped_links: how many symbolic links were left out since they lead out of the tree.
    """

    sha256: str
    host: str
    bytes: int
    files: int
    tree_bytes: int
    cache_hit: bool
    fetch_seconds: float
    verify_seconds: float
    unpack_seconds: float
    path: Path
    names: tuple[str, ...]
    dropped_links: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A published task.

    Attributes:
        path: its folder.
        sources: what each of its sources became.
    """

    path: Path
    sources: Mapping[SourceType, PreparedSource]


@dataclass(frozen=True, slots=True)
class _Unpacked:
    obtained: Obtained
    tree: Path
    manifest: Manifest
    seconds: float


def _nothing() -> None:
    """Confirm where nobody has to be asked."""


def _tell_nobody(_path: Path) -> None:
    """Announce where nobody has to be told."""


def prepare(
    task: Task,
    workspace: Workspace,
    *,
    limits: Limits = DEFAULT_LIMITS,
    fetch_limits: FetchLimits = DEFAULT_FETCH_LIMITS,
    policy: FetchPolicy = DEFAULT_POLICY,
    stop: Stop | None = None,
    confirm: Callable[[], None] = _nothing,
    announce: Callable[[Path], None] = _tell_nobody,
    on_event: Callable[[SourceEvent], None] | None = None,
) -> Prepared:
    """Make the folder of a task, whole or not at all.

    The sources are fetched, verified and unpacked side by side; the first error stops the others.
    Then, under the task's lock: `confirm`, the folder appears by one rename, `announce`. A folder
    of the same task that is there already is replaced.

    Args:
        task: a valid task. A source's digest may be empty: then what its URLs give is taken.
        workspace: where tasks and archives are kept.
        limits: how much an archive may hold.
        fetch_limits: how much, how long and how often to download.
        policy: from where.
        stop: ends the work.
        confirm: raises if this attempt must not publish, such as when its token is stale.
        announce: tells that the folder is there; if it raises, the folder is removed again.
        on_event: called from several threads, one call at a time.

    Returns:
        Where everything is, with what it took.

    Raises:
        SpecError: the id is no UUID, or the sources or the focus cannot be used.
        SourceError: a source failed; `.source_type` says which.
        Stopped, DeadlinePassed: by `stop`.
        Exception: whatever `confirm` or `announce` raised.

    After an error nothing of this attempt is left but archives that were verified.
    """
    return _make(
        _Order(task, workspace, limits, fetch_limits, policy, on_event),
        stop or Stop(),
        confirm=confirm,
        announce=announce,
        restore=False,
    )


def rebuild(
    task: Task,
    workspace: Workspace,
    *,
    limits: Limits = DEFAULT_LIMITS,
    fetch_limits: FetchLimits = DEFAULT_FETCH_LIMITS,
    policy: FetchPolicy = DEFAULT_POLICY,
    stop: Stop | None = None,
    confirm: Callable[[], None] = _nothing,
    on_event: Callable[[SourceEvent], None] | None = None,
) -> Prepared:
    """Make the folder of a task anew beside the one that is there, and swap it in.

    Nothing is announced. Arguments and errors are those of `prepare`. After an error the old
    folder is what it was; readers never find none.
    """
    return _make(
        _Order(task, workspace, limits, fetch_limits, policy, on_event),
        stop or Stop(),
        confirm=confirm,
        announce=_tell_nobody,
        restore=True,
    )


@dataclass(frozen=True, slots=True)
class _Order:
    task: Task
    workspace: Workspace
    limits: Limits
    fetch_limits: FetchLimits
    policy: FetchPolicy
    on_event: Callable[[SourceEvent], None] | None


def _make(
    order: _Order,
    stop: Stop,
    *,
    confirm: Callable[[], None],
    announce: Callable[[Path], None],
    restore: bool,
) -> Prepared:
    task_id = _checked(order.task)
    order = replace(order, task=replace(order.task, task_id=task_id))
    task, workspace = order.task, order.workspace
    stop.check()
    make_folder(workspace.tasks)
    make_folder(workspace.staging, 0o700)
    make_folder(workspace.tasks / MANIFESTS_NAME)
    # What cannot be removed is in nobody's way.
    with contextlib.suppress(SourceError):
        clean_staging(workspace)
    with private_folder(workspace.staging, task_id) as staging:
        sources = _Sources(order, staging)
        unpacked = sources.unpack_all(stop)
        folder = staging / "task"
        make_folder(folder)
        placed: dict[SourceType, Placed] = {}
        for source_type, done in unpacked.items():
            with _naming(source_type):
                placed[source_type] = place(
                    source_type, done.tree, done.manifest, task.focus, folder
                )
        manifests = [write_meta(task, folder), *(one.manifest for one in placed.values())]
        stop.check()
        path = workspace.tasks / task_id
        with workspace.task_lock(task_id, stop):
            confirm()
            publication = Publication(
                folder,
                path,
                Manifest.joined(manifests),
                workspace.manifest(task_id),
                restore=restore,
            )
            try:
                publication.make()
                announce(path)
            except BaseException:
                publication.undo()
                raise
    return Prepared(
        path,
        {kind: _summary(done, placed[kind], path) for kind, done in unpacked.items()},
    )


def check_prepared(task_id: str, workspace: Workspace) -> list[str]:
    """Where the folder of a task differs from its manifest.

    Returns:
        One line for each difference, at most 100; empty if it is as it was published.

    Raises:
        SpecError: the id is no UUID.
        StorageError: the folder cannot be read.
    """
    path = workspace.folder(task_id)
    try:
        manifest = Manifest.load(workspace.manifest(task_id))
    except FileNotFoundError:
        return ["the manifest of the task is missing"]
    except SourceError as error:
        return [str(error)]
    if not path.is_dir() or path.is_symlink():
        return ["the folder of the task is missing"]
    return manifest.differences(path)


def remove_prepared(
    task_id: str,
    workspace: Workspace,
    stop: Stop | None = None,
    *,
    unwanted: Callable[[], bool] = lambda: True,
) -> bool:
    """Remove the folder and the manifest of a task; its archives stay.

    Args:
        task_id: UUID.
        workspace: where tasks are kept.
        stop: ends the wait for whoever publishes or removes the same task.
        unwanted: asked under the task's lock, so that what was published meanwhile stays.

    Returns:
        Whether a folder was removed.

    Raises:
        SpecError: the id is no UUID.
        StorageError: it cannot be removed.
        Stopped, DeadlinePassed: by `stop`.
    """
    path = workspace.folder(task_id)
    if not workspace.tasks.is_dir():
        return False
    make_folder(workspace.staging, 0o700)
    with (
        private_folder(workspace.staging, path.name) as staging,
        workspace.task_lock(task_id, stop),
    ):
        return unwanted() and withdraw(path, workspace.manifest(task_id), staging / "removed")


def clean_staging(workspace: Workspace) -> list[str]:
    """Remove what attempts left behind whose process died.

    Returns:
        The names of the staging folders that were removed.

    Raises:
        StorageError: one of them cannot be removed.
    """
    return clean_private_folders(workspace.staging)


def _checked_id(task_id: str) -> str:
    try:
        return normalize_uuid(task_id)
    except ValueError as error:
        raise SpecError(f"the task id {error}", code="bad_task_id") from None


def _checked(task: Task) -> str:
    """The task's id, if the parts of the task that become paths can be used."""
    task_id = _checked_id(task.task_id)
    types = [source.type for source in task.sources]
    if len(set(types)) < len(types):
        raise SpecError("the task has two sources of one type; give one of each at most")
    if SourceType.REPO not in types:
        raise SpecError("the task has no source of type 'repo'; every task needs one")
    for problem in problems_of(task, now_ms=0):
        if problem.path == ("focus",):
            raise SpecError(str(problem))
    return task_id


@contextlib.contextmanager
def _naming(source_type: SourceType) -> Iterator[None]:
    """Say in every error of the block which source it is about."""
    try:
        yield
    except SourceError as error:
        error.source_type = source_type
        raise


def _summary(done: _Unpacked, placed: Placed, path: Path) -> PreparedSource:
    return PreparedSource(
        sha256=done.obtained.sha256,
        host=done.obtained.host,
        bytes=done.obtained.bytes,
        files=done.manifest.files,
        tree_bytes=done.manifest.bytes,
        cache_hit=done.obtained.cache_hit,
        fetch_seconds=done.obtained.seconds,
        verify_seconds=done.obtained.verify_seconds,
        unpack_seconds=done.seconds,
        path=path / placed.folder,
        names=placed.manifest.first_names(),
        dropped_links=done.manifest.totals.dropped,
    )


class _Sources:
    """The sources of one task on their way into its staging folder."""

    def __init__(self, order: _Order, staging: Path) -> None:
        self._sources = order.task.sources
        self._store = Store(order.workspace.store)
        self._staging = staging
        self._limits = order.limits
        self._fetch_limits = order.fetch_limits
        self._policy = order.policy
        self._on_event = order.on_event
        self._telling = threading.Lock()

    def unpack_all(self, stop: Stop) -> dict[SourceType, _Unpacked]:
        """Fetch, verify and unpack all sources, each in a thread of its own."""
        # A stop of its own: the first error has to end the others, and not the caller's work.
        inner = Stop(stop.deadline_ms)

        def pass_on() -> None:
            inner.request(stop.reason)

        with (
            stop.on_stop(pass_on),
            ThreadPoolExecutor(len(self._sources), thread_name_prefix="source") as pool,
        ):
            futures = {
                pool.submit(self._unpack_one, source, inner): source for source in self._sources
            }
            try:
                self._wait_for(set(futures))
            except BaseException:
                inner.request("another source of the task failed")
                wait(futures)
                stop.check()
                raise
        return {source.type: future.result() for future, source in futures.items()}

    @staticmethod
    def _wait_for(futures: set[Future[_Unpacked]]) -> None:
        left = futures
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            failures = [error for future in done if (error := future.exception())]
            # A source that was stopped tells less than the one because of which it was.
            failures.sort(key=lambda error: isinstance(error, Stopped))
            if failures:
                raise failures[0]

    def _unpack_one(self, source: Source, stop: Stop) -> _Unpacked:
        with _naming(source.type):
            obtained = self._obtain(source, stop)
            tree = self._staging / f"tree-{source.type}"
            started = time.monotonic()
            try:
                manifest = unpack(obtained.path, tree, self._limits, stop=stop)
            except FileNotFoundError:
                # Somebody cleared the store between the two steps.
                obtained = self._obtain(source, stop)
                started = time.monotonic()
                with storing("cannot read the archive", obtained.path):
                    manifest = unpack(obtained.path, tree, self._limits, stop=stop)
            seconds = time.monotonic() - started
            self._tell("unpacked", source, obtained, seconds, manifest.files)
            return _Unpacked(obtained, tree, manifest, seconds)

    def _obtain(self, source: Source, stop: Stop) -> Obtained:
        def on_progress(progress: Progress) -> None:
            self._emit(
                SourceEvent(
                    source.type,
                    "fetching",
                    progress.bytes,
                    progress.total,
                    progress.host,
                    sha256=source.sha256.lower(),
                )
            )

        obtained = self._store.obtain(
            source,
            limits=self._fetch_limits,
            policy=self._policy,
            stop=stop,
            on_progress=on_progress if self._on_event else None,
        )
        self._tell("verified", source, obtained, obtained.seconds + obtained.verify_seconds)
        return obtained

    def _tell(
        self,
        phase: Phase,
        source: Source,
        obtained: Obtained,
        seconds: float,
        files: int | None = None,
    ) -> None:
        self._emit(
            SourceEvent(
                source.type,
                phase,
                obtained.bytes,
                obtained.bytes,
                obtained.host,
                obtained.cache_hit,
                obtained.sha256,
                seconds,
                files,
            )
        )

    def _emit(self, event: SourceEvent) -> None:
        if self._on_event is not None:
            with self._telling:
                self._on_event(event)
