"""`buttercup-registry`: shows the tasks in Redis and steers them. Does not import Dagster."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, Field
from pydantic_settings import CliPositionalArg, CliSubCommand, CliToggleFlag, SettingsConfigDict

from buttercup_dagster.cli.arguments import fail, flags_of, load, task_id_of
from buttercup_dagster.cli.console import (
    COLORS,
    give_up,
    harmless,
    make_console,
    printing,
    put,
    put_table,
    put_text,
    size,
)
from buttercup_dagster.cli.signals import INTERRUPTED
from buttercup_dagster.settings import RegistrySettings
from task_api.task import RegistryError, RegistryUnavailable, TaskState, printable

if TYPE_CHECKING:
    from rich.console import Console

    from task_api.registry import Event, TaskRecord, TaskRegistry

PROGRAM = "buttercup-registry"


def _state(name: str | None) -> str | None:
    if name is not None and name not in set(TaskState):
        raise ValueError(f"{printable(name)!r} is no state; choose one of {', '.join(TaskState)}")
    return name


class ListTasks(BaseModel):
    """List tasks, newest first."""

    state: Annotated[str | None, AfterValidator(_state)] = Field(
        default=None, description=f"only tasks in this state: {', '.join(TaskState)}"
    )
    limit: int = Field(default=50, ge=1, le=10_000, description="how many at the most")


class ShowTask(BaseModel):
    """Show one task with its sources, its reason and its timeline. Times are UTC."""

    task_id: CliPositionalArg[str] = Field(description="id of the task, a UUID")


class Watch(BaseModel):
    """Print what happens to all tasks, until Ctrl-C. Times are UTC."""


class RetryTask(BaseModel):
    """Prepare an errored or failed task again."""

    task_id: CliPositionalArg[str] = Field(description="id of the task, a UUID")


class CancelTask(BaseModel):
    """Cancel one task, or all that have not ended."""

    task_id: CliPositionalArg[str | None] = Field(
        default=None, description="id of the task, a UUID"
    )
    all: CliToggleFlag[bool] = Field(
        default=False, description="cancel every task that has not ended"
    )


class Commands(RegistrySettings):
    """Show the tasks in Redis and steer them.

    The options below may stand before or after the command.

    Exit status: 0 done; 1 unknown task, refused, or no Redis; 2 wrong usage.
    """

    model_config = SettingsConfigDict(cli_shortcuts={"json_output": "json"})

    json_output: CliToggleFlag[bool] = Field(default=False, description="print JSON")
    list: CliSubCommand[ListTasks] = Field(description="list tasks, newest first")
    show: CliSubCommand[ShowTask] = Field(description="show one task and its timeline")
    watch: CliSubCommand[Watch] = Field(description="print what happens, until Ctrl-C")
    retry: CliSubCommand[RetryTask] = Field(description="prepare an errored or failed task again")
    cancel: CliSubCommand[CancelTask] = Field(description="cancel one task, or --all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 130 after Ctrl-C; Ctrl-C is how `watch` ends, with 0.

    Raises:
        SystemExit: status 1 or 2 after one line on standard error; 0 after `--help`.
    """
    watching = False
    try:
        settings, command = load(
            Commands,
            sys.argv[1:] if argv is None else argv,
            anywhere=["--json", "--json_output", *flags_of(RegistrySettings)],
        )
        _check_usage(command)
        watching = isinstance(command, Watch)
        with printing(PROGRAM), _registry(settings.redis_url) as registry:
            _do(registry, command, as_json=settings.json_output)
    except KeyboardInterrupt:
        if sys.stderr.isatty():
            sys.stderr.write("\n")  # the terminal has shown ^C
        return 0 if watching else INTERRUPTED
    return 0


def _check_usage(command: BaseModel) -> None:
    """Refuse what cannot be meant, before anything is connected."""
    if isinstance(command, CancelTask) and command.all == (command.task_id is not None):
        fail(PROGRAM, "cancel: give either the id of one task, or --all")
    if isinstance(command, ShowTask | RetryTask | CancelTask) and command.task_id is not None:
        command.task_id = task_id_of(PROGRAM, command.task_id)


