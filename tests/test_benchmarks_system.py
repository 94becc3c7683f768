"""`python -m benchmarks.system` as people see it, and the arithmetic behind its figures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis

from benchmarks.programs import Failed
from benchmarks.synthetic import write_archive
from benchmarks.system import memory, phases, rows, sender
from benchmarks.system.__main__ import _take
from benchmarks.system.archives import Original, Served, Sources, Supply, find_originals
from benchmarks.system.backlog import backlog, growth
from benchmarks.system.calibration import Calibration
from benchmarks.system.dagster_records import SUCCESS, Recorded
from benchmarks.system.front_rows import FRONT_ROWS
from benchmarks.system.memory import resident_bytes
from benchmarks.system.phases import Phase, Runner, Stuck, Timing
from benchmarks.system.report import as_json, calibration_table, header, table
from benchmarks.system.results import Figure, Row, Unit, verdict
from benchmarks.system.rows import ROWS, Bench, sources_needed
from benchmarks.system.scale import FULL, QUICK, Scale
from benchmarks.system.sender import Sending
from task_api import keys
from task_api.auth import Credentials
from task_api.registry import TaskRegistry
from task_api.task import Reason
from tests.support.environment import without_settings
from tests.support.server import KEY_ID, TOKEN, TOKEN_HASH, TaskServer
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[1]
WIDTH = 80

RECORDED = Calibration(1000.0, 1600.0, 8.0)
ORIGINAL = Original("libpng1.6.tar.gz", 1_500_000, 534, "libpng", b"", 0)


class Place:
    """A folder to measure in, and archives to measure with."""

    def __init__(self, root: Path) -> None:
        self.sources = root / "sources"
        self.disk = root / "disk"
        self.json = root / "results" / "bench-system.json"
        for folder in (self.sources, self.disk):
            folder.mkdir()

    def write_archives(self) -> None:
        for name in ("first", "second"):
            write_archive(self.sources / f"{name}.tar.gz", files=20, file_bytes=2000)

    def command(self, *arguments: str) -> list[str]:
        options = {"--sources": self.sources, "--disk": self.disk, "--json": self.json}
        named = [text for name, path in options.items() for text in (name, str(path))]
        return [sys.executable, "-m", "benchmarks.system", *named, *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            env=without_settings(),
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert self.left() == []
        return done

    def left(self) -> list[str]:
        """The files, and the command lines of the processes, that a run has left."""
        return [*map(str, self.disk.iterdir()), *self.processes()]

    def processes(self) -> list[str]:
        """Everything that runs in the folder, or was told of it."""
        found: list[str] = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                folder = (entry / "cwd").readlink()
                known = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if folder.is_relative_to(self.disk) or str(self.disk).encode() in known:
                found.append(line)
        return found


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@contextmanager
def started(place: Place, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The command, and the file that gets all it prints."""
    log = place.disk.parent / "printed"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            place.command(*arguments),
            cwd=ROOT,
            env=without_settings(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process, log
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(600)
def test_quick_measures_the_product_and_judges_nothing(place: Place) -> None:
    place.write_archives()

    done = place.run("--quick", "--rows", "five,status")

    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "first.tar.gz" in done.stdout
    assert "writes synced to the disk, per second" in done.stdout
    assert any(line.startswith("five at the same moment, all ready") for line in lines)
    assert "materialized: median" in done.stdout
    assert any(line.startswith("/status/, 1,000 tasks against 10") for line in lines)
    assert "no target is judged" in lines[-1]
    content = json.loads(place.json.read_text("utf-8"))
    assert content["judged"] is False
    assert [row["name"] for row in content["rows"]] == ["status", "five", "afterwards"]
    assert all(figure["measured"] > 0 for row in content["rows"] for figure in row["figures"])
    assert all(figure["reached"] is None for row in content["rows"] for figure in row["figures"])
    tasks = content["rows"][1]["samples"]["tasks"]
    assert len(tasks) == 5
    for task in tasks:
        assert 0 < task["ready_seconds"] <= task["materialized_seconds"]


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_ended(place: Place, number: signal.Signals) -> None:
    place.write_archives()

    with started(place, "--quick", "--rows", "steady1") as (process, log):
        wait_for(
            lambda: "steady1:" in log.read_text("utf-8"), "everything is up", seconds=200, every=0.2
        )
        assert len(place.processes()) > len(memory.COMMANDS)
        process.send_signal(number)
        assert process.wait(100) == 130

    assert "interrupted; nothing is left" in log.read_text("utf-8")
    assert place.left() == []


def test_archives_that_are_not_there_are_asked_for(place: Place) -> None:
    done = place.run("--quick")

    assert done.returncode == 2
    assert f"there are no two archives in {place.sources}; give a folder" in done.stderr


def test_a_file_that_is_no_archive_is_named(place: Place) -> None:
    place.write_archives()
    (place.sources / "first.tar.gz").write_bytes(b"this is no archive")

    done = place.run("--quick")

    assert done.returncode == 2
    assert f"{place.sources / 'first.tar.gz'} is no gzipped tar" in done.stderr


def test_a_row_that_does_not_exist_is_named_with_those_that_do(place: Place) -> None:
    done = place.run("--rows", "idle,nothing")

    assert done.returncode == 2
    assert "there is no row nothing; there are posts, status, idle," in " ".join(
        done.stderr.split()
    )


def test_each_variant_is_another_archive_with_the_same_files(place: Place, tmp_path: Path) -> None:
    place.write_archives()
    original, _ = find_originals(place.sources)
    assert (original.entries, original.top) == (20, "source")
    digests = {original.write_variant(tmp_path / f"{number}.tar.gz") for number in range(3)}
    assert len(digests) == 3
    again = Original.read(tmp_path / "0.tar.gz")
    assert (again.entries, again.mark_at) == (original.entries, original.mark_at)
    differing = sum(a != b for a, b in zip(again.tar, original.tar, strict=True))
    assert 0 < differing <= 36


@pytest.mark.parametrize(
    ("unit", "measured", "slowdown", "judged"),
    [
        ("seconds", 3.0, 2.0, 1.5),
        ("milliseconds", 3.0, 2.0, 1.5),
        ("per second", 3.0, 2.0, 6.0),
        ("times", 3.0, 2.0, 3.0),
        ("tasks", 3.0, 2.0, 3.0),
        ("seconds", 3.0, 1.0, 3.0),
    ],
)
def test_a_slow_machine_is_allowed_for(
    unit: Unit, measured: float, slowdown: float, judged: float
) -> None:
    assert Figure("something", unit, measured, None).judged(slowdown) == judged


@pytest.mark.parametrize(
    ("unit", "measured", "limit", "reached"),
    [
        ("seconds", 0.7, 0.7, True),
        ("seconds", 0.71, 0.7, False),
        ("per second", 6.0, 6.0, True),
        ("per second", 5.9, 6.0, False),
        ("times", 1.5, 1.5, True),
        ("tasks", 3.1, 3.0, False),
        ("milliseconds", 9.0, None, None),
    ],
)
def test_a_target_is_reached(
    unit: Unit, measured: float, limit: float | None, reached: bool | None
) -> None:
    assert Figure("something", unit, measured, limit).reached(1.0) is reached


@pytest.mark.parametrize(
    ("now", "slowdown"),
    [
        pytest.param(RECORDED, 1.0, id="the-same"),
        pytest.param(Calibration(500.0, 800.0, 4.0), 2.0, id="half-as-fast"),
        pytest.param(Calibration(125.0, 1600.0, 8.0), 2.0, id="one-part-far-slower"),
        pytest.param(Calibration(500.0, 3200.0, 8.0), 1.0, id="slower-here-faster-there"),
        pytest.param(Calibration(9000.0, 9000.0, 90.0), 1.0, id="faster"),
    ],
)
def test_the_slowdown_is_the_geometric_mean_and_never_below_one(
    now: Calibration, slowdown: float
) -> None:
    assert now.slowdown(RECORDED) == pytest.approx(slowdown)


def test_nothing_recorded_means_no_slowdown(tmp_path: Path) -> None:
    assert Calibration.recorded(tmp_path / "reference.json") is None
    assert Calibration(1.0, 1.0, 1.0).slowdown(None) == 1.0
    assert "nothing is recorded" in calibration_table(RECORDED, None)


def test_the_median_of_each_part_is_recorded_with_the_machine(tmp_path: Path) -> None:
    several = [
        Calibration(1000.0, 900.0, 4.0),
        Calibration(10.0, 1700.0, 8.0),
        Calibration(1100.0, 1600.0, 9.0),
    ]
    middle = Calibration.middle(several)
    assert middle == RECORDED
    file = tmp_path / "reference.json"
    middle.record({"machine": "two cores"}, file)
    assert Calibration.recorded(file) == middle
    assert json.loads(file.read_text("utf-8"))["machine"] == {"machine": "two cores"}


def test_the_backlog_is_what_was_posted_and_is_not_ready() -> None:
    posted = [100.0, 101.0, 102.0, 103.0]
    ready = [100.5, 103.0, 103.1, 103.2]
    assert backlog(posted, ready, 103.0) == [(1.0, 1), (2.0, 2), (3.0, 2)]


@pytest.mark.parametrize(
    ("waiting", "grown"),
    [
        ([], 0.0),
        ([(1.0, 5)], 0.0),
        ([(1.0, 2), (2.0, 2), (3.0, 2)], 0.0),
        ([(1.0, 0), (2.0, 1), (3.0, 2)], 2.0),
        ([(1.0, 4), (2.0, 2), (3.0, 0)], -4.0),
        ([(1.0, 0), (2.0, 9), (3.0, 0)], 0.0),
    ],
)
def test_growth_is_the_rise_of_the_line(waiting: Sequence[tuple[float, int]], grown: float) -> None:
    assert growth(waiting) == pytest.approx(grown)


def test_times_of_a_phase_run_from_the_post() -> None:
    phase = Phase((Timing("a", 1000.0, 1500.0, 1750.0), Timing("b", 1200.0, 2500.0, None)), ())
    assert phase.ready_seconds == [0.5, 1.3]
    assert phase.materialized_seconds == [0.75]
    assert phase.all_ready_seconds == pytest.approx(1.5)


def test_memory_is_that_of_the_largest_process_of_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def process(number: int, parent: int, kibibytes: int, *command: str) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "status").write_text(f"Name:\tx\nPPid:\t{parent}\nVmRSS:\t{kibibytes} kB\n")
        (folder / "cmdline").write_text("\0".join(command) + "\0")

    serve = ("python", "-m", "buttercup_dagster.cli.downloader", "serve")
    supervised = ("python", "-m", "buttercup_dagster.local.child", "10")
    process(10, 1, 900, "buttercup", "up")
    process(11, 10, 900, *supervised, *serve)
    process(12, 11, 800, *serve)
    process(13, 12, 100, *serve)
    process(14, 12, 200, *serve)
    process(15, 10, 300, "python", "-m", "dagster._daemon", "run")
    process(16, 10, 400, "python", "-m", "task_api.cli", "--port", "1")
    process(17, 1, 999, "python", "-m", "task_api.cli")
    monkeypatch.setattr(memory, "PROC", tmp_path)
    assert resident_bytes(10) == {
        "daemon": 300 * 1024,
        "server": 400 * 1024,
        "worker child": 200 * 1024,
    }


