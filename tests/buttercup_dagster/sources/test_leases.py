"""Which leases count, and which an attempt that fails leaves alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from buttercup_dagster.sources.errors import NoSpace
from buttercup_dagster.sources.leases import Leases
from buttercup_dagster.sources.stop import Stop
from tests.buttercup_dagster.sources.support import DIGEST
from tests.support.disks import small_tmpfs

TASK_ID = "3f2b8c1e-0d4a-4e6b-9a7c-5d1e2f3a4b5c"


class Failed(Exception):
    """What ends an attempt."""


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    """A disk without a free block while the block runs."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


def test_a_lease_that_was_taken_on_a_full_disk_counts_after_another_try(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "disk", "size=64k") as disk:
        leases, folder = Leases(disk / "leases"), disk / TASK_ID
        with leases.attempt(TASK_ID, folder) as attempt:
            with full(disk):
                with pytest.raises(NoSpace):
                    attempt.take(DIGEST, Stop())
                assert attempt.digests == frozenset()
            attempt.take(DIGEST, Stop())
            folder.mkdir()
            attempt.published()
        assert leases.in_use(DIGEST)
        assert leases.folders(DIGEST) == [folder]
        assert leases.clean() == []


def test_a_late_attempt_that_fails_keeps_the_lease_of_the_published_one(tmp_path: Path) -> None:
    leases, folder = Leases(tmp_path / "leases"), tmp_path / TASK_ID
    with contextlib.suppress(Failed), leases.attempt(TASK_ID, folder) as late:
        late.take(DIGEST, Stop())
        with leases.attempt(TASK_ID, folder) as first:
            first.take(DIGEST, Stop())
            folder.mkdir()
            first.published()
        with leases.attempt(TASK_ID, folder) as another:
            another.take(DIGEST, Stop())
        raise Failed
    assert leases.in_use(DIGEST)
    leases.drop(TASK_ID)
    assert not leases.in_use(DIGEST)


def test_attempts_that_fail_leave_no_lease(tmp_path: Path) -> None:
    leases, folder = Leases(tmp_path / "leases"), tmp_path / TASK_ID
    folder.mkdir()
    with contextlib.suppress(Failed), leases.attempt(TASK_ID, folder) as late:
        late.take(DIGEST, Stop())
        with leases.attempt(TASK_ID, folder) as first:
            first.take(DIGEST, Stop())
        raise Failed
    assert not leases.in_use(DIGEST)
    assert list((tmp_path / "leases").glob("*/*")) == []


def test_a_folder_on_a_disk_that_is_away_keeps_its_lease(tmp_path: Path) -> None:
    leases, disk = Leases(tmp_path / "leases"), tmp_path / "disk"
    folder = disk / TASK_ID
    folder.mkdir(parents=True)
    with leases.attempt(TASK_ID, folder) as attempt:
        attempt.take(DIGEST, Stop())
        attempt.published()
    disk.rename(tmp_path / "away")
    disk.symlink_to(disk)  # whoever asks gets an error that does not say that it is gone
    assert leases.clean() == []
    assert leases.in_use(DIGEST)
    disk.unlink()
    assert leases.clean() == [f"{DIGEST}/{TASK_ID}"]