@contextmanager
def _registry(url: str) -> Iterator[TaskRegistry]:
    """The registry of a Redis; what Redis or the registry refuses ends the command in one line."""
    import redis

    from task_api.redis_client import safe_redis_url
    from task_api.registry import TaskRegistry

    where = safe_redis_url(url)
    try:
        registry = TaskRegistry.from_url(url)
    except ValueError as error:
        fail(PROGRAM, f"the Redis URL {where} cannot be used: {error}")
    with registry:
        try:
            try:
                registry.ping()
            except TypeError:  # options become arguments when the first connection is made
                fail(PROGRAM, f"the Redis URL {where} has an option that is not known")
            registry.initialize()
            yield registry
        except (RegistryUnavailable, redis.RedisError) as error:
            text = str(error).removeprefix("Redis cannot be used: ").rstrip(".")
            give_up(
                PROGRAM,
                f"Redis at {where} cannot be used: {text}; start `buttercup up`, or name another "
                "with --redis_url or BUTTERCUP_REDIS_URL",
            )
        except RegistryError as error:
            give_up(PROGRAM, str(error))


def _do(registry: TaskRegistry, command: BaseModel, *, as_json: bool) -> None:
    match command:
        case ListTasks():
            _list(registry, command, as_json=as_json)
        case ShowTask():
            _show(registry, command.task_id, as_json=as_json)
        case Watch():
            _watch(registry, as_json=as_json)
        case RetryTask():
            registry.retry(command.task_id)
            text = f"task {command.task_id} is pending again"
            _say(text, {"task_id": command.task_id}, as_json=as_json)
        case CancelTask():
            _cancel(registry, command, as_json=as_json)


def _say(text: str, data: dict[str, Any], *, as_json: bool) -> None:
    print(json.dumps({**data, "message": text}) if as_json else text)


# --- list ------------------------------------------------------------------------------------


def _list(registry: TaskRegistry, command: ListTasks, *, as_json: bool) -> None:
    state = None if command.state is None else TaskState(command.state)
    records = registry.page(state=state, limit=command.limit)
    if as_json:
        from task_api.views import summary

        print(json.dumps({"tasks": [summary(record) for record in records]}, indent=2))
        return
    if not records:
        print(f"no tasks in state {state}" if state else "no tasks")
        return
    from buttercup_dagster.tables import HEADINGS, task_rows

    put_table(make_console(), HEADINGS, task_rows(records), shrink="PROJECT", colored="STATE")
    sizes = registry.status().states
    total = sum(sizes.values()) if state is None else sizes[state]
    if total > len(records):
        print(f"{len(records)} of {total} tasks; more with --limit")


# --- show ------------------------------------------------------------------------------------


def _show(registry: TaskRegistry, task_id: str, *, as_json: bool) -> None:
    record = registry.get(task_id)
    events = registry.events(task_id)
    if as_json:
        from task_api.views import details

        print(json.dumps(details(record, events), indent=2))
        return
    from rich.text import Text

    console = make_console()
    for name, value in _facts(record):
        style = COLORS.get(value, "") if name == "state" else ""
        put_text(console, Text().append(f"{name:<10}", "bold"), value, style)
    put(console, "")
    _put_sources(console, record)
    put(console, "")
    for event in events:
        _put_event(console, event, with_task=False)


def _facts(record: TaskRecord) -> list[tuple[str, str]]:
    task = record.task
    harnesses = "" if task.harnesses_included else ", without harnesses"
    found = [
        ("task", task.task_id),
        ("state", str(record.state)),
        ("reason", f"{record.reason.text} [{record.reason.code}]" if record.reason else ""),
        ("project", task.project_name),
        ("focus", task.focus),
        ("type", f"{task.type}{harnesses}"),
        ("accepted", _when(record.accepted_ms)),
        ("deadline", _when(task.deadline_ms)),
        # That of a cancelled task is removed within a minute.
        ("path", "" if record.state is TaskState.CANCELED else record.path or ""),
        ("machine", record.machine or ""),
        ("run", record.run_id or ""),
        ("waiting", "for the verdict on what its consumer submitted" if record.waiting else ""),
        ("failures", str(record.failures) if record.failures else ""),
        ("defect", record.defect or ""),
        ("next try", _when(record.not_before_ms) if record.not_before_ms else ""),
    ]
    return [(name, harmless(value)) for name, value in found if value]