def figures() -> list[Row]:
    return [
        Row("first", [Figure("reached", "seconds", 0.6, 0.7, "from 0.5 to 0.7 s " * 9)]),
        Row("second", [Figure("not reached", "per second", 900.0, 1000.0)]),
        Row("third", [Figure("not judged", "milliseconds", 12.0, None)]),
    ]


def test_the_table_shows_what_was_measured_and_what_was_judged() -> None:
    lines = table(figures(), 1.05, judged=True).splitlines()
    assert max(map(len, lines)) <= WIDTH
    first, second, third = (
        next(line.split() for line in lines if line.startswith(what))
        for what in ("reached", "not reached", "not judged")
    )
    assert first == ["reached", "0.60", "s", "0.57", "s", "<=", "0.7", "ok"]
    assert second[2:] == ["900.0", "/s", "945.0", "/s", ">=", "1,000", "MISSED"]
    assert third[-1] == "-"
    assert verdict(figures(), 1.05, judged=True).text == "1 of 2 targets missed"
    assert not verdict(figures(), 1.05, judged=True).good
    assert verdict(figures(), 2.0, judged=True).good


def test_what_failed_counts_also_where_nothing_is_judged() -> None:
    rows = [Row("stored", [], ["3 tasks announced 2 times, " * 6])]
    lines = table(rows, 1.0, judged=False).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert any(line.startswith("FAILED stored: 3 tasks announced 2 times") for line in lines)
    assert not verdict(rows, 1.0, judged=False).good
    assert verdict(figures(), 1.0, judged=False).good


