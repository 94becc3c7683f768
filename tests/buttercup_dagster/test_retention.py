"""What is left of tasks that ended long ago: nothing, wherever a pass was interrupted."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as db
import yaml
from dagster._core.storage.tags import PARTITION_NAME_TAG

from buttercup_dagster import history, history_storage, retention_job
from buttercup_dagster.definitions import defs
from buttercup_dagster.resources import Downloader
from buttercup_dagster.retention import remove_folders
from buttercup_dagster.retention_job import retention_schedule
from buttercup_dagster.retention_pass import Pass, preview, run_pass
from buttercup_dagster.sensors import missing_events
from buttercup_dagster.sources.stop import Stop
from task_api.registry import Submission
from task_api.task import Outcome, Task, TaskState
from tests.buttercup_dagster.conftest import Bench
from tests.support.postgres import database
from tests.support.redis_server import RedisServer


def make_pass(bench: Bench, *, older_than_ms: int = 0, stop: Stop | None = None) -> Pass:
    return run_pass(
        bench.registry,
        bench.engine(),
        bench.instance,
        older_than_ms=older_than_ms,
        stop=stop or Stop(),
    )


def run_job(bench: Bench, **config: Any) -> dict[str, Any]:
    """Execute the job as a person does; the metadata that it shows."""
    result = defs.resolve_job_def("retention").execute_in_process(
        instance=bench.instance,
        run_config={"ops": {"remove_retired": {"config": config}}},
    )
    (event,) = [event for event in result.all_events if event.is_successful_output]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def finished(bench: Bench, number: int = 1) -> list[str]:
    """Tasks that were prepared and judged by their consumer."""
    ids = []
    for _ in range(number):
        repo = bench.repo()
        task = bench.task(bench.source("repo", repo))  # type: ignore[arg-type]
        assert bench.prepare(task).success
        bench.registry.report_outcome(task.task_id, Outcome.SUCCEEDED)
        ids.append(task.task_id)
    return ids


def bare_run(bench: Bench, status: dg.DagsterRunStatus, **tags: str) -> str:
    job = defs.resolve_job_def("registry")
    return bench.instance.create_run_for_job(job, status=status, tags=tags).run_id


def rows(bench: Bench) -> dict[str, int]:
    """How many rows each table of Dagster has, by file and table."""
    found: dict[str, int] = {}
    for path in Path(bench.instance.root_directory).rglob("*.db"):
        shared = not _is_of_a_run(path)
        with closing(sqlite3.connect(path)) as database:
            names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (name,) in names.fetchall():
                number = database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
                key = f"{path.name if shared else 'run'}/{name}"
                found[key] = found.get(key, 0) + number
    return {key: number for key, number in found.items() if number}


def _is_of_a_run(path: Path) -> bool:
    return len(path.name.partition(".")[0]) == 36


def files(bench: Bench) -> list[str]:
    """What lies below the home folder and Dagster's, run ids and folders of digests aside."""
    names = []
    for root in (bench.home, Path(bench.instance.root_directory)):
        for path in root.rglob("*"):
            name = str(path.relative_to(root.parent))
            if "/compute_logs/" in name:
                name = f"{path.parent.relative_to(root)}/*{path.suffix}"
            # One folder for each of the 256 beginnings of a digest, at the most.
            if "archives/sha256/" in name and path.is_dir():
                continue
            if not name.endswith(("-wal", "-shm")):
                names.append("/".join("<run>" if _is_uuid(p) else p for p in name.split("/")))
    return sorted(names)


def things(bench: Bench) -> list[str]:
    """The same without what only helps to look after the rest."""
    helpers = ("home/store/locks", "home/store/trash", "home/store/staging", "home/store/parts")
    return [name for name in files(bench) if not name.startswith(helpers)]


def _is_uuid(part: str) -> bool:
    try:
        uuid.UUID(part.partition(".")[0])
    except ValueError:
        return False
    return True


def kept_keys(bench: Bench) -> list[str]:
    """The keys of Redis that do not end by themselves."""
    client: Any = bench.registry._redis
    return sorted(key.decode() for key in client.keys("*") if client.ttl(key) < 0)


def bytes_below(bench: Bench) -> int:
    roots = (bench.home, Path(bench.instance.root_directory))
    return sum(path.stat().st_size for root in roots for path in root.rglob("*") if path.is_file())


