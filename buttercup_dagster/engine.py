"""The download engine with this machine's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from buttercup_dagster.settings import DownloaderSettings
from buttercup_dagster.sources import prepare as preparing
from buttercup_dagster.sources.archive import Limits
from buttercup_dagster.sources.collect import Collection, Watermarks, collect
from buttercup_dagster.sources.errors import StorageError
from buttercup_dagster.sources.fetch import FetchLimits, FetchPolicy
from buttercup_dagster.sources.prepare import (
    DEFAULT_OPTIONS,
    Prepared,
    PrepareOptions,
    SourceEvent,
    Workspace,
)
from buttercup_dagster.sources.stop import Stop
from buttercup_dagster.sources.store import Store
from buttercup_dagster.sources.verify import Verification, verify
from task_api.task import Task


def _nothing(*_: object) -> None:
    return


@dataclass(frozen=True)
class Engine:
    """What prepares tasks here.

    Attributes:
        workspace: folders of the tasks and of the store.
        machine: name of this machine for consumers.
        options: limits, policies, and how the files are made.
    """

    workspace: Workspace
    machine: str
    options: PrepareOptions = DEFAULT_OPTIONS

    @classmethod
    def from_settings(cls, settings: DownloaderSettings, *, allow_file: bool = False) -> Self:
        """The engine that these settings describe.

        Args:
            settings: of the downloader.
            allow_file: whether any file may come in by a file:// URL; otherwise only those below
                the folders that the settings name may.
        """
        roots = () if allow_file else settings.allowed_file_roots
        return cls(
            workspace=Workspace(tasks=settings.tasks, store=settings.store),
            machine=settings.machine,
            options=PrepareOptions(
                limits=Limits(
                    total_bytes=settings.max_tree_bytes, entries=settings.max_tree_entries
                ),
                fetch_limits=FetchLimits(
                    max_archive_bytes=settings.max_archive_bytes,
                    downloads_per_host=settings.max_downloads_per_host,
                    downloads=settings.max_downloads,
                ),
                policy=FetchPolicy(
                    allow_file=allow_file or bool(roots),
                    file_roots=roots,
                    block_private_addresses=settings.block_private_addresses,
                    source_hosts=settings.allowed_hosts,
                ),
                escaping_links=settings.escaping_links,
                link_mode=settings.link_mode,
                watermarks=Watermarks(
                    max_store_bytes=settings.max_store_bytes,
                    min_free_bytes=settings.min_free_bytes,
                ),
            ),
        )

    def prepare(
        self,
        task: Task,
        *,
        stop: Stop,
        confirm: Callable[[], None] = _nothing,
        announce: Callable[[Path], None] = _nothing,
        on_event: Callable[[SourceEvent], None] = _nothing,
    ) -> Prepared:
        """Fetch, verify, unpack and lay out a task; see `sources.prepare.prepare`."""
        return preparing.prepare(
            task,
            self.workspace,
            self.options,
            stop=stop,
            confirm=confirm,
            announce=announce,
            on_event=on_event,
        )

    def rebuild(self, task: Task, *, stop: Stop, confirm: Callable[[], None]) -> Prepared:
        """Make a prepared folder anew and swap it in; see `sources.prepare.rebuild`."""
        return preparing.rebuild(
            task,
            self.workspace,
            self.options,
            stop=stop,
            confirm=confirm,
        )

    def check(self, task_id: str) -> list[str]:
        """How a prepared folder differs from what was prepared; empty if it does not."""
        return preparing.check_prepared(task_id, self.workspace)

    def remove(self, task_id: str, *, stop: Stop, unwanted: Callable[[], bool]) -> bool:
        """Remove all that is kept for one task; see `sources.prepare.remove_prepared`."""
        return preparing.remove_prepared(task_id, self.workspace, stop, unwanted=unwanted)

    def verify(
        self,
        *,
        full: bool,
        repair: bool,
        stop: Stop,
        on_progress: Callable[[str, int, int], None] = _nothing,
    ) -> Verification:
        """Compare archives, trees and tasks with what was written; see `sources.verify`."""
        return verify(
            self.workspace,
            full=full,
            repair=repair,
            limits=self.options.limits,
            stop=stop,
            on_progress=on_progress,
        )

    def collect(
        self,
        *,
        everything: bool,
        dry_run: bool,
        stop: Stop,
        unused_seconds: float | None = None,
        on_progress: Callable[[int, int], None] = _nothing,
    ) -> Collection | None:
        """Clear up, and remove what no task needs; see `sources.collect`."""
        problems: tuple[str, ...] = ()
        if not dry_run and self.workspace.tasks.is_dir():
            try:
                preparing.clean_staging(self.workspace)
            except StorageError as error:
                problems = (str(error),)
        done = collect(
            Store(self.workspace.store),
            self.options.watermarks,
            everything=everything,
            unused_seconds=unused_seconds,
            dry_run=dry_run,
            stop=stop,
            on_progress=on_progress,
        )
        return None if done is None else replace(done, problems=problems + done.problems)
