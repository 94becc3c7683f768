"""The rows of the table: what is measured, against what, and what it must reach."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, Literal

from benchmarks.ground import Census, Ground
from benchmarks.inputs import Archive, Size
from benchmarks.pairs import Pairs, Plan, Side
from benchmarks.peak import Peaks
from benchmarks.peak import measure as measure_peaks
from benchmarks.programs import Failed, fetch_with_curl, unpack_with_tar, unpack_with_tarfile
from benchmarks.server import serving
from benchmarks.synthetic import write_archive
from buttercup_dagster.sources.archive import unpack
from buttercup_dagster.sources.prepare import Workspace, prepare
from buttercup_dagster.sources.store import Store
from task_api.task import Source, SourceType, Task, TaskType

MEGABYTE: Final = 1_000_000
CHILD_BYTES: Final = 40 * MEGABYTE
CHILD_BYTES_PER_ENTRY: Final = 300
PARENT_BYTES: Final = 120 * MEGABYTE
GROWTH_BYTES: Final = 4 * MEGABYTE
"""By so much two peaks may differ and count as the same: what one process takes varies a little."""

_GROWTH_FILE_BYTES: Final = 8 * 1024
_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table.

    Attributes:
        row: number of the row that it belongs to.
        what: what was measured.
        against: what the reference is.
        unit: of `ours` and `reference`.
        ours: the median of what the engine took; of memory, the most.
        reference: the same of the reference; of memory, what is allowed or what it is compared
            with.
        must: the highest ratio that is good enough; None where none is asked for.
        pairs: the single measurements of both sides.
    """

    row: int
    what: str
    against: str
    unit: Literal["seconds", "bytes"]
    ours: float
    reference: float
    must: float | None
    pairs: Pairs | None = None

    @property
    def ratio(self) -> float:
        """Ours by the reference."""
        return self.ours / self.reference

    @property
    def reached(self) -> bool | None:
        """Whether the target was reached; None where there is none."""
        if self.must is None:
            return None
        # Nothing takes no time and no memory: a zero was never measured.
        return 0 < self.ratio <= self.must


@dataclass(frozen=True, slots=True)
class Bench:
    """What the rows are measured with.

    Attributes:
        archives: by the size that they stand for.
        memory: on a memory-backed disk.
        disk: on the ordinary disk.
        plan: how often.
        synthetic_files: how many files an archive has that is made only to be unpacked.
    """

    archives: Mapping[Size, Archive]
    memory: Ground
    disk: Ground
    plan: Plan
    synthetic_files: int


Row = Callable[[Bench], Iterator[Result]]


def unpack_to_memory(bench: Bench) -> Iterator[Result]:
    """Row 1. What an archive of many small files takes is shown beside it."""
    musts: dict[Size, float | None] = {"large": 0.35, "many": None}
    for size, must in musts.items():
        if size not in bench.archives:
            continue
        yield _unpacking(
            bench,
            bench.memory,
            1,
            "unpack to memory",
            against="tar xzf",
            unpack_otherwise=unpack_with_tar,
            must=must,
            size=size,
        )


def unpack_to_memory_safely(bench: Bench) -> Iterator[Result]:
    """Row 2."""
    yield _unpacking(
        bench,
        bench.memory,
        2,
        "unpack to memory",
        against="tarfile with filter=data",
        unpack_otherwise=unpack_with_tarfile,
        must=0.25,
    )


def unpack_to_disk(bench: Bench) -> Iterator[Result]:
    """Row 3."""
    yield _unpacking(
        bench,
        bench.disk,
        3,
        "unpack to disk",
        against="tar xzf",
        unpack_otherwise=unpack_with_tar,
        must=1.1,
    )


def fetch_and_unpack(bench: Bench) -> Iterator[Result]:
    """Row 4."""
    sizes: tuple[Size, ...] = ("small", "middle", "large")
    archives = {archive.path: archive for archive in map(bench.archives.__getitem__, sizes)}
    for archive in archives.values():
        yield _fetching(bench, archive, must=None if archive.size == "small" else 1.0)


def second_time(bench: Bench) -> Iterator[Result]:
    """Row 5."""
    archive = bench.archives["large"]
    what = f"a second task, {archive.size}"
    with serving([archive.path]) as (url,):

        def pair(_number: int) -> tuple[float, float]:
            with bench.disk.clean_folder(archive.bytes + 2 * archive.room_bytes) as folder:
                first, second = _two_tasks(bench.disk, folder, archive, url)
            return second, first

        pairs = bench.plan.take(what, pair)
    yield _timed(5, what, "the first task with the same source", pairs, must=0.1)


def peak_memory(bench: Bench) -> Iterator[Result]:
    """Row 6."""
    archive = bench.archives["large"]
    peaks = _peaks(bench, f"peak memory, {archive.size}", archive)
    allowed = CHILD_BYTES + CHILD_BYTES_PER_ENTRY * archive.entries
    yield Result(
        6,
        f"child's memory, {archive.size}",
        f"limit: 40 MB + {CHILD_BYTES_PER_ENTRY} B for each of {archive.entries:,} entries",
        "bytes",
        peaks.child,
        allowed,
        1.0,
    )
    yield Result(
        6,
        f"parent's memory, {archive.size}",
        "limit: 120 MB",
        "bytes",
        peaks.parent,
        PARENT_BYTES,
        1.0,
    )
    yield from _growth(bench)


