"""What Dagster loads (`workspace.yaml`)."""

import dagster as dg

from buttercup_dagster.assets import prepare_task, task_stream
from buttercup_dagster.checks import task_warnings
from buttercup_dagster.jobs import ingest, registry
from buttercup_dagster.resources import Downloader
from buttercup_dagster.retention_job import retention_pass, retention_schedule
from buttercup_dagster.sensors import intake_sensor, reconcile_sensor

_downloader = Downloader()

defs = dg.Definitions(
    assets=[task_stream, prepare_task],
    asset_checks=[task_warnings],
    jobs=[ingest, registry, retention_pass],
    schedules=[retention_schedule],
    sensors=[intake_sensor, reconcile_sensor],
    resources={"downloader": _downloader, "preparer": _downloader},
    executor=dg.in_process_executor,
)