def open_instance(bench: Bench, folder: Path, configuration: str) -> dg.DagsterInstance:
    """Another instance for the bench, which other processes can open too."""
    folder.mkdir()
    (folder / "dagster.yaml").write_text(f"telemetry: {{enabled: false}}\n{configuration}")
    bench.instance = dg.DagsterInstance.from_config(str(folder))
    return bench.instance


def one_file(folder: Path) -> str:
    """The events of all runs in one file, as `buttercup up` has it."""
    return f"""
storage:
  custom:
    module: buttercup_dagster.storage
    class: SqliteStorage
    config: {{base_dir: {folder}}}
"""


# --- the bound -------------------------------------------------------------------------------


def assert_many_leave_what_few_leave(bench: Bench, few: int, many: int) -> None:
    left = []
    for number in (few, many):
        finished(bench, number)
        run_job(bench, older_than_days=0)
        # The second pass removes the run of the first, and the word that it retired something.
        run_job(bench, older_than_days=0)
        bench.registry.trim_streams(older_than_ms=-1)
        left.append((rows(bench), files(bench), kept_keys(bench), bytes_below(bench)))
    (few_rows, few_files, few_keys, few_bytes), (many_rows, many_files, many_keys, bytes_) = left
    assert many_rows == few_rows
    assert many_files == few_files
    assert many_keys == few_keys
    # Each of the few shared SQLite files may keep a little free space for what comes.
    assert bytes_ - few_bytes <= 3 * history_storage.WORTHWHILE_FREE_BYTES


def test_three_tasks_leave_what_one_leaves(bench: Bench) -> None:
    assert_many_leave_what_few_leave(bench, 1, 3)


