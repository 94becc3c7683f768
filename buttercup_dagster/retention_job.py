"""The `retention` job, and the schedule that starts it when something is due."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import dagster as dg
from pydantic import Field

from buttercup_dagster.background import Log, in_thread
from buttercup_dagster.history import UNDER_WAY
from buttercup_dagster.resources import Downloader
from buttercup_dagster.retention_pass import Pass, described, metadata_of, preview, run_pass
from buttercup_dagster.sources.stop import Stop
from task_api.task import RegistryUnavailable

JOB_NAME: Final = "retention"
SECONDS: Final = 60.0
"""A pass takes a worker's slot; after so long it begins nothing more, and the next goes on."""

DAY_MS: Final = 86_400_000


class RetentionConfig(dg.Config):
    """What a pass does."""

    older_than_days: float | None = Field(
        default=None,
        ge=0,
        description="Age since their end of what is removed; without one "
        "BUTTERCUP_DOWNLOADER_RETENTION_DAYS decides.",
    )
    dry_run: bool = Field(default=False, description="Remove nothing, and tell what would be.")
    seconds: float = Field(
        default=SECONDS, gt=0, description="After so long nothing more is begun."
    )


@dg.op(out=dg.Out(dg.Nothing), description="Removes what belongs to tasks that ended long ago.")
def remove_retired(
    context: dg.OpExecutionContext, config: RetentionConfig, downloader: Downloader
) -> None:
    """Make one pass, or tell what it would do, and attach that as metadata.

    Raises:
        RegistryUnavailable: Redis is away.
    """
    days = config.older_than_days
    if days is None:
        days = downloader.settings.retention_days
    stop = Stop.after(config.seconds)
    work = preview if config.dry_run else run_pass

    def run(_: Log) -> Pass:
        return work(
            downloader.registry,
            downloader.engine,
            context.instance,
            older_than_ms=int(days * DAY_MS),
            stop=stop,
        )

    done = in_thread(run, stop=stop, log=context.log.info)
    for problem in done.problems:
        context.log.warning(problem)
    context.log.info(described(done, dry_run=config.dry_run))
    context.add_output_metadata(metadata_of(done, days=days, dry_run=config.dry_run))


@dg.job(
    name=JOB_NAME,
    description=(
        "Removes tasks that ended long ago: records, folders, runs, partitions, unneeded sources."
    ),
)
def retention_pass() -> None:
    """One op that makes one pass."""
    remove_retired()


@dg.schedule(
    job=retention_pass,
    cron_schedule="*/10 * * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Starts the `retention` job when a task is due, and once a day for runs by hand.",
)
def retention_schedule(
    context: dg.ScheduleEvaluationContext, downloader: Downloader
) -> dg.RunRequest | dg.SkipReason:
    """Ask whether a pass has something to do; a schedule takes no turn from the sensors."""
    age_ms = int(downloader.settings.retention_days * DAY_MS)
    try:
        downloader.registry.reap()
        due = bool(downloader.registry.ended(older_than_ms=age_ms, limit=1)) or bool(
            downloader.registry.retired_folders(downloader.settings.machine, limit=1)
        )
    except RegistryUnavailable as error:
        return dg.SkipReason(f"{error}; the next tick tries again")
    if _passes(context.instance, statuses=UNDER_WAY):
        return dg.SkipReason("a pass is under way")
    if not due and _passes(context.instance, created_after=datetime.now(UTC) - timedelta(days=1)):
        return dg.SkipReason("nothing is due")
    return dg.RunRequest()


def _passes(instance: dg.DagsterInstance, **filters: Any) -> bool:
    """Whether there are such runs of the job."""
    return bool(instance.get_run_ids(dg.RunsFilter(job_name=JOB_NAME, **filters), limit=1))
