"""Two machines with one Redis, one PostgreSQL and one daemon; each has folders of its own."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from benchmarks.postgres import Database
from task_api.task import Outcome, TaskState
from tests.e2e.stack import BIN, ROOT, Stack
from tests.e2e.test_intake import Material
from tests.support.postgres import database
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]

MACHINES = ("first", "second")

Success = dg.DagsterRunStatus.SUCCESS
Failure = dg.DagsterRunStatus.FAILURE


@pytest.fixture(scope="module")
def server() -> Iterator[Database]:
    with database() as made:
        yield made


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, server: Database) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("machines")
    with Stack(folder, warm=True, database=server) as running:
        # The one that was started with the stack has the name of this host.
        running.children["worker"].stop()
        for machine in MACHINES:
            start(running, machine)
        yield running


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory, stack: Stack) -> Material:
    return Material(tmp_path_factory.mktemp("archives"), stack)


def home(stack: Stack, machine: str) -> Path:
    return stack.folder / machine


def start(stack: Stack, machine: str) -> None:
    # By flags: they hold for the runs, too.
    stack.start_worker(machine, f"--home={home(stack, machine)}", f"--machine={machine}")
    wait_for(
        lambda: sum(slot.startswith(f"{machine}/") for slot in stack.workers.live()) == 2,
        f"both slots of the {machine} machine live",
        seconds=30,
    )


def assert_prepared_once(stack: Stack, task_id: str) -> str:
    """The machine on which a ready task stands."""
    (entry,) = stack.announced(task_id)
    machine = entry["machine"]
    assert Path(entry["path"]) == home(stack, machine) / "tasks" / task_id
    assert (Path(entry["path"]) / "task_meta.json").is_file()
    other = MACHINES[1 - MACHINES.index(machine)]
    assert not (home(stack, other) / "tasks" / task_id).exists()
    return machine


def test_machines_share_a_burst(stack: Stack, material: Material) -> None:
    tasks = [material.task() for _ in range(30)]
    for task in tasks:
        assert stack.post(task)[0] == 202
    for task in tasks:
        stack.wait_state(task["task_id"], TaskState.READY, seconds=90)
    shares = Counter(assert_prepared_once(stack, task["task_id"]) for task in tasks)
    assert set(shares) == set(MACHINES), shares
    for task in tasks:
        stack.wait_run(task["task_id"], Success)
        assert len(stack.runs(task["task_id"])) == 1
        assert len(stack.materializations("prepared_task", task["task_id"])) == 1


def test_task_of_a_machine_that_dies_goes_on_with_another(stack: Stack, material: Material) -> None:
    task_id, _, gate = material.held_download()
    run_id = stack.registry.get(task_id).run_id
    assert run_id is not None
    dead, _, _ = (stack.workers.executor_of(run_id) or "").partition("/")
    assert dead in MACHINES
    gate.set()
    stack.children[dead].kill()
    stack.wait_state(task_id, TaskState.READY, seconds=60)
    assert assert_prepared_once(stack, task_id) != dead
    newest = stack.wait_run(task_id, Success, count=2)
    wait_for(
        lambda: (
            {run.status for run in stack.runs(task_id) if run.run_id != newest.run_id} == {Failure}
        ),
        "Dagster shows the run of the dead machine as failed",
        seconds=60,
    )
    start(stack, dead)


def test_each_machine_removes_its_own_folders(stack: Stack, material: Material) -> None:
    tasks = [material.task() for _ in range(12)]
    for task in tasks:
        assert stack.post(task)[0] == 202
    folders = {machine: home(stack, machine) / "tasks" for machine in MACHINES}
    standing: dict[str, list[str]] = {machine: [] for machine in MACHINES}
    for task in tasks:
        stack.wait_state(task["task_id"], TaskState.READY, seconds=60)
        standing[assert_prepared_once(stack, task["task_id"])].append(task["task_id"])
    assert all(len(ids) >= 2 for ids in standing.values()), standing
    gone = {machine: ids[:2] for machine, ids in standing.items()}
    for canceled, judged in gone.values():
        stack.registry.cancel(canceled)
        stack.registry.report_outcome(judged, Outcome.SUCCEEDED)
    # As the job `retention` does, on whatever machine it runs.
    assert stack.registry.retire(older_than_ms=0)
    wait_for(
        lambda: (
            not any(
                (folders[machine] / task_id).exists()
                for machine, ids in gone.items()
                for task_id in ids
            )
        ),
        "the folders go on both machines",
        seconds=90,
    )
    for machine, ids in standing.items():
        for task_id in ids[2:]:
            assert (folders[machine] / task_id / "task_meta.json").is_file()


def test_restart_of_postgresql_loses_nothing(
    stack: Stack, material: Material, server: Database
) -> None:
    tasks = [material.task() for _ in range(30)]
    for task in tasks:
        assert stack.post(task)[0] == 202
    stack.wait_state(tasks[4]["task_id"], TaskState.READY)
    server.stop()
    server.start()
    for task in tasks:
        stack.wait_state(task["task_id"], TaskState.READY, seconds=120)
        assert_prepared_once(stack, task["task_id"])
    missing = {task["task_id"] for task in tasks}

    def all_materialized() -> bool:
        missing.difference_update(
            [one for one in missing if stack.materializations("prepared_task", one)]
        )
        return not missing

    wait_for(all_materialized, "Dagster has all materializations", seconds=90, every=1.0)


def test_commands_of_the_page_bring_up_a_machine(tmp_path: Path, server: Database) -> None:
    page = (ROOT / "docs" / "how-to" / "many-machines.md").read_text("utf-8")
    copy, variables, front, serve, look = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    template = (ROOT / "buttercup_dagster" / "instance" / "many_machines.yaml").read_text("utf-8")
    named = set(re.findall(r"^export (\w+)=", variables, re.MULTILINE))
    assert named == {"DAGSTER_HOME", *re.findall(r"env: (\w+)", template)}
    stack = Stack(tmp_path / "page", warm=True, database=server)
    stack.env |= {
        "HOME": str(tmp_path),
        "DAGSTER_HOME": str(tmp_path / "buttercup-dagster"),
        "BUTTERCUP_API_KEY_ID": stack.key_id,
        "BUTTERCUP_API_TOKEN": stack.key_token,
    }
    ports = {"8000": str(stack.api_port), "3000": str(stack.ui_port), "0.0.0.0": "127.0.0.1"}

    def with_ports(text: str) -> str:
        return re.sub("|".join(map(re.escape, ports)), lambda found: ports[found[0]], text)

    with contextlib.ExitStack() as opened:
        opened.enter_context(stack.sources)
        opened.callback(stack.close)
        subprocess.run(["bash", "-ec", copy], env=stack.env, check=True)
        for number, line in enumerate([*with_ports(front).splitlines(), *serve.splitlines()]):
            program, *arguments = shlex.split(line)
            stack.launch_program(f"page-{number}", [str(BIN / program), *arguments])
        material = Material(tmp_path, stack)
        wait_for(stack.serves, "the task server answers", seconds=60)
        task = material.task()
        assert stack.post(task)[0] == 202
        stack.wait_state(task["task_id"], TaskState.READY, seconds=90)
        (entry,) = stack.announced(task["task_id"])
        assert entry["machine"] == "a"
        assert Path(entry["path"]) == stack.home / "tasks" / task["task_id"]
        wait_for(stack.shows_pages, "Dagster serves its pages", seconds=60)
        shown = subprocess.run(
            ["bash", "-ec", with_ports(look)],
            env=stack.env,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert re.search(rf"^{task['task_id']} +ready", shown, re.MULTILINE)
        assert '"ready":true' in shown
