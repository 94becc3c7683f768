"""The sensors: one starts runs for tasks, one brings Dagster in line with the registry."""

import sys

import dagster as dg
from dagster._core.definitions.data_version import DATA_VERSION_TAG

from buttercup_dagster.assets import ASSET_OF, PREPARED_TASK, data_version
from buttercup_dagster.intake import take_turn
from buttercup_dagster.jobs import ingest
from buttercup_dagster.materializations import latest_materialization
from buttercup_dagster.partitions import tasks
from buttercup_dagster.reconcile import reconcile
from buttercup_dagster.resources import Downloader
from buttercup_dagster.sources.layout import inside_git_work_tree
from buttercup_dagster.tags import TOKEN_TAG, run_key
from task_api.registry import TaskRecord
from task_api.task import RegistryUnavailable, SchemaMismatch

CLOCK_SLACK_MS = 60_000
"""How far the clocks of Redis and of Dagster's machines may be apart, milliseconds."""


@dg.sensor(
    job=ingest,
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Claims pending tasks while there is room, and starts a run for each.",
)
def intake_sensor(
    context: dg.SensorEvaluationContext, downloader: Downloader
) -> dg.SensorResult | dg.SkipReason:
    """One turn of the intake; the claims become runs only after it has returned."""
    registry = downloader.registry
    tree = inside_git_work_tree(downloader.settings.tasks)
    if tree is not None:
        return dg.SkipReason(
            f"{downloader.settings.tasks} lies in the git work tree {tree}, where `git apply` "
            "silently does nothing with a task; set BUTTERCUP_DOWNLOADER_TASKS_DIR or "
            "BUTTERCUP_HOME to a folder outside"
        )
    try:
        registry.initialize()
    except SchemaMismatch as error:
        return dg.SkipReason(str(error))
    except RegistryUnavailable:
        pass  # the turn waits for Redis and reports it
    turn = take_turn(
        registry,
        max_runs=None if _has_warm_workers(context.instance) else downloader.settings.max_runs,
    )
    if not turn.claims:
        return dg.SkipReason(turn.saw)
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=run_key(claim.task_id, claim.token),
                partition_key=claim.task_id,
                tags={TOKEN_TAG: str(claim.token)},
            )
            for claim in turn.claims
        ],
        dynamic_partitions_requests=[
            tasks.build_add_request([claim.task_id for claim in turn.claims])
        ],
    )


def _has_warm_workers(instance: dg.DagsterInstance) -> bool:
    """Whether runs are handed to warm workers, which say how many they take."""
    launcher = instance.run_launcher
    # Imported by Dagster where it is used; elsewhere nobody has to wait for Celery.
    module = sys.modules.get("buttercup_dagster.launcher")
    return module is not None and isinstance(launcher, module.WarmRunLauncher)


@dg.sensor(
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=(
        "Adds the materialization of an announced task whose run could not, and removes folders "
        "that tasks left behind which were cancelled, expired or errored."
    ),
)
def reconcile_sensor(
    context: dg.SensorEvaluationContext, downloader: Downloader
) -> dg.SensorResult | dg.SkipReason:
    """One look at what is out of line."""
    instance = context.instance

    def materialized(task_id: str, ready_ms: int) -> bool:
        found = latest_materialization(instance, PREPARED_TASK, task_id)
        return found is not None and found.timestamp * 1000 >= ready_ms - CLOCK_SLACK_MS

    try:
        done = reconcile(
            downloader.registry,
            downloader.engine,
            materialized=materialized,
        )
    except RegistryUnavailable as error:
        return dg.SkipReason(f"{error}; waiting for it")
    if not done.missing:
        return dg.SkipReason(str(done))
    context.log.info(str(done))
    return dg.SensorResult(
        asset_events=[event for record in done.missing for event in missing_events(record)],
        dynamic_partitions_requests=[
            tasks.build_add_request([record.task.task_id for record in done.missing])
        ],
    )


def missing_events(record: TaskRecord) -> list[dg.AssetMaterialization]:
    """The materializations that the run of an announced task could not report.

    Args:
        record: an announced task.

    Returns:
        One for each source, then the one of the prepared task.
    """
    task_id = record.task.task_id
    note = {"task_id": task_id, "added_by": "reconcile_sensor"}
    events = [
        dg.AssetMaterialization(
            ASSET_OF[source.type],
            partition=task_id,
            metadata={
                **note,
                "sha256": source.sha256,
                "archive_bytes": source.bytes or 0,
                "url_host": ", ".join(source.hosts),
            },
            tags={DATA_VERSION_TAG: source.sha256},
        )
        for source in record.sources
    ]
    digests = {source.type: source.sha256 for source in record.sources}
    events.append(
        dg.AssetMaterialization(
            PREPARED_TASK,
            partition=task_id,
            metadata={**note, "path": dg.MetadataValue.path(record.path or "")},
            tags={DATA_VERSION_TAG: data_version(digests)},
        )
    )
    return events
