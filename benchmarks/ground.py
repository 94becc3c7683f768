"""A disk to measure on: its folder, its caches, and what it took."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.programs import Missing
from buttercup_dagster.sources.disk import (
    clean_private_folders,
    make_folder,
    private_folder,
    remove_tree,
)

MEBIBYTE: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Census:
    """How many regular files and folders lie below a folder.

    Links are not counted: the engine leaves out those that lead out of the tree.
    """

    files: int
    folders: int

    @classmethod
    def of(cls, root: Path) -> Census:
        """Count."""
        files = folders = 0
        left = [os.fspath(root)]
        while left:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders += 1
                        left.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        files += 1
        return cls(files, folders)


@dataclass(frozen=True, slots=True)
class Ground:
    """A private folder on one disk, removed at the end.

    Attributes:
        folder: on that disk.
    """

    folder: Path

    @classmethod
    @contextmanager
    def below(cls, parent: Path) -> Iterator[Ground]:
        """Make one.

        What an earlier call left behind that was killed is removed as well.

        Args:
            parent: on the disk to measure; made if it is not there, and removed if it is left
                empty.

        Raises:
            StorageError: the folder cannot be made or removed.
        """
        make_folder(parent)
        try:
            clean_private_folders(parent)
            with private_folder(parent, "run") as folder:
                yield cls(folder)
        finally:
            with contextlib.suppress(OSError):
                parent.rmdir()

    def require_room(self, needed_bytes: int) -> None:
        """See that so much is free.

        Raises:
            Missing: it is not.
        """
        free = shutil.disk_usage(self.folder).free
        if free < needed_bytes:
            raise Missing(
                f"{self.folder} has {free // MEBIBYTE} MiB free; about "
                f"{needed_bytes // MEBIBYTE} MiB are needed"
            )

    @contextmanager
    def clean_folder(self) -> Iterator[Path]:
        """An empty folder on a disk with nothing left to write; removed afterwards."""
        folder = self.folder / "work"
        folder.mkdir()
        try:
            self.sync()
            yield folder
        finally:
            remove_tree(folder)
            self.sync()

    def sync(self) -> None:
        """Write to the disk what its file system still holds in memory (syncfs(2))."""
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error), str(self.folder))
        finally:
            os.close(handle)

    def timed(self, work: Callable[[], object], archive: Path) -> float:
        """How long a piece of work takes until all it wrote is on the disk, in seconds.

        The archive is in the page cache before, whoever comes first. On a memory-backed disk the
        sync at the end does nothing.
        """
        with archive.open("rb", buffering=0) as file:
            while file.read(MEBIBYTE):
                pass
        gc.collect()
        started = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - started
