"""`buttercup-registry`: what people and programs read, and what it changes."""

from __future__ import annotations

import json
import signal
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buttercup_dagster.cli.registry import main
from buttercup_dagster.tables import HEADINGS, markdown_table, task_rows
from task_api.registry import Submission, TaskRegistry
from task_api.task import Outcome, Problem, Reason, Source, SourceType, TaskState, TaskType
from tests.buttercup_dagster.cli.conftest import COLUMNS, Commands, end
from tests.e2e.source_server import SourceServer
from tests.support.redis_server import RedisServer, free_port
from tests.support.tasks import HOUR_MS, make_task, now_ms, post
from tests.support.waiting import wait_for

PROGRAM = "buttercup-registry"
SECRET = "S1gnatureThatNobodyMaySee"
UNKNOWN = "11111111-2222-4333-8444-555555555555"
HOSTILE = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202e\r\n\x00end"
ADVICE = "start `buttercup up`, or name another with --redis_url or BUTTERCUP_REDIS_URL"


class Said:
    """What a call printed, and its status."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err
        assert SECRET not in out + err
        assert "Traceback" not in out + err
        # Neither colours nor anything else that steers a terminal.
        assert all(one.isprintable() or one == "\n" for one in out + err), out + err

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def refusal(self) -> str:
        """The only line on standard error, where nothing else is said."""
        assert self.out == ""
        (line,) = self.err.splitlines()
        assert line.startswith(f"{PROGRAM}: ")
        return line.removeprefix(f"{PROGRAM}: ")

    @property
    def json(self) -> Any:
        assert self.err == ""
        return json.loads(self.out)

    @property
    def facts(self) -> dict[str, str]:
        """The first block of `show`."""
        block = self.lines[: self.lines.index("")]
        return {line[:10].strip(): line[10:] for line in block}

    @property
    def timeline(self) -> list[tuple[str, str]]:
        """The last block of `show`: kind and detail of each event."""
        found = []
        for line in self.out.rstrip("\n").split("\n\n")[-1].splitlines():
            day, clock, kind, *detail = line.split(maxsplit=3)
            assert (len(day), len(clock)) == (10, 8)
            found.append((kind, " ".join(detail)))
        return found


Call = Callable[..., Said]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command in this process."""

    def run(*argv: str) -> Said:
        capsys.readouterr()
        try:
            status: object = main(argv)
        except SystemExit as ended:
            status = ended.code
        assert isinstance(status, int)
        return Said(status, *capsys.readouterr())

    return run


@pytest.fixture
def shared(redis_url: str, registry: TaskRegistry, monkeypatch: pytest.MonkeyPatch) -> TaskRegistry:
    """An empty registry that the command finds by itself."""
    monkeypatch.setenv("BUTTERCUP_REDIS_URL", redis_url)
    return registry


def source(kind: SourceType, digit: str, *hosts: str) -> Source:
    urls = tuple(f"https://{host}/bucket/{kind}.tar.gz?X-Amz-Signature={SECRET}" for host in hosts)
    return Source(kind, digit * 64, urls)


def add(registry: TaskRegistry, **changes: Any) -> str:
    """Post a task; its id."""
    task = make_task(**{"sources": (source(SourceType.REPO, "a", "files.example"),), **changes})
    assert post(registry, task).accepted
    return task.task_id


def start(registry: TaskRegistry, task_id: str, machine: str = "worker-1") -> int:
    """Claim the only pending task and begin an attempt; the token."""
    (claim,) = registry.claim(10)
    assert claim.task_id == task_id
    run_id = "0123abcd-0000-4000-8000-000000000000"
    return registry.start(task_id, run_id=run_id, machine=machine, token=claim.token).token


def add_errored(registry: TaskRegistry, text: str = "repo: no such archive", **changes: Any) -> str:
    task_id = add(registry, **changes)
    token = start(registry, task_id)
    assert registry.fail(task_id, token, Reason("http_404", text)) is TaskState.ERRORED
    return task_id


