"""Unpacked trees in the store, and what makes one trustworthy.

A tree is `trees/<key>/` with `trees/<key>.manifest` beside it and, written last, the marker
`trees/<key>.json`. What has no valid marker does not exist, whatever else is there. The marker
names the boot of this machine under which the tree was written or last compared: neither the tree
nor what stands beside it is synced, so after a power cut it is compared with its manifest, and that
with the marker, before it is used again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from buttercup_dagster.sources.archive import EscapingLinks
from buttercup_dagster.sources.disk import (
    boot_id,
    exchange,
    listed,
    make_folder,
    names_in,
    write_atomically,
)
from buttercup_dagster.sources.errors import SourceError, storing
from buttercup_dagster.sources.manifest import Manifest, Totals

TREE_VERSION: Final = 1
"""Raised when the same archive would give another tree."""

_FORMAT: Final = 1
_BLOCK: Final = 4096
_MOST_BYTES: Final = 64 * 1024


def tree_key(digest: str, escaping_links: EscapingLinks) -> str:
    """The name of a tree: what it was made of, and how.

    Args:
        digest: of the archive, 64 lower-case hex digits.
        escaping_links: what was done with symbolic links that lead out of the tree.
    """
    return f"{digest}-{TREE_VERSION}-{escaping_links}"


def digest_in(key: str) -> str:
    """The digest of the archive that a tree was made of."""
    return key.partition("-")[0]


def escaping_links_in(key: str) -> EscapingLinks:
    """What was done with symbolic links that lead out of the tree."""
    return "refuse" if key.endswith("-refuse") else "drop"


@dataclass(frozen=True, slots=True)
class Marker:
    """That a tree is complete.

    Attributes:
        digest: of the archive that it was made of.
        archive_bytes: size of that archive.
        totals: how much the tree holds.
        manifest_sha256: digest of the manifest's file.
        boot_id: of the boot under which the tree is trusted.
        made_ms: when it was made, UNIX milliseconds.
    """

    digest: str
    archive_bytes: int
    totals: Totals
    manifest_sha256: str
    boot_id: str
    made_ms: int

    @property
    def disk_bytes(self) -> int:
        """About what the tree takes on the disk: its bytes, and on average half a block a file."""
        totals = self.totals
        return totals.bytes + totals.files * _BLOCK // 2 + totals.directories * _BLOCK

    def to_json(self) -> bytes:
        """The content of the marker's file."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=1).encode("ascii")

    @classmethod
    def parsed(cls, content: bytes) -> Self | None:
        """The marker in a file, or None if it is none."""
        try:
            found: dict[str, Any] = json.loads(content)
            if found.pop("format") != _FORMAT:
                return None
            return cls(**{**found, "totals": Totals(**found["totals"])})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class StoredTree:
    """A tree in the store.

    Attributes:
        key: its name.
        path: its root folder; not to be written to.
        manifest: what it holds.
        marker: that it is complete.
    """

    key: str
    path: Path
    manifest: Manifest
    marker: Marker