def test_the_head_of_the_table_is_no_wider() -> None:
    machine = {"machine": "a processor with a name that goes on, " * 4, "disk": "ext4"}
    slow = Calibration(12345.6, 12345.6, 12345.6)
    for text in (header(machine, [ORIGINAL, ORIGINAL]), calibration_table(slow, RECORDED)):
        assert max(map(len, text.splitlines())) <= WIDTH


def test_the_json_holds_figures_and_verdicts() -> None:
    now = Calibration(500.0, 800.0, 4.0)
    text = as_json({"disk": "ext4"}, [ORIGINAL], now, RECORDED, figures(), judged=True)
    content = json.loads(text)
    assert content["slowdown"] == pytest.approx(2.0)
    assert content["calibration"]["syncs_per_second"] == 500.0
    assert content["inputs"][0]["entries"] == 534
    assert [row["figures"][0]["reached"] for row in content["rows"]] == [True, True, None]
    assert content["rows"][0]["figures"][0]["judged"] == pytest.approx(0.3)


def test_rows_say_how_many_sources_they_take() -> None:
    assert sources_needed([*FRONT_ROWS], FULL) == 0
    assert sources_needed(["steady3", "stored"], FULL) == 181
    assert sources_needed([*ROWS], QUICK) < sources_needed([*ROWS], FULL) < 500