def add_ready(registry: TaskRegistry, path: str = "/srv/tasks/x", **changes: Any) -> str:
    task_id = add(registry, **changes)
    token = start(registry, task_id)
    for one in registry.get(task_id).sources:
        for state, files in (("verified", None), ("unpacked", 4321)):
            registry.report_source(
                task_id, token, one.type, state, sha256=one.sha256, bytes_=12_345_678, files=files
            )
    registry.ready(task_id, token, path=path, machine="worker-1")
    return task_id


def refuse(registry: TaskRegistry, **changes: Any) -> str:
    """Have a task refused beside one that is accepted, so that it is recorded; its id."""
    bad = make_task(**changes)
    message_id = str(uuid.uuid4())
    problems = [Problem(("project_name",), "is not an OSS-Fuzz project name")]
    receipt = registry.accept(
        message_id, message_id, [Submission(make_task()), Submission(bad, problems)]
    )
    assert [verdict.kind for verdict in receipt.verdicts] == ["accepted", "refused"]
    return bad.task_id


# --- list ------------------------------------------------------------------------------------


def test_list_is_a_table_of_80_columns(call: Call, shared: TaskRegistry) -> None:
    assert call("list").lines == ["no tasks"]
    errored = add_errored(shared, deadline_ms=now_ms() + 48 * HOUR_MS)
    long = "apache-commons-compress-with-a-long-name"
    ready = add_ready(shared, project_name=long, type=TaskType.DELTA, sources=delta_sources())
    pending = add(shared, deadline_ms=now_ms() + 5 * HOUR_MS)

    said = call("list")
    assert (said.status, said.err) == (0, "")
    assert max(map(len, said.lines)) <= COLUMNS
    heading, *rows = [line.split() for line in said.lines]
    assert heading == list(HEADINGS)
    assert rows == [
        [pending, "pending", "libpng", "full", "in", "5", "h"],
        [ready, "ready", "apache-commons…", "delta", "in", "60", "min"],
        [errored, "errored", "libpng", "full", "in", "48", "h"],
    ]
    starts = {
        line.index(word)
        for line, word in zip(said.lines[1:], ("full", "delta", "full"), strict=False)
    }
    assert starts == {said.lines[0].index("TYPE")}

    assert [line.split()[0] for line in call("list", "--state", "ready").lines[1:]] == [ready]
    assert call("list", "--state=canceled").lines == ["no tasks in state canceled"]
    limited = call("list", "--limit", "2").lines
    assert [line.split()[0] for line in limited[1:3]] == [pending, ready]
    assert limited[3:] == ["2 of 3 tasks; more with --limit"]


def delta_sources() -> tuple[Source, ...]:
    mirrors = ("a-rather-long-host.example.org", "mirror.example")
    return (
        source(SourceType.REPO, "a", "files.example"),
        source(SourceType.FUZZ_TOOLING, "b", *mirrors),
        source(SourceType.DIFF, "c", "files.example"),
    )


def test_list_as_json(call: Call, shared: TaskRegistry) -> None:
    assert call("list", "--json").json == {"tasks": []}
    errored = add_errored(shared)
    pending = add(shared)
    found = call("--json", "list").json["tasks"]
    assert [row["task_id"] for row in found] == [pending, errored]
    assert found[1]["state"] == "errored"
    assert found[1]["reason"] == {"code": "http_404", "text": "repo: no such archive"}
    assert [row["task_id"] for row in call("list", "--json", "--limit=1").json["tasks"]] == [
        pending
    ]


