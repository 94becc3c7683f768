"""`buttercup-downloader process`: one task on one command line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import dagster as dg
import pytest

from buttercup_dagster.cli.downloader import main
from tests.buttercup_dagster.cli.conftest import (
    COLUMNS,
    FOCUS,
    PROJECT,
    Archives,
    Commands,
    end,
)
from tests.e2e.archives import pack
from tests.e2e.source_server import SIGNATURE, SourceServer
from tests.support.archives import file, folder, packed, symlink
from tests.support.waiting import wait_for

PROGRAM = "buttercup-downloader"
CHOICES = "'serve', 'process', 'verify', 'gc'"
TASK_ID = "7c9f3f0a-5a0e-4c83-9d0b-6d7ad1c60c11"
ROOT = Path(__file__).parents[3]
NO_REDIS = "redis://127.0.0.1:1"
UUID_ADVICE = "is not a UUID like 123e4567-e89b-42d3-a456-426614174000"


def process(*more: str, **options: str | Path) -> list[str]:
    """A command line with the options that every task needs, and these."""
    chosen = {"project_name": PROJECT, "focus": FOCUS, **options}
    flags = [part for name, value in chosen.items() for part in (f"--{name}", str(value))]
    return ["process", TASK_ID, *flags, *more]


class Said:
    """What a call printed, and its status."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status = status
        self.out = out
        self.err = err
        assert SIGNATURE not in out + err
        assert "Traceback" not in out + err

    @property
    def remarks(self) -> list[str]:
        """The lines on standard error, without the program's name."""
        lines = self.err.splitlines()
        assert all(line.startswith(f"{PROGRAM}: ") for line in lines), self.err
        return [line.removeprefix(f"{PROGRAM}: ") for line in lines]

    @property
    def remark(self) -> str:
        """The only line on standard error."""
        (line,) = self.remarks
        return line

    @property
    def folder(self) -> Path:
        """The first line: where the task is."""
        return Path(self.out.splitlines()[0])

    @property
    def table(self) -> list[list[str]]:
        """The first table, row by row, without its headings."""
        _path, headings, *lines = self.out.splitlines()
        assert headings.split() == [
            "SOURCE",
            "ARCHIVE",
            "FILES",
            "UNPACKED",
            "SECONDS",
            "LINKED",
            "FROM",
        ]
        rows = lines[: [line.split() for line in lines].index(["SOURCE", "SHA-256"])]
        assert max(len(line) for line in [headings, *lines]) <= COLUMNS
        return [row.split() for row in rows]

    @property
    def digests(self) -> dict[str, str]:
        """The second table."""
        return dict(line.split() for line in self.out.splitlines()[-len(self.table) :])


