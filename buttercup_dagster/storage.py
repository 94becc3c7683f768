"""Dagster's storage on one machine: SQLite, with the events of all runs in one file.

Dagster's own SQLite storage has a file of events for each run and a copy of most of them in another
file. `docs/concepts/storage.md` compares it with this one, by `python -m benchmarks.event_storage`.
Tables, queries and migrations are Dagster's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, Final, Self

import dagster as dg
import sqlalchemy as db
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from dagster._config import UserConfigSchema
from dagster._core.event_api import EventHandlerFn
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.base_storage import DagsterStorage
from dagster._core.storage.event_log.polling_event_watcher import SqlPollingEventWatcher
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    SqlEventLogStorageMetadata,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.schedules import SqliteScheduleStorage
from dagster._core.storage.sql import (
    AlembicVersion,
    check_alembic_revision,
    get_alembic_config,
    run_alembic_upgrade,
    stamp_alembic_rev,
)
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from sqlalchemy.engine import Connection

from buttercup_dagster.sqlite_file import SqliteFile, remove_sqlite_file

EVENTS: Final = "event_log.db"
INDEX_OF_FORMER_RUNS: Final = "index.db"


class RunStorage(SqliteRunStorage):
    """Dagster's storage of runs, with kept connections."""

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(conn_string, inst_data)
        self.file = SqliteFile(_path_in(conn_string))
        self.closed_with: list[SqliteFile] = []

    @classmethod
    def from_local(cls, base_dir: str, inst_data: ConfigurableClassData | None = None) -> Self:
        """Open `runs.db` in a folder; make it if it is missing."""
        with SqliteFile(Path(base_dir, "runs.db")).making():
            return super().from_local(base_dir, inst_data)

    def connect(self) -> AbstractContextManager[Connection]:  # type: ignore[override]
        """A connection in a transaction."""
        return self.file.transaction()

    def dispose(self) -> None:
        """Close the connections, and those of the files in `closed_with`."""
        for file in (self.file, *self.closed_with):
            file.close()


