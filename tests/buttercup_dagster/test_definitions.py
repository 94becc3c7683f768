"""What Dagster loads, and what it shows of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.instance import InstanceRef
from dagster._core.run_coordinator import QueuedRunCoordinator

from buttercup_dagster.definitions import defs
from tests.buttercup_dagster.conftest import Bench
from tests.support.environment import without_settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ASSETS = ("repo", "fuzz_tooling", "diff", "prepared_task")


def test_definitions_validate(tmp_path: Path) -> None:
    """As `dagster definitions validate -w workspace.yaml`, from an empty folder."""
    done = subprocess.run(
        [BIN / "dagster", "definitions", "validate", "-w", ROOT / "workspace.yaml"],
        cwd=tmp_path,
        env=without_settings(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_asset_is_described() -> None:
    graph = defs.resolve_asset_graph()
    for name in (*ASSETS, "task_stream"):
        node = graph.get(dg.AssetKey(name))
        assert node.description
        assert node.kinds
        assert node.group_name == "intake"
        assert node.owners == ["team:buttercup"]
    for name in ASSETS:
        node = graph.get(dg.AssetKey(name))
        assert node.code_version
        assert isinstance(node.partitions_def, dg.DynamicPartitionsDefinition)
    parents = graph.get(dg.AssetKey("prepared_task")).parent_keys
    assert {key.to_user_string() for key in parents} == {"repo", "fuzz_tooling", "diff"}


def test_ingest_job_makes_all_four_assets() -> None:
    job = defs.resolve_job_def("ingest")
    made = {key.to_user_string() for key in job.asset_layer.executable_asset_keys}
    assert made == set(ASSETS)


def test_instance_file_suits_the_design(tmp_path: Path) -> None:
    """Dagster accepts the file, and neither repeats runs itself nor queues them."""
    content = (ROOT / "dagster.yaml").read_text()
    (tmp_path / "dagster.yaml").write_text(content)
    with dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(tmp_path))) as instance:
        assert not instance.run_retries_enabled
        assert not isinstance(instance.run_coordinator, QueuedRunCoordinator)
        assert not instance.telemetry_enabled
    assert yaml.safe_load(content)["sensors"]["use_threads"] is False


def test_registry_job_shows_the_tasks(bench: Bench) -> None:
    task_id = bench.post(bench.task())
    result = defs.resolve_job_def("registry").execute_in_process(instance=bench.instance)
    assert result.success
    log = "\n".join(entry.user_message for entry in bench.instance.all_logs(result.run_id))
    assert task_id in log
    (observed,) = [
        event.asset_observation_data.asset_observation
        for event in result.all_events
        if event.event_type is dg.DagsterEventType.ASSET_OBSERVATION
    ]
    assert f"| {task_id} | pending |" in str(observed.metadata["table"].value)


def test_sources_and_task_api_do_not_import_dagster() -> None:
    code = (
        "import sys; import buttercup_dagster.sources.prepare, buttercup_dagster.attempt, "
        "buttercup_dagster.by_hand, task_api.registry; "
        "sys.exit(any(name.partition('.')[0] == 'dagster' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0
