"""What GNU tar makes of an archive, to compare with."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from buttercup_dagster.sources.manifest import Manifest
from tests.support.trees import comparable

needs_gnu_tar = pytest.mark.skipif(
    shutil.which("tar") is None
    or b"GNU tar" not in subprocess.run(["tar", "--version"], capture_output=True).stdout,  # noqa: PLW1510
    reason="needs GNU tar",
)

_PLACE_OF_TIME = {"link": 3, "folder": 2, "file": 4}
_LAST_TIME_KEPT_ANYWHERE = 2**31 - 1


def unpack_with_gnu_tar(archive: Path, place: Path) -> int:
    """Unpack into a new folder, as the present user; returns what tar exits with."""
    place.mkdir()
    # Without the delay, an entry that comes late changes the time of its folder again.
    options = ["--no-same-owner", "--delay-directory-restore"]
    command: list[str | Path] = ["tar", "-C", place, *options, "-xpf", archive]
    done = subprocess.run(command, capture_output=True, check=False)
    place.chmod(0o755)
    return done.returncode


def differences_from_gnu_tar(ours: Path, manifest: Manifest, theirs: Path) -> list[str]:
    """Names that stand for different things in our tree and in that of GNU tar.

    Three things differ by intent and are left aside: links that lead out of the tree, which we
    drop; hard links before their file, which GNU tar fails at; times that no archive states or
    no file system keeps.
    """
    one = {str(entry[0]): entry for entry in comparable(ours)}
    two = {str(entry[0]): entry for entry in comparable(theirs)}
    for name in manifest.dropped_links:
        two.pop(name, None)
    for name, entry in manifest.entries.items():
        if entry.same_as and name not in two:
            del one[name]
    one, two = _with_first_names(one), _with_first_names(two)
    found = []
    for name in sorted(one.keys() | two.keys()):
        pair = [one.get(name), two.get(name)]
        stated = manifest.entries.get(name)
        time = stated and stated.mtime
        if not time or time >= _LAST_TIME_KEPT_ANYWHERE:
            pair = [_without_time(entry) for entry in pair]
        if pair[0] != pair[1]:
            found.append(f"{name!r}: {pair[0]} instead of {pair[1]}")
    return found


def _with_first_names(entries: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """The same, with the first of the names of a file that are among these."""
    first: dict[object, str] = {}
    found = {}
    for name in sorted(entries):
        entry = entries[name]
        if entry[1] == "file":
            entry = (*entry[:-1], first.setdefault(entry[-1], name))
        found[name] = entry
    return found


def _without_time(entry: tuple[object, ...] | None) -> tuple[object, ...] | None:
    if entry is None:
        return None
    place = _PLACE_OF_TIME[str(entry[1])]
    return entry[:place] + entry[place + 1 :]