SOURCES = Sources(
    Served("http://127.0.0.1/1", "a" * 64), Served("http://127.0.0.1/2", "b" * 64), "libpng"
)


@contextmanager
def answering(wait: Callable[[], None]) -> Iterator[str]:
    """A server that accepts every post, once it has waited; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            wait()
            self.send_response(202)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            """Nothing is shown."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_post_that_had_to_wait_for_a_sender_counts_from_when_it_was_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "CONNECTIONS", 1)
    begin = time.monotonic()

    def until_the_second_is_late() -> None:
        wait_for(lambda: time.monotonic() > begin + 0.5, "half a second")

    with answering(until_the_second_is_late) as url:
        sending = Sending(url, Credentials("id", "token", ""), [SOURCES] * 2, [0.0, 0.01])
        wait_for(lambda: len(sending.posts) == 2, "both answers")
    first, second = sending.posts
    assert (first.error, second.error) == (None, None)
    assert second.posted_ms - first.posted_ms <= 10


class Records:
    """What Dagster would record: these numbers of runs, and each task as prepared once."""

    def __init__(self, *numbers: int) -> None:
        self._numbers = iter(numbers)
        self.repeated: set[str] = set()

    def under_way(self) -> int:
        return 0

    def runs(self) -> int:
        return next(self._numbers)

    def of_tasks(self, task_ids: Sequence[str]) -> dict[str, Recorded]:
        return {
            task_id: Recorded((SUCCESS,) * (1 + (task_id in self.repeated)), (time.time() * 1000,))
            for task_id in task_ids
        }


def runner(client: Any, records: Any, registry: Any = None, **up: Any) -> Runner:
    up["process"] = SimpleNamespace(check=lambda: None)
    return Runner(cast(Any, SimpleNamespace(**up)), client, registry, records, 6.0, 15.0)


@contextmanager
def worked_on(registry: TaskRegistry, home: Path, *, errored: bool = False) -> Iterator[None]:
    """Have every task made ready, or errored, while the block runs."""
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            for claim in registry.claim(10):
                held = (claim.task_id, claim.token)
                registry.start(claim.task_id, token=claim.token, run_id="run", machine="here")
                if errored:
                    reason = Reason("not_found", "there is no such archive")
                    registry.fail(*held, reason, transient=False)
                    continue
                folder = home / "tasks" / claim.task_id
                folder.mkdir(parents=True)
                (folder / "task_meta.json").touch()
                registry.ready(*held, path=str(folder), machine="here")
                registry.materialized(claim.task_id)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_tasks_are_timed_and_looked_at_once_more_at_the_end(
    redis_url: str, registry: TaskRegistry, tmp_path: Path
) -> None:
    records = Records()
    restarts: list[str] = []
    with (
        TaskServer(redis_url) as server,
        redis.Redis.from_url(redis_url) as client,
        worked_on(registry, tmp_path),
    ):
        measured = runner(
            client,
            records,
            registry,
            url=server.url,
            key=Credentials(KEY_ID, TOKEN, TOKEN_HASH),
            home=tmp_path,
            restarts=lambda: restarts,
        )
        first = measured.prepare([SOURCES] * 3, [0.0] * 3, limit_seconds=20)
        second = measured.prepare([SOURCES], [0.0], limit_seconds=20)
        assert measured.look_back() == []
        client.xadd(keys.READY, {"task_id": first.timings[0].task_id})
        records.repeated = {second.timings[0].task_id}
        restarts.append("worker ended with status 1; starting it again at once")
        again = measured.look_back()
    assert (first.wrong, second.wrong) == ((), ())
    assert measured.done == 4
    # Redis shows whole milliseconds only.
    assert all(1000 * seconds >= -1 for seconds in first.ready_seconds)
    assert again == [
        "worker ended with status 1; starting it again at once",
        "1 tasks announced 2 times",
        "1 tasks with runs SUCCESS, SUCCESS, not one success",
    ]