def test_a_refused_task_may_hold_any_number(call: Call, shared: TaskRegistry) -> None:
    far = refuse(shared, deadline_ms=9_007_199_254_740_991)
    seconds = refuse(shared, deadline_ms=now_ms() // 1000, sources=())
    listed = call("list")
    assert max(map(len, listed.lines)) <= COLUMNS
    assert call("show", far).facts["deadline"] == "9007199254740991 ms UTC, in 9999 y"
    said = call("show", seconds)
    assert said.facts["deadline"].startswith("1970-01-2")
    assert "no sources" in said.lines


# --- show ------------------------------------------------------------------------------------


def test_show_a_cancelled_task_names_no_folder(call: Call, shared: TaskRegistry) -> None:
    task_id = add_ready(shared, path="/srv/tasks/x")
    shared.cancel(task_id)
    facts = call("show", task_id).facts
    assert facts["state"] == "canceled"
    assert facts["machine"] == "worker-1"
    assert "path" not in facts


def test_show_a_ready_task(call: Call, shared: TaskRegistry) -> None:
    path = "/srv/a folder/jörg/tasks/x"
    task_id = add_ready(
        shared, path=path, type=TaskType.DELTA, sources=delta_sources(), harnesses_included=False
    )
    shared.report_outcome(task_id, Outcome.WAITING)
    said = call("show", task_id.upper())
    assert (said.status, said.err) == (0, "")
    facts = said.facts
    assert facts.pop("accepted").endswith(" s ago")
    assert facts.pop("deadline").endswith(" UTC, in 60 min")
    assert facts == {
        "task": task_id,
        "state": "ready",
        "project": "libpng",
        "focus": "libpng",
        "type": "delta, without harnesses",
        "path": path,
        "machine": "worker-1",
        "run": "0123abcd-0000-4000-8000-000000000000",
        "waiting": "for the verdict on what its consumer submitted",
    }
    blocks = [block.splitlines() for block in said.out.split("\n\n")]
    assert [line.split() for line in blocks[1]] == [
        ["SOURCE", "STATE", "BYTES", "FILES", "FROM"],
        ["repo", "unpacked", "11.8", "MiB", "4321", "files.example"],
        [
            *("fuzz-tooling", "unpacked", "11.8", "MiB", "4321"),
            *("a-rather-long-host.example.org,", "mirror…"),
        ],
        ["diff", "unpacked", "11.8", "MiB", "4321", "files.example"],
    ]
    assert [line.split() for line in blocks[2]] == [
        ["SOURCE", "SHA-256"],
        ["repo", "a" * 64],
        ["fuzz-tooling", "b" * 64],
        ["diff", "c" * 64],
    ]
    assert said.timeline == [
        ("accepted", ""),
        ("claimed", ""),
        ("started", "run 0123abcd on worker-1"),
        ("verified", "repo, 11.8 MiB"),
        ("unpacked", "repo"),
        ("verified", "fuzz-tooling, 11.8 MiB"),
        ("unpacked", "fuzz-tooling"),
        ("verified", "diff, 11.8 MiB"),
        ("unpacked", "diff"),
        ("ready", path),
        ("waiting", ""),
    ]
    assert max(map(len, said.lines)) <= COLUMNS


def test_show_a_task_that_is_tried_again(call: Call, shared: TaskRegistry) -> None:
    task_id = add(shared)
    token = start(shared, task_id)
    shared.fail(task_id, token, Reason("offline", "repo: no connection"), transient=True)
    said = call("show", task_id)
    assert said.facts["state"] == "pending"
    assert said.facts["reason"] == "repo: no connection [offline]"
    assert said.facts["failures"] == "1"
    moment, _, rest = said.facts["next try"].partition(" UTC, in ")
    assert rest.endswith(" s")
    assert said.timeline[-1] == ("retry", f"repo: no connection, next try at {moment}")


def test_show_a_task_that_cannot_be_read_whole(
    call: Call, shared: TaskRegistry, redis_server: RedisServer
) -> None:
    task_id = add(shared)
    with redis_server.client as client:
        client.hset(f"buttercup:task:{task_id}", "spec", "{")
    assert [line.split()[:2] for line in call("list").lines[1:]] == [[task_id, "pending"]]
    said = call("show", task_id)
    assert said.status == 0
    assert said.facts["defect"].startswith("its content cannot be read: ")
    assert "its sources cannot be read" in said.lines
    assert call("cancel", task_id).status == 0


def test_show_as_json(call: Call, shared: TaskRegistry) -> None:
    task_id = add_errored(shared)
    found = call("show", task_id, "--json").json
    assert (found["task_id"], found["state"]) == (task_id, "errored")
    assert found["reason"] == {"code": "http_404", "text": "repo: no such archive"}
    assert found["sources"][0]["hosts"] == ["files.example"]
    assert found["metadata"]["nested"] == {"kept": [1, 2.5, None, "é\u2028"]}
    assert [event["kind"] for event in found["events"]] == [
        *("accepted", "claimed", "started", "errored")
    ]


def test_long_reasons_are_wrapped_at_words_on_a_terminal(
    commands: Commands, shared: TaskRegistry, call: Call
) -> None:
    reason = f"repo: the archive has SHA-256 {'d' * 64}, wanted {'a' * 64}; it was changed"
    task_id = add_errored(shared, reason)
    assert call("show", task_id).facts["reason"] == f"{reason} [http_404]"
    with commands.terminal(PROGRAM, "show", task_id) as terminal:
        assert terminal.wait() == 0
        assert max(map(len, terminal.lines)) <= COLUMNS
        start_ = terminal.lines.index("reason    repo: the archive has SHA-256")
        assert terminal.lines[start_ + 1 : start_ + 3] == [
            f"{' ' * 10}{'d' * 64},",
            f"{' ' * 10}wanted",
        ]
        assert "\x1b[1;31m" not in terminal.raw.partition("state")[0]
        assert "\x1b[31merrored" in terminal.raw


# --- text of unknown origin ------------------------------------------------------------------


def test_hostile_text_is_harmless(call: Call, shared: TaskRegistry) -> None:
    """`Said` looks at every character."""
    hostile = Source(SourceType.REPO, HOSTILE, (f"http://{HOSTILE}/x?{SECRET}", HOSTILE))
    refused = refuse(
        shared, project_name=HOSTILE, focus=HOSTILE, sources=(hostile,), metadata={HOSTILE: HOSTILE}
    )
    shared.cancel(call("list", "--json", "--state", "pending").json["tasks"][0]["task_id"])
    task_id = add(shared)
    token = start(shared, task_id, machine=HOSTILE)
    shared.ready(task_id, token, path=f"/srv/{HOSTILE}", machine=HOSTILE)
    shared.report_outcome(task_id, Outcome.SUCCEEDED, HOSTILE)

    for argv in (["list"], ["show", refused], ["show", task_id]):
        assert "red" in call(*argv).out
        assert call(*argv, "--json").json
    for command in ("retry", "cancel"):
        assert "red" in call(command, task_id).refusal
    table = markdown_table(task_rows(shared.page()))
    assert len(table.splitlines()) == 2 + 3
    assert table.isascii()


def test_markup_of_a_sender_is_not_rendered(shared: TaskRegistry) -> None:
    refuse(shared, project_name="<b>a|b</b> [x](y) `c`")
    (row,) = [row for row in task_rows(shared.page()) if "a|b" in row[2]]
    assert markdown_table([row]).splitlines()[2].split(" | ")[2] == (
        r"\<b\>a\|b\</b\> \[x\]\(y\) \`c\`"
    )


# --- retry and cancel ------------------------------------------------------------------------


def test_retry(call: Call, shared: TaskRegistry) -> None:
    task_id = add_errored(shared)
    said = call("retry", task_id)
    assert (said.status, said.out) == (0, f"task {task_id} is pending again\n")
    assert shared.get(task_id).state is TaskState.PENDING
    said = call("retry", task_id)
    assert said.status == 1
    assert said.refusal == f"task {task_id} cannot be retried: it is pending"
    shared.cancel(task_id)
    ready = add_ready(shared)
    assert call("retry", ready).refusal == f"task {ready} cannot be retried: it is ready"
    errored = add_errored(shared)
    assert call("--json", "retry", errored).json == {
        "task_id": errored,
        "message": f"task {errored} is pending again",
    }


def test_cancel_one(call: Call, shared: TaskRegistry) -> None:
    task_id, other = add(shared), add(shared)
    for _ in range(2):
        said = call("cancel", task_id)
        assert (said.status, said.out) == (0, f"task {task_id} is canceled\n")
    assert shared.get(task_id).state is TaskState.CANCELED
    assert shared.get(other).state is TaskState.PENDING
    shared.cancel(other)
    errored = add_errored(shared)
    said = call("cancel", errored)
    assert said.status == 1
    assert said.refusal == (
        f"task {errored} cannot be canceled: it is errored (repo: no such archive)"
    )


def test_cancel_all(call: Call, shared: TaskRegistry) -> None:
    errored = add_errored(shared)
    tasks = [add_ready(shared), add(shared), add(shared)]
    assert call("cancel", "--all").lines == ["3 tasks canceled"]
    assert {shared.get(one).state for one in tasks} == {TaskState.CANCELED}
    assert shared.get(errored).state is TaskState.ERRORED
    add(shared)
    assert call("cancel", "--all").lines == ["1 task canceled"]
    assert call("cancel", "--all", "--json").json == {
        "canceled": 0,
        "message": "0 tasks canceled",
    }


# --- wrong usage -----------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["show", "retry", "cancel"])
def test_an_unknown_task(call: Call, shared: TaskRegistry, command: str) -> None:
    said = call(command, UNKNOWN)
    assert said.status == 1
    assert said.refusal == f"no task {UNKNOWN} is recorded"
    # A cancel by mistake would hit the task when it comes.
    task = make_task(task_id=UNKNOWN)
    post(shared, task)
    assert shared.get(UNKNOWN).state is TaskState.PENDING


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        ([], ["say what to do: list, show, watch, retry, cancel; see buttercup-registry --help"]),
        (
            ["remove", UNKNOWN],
            [
                (
                    "invalid choice: 'remove' (choose from 'list', 'show', 'watch', 'retry', "
                    "'cancel'); see buttercup-registry --help"
                )
            ],
        ),
        (
            ["show", "\x1b[31m1234"],
            [r"'\x1b[31m1234' is not a UUID like 123e4567-e89b-42d3-a456-426614174000"],
        ),
        (
            ["retry"],
            ["the following arguments are required: TASK_ID; see buttercup-registry retry --help"],
        ),
        (["cancel"], ["cancel: give either the id of one task, or --all"]),
        (["cancel", UNKNOWN, "--all"], ["cancel: give either the id of one task, or --all"]),
        (
            ["list", "--state", "lost", "--limit", "0"],
            [
                (
                    "--state: 'lost' is no state; choose one of pending, scheduled, downloading, "
                    "ready, succeeded, failed, errored, canceled, expired"
                ),
                "--limit must be greater than or equal to 1, not '0'",
            ],
        ),
        (
            ["list", "--limit", "ten", "--redis_url", "http://localhost"],
            [
                (
                    "--redis_url: a Redis URL begins with redis://, rediss:// or unix://, such as "
                    "redis://localhost:6379 or redis://:password@host:6379/0"
                ),
                "--limit must be a valid integer, not 'ten'",
            ],
        ),
        (
            ["list", "--frob"],
            ["unrecognized arguments: --frob; see buttercup-registry list --help"],
        ),
        (
            ["list", "--redis_url"],
            ["--redis_url needs a value; see buttercup-registry --help"],
        ),
        (
            ["list", "--redis_url", "redis://:pass@h?db=x"],
            ["the Redis URL redis://h cannot be used: Invalid value for 'db' in connection URL."],
        ),
        (
            ["list", "--redis_url", "redis://:pass@host?databank=1"],
            ["the Redis URL redis://host has an option that is not known"],
        ),
    ],
    ids=lambda value: " ".join(value)[:30].replace("\x1b", "") if isinstance(value, list) else "",
)
def test_wrong_usage_gives_a_line_for_each_mistake(
    call: Call, argv: list[str], lines: list[str]
) -> None:
    said = call(*argv)
    assert (said.status, said.out) == (2, "")
    assert said.err.splitlines() == [f"{PROGRAM}: {line}" for line in lines]


