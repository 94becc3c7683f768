"""`python -m benchmarks.system` as people see it, and the arithmetic behind its figures."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.synthetic import write_archive
from benchmarks.system import memory
from benchmarks.system.archives import Original, find_originals
from benchmarks.system.backlog import backlog, growth
from benchmarks.system.calibration import Calibration
from benchmarks.system.front_rows import FRONT_ROWS
from benchmarks.system.memory import resident_bytes
from benchmarks.system.phases import Phase, Timing
from benchmarks.system.report import as_json, calibration_table, header, table
from benchmarks.system.results import Figure, Row, Unit, verdict
from benchmarks.system.rows import ROWS, sources_needed
from benchmarks.system.scale import FULL, QUICK
from tests.support.environment import without_settings
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
    assert [row["name"] for row in content["rows"]] == ["status", "five"]
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
