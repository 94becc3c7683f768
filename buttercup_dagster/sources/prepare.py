"""From a task to its folder: fetch, verify, unpack, lay out, publish."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar

from buttercup_dagster.sources.archive import DEFAULT_LIMITS, EscapingLinks, Limits
from buttercup_dagster.sources.collect import (
    DEFAULT_WATERMARKS,
    Watermarks,
    collect,
    collect_if_needed,
)
from buttercup_dagster.sources.disk import (
    clean_private_folders,
    locked,
    locked_if_free,
    locks_hold,
    make_folder,
    names_in,
    private_folder,
    remove_lock,
)
from buttercup_dagster.sources.errors import (
    NoSpace,
    SourceError,
    SpecError,
    Stopped,
    StorageError,
    TreeChanged,
    storing,
)
from buttercup_dagster.sources.fetch import FetchLimits, FetchPolicy, Progress
from buttercup_dagster.sources.layout import Placed, place, write_meta
from buttercup_dagster.sources.leases import TaskLeases
from buttercup_dagster.sources.links import LinkMode, UsedMode
from buttercup_dagster.sources.manifest import Manifest
from buttercup_dagster.sources.options import DEFAULT_FETCH_LIMITS, DEFAULT_POLICY
from buttercup_dagster.sources.publish import Publication, withdraw
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import Grown, Obtained, Store
from task_api.task import Source, SourceType, Task, normalize_uuid, problems_of

STAGING_NAME: Final = ".staging"
MANIFESTS_NAME: Final = ".manifests"

_TIMES_CHANGED: Final = 3
"""How often a tree that changed in the store is made again in one attempt."""

Phase = Literal["fetching", "verified", "unpacked"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Workspace:
    """Where tasks and archives are kept.

    Attributes:
        tasks: folder of the prepared tasks; staging lies in it, so that a task appears by one
            rename.
        store: folder of the archives and trees; on the same file system, or every file has to be
            copied.
    """

    tasks: Path
    store: Path

    @property
    def staging(self) -> Path:
        """Folder of the tasks that are being put together."""
        return self.tasks / STAGING_NAME

    @property
    def manifests(self) -> Path:
        """Folder of the manifests of the prepared tasks."""
        return self.tasks / MANIFESTS_NAME

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
        return self.manifests / f"{_checked_id(task_id)}.json"

    def task_lock_path(self, task_id: str) -> Path:
        """The file of the lock that `task_lock` holds; its folder is made.

        Raises:
            SpecError: the id is no UUID.
        """
        return Store(self.store).lock_path(f"task-{_checked_id(task_id)}")

    @contextlib.contextmanager
    def task_lock(self, task_id: str, stop: Stop | None = None) -> Iterator[None]:
        """Hold the lock under which the folder of a task appears and disappears."""
        with locked(self.task_lock_path(task_id), stop):
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
        cache_hit: whether the archive, or its tree, was here already.
        tree_hit: whether its tree was here already.
        fetch_seconds: of fetching, in which it is hashed; 0 for a cache hit.
        unpack_seconds: of unpacking, in which it is hashed once more; 0 for a tree that was here.
        link_seconds: of laying the tree out in the task's folder.
        link_mode: how its files were made: "clone", "hardlink" or "copy"; of several modes the one
            that promises least. Where it is "hardlink" nobody may write to the files.
        path: its folder below the published task.
        names: the first 200 paths of its tree, escaped, relative to the task's folder.
        dropped_links: how many symbolic links were left out since they lead out of the tree.
        condemned: hosts that gave other bytes than those of the digest.
    """

    sha256: str
    host: str
    bytes: int
    files: int
    tree_bytes: int
    cache_hit: bool
    tree_hit: bool
    fetch_seconds: float
    unpack_seconds: float
    link_seconds: float
    link_mode: UsedMode
    path: Path
    names: tuple[str, ...]
    dropped_links: int
    condemned: tuple[str, ...] = ()


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
class PrepareOptions:
    """How tasks are prepared.

    Attributes:
        limits: how much an archive may hold.
        fetch_limits: how much, how long and how often to download.
        policy: from where.
        escaping_links: what to do with symbolic links that lead out of a tree.
        link_mode: how the files of a task's folder are made; see `links.py`.
        watermarks: when the store is too full.
    """

    limits: Limits = DEFAULT_LIMITS
    fetch_limits: FetchLimits = DEFAULT_FETCH_LIMITS
    policy: FetchPolicy = DEFAULT_POLICY
    escaping_links: EscapingLinks = "drop"
    link_mode: LinkMode = "auto"
    watermarks: Watermarks = DEFAULT_WATERMARKS


DEFAULT_OPTIONS: Final = PrepareOptions()


@dataclass(frozen=True, slots=True)
class _Laid:
    grown: Grown
    placed: Placed
    seconds: float


def _nothing() -> None:
    """Confirm where nobody has to be asked."""


def _tell_nobody(_path: Path) -> None:
    """Announce where nobody has to be told."""


