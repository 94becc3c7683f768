"""`python -m benchmarks` as people see it: a table, a file, a status, and nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.programs import PROGRAMS
from benchmarks.report import table
from benchmarks.rows import Result
from benchmarks.synthetic import write_archive
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[1]
FETCH_SOURCES = ROOT / ".ci" / "fetch-sources"

pytestmark = pytest.mark.skipif(
    any(shutil.which(program) is None for program in PROGRAMS),
    reason=f"needs {', '.join(PROGRAMS)}",
)


class Place:
    """Folders to measure in, and an archive to measure with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources = root / "sources"
        self.json = root / "results" / "bench.json"
        for folder in (self.sources, root / "memory", root / "disk"):
            folder.mkdir()

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "benchmarks", *self.options(*arguments)]

    def options(self, *arguments: str) -> list[str]:
        options = {"--memory": self.root / "memory", "--disk": self.root / "disk"}
        options["--json"] = self.json
        return [text for name, path in options.items() for text in (name, str(path))] + [*arguments]

    def run(self, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"BENCH_SOURCES": str(self.sources)}
        if path is not None:
            environment["PATH"] = path
        done = subprocess.run(
            self.command(*arguments),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert self.left() == []
        return done

    def left(self) -> list[Path]:
        """What a run has left on the disks."""
        return [*(self.root / "memory").iterdir(), *(self.root / "disk").iterdir()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_quick_measures_every_row_with_the_small_archive_alone(place: Place) -> None:
    write_archive(place.sources / "small.tar.gz", files=30, file_bytes=2000)

    done = place.run("--quick")

    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(
        line.startswith("small") and "small.tar.gz" in line and "30 entries" in line
        for line in lines
    )
    assert [line[0] for line in lines if line[:3].strip().isdigit()] == list("1234566" + "66")
    assert "MISSED" not in done.stdout
    content = json.loads(place.json.read_text("utf-8"))
    assert content["judged"] is False
    assert {result["row"] for result in content["results"]} == {1, 2, 3, 4, 5, 6}
    assert all(result["ours"] > 0 for result in content["results"])
    assert all(result["reached"] is None for result in content["results"])


def test_what_is_measured_is_judged(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.inputs.LEAST_ENTRIES", 30)
    write_archive(place.sources / "large.tar.gz", files=30, file_bytes=2000)

    status = main(place.options("--sources", str(place.sources), "--pairs", "2", "--rows", "1,3"))

    printed = capsys.readouterr().out
    content = json.loads(place.json.read_text("utf-8"))
    first, third = content["results"]
    assert content["judged"] is True
    assert (first["must"], third["must"]) == (0.35, 1.1)
    assert len(first["pairs"]["ours"]) == len(first["pairs"]["reference"]) == 2
    for result in (first, third):
        assert result["reached"] is (result["ratio"] <= result["must"])
    missed = [result for result in (first, third) if not result["reached"]]
    assert status == (1 if missed else 0)
    assert printed.count("MISSED") == len(missed)
    assert "ratios of the pairs" in printed
    assert place.left() == []


def result_of(ours: float, must: float | None) -> Result:
    return Result(3, "something", "something else", "seconds", ours, 2.0, must)


@pytest.mark.parametrize(
    ("result", "reached", "said"),
    [
        pytest.param(result_of(1.0, 0.5), True, "ok", id="just-reached"),
        pytest.param(result_of(1.01, 0.5), False, "MISSED", id="just-missed"),
        pytest.param(result_of(0.0, 0.5), False, "MISSED", id="never-measured"),
        pytest.param(result_of(9.0, None), None, "", id="without-a-target"),
    ],
)
def test_a_verdict_follows_the_ratio(result: Result, reached: bool | None, said: str) -> None:
    assert result.reached is reached
    lines = table([result], judged=True).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split()[-1] == (said or "-")


def test_missing_archives_are_named_with_the_way_to_give_them(place: Place) -> None:
    done = place.run("--quick")

    assert done.returncode == 2
    assert f"there is no small.tar.gz in {place.sources}" in done.stderr
    assert "BENCH_SOURCES=FOLDER" in done.stderr


def test_an_archive_too_small_to_count_as_large_is_refused(place: Place) -> None:
    write_archive(place.sources / "large.tar.gz", files=30, file_bytes=10)

    done = place.run("--rows", "1")

    assert done.returncode == 2
    assert "only 30 entries" in done.stderr


def test_a_missing_program_is_named(place: Place, tmp_path: Path) -> None:
    write_archive(place.sources / "small.tar.gz", files=3, file_bytes=10)

    done = place.run("--quick", path=str(folder_of_programs(tmp_path, ["tar", "gzip"])))

    assert done.returncode == 2
    assert "there is no curl on the PATH" in done.stderr


def test_a_file_that_tar_cannot_read_fails(place: Place) -> None:
    (place.sources / "small.tar.gz").write_bytes(b"this is no archive")

    done = place.run("--quick")

    assert done.returncode == 1
    assert "tar ended with status 2" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_it_is_ended(place: Place, number: signal.Signals) -> None:
    write_archive(place.sources / "large.tar.gz", files=50_000, file_bytes=0)

    with started(place, "--rows", "3", "--pairs", "1000") as process:
        wait_for(lambda: list((place.root / "disk").glob("bench/run.*/work*")), "the first tree")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "interrupted" in errors
    assert place.left() == []


def test_what_a_killed_run_left_is_removed_by_the_next(place: Place) -> None:
    write_archive(place.sources / "small.tar.gz", files=30, file_bytes=2000)
    write_archive(place.sources / "large.tar.gz", files=50_000, file_bytes=0)
    with started(place, "--rows", "3", "--pairs", "1000") as process:
        wait_for(lambda: list((place.root / "disk").glob("bench/run.*/work*")), "the first tree")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)
    assert place.left() != []

    assert place.run("--quick", "--rows", "3").returncode == 0  # which asserts that nothing is left


@contextmanager
def started(place: Place, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        place.command("--sources", str(place.sources), *arguments),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def folder_of_programs(parent: Path, names: Sequence[str]) -> Path:
    """A folder for the PATH, with these programs only."""
    folder = parent / "programs"
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


@pytest.mark.skipif(not FETCH_SOURCES.exists(), reason="needs the project's .ci folder")
def test_without_apt_it_is_said_what_to_put_where(tmp_path: Path) -> None:
    programs = folder_of_programs(tmp_path, ["bash", "env", "mkdir"])

    done = subprocess.run(
        [FETCH_SOURCES, tmp_path / "sources", "one", "two"],
        env={"PATH": str(programs)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "there is no apt-get here" in done.stderr
    for name in ("one", "two"):
        assert str(tmp_path / "sources" / f"{name}.tar.gz") in done.stderr


@pytest.mark.skipif(not FETCH_SOURCES.exists(), reason="needs the project's .ci folder")
def test_archives_that_are_there_are_not_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "one.tar.gz").write_bytes(b"here")

    done = subprocess.run(
        [FETCH_SOURCES, tmp_path, "one"], env={"PATH": "/usr/bin:/bin"}, check=False
    )

    assert done.returncode == 0
    assert (tmp_path / "one.tar.gz").read_bytes() == b"here"