Call = Callable[[list[str]], Said]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Runs the command in this process."""

    def run(argv: list[str]) -> Said:
        capsys.readouterr()
        try:
            status: object = main(argv)
        except SystemExit as ended:
            status = ended.code
        assert isinstance(status, int)
        return Said(status, *capsys.readouterr())

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield run
    assert [signal.getsignal(number) for number in numbers] == before


def leftovers(home: Path) -> list[Path]:
    """What half-done work left; a part of a download is kept for the next call."""
    store = home / "store"
    places = (home / "tasks" / ".staging", store / "staging", store / "trash")
    return [path for place in places if place.is_dir() for path in place.rglob("*")]


def downloading(home: Path) -> bool:
    """Whether a good part of a download is on disk."""
    found = 0
    for path in (home / "store").rglob("*.part"):
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_size
    return found > 10_000


def contents(tree: Path) -> dict[str, bytes]:
    """Relative path to content of each file."""
    return {
        str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()
    }


# --- what it makes ---------------------------------------------------------------------------


def test_a_delta_task_over_http(
    commands: Commands, sources: SourceServer, archives: Archives, home: Path, tmp_path: Path
) -> None:
    """No Redis, no DAGSTER_HOME, no digests, no terminal."""
    user = tmp_path / "user"
    user.mkdir()
    argv = process(
        repo_url=sources.url(archives.repo.path),
        fuzz_tooling_url=sources.url(archives.tooling.path),
        diff_url=sources.url(archives.diff.path),
        task_type="delta",
    )
    done = commands.run(PROGRAM, *argv, BUTTERCUP_REDIS_URL=NO_REDIS, HOME=str(user))
    said = Said(done.returncode, done.stdout, done.stderr)
    assert (said.status, said.err) == (0, "")
    assert "\x1b" not in said.out
    assert said.folder == home / "tasks" / TASK_ID
    assert [[row[0], row[3], row[-1]] for row in said.table] == [
        ["repo", "2", "127.0.0.1"],
        ["fuzz-tooling", "4", "127.0.0.1"],
        ["diff", "1", "127.0.0.1"],
    ]
    assert said.digests == archives.digests

    meta = said.folder / "task_meta.json"
    assert json.loads(meta.read_bytes()) == {
        "project_name": PROJECT,
        "focus": FOCUS,
        "task_id": TASK_ID,
        "metadata": {},
    }
    assert contents(said.folder) == {
        "task_meta.json": meta.read_bytes(),
        **{f"src/{name}": content for name, content in archives.repo.files.items()},
        **{f"fuzz-tooling/{name}": content for name, content in archives.tooling.files.items()},
        **{f"diff/{name}": content for name, content in archives.diff.files.items()},
    }
    assert leftovers(home) == []
    assert list(user.iterdir()) == []


def test_json_for_programs(
    commands: Commands, sources: SourceServer, archives: Archives, home: Path
) -> None:
    argv = process("--json", "--link_mode", "copy", repo_url=sources.url(archives.repo.path))
    done = commands.run(PROGRAM, *argv)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["path"] == str(home / "tasks" / TASK_ID)
    repo = found["sources"]["repo"]
    assert (repo["sha256"], repo["link_mode"]) == (archives.repo.sha256, "copy")
    assert (repo["cache_hit"], repo["tree_hit"]) == (False, False)
    assert SIGNATURE not in done.stdout


def test_dagster_keeps_the_run_where_there_is_a_home_for_it(
    commands: Commands, sources: SourceServer, archives: Archives, tmp_path: Path
) -> None:
    """The same with Dagster's log, in which no query may stand either."""
    instance_folder = tmp_path / "dagster"
    instance_folder.mkdir()
    shutil.copy(ROOT / "dagster.yaml", instance_folder)
    argv = process("--log_level", "debug", repo_url=sources.url(archives.repo.path))
    done = commands.run(PROGRAM, *argv, DAGSTER_HOME=str(instance_folder))
    said = Said(done.returncode, done.stdout, done.stderr)
    assert said.status == 0
    assert said.digests == {"repo": archives.repo.sha256}
    assert "RUN_SUCCESS" in said.err

    for path in instance_folder.rglob("*"):
        assert path.is_dir() or SIGNATURE.encode() not in path.read_bytes(), path
    with dg.DagsterInstance.from_config(str(instance_folder)) as instance:
        for asset in ("repo", "prepared_task"):
            found = instance.get_latest_materialization_event(dg.AssetKey(asset))
            event = found.asset_materialization if found else None
            assert event is not None
            assert event.partition == TASK_ID
            assert event.tags is not None
            assert event.tags["dagster/data_version"] == archives.repo.sha256
        (run,) = instance.get_runs()
        assert run.status is dg.DagsterRunStatus.SUCCESS
        assert instance.has_dynamic_partition("tasks", TASK_ID)


