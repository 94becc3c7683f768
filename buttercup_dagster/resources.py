"""What the assets and sensors work with; opened when they run, never at import."""

from __future__ import annotations

from typing import Any, Protocol

import dagster as dg
from pydantic import Field, PrivateAttr

from buttercup_dagster.attempt import Attempt, Run
from buttercup_dagster.by_hand import run_by_hand
from buttercup_dagster.engine import Engine
from buttercup_dagster.settings import DownloaderSettings
from buttercup_dagster.sources.prepare import Prepared
from task_api.registry import TaskRecord, TaskRegistry


class Preparer(Protocol):
    """What makes the folder of a task for a run."""

    def prepare(self, task_id: str, run: Run) -> Prepared | TaskRecord:
        """Make the folder; or return the record of a task whose folder needs nothing done.

        Raises:
            Withdrawn: the task was cancelled, expired or taken over; nothing failed.
            AttemptFailed: it cannot be prepared; the text says why.
        """

    def materialized(self, task_id: str) -> None:
        """Note that Dagster has the materialization."""


class Downloader(dg.ConfigurableResource[Any]):
    """This machine's downloader: its settings, its registry, and its engine."""

    env_file: str = Field(
        default=".env", description="File of settings; the environment wins over it."
    )
    _settings: DownloaderSettings = PrivateAttr()
    _registry: TaskRegistry = PrivateAttr()

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002
        """Read the settings; nothing is connected before the first call."""
        self._settings = DownloaderSettings(_env_file=self.env_file)
        self._registry = TaskRegistry.from_url(self._settings.redis_url)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002
        """Give back the connections."""
        self._registry.close()

    @property
    def settings(self) -> DownloaderSettings:
        """The settings, as they were when the run or tick began."""
        return self._settings

    @property
    def registry(self) -> TaskRegistry:
        """The tasks in Redis."""
        return self._registry

    @property
    def engine(self) -> Engine:
        """What prepares tasks on this machine."""
        return Engine.from_settings(self._settings)

    def prepare(self, task_id: str, run: Run) -> Prepared | TaskRecord:
        """See `Preparer`."""
        if run.token is None:
            return run_by_hand(self.registry, self.engine, task_id, run)
        return Attempt(self.registry, self.engine, task_id, run).run()

    def materialized(self, task_id: str) -> None:
        """See `Preparer`."""
        self.registry.materialized(task_id)