class Trees:
    """The trees of one store. The lock of a key has to be held by whoever calls with that key.

    Args:
        root: their folder; made when it is needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: str) -> Path:
        """Where the tree is, or would be."""
        return self._root / key

    def manifest_path(self, key: str) -> Path:
        """Where its manifest is, or would be."""
        return self._root / f"{key}.manifest"

    def marker_path(self, key: str) -> Path:
        """Where its marker is, or would be."""
        return self._root / f"{key}.json"

    def marker(self, key: str) -> Marker | None:
        """The marker of a tree, if it has a valid one."""
        # Of each tree when the whole store is looked at, so without what a file object costs.
        try:
            handle = os.open(f"{self._root}/{key}.json", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return Marker.parsed(os.read(handle, _MOST_BYTES))
        except OSError:
            return None
        finally:
            os.close(handle)

    def keys(self) -> list[str]:
        """The key of everything that is here, of trees and of what a crash left of one."""
        return [key for key, _ in self._names()]

    def survey(self) -> Iterator[tuple[str, Marker | None, bool]]:
        """Every key, its marker, and whether a crash left something or somebody is writing."""
        for key, half_written in self._names():
            marker = self.marker(key)
            yield key, marker, half_written or marker is None

    def find(self, key: str) -> StoredTree | None:
        """A tree that may be used; None if there is none.

        A tree of another boot is compared with its manifest first, which reads every name of it.
        """
        found = self.complete(key)
        if found is None:
            return None
        now = boot_id()
        if now and found.marker.boot_id == now:
            return found
        try:
            if found.manifest.differences(found.path):
                return None
        except SourceError:
            return None
        return self.trust(found)

    def complete(self, key: str) -> StoredTree | None:
        """A tree with a valid marker and the manifest that belongs to it, trusted or not."""
        marker = self.marker(key)
        path = self.path(key)
        try:
            if marker is None or not stat.S_ISDIR(path.lstat().st_mode):
                return None
            content = self.manifest_path(key).read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() != marker.manifest_sha256:
            return None
        manifest = Manifest.parsed(content, hashed=True)
        return None if manifest is None else StoredTree(key, path, manifest, marker)

    def trust(self, tree: StoredTree) -> StoredTree:
        """Note that a tree was compared with its manifest under this boot of the machine.

        Raises:
            StorageError: the marker cannot be written.
        """
        marker = replace(tree.marker, boot_id=boot_id())
        write_atomically(self.marker_path(tree.key), marker.to_json(), durable=False)
        return replace(tree, marker=marker)

    def put(
        self, key: str, folder: Path, manifest: Manifest, *, digest: str, archive_bytes: int
    ) -> StoredTree:
        """Move an unpacked tree into its place.

        Args:
            key: of the tree; nothing may be here under it.
            folder: the unpacked tree, on the same file system.
            manifest: what it holds.
            digest: of its archive.
            archive_bytes: size of its archive.

        Raises:
            StorageError: it cannot be moved.
        """
        make_folder(self._root)
        path = self.path(key)
        with storing("cannot store the tree", path):
            try:
                folder.rename(path)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                # Where locks keep nobody out somebody else was faster, with the same tree.
                exchange(folder, path)
        # Nothing is synced: a power cut is the end of the boot under which the tree is trusted.
        written = manifest.save(self.manifest_path(key), durable=False)
        marker = Marker(
            digest=digest,
            archive_bytes=archive_bytes,
            totals=manifest.totals,
            manifest_sha256=written,
            boot_id=boot_id(),
            made_ms=time.time_ns() // 1_000_000,
        )
        write_atomically(self.marker_path(key), marker.to_json(), durable=False)
        return StoredTree(key, path, manifest, marker)

    def withdraw(self, key: str, aside: Path) -> bool:
        """Make a tree, or what a crash left of one, disappear.

        Args:
            key: of the tree.
            aside: a private folder on the same file system; what was the tree is there afterwards,
                to be deleted without the lock.

        Returns:
            Whether anything was here.

        Raises:
            StorageError: it cannot be moved.
        """
        found = False
        # The marker first: from then on there is no such tree.
        for path in (self.marker_path(key), self.path(key), self.manifest_path(key)):
            with storing("cannot remove the tree", path):
                try:
                    _move(path, aside / secrets.token_hex(8))
                except FileNotFoundError:
                    continue
                found = True
        return found

    def clear(self, key: str, aside: Path) -> bool:
        """Remove what a crash left: a tree without a valid marker, and half-written files.

        Args:
            key: of the tree.
            aside: as for `withdraw`.

        Returns:
            Whether anything was removed.

        Raises:
            StorageError: it cannot be moved.
        """
        found = self.marker(key) is None and self.withdraw(key, aside)
        for path in self._half(key):
            with storing("cannot remove", path):
                path.rename(aside / path.name)
            found = True
        return found

    def half_written(self) -> list[str]:
        """The keys of which a crash left something, or that somebody is writing."""
        return [key for key, _, half_written in self.survey() if half_written]

    def _names(self) -> list[tuple[str, bool]]:
        """Every key, and whether a half-written file of it is here; sorted."""
        half: dict[str, bool] = {}
        for name in listed(self._root):
            # A half-written file is `.<key>.<what>.<random>`, and no key has a dot.
            key = name.lstrip(".").partition(".")[0]
            half[key] = half.get(key, False) or name.startswith(".")
        half.pop("", None)
        return sorted(half.items())

    def _half(self, key: str) -> Iterator[Path]:
        """What was half-written beside a tree when the writer was killed."""
        return (path for path in names_in(self._root) if path.name.startswith(f".{key}."))


def _move(path: Path, destination: Path) -> None:
    try:
        path.rename(destination)
    except PermissionError:
        # A folder that may not be written to cannot be moved into another one either.
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise
        path.chmod(0o700)
        path.rename(destination)
