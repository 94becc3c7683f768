"""`buttercup-downloader`: prepares tasks on this machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator, BaseModel, Field
from pydantic_settings import (
    CliDualFlag,
    CliPositionalArg,
    CliSubCommand,
    CliToggleFlag,
    SettingsConfigDict,
)

from buttercup_dagster.cli.arguments import fail, flags_of, load
from buttercup_dagster.cli.console import (
    give_up,
    harmless,
    make_console,
    printing,
    put_table,
    size,
)
from buttercup_dagster.cli.progress import progress_bars
from buttercup_dagster.cli.signals import INTERRUPTED, ended_by_signals
from buttercup_dagster.settings import DownloaderSettings
from task_api.task import (
    Source,
    SourceType,
    Task,
    TaskType,
    is_digest,
    normalize_uuid,
    printable,
    problems_of,
)

if TYPE_CHECKING:
    from buttercup_dagster.cli.process import Outcome
    from buttercup_dagster.sources.prepare import Prepared

PROGRAM = "buttercup-downloader"
DAY_MS = 86_400_000
SCHEMES: Final = ("http", "https", "file")


def _type(name: str) -> str:
    if name not in set(TaskType):
        raise ValueError(f"{printable(name)!r} is no type of task; choose full or delta")
    return name


def _digest(text: str | None) -> str | None:
    if text is not None and not is_digest(text):
        raise ValueError(f"{printable(text)!r} is not a SHA-256 digest; give 64 hex digits")
    return text.lower() if text is not None else None


Digest = Annotated[str | None, AfterValidator(_digest)]
_DIGEST = "its SHA-256 digest, 64 hex digits; without one, what arrives is taken as it is"


class Process(BaseModel):
    """Prepare one task now, without Redis: fetch, verify, unpack, lay out."""

    task_id: CliPositionalArg[str] = Field(description="id of the task, a UUID")
    project_name: str = Field(description="OSS-Fuzz project name")
    focus: str = Field(description="folder inside the repo tarball")
    repo_url: str = Field(description="repo tarball: http://, https://, file:// or a path")
    repo_sha256: Digest = Field(default=None, description=_DIGEST)
    fuzz_tooling_url: str | None = Field(
        default=None, description="fuzz tooling tarball, if there is one"
    )
    fuzz_tooling_sha256: Digest = Field(default=None, description=_DIGEST)
    diff_url: str | None = Field(default=None, description="tarball with the diff of a delta task")
    diff_sha256: Digest = Field(default=None, description=_DIGEST)
    task_type: Annotated[str, AfterValidator(_type)] = Field(
        default="full", description="full or delta"
    )
    output: Path | None = Field(
        default=None,
        description="folder in which the task's folder is made, in place of --tasks_dir",
    )


class Serve(BaseModel):
    """Prepare the tasks of a task server, until Ctrl-C or SIGTERM: a warm worker.

    Runs that Dagster launches are executed here, and further tasks right after them. It needs a
    Dagster instance whose launcher hands out runs to such workers, by DAGSTER_HOME or in the
    folder dagster of the home folder.
    """


class Verify(BaseModel):
    """Compare archives, unpacked trees and prepared tasks with what was written."""

    full: CliToggleFlag[bool] = Field(
        default=False, description="read every byte, not only names, modes, sizes and times"
    )
    repair: CliDualFlag[bool] = Field(
        default=True,
        description="put wrong archives into quarantine and make wrong trees again",
    )


class CollectGarbage(BaseModel):
    """Remove what crashes left and, from a store above its marks, what no task needs."""

    all: CliToggleFlag[bool] = Field(
        default=False, description="remove all that no task needs, whatever the marks say"
    )
    dry_run: CliToggleFlag[bool] = Field(
        default=False, description="remove nothing, and print what would be removed"
    )


class Commands(DownloaderSettings):
    """Prepare tasks on this machine, and look after what they are made of.

    The options below may stand before or after the command.

    Exit status: 0 done; 1 the task cannot be prepared, or verify found something
    wrong, also if it was mended; 2 wrong usage; 130 stopped by Ctrl-C.
    """

    model_config = SettingsConfigDict(cli_shortcuts={"json_output": "json"})

    json_output: CliToggleFlag[bool] = Field(default=False, description="print JSON")
    serve: CliSubCommand[Serve] = Field(description="prepare the tasks of a task server")
    process: CliSubCommand[Process] = Field(description="prepare one task now, without Redis")
    verify: CliSubCommand[Verify] = Field(description="compare all that is here with what it was")
    gc: CliSubCommand[CollectGarbage] = Field(description="remove what no task needs")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 130 after Ctrl-C or a signal that ends it.

    Raises:
        SystemExit: status 1 or 2 after one line on standard error; 0 after `--help`.
    """
    try:
        settings, command = load(
            Commands,
            sys.argv[1:] if argv is None else argv,
            anywhere=["--json", "--json_output", *flags_of(DownloaderSettings)],
        )
        if isinstance(command, Serve):
            return _serve(settings)
        if not isinstance(command, Process):
            with ended_by_signals():
                return _look_after(settings, command)
        task = _task(command)
        if command.output is not None:
            settings.tasks_dir = command.output.expanduser().absolute()
        _check_place(settings.tasks)
        with ended_by_signals():
            return _process(settings, task)
    except KeyboardInterrupt:
        return _stopped("nothing half-done is left")


def _serve(settings: Commands) -> int:
    _check_place(settings.tasks, "--tasks_dir")
    from buttercup_dagster.cli.serve import run_serve

    return run_serve(PROGRAM, settings)


