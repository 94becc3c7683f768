"""A SQLite file that several processes write to at once.

Dagster's own storages open and close a connection for each query. To open one costs more than the
query, and the last one to be closed writes all changes to the disk and waits for it. Here
connections are kept, and whoever wants to write waits for its turn.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as db
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import QueuePool

BUSY_SECONDS: Final = 60.0
"""How long a connection waits for its turn to write; a turn takes milliseconds."""

KEPT_CONNECTIONS: Final = 4
"""How many connections a process keeps; what it needs beyond that is opened and closed."""

LOG_BYTES: Final = 16 * 1024 * 1024
"""How much of the log of changes is left when a reader had let it grow."""

PAGES_AT_ONCE: Final = 256
"""How many free pages one transaction gives back, so that nobody waits long for it."""

CHECKPOINT_MS: Final = 2000
"""How long others may be kept waiting while the log of changes is emptied."""

_INCREMENTAL: Final = 2
"""What `PRAGMA auto_vacuum` says of a file that can give back its free pages bit by bit."""

_INHERITED: Final[list[Engine]] = []
"""Of a parent process: SQLite allows neither to use nor to close its connections after a fork."""


class SqliteFile:
    """A file, and the connections of this process to it.

    What was committed outlives the process, however it ends. A power cut may take back the last
    moments, but leaves the file whole: the disk is waited for only when the log of changes is
    copied into the file, every few runs.

    Args:
        path: the file; `making` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._process = os.getpid()
        self._engine = _engine(path)
        _FILES.add(self)

    @contextmanager
    def making(self, *, copy_of: Path | None = None) -> Iterator[None]:
        """Make the file if it is missing, and let nobody else in until the context ends.

        The first of several processes makes the tables in it, the others find them.

        Args:
            copy_of: a SQLite file whose content a new file begins with, if it is there.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.path.exists():
                self._make(copy_of)
            yield

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A connection; what is written is committed at the end, and rolled back by an error.

        Raises:
            sqlalchemy.exc.OperationalError: the turn to write did not come within `BUSY_SECONDS`,
                or the disk is full or broken.
        """
        if self._process != os.getpid():
            _INHERITED.append(self._engine)
            self._process, self._engine = os.getpid(), _engine(self.path)
        with self._engine.begin() as connection:
            yield connection

    def shrink(self) -> int:
        """Give the space of what was deleted back to the file system, while others go on.

        Returns:
            Bytes that the file has become smaller.
        """
        before = self.path.stat().st_size
        with _plain(self.path) as connection:
            if _number(connection, "auto_vacuum") != _INCREMENTAL:  # made by Dagster's own storage
                connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                connection.execute("VACUUM")
            free = _number(connection, "freelist_count")
            while free:
                connection.execute(f"PRAGMA incremental_vacuum({PAGES_AT_ONCE})").fetchall()
                left = _number(connection, "freelist_count")
                if left >= free:
                    break
                free = left
            connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_MS}").fetchall()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return max(0, before - self.path.stat().st_size)

    def close(self) -> None:
        """Close the connections; the next transaction opens others."""
        if self._process == os.getpid():
            self._engine.dispose()

    def _make(self, copy_of: Path | None) -> None:
        """Under another name first: a process killed here leaves no file with half its settings."""
        beginning = self.path.with_suffix(".new")
        remove_sqlite_file(beginning)
        with _plain(beginning) as connection:
            if copy_of is not None and copy_of.exists():
                with _plain(copy_of) as source:
                    source.backup(connection)
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            connection.execute("VACUUM")
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        beginning.replace(self.path)


_FILES: Final[weakref.WeakSet[SqliteFile]] = weakref.WeakSet()


def _close_before_fork() -> None:
    """Leave nothing open that a forked process would inherit.

    It inherits what SQLite remembers of its locks, but not the locks. So it would believe that the
    file is locked, while the parent, as the last one to close it, removes the log of changes to
    which the forked process goes on writing.
    """
    for file in list(_FILES):
        file.close()


os.register_at_fork(before=_close_before_fork)


def remove_sqlite_file(path: Path) -> None:
    """Remove a file that nobody uses any more, and what SQLite keeps beside it."""
    for part in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        part.unlink(missing_ok=True)


def _engine(path: Path) -> Engine:
    engine = db.create_engine(
        db.URL.create("sqlite", database=str(path)),
        poolclass=QueuePool,
        pool_size=KEPT_CONNECTIONS,
        max_overflow=-1,
        pool_use_lifo=True,
        # The turn is waited for where a transaction begins to write. Python would begin it with a
        # plain BEGIN, and one that has to wait after it has read fails at once.
        connect_args={"timeout": BUSY_SECONDS, "isolation_level": "IMMEDIATE"},
    )
    db.event.listen(engine, "connect", _on_connect)
    return engine


def _on_connect(connection: Any, _: object) -> None:
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")


@contextmanager
def _plain(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        yield connection


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])
