"""A disk to measure on: its folder, its caches, and what it took."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import mmap
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
EXT4: Final = frozenset({"ext2", "ext3", "ext4"})
"""File systems of one driver, which does not take an inode again for a while after its removal.

To find another one it looks at each of those first, for every new file: right after the removal of
a large tree, making the next one takes many times as long, whoever makes it.
"""

REST_SECONDS: Final = 361.0
"""How long to wait after a removal there, where the disk has no room to do without one."""

DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")

MEMORY_BACKED: Final = frozenset({"tmpfs", "ramfs"})


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


@dataclass(slots=True)
class Ground:
    """A private folder on one disk, removed at the end.

    Attributes:
        folder: on that disk.
        patient: whether to wait where a removal would tell on what is measured next.
        note: called with what happens, for people who wait.
    """

    folder: Path
    patient: bool
    note: Callable[[str], None]
    _number: int = 0
    _kept: list[Path] = field(default_factory=list)
    _rest_until: float = 0.0
    _needed_bytes: int = 0

    @classmethod
    @contextmanager
    def below(cls, parent: Path, *, patient: bool, note: Callable[[str], None]) -> Iterator[Ground]:
        """Make one.

        What an earlier call left behind that was killed is removed as well.

        Args:
            parent: on the disk to measure; made if it is not there, and removed if it is left
                empty.
            patient: whether to wait where a removal would tell on what is measured next.
            note: called with what happens, for people who wait.

        Raises:
            StorageError: the folder cannot be made or removed.
        """
        make_folder(parent)
        try:
            clean_private_folders(parent)
            with private_folder(parent, "run") as folder:
                yield cls(folder, patient, note)
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
    def clean_folder(self, needed_bytes: int) -> Iterator[Path]:
        """An empty folder on a disk with nothing left to write.

        It is removed at once, or, where removals tell on what comes next, by `clear`.

        Args:
            needed_bytes: how much it will hold.

        Raises:
            Missing: there is no room for it.
        """
        if shutil.disk_usage(self.folder).free < needed_bytes:
            self.clear()
        self.require_room(needed_bytes)
        self._needed_bytes = needed_bytes
        self._number += 1
        folder = self.folder / f"work-{self._number}"
        folder.mkdir()
        self._kept.append(folder)
        try:
            self.sync()
            yield folder
        finally:
            if file_system(self.folder) not in EXT4:
                self.clear()

    def clear(self) -> None:
        """Remove what was made so far."""
        if not self._kept:
            return
        for folder in self._kept:
            remove_tree(folder)
        self._kept.clear()
        self.sync()
        if self.patient and file_system(self.folder) in EXT4:
            self._rest_until = time.monotonic() + REST_SECONDS

    def sync(self) -> None:
        """Write to the disk what its file system still holds in memory."""
        sync(self.folder)

    def timed(self, work: Callable[[], object], archive: Path) -> float:
        """How long a piece of work takes until all it wrote is on the disk, in seconds.

        The archive is in the page cache before, whoever comes first. On a memory-backed disk the
        sync at the end does nothing.
        """
        with archive.open("rb", buffering=0) as file:
            while file.read(MEBIBYTE):
                pass
        if (left := self._rest_until - time.monotonic()) > 0:
            self.note(f"waiting {left:.0f} seconds, until the disk has got over a removal")
            time.sleep(left)
        if file_system(self.folder) in MEMORY_BACKED:
            _warm_memory(self._needed_bytes)
        gc.collect()
        started = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - started


def _warm_memory(size: int) -> None:
    """Touch as much memory as the next side will fill, and give it back.

    A virtual machine hands memory that is free to its host, which takes its time to bring it back:
    more than unpacking takes, and not the same for whoever comes first.
    """
    with mmap.mmap(-1, size) as memory:
        for at in range(0, size, mmap.PAGESIZE):
            memory[at] = 1


def sync(folder: Path) -> None:
    """Write to the disk what the file system of a folder still holds in memory (syncfs(2))."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(folder))
    finally:
        os.close(handle)


def forget_removals(folder: Path) -> bool:
    """Have the file system of a folder take inodes again that were freed lately.

    EXT4 without a journal looks for the time of a removal only where the inode is still in memory
    (`recently_deleted` in fs/ext4/ialloc.c), so that it is enough to drop what is cached of the
    disk. Everything that is read next comes from the disk again.

    Returns:
        Whether nothing of the kind is in the way now; False where only root could see to it.
    """
    if file_system(folder) not in EXT4:
        return True
    sync(folder)
    try:
        DROP_CACHES.write_text("1\n", "ascii")
    except OSError:
        return False
    return True


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on, by /proc/self/mountinfo (proc(5))."""
    folder = folder.resolve()
    depth, found = 0, "unknown file system"
    try:
        lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return found
    for line in lines:
        fields = line.split(" ")
        place = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        # The deepest one holds the folder, and of several at one place the last.
        if folder.is_relative_to(place) and len(place.parts) >= depth:
            depth, found = len(place.parts), fields[fields.index("-") + 1]
    return found
