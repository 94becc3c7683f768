"""Dagster's storage on one machine: what users see of it, and what killed processes leave."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib import resources
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config

from benchmarks import event_storage
from benchmarks.event_storage_runs import defs, make_task_folder
from buttercup_dagster.launcher import WarmRunLauncher
from buttercup_dagster.sqlite_file import SqliteFile
from buttercup_dagster.storage import EventLogStorage, RunStorage, ScheduleStorage, shrink
from tests.support.waiting import wait_for

TEMPLATES: Final = resources.files("buttercup_dagster") / "instance"
ROOT: Final = Path(__file__).parents[2]


@pytest.fixture
def place(home: Path, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `one_machine.yaml`, which DAGSTER_HOME names."""
    folder = tmp_path / "dagster"
    folder.mkdir()
    use_template(folder, "one_machine.yaml")
    make_task_folder(tmp_path / "task")
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    monkeypatch.setenv("BUTTERCUP_REDIS_URL", redis_url)
    monkeypatch.setenv("BENCH_TASK_FOLDER", str(tmp_path / "task"))
    return folder


@pytest.fixture
def instance(place: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.get() as opened:
        yield opened


def use_template(folder: Path, name: str) -> None:
    (folder / "dagster.yaml").write_text((TEMPLATES / name).read_text("utf-8"), "utf-8")


def ingest(instance: dg.DagsterInstance) -> tuple[str, str]:
    """Run `ingest` for a new task; the ids of task and run."""
    task_id = str(uuid.uuid4())
    instance.add_dynamic_partitions("tasks", [task_id])
    result = defs.resolve_job_def("ingest").execute_in_process(
        instance=instance, partition_key=task_id
    )
    assert result.success
    return task_id, result.run_id


def messages(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [entry.message for entry in instance.all_logs(run_id)]


def files_of(instance: dg.DagsterInstance) -> tuple[SqliteFile, SqliteFile, SqliteFile]:
    """The files of events, runs and schedules."""
    events, runs = instance.event_log_storage, instance.run_storage
    schedules = instance.schedule_storage
    assert isinstance(events, EventLogStorage)
    assert isinstance(runs, RunStorage)
    assert isinstance(schedules, ScheduleStorage)
    return events.file, runs.file, schedules.file


def child(code: str, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


# --- templates -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one_machine.yaml", "many_machines.yaml"])
def test_dagster_accepts_the_template(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_template(place, name)
    for variable in ("HOST", "USERNAME", "PASSWORD", "DB"):
        monkeypatch.setenv(f"DAGSTER_PG_{variable}", "x")
    monkeypatch.setenv("DAGSTER_PG_PORT", "5432")
    settings, _ = dagster_instance_config(str(place))
    assert settings["run_retries"]["enabled"] is False
    assert settings["run_monitoring"]["max_resume_run_attempts"] == 0
    assert settings["sensors"]["use_threads"] is False
    assert settings["telemetry"]["enabled"] is False


def test_templates_differ_in_their_storage_alone() -> None:
    one, many = (
        yaml.safe_load((TEMPLATES / name).read_text("utf-8"))
        for name in ("one_machine.yaml", "many_machines.yaml")
    )
    assert one.pop("storage") != many.pop("storage")
    assert one == many


def test_one_machine_opens(instance: dg.DagsterInstance) -> None:
    assert all(file.path.exists() for file in files_of(instance))
    assert isinstance(instance.run_launcher, WarmRunLauncher)
    assert instance.schedule_storage is not None
    for version in (
        instance.event_log_storage.alembic_version(),
        instance.run_storage.alembic_version(),
        instance.schedule_storage.alembic_version(),
    ):
        assert version is not None
        assert version[0] == version[1]


# --- what a user sees ------------------------------------------------------------------------


def test_run_is_shown_with_its_events_checks_and_materializations(place: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        task_id, run_id = ingest(instance)
    with dg.DagsterInstance.get() as instance:
        found = instance.get_run_by_id(run_id)
        assert found is not None
        assert found.status is dg.DagsterRunStatus.SUCCESS
        said = messages(instance, run_id)
        assert any(f"attempt 1 of task {task_id} begins" in line for line in said)
        (record,) = instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey("prepared_task"), asset_partitions=[task_id]), limit=5
        ).records
        assert record.run_id == run_id
        check = dg.AssetCheckKey(dg.AssetKey("prepared_task"), "focus_present")
        (execution,) = instance.event_log_storage.get_asset_check_execution_history(check, limit=5)
        assert execution.status.value == "SUCCEEDED"
    # One file of events, however many runs.
    assert [path.name for path in place.glob("history/**/*.db")].count("event_log.db") == 1
    assert not (place / "history" / "runs").exists()


def test_run_page_is_told_of_new_events(instance: dg.DagsterInstance) -> None:
    run = instance.add_run(dg.DagsterRun(job_name="ingest", run_id=str(uuid.uuid4())))
    heard: list[str] = []

    def hear(entry: Any, _: str) -> None:
        heard.append(entry.message)

    instance.watch_event_logs(run.run_id, None, hear)
    instance.report_engine_event("something happens", run)
    wait_for(lambda: "something happens" in heard, "the watcher calls back")
    instance.end_watch_event_logs(run.run_id, hear)


def test_deleted_run_leaves_nothing_and_its_space_comes_back(instance: dg.DagsterInstance) -> None:
    kept_task, kept_run = ingest(instance)
    shrink(instance)
    path = files_of(instance)[0].path
    before = path.stat().st_size
    runs = [ingest(instance)[1] for _ in range(4)]
    for run_id in runs:
        instance.delete_run(run_id)
    assert shrink(instance) > 0
    assert path.stat().st_size <= before * 1.1
    with closing(sqlite3.connect(path)) as connection:
        for table in ("event_logs", "asset_check_executions"):
            left = {run_id for (run_id,) in connection.execute(f"SELECT run_id FROM {table}")}
            assert left == {kept_run}
    assert instance.get_materialized_partitions(dg.AssetKey("prepared_task")) == {kept_task}


def test_former_runs_stay_until_they_are_deleted(place: Path) -> None:
    settings = yaml.safe_load((place / "dagster.yaml").read_text())
    del settings["storage"]
    (place / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with dg.DagsterInstance.get() as instance:
        task_id, run_id = ingest(instance)
        said = messages(instance, run_id)
    former = place / "history" / "runs" / f"{run_id}.db"
    assert former.exists()

    use_template(place, "one_machine.yaml")
    with dg.DagsterInstance.get() as instance:
        assert messages(instance, run_id) == said
        assert instance.get_dynamic_partitions("tasks") == [task_id]
        assert instance.get_materialized_partitions(dg.AssetKey("prepared_task")) == {task_id}
        second, _ = ingest(instance)
        shrink(instance)  # also what Dagster's own storage has made
    with dg.DagsterInstance.get() as instance:
        instance.delete_run(run_id)
        assert not former.exists()
        assert messages(instance, run_id) == []
        assert instance.get_materialized_partitions(dg.AssetKey("prepared_task")) == {second}


def test_migrate_goes_through(place: Path, instance: dg.DagsterInstance) -> None:
    program = Path(sys.executable).parent / "dagster"
    done = subprocess.run(
        [program, "instance", "migrate"], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr


def open_files(folder: Path) -> list[str]:
    """What this process holds open below a folder."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            target = str(entry.readlink())
            if target.startswith(f"{folder}/"):
                found.append(target)
    return found


def test_closed_instance_leaves_no_file_open(place: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        ingest(instance)
        assert instance.schedule_storage is not None
        instance.schedule_storage.all_instigator_state()
        assert open_files(place)
        assert open_files(place / "schedules")
    assert open_files(place) == []


def test_former_runs_are_not_kept_open(place: Path) -> None:
    settings = yaml.safe_load((place / "dagster.yaml").read_text())
    del settings["storage"]
    (place / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with dg.DagsterInstance.get() as instance:
        _, run_id = ingest(instance)
    use_template(place, "one_machine.yaml")
    with dg.DagsterInstance.get() as instance:
        assert messages(instance, run_id)
        assert open_files(place / "history")
        assert open_files(place / "history" / "runs") == []


# --- several processes -----------------------------------------------------------------------


def test_connections_wait_long_for_their_turn(instance: dg.DagsterInstance) -> None:
    for file in files_of(instance):
        with file.transaction() as connection:
            waits = connection.exec_driver_sql("PRAGMA busy_timeout").scalar()
            mode = connection.exec_driver_sql("PRAGMA journal_mode").scalar()
        assert (waits, mode) == (60_000, "wal")


def test_processes_make_a_new_instance_at_the_same_moment(place: Path) -> None:
    code = (
        "import sys, dagster as dg; sys.stdin.readline()\n"
        "with dg.DagsterInstance.get() as instance:\n"
        "    for one in (instance.event_log_storage, instance.run_storage,"
        " instance.schedule_storage):\n"
        "        found, wanted = one.alembic_version(); assert found == wanted, found\n"
        "    instance.add_dynamic_partitions('tasks', [sys.argv[0]])\n"
    )
    children = [child(code) for _ in range(4)]
    for each in children:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    for each in children:
        each.communicate(timeout=100)
        assert each.returncode == 0
    assert not list(place.rglob("*.new*"))


def test_writer_killed_in_the_middle_leaves_no_lock_and_no_half(
    instance: dg.DagsterInstance,
) -> None:
    run = instance.add_run(dg.DagsterRun(job_name="ingest", run_id=str(uuid.uuid4())))
    code = f"""
import sys, time
import dagster as dg
instance = dg.DagsterInstance.get()
with instance.event_log_storage.file.transaction() as connection:
    connection.exec_driver_sql(
        "INSERT INTO event_logs (run_id, event) VALUES ('{run.run_id}', 'x')"
    )
    print("written", flush=True)
    time.sleep(100)
"""
    with child(code) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        writer.kill()
    instance.report_engine_event("after the kill", run)
    assert messages(instance, run.run_id) == ["after the kill"]


def test_forked_process_has_connections_of_its_own(place: Path) -> None:
    code = """
import os
import dagster as dg
with dg.DagsterInstance.get() as instance:
    instance.add_dynamic_partitions("tasks", ["parent"])
    if (process := os.fork()) == 0:
        instance.add_dynamic_partitions("tasks", ["child"])
        os._exit(0)
    assert os.waitpid(process, 0)[1] == 0
    instance.add_dynamic_partitions("tasks", ["later"])
    print(sorted(instance.get_dynamic_partitions("tasks")))
"""
    with child(code) as parent:
        said, _ = parent.communicate(timeout=100)
    assert said.strip() == "['child', 'later', 'parent']"


def test_what_a_forked_process_writes_stays_when_its_parent_closes(place: Path) -> None:
    """As the last one to close a file, SQLite removes the log of changes."""
    code = """
import os
import dagster as dg
instance = dg.DagsterInstance.get()
instance.add_dynamic_partitions("tasks", ["parent"])
written, tell_written = os.pipe()
closed, tell_closed = os.pipe()
if (process := os.fork()) == 0:
    instance.add_dynamic_partitions("tasks", ["child"])
    os.write(tell_written, b"x")
    os.read(closed, 1)
    instance.add_dynamic_partitions("tasks", ["later"])
    os._exit(0)
os.read(written, 1)
instance.dispose()
os.write(tell_closed, b"x")
assert os.waitpid(process, 0)[1] == 0
with dg.DagsterInstance.get() as instance:
    print(sorted(instance.get_dynamic_partitions("tasks")))
"""
    with child(code) as parent:
        said, _ = parent.communicate(timeout=100)
    assert said.strip() == "['child', 'later', 'parent']"


@pytest.mark.parametrize("runs", [3, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.timeout(400)
def test_four_processes_write_at_once(runs: int, tmp_path: Path, home: Path) -> None:
    status = event_storage.main(
        [
            *["--storages", event_storage.CHOSEN, "--writers", "4", "--rounds", "1"],
            *["--runs", str(runs), "--json", str(tmp_path / "figures.json")],
        ]
    )
    assert status == 0
