"""Dagster's storage on many machines: PostgreSQL, with kept connections.

Dagster's own opens a connection for each query, which takes longer than the query: a process of the
server has to be started, and the password to be proved. `docs/concepts/storage.md` says what that
costs, by `python -m benchmarks.event_storage`. Tables, queries and migrations are Dagster's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Final, Self

from dagster._serdes import ConfigurableClassData
from dagster_postgres.auth import PgTokenProvider
from dagster_postgres.storage import DagsterPostgresStorage
from dagster_postgres.utils import (
    create_pg_engine,
    get_token_provider_from_config,
    pg_url_from_config,
)
from sqlalchemy.engine import Engine

KEPT_CONNECTIONS: Final = 4
"""How many connections a process keeps; what it needs beyond that is opened and closed."""

RENEW_SECONDS: Final = 60
"""How old a connection may be when it is used again. Firewalls forget those that were silent for
some minutes, and a query on such a one would be waited for in vain."""

_engines: Final[dict[tuple[str, type[PgTokenProvider] | None], Engine]] = {}
_engines_lock: Final = threading.Lock()


class PostgresStorage(DagsterPostgresStorage):
    """All that Dagster stores on many machines, for `storage: custom:` in `dagster.yaml`.

    All instances of a process share its connections: a code server opens an instance for each turn
    of a sensor. A connection that the server has closed is noticed before it is used, so a restart
    of the server costs those queries only that are under way.

    Args:
        postgres_url: of the database.
        should_autocreate_tables: make missing tables; looked at once in a process.
        inst_data: where Dagster found the configuration.
        token_provider: what makes passwords that last for a short time, if those are used.
    """

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: PgTokenProvider | None = None,
    ) -> None:
        key = (postgres_url, type(token_provider) if token_provider else None)
        with _engines_lock:
            engine = _engines.get(key)
            super().__init__(
                postgres_url,
                should_autocreate_tables and engine is None,
                inst_data,
                token_provider,
            )
            if engine is None:
                engine = _engines[key] = _engine(postgres_url, token_provider)
        storages: tuple[Any, ...] = (
            self._run_storage,
            self._event_log_storage,
            self._schedule_storage,
        )
        for storage in storages:
            storage._engine = engine  # noqa: SLF001 - there is no other way

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> Self:
        """Made by Dagster from `dagster.yaml`, with the options of Dagster's own."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )


def _engine(postgres_url: str, token_provider: PgTokenProvider | None) -> Engine:
    return create_pg_engine(
        postgres_url,
        token_provider,
        isolation_level="AUTOCOMMIT",
        pool_size=KEPT_CONNECTIONS,
        max_overflow=-1,
        pool_use_lifo=True,
        pool_pre_ping=True,
        pool_recycle=RENEW_SECONDS,
    )


def _forget_connections() -> None:
    """In a forked process: they are its parent's, who goes on using them."""
    for engine in _engines.values():
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_connections)
