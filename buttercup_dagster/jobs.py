"""The jobs: prepare a task, and show the registry."""

import dagster as dg

from buttercup_dagster.assets import ASSET_OF, PREPARED_TASK
from buttercup_dagster.resources import Downloader
from buttercup_dagster.tables import markdown_table, plain_table, task_rows

JOB_NAME = "ingest"

LISTED = 100
"""How many tasks the `registry` job shows, newest first."""

ingest = dg.define_asset_job(
    JOB_NAME,
    selection=dg.AssetSelection.assets(*ASSET_OF.values(), PREPARED_TASK),
    description="Prepares one task; the intake sensor starts it, one run for each task.",
)


@dg.op(description="Reads the newest tasks from the registry.")
def list_tasks(context: dg.OpExecutionContext, downloader: Downloader) -> None:
    """Log the table that `buttercup-registry list` prints, and attach it as metadata.

    Raises:
        RegistryUnavailable: Redis is away.
    """
    rows = task_rows(downloader.registry.page(limit=LISTED))
    context.log.info(plain_table(rows))
    context.log_event(
        dg.AssetObservation(
            "task_stream",
            metadata={"tasks": len(rows), "table": dg.MetadataValue.md(markdown_table(rows))},
        )
    )


@dg.job(name="registry", description="Shows what `buttercup-registry list` prints.")
def registry() -> None:
    """One op that shows the registry."""
    list_tasks()