def prepare(
    task: Task,
    workspace: Workspace,
    options: PrepareOptions = DEFAULT_OPTIONS,
    *,
    stop: Stop | None = None,
    confirm: Callable[[], None] = _nothing,
    announce: Callable[[Path], None] = _tell_nobody,
    on_event: Callable[[SourceEvent], None] | None = None,
) -> Prepared:
    """Make the folder of a task, whole or not at all.

    The sources are fetched, verified, unpacked and laid out side by side; the first error stops
    the others. Then, under the task's lock: `confirm`, the folder appears by one rename,
    `announce`. A folder of the same task that is there already is replaced. What the task is made
    of is leased from before it is looked for until its folder is removed. In the end the store is
    collected if it is too full.

    Args:
        task: a valid task. A source's digest may be empty: then what its URLs give is taken.
        workspace: where tasks, archives and trees are kept.
        options: limits, policies, and how the files are made.
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

    After an error nothing of this attempt is left but what the store may keep: archives, trees,
    and parts of archives.
    """
    return _make(
        _Order(task, workspace, options, on_event),
        stop or Stop(),
        confirm=confirm,
        announce=announce,
        restore=False,
    )


def rebuild(
    task: Task,
    workspace: Workspace,
    options: PrepareOptions = DEFAULT_OPTIONS,
    *,
    stop: Stop | None = None,
    confirm: Callable[[], None] = _nothing,
    on_event: Callable[[SourceEvent], None] | None = None,
) -> Prepared:
    """Make the folder of a task anew beside the one that is there, and swap it in.

    Nothing is announced. Arguments and errors are those of `prepare`. After an error the old
    folder is what it was; readers never find none.
    """
    return _make(
        _Order(task, workspace, options, on_event),
        stop or Stop(),
        confirm=confirm,
        announce=_tell_nobody,
        restore=True,
    )


@dataclass(frozen=True, slots=True)
class _Order:
    task: Task
    workspace: Workspace
    options: PrepareOptions
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
    make_folder(workspace.manifests)
    # What cannot be removed is in nobody's way.
    with contextlib.suppress(SourceError):
        # Who died over a manifest left its staging folder too: else the manifests, of which there
        # is one for each task, need not be listed.
        if clean_private_folders(workspace.staging):
            _clean_manifests(workspace)
    store = Store(workspace.store)
    path = workspace.tasks / task_id
    with (
        store.leases.attempt(task_id, path) as leases,
        private_folder(workspace.staging, task_id) as staging,
    ):
        folder = staging / "task"
        make_folder(folder)
        laid = _Sources(order, store, leases, folder).lay_out_all(stop)
        manifests = [write_meta(task, folder), *(one.placed.manifest for one in laid.values())]
        stop.check()
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
            leases.published()
    collect_if_needed(store, order.options.watermarks, stop)
    return Prepared(path, {kind: _summary(one, path) for kind, one in laid.items()})


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
    """Remove the folder of a task, its manifest, its leases in the store, and its lock file.

    Nothing that is kept for one task alone is left; what its folder was made of stays in the store
    until the collector removes it.

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
        if not unwanted():
            return False
        removed = withdraw(path, workspace.manifest(task_id), staging / "removed")
        Store(workspace.store).leases.drop(path.name)
        remove_lock(workspace.task_lock_path(task_id))
        return removed


def clean_staging(workspace: Workspace) -> list[str]:
    """Remove what attempts left behind whose process died, and manifests without a folder.

    Returns:
        The names of the staging folders and manifests that were removed.

    Raises:
        StorageError: one of them cannot be removed.
    """
    # The manifests first: a folder that cannot be removed must not keep them.
    manifests = _clean_manifests(workspace) + _clean_lone_manifests(workspace)
    return clean_private_folders(workspace.staging) + manifests


def _clean_manifests(workspace: Workspace) -> list[str]:
    """Remove half-written manifests that nobody is writing."""
    # A half-written one is `.<task_id>.json.<random>`; who writes it holds the task's lock.
    half = [path for path in names_in(workspace.manifests) if path.name.startswith(".")]
    return [
        path.name
        for path in half
        if _remove_manifest(workspace, path, path.name.split(".")[1], unless=lambda: False)
    ]


def _clean_lone_manifests(workspace: Workspace) -> list[str]:
    """Remove the manifests of tasks whose folder somebody has removed."""
    there = {path.name for path in names_in(workspace.tasks)}
    lone = [path for path in names_in(workspace.manifests) if path.stem not in there]
    return [
        path.name
        for path in lone
        # Whoever publishes writes the manifest first, and holds the task's lock until both stand.
        if _remove_manifest(
            workspace, path, path.stem, unless=partial(os.path.lexists, workspace.tasks / path.stem)
        )
    ]


def _remove_manifest(
    workspace: Workspace, path: Path, task_id: str, *, unless: Callable[[], bool]
) -> bool:
    """Remove one manifest under the task's lock, if that is free."""
    if not locks_hold(workspace.manifests):
        return False
    try:
        lock = workspace.task_lock_path(task_id)
    except SpecError:  # none of ours
        return False
    with locked_if_free(lock) as mine, storing("cannot remove", path):
        if not mine or unless():
            return False
        path.unlink(missing_ok=True)
        return True


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


