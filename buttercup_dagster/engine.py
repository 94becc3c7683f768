"""The download engine with this machine's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from buttercup_dagster.settings import DownloaderSettings
from buttercup_dagster.sources import prepare as preparing
from buttercup_dagster.sources.archive import Limits
from buttercup_dagster.sources.fetch import FetchLimits, FetchPolicy
from buttercup_dagster.sources.prepare import Prepared, SourceEvent, Workspace
from buttercup_dagster.sources.stop import Stop
from task_api.task import Task


def _nothing(*_: object) -> None:
    return


@dataclass(frozen=True)
class Engine:
    """What prepares tasks here.

    Attributes:
        workspace: folders of the tasks and of the store.
        machine: name of this machine for consumers.
        limits: how much an archive may hold.
        fetch_limits: how much, how long and how often a download may.
        policy: from where archives may come.
    """

    workspace: Workspace
    machine: str
    limits: Limits = field(default_factory=Limits)
    fetch_limits: FetchLimits = field(default_factory=FetchLimits)
    policy: FetchPolicy = field(default_factory=FetchPolicy)

    @classmethod
    def from_settings(cls, settings: DownloaderSettings, *, allow_file: bool = False) -> Self:
        """The engine that these settings describe.

        Args:
            settings: of the downloader.
            allow_file: whether file:// URLs are allowed.
        """
        return cls(
            workspace=Workspace(tasks=settings.tasks, store=settings.store),
            machine=settings.machine,
            limits=Limits(total_bytes=settings.max_tree_bytes, entries=settings.max_tree_entries),
            fetch_limits=FetchLimits(max_archive_bytes=settings.max_archive_bytes),
            policy=FetchPolicy(
                allow_file=allow_file,
                block_private_addresses=settings.block_private_addresses,
                source_hosts=settings.allowed_hosts,
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
            limits=self.limits,
            fetch_limits=self.fetch_limits,
            policy=self.policy,
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
            limits=self.limits,
            fetch_limits=self.fetch_limits,
            policy=self.policy,
            stop=stop,
            confirm=confirm,
        )

    def check(self, task_id: str) -> list[str]:
        """How a prepared folder differs from what was prepared; empty if it does not."""
        return preparing.check_prepared(task_id, self.workspace)

    def remove(self, task_id: str, *, stop: Stop, unwanted: Callable[[], bool]) -> bool:
        """Remove a prepared folder; see `sources.prepare.remove_prepared`."""
        return preparing.remove_prepared(task_id, self.workspace, stop, unwanted=unwanted)