def test_paths_and_file_urls(
    call: Call, archives: Archives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "a b?c#d%41é.tar.gz"
    shutil.copy(archives.repo.path, odd)
    monkeypatch.setenv("HOME", str(tmp_path))
    urls = (odd, odd.as_uri(), os.path.relpath(odd), f"~/{odd.name}")
    for url in urls:
        said = call(process(repo_url=url))
        assert said.status == 0
        assert said.table[0][-2:] == ["local", "file"]
        assert said.digests == {"repo": archives.repo.sha256}


def test_digests_may_be_given_in_any_case(
    call: Call, archives: Archives, sources: SourceServer
) -> None:
    argv = process(
        repo_url=sources.url(archives.repo.path),
        repo_sha256=archives.repo.sha256.upper(),
        fuzz_tooling_url=archives.tooling.path,
        fuzz_tooling_sha256=archives.tooling.sha256,
    )
    assert call(argv).digests == {
        "repo": archives.repo.sha256,
        "fuzz-tooling": archives.tooling.sha256,
    }
    # With a digest the archive need not be fetched again.
    again = call(argv)
    assert [row[-1] for row in again.table] == ["store", "store"]


def test_an_empty_option_is_none(call: Call, archives: Archives) -> None:
    """So that a script can pass on a variable that may be empty."""
    said = call(process(repo_url=archives.repo.path, fuzz_tooling_url="", diff_sha256=""))
    assert said.digests == {"repo": archives.repo.sha256}


def test_the_task_id_is_kept_in_lower_case(call: Call, archives: Archives, home: Path) -> None:
    argv = process(repo_url=archives.repo.path)
    argv[1] = TASK_ID.upper()
    assert call(argv).folder == home / "tasks" / TASK_ID


def test_a_second_run_says_what_it_replaced(call: Call, archives: Archives, tmp_path: Path) -> None:
    argv = process(repo_url=archives.repo.path)
    assert call(argv).err == ""
    again = call(argv)
    assert again.status == 0
    assert again.remark == ("the folder was there already and was replaced, with the same content")
    other = pack(tmp_path / "other.tar.gz", {f"{FOCUS}/other.c": b"\n"})
    third = call(process(repo_url=other.path))
    assert third.remark == "the folder was there already and was replaced, with other content"
    assert set(contents(third.folder)) == {"task_meta.json", f"src/{FOCUS}/other.c"}


def test_warnings_of_the_checks_are_shown(call: Call, archives: Archives, tmp_path: Path) -> None:
    stray = packed(folder(b"demo/"), file(b"demo/main.c"), symlink(b"demo/out", b"/etc/passwd"))
    repo = tmp_path / "stray.tar.gz"
    repo.write_bytes(stray)
    said = call(
        process(
            repo_url=repo,
            focus=f"{FOCUS}/lib",
            fuzz_tooling_url=archives.tooling.path,
            project_name="another-project",
        )
    )
    assert said.status == 0
    assert said.remarks == [
        "warning: repo: symbolic links that lead out of the tree are left out: 1",
        "warning: src/demo/lib is not in the repo archive (it has demo); check the task's focus",
        "warning: the fuzz tooling lacks projects/another-project/project.yaml",
    ]


# --- what cannot be prepared -----------------------------------------------------------------


def test_a_wrong_digest_is_one_line(call: Call, archives: Archives, home: Path) -> None:
    wrong = "0" * 64
    said = call(process(repo_url=archives.repo.path, repo_sha256=wrong))
    assert (said.status, said.out) == (1, "")
    assert said.remark.startswith(f"repo: {archives.repo.path.as_uri()} gave ")
    assert said.remark.endswith(
        f"bytes with SHA-256 {archives.repo.sha256}, wanted {wrong}; the archive was changed or "
        "the digest is of another file"
    )
    assert not (home / "tasks" / TASK_ID).exists()
    assert leftovers(home) == []


def test_what_a_server_does_not_have_is_one_line(
    commands: Commands, archives: Archives, sources: SourceServer
) -> None:
    """As a process with Dagster's log: that holds the failure too, and no query."""
    url = sources.missing_url("gone.tar.gz")
    argv = process("--log_level=debug", repo_url=archives.repo.path, diff_url=url)
    done = commands.run(PROGRAM, *argv)
    assert (done.returncode, done.stdout) == (1, "")
    assert SIGNATURE not in done.stderr
    assert "STEP_FAILURE" in done.stderr
    assert done.stderr.splitlines()[-1] == (
        f"{PROGRAM}: diff: {url.partition('?')[0]} answered 404; check the URL"
    )


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        (b"<html>please log in</html>", [], "gzip"),
        (None, ["--max_archive_bytes", "10"], "above the limit of 10 bytes"),
        (None, ["--max_tree_entries=1"], "1"),
    ],
    ids=["no archive", "large archive", "many entries"],
)
def test_what_is_refused_is_one_line(
    *,
    call: Call,
    archives: Archives,
    tmp_path: Path,
    content: bytes | None,
    more: list[str],
    words: str,
) -> None:
    path = tmp_path / "given.tar.gz"
    path.write_bytes(content or archives.repo.path.read_bytes())
    said = call(process(*more, repo_url=path))
    assert (said.status, said.out) == (1, "")
    assert said.remark.startswith("repo: ")
    assert words in said.remark


def test_a_file_that_is_not_there_is_one_line(call: Call, tmp_path: Path) -> None:
    said = call(process(repo_url=tmp_path / "missing.tar.gz"))
    assert (said.status, said.out) == (1, "")
    assert said.remark == (
        f"repo: {(tmp_path / 'missing.tar.gz').as_uri()} cannot be read: No such file or directory"
    )