def _look_after(settings: Commands, command: BaseModel) -> int:
    from buttercup_dagster.cli.upkeep import run_gc, run_verify
    from buttercup_dagster.engine import Engine

    engine = Engine.from_settings(settings)
    match command:
        case Verify():
            return run_verify(
                PROGRAM,
                engine,
                full=command.full,
                repair=command.repair,
                as_json=settings.json_output,
            )
        case CollectGarbage():
            return run_gc(
                PROGRAM,
                engine,
                everything=command.all,
                dry_run=command.dry_run,
                as_json=settings.json_output,
            )
    raise TypeError(command)


def _stopped(what: str) -> int:
    with suppress(OSError):  # the terminal may be gone, that being why
        sys.stderr.write(f"{PROGRAM}: stopped; {what}\n")
    return INTERRUPTED


def _task(command: Process) -> Task:
    """The task that the arguments describe.

    Raises:
        SystemExit: status 2 after one line for each wrong argument.
    """
    given = {
        SourceType.REPO: (command.repo_url, command.repo_sha256),
        SourceType.FUZZ_TOOLING: (command.fuzz_tooling_url, command.fuzz_tooling_sha256),
        SourceType.DIFF: (command.diff_url, command.diff_sha256),
    }
    lines = []
    try:
        task_id = normalize_uuid(command.task_id)
    except ValueError as error:
        task_id = ""
        lines.append(f"TASK_ID: {error}")
    now_ms = int(time.time() * 1000)
    task = Task(
        task_id=task_id,
        type=TaskType(command.task_type),
        project_name=command.project_name,
        focus=command.focus,
        deadline_ms=now_ms + 365 * DAY_MS,
        sources=tuple(
            Source(kind, digest or "", (_url(url),)) for kind, (url, digest) in given.items() if url
        ),
    )
    for problem in problems_of(task, now_ms=now_ms, schemes=SCHEMES):
        match problem.path:
            case ("source", int(number), "url"):
                lines.append(f"{_flag(task.sources[number].type, 'url')} {problem.text}")
            case ("source", *_):
                pass  # a digest that is not given is computed, and what is missing is told below
            case (name, *_):
                lines.append(f"--{name}: {problem.text}")
    for kind, (url, digest) in given.items():
        if digest and url is None:
            lines.append(f"{_flag(kind, 'sha256')} is of no use without {_flag(kind, 'url')}")
    if task.type is TaskType.DELTA and command.diff_url is None:
        lines.append("--diff_url is missing; a delta task needs it (or give --task_type full)")
    if lines:
        fail(PROGRAM, *lines)
    return task


def _flag(kind: SourceType, what: str) -> str:
    return f"--{kind.replace('-', '_')}_{what}"


def _url(text: str) -> str:
    """A URL as it is; a path as a file:// URL."""
    if "://" in text:
        return text
    return Path(text).expanduser().absolute().as_uri()


def _check_place(tasks: Path, flag: str = "--output") -> None:
    from buttercup_dagster.sources.layout import inside_git_work_tree

    try:
        tree = inside_git_work_tree(tasks)
    except (OSError, RuntimeError):  # what is wrong with the path is told when it is made
        return
    if tree is not None:
        fail(
            PROGRAM,
            f"{harmless(str(tasks))} lies in the git work tree {harmless(str(tree))}, where "
            "`git apply` would silently do nothing with the task; choose a folder outside with "
            f"{flag}",
        )


def _process(settings: Commands, task: Task) -> int:
    debug = settings.log_level in {"debug", "trace"}
    with progress_bars(wanted=not debug) as on_event:
        from buttercup_dagster.cli.process import InstanceUnusable, process
        from buttercup_dagster.engine import Engine

        engine = Engine.from_settings(settings, allow_file=True)
        try:
            outcome = process(task, engine, on_event, dagster_log=debug)
        except InstanceUnusable as error:
            give_up(PROGRAM, str(error))
    prepared = outcome.prepared
    if prepared is None:
        if outcome.interrupted:
            raise KeyboardInterrupt
        give_up(PROGRAM, outcome.problem)
    with printing(PROGRAM):
        if settings.json_output:
            print(json.dumps(asdict(prepared), default=str))
        else:
            _print(prepared)
    _print_remarks(outcome, prepared)
    if outcome.interrupted:
        return _stopped("the task's folder was complete before")
    if outcome.problem:
        give_up(PROGRAM, f"the folder is complete, but {outcome.problem}")
    return 0


def _print(prepared: Prepared) -> None:
    print(prepared.path)
    console = make_console()
    rows = [
        (
            str(kind),
            size(source.bytes),
            str(source.files),
            size(source.tree_bytes),
            f"{source.fetch_seconds + source.unpack_seconds + source.link_seconds:.1f}",
            source.link_mode,
            printable(source.host),
        )
        for kind, source in prepared.sources.items()
    ]
    headings = ("SOURCE", "ARCHIVE", "FILES", "UNPACKED", "SECONDS", "LINKED", "FROM")
    put_table(console, headings, rows, shrink="FROM")
    digests = [(str(kind), source.sha256) for kind, source in prepared.sources.items()]
    put_table(console, ("SOURCE", "SHA-256"), digests, shrink="SOURCE")


def _print_remarks(outcome: Outcome, prepared: Prepared) -> None:
    remarks = [outcome.replaced] if outcome.replaced else []
    for kind, source in prepared.sources.items():
        if source.dropped_links:
            remarks.append(
                f"warning: {kind}: symbolic links that lead out of the tree are left out: "
                f"{source.dropped_links}"
            )
    remarks += [f"warning: {warning}" for warning in outcome.warnings]
    for remark in remarks:
        sys.stderr.write(f"{PROGRAM}: {harmless(remark)}\n")


if __name__ == "__main__":
    sys.exit(main())