def test_three_tasks_leave_what_one_leaves_in_one_file(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "one-file"
    with open_instance(bench, folder, one_file(folder)):
        assert_many_leave_what_few_leave(bench, 1, 3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_tasks_leave_what_ten_leave(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "one-file"
    with open_instance(bench, folder, one_file(folder)):
        assert_many_leave_what_few_leave(bench, 10, 200)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_thirty_tasks_leave_what_ten_leave_in_files_of_their_own(bench: Bench) -> None:
    assert_many_leave_what_few_leave(bench, 10, 30)


def test_postgresql_is_left_as_it_was(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database() as made:
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        template = resources.files("buttercup_dagster") / "instance" / "many_machines.yaml"
        configuration = yaml.safe_dump({"storage": yaml.safe_load(template.read_text())["storage"]})
        with open_instance(bench, tmp_path / "postgres", configuration) as instance:
            (task_id,) = finished(bench)
            for event in missing_events(bench.registry.get(task_id)):
                instance.report_runless_asset_event(event)
            done = make_pass(bench)
            assert (done.tasks, done.runs, done.partitions) == (1, 1, 1)
            storage: Any = instance.event_log_storage
            with storage.index_connection() as connection:
                for table in ("event_logs", "asset_event_tags", "asset_check_executions"):
                    found = connection.execute(db.text(f"SELECT count(*) FROM {table}"))
                    assert found.scalar() == 0


# --- what goes and what stays ----------------------------------------------------------------


def test_task_that_is_kept_keeps_everything(bench: Bench) -> None:
    (old,) = finished(bench)
    task = bench.task()
    assert bench.prepare(task).success
    make_pass(bench)
    assert not bench.tree(old).exists()
    assert bench.materialized("prepared_task") == {task.task_id}
    assert bench.instance.get_dynamic_partitions("tasks") == [task.task_id]
    (run,) = bench.instance.get_runs()
    assert run.tags[PARTITION_NAME_TAG] == task.task_id
    assert bench.instance.all_logs(run.run_id)
    assert bench.engine().check(task.task_id) == []
    # Checked and mended by hand as before.
    assert bench.execute(task.task_id).success


def test_nothing_goes_before_its_time(bench: Bench) -> None:
    finished(bench)
    before = (rows(bench), things(bench), kept_keys(bench))
    assert make_pass(bench, older_than_ms=3_600_000) == Pass()
    assert (rows(bench), things(bench)) == before[:2]
    assert set(before[2]) <= set(kept_keys(bench))


def test_dry_run_tells_what_a_pass_then_does(bench: Bench) -> None:
    finished(bench, 2)
    bare_run(bench, dg.DagsterRunStatus.SUCCESS)
    before = (rows(bench), things(bench), kept_keys(bench))
    told = preview(bench.registry, bench.engine(), bench.instance, older_than_ms=0, stop=Stop())
    assert (rows(bench), things(bench), kept_keys(bench)) == before
    assert (told.tasks, told.runs, told.partitions) == (2, 3, 2)
    done = make_pass(bench)
    assert (done.tasks, done.folders, done.runs, done.partitions) == (2, 2, 3, 2)
    assert done.problems == ()


def test_job_shows_what_it_did(bench: Bench) -> None:
    finished(bench)
    assert run_job(bench)["tasks"] == 0  # a week is not over
    shown = run_job(bench, older_than_days=0)
    assert (shown["tasks"], shown["folders"], shown["partitions"]) == (1, 1, 1)
    assert (shown["complete"], shown["problems"]) == (True, 0)
    shown = run_job(bench, older_than_days=0, dry_run=True)
    assert shown["dry_run"]
    assert shown["runs"] == 1  # that of the pass before


def test_setting_decides_where_the_job_says_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(bench)
    monkeypatch.setenv("BUTTERCUP_DOWNLOADER_RETENTION_DAYS", "0")
    assert run_job(bench)["tasks"] == 1


def test_run_that_goes_on_is_left_with_its_partition(bench: Bench) -> None:
    task_id = str(uuid.uuid4())
    bench.instance.add_dynamic_partitions("tasks", [task_id])
    run_id = bare_run(bench, dg.DagsterRunStatus.STARTED, **{PARTITION_NAME_TAG: task_id})
    just_made = bare_run(bench, dg.DagsterRunStatus.NOT_STARTED)
    make_pass(bench)
    assert {run.run_id for run in bench.instance.get_runs()} == {run_id, just_made}
    assert bench.instance.get_dynamic_partitions("tasks") == [task_id]
    run = bench.instance.get_run_by_id(run_id)
    assert run is not None
    bench.instance.report_run_failed(run)
    make_pass(bench)
    assert [run.run_id for run in bench.instance.get_runs()] == [just_made]
    assert bench.instance.get_dynamic_partitions("tasks") == []


def test_run_that_was_never_launched_goes_when_nobody_will(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_run(bench, dg.DagsterRunStatus.NOT_STARTED)
    monkeypatch.setattr(history, "NEVER_LAUNCHED_SECONDS", 0.0)
    make_pass(bench)
    assert bench.instance.get_runs() == []


def test_partition_that_a_person_has_just_added_stays(bench: Bench) -> None:
    bench.instance.add_dynamic_partitions("tasks", ["by-hand"])
    make_pass(bench, older_than_ms=60_000)
    assert bench.instance.get_dynamic_partitions("tasks") == ["by-hand"]
    make_pass(bench)
    assert bench.instance.get_dynamic_partitions("tasks") == []


def test_many_runs_of_kept_tasks_do_not_hide_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "BATCH", 2)
    task_id = bench.post(bench.task())
    done = dg.DagsterRunStatus.SUCCESS
    kept = [bare_run(bench, done, **{PARTITION_NAME_TAG: task_id}) for _ in range(5)]
    for _ in range(3):
        bare_run(bench, done)
        kept.append(bare_run(bench, done, **{PARTITION_NAME_TAG: task_id}))
    counted = preview(bench.registry, bench.engine(), bench.instance, older_than_ms=0, stop=Stop())
    assert counted.runs == 3
    assert make_pass(bench).runs == 3
    assert {run.run_id for run in bench.instance.get_runs()} == set(kept)


def test_materializations_that_a_sensor_added_go_too(bench: Bench) -> None:
    (task_id,) = finished(bench)
    for event in missing_events(bench.registry.get(task_id)):
        bench.instance.report_runless_asset_event(event)
    make_pass(bench)
    assert bench.materialized("prepared_task") == bench.materialized("repo") == set()
    left = rows(bench)
    assert not [key for key in left if key.endswith(("event_logs", "event_tags"))]


def test_sources_go_when_no_task_needs_them(bench: Bench) -> None:
    repo = bench.repo()
    first, second = (bench.task(bench.source("repo", repo)) for _ in range(2))  # type: ignore[arg-type]
    for task in (first, second):
        assert bench.prepare(task).success
    bench.registry.report_outcome(first.task_id, Outcome.SUCCEEDED)
    assert make_pass(bench).sources == 0
    assert bench.engine().check(second.task_id) == []
    bench.registry.report_outcome(second.task_id, Outcome.SUCCEEDED)
    assert make_pass(bench, older_than_ms=3_600_000).sources == 0
    assert make_pass(bench).sources == 2  # archive and tree


# --- the same task again ---------------------------------------------------------------------


def post_again(bench: Bench, task: Task) -> None:
    receipt = bench.registry.accept(str(uuid.uuid4()), uuid.uuid4().hex, [Submission(task)])
    assert receipt.accepted


def test_task_posted_anew_keeps_its_folder_and_its_runs(bench: Bench) -> None:
    task = bench.task()
    assert bench.prepare(task).success
    bench.registry.report_outcome(task.task_id, Outcome.SUCCEEDED)
    assert bench.registry.retire(older_than_ms=0) == [task.task_id]
    # A crash here; and the sender is faster than the next pass.
    post_again(bench, task)
    assert bench.execute(task.task_id, bench.claim(task.task_id)).success
    make_pass(bench)
    assert bench.registry.get(task.task_id).state is TaskState.READY
    assert bench.engine().check(task.task_id) == []
    assert bench.materialized("prepared_task") == {task.task_id}
    assert bench.registry.retired_folders(bench.engine().machine) == []


def test_folder_of_the_retired_task_goes_while_the_new_one_waits(bench: Bench) -> None:
    task = bench.task()
    assert bench.prepare(task).success
    bench.registry.report_outcome(task.task_id, Outcome.SUCCEEDED)
    bench.registry.retire(older_than_ms=0)
    post_again(bench, task)
    make_pass(bench)
    assert not bench.tree(task.task_id).exists()
    assert bench.execute(task.task_id, bench.claim(task.task_id)).success
    assert bench.engine().check(task.task_id) == []


def test_other_machine_removes_its_folder_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task_id,) = finished(bench)
    monkeypatch.setenv("BUTTERCUP_DOWNLOADER_MACHINE", "another")
    assert make_pass(bench).folders == 0
    assert bench.tree(task_id).exists()
    monkeypatch.delenv("BUTTERCUP_DOWNLOADER_MACHINE")
    assert remove_folders(bench.registry, bench.engine(), stop=Stop()).tasks == 1
    assert not bench.tree(task_id).exists()


def test_folder_that_cannot_be_removed_is_told_and_tried_again(bench: Bench) -> None:
    stuck, *others = finished(bench, 3)
    manifest = bench.engine().workspace.manifest(stuck)
    manifest.unlink()
    manifest.mkdir()
    done = make_pass(bench)
    assert done.folders == 2
    (problem,) = done.problems
    assert stuck in problem
    for task_id in others:
        assert not bench.tree(task_id).exists()
    manifest.rmdir()
    assert make_pass(bench).folders == 1
    assert not bench.tree(stuck).exists()


# --- interruptions ---------------------------------------------------------------------------

DIES = """
import importlib, os, signal, sys
import dagster as dg
from buttercup_dagster.engine import Engine
from buttercup_dagster.retention_pass import run_pass
from buttercup_dagster.settings import DownloaderSettings
from buttercup_dagster.sources.stop import Stop
from task_api.registry import TaskRegistry

owner, name = sys.argv[2].rsplit(".", 1)
module, _, kind = owner.partition(":")
place = importlib.import_module(module)
place = getattr(place, kind) if kind else place
whole = getattr(place, name)

def dies(*args, **kwargs):
    if sys.argv[3] == "after":
        whole(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(place, name, dies)
settings = DownloaderSettings()
with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
    run_pass(TaskRegistry.from_url(settings.redis_url), Engine.from_settings(settings), instance,
             older_than_ms=0, stop=Stop())
"""

SLOW = pytest.mark.slow
SQLITE_RUNS = "dagster._core.storage.runs.sqlite.sqlite_run_storage:SqliteRunStorage"


@pytest.mark.parametrize(
    ("place", "when", "whole"),
    [
        ("task_api.registry:TaskRegistry.retire", "after", True),
        (f"{SQLITE_RUNS}.delete_run", "before", True),
        (f"{SQLITE_RUNS}.delete_run", "after", False),
        ("dagster:DagsterInstance.delete_dynamic_partition", "before", True),
        pytest.param("buttercup_dagster.sources.prepare.withdraw", "after", True, marks=SLOW),
        pytest.param(
            "task_api.registry:TaskRegistry.retired_folder_removed", "before", True, marks=SLOW
        ),
        pytest.param(f"{SQLITE_RUNS}.delete_run", "before", False, marks=SLOW),
        pytest.param("buttercup_dagster.history_storage.remove_files", "before", False, marks=SLOW),
    ],
)
def test_pass_after_one_that_was_killed_leaves_nothing(
    bench: Bench, tmp_path: Path, place: str, when: str, *, whole: bool
) -> None:
    folder = tmp_path / "kept"
    with open_instance(bench, folder, one_file(folder) if whole else "") as instance:
        ids = finished(bench)
        done = subprocess.run(
            [sys.executable, "-c", DIES, str(folder), place, when],
            env=os.environ,
            timeout=100,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        make_pass(bench)
        assert make_pass(bench) == Pass()
        assert bench.registry.known(ids) == set()
        assert instance.get_runs() == []
        assert instance.get_dynamic_partitions("tasks") == []
        assert not [name for name in files(bench) if "<run>" in name]
        left = rows(bench)
        assert not [key for key in left if key.startswith("run/")]
        assert not [key for key in left if key.endswith(("/event_logs", "check_executions"))]


def test_passes_at_the_same_time_do_the_work_once(bench: Bench) -> None:
    ids = finished(bench, 4)
    passes: list[Pass] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            passes.append(make_pass(bench))
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    make_pass(bench)
    assert sum(one.tasks for one in passes) == 4
    assert bench.registry.known(ids) == set()
    assert bench.instance.get_runs() == []
    assert not [name for name in files(bench) if "<run>" in name]


def test_pass_that_has_no_time_leaves_the_rest_to_the_next(bench: Bench) -> None:
    ids = finished(bench)
    stop = Stop()
    stop.request("no time")
    done = make_pass(bench, stop=stop)
    assert not done.complete
    assert bench.registry.known(ids) == set(ids)
    assert make_pass(bench).tasks == 1


# --- files of SQLite -------------------------------------------------------------------------


def bloated(bench: Bench) -> Path:
    """The file of the runs, most of which is free."""
    path = Path(bench.instance.root_directory) / "history" / "runs.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE ballast (content BLOB)")
        database.executemany("INSERT INTO ballast VALUES (?)", [(bytes(10_000),)] * 500)
        database.execute("DROP TABLE ballast")
        database.commit()
    assert path.stat().st_size > 4_000_000
    return path


def test_free_space_of_a_file_is_given_back(bench: Bench) -> None:
    kept = bare_run(bench, dg.DagsterRunStatus.STARTED)
    path = bloated(bench)
    assert history_storage.compact(bench.instance) > 4_000_000
    assert path.stat().st_size < 1_000_000
    assert [run.run_id for run in bench.instance.get_runs()] == [kept]
    assert history_storage.compact(bench.instance) == 0


def test_file_that_somebody_writes_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_storage, "BUSY_SECONDS", 0.05)
    path = bloated(bench)
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert history_storage.compact(bench.instance) == 0
        writer.execute("ROLLBACK")
    assert history_storage.compact(bench.instance) > 0


# --- the schedule ----------------------------------------------------------------------------


def tick(bench: Bench) -> Any:
    context = dg.build_schedule_context(
        instance=bench.instance, resources={"downloader": Downloader()}
    )
    with context:
        return retention_schedule(context)


def test_schedule_starts_a_pass_when_something_is_due(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert retention_schedule.default_status is dg.DefaultScheduleStatus.RUNNING
    bench.registry.cancel(bench.post(bench.task()))
    # Once a day in any case.
    assert isinstance(tick(bench), dg.RunRequest)
    passed = bench.instance.create_run_for_job(
        defs.resolve_job_def("retention"), status=dg.DagsterRunStatus.STARTED
    )
    assert tick(bench).skip_message == "a pass is under way"
    bench.instance.report_run_canceled(passed)
    assert tick(bench).skip_message == "nothing is due"
    monkeypatch.setenv("BUTTERCUP_DOWNLOADER_RETENTION_DAYS", "0")
    assert isinstance(tick(bench), dg.RunRequest)


def test_schedule_waits_for_redis(
    bench: Bench, own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_redis.kill()
    monkeypatch.setenv("BUTTERCUP_REDIS_URL", own_redis.url)
    assert tick(bench).skip_message.endswith("the next tick tries again")


def test_pass_is_short() -> None:
    """It takes one of few slots."""
    assert retention_job.SECONDS <= 60