def test_a_failed_second_run_leaves_the_folder_of_the_first(
    call: Call, archives: Archives, home: Path
) -> None:
    made = call(process(repo_url=archives.repo.path))
    before = contents(made.folder)
    assert call(process(repo_url=archives.repo.path, repo_sha256="0" * 64)).status == 1
    assert contents(made.folder) == before


def test_hosts_that_are_not_allowed(call: Call, archives: Archives, sources: SourceServer) -> None:
    argv = process("--source_hosts", "example.org", repo_url=sources.url(archives.repo.path))
    said = call(argv)
    assert (said.status, said.out) == (1, "")
    assert said.remark.startswith("repo: 127.0.0.1 is not among the hosts")


# --- wrong usage -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        ([], ["say what to do: serve, process, verify, gc; see buttercup-downloader --help"]),
        (
            ["prepare"],
            [
                f"invalid choice: 'prepare' (choose from {CHOICES}); see {PROGRAM} --help",
            ],
        ),
        (
            ["process"],
            [
                (
                    "the following arguments are required: TASK_ID; see buttercup-downloader "
                    "process --help"
                )
            ],
        ),
        (
            ["process", TASK_ID],
            ["--project_name is missing", "--focus is missing", "--repo_url is missing"],
        ),
        (
            process("http://files.example/x?X-Amz-Signature=" + SIGNATURE, repo_url="x"),
            [
                (
                    "unrecognized arguments: http://files.example/x?…; see buttercup-downloader "
                    "process --help"
                )
            ],
        ),
        (
            process("--max_runs", "0", "--log_level=loud", task_type="half", repo_sha256="12"),
            [
                "--log_level: choose one of critical, error, warning, info, debug, trace",
                "--max_runs: must be greater than or equal to 1",
                "--repo_url is missing",
                "--repo_sha256: '12' is not a SHA-256 digest; give 64 hex digits",
                "--task_type: 'half' is no type of task; choose full or delta",
            ],
        ),
        (
            [
                *("process", "\x1b[31mme", "--project_name", "de mo", "--focus", "../x"),
                *("--repo_url", f"ftp://files.example/x?{SIGNATURE}", "--task_type", "delta"),
                *("--diff_sha256", "a" * 64),
            ],
            [
                rf"TASK_ID: '\x1b[31mme' {UUID_ADVICE}",
                (
                    "--focus: '../x' has an empty, '.' or '..' part; name a folder inside the repo "
                    "tarball, such as 'curl' or 'libs/png'"
                ),
                (
                    "--project_name: 'de mo' is not an OSS-Fuzz project name; use letters, digits, "
                    "'_', '.', '+' and '-', at most 128 of them"
                ),
                (
                    "--repo_url has the scheme 'ftp'; send a URL that begins with http:// or "
                    "https:// or file://"
                ),
                "--diff_sha256 is of no use without --diff_url",
                "--diff_url is missing; a delta task needs it (or give --task_type full)",
            ],
        ),
        (
            process(repo_url=f"http://[x/?{SIGNATURE}", diff_url="http:///x"),
            [
                (
                    "--repo_url cannot be read as a URL; check its host and port, and begin with "
                    "http:// or https:// or file://"
                ),
                "--diff_url names no host; send a URL such as http://host/archive.tar.gz",
            ],
        ),
    ],
    ids=[
        "nothing",
        "no such command",
        "no id",
        "what every task needs",
        "too much",
        "flags",
        "values",
        "urls",
    ],
)
def test_wrong_usage_gives_a_line_for_each_mistake(
    call: Call, argv: list[str], lines: list[str]
) -> None:
    said = call(argv)
    assert (said.status, said.out) == (2, "")
    assert said.remarks == lines