@pytest.mark.parametrize("argv", [[], *([name] for name in ("list", "show", "watch", "cancel"))])
def test_help_fits_the_terminal(call: Call, argv: list[str]) -> None:
    said = call(*argv, "--help")
    assert (said.status, said.err) == (0, "")
    assert max(map(len, said.lines)) <= COLUMNS


# --- which Redis -----------------------------------------------------------------------------


def test_the_redis_url_may_come_from_anywhere(
    call: Call, registry: TaskRegistry, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = add(registry)
    wrong = f"redis://127.0.0.1:{free_port()}"

    def found(*argv: str) -> bool:
        said = call(*argv)
        assert said.status == (0 if said.out else 1)
        return task_id in said.out

    assert found("--redis_url", redis_url, "list")
    assert found("list", "--redis_url", redis_url)
    assert found("list", f"--redis_url={redis_url}", "--state", "pending")
    assert found("show", f"--redis_url={redis_url}", task_id)
    # Each place wins over those before it.
    Path(".env").write_text(f"BUTTERCUP_REDIS_URL={redis_url}\n")
    assert found("list")
    Path(".env").write_text(
        f"BUTTERCUP_REDIS_URL={wrong}\nBUTTERCUP_REGISTRY_REDIS_URL={redis_url}\n"
    )
    assert found("list")
    monkeypatch.setenv("BUTTERCUP_REDIS_URL", wrong)
    assert not found("list")
    Path(".env").write_text(f"BUTTERCUP_REGISTRY_REDIS_URL={wrong}\n")
    monkeypatch.setenv("BUTTERCUP_REDIS_URL", redis_url)
    assert found("list")
    monkeypatch.setenv("BUTTERCUP_REGISTRY_REDIS_URL", wrong)
    assert not found("list")
    assert found("list", "--redis_url", redis_url)


def test_no_redis(call: Call) -> None:
    port = free_port()
    for argv in (["list"], ["show", UNKNOWN], ["watch"], ["retry", UNKNOWN], ["cancel", "--all"]):
        url = f"redis://user:pass-word@127.0.0.1:{port}/3?protocol=2"
        said = call(*argv, "--redis_url", url)
        assert said.status == 1
        assert said.refusal.startswith(f"Redis at redis://127.0.0.1:{port}/3 cannot be used: ")
        assert said.refusal.endswith(f"Connection refused; {ADVICE}")
        assert "pass-word" not in said.refusal


def test_a_redis_that_wants_another_password(call: Call) -> None:
    with RedisServer(password=True) as server:
        add(registry := TaskRegistry.from_url(server.url))
        registry.close()
        assert len(call("list", "--redis_url", server.url).lines) == 2
        for url in (
            f"redis://:wrong-one@127.0.0.1:{server.port}",
            f"redis://127.0.0.1:{server.port}",
        ):
            said = call("list", "--redis_url", url)
            assert said.status == 1
            assert said.refusal.startswith(
                f"Redis at redis://127.0.0.1:{server.port} cannot be used: "
            )
            assert "wrong-one" not in said.refusal


def test_something_else_than_redis(call: Call, sources: SourceServer) -> None:
    host = sources.missing_url("x").split("/")[2]
    said = call("list", "--redis_url", f"redis://{host}")
    assert said.status == 1
    assert said.refusal.startswith(f"Redis at redis://{host} cannot be used: ")


def test_keys_of_somebody_else(call: Call, shared: TaskRegistry, redis_server: RedisServer) -> None:
    with redis_server.client as client:
        client.set("buttercup:index:pending", "not a sorted set")
    said = call("list")
    assert said.status == 1
    assert "WRONGTYPE" in said.refusal


def test_a_registry_of_a_newer_version(
    call: Call, shared: TaskRegistry, redis_server: RedisServer
) -> None:
    with redis_server.client as client:
        client.set("buttercup:schema", 99)
    said = call("list")
    assert said.status == 1
    assert said.refusal.startswith("the registry in this Redis has schema version 99")


# --- watch -----------------------------------------------------------------------------------


def test_watch_follows_through_a_restart_of_redis(
    commands: Commands, own_redis: RedisServer
) -> None:
    with (
        TaskRegistry.from_url(own_redis.url) as registry,
        commands.terminal(PROGRAM, "watch", "--redis_url", own_redis.url) as terminal,
    ):
        terminal.shows("waiting for events; Ctrl-C ends")
        first = add_errored(registry, f"repo: {HOSTILE}")
        terminal.shows(f"  {first}  errored")
        terminal.shows("red")
        own_redis.stop()
        terminal.shows("; waiting for it")
        own_redis.start()
        terminal.shows("Redis answers again")
        second = add(registry)
        terminal.shows(f"  {second}  accepted")
        terminal.press_ctrl_c()
        assert terminal.wait() == 0
        lines = terminal.lines
        assert "Traceback" not in terminal.raw
    shown = [line.split() for line in lines if first in line or second in line]
    assert [(row[1], row[2]) for row in shown] == [
        *((first, kind) for kind in ("accepted", "claimed", "started", "errored")),
        (second, "accepted"),
    ]
    assert all(len(row[0]) == len("12:34:56") for row in shown)
    assert max(len(line) for line in lines if first in line or "red" in line) <= COLUMNS
    assert all(one.isprintable() for line in lines for one in line.replace("^C", ""))


def test_watch_as_json(commands: Commands, shared: TaskRegistry, tmp_path: Path) -> None:
    output = tmp_path / "events"
    posted: list[str] = []

    def heard() -> list[str]:
        return [line for line in output.read_text().splitlines(keepends=True) if "\n" in line]

    def heard_of_one() -> bool:
        posted.append(add(shared))
        return bool(heard())

    with output.open("w") as stdout:
        started = commands.start(PROGRAM, "watch", "--json", stdout=stdout)
        # Nothing tells when it listens; so post until it has heard of a task.
        wait_for(heard_of_one, "an event", every=0.1)
        wait_for(lambda: posted[-1] in heard()[-1], "the latest event")
        status, _, err = end(started, signal.SIGINT)
    assert (status, err) == (0, "")
    events = [json.loads(line) for line in heard()]
    assert [event["task_id"] for event in events] == posted[-len(events) :]
    assert {event["kind"] for event in events} == {"accepted"}
    for event in events:
        assert event["id"].startswith(f"{event['time_ms']}-")


# --- as part of a pipeline -------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["list", "--limit=300"], ["list", "--json", "--limit=300"]])
def test_a_reader_that_has_seen_enough(
    commands: Commands, shared: TaskRegistry, argv: list[str]
) -> None:
    """As `| head -1`: more is written than a pipe holds."""
    for _ in range(6):
        post(shared, *(make_task() for _ in range(50)))
    with commands.start(PROGRAM, *argv, PYTHONUNBUFFERED="1") as started:
        assert started.stdout is not None
        assert started.stderr is not None
        assert started.stdout.readline()
        started.stdout.close()
        assert started.wait(20) == 0
        assert started.stderr.read() == ""


def test_a_full_disk(commands: Commands, shared: TaskRegistry) -> None:
    task_id = add(shared)
    for argv in (["list"], ["show", task_id], ["list", "--json"]):
        with Path("/dev/full").open("w") as full:
            done = commands.run(PROGRAM, *argv, stdout=full)
        assert (done.returncode, done.stderr) == (
            1,
            f"{PROGRAM}: the output cannot be written: No space left on device\n",
        )


def test_ctrl_c_ends_a_command_that_waits(commands: Commands) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = commands.start(PROGRAM, "list", "--redis_url", f"redis://127.0.0.1:{port}")
        silent.settimeout(20)
        connection, _ = silent.accept()
        with connection:
            assert end(started, signal.SIGINT) == (130, "", "")


def test_it_imports_no_dagster(commands: Commands, shared: TaskRegistry) -> None:
    task_id = add(shared)
    program = (
        "import json, sys\n"
        "from buttercup_dagster.cli.registry import main\n"
        "for argv in json.loads(sys.argv[1]):\n"
        "    try: main(argv)\n"
        "    except SystemExit: pass\n"
        "print([name for name in sys.modules if name.partition('.')[0].startswith('dagster')])"
    )
    calls = [["--help"], ["list", "--help"], ["list"], ["list", "--json"], ["show", task_id]]
    done = commands.python(program, json.dumps(calls))
    assert task_id in done.stdout
    assert (done.stdout.splitlines()[-1], done.stderr) == ("[]", "")


def test_a_state_is_coloured_on_a_terminal_only(commands: Commands, shared: TaskRegistry) -> None:
    # A project may be called as a state is; only the state has a colour.
    task_id = add_ready(shared, project_name="ready")
    assert "\x1b" not in commands.run(PROGRAM, "list").stdout
    with commands.terminal(PROGRAM, "list") as terminal:
        assert terminal.wait() == 0
        assert terminal.raw.count("\x1b[32mready\x1b[0m") == 1
        assert [line.split()[:3] for line in terminal.lines[1:]] == [[task_id, "ready", "ready"]]