def test_a_task_that_ends_in_an_error_fails_the_phase(
    redis_url: str, registry: TaskRegistry, tmp_path: Path
) -> None:
    with (
        TaskServer(redis_url) as server,
        redis.Redis.from_url(redis_url) as client,
        worked_on(registry, tmp_path, errored=True),
    ):
        key = Credentials(KEY_ID, TOKEN, TOKEN_HASH)
        measured = runner(client, Records(), registry, url=server.url, key=key)
        with pytest.raises(Failed, match="is errored: there is no such archive"):
            measured.prepare([SOURCES], [0.0], limit_seconds=20)
    assert measured.done == 0


def test_idle_begins_anew_when_a_run_came_between(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(Runner, "_sleep", lambda _, seconds: slept.append(seconds))
    with redis.Redis.from_url(redis_url) as client:
        runner(client, Records(4, 5, 5)).rest()
    assert len(slept) == 2
    assert all(seconds >= 6 + 15 for seconds in slept)


def test_idle_does_not_begin_while_a_task_is_not_materialized(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phases, "QUIET_SECONDS", 0.0)
    with redis.Redis.from_url(redis_url) as client:
        client.zadd(keys.UNMATERIALIZED, {"some task": 1})
        with pytest.raises(Stuck, match="the runs do not end"):
            runner(client, Records()).rest()


def test_announcements_are_counted_over_all_phases(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        measured = runner(client, Records())
        for task_id in ("one", "two", "one"):
            client.xadd(keys.READY, {"task_id": task_id})
            measured._collect()
    assert {name: len(moments) for name, moments in measured._announced.items()} == {
        "one": 2,
        "two": 1,
    }


class Done:
    """Counts tasks, and prepares none."""

    def __init__(self) -> None:
        self.done = 0
        self.up = SimpleNamespace(process=SimpleNamespace(popen=SimpleNamespace(pid=1)))

    def prepare(self, sources: Sequence[Sources], *_: object, **__: object) -> Phase:
        self.done += len(sources)
        wrong = ("1 tasks announced 2 times",) if self.done == 10 else ()
        return Phase((Timing("a", 0.0, 1.0, 1.0),) * len(sources), wrong)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(rows, "resident_bytes", lambda _: {"server": 100})
    supply = Supply([SOURCES] * 100)
    scale = Scale(few_tasks=10, many_tasks=40, stored=20, different=15)
    return Bench(cast(Any, Done()), supply, scale, watch_memory=True)


def test_memory_is_seen_after_exactly_so_many_tasks(bench: Bench) -> None:
    bench.prepare(8)
    rows.stored(bench)
    rows.different(bench)
    row = rows.memory(bench)
    assert sorted(bench.memory) == [10, 40]
    assert [figure.measured for figure in row.figures] == [1.0]
    assert "after 40 tasks" in row.figures[0].note


def test_memory_alone_has_the_tasks_prepared_that_are_missing(bench: Bench) -> None:
    rows.memory(bench)
    assert sorted(bench.memory) == [10, 40]


def test_memory_is_not_looked_at_where_nobody_asks_for_it(bench: Bench) -> None:
    bench.watch_memory = False
    rows.stored(bench)
    rows.different(bench)
    assert bench.memory == {}
    assert bench.runner.done == 1 + 20 + 15


def test_what_went_wrong_between_the_rows_is_told(bench: Bench) -> None:
    bench.prepare(8)
    bench.look_ahead(20)
    assert bench.wrong == ["1 tasks announced 2 times"]


@pytest.mark.parametrize(
    ("error", "measured"),
    [
        (Failed("too slow"), ["one", "two", "three"]),
        (Stuck("no end"), ["one", "two"]),
        (redis.ConnectionError("gone"), ["one", "two"]),
    ],
)
def test_a_row_that_fails_takes_no_other_with_it(error: Exception, measured: list[str]) -> None:
    def good(_: None) -> Row:
        """Go well."""
        return Row("good", [Figure("something", "seconds", 1.0, 2.0)])

    def bad(_: None) -> Row:
        """Go wrong."""
        raise error

    measures = {"one": good, "two": bad, "three": good}
    found = _take([*measures], measures, None)
    assert len(found) == len(measured)
    assert str(error) in found[1].wrong[0]
    said = verdict(found, 1.0, judged=True)
    assert not said.good