def test_a_place_inside_a_git_work_tree_is_refused(
    call: Call, archives: Archives, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    (clone / ".git").mkdir(parents=True)
    said = call(process(repo_url=archives.repo.path, output=clone / "deep" / "tasks"))
    assert (said.status, said.out) == (2, "")
    assert said.remark == (
        f"{clone}/deep/tasks lies in the git work tree {clone}, where `git apply` would silently "
        "do nothing with the task; choose a folder outside with --output"
    )
    assert not (clone / "deep").exists()


@pytest.mark.parametrize("instance", ["relative", "/nonexistent/dagster", "broken"])
def test_a_dagster_home_that_is_none(
    *,
    call: Call,
    archives: Archives,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    instance: str,
) -> None:
    if instance == "broken":
        broken = tmp_path / "broken"
        broken.mkdir()
        (broken / "dagster.yaml").write_text("storage: [")
        instance = str(broken)
    monkeypatch.setenv("DAGSTER_HOME", instance)
    said = call(process(repo_url=archives.repo.path))
    assert (said.status, said.out) == (1, "")
    assert said.remark.startswith("DAGSTER_HOME cannot be used: ")
    assert len(said.remark) < 600
    assert not home.exists()


# --- settings --------------------------------------------------------------------------------


def test_flags_may_stand_before_and_after_the_command(
    call: Call, archives: Archives, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    task = process(repo_url=archives.repo.path)
    private = "--no-block_private_addresses"
    for argv in (
        ["--home", str(one), f"--tasks_dir={two}", private, *task],
        [*task, "--home", str(one), f"--tasks_dir={two}", private],
        ["process", private, TASK_ID, f"--home={one}", *task[2:], "--tasks_dir", str(two)],
    ):
        assert call(argv).folder == two / TASK_ID
        assert (one / "store").is_dir()
        shutil.rmtree(one)
        shutil.rmtree(two)


def test_settings_from_the_environment_and_a_file(
    call: Call, archives: Archives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    argv = process(repo_url=archives.repo.path)
    Path(".env").write_text(
        f"BUTTERCUP_DOWNLOADER_TASKS_DIR={one}\nBUTTERCUP_DOWNLOADER_TASK_DIR=x\n"
    )
    said = call(argv)
    assert said.folder == one / TASK_ID
    assert said.remark == (
        "warning: BUTTERCUP_DOWNLOADER_TASK_DIR is not a setting and is ignored; did you mean "
        "BUTTERCUP_DOWNLOADER_TASKS_DIR?"
    )
    monkeypatch.setenv("BUTTERCUP_DOWNLOADER_TASKS_DIR", str(two))
    assert call(argv).folder == two / TASK_ID
    assert call([*argv, "--output", str(three)]).folder == three / TASK_ID
    monkeypatch.setenv("BUTTERCUP_DOWNLOADER_MAX_RUNS", "many")
    said = call(argv)
    assert said.status == 2
    assert "BUTTERCUP_DOWNLOADER_MAX_RUNS: must be a valid integer" in said.err


def test_a_file_of_settings_that_is_no_text(call: Call, archives: Archives) -> None:
    Path(".env").write_bytes(b"\xff\xfe=1\n")
    said = call(process(repo_url=archives.repo.path))
    assert (said.status, said.out) == (2, "")
    assert said.remark.startswith(".env cannot be read: ")


@pytest.mark.parametrize("argv", [["--help"], ["process", "--help"]], ids=" ".join)
def test_help_fits_the_terminal(call: Call, argv: list[str]) -> None:
    said = call(argv)
    assert (said.status, said.err) == (0, "")
    # What stands above describes each flag in one word, however long.
    explained = said.out.partition("\n\n")[2]
    assert max(map(len, explained.splitlines())) <= COLUMNS


def test_help_imports_no_dagster(commands: Commands) -> None:
    program = (
        "import sys; from buttercup_dagster.cli.downloader import main\n"
        "try: main(['process', '--help'])\n"
        "except SystemExit: print('dagster' in sys.modules)"
    )
    done = commands.python(program)
    assert (done.stdout.splitlines()[-1], done.stderr) == ("False", "")


# --- being stopped ---------------------------------------------------------------------------


def test_a_signal_stops_a_download_and_leaves_nothing(
    commands: Commands, sources: SourceServer, archives: Archives, tmp_path: Path
) -> None:
    """All three signals at the same time, each to a process of its own."""
    gate = threading.Event()
    large = pack(tmp_path / "large.tar.gz", {f"{FOCUS}/noise": os.urandom(1_000_000)})
    url = sources.url(large.path, gate=gate)
    running = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        home = tmp_path / number.name
        argv = process(repo_url=url, fuzz_tooling_url=archives.tooling.path, home=home)
        running[number] = home, commands.start(PROGRAM, *argv)
    for number, (home, started) in running.items():
        wait_for(partial(downloading, home), f"what {number.name} stops")
        said = Said(*end(started, number))
        assert (said.status, said.out) == (130, "")
        assert said.remark == "stopped; nothing half-done is left"
        assert leftovers(home) == []
        assert {path.name for path in (home / "tasks").iterdir()} == {".manifests", ".staging"}
        stored = [path for path in (home / "store" / "archives").rglob("*") if path.is_file()]
        assert [path.name for path in stored] in ([], [archives.tooling.sha256])
    gate.set()


def test_a_signal_after_the_folder_is_there(
    commands: Commands, archives: Archives, tmp_path: Path
) -> None:
    """The checks run then; one of them hangs here."""
    programs = tmp_path / "programs"
    programs.mkdir()
    git = programs / "git"
    git.write_text(f"#!/bin/sh\n: > {programs}/called\nexec sleep 60\n")
    git.chmod(0o755)
    argv = process(repo_url=archives.repo.path, diff_url=archives.diff.path, task_type="delta")
    started = commands.start(PROGRAM, *argv, PATH=f"{programs}{os.pathsep}{os.environ['PATH']}")
    wait_for((programs / "called").exists, "the check")
    said = Said(*end(started, signal.SIGTERM))
    assert said.status == 130
    assert said.remark == "stopped; the task's folder was complete before"
    assert (said.folder / "diff" / "diff" / "ref.diff").is_file()


def test_a_dagster_home_that_vanishes(
    commands: Commands, sources: SourceServer, tmp_path: Path
) -> None:
    """The folder is what counts, but nobody may think that Dagster knows of it."""
    instance = tmp_path / "dagster"
    instance.mkdir()
    shutil.copy(ROOT / "dagster.yaml", instance)
    gate = threading.Event()
    repo = pack(tmp_path / "vanishing.tar.gz", {f"{FOCUS}/noise": os.urandom(100_000)})
    url = sources.url(repo.path, gate=gate)
    started = commands.start(PROGRAM, *process(repo_url=url), DAGSTER_HOME=str(instance))
    wait_for(lambda: sources.requests[f"/bucket/{repo.path.name}"], "the download")
    shutil.rmtree(instance)
    gate.set()
    out, err = started.communicate(timeout=30)
    assert started.returncode == 1
    assert "Traceback" not in err
    assert SIGNATURE not in out + err
    assert err.splitlines()[-1].startswith(
        f"{PROGRAM}: the folder is complete, but Dagster cannot record the run: "
    )
    assert (Path(out.splitlines()[0]) / "src" / FOCUS / "noise").is_file()


# --- on a terminal ---------------------------------------------------------------------------


def test_bars_on_a_terminal(
    commands: Commands, sources: SourceServer, archives: Archives, tmp_path: Path
) -> None:
    gate = threading.Event()
    large = pack(tmp_path / "bars.tar.gz", {f"{FOCUS}/noise": os.urandom(2_000_000)})
    argv = process(
        repo_url=sources.url(large.path, gate=gate),
        fuzz_tooling_url=sources.url(archives.tooling.path),
    )
    with commands.terminal(PROGRAM, *argv) as terminal:
        terminal.shows("/1.9 MiB")
        gate.set()
        assert terminal.wait() == 0
        bars = [line for line in terminal.lines if "━" in line]
        assert {len(line) for line in bars} == {COLUMNS}
        assert any(line.startswith("repo  ") and "fetching" in line for line in bars)
        assert any(
            line.startswith("fuzz-tooling ") and line.rstrip().endswith("done") for line in bars
        )
        assert SIGNATURE not in terminal.raw
        # Afterwards they are gone, and the cursor is back.
        said = terminal.lines[terminal.lines.index(bars[-1]) + 1 :]
        assert terminal.raw.rindex("\x1b[?25h") > terminal.raw.rindex("━")
        assert said[-1].split() == ["fuzz-tooling", archives.tooling.sha256]


def test_ctrl_c_on_a_terminal(commands: Commands, sources: SourceServer, tmp_path: Path) -> None:
    gate = threading.Event()
    large = pack(tmp_path / "stopped.tar.gz", {f"{FOCUS}/noise": os.urandom(2_000_000)})
    home = tmp_path / "home"
    argv = process(repo_url=sources.url(large.path, gate=gate), home=home)
    with commands.terminal(PROGRAM, *argv) as terminal:
        terminal.shows("/1.9 MiB")
        terminal.press_ctrl_c()
        assert terminal.wait() == 130
        assert terminal.lines[-1] == f"{PROGRAM}: stopped; nothing half-done is left"
        assert "Traceback" not in terminal.raw
    gate.set()
    assert leftovers(home) == []