ROWS: Final[Mapping[int, tuple[Row, tuple[Size, ...]]]] = {
    1: (unpack_to_memory, ("large", "many")),
    2: (unpack_to_memory_safely, ("large",)),
    3: (unpack_to_disk, ("large",)),
    4: (fetch_and_unpack, ("small", "middle", "large")),
    5: (second_time, ("large",)),
    6: (peak_memory, ("large",)),
}
"""By its number: what measures a row, and the archives that it needs."""


def _timed(row: int, what: str, against: str, pairs: Pairs, *, must: float | None) -> Result:
    return Result(
        row, what, against, "seconds", median(pairs.ours), median(pairs.reference), must, pairs
    )


def _unpacking(
    bench: Bench,
    ground: Ground,
    row: int,
    what: str,
    *,
    against: str,
    unpack_otherwise: Callable[[Path, Path], None],
    must: float | None,
    size: Size = "large",
) -> Result:
    archive = bench.archives[size]
    trees = _Trees()

    def ours() -> float:
        with ground.clean_folder(archive.room_bytes) as folder:
            tree = folder / "tree"
            seconds = ground.timed(lambda: unpack(archive.path, tree), archive.path)
            trees.see("ours", tree)
            return seconds

    def reference() -> float:
        with ground.clean_folder(archive.room_bytes) as folder:
            tree = folder / "tree"
            tree.mkdir()
            seconds = ground.timed(lambda: unpack_otherwise(archive.path, tree), archive.path)
            trees.see("reference", tree)
            return seconds

    what = f"{what}, {archive.size}"
    return _timed(row, what, against, bench.plan.take_turns(what, ours, reference), must=must)


def _fetching(bench: Bench, archive: Archive, *, must: float | None) -> Result:
    disk = bench.disk
    trees = _Trees()
    what = f"fetch, verify, unpack, {archive.size}"
    with serving([archive.path]) as (url,):
        source = Source(SourceType.REPO, archive.sha256, (url,))

        def with_the_engine(folder: Path) -> None:
            obtained = Store(folder / "store").obtain(source)
            unpack(obtained.path, folder / "tree", sha256=obtained.sha256)

        def with_programs(folder: Path) -> None:
            file = folder / "archive.tar.gz"
            fetch_with_curl(url, archive.sha256, file)
            (folder / "tree").mkdir()
            unpack_with_tar(file, folder / "tree")

        def side(name: str, work: Callable[[Path], None]) -> Side:
            def once() -> float:
                with disk.clean_folder(archive.bytes + archive.room_bytes) as folder:
                    seconds = disk.timed(lambda: work(folder), archive.path)
                    trees.see(name, folder / "tree")
                    return seconds

            return once

        pairs = bench.plan.take_turns(
            what, side("ours", with_the_engine), side("reference", with_programs)
        )
    return _timed(4, what, "curl -o, sha256sum, tar xzf", pairs, must=must)


def _two_tasks(disk: Ground, folder: Path, archive: Archive, url: str) -> tuple[float, float]:
    """How long two tasks with one source take, one after the other, on an empty store."""
    workspace = Workspace(folder / "tasks", folder / "store")
    source = Source(SourceType.REPO, archive.sha256, (url,))
    seconds: list[float] = []
    trees = _Trees()
    for name in ("the first task", "the second task"):
        task = Task(
            task_id=str(uuid.uuid4()),
            type=TaskType.FULL,
            project_name="benchmark",
            focus="source",
            deadline_ms=int(time.time() * 1000) + _HOUR_MS,
            sources=(source,),
        )
        seconds.append(disk.timed(partial(prepare, task, workspace), archive.path))
        trees.see(name, workspace.folder(task.task_id))
    first, second = seconds
    return first, second


def _growth(bench: Bench) -> Iterator[Result]:
    files = bench.synthetic_files
    bench.disk.require_room(10 * files * _GROWTH_FILE_BYTES)
    peaks: list[Peaks] = []
    for factor in (1, 10):
        path = bench.disk.folder / "synthetic.tar.gz"
        write_archive(path, files=files, file_bytes=factor * _GROWTH_FILE_BYTES)
        try:
            what = f"peak memory, {files:,} files of {factor * _GROWTH_FILE_BYTES // 1024} KiB"
            peaks.append(_peaks(bench, what, Archive.of("small", path)))
        finally:
            path.unlink()
    few, many = peaks
    for who, ours, reference in (
        ("child", many.child, few.child),
        ("parent", many.parent, few.parent),
    ):
        yield Result(
            6,
            f"{who}'s memory, 10 x the bytes",
            f"{files:,} files of {_GROWTH_FILE_BYTES // 1024} KiB; 4 MB more are allowed",
            "bytes",
            ours,
            # The engine tells nothing of no child: then `ours` is 0 as well, which reaches nothing.
            reference or 1,
            (reference + GROWTH_BYTES) / (reference or 1),
        )


def _peaks(bench: Bench, what: str, archive: Archive) -> Peaks:
    several: list[Peaks] = []
    with serving([archive.path]) as (url,):
        bench.plan.note(what)
        for _ in range(bench.plan.pairs):
            with bench.disk.clean_folder(archive.bytes + archive.room_bytes) as folder:
                several.append(measure_peaks(url, archive.sha256, folder))
    return Peaks.worst(several)


class _Trees:
    """Sees that both sides do the same work. Looks at the first tree of each."""

    def __init__(self) -> None:
        self._seen: dict[str, Census] = {}

    def see(self, name: str, tree: Path) -> None:
        if name in self._seen:
            return
        self._seen[name] = Census.of(tree)
        if len(set(self._seen.values())) > 1:
            raise Failed(f"the trees differ: {self._seen}")
