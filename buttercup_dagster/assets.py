"""The assets: three kinds of sources, and the prepared task that is made of them."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import dagster as dg
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG

from buttercup_dagster.attempt import AttemptFailed, Run, Withdrawn
from buttercup_dagster.materializations import latest_materialization
from buttercup_dagster.partitions import tasks
from buttercup_dagster.resources import Preparer
from buttercup_dagster.sources.prepare import Prepared, PreparedSource
from buttercup_dagster.tags import TOKEN_TAG
from task_api.registry import TaskRecord
from task_api.task import RegistryUnavailable, SourceType

CODE_VERSION: Final = "1"
"""Raised when the same archives would give another folder."""

ASSET_OF: Final[Mapping[SourceType, str]] = {
    SourceType.REPO: "repo",
    SourceType.FUZZ_TOOLING: "fuzz_tooling",
    SourceType.DIFF: "diff",
}
PREPARED_TASK: Final = dg.AssetKey("prepared_task")
_OWNERS: Final = ["team:buttercup"]
_GROUP: Final = "intake"

task_stream = dg.AssetSpec(
    "task_stream",
    description="Tasks that the task server accepted, in Redis; the intake sensor claims them.",
    kinds={"redis"},
    owners=_OWNERS,
    group_name=_GROUP,
)


def _source(name: str, description: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        name,
        deps=[task_stream],
        description=description,
        kinds={"gzip", "folder"},
        owners=_OWNERS,
        group_name=_GROUP,
        code_version=CODE_VERSION,
        skippable=True,
    )


@dg.multi_asset(
    name="prepare_task",
    description="Fetches, verifies and unpacks the sources of one task and publishes its folder.",
    specs=[
        _source("repo", "Source tree of the project under analysis: `src/` of a task's folder."),
        _source(
            "fuzz_tooling", "OSS-Fuzz tooling of the project: `fuzz-tooling/` of a task's folder."
        ),
        _source("diff", "The change to analyse, of delta tasks: `diff/` of a task's folder."),
        dg.AssetSpec(
            PREPARED_TASK,
            deps=list(ASSET_OF.values()),
            description=(
                "The folder of a task, complete and announced to consumers. Its data version "
                "changes with any of its archives."
            ),
            kinds={"folder"},
            owners=_OWNERS,
            group_name=_GROUP,
            code_version=CODE_VERSION,
            skippable=True,
        ),
    ],
    partitions_def=tasks,
)
def prepare_task(
    context: dg.AssetExecutionContext, preparer: dg.ResourceParam[Preparer]
) -> Iterator[dg.MaterializeResult[Any]]:
    """Prepare the task of this partition; without a token in its tags the run is by hand.

    Raises:
        Failure: the task cannot be prepared.
    """
    task_id = context.partition_key
    try:
        made = preparer.prepare(task_id, _run_of(context))
    except Withdrawn as error:
        # The task was ended elsewhere, in good order: a run without outputs, not a failed one.
        context.log.warning(f"nothing to prepare: {error}")
        return
    except AttemptFailed as error:
        raise dg.Failure(
            str(error), metadata={"code": error.code, "task_id": task_id}, allow_retries=False
        ) from None
    if isinstance(made, Prepared):
        yield from _results(task_id, made)
    else:
        yield from _unchanged(context, made)
    stored = latest_materialization(context.instance, PREPARED_TASK, task_id)
    if stored is not None and stored.run_id == context.run.run_id:
        try:
            preparer.materialized(task_id)
        except RegistryUnavailable as error:
            context.log.info(f"{error}; the reconciler will confirm the materialization")


def _run_of(context: dg.AssetExecutionContext) -> Run:
    run = context.run
    # Dagster copies tags to a re-execution, whose claim is long over.
    again = PARENT_RUN_ID_TAG in run.tags or ROOT_RUN_ID_TAG in run.tags
    token = None if again else run.tags.get(TOKEN_TAG)

    def terminated() -> bool:
        found = context.instance.get_run_by_id(run.run_id)
        return found is not None and found.status is dg.DagsterRunStatus.CANCELING

    return Run(
        run_id=run.run_id,
        token=int(token) if token else None,
        terminated=terminated,
        log=context.log.info,
    )


def _results(task_id: str, prepared: Prepared) -> Iterator[dg.MaterializeResult[Any]]:
    for source_type, source in prepared.sources.items():
        yield dg.MaterializeResult(
            asset_key=ASSET_OF[source_type],
            data_version=dg.DataVersion(source.sha256),
            metadata=source_metadata(task_id, source),
        )
    digests = {kind: source.sha256 for kind, source in prepared.sources.items()}
    yield dg.MaterializeResult(
        asset_key=PREPARED_TASK,
        data_version=dg.DataVersion(data_version(digests)),
        metadata={
            "task_id": task_id,
            "path": dg.MetadataValue.path(prepared.path),
            "files": sum(source.files for source in prepared.sources.values()),
            "tree_bytes": sum(source.tree_bytes for source in prepared.sources.values()),
            "sources": dg.MetadataValue.md(_table(prepared)),
        },
    )


def data_version(digests: Mapping[SourceType, str]) -> str:
    """The data version of a prepared task: the digests of its archives, in the order of types."""
    return "-".join(digests[kind] for kind in SourceType if kind in digests)


def source_metadata(task_id: str, source: PreparedSource) -> dict[str, Any]:
    """What Dagster shows of a source; of its URL the host only, the query is a credential."""
    found: dict[str, Any] = {
        "task_id": task_id,
        "sha256": source.sha256,
        "url_host": source.host,
        "archive_bytes": source.bytes,
        "files": source.files,
        "tree_bytes": source.tree_bytes,
        "cache_hit": source.cache_hit,
        "fetch_seconds": round(source.fetch_seconds, 3),
        "unpack_seconds": round(source.unpack_seconds, 3),
        "link_seconds": round(source.link_seconds, 3),
        "link_mode": source.link_mode,
        "tree_hit": source.tree_hit,
        "path": dg.MetadataValue.path(source.path),
        "names": dg.MetadataValue.md(listing(source)),
    }
    if source.dropped_links:
        found["links_left_out"] = source.dropped_links
    if source.condemned:
        found["hosts_with_other_bytes"] = ", ".join(source.condemned)
    return found


def listing(source: PreparedSource) -> str:
    """The first names of a tree as a block of Markdown that no name can break out of."""
    names = [name.replace("`", "'") for name in source.names]
    more = "" if source.files <= len(names) else f"\n… {source.files} files in all"
    return "\n".join(["```", *names, "```"]) + more


def _table(prepared: Prepared) -> str:
    lines = ["| source | files | bytes | from | fetch s | unpack s |", "|---|---|---|---|---|---|"]
    for kind, source in prepared.sources.items():
        host = "store" if source.cache_hit else source.host
        lines.append(
            f"| {kind} | {source.files} | {source.tree_bytes} | {host} "
            f"| {source.fetch_seconds:.2f} | {source.unpack_seconds:.2f} |"
        )
    return "\n".join(lines)


def _unchanged(
    context: dg.AssetExecutionContext, record: TaskRecord
) -> Iterator[dg.MaterializeResult[Any]]:
    """Materialize anew what was found as it was announced, with what Dagster knew about it."""
    task_id = record.task.task_id
    note = "compared with what was prepared: no difference"
    context.log.info(f"the folder of task {task_id}, {note}")
    for source in record.sources:
        key = dg.AssetKey(ASSET_OF[source.type])
        known: dict[str, Any] = {
            "task_id": task_id,
            "sha256": source.sha256,
            "archive_bytes": source.bytes or 0,
        }
        yield dg.MaterializeResult(
            asset_key=key,
            data_version=dg.DataVersion(source.sha256),
            metadata={**known, **_former(context.instance, key, task_id), "checked": note},
        )
    digests = {source.type: source.sha256 for source in record.sources}
    yield dg.MaterializeResult(
        asset_key=PREPARED_TASK,
        data_version=dg.DataVersion(data_version(digests)),
        metadata={
            "task_id": task_id,
            "path": dg.MetadataValue.path(record.path or ""),
            **_former(context.instance, PREPARED_TASK, task_id),
            "checked": note,
        },
    )


def _former(instance: dg.DagsterInstance, key: dg.AssetKey, task_id: str) -> Mapping[str, Any]:
    stored = latest_materialization(instance, key, task_id)
    event = stored.asset_materialization if stored is not None else None
    return event.metadata if event is not None else {}
