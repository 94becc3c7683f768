"""Dagster's storage on many machines: its connections are kept, and may break between two uses."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pytest
import sqlalchemy as db

from benchmarks.event_storage_runs import make_task_folder
from benchmarks.postgres import Database
from buttercup_dagster.launcher import WarmRunLauncher
from buttercup_dagster.postgres_storage import KEPT_CONNECTIONS
from buttercup_dagster.storage import shrink
from tests.buttercup_dagster.test_storage import ingest, messages, use_template
from tests.support.postgres import database

ASSET: Final = dg.AssetKey("prepared_task")


@pytest.fixture(scope="module")
def server() -> Iterator[Database]:
    with database() as made:
        yield made


@pytest.fixture
def place(
    server: Database, home: Path, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with `many_machines.yaml`, which DAGSTER_HOME names."""
    folder = tmp_path / "dagster"
    folder.mkdir()
    use_template(folder, "many_machines.yaml")
    make_task_folder(tmp_path / "task")
    variables = {
        **server.environment,
        "DAGSTER_HOME": str(folder),
        "BUTTERCUP_REDIS_URL": redis_url,
        "BENCH_TASK_FOLDER": str(tmp_path / "task"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def instance(place: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.get() as opened:
        yield opened


def ask(server: Database, query: str) -> list[int]:
    """What a query finds, over a connection of its own."""
    given = server.environment
    url = db.URL.create(
        "postgresql+psycopg2",
        host=given["DAGSTER_PG_HOST"],
        port=int(given["DAGSTER_PG_PORT"]),
        username=given["DAGSTER_PG_USERNAME"],
        password=given["DAGSTER_PG_PASSWORD"],
        database=given["DAGSTER_PG_DB"],
    )
    with db.create_engine(url, poolclass=db.NullPool).connect() as connection:
        return list(connection.execute(db.text(query)).scalars())


OTHERS: Final = (
    "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


def connections(server: Database) -> set[int]:
    """The server's processes, one for each connection that is open."""
    return set(ask(server, f"SELECT pid {OTHERS}"))


def break_connections(server: Database) -> None:
    """Close them on the server's side, as its restart or a firewall does."""
    ask(server, f"SELECT pg_terminate_backend(pid, 5000)::int {OTHERS}")
    assert not connections(server)


def test_many_machines_open(server: Database, place: Path, instance: dg.DagsterInstance) -> None:
    assert isinstance(instance.run_launcher, WarmRunLauncher)
    task_id, run_id = ingest(instance)
    assert task_id in instance.get_materialized_partitions(ASSET)
    assert any(f"attempt 1 of task {task_id} begins" in line for line in messages(instance, run_id))
    assert shrink(instance) == 0
    assert server.environment["DAGSTER_PG_PASSWORD"] not in (place / "dagster.yaml").read_text()


def test_runs_share_the_kept_connections(server: Database, instance: dg.DagsterInstance) -> None:
    ingest(instance)
    kept = connections(server)
    assert 1 <= len(kept) <= KEPT_CONNECTIONS
    ingest(instance)
    # A code server opens an instance for each turn of a sensor.
    with dg.DagsterInstance.get() as other:
        other.get_runs_count()
    ingest(instance)
    assert connections(server) == kept


def test_threads_get_more_connections_and_give_them_back(
    server: Database, instance: dg.DagsterInstance
) -> None:
    failures: list[BaseException] = []
    together = threading.Barrier(12)

    def use() -> None:
        try:
            storage: Any = instance.event_log_storage
            with storage.index_connection():
                together.wait(20)
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert len(connections(server)) <= KEPT_CONNECTIONS


def test_broken_connections_are_replaced_before_they_are_used(
    server: Database, instance: dg.DagsterInstance
) -> None:
    first, _ = ingest(instance)
    break_connections(server)
    second, _ = ingest(instance)
    assert instance.get_materialized_partitions(ASSET) >= {first, second}


def test_restarted_server_is_found_again(server: Database, instance: dg.DagsterInstance) -> None:
    first, _ = ingest(instance)
    server.stop()
    server.start()
    second, _ = ingest(instance)
    assert instance.get_materialized_partitions(ASSET) >= {first, second}


def test_forked_process_has_connections_of_its_own(
    server: Database, instance: dg.DagsterInstance
) -> None:
    ingest(instance)
    before = connections(server)
    child = os.fork()
    if child == 0:
        # Nothing of pytest's may go on here.
        status = 1
        try:
            instance.add_dynamic_partitions("tasks", ["of-the-child"])
            status = 0 if connections(server) > before else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "of-the-child" in instance.get_dynamic_partitions("tasks")
    assert connections(server) == before


def test_missing_server_is_named(
    place: Path, server: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_PG_HOST", "127.0.0.1")
    monkeypatch.setenv("DAGSTER_PG_PORT", "1")
    with pytest.raises(Exception, match="too many retries for DB connection") as caught:
        dg.DagsterInstance.get()
    assert "port 1 failed" in str(caught.value.__cause__)
    assert server.environment["DAGSTER_PG_PASSWORD"] not in str(caught.value.__cause__)
