"""Which digests a task has leased, so that nobody has to look through the leases of all digests.

One file for each task, a digest a line, added while the lease is held. A lease that is not listed,
since a crash came in between, does not count without its task's folder and is left to `clean`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from buttercup_dagster.sources.disk import locked, make_folder, names_in, remove_lock
from buttercup_dagster.sources.errors import storing
from task_api.task import is_digest

_MOST_BYTES: Final = 1024 * 1024


class Leased:
    """The lists of one store.

    Args:
        root: their folder; made when it is needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, task_id: str, digest: str) -> None:
        """List a digest.

        Raises:
            StorageError: it cannot be written.
        """
        make_folder(self._root)
        path = self._root / task_id
        with locked(path), storing("cannot write the list of leases", path):
            if digest not in _read(path):
                with path.open("ab") as file:
                    file.write(f"{digest}\n".encode("ascii"))

    def settle(self, task_id: str, is_left: Callable[[str], bool]) -> None:
        """Keep what is left of a task's list; an empty list is removed.

        Args:
            task_id: of the task.
            is_left: called with each digest that is listed, while nobody adds one.

        Raises:
            StorageError: the list cannot be read or written; or what `is_left` raises.
        """
        path = self._root / task_id
        if not path.exists():
            return
        with locked(path), storing("cannot write the list of leases", path):
            listed = _read(path)
            left = [digest for digest in listed if is_left(digest)]
            if not left:
                remove_lock(path)
            elif left != listed:
                path.write_text("".join(f"{digest}\n" for digest in left), "ascii")

    def task_ids(self) -> list[str]:
        """The tasks that have a list.

        Raises:
            StorageError: the folder cannot be read.
        """
        return [path.name for path in names_in(self._root)]


def _read(path: Path) -> list[str]:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES)
    # What a crash made of it must not become a path.
    found = (line.decode("ascii", "replace") for line in content.split())
    return [digest for digest in dict.fromkeys(found) if is_digest(digest)]
