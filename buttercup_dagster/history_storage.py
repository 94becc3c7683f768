"""What Dagster's storages keep of runs, beyond what Dagster itself removes.

`DagsterInstance.delete_run` removes a run and then its events. Dagster's own storages leave the
results of asset checks, the files of a run's own (its event log under per-run SQLite, captured
output), and the pages of SQLite that became free. Events that belong to no run, such as those that
a sensor added, stay with any storage.
"""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import dagster as dg
import sqlalchemy as db
from dagster._core.instance import RUNLESS_RUN_ID
from dagster._core.storage.event_log.base import EventLogStorage as BaseEventLogStorage
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    DynamicPartitionsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage
from dagster._core.storage.schedules.sql_schedule_storage import SqlScheduleStorage

from buttercup_dagster.storage import EventLogStorage, shrink

MEBIBYTE: Final = 1 << 20

WORTHWHILE_FREE_BYTES: Final = MEBIBYTE
"""A SQLite file with less free space is left as it is; the next rows fill it."""

MOST_LIVE_BYTES: Final = 32 * MEBIBYTE
"""A file that holds more is left as it is too: nobody can write while it is written anew."""

BUSY_SECONDS: Final = 1.0
"""How long to wait for whoever writes to a file; then it is left for the next time."""

_ASSET_EVENTS: Final = (
    dg.DagsterEventType.ASSET_MATERIALIZATION.value,
    dg.DagsterEventType.ASSET_OBSERVATION.value,
)
_Connect = Callable[[], AbstractContextManager[Any]]


def delete_runs(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    """Delete runs with all their events; their files are left to `remove_files`.

    The runs go last. In Dagster's own order a crash in between would leave events of a run that
    nobody finds any more.

    Args:
        instance: whose runs.
        run_ids: some tens of runs that have ended: writers of the same file wait for all of them.
    """
    storage = instance.event_log_storage
    if isinstance(storage, EventLogStorage):
        storage.delete_events_of(run_ids)
    else:
        _delete_events(instance, storage, run_ids)
    for run_id in run_ids:
        instance.run_storage.delete_run(run_id)


def _delete_events(
    instance: dg.DagsterInstance, storage: BaseEventLogStorage[Any], run_ids: Sequence[str]
) -> None:
    if isinstance(storage, SqlEventLogStorage):
        _delete_check_results(storage, instance.get_asset_keys(), run_ids)
    if isinstance(storage, SqliteEventLogStorage):
        # The file of a run goes whole; to open it, storage would make it anew.
        with storage.index_connection() as connection:
            for run_id in run_ids:
                storage.delete_events_for_run(connection, run_id)
    else:
        for run_id in run_ids:
            storage.delete_events(run_id)


def _delete_check_results(
    storage: SqlEventLogStorage, assets: Sequence[dg.AssetKey], run_ids: Sequence[str]
) -> None:
    table = AssetCheckExecutionsTable
    keys = [key.to_string() for key in assets]
    with storage.index_connection() as connection:
        connection.execute(
            db.delete(table).where(table.c.asset_key.in_(keys), table.c.run_id.in_(run_ids))
        )


def partitions_of_age(
    instance: dg.DagsterInstance, name: str, *, older_than_seconds: float
) -> list[str]:
    """The dynamic partitions of a definition that were added so long ago."""
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return list(instance.get_dynamic_partitions(name))
    table = DynamicPartitionsTable
    # Without a time zone, as Dagster's own defaults are.
    latest = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=older_than_seconds)
    with storage.index_connection() as connection:
        found = connection.execute(
            db.select(table.c.partition).where(
                table.c.partitions_def_name == name, table.c.create_timestamp <= latest
            )
        )
        return list(found.scalars())


def delete_runless_events(instance: dg.DagsterInstance, partitions: Sequence[str]) -> None:
    """Delete the materializations and observations of partitions that belong to no run."""
    storage = instance.event_log_storage
    if not isinstance(storage, SqlEventLogStorage):
        return
    assets = [key.to_string() for key in instance.get_asset_keys()]
    # Under per-run SQLite they stand in a file of their own and, again, in the index.
    if _delete_runless(storage.index_connection, assets, partitions):
        _delete_runless(lambda: storage.run_connection(RUNLESS_RUN_ID), assets, partitions)


def _delete_runless(connect: _Connect, assets: Sequence[str], partitions: Sequence[str]) -> bool:
    """Delete such events from one database; whether there were any."""
    events, tags = SqlEventLogStorageTable, AssetEventTagsTable
    with connect() as connection:
        found = (
            connection.execute(
                db.select(events.c.id).where(
                    events.c.asset_key.in_(assets),
                    events.c.dagster_event_type.in_(_ASSET_EVENTS),
                    events.c.partition.in_(partitions),
                    events.c.run_id == RUNLESS_RUN_ID,
                )
            )
            .scalars()
            .all()
        )
        if found:
            connection.execute(db.delete(tags).where(tags.c.event_id.in_(found)))
            connection.execute(db.delete(events).where(events.c.id.in_(found)))
    return bool(found)


def remove_files(instance: dg.DagsterInstance) -> int:
    """Remove the files and folders of runs that Dagster does not know, on this machine.

    Dagster records a run before it writes the first of its files, so none of a new run is taken
    for one of these.

    Returns:
        How many were removed.
    """
    found = list(_files_of_runs(instance))
    if not found:
        return 0
    known = set(instance.get_run_ids())
    removed = 0
    for run_id, path in found:
        if run_id in known:
            continue
        with suppress(FileNotFoundError):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed += 1
    return removed


def _files_of_runs(instance: dg.DagsterInstance) -> Iterator[tuple[str, Path]]:
    """Each file or folder that belongs to one run, with the run's id."""
    folders = [Path(instance.storage_directory())]
    storage = instance.event_log_storage
    if isinstance(storage, SqliteEventLogStorage):
        folders.append(Path(storage.path_for_shard("any")).parent)
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            run_id = path.name.partition(".")[0]
            with suppress(ValueError):
                if str(uuid.UUID(run_id)) == run_id:
                    yield run_id, path


def compact(instance: dg.DagsterInstance) -> int:
    """Give the free space of SQLite files back to the disk.

    A file of Dagster's own storage is written anew for that, where much of it is free. What
    somebody else works on is left for the next time.

    Returns:
        How many bytes were given back.
    """
    given_back = 0
    with suppress(sqlite3.OperationalError):
        given_back += shrink(instance)
    for path in _sqlite_files(instance):
        with suppress(sqlite3.OperationalError):
            given_back += _write_anew(path)
    return given_back


def _write_anew(path: Path) -> int:
    before = path.stat().st_size
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as database:
        pages, free, page_bytes = (
            database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        if (
            free * page_bytes < WORTHWHILE_FREE_BYTES
            or free * 2 < pages
            or (pages - free) * page_bytes > MOST_LIVE_BYTES
        ):
            return 0
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return max(0, before - path.stat().st_size)


def _sqlite_files(instance: dg.DagsterInstance) -> Iterator[Path]:
    """The SQLite files that all runs share."""
    connects: list[_Connect] = []
    if isinstance(instance.run_storage, SqlRunStorage):
        connects.append(instance.run_storage.connect)
    if isinstance(instance.event_log_storage, SqlEventLogStorage):
        connects.append(instance.event_log_storage.index_connection)
    if isinstance(instance.schedule_storage, SqlScheduleStorage):
        connects.append(instance.schedule_storage.connect)
    for connect in connects:
        with connect() as connection:
            url = connection.engine.url
        if url.get_backend_name() == "sqlite" and url.database:
            yield Path(url.database)