class ScheduleStorage(SqliteScheduleStorage):
    """Dagster's storage of what sensors and schedules did, with kept connections."""

    def __init__(self, conn_string: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(conn_string, inst_data)
        self.file = SqliteFile(_path_in(conn_string))

    @classmethod
    def from_local(
        cls, base_dir: str, inst_data: ConfigurableClassData | None = None
    ) -> SqliteScheduleStorage:
        """Open `schedules.db` in a folder; make it if it is missing."""
        with SqliteFile(Path(base_dir, "schedules.db")).making():
            return super().from_local(base_dir, inst_data)

    def connect(self) -> AbstractContextManager[Connection]:  # type: ignore[override]
        """A connection in a transaction."""
        return self.file.transaction()

    def dispose(self) -> None:
        """Close the connections."""
        self.file.close()


class EventLogStorage(SqlEventLogStorage):
    """The events of all runs in one file; an event and what is indexed of it in one transaction.

    Where Dagster's own storage was used before, its index is taken over when the file is made, and
    the events of former runs are read from their files, until those runs are deleted.

    Args:
        folder: of the file.
        former_runs: folder with the files of former runs; it need not be there.
    """

    def __init__(self, folder: Path, former_runs: Path) -> None:
        self.file = SqliteFile(folder / EVENTS)
        self._here = threading.local()
        self._watcher: SqlPollingEventWatcher | None = None
        self._tables: set[str] = set()
        self._secondary_indexes: set[str] = set()
        self._has_index_columns = False
        self._former = {
            path.stem: path
            for path in former_runs.glob("*.db")
            if path.stem and path.name != INDEX_OF_FORMER_RUNS
        }
        super().__init__()  # type: ignore[no-untyped-call]
        with self.file.making(copy_of=former_runs / INDEX_OF_FORMER_RUNS):
            if not self._is_made():
                self._make_tables()

    def _is_made(self) -> bool:
        with self.file.transaction() as connection:
            return MigrationContext.configure(connection).get_current_revision() is not None

    def _make_tables(self) -> None:
        with self.file.transaction() as connection:
            SqlEventLogStorageMetadata.create_all(connection)
        self.reindex_events()
        self.reindex_assets()
        # The last step: a process killed before it leaves a file that is made anew from there.
        with self.file.transaction() as connection:
            stamp_alembic_rev(_alembic_config(), connection)

    # --- connections -------------------------------------------------------------------------

    @contextmanager
    def index_connection(self) -> Iterator[Connection]:
        """A connection in a transaction; within `store_event` the one that it has begun."""
        begun: Connection | None = getattr(self._here, "connection", None)
        if begun is not None:
            yield begun
            return
        with self.file.transaction() as connection:
            yield connection

    @contextmanager
    def run_connection(self, run_id: str | None) -> Iterator[Connection]:
        """A connection to the file that has the events of a run."""
        former = self._former.get(run_id or "")
        if former is None or not former.exists():
            with self.index_connection() as connection:
                yield connection
            return
        # Not kept open: there may be thousands of them.
        with closing(SqliteFile(former)) as file, file.transaction() as connection:
            yield connection

    def store_event(self, event: EventLogEntry) -> None:
        """Store an event and what is indexed of it, both or nothing."""
        with self.file.transaction() as connection:
            self._here.connection = connection
            try:
                super().store_event(event)
            finally:
                self._here.connection = None

    def delete_events(self, run_id: str) -> None:
        """Delete all that is stored of a run, its checks and its former file too."""
        self.delete_events_of([run_id])

    def delete_events_of(self, run_ids: Sequence[str]) -> None:
        """Delete all that is stored of some runs: tens of them at a time cost little more than one.

        Args:
            run_ids: up to some hundred.
        """
        for run_id in run_ids:
            super().delete_events(run_id)
        checks = AssetCheckExecutionsTable
        with self.index_connection() as connection:
            # No index finds the checks of a run, so they are looked for once.
            connection.execute(db.delete(checks).where(checks.c.run_id.in_(run_ids)))
        for run_id in run_ids:
            former = self._former.pop(run_id, None)
            if former is not None:
                remove_sqlite_file(former)

    def dispose(self) -> None:
        """Stop watching and close the connections."""
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        self.file.close()

    # --- schema ------------------------------------------------------------------------------
    # What is there stays there: asked once, not for each event.

    def has_table(self, table_name: str) -> bool:
        """Whether there is a table."""
        if table_name not in self._tables:
            with self.index_connection() as connection:
                if not db.inspect(connection).has_table(table_name):
                    return False
            self._tables.add(table_name)
        return True

    def has_secondary_index(self, name: str) -> bool:
        """Whether data were migrated to an index."""
        if name not in self._secondary_indexes:
            if not super().has_secondary_index(name):
                return False
            self._secondary_indexes.add(name)
        return True

    def _has_asset_key_index_cols_on_connection(self, conn: Connection) -> bool:
        if not self._has_index_columns:
            self._has_index_columns = super()._has_asset_key_index_cols_on_connection(conn)
        return self._has_index_columns

    def upgrade(self) -> None:
        """Bring the schema to that of the installed Dagster (`dagster instance migrate`)."""
        with self.file.transaction() as connection:
            run_alembic_upgrade(_alembic_config(), connection)

    def alembic_version(self) -> AlembicVersion:
        """The version of the schema, and that of the installed Dagster."""
        with self.index_connection() as connection:
            return check_alembic_revision(_alembic_config(), connection)

    # --- what the run page of the UI follows ---------------------------------------------------

    def watch(self, run_id: str, cursor: str | None, callback: EventHandlerFn) -> None:
        """Call back for each new event of a run."""
        if self._watcher is None:
            self._watcher = SqlPollingEventWatcher(self)
        self._watcher.watch_run(run_id, cursor, callback)

    def end_watch(self, run_id: str, handler: EventHandlerFn) -> None:
        """Call back no more."""
        if self._watcher is not None:
            self._watcher.unwatch_run(run_id, handler)


class SqliteStorage(DagsterStorage[Any], ConfigurableClass):
    """All that Dagster stores on one machine, for `storage: custom:` in `dagster.yaml`.

    It is made for processes of one machine on a local disk: SQLite's locks do not hold on a network
    file system.

    Args:
        base_dir: the folder; best the one of `dagster.yaml`.
        inst_data: where Dagster found the configuration.
    """

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        history = Path(base_dir, "history")
        self._runs = RunStorage.from_local(str(history))
        self._events = EventLogStorage(history, former_runs=history / "runs")
        self._schedules = ScheduleStorage.from_local(str(Path(base_dir, "schedules")))
        # An instance that is closed disposes of its runs and events, and forgets its schedules.
        if isinstance(self._schedules, ScheduleStorage):
            self._runs.closed_with.append(self._schedules.file)
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """The options of `dagster.yaml`."""
        return {"base_dir": dg.StringSource}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Made by Dagster from `dagster.yaml`."""
        return cls(config_value["base_dir"], inst_data)

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Where Dagster found the configuration."""
        return self._inst_data

    @property
    def run_storage(self) -> RunStorage:
        """Runs, their tags and states."""
        return self._runs

    @property
    def event_log_storage(self) -> EventLogStorage:
        """Events, assets, checks and partitions."""
        return self._events

    @property
    def schedule_storage(self) -> SqliteScheduleStorage:
        """Ticks and cursors of sensors."""
        return self._schedules


def shrink(instance: dg.DagsterInstance) -> int:
    """Give the space of deleted runs, events and ticks back to the file system.

    Other processes go on meanwhile. A server such as PostgreSQL does it by itself.

    Returns:
        Bytes that the files have become smaller; 0 for another storage than `SqliteStorage`.
    """
    storages = (instance.run_storage, instance.event_log_storage, instance.schedule_storage)
    return sum(
        storage.file.shrink()
        for storage in storages
        if isinstance(storage, RunStorage | EventLogStorage | ScheduleStorage)
    )


def _path_in(conn_string: str) -> Path:
    return Path(conn_string.removeprefix("sqlite:///"))


def _alembic_config() -> Config:
    return get_alembic_config(sqlite_event_log.__file__)
