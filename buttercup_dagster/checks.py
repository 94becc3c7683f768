"""Checks that warn about a prepared task, after it was announced; they never keep it back."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import dagster as dg

from buttercup_dagster.assets import PREPARED_TASK
from buttercup_dagster.materializations import latest_materialization
from buttercup_dagster.tree_checks import checks_of
from task_api.task import printable

DESCRIPTIONS: Final = {
    "focus_present": "The repo archive has the folder that the task names as its focus.",
    "tooling_complete": "The fuzz tooling has OSS-Fuzz's helper and the task's project.",
    "diff_applies": "The diff applies to the focus folder; it is only tried, never applied.",
}


@dg.multi_asset_check(
    name="task_warnings",
    description="Looks at the prepared folder for what its consumers would stumble over.",
    specs=[
        dg.AssetCheckSpec(name, asset=PREPARED_TASK, description=text, blocking=False)
        for name, text in DESCRIPTIONS.items()
    ],
)
def task_warnings(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
    """Check the folder that the run has prepared, where its materialization says it is."""
    task_id = context.op_execution_context.partition_key
    folder = _folder(context.instance, task_id)
    try:
        meta = json.loads((folder / "task_meta.json").read_bytes())
        checks = checks_of(meta["project_name"], meta["focus"])
    except (OSError, ValueError, KeyError) as error:
        # A cancel may have removed the folder meanwhile.
        for name in DESCRIPTIONS:
            yield _result(name, task_id, passed=True, text=f"not checked: {type(error).__name__}")
        return
    for name, check in checks.items():
        try:
            finding = check(folder)
        except OSError as error:
            text = f"not checked: {printable(str(error), limit=300)}"
            yield _result(name, task_id, passed=True, text=text)
        else:
            if not finding.passed:
                context.log.warning(f"{name}: {finding.text}")
            yield _result(name, task_id, passed=finding.passed, text=finding.text)


def _folder(instance: dg.DagsterInstance, task_id: str) -> Path:
    found = latest_materialization(instance, PREPARED_TASK, task_id)
    event = found.asset_materialization if found is not None else None
    path = event.metadata.get("path") if event is not None else None
    return Path(str(path.value)) if path is not None else Path("/nonexistent")


def _result(name: str, task_id: str, *, passed: bool, text: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=PREPARED_TASK,
        check_name=name,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=text,
        metadata={"task_id": task_id},
    )