def _when(milliseconds: int) -> str:
    from buttercup_dagster.tables import moment, until

    return f"{moment(milliseconds)} UTC, {until(milliseconds)}"


def _put_sources(console: Console, record: TaskRecord) -> None:
    if not record.sources:
        put(console, "no sources" if record.defect is None else "its sources cannot be read")
        return
    rows = [
        (
            str(source.type),
            source.state,
            size(source.bytes),
            "-" if source.files is None else str(source.files),
            "store" if source.cache_hit else ", ".join(map(printable, source.hosts)),
        )
        for source in record.sources
    ]
    headings = ("SOURCE", "STATE", "BYTES", "FILES", "FROM")
    put_table(console, headings, rows, shrink="FROM")
    put(console, "")
    digests = [(str(source.type), printable(source.sha256)) for source in record.sources]
    put_table(console, ("SOURCE", "SHA-256"), digests, shrink="SOURCE")


# --- events ----------------------------------------------------------------------------------


def _put_event(console: Console, event: Event, *, with_task: bool) -> None:
    from rich.text import Text

    from buttercup_dagster.tables import moment

    day, _, clock = moment(event.time_ms).partition(" ")
    line = Text()
    if with_task:
        line.append(f"{clock}  ", "dim").append(f"{harmless(event.task_id)}  ")
    else:
        line.append(f"{day} {clock}  ", "dim")
    detail = harmless(_detail(event))
    kind = harmless(event.kind)
    line.append(f"{kind:<11} " if detail else kind, COLORS.get(event.kind, ""))
    put_text(console, line, detail)


def _detail(event: Event) -> str:
    """What is worth reading of an event, beside its kind."""
    from buttercup_dagster.tables import moment

    fields = event.fields
    found = []
    if "source" in fields:
        found.append(fields["source"])
        if event.kind == "verified" and fields.get("bytes", "").isdecimal():
            found.append(size(int(fields["bytes"])))
    if event.kind == "started":
        found.append(f"run {fields.get('run_id', '?')[:8]} on {fields.get('machine', '?')}")
    if event.kind == "ready":
        found.append(fields.get("path", ""))
    if event.kind == "sarif":
        found.append(fields.get("sarif_id", ""))
    found.append(fields.get("text", ""))
    if fields.get("not_before_ms", "").isdecimal():
        found.append(f"next try at {moment(int(fields['not_before_ms']))}")
    return ", ".join(one for one in found if one)


def _watch(registry: TaskRegistry, *, as_json: bool) -> None:
    console = make_console()
    after = registry.last_event_id()
    away = False
    if not as_json and console.is_terminal:
        _tell("waiting for events; Ctrl-C ends")
    while True:
        try:
            events = registry.follow(after, block_seconds=2.0)
        except RegistryUnavailable as error:
            if not away:
                _tell(f"{error}; waiting for it")
            away = True
            time.sleep(1)
            continue
        if away:
            _tell("Redis answers again")
        away = False
        for event in events:
            if as_json:
                line = {**event.fields, "id": event.id, "time_ms": event.time_ms}
                print(json.dumps({**line, "task_id": event.task_id, "kind": event.kind}))
            else:
                _put_event(console, event, with_task=True)
            after = event.id
        if sys.stdout is not None:
            sys.stdout.flush()


def _tell(text: str) -> None:
    sys.stderr.write(f"{PROGRAM}: {harmless(text)}\n")


# --- cancel ----------------------------------------------------------------------------------


def _cancel(registry: TaskRegistry, command: CancelTask, *, as_json: bool) -> None:
    if command.task_id is None:
        number = registry.cancel_all()
        tasks = "1 task" if number == 1 else f"{number} tasks"
        _say(f"{tasks} canceled", {"canceled": number}, as_json=as_json)
        return
    # The API remembers the cancel of an unknown id; a person has mistyped it.
    registry.get(command.task_id)
    registry.cancel(command.task_id)
    text = f"task {command.task_id} is canceled"
    _say(text, {"task_id": command.task_id}, as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