def _summary(laid: _Laid, path: Path) -> PreparedSource:
    grown, obtained = laid.grown, laid.grown.obtained
    manifest = grown.stored.manifest
    return PreparedSource(
        sha256=obtained.sha256,
        host=obtained.host,
        bytes=obtained.bytes,
        files=manifest.files,
        tree_bytes=manifest.bytes,
        cache_hit=obtained.cache_hit,
        tree_hit=grown.hit,
        fetch_seconds=obtained.seconds,
        unpack_seconds=grown.seconds,
        link_seconds=laid.seconds,
        link_mode=laid.placed.link_mode,
        path=path / laid.placed.folder,
        names=laid.placed.manifest.first_names(),
        dropped_links=manifest.totals.dropped,
        condemned=obtained.condemned,
    )


class _Sources:
    """The sources of one task on their way into its folder."""

    def __init__(self, order: _Order, store: Store, leases: TaskLeases, folder: Path) -> None:
        self._task = order.task
        self._store = store
        self._leases = leases
        self._folder = folder
        self._options = order.options
        self._on_event = order.on_event
        self._telling = threading.Lock()

    def lay_out_all(self, stop: Stop) -> dict[SourceType, _Laid]:
        """Fetch, verify, unpack and lay out all sources, each in a thread of its own."""
        # A stop of its own: the first error has to end the others, and not the caller's work.
        inner = Stop(stop.deadline_ms)

        def pass_on() -> None:
            inner.request(stop.reason)

        sources = self._task.sources
        with (
            stop.on_stop(pass_on),
            ThreadPoolExecutor(len(sources), thread_name_prefix="source") as pool,
        ):
            futures = {pool.submit(self._lay_out_one, source, inner): source for source in sources}
            try:
                self._wait_for(set(futures))
            except BaseException:
                inner.request("another source of the task failed")
                wait(futures)
                stop.check()
                raise
        return {source.type: future.result() for future, source in futures.items()}

    @staticmethod
    def _wait_for(futures: set[Future[_Laid]]) -> None:
        left = futures
        while left:
            done, left = wait(left, return_when=FIRST_COMPLETED)
            failures = [error for future in done if (error := future.exception())]
            # A source that was stopped tells less than the one because of which it was.
            failures.sort(key=lambda error: isinstance(error, Stopped))
            if failures:
                raise failures[0]

    def _lay_out_one(self, source: Source, stop: Stop) -> _Laid:
        with _naming(source.type):
            for last in (*(False,) * _TIMES_CHANGED, True):
                grown = self._with_room(partial(self._grow, source, stop), self._store.root, stop)
                started = time.monotonic()
                try:
                    placed = self._with_room(
                        partial(self._place, source, grown, stop), self._folder, stop
                    )
                except TreeChanged:
                    if last:
                        raise
                    self._store.drop_changed(grown.stored.key, stop)
                else:
                    return _Laid(grown, placed, time.monotonic() - started)
        raise AssertionError("unreachable")

    def _with_room(self, work: Callable[[], _T], folder: Path, stop: Stop) -> _T:
        """Do work that writes below a folder; if its disk is full, make room and try once more."""
        try:
            return work()
        except NoSpace:
            if not self._make_room(folder, stop):
                raise
            return work()

    def _make_room(self, folder: Path, stop: Stop) -> bool:
        """Remove what no task needs from the disk of a folder; whether another try may do."""
        try:
            with storing("cannot look at the disk of", folder):
                # What the store gives up on another disk helps nobody.
                if folder.stat().st_dev != self._store.root.stat().st_dev:
                    return False
            done = collect(self._store, everything=True, stop=stop)
            if done is not None:
                return bool(done.removed or done.cleaned)
            # Another one collects, perhaps for another source of this task or not everything.
            with locked(self._store.lock_path("collector"), stop):
                pass
            collect(self._store, everything=True, stop=stop)
        except StorageError:  # the full disk tells more
            return False
        return True

    def _place(self, source: Source, grown: Grown, stop: Stop) -> Placed:
        return place(
            source.type,
            grown.stored.path,
            grown.stored.manifest,
            self._task.focus,
            self._folder,
            link_mode=self._options.link_mode,
            stop=stop,
        )

    def _grow(self, source: Source, stop: Stop) -> Grown:
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

        grown = self._store.tree(
            source,
            limits=self._options.limits,
            fetch_limits=self._options.fetch_limits,
            policy=self._options.policy,
            escaping_links=self._options.escaping_links,
            stop=stop,
            on_progress=on_progress if self._on_event else None,
            on_obtained=lambda one: self._tell("verified", source, one, one.seconds),
            lease=self._leases,
        )
        files = grown.stored.manifest.files
        self._tell("unpacked", source, grown.obtained, grown.seconds, files)
        return grown

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
