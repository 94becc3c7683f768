"""The moment in which a task's folder appears, and how that is taken back."""

from __future__ import annotations

import contextlib
from pathlib import Path

from buttercup_dagster.sources.disk import (
    exchange,
    remove_tree,
    sync_file,
    sync_folder,
    write_atomically,
)
from buttercup_dagster.sources.errors import SourceError, storing
from buttercup_dagster.sources.manifest import Manifest


class Publication:
    """One folder on its way into its place. The task's lock has to be held.

    Args:
        folder: what to publish, on the same file system; may hold what stood in the place later.
        path: its place.
        manifest: what the folder holds.
        manifest_path: where the manifest of what stands in the place is kept.
        restore: whether `undo` puts back what stood there; else the place is empty then.
    """

    def __init__(
        self, folder: Path, path: Path, manifest: Manifest, manifest_path: Path, *, restore: bool
    ) -> None:
        self._folder = folder
        self._path = path
        self._manifest = manifest
        self._manifest_path = manifest_path
        self._restore = restore
        self._inode = folder.stat().st_ino
        self._former_manifest: bytes | None = None

    def make(self) -> None:
        """Put the folder into its place.

        Readers find the former folder or the new one, never a mixture.

        Raises:
            StorageError: it cannot be done; `undo` cleans up.
        """
        with storing("cannot publish the task", self._path):
            with contextlib.suppress(FileNotFoundError):
                self._former_manifest = self._manifest_path.read_bytes()
            self._manifest.save(self._manifest_path, durable=False)
            try:
                exchange(self._folder, self._path)
            except FileNotFoundError:
                self._folder.rename(self._path)
            # Together, and before anybody is told: the system can do most of it at once.
            sync_file(self._manifest_path)
            sync_folder(self._manifest_path.parent)
            sync_folder(self._path.parent)

    def undo(self) -> None:
        """Take back what `make` did, wherever it was interrupted.

        Raises:
            StorageError: it cannot be done.
        """
        with storing("cannot take the task back", self._path):
            if not self._stands():
                self._put_manifest_back()
            elif self._restore and self._folder.exists():
                exchange(self._folder, self._path)
                self._put_manifest_back()
            else:
                withdraw(self._path, self._manifest_path, self._folder.with_name("refused"))

    def _stands(self) -> bool:
        """Whether the new folder is in the place."""
        return self._path.exists() and self._path.stat().st_ino == self._inode

    def _put_manifest_back(self) -> None:
        if self._former_manifest is None:
            self._manifest_path.unlink(missing_ok=True)
        else:
            write_atomically(self._manifest_path, self._former_manifest)


def withdraw(path: Path, manifest_path: Path, aside: Path) -> bool:
    """Make a published folder disappear by one rename. The task's lock has to be held.

    Args:
        path: the folder.
        manifest_path: its manifest.
        aside: a free name in a private folder, on the same file system.

    Returns:
        Whether there was a folder.

    Raises:
        StorageError: it cannot be removed.
    """
    with storing("cannot remove the task", path):
        manifest_path.unlink(missing_ok=True)
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        sync_folder(path.parent)
    # Nobody finds it any more; what of it cannot be removed is left to whoever clears up.
    with contextlib.suppress(SourceError):
        remove_tree(aside)
    return True
