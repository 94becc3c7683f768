"""A place to unpack archives in, which notices everything that they do outside of their folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from buttercup_dagster.sources.archive import (
    DEFAULT_LIMITS,
    ArchiveError,
    Limits,
    Manifest,
    Usage,
    unpack,
)
from buttercup_dagster.sources.errors import SourceError
from tests.support.archives import MEBIBYTE
from tests.support.trees import snapshot

MOST_BYTES = 64 * MEBIBYTE
"""Memory that the child process may take for an archive of few entries."""


class Sandbox:
    """A folder to unpack into, with things beside the tree that must stay as they are.

    Attributes:
        root: the folder; names such as `../out/sentinel` lead from the tree to what lies beside it.
        tree: where archives are unpacked.
        archive: the archive as a file, outside of `root`.
        usage: what the child process of the last unpacking took; empty if it was killed.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "sandbox"
        self.tree = self.root / "tree"
        self.archive = folder / "archive"
        self.usage: list[Usage] = []
        for name in ("out", "evildir", "treeevil"):
            (self.root / name).mkdir(parents=True)
        self.sentinel = self.root / "out" / "sentinel"
        self.sentinel.write_text("untouched")
        self.sentinel.chmod(0o640)
        for path in (self.sentinel, *self.root.iterdir()):
            os.utime(path, (1, 1))

    @property
    def names(self) -> list[bytes]:
        """What lies directly in the tree, as bytes, sorted."""
        return sorted(os.fsencode(path.name) for path in self.tree.iterdir())

    def unpack(
        self,
        data: bytes | Path,
        limits: Limits = DEFAULT_LIMITS,
        *,
        most_bytes: int = MOST_BYTES,
        **options: Any,
    ) -> Manifest:
        """Unpack, and check that nothing else happened, whether it works or not.

        A tree of an earlier call is removed first.

        Args:
            data: the archive's bytes, or a file of them.
            limits: how much it may hold.
            most_bytes: of memory for the child process.
            options: more arguments of `unpack`.
        """
        archive = data if isinstance(data, Path) else self.archive
        if isinstance(data, bytes):
            archive.write_bytes(data)
        if self.tree.is_dir():
            shutil.rmtree(self.tree)
        self.usage = []
        before = archive.lstat()
        with left_as_it_was(), self._untouched():
            try:
                manifest = unpack(archive, self.tree, limits, on_usage=self.usage.append, **options)
            except BaseException:
                assert not os.path.lexists(self.tree)
                raise
            finally:
                after = archive.lstat()
                assert (after.st_ino, after.st_size, after.st_mtime_ns, after.st_nlink) == (
                    before.st_ino,
                    before.st_size,
                    before.st_mtime_ns,
                    before.st_nlink,
                )
                assert all(0 < one.peak_bytes <= most_bytes for one in self.usage)
        assert len(self.usage) == 1
        assert manifest.differences(self.tree) == []
        return manifest

    def refusal(
        self, data: bytes | Path, limits: Limits = DEFAULT_LIMITS, **options: Any
    ) -> ArchiveError:
        """The error with which an archive is refused."""
        with pytest.raises(SourceError) as caught:
            self.unpack(data, limits, **options)
        error = caught.value
        assert isinstance(error, ArchiveError), error
        assert not error.retryable
        assert len(self.usage) == (error.code != "took_too_long")
        assert str(error).isprintable()
        assert error.name.isprintable()
        return error

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Whatever lies beside the tree stays what it is, and nothing appears beside it."""
        before = self._beside()
        try:
            yield
        finally:
            assert self._beside() == before

    def _beside(self) -> dict[str, dict[str, tuple[object, ...]]]:
        # The tree itself is left out: its paths may be longer than the system accepts.
        return {
            path.name: snapshot(path) for path in self.root.iterdir() if path.name != self.tree.name
        }


@contextmanager
def left_as_it_was() -> Iterator[None]:
    """No descriptor and no child process of this process is left by the block."""
    handles, children = open_handles(), child_processes()
    try:
        yield
    finally:
        assert open_handles() == handles
        assert child_processes() <= children


def open_handles() -> list[str]:
    """What the descriptors of this process refer to, sorted."""
    found = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):  # the handle of the listing itself
            found.append(os.readlink(f"/proc/self/fd/{number}"))  # noqa: PTH115
    return sorted(found)


def child_processes(process: int | None = None) -> set[int]:
    """Ids of the children of this (or another) process, those not waited for included."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{process or 'self'}/task").iterdir():
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def descendants(process: int) -> set[int]:
    """Ids of the children of a process, of their children, and so on."""
    found = child_processes(process)
    return found.union(*map(descendants, found))
