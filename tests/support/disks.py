"""Small disks of a test's own, where it may mount some."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import wait_for


@contextmanager
def small_tmpfs(place: Path, options: str) -> Iterator[Path]:
    """A file system in memory, such as "size=4m,nr_inodes=100"; skips who may not mount."""
    _need_root()
    place.mkdir()
    _mount("-t", "tmpfs", "-o", options, "tmpfs", str(place))
    try:
        yield place
    finally:
        _unmount(place)


@contextmanager
def disk_with_clones(folder: Path) -> Iterator[Path]:
    """An XFS, on which files can share their blocks; skips where there is none."""
    _need_root()
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("needs mkfs.xfs (Debian package xfsprogs)")
    image, place = folder / "disk.xfs", folder / "xfs"
    with image.open("wb") as file:
        file.truncate(320 * 1024**2)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    place.mkdir()
    _mount("-o", "loop", str(image), str(place))
    try:
        yield place
    finally:
        _unmount(place)
        image.unlink()


def _need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a disk of its own")


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")


def _unmount(place: Path) -> None:
    def unmounted() -> bool:
        return subprocess.run(["umount", str(place)], check=False, stderr=-3).returncode == 0

    wait_for(unmounted, f"nobody to use {place} any more")
